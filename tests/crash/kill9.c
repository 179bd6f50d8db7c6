/* SPDX-License-Identifier: Apache-2.0 */
/* kill9 - kills a server in the middle of its writes, again and again, and looks for every one that
 * was answered (rule E4).
 *
 *   kill9 VHDCTL IMAGE FOLDER ROUNDS [--no-io-uring]
 *
 * Each round serves IMAGE on a socket in FOLDER, reads all of it and compares, writes over two
 * connections with many requests under way, and kills the server with SIGKILL. A sector must then
 * read as the last answered write left it, or as the one that was under way when the server died
 * would have. Requests under way at the same time never overlap. The last server is stopped with
 * SIGTERM and must end with 0. With --no-io-uring the server runs as in a container whose seccomp
 * profile forbids io_uring.
 *
 * Exit status: 0 all there, 1 something is missing, 2 usage or a call that failed.
 */
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/crash/random.h"

#define SECTOR        512u
#define N_CONNECTIONS 2u
#define DEPTH         12u
#define CHUNK         (1u << 20)
#define START_MS      15000

struct slot {
        bool used;
        bool is_flush;
        uint32_t first, n; /* sectors */
        uint8_t *data;
};

struct connection {
        struct nbd_handle *nbd;
        struct slot slots[DEPTH];
};

static struct {
        const char *vhdctl, *image, *folder;
        bool no_io_uring;
        pid_t server;
        unsigned round;
        uint32_t n_sectors;
        uint64_t *answered; /* hash of what each sector holds for sure, */
        uint64_t *pending;  /* and of what it may hold instead; 0: nothing */
        bool *busy;         /* a request under way touches it */
        uint64_t n_answered, n_pending, n_failed;
        bool ending; /* the server was killed: failures mean nothing */
        struct random random;
} test;

static void die(const char *what, const char *why)
{
        fprintf(stderr, "kill9: round %u: %s: %s\n", test.round, what, why);
        if (test.server > 0)
                kill(test.server, SIGKILL);
        exit(2);
}

static double now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void sleep_ms(unsigned ms)
{
        nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000},
                NULL);
}

static uint64_t hash_of(const void *sector)
{
        return XXH3_64bits(sector, SECTOR) | 1;
}

/* ---- the server ---- */

/* io_uring_setup is refused with EPERM, as container runtimes do. */
static void forbid_io_uring(void)
{
        struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {.len = 4, .filter = code};

        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
                prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
                die("seccomp", strerror(errno));
}

static void socket_path(char *ret, size_t size)
{
        snprintf(ret, size, "%s/s%u", test.folder, test.round);
}

static void start_server(void)
{
        char path[256];

        socket_path(path, sizeof(path));
        test.ending = false;
        test.server = fork();
        if (test.server < 0)
                die("fork", strerror(errno));
        if (test.server > 0)
                return;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!freopen("/dev/null", "w", stdout))
                _exit(2);
        if (test.no_io_uring)
                forbid_io_uring();
        execl(test.vhdctl, test.vhdctl, "serve", "--socket", path, test.image, (char *)NULL);
        _exit(127);
}

static int end_server(int signal_number)
{
        int status;

        test.ending = true;
        kill(test.server, signal_number);
        if (waitpid(test.server, &status, 0) != test.server)
                die("waitpid", strerror(errno));
        test.server = 0;
        return status;
}

static struct nbd_handle *connect_once(const char *path)
{
        struct nbd_handle *nbd = nbd_create();

        if (!nbd)
                die("nbd_create", nbd_get_error());
        if (nbd_connect_unix(nbd, path) == 0)
                return nbd;
        nbd_close(nbd);
        return NULL;
}

static void connect_all(struct connection connections[])
{
        double until = now_ms() + START_MS;
        char path[256];

        socket_path(path, sizeof(path));
        for (unsigned i = 0; i < N_CONNECTIONS; i++) {
                memset(&connections[i], 0, sizeof(connections[i]));
                while (!(connections[i].nbd = connect_once(path))) {
                        int status;

                        if (waitpid(test.server, &status, WNOHANG) == test.server) {
                                test.server = 0;
                                die("the server ends at its start", "see above");
                        }
                        if (now_ms() > until)
                                die("the server does not answer", nbd_get_error());
                        sleep_ms(5);
                }
        }
}

