/* SPDX-License-Identifier: Apache-2.0 */
/* Many clients on one NBD server at once, for the thread sanitizer and for what it cannot see: replies
 * that get mixed up, clients that take none, come and go, and an end in the middle of it all.
 *
 * Each client owns a part of the disk, writes a pattern there and reads it back; so every byte that
 * comes is known. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define N_CLIENTS 6
#define PART      (1u << 20)
#define ROUNDS    60

#define REQUIRE(condition)                                                                         \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

static struct nbd_server *server;
static struct chain *chain;
static atomic_bool over;
static atomic_uint guests_served;

static uint32_t next_random(uint32_t *seed)
{
        *seed = *seed * 1664525 + 1013904223;
        return *seed >> 10;
}

static void one_round(int fd, unsigned number, uint32_t *seed, uint8_t *mine, uint8_t *data)
{
        uint32_t length = 1 + next_random(seed) % (next_random(seed) % 4 ? 8192 : 300000);
        uint64_t offset = next_random(seed) % (PART - length);
        uint64_t base = (uint64_t)number * PART;

        memset(mine + offset, (int)next_random(seed), length);
        REQUIRE(client_write(fd, mine + offset, length, base + offset,
                        next_random(seed) % 4 ? 0 : NBD_CMD_FLAG_FUA) == 0);
        if (next_random(seed) % 4 == 0)
                REQUIRE(client_do(fd, NBD_CMD_FLUSH, 0, 0, 0) == 0);
        if (next_random(seed) % 8 == 0)
                REQUIRE(client_do(fd, NBD_CMD_CACHE, 0, base, PART) == 0);
        length = 1 + next_random(seed) % 200000;
        offset = next_random(seed) % (PART - length);
        memset(data, 0x11, length);
        REQUIRE(client_read(fd, data, length, base + offset) == 0);
        REQUIRE(memcmp(data, mine + offset, length) == 0);
}

static void *client_main(void *arg)
{
        unsigned number = (unsigned)(uintptr_t)arg;
        uint8_t *mine = calloc(1, PART), *data = malloc(PART);
        uint32_t seed = number * 77 + 1;
        int fd = client_connect(server);

        client_go(fd, "disk", number % 2, NULL, NULL);
        for (int i = 0; i < ROUNDS; i++) {
                one_round(fd, number, &seed, mine, data);
                if (i == ROUNDS / 2) {
                        client_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
                        REQUIRE(client_sees_end(fd));
                        close(fd);
                        fd = client_connect(server);
                        client_go(fd, "disk", number % 2, NULL, NULL);
                }
        }
        close(fd);
        free(mine);
        free(data);
        return NULL;
}

/* Asks for much, takes nothing or little, goes. */
static void *rude_main(void *arg)
{
        while (!atomic_load(&over)) {
                int fd = client_connect(server);
                struct nbd_wire_request wire = {
                        .magic = be32_make(NBD_REQUEST_MAGIC),
                        .length = be32_make(100000),
                };

                client_go(fd, "disk", true, NULL, NULL);
                for (int i = 0; i < 100; i++)
                        if (send(fd, &wire, sizeof(wire), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                                break;
                usleep(3000);
                close(fd);
        }
        return NULL;
}

/* Takes an export that comes and goes, and asks until it is cut off; what was answered is whole. */
static void *guest_main(void *arg)
{
        unsigned kind = (unsigned)(uintptr_t)arg;

        while (!atomic_load(&over)) {
                int fd = client_connect(server);
                uint8_t data[64];

                client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
                if (client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "guest")) ==
                        NBD_REP_ACK) {
                        for (uint64_t n = 0; n < 30; n++)
                                client_request(fd, n % 3 == kind ? NBD_CMD_FLUSH : NBD_CMD_READ, 0,
                                        n, 0, n % 3 == kind ? 0 : 70000);
                        REQUIRE(client_sees_end(fd));
                        atomic_fetch_add(&guests_served, 1);
                } else {
                        usleep(500);
                }
                close(fd);
        }
        return NULL;
}

/* An export whose chain is there only as long as it is. */
static void *owner_main(void *arg)
{
        static const struct nbd_changed changed = {"before", "layer 0"};
        struct error err = ERROR_INIT;

        for (unsigned i = 0; !atomic_load(&over); i++) {
                struct chain *of = fake_chain_new(1u << 20, 2, true);
                struct nbd_export_options export = {.name = "guest", .chain = of};
                struct nbd_export_options second = {.name = "guest@now", .chain = of};

                fake_chain_set(of, 0, 1u << 20, EXTENT_DATA, 0);
                atomic_store(&fake_chain_switches(of)->cold_reads, i % 2);
                REQUIRE(nbd_server_add_export(server, &export, &err) == 0);
                if (i % 3 == 0)
                        REQUIRE(nbd_server_add_export(server, &second, &err) == 0);
                usleep(2000);
                REQUIRE(nbd_server_set_changed(server, "guest", &changed, i % 2, &err) == 0);
                REQUIRE(nbd_server_hide_export(server, "guest", i % 4 == 0, &err) == 0);
                REQUIRE(nbd_server_export_clients(server, "guest") >= 0);
                if (i % 3 == 0)
                        REQUIRE(nbd_server_remove_export(server, "guest@now", false, 10, &err) ==
                                0);
                REQUIRE(nbd_server_remove_export(server, "guest", true, 8000, &err) == 0);
                chain_abandon(of);
        }
        return NULL;
}

/* Looks at everything, and turns the weather. */
static void *watch_main(void *arg)
{
        struct fake_switches *switches = fake_chain_switches(chain);
        struct nbd_client_info infos[16];
        struct nbd_server_counters counters;

        for (unsigned i = 0; !atomic_load(&over); i++) {
                atomic_store(&switches->cold_reads, i % 3 == 0);
                atomic_store(&switches->cold_writes, i % 5 == 0);
                nbd_server_clients_get(server, infos, 16);
                nbd_server_counters_get(server, &counters);
                usleep(1000);
        }
        return NULL;
}

static void log_nothing(void *opaque, enum nbd_log_level level, const char *sentence)
{
        REQUIRE(sentence[0] != '\0');
}

static void start(void)
{
        struct nbd_server_options options = {
                .threads = 4,
                .max_bytes_per_client = 1u << 20,
                .max_bytes = 3u << 20,
                .max_unsynced_bytes = 1u << 20,
                .log = log_nothing,
        };
        struct nbd_export_options export = {
                .name = "disk",
                .chain = chain = fake_chain_new((uint64_t)N_CLIENTS * PART, 1, true),
        };
        struct error err = ERROR_INIT;

        REQUIRE(nbd_server_new(&options, &server, &err) == 0);
        REQUIRE(nbd_server_add_export(server, &export, &err) == 0);
        REQUIRE(nbd_server_start(server, &err) == 0);
}

static void finish(unsigned timeout_ms)
{
        struct error err = ERROR_INIT;

        REQUIRE(nbd_server_stop(server, timeout_ms, &err) == 0);
        server = nbd_server_free(server);
        chain = chain_abandon(chain);
}

static void everybody_at_once(void)
{
        pthread_t clients[N_CLIENTS], rude, watch, guests[2], owner;

        start();
        for (uintptr_t i = 0; i < N_CLIENTS; i++)
                REQUIRE(pthread_create(&clients[i], NULL, client_main, (void *)i) == 0);
        REQUIRE(pthread_create(&rude, NULL, rude_main, NULL) == 0);
        REQUIRE(pthread_create(&watch, NULL, watch_main, NULL) == 0);
        for (uintptr_t i = 0; i < 2; i++)
                REQUIRE(pthread_create(&guests[i], NULL, guest_main, (void *)i) == 0);
        REQUIRE(pthread_create(&owner, NULL, owner_main, NULL) == 0);
        for (int i = 0; i < N_CLIENTS; i++)
                pthread_join(clients[i], NULL);
        atomic_store(&over, true);
        for (int i = 0; i < 2; i++)
                pthread_join(guests[i], NULL);
        pthread_join(owner, NULL);
        REQUIRE(guests_served > 0);
        pthread_join(rude, NULL);
        pthread_join(watch, NULL);
        finish(5000);
}

/* The end comes while replies are under way on every path. */
static void end_in_the_middle(void)
{
        for (int i = 0; i < 20; i++) {
                int fds[4];

                start();
                atomic_store(&fake_chain_switches(chain)->cold_reads, i % 2);
                fake_chain_set(chain, 0, N_CLIENTS * PART, EXTENT_DATA, 0);
                for (int k = 0; k < 4; k++) {
                        fds[k] = client_connect(server);
                        client_go(fds[k], "disk", k % 2, NULL, NULL);
                        for (uint64_t n = 0; n < 20; n++)
                                client_request(fds[k], n % 5 ? NBD_CMD_READ : NBD_CMD_FLUSH, 0, n,
                                        0, n % 5 ? 100000 : 0);
                }
                finish(50);
                for (int k = 0; k < 4; k++)
                        close(fds[k]);
        }
}

int main(void)
{
        everybody_at_once();
        end_in_the_middle();
        return 0;
}