static void close_all(struct connection connections[])
{
        for (unsigned i = 0; i < N_CONNECTIONS; i++) {
                nbd_close(connections[i].nbd);
                for (unsigned k = 0; k < DEPTH; k++)
                        free(connections[i].slots[k].data);
        }
        memset(test.busy, 0, test.n_sectors * sizeof(bool));
}

/* ---- what is there ---- */

static bool check_sector(uint32_t sector, uint64_t hash)
{
        if (hash == test.answered[sector] ||
                (test.pending[sector] && hash == test.pending[sector])) {
                test.answered[sector] = hash;
                test.pending[sector] = 0;
                return true;
        }
        fprintf(stderr, "kill9: round %u: sector %u is not what was answered%s\n", test.round,
                sector, test.pending[sector] ? ", nor what was under way" : "");
        return false;
}

/* Reads everything; the first time it is learned, later it is compared. */
static bool read_all(struct nbd_handle *nbd, bool learn)
{
        uint64_t size = (uint64_t)test.n_sectors * SECTOR;
        uint8_t *data = malloc(CHUNK);
        unsigned bad = 0;

        for (uint64_t at = 0; at < size && bad < 10; at += CHUNK) {
                uint64_t n = size - at < CHUNK ? size - at : CHUNK;

                if (nbd_pread(nbd, data, n, at, 0) < 0)
                        die("read", nbd_get_error());
                for (uint64_t i = 0; i < n / SECTOR; i++) {
                        uint32_t sector = (uint32_t)(at / SECTOR + i);
                        uint64_t hash = hash_of(data + i * SECTOR);

                        if (learn)
                                test.answered[sector] = hash;
                        else
                                bad += !check_sector(sector, hash);
                }
        }
        free(data);
        return bad == 0;
}

/* ---- writing ---- */

static int completed(void *opaque, int *error)
{
        struct slot *slot = opaque;

        if (*error == 0 && !slot->is_flush) {
                for (uint32_t i = slot->first; i < slot->first + slot->n; i++) {
                        test.answered[i] = test.pending[i];
                        test.pending[i] = 0;
                        test.busy[i] = false;
                }
                test.n_answered++;
        } else if (*error != 0 && !test.ending) {
                fprintf(stderr, "kill9: round %u: a request fails: %s\n", test.round,
                        strerror(*error));
                test.n_failed++;
        }
        free(slot->data);
        slot->data = NULL;
        slot->used = false;
        return 1;
}

static uint32_t choose_length(void)
{
        switch (random_below(&test.random, 10)) {
        case 0: return (uint32_t)random_between(&test.random, 64, 512);
        case 1:
        case 2: return (uint32_t)random_between(&test.random, 9, 64);
        default: return (uint32_t)random_between(&test.random, 1, 8);
        }
}

static bool choose_place(struct slot *slot)
{
        slot->n = choose_length();
        slot->first = (uint32_t)random_below(&test.random, test.n_sectors - slot->n + 1);
        /* Half of all writes come back to a small part of the disk. */
        if (random_chance(&test.random, 50))
                slot->first %= test.n_sectors / 16;
        for (uint32_t i = slot->first; i < slot->first + slot->n; i++)
                if (test.busy[i])
                        return false;
        return true;
}

static void submit_write(struct connection *connection, struct slot *slot, bool zero)
{
        nbd_completion_callback callback = {.callback = completed, .user_data = slot};
        uint32_t flags = random_chance(&test.random, 4) ? LIBNBD_CMD_FLAG_FUA : 0;
        size_t size = (size_t)slot->n * SECTOR;
        int64_t r;

        slot->data = calloc(1, size);
        for (size_t i = 0; i < size / 8 && !zero; i++)
                ((uint64_t *)slot->data)[i] = random_next(&test.random);
        for (uint32_t i = 0; i < slot->n; i++) {
                test.pending[slot->first + i] = hash_of(slot->data + (size_t)i * SECTOR);
                test.busy[slot->first + i] = true;
        }
        r = zero ? nbd_aio_zero(
                           connection->nbd, size, (uint64_t)slot->first * SECTOR, callback, flags)
                 : nbd_aio_pwrite(connection->nbd, slot->data, size, (uint64_t)slot->first * SECTOR,
                           callback, flags);
        if (r < 0)
                die("a write cannot be sent", nbd_get_error());
}

static void submit(struct connection *connection, struct slot *slot)
{
        nbd_completion_callback callback = {.callback = completed, .user_data = slot};
        uint64_t kind = random_below(&test.random, 100);

        *slot = (struct slot){.used = true};
        if (kind < 3) {
                slot->is_flush = true;
                if (nbd_aio_flush(connection->nbd, callback, 0) < 0)
                        die("a flush cannot be sent", nbd_get_error());
        } else if (choose_place(slot)) {
                submit_write(connection, slot, kind < 15);
        } else {
                slot->used = false;
        }
}

/* Keeps all connections full for a while. */
static void write_for(struct connection connections[], unsigned ms)
{
        double until = now_ms() + ms;

        while (now_ms() < until)
                for (unsigned i = 0; i < N_CONNECTIONS; i++) {
                        for (unsigned k = 0; k < DEPTH; k++)
                                if (!connections[i].slots[k].used)
                                        submit(&connections[i], &connections[i].slots[k]);
                        if (nbd_poll(connections[i].nbd, 1) < 0)
                                die("poll", nbd_get_error());
                }
}

/* What was on its way back when the server died was answered too. */
static void take_last_answers(struct connection connections[])
{
        for (unsigned i = 0; i < N_CONNECTIONS; i++)
                while (!nbd_aio_is_dead(connections[i].nbd) &&
                        !nbd_aio_is_closed(connections[i].nbd) &&
                        nbd_poll(connections[i].nbd, 100) > 0)
                        ;
        for (uint32_t i = 0; i < test.n_sectors; i++)
                test.n_pending += test.pending[i] != 0;
}

static void set_up(struct nbd_handle *nbd)
{
        int64_t size = nbd_get_size(nbd);

        if (size < (int64_t)(1024 * SECTOR))
                die("size", "the disk is too small for this test");
        test.n_sectors = (uint32_t)((uint64_t)size / SECTOR);
        test.answered = calloc(test.n_sectors, sizeof(uint64_t));
        test.pending = calloc(test.n_sectors, sizeof(uint64_t));
        test.busy = calloc(test.n_sectors, sizeof(bool));
        if (!test.answered || !test.pending || !test.busy)
                die("memory", strerror(ENOMEM));
}

static bool one_round(bool last)
{
        struct connection connections[N_CONNECTIONS];
        bool learn = test.round == 0;
        bool good;
        int status;

        start_server();
        connect_all(connections);
        if (learn)
                set_up(connections[0].nbd);
        good = read_all(connections[0].nbd, learn);
        if (good && !last)
                write_for(connections, (unsigned)random_between(&test.random, 5, 150));
        status = end_server(last || !good ? SIGTERM : SIGKILL);
        take_last_answers(connections);
        close_all(connections);
        if (last && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) {
                fprintf(stderr, "kill9: after SIGTERM the server ends with status %#x\n", status);
                return false;
        }
        return good && test.n_failed == 0;
}

int main(int argc, char **argv)
{
        unsigned n_rounds;

        if (argc < 5)
                return 2;
        test.vhdctl = argv[1];
        test.image = argv[2];
        test.folder = argv[3];
        n_rounds = (unsigned)strtoul(argv[4], NULL, 10);
        test.no_io_uring = argc > 5 && strcmp(argv[5], "--no-io-uring") == 0;
        test.random.state = (uint64_t)time(NULL);
        signal(SIGPIPE, SIG_IGN);
        printf("seed %" PRIu64 "\n", test.random.state);
        fflush(stdout);
        for (test.round = 0; test.round <= n_rounds; test.round++)
                if (!one_round(test.round == n_rounds))
                        return 1;
        printf("summary: %u times killed in the middle of writes%s: %" PRIu64
               " answered writes, all there; %" PRIu64 " sectors were under way\n",
                n_rounds, test.no_io_uring ? ", io_uring forbidden" : "", test.n_answered,
                test.n_pending);
        free(test.answered);
        free(test.pending);
        free(test.busy);
        return 0;
}
