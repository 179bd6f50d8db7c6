/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/metrics.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/vmm.h"
#include "vhdd/daemon/worker_link.h"

#define ASK_MS     2000
#define REQUEST_MS 2000
#define VMM_ASK_S  2

/* ---- the text ---- */

enum type { COUNTER, GAUGE };

/* One metric of every disk: what it is called, and where the worker says it. */
struct family {
        const char *name, *unit, *help;
        enum type type;
        const char *key;
};

static const struct family families[] = {
        {"vhdd_disk_chain_depth", NULL, "Layers of the disk's chain.", GAUGE, "depth"},
        {"vhdd_disk_size_bytes", "bytes", "Size that the guest sees.", GAUGE, "size"},
        {"vhdd_disk_allocated_bytes", "bytes", "Space that the chain's images take.", GAUGE,
                "allocated"},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

/* What one vm has to say. */
struct facts {
        struct vm_row row;
        struct disk_row *disks;
        size_t n_disks;
        json_t *answer; /* the worker's, or NULL */
        size_t n_clients;
        bool on, up, has_stall;
        uint64_t stall_us;
};

static void facts_done(struct facts *facts)
{
        vm_row_done(&facts->row);
        disk_rows_free(facts->disks, facts->n_disks);
        json_decref(facts->answer);
}

/* A label's value: backslash, quote and newline escaped (a name has no newline). */
static void put_label(FILE *out, const char *text)
{
        for (; *text; text++) {
                if (*text == '\\' || *text == '"')
                        fputc('\\', out);
                fputc(*text, out);
        }
}

static const json_t *chain_of(const struct facts *facts, const char *disk)
{
        json_t *chain;
        size_t i;

        json_array_foreach(json_object_get(facts->answer, "chains"), i, chain)
        {
                const char *name = param_text(chain, "chain");

                if (name && strcmp(name, disk) == 0)
                        return chain;
        }
        return NULL;
}

static void put_head(
        FILE *out, const char *name, const char *unit, const char *help, enum type type)
{
        fprintf(out, "# TYPE %s %s\n", name, type == COUNTER ? "counter" : "gauge");
        if (unit)
                fprintf(out, "# UNIT %s %s\n", name, unit);
        fprintf(out, "# HELP %s %s\n", name, help);
}

static void put_sample(FILE *out, const struct family *family, const struct facts *facts,
        const struct disk_row *disk, const json_t *chain)
{
        fprintf(out, "%s%s{vm=\"", family->name, family->type == COUNTER ? "_total" : "");
        put_label(out, facts->row.name);
        fputs("\",disk=\"", out);
        put_label(out, disk->name);
        fprintf(out, "\"} %lld\n", (long long)param_int(chain, family->key, 0));
}

static void put_family(FILE *out, const struct family *family, const struct facts *all, size_t n)
{
        put_head(out, family->name, family->unit, family->help, family->type);
        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < all[i].n_disks; k++) {
                        const json_t *chain = chain_of(&all[i], all[i].disks[k].id);

                        if (chain)
                                put_sample(out, family, &all[i], &all[i].disks[k], chain);
                }
}

/* ---- what clients saw ---- */

/* The worker's buckets are powers of two of a microsecond; every second one is shown, from 16 us to
 * 16 s. */
#define FIRST_BUCKET 4u
#define LAST_BUCKET  24u

static void put_disk(FILE *out, const char *name, const char *suffix, const struct facts *facts,
        const struct disk_row *disk, const char *op)
{
        fprintf(out, "%s%s{vm=\"", name, suffix);
        put_label(out, facts->row.name);
        fputs("\",disk=\"", out);
        put_label(out, disk->name);
        fprintf(out, "\",op=\"%s\"", op);
}

/* How many took less than 2^@bucket microseconds. */
static long long below(const json_t *kind, unsigned bucket)
{
        const json_t *latency = json_object_get(kind, "latency");
        long long n = 0;

        for (unsigned i = 0; i <= bucket; i++)
                n += json_integer_value(json_array_get(latency, i));
        return n;
}

static void put_histogram(FILE *out, const char *name, const struct facts *facts,
        const struct disk_row *disk, const char *op, const json_t *kind)
{
        long long n = (long long)param_int(kind, "requests", 0);

        for (unsigned i = FIRST_BUCKET; i <= LAST_BUCKET; i += 2) {
                put_disk(out, name, "_bucket", facts, disk, op);
                fprintf(out, ",le=\"%.6f\"} %lld\n", (double)(1u << i) / 1e6, below(kind, i));
        }
        put_disk(out, name, "_bucket", facts, disk, op);
        fprintf(out, ",le=\"+Inf\"} %lld\n", n);
        put_disk(out, name, "_sum", facts, disk, op);
        fprintf(out, "} %.6f\n", (double)param_int(kind, "latency-us", 0) / 1e6);
        put_disk(out, name, "_count", facts, disk, op);
        fprintf(out, "} %lld\n", n);
}

static void put_errors(FILE *out, const char *name, const struct facts *facts,
        const struct disk_row *disk, const char *op, const json_t *kind)
{
        put_disk(out, name, "_total", facts, disk, op);
        fprintf(out, "} %lld\n", (long long)param_int(kind, "errors", 0));
}

static void put_count(FILE *out, const char *name, const struct facts *facts,
        const struct disk_row *disk, const char *op, const json_t *kind)
{
        put_disk(out, name, "_total", facts, disk, op);
        fprintf(out, "} %lld\n", (long long)param_int(kind, "requests", 0));
}

static void put_bytes(FILE *out, const char *name, const struct facts *facts,
        const struct disk_row *disk, const char *op, const json_t *kind)
{
        put_disk(out, name, "_total", facts, disk, op);
        fprintf(out, "} %lld\n", (long long)param_int(kind, "bytes", 0));
}

/* The live export's: those of VM/DISK@now are other readers'. */
static const json_t *kinds_of(const struct facts *facts, const struct disk_row *disk)
{
        json_t *export;
        size_t i;

        json_array_foreach(json_object_get(facts->answer, "exports"), i, export)
        {
                const char *chain = param_text(export, "chain"), *name = param_text(export, "name");

                if (chain && name && strcmp(chain, disk->id) == 0 && !strchr(name, '@'))
                        return json_object_get(export, "kinds");
        }
        return NULL;
}

/* The kinds that came, or @always those of a list, also while none has come. */
static void put_kinds(FILE *out, const char *name, const struct facts *all, size_t n,
        const char *const *always,
        void (*put)(FILE *out, const char *name, const struct facts *facts,
                const struct disk_row *disk, const char *op, const json_t *kind))
{
        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < all[i].n_disks; k++) {
                        const struct disk_row *disk = &all[i].disks[k];
                        json_t *kinds = (json_t *)kinds_of(&all[i], disk), *kind;
                        const char *op;

                        for (size_t o = 0; kinds && always && always[o]; o++)
                                put(out, name, &all[i], disk, always[o],
                                        json_object_get(kinds, always[o]));
                        if (!always)
                                json_object_foreach(kinds, op, kind)
                                {
                                        put(out, name, &all[i], disk, op, kind);
                                }
                }
}

static void put_requests(FILE *out, const struct facts *all, size_t n)
{
        static const char *const every[] = {
                "read", "write", "flush", "trim", "write-zeroes", "cache", "block-status", NULL};
        static const char latency[] = "vhdd_disk_request_seconds";

        put_head(out, "vhdd_disk_requests", NULL, "Requests of the disk's clients.", COUNTER);
        put_kinds(out, "vhdd_disk_requests", all, n, every, put_count);
        put_head(out, "vhdd_disk_errors", NULL, "Those that were answered with an error.", COUNTER);
        put_kinds(out, "vhdd_disk_errors", all, n, every, put_errors);
        put_head(out, "vhdd_disk_bytes", "bytes", "Bytes that requests were about.", COUNTER);
        put_kinds(out, "vhdd_disk_bytes", all, n, every, put_bytes);
        fprintf(out,
                "# TYPE %s histogram\n# UNIT %s seconds\n"
                "# HELP %s From the receipt of a request to the sending of its reply.\n",
                latency, latency, latency);
        put_kinds(out, latency, all, n, NULL, put_histogram);
}

static void put_vm_value(FILE *out, const char *name, const struct facts *facts, double value)
{
        fprintf(out, "%s{vm=\"", name);
        put_label(out, facts->row.name);
        fprintf(out, "\"} %.9g\n", value);
}

static void put_vms(FILE *out, const struct facts *all, size_t n)
{
        put_head(out, "vhdd_vm_on", NULL, "1 while the vm is on.", GAUGE);
        for (size_t i = 0; i < n; i++)
                put_vm_value(out, "vhdd_vm_on", &all[i], all[i].on);
        put_head(out, "vhdd_vm_up", NULL, "1 while the vm's worker serves its disks.", GAUGE);
        for (size_t i = 0; i < n; i++)
                put_vm_value(out, "vhdd_vm_up", &all[i], all[i].up);
        put_head(out, "vhdd_vm_clients", NULL, "NBD clients of the vm's exports.", GAUGE);
        for (size_t i = 0; i < n; i++)
                put_vm_value(out, "vhdd_vm_clients", &all[i], (double)all[i].n_clients);
        put_head(out, "vhdd_vm_snapshot_stall_seconds", "seconds",
                "For how long the last snapshot held writes.", GAUGE);
        for (size_t i = 0; i < n; i++)
                if (all[i].has_stall)
                        put_vm_value(out, "vhdd_vm_snapshot_stall_seconds", &all[i],
                                (double)all[i].stall_us / 1e6);
}

static void put_jobs(FILE *out, struct broker *broker)
{
        static const char *const states[] = {
                "waiting", "running", "paused", "failed", "cancelled", "done"};
        enum { N_STATES = sizeof(states) / sizeof(states[0]) };
        struct job_row *rows = NULL;
        size_t n = 0, counts[N_STATES] = {0};
        json_int_t backlog = 0;

        if (catalog_job_list(broker->catalog, NULL, &rows, &n, NULL) < 0)
                return;
        for (size_t i = 0; i < n; i++) {
                json_auto_t *job =
                        job_is_quiet(&rows[i]) ? NULL : merge_job_to_json(broker, &rows[i]);
                const char *state = param_text(job, "state");
                json_int_t left = param_int(job, "total", 0) - param_int(job, "done", 0);

                for (size_t k = 0; state && k < N_STATES; k++)
                        counts[k] += strcmp(states[k], state) == 0;
                if (strcmp(rows[i].kind, JOB_MERGE) == 0)
                        backlog += left > 0 ? left : 0;
        }
        job_rows_free(rows, n);
        put_head(out, "vhdd_jobs", NULL, "Long work, by its state.", GAUGE);
        for (size_t k = 0; k < N_STATES; k++)
                fprintf(out, "vhdd_jobs{state=\"%s\"} %zu\n", states[k], counts[k]);
        put_head(out, "vhdd_merge_backlog_bytes", "bytes",
                "At most so much is left to move for merges that were planned.", GAUGE);
        fprintf(out, "vhdd_merge_backlog_bytes %lld\n", (long long)backlog);
}

/* ---- what the vmm-host's balancer says ---- */

static const struct family memory_families[] = {
        {"vhdd_memory_budget_bytes", "bytes", "Memory that all guests together may have.", GAUGE,
                "budget"},
        {"vhdd_memory_available_bytes", "bytes", "Of it: what no guest has or was promised.", GAUGE,
                "available"},
        {"vhdd_memory_physical_bytes", "bytes", "Memory that guests have.", GAUGE, "physical"},
        {"vhdd_memory_wanted_bytes", "bytes", "Their demand and buffers.", GAUGE, "wanted"},
        {"vhdd_memory_added_bytes", "bytes", "Memory that was added to guests.", COUNTER, "added"},
        {"vhdd_memory_removed_bytes", "bytes", "Memory that was removed from guests.", COUNTER,
                "removed"},
        {"vhdd_memory_operations", NULL, "How often a guest was asked to change its memory.",
                COUNTER, "operations"},
};

static const struct family vm_memory_families[] = {
        {"vhdd_vm_memory_physical_bytes", "bytes", "Memory that the guest has.", GAUGE, "physical"},
        {"vhdd_vm_memory_demand_bytes", "bytes", "Memory that it needs, without the buffer.", GAUGE,
                "demand"},
        {"vhdd_vm_memory_target_bytes", "bytes", "Memory that it is to have.", GAUGE, "target"},
        {"vhdd_vm_memory_pressure_percent", "percent", "100 times demand by physical.", GAUGE,
                "pressure"},
        {"vhdd_vm_memory_added_bytes", "bytes", "Memory that was added to it since its start.",
                COUNTER, "added"},
        {"vhdd_vm_memory_removed_bytes", "bytes", "Memory that was removed from it.", COUNTER,
                "removed"},
};

static void put_host_memory(FILE *out, const struct family *family, const json_t *host)
{
        put_head(out, family->name, family->unit, family->help, family->type);
        fprintf(out, "%s%s %lld\n", family->name, family->type == COUNTER ? "_total" : "",
                (long long)param_int(host, family->key, 0));
}

/* Of guests that are on; what is not known (null) is left out. */
static void put_vm_memory(FILE *out, const struct family *family, const json_t *vms)
{
        json_t *vm;
        size_t i;

        put_head(out, family->name, family->unit, family->help, family->type);
        json_array_foreach((json_t *)vms, i, vm)
        {
                const char *name = param_text(vm, "vm");
                const json_t *value = json_object_get(vm, family->key);

                if (!name || !param_bool(vm, "on") || !json_is_integer(value))
                        continue;
                fprintf(out, "%s%s{vm=\"", family->name, family->type == COUNTER ? "_total" : "");
                put_label(out, name);
                fprintf(out, "\"} %lld\n", (long long)json_integer_value(value));
        }
}

/* Without a vmm-host, or with one that does not answer in time, there is nothing to say. */
static void put_memory(FILE *out, struct broker *broker)
{
        json_auto_t *answer = NULL;

        if (vmm_ask(broker, "memory.show", NULL, VMM_ASK_S, &answer, NULL) < 0)
                return;
        for (size_t i = 0; i < sizeof(memory_families) / sizeof(memory_families[0]); i++)
                put_host_memory(out, &memory_families[i], json_object_get(answer, "host"));
        for (size_t i = 0; i < sizeof(vm_memory_families) / sizeof(vm_memory_families[0]); i++)
                put_vm_memory(out, &vm_memory_families[i], json_object_get(answer, "vms"));
}

static int gather(struct broker *broker, struct facts *facts, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        json_auto_t *clients = NULL;
        int r = vm_add(broker, facts->row.id, &vm, err);

        if (r == 0)
                r = catalog_disk_list(
                        broker->catalog, facts->row.id, &facts->disks, &facts->n_disks, err);
        if (r < 0)
                return r;
        pthread_rwlock_rdlock(&vm->link_lock);
        facts->up = vm->up;
        facts->has_stall = vm->has_stall;
        facts->stall_us = vm->stall_us;
        pthread_rwlock_unlock(&vm->link_lock);
        if (facts->n_disks > 0) {
                (void)worker_ask(vm, "metrics", json_object(), ASK_MS, &facts->answer, NULL);
                (void)worker_clients(vm, ASK_MS, &clients, NULL);
        }
        facts->n_clients = json_array_size(clients);
        facts->on = vm_looks_on(vm, &facts->row, clients);
        return 0;
}

static void put_all(FILE *out, struct broker *broker, const struct facts *all, size_t n)
{
        size_t n_disks = 0;

        for (size_t i = 0; i < n; i++)
                n_disks += all[i].n_disks;
        put_head(out, "vhdd_start_time_seconds", "seconds", "When the daemon started.", GAUGE);
        fprintf(out, "vhdd_start_time_seconds %.6f\n", (double)broker->started_us / 1e6);
        put_head(out, "vhdd_vms", NULL, "Vms in the catalog.", GAUGE);
        fprintf(out, "vhdd_vms %zu\n", n);
        put_head(out, "vhdd_disks", NULL, "Disks in the catalog.", GAUGE);
        fprintf(out, "vhdd_disks %zu\n", n_disks);
        put_jobs(out, broker);
        put_vms(out, all, n);
        for (size_t i = 0; i < N_FAMILIES; i++)
                put_family(out, &families[i], all, n);
        put_requests(out, all, n);
        put_memory(out, broker);
        fputs("# EOF\n", out);
}

int metrics_text(struct broker *broker, char **ret, struct error *err)
{
        struct vm_row *rows = NULL;
        struct facts *all = NULL;
        size_t n = 0, size = 0;
        FILE *out = NULL;
        int r = catalog_vm_list(broker->catalog, &rows, &n, err);

        if (r < 0)
                return r;
        all = calloc(n + 1, sizeof(*all));
        out = open_memstream(ret, &size);
        if (!all || !out)
                r = fail(err, ENOMEM, "no memory for metrics");
        for (size_t i = 0; r == 0 && i < n; i++) {
                all[i].row = rows[i];
                rows[i] = (struct vm_row){0};
                r = gather(broker, &all[i], err);
        }
        if (r == 0)
                put_all(out, broker, all, n);
        if (out && fclose(out) != 0 && r == 0)
                r = fail(err, ENOMEM, "no memory for metrics");
        if (r < 0 && out) {
                free(*ret);
                *ret = NULL;
        }
        for (size_t i = 0; all && i < n; i++)
                facts_done(&all[i]);
        free(all);
        vm_rows_free(rows, n);
        return r;
}

static int metrics_method(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        int r = metrics_text(broker, &text, err);

        if (r < 0)
                return r;
        *ret = json_pack("{s:s}", "text", text);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

const struct method metrics_methods[] = {
        {"metrics", metrics_method, false},
        {NULL, NULL, false},
};

/* ---- the socket ---- */

struct metrics_server {
        struct broker *broker;
        char *path;
        int fd, stop_fd;
        pthread_t thread;
};

/* Reads up to the empty line that ends a request's head: what was asked does not matter. */
static void read_request(int fd)
{
        struct timeval timeout = {.tv_sec = REQUEST_MS / 1000};
        char last[4] = "", buffer[512];
        size_t total = 0;

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
        while (total < 65536) {
                ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

                if (n <= 0)
                        return;
                total += (size_t)n;
                for (ssize_t i = 0; i < n; i++) {
                        memmove(last, last + 1, 3);
                        last[3] = buffer[i];
                        if (memcmp(last, "\r\n\r\n", 4) == 0 || memcmp(last + 2, "\n\n", 2) == 0)
                                return;
                }
        }
}

static void send_all(int fd, const char *data, size_t length)
{
        while (length > 0) {
                ssize_t n = send(fd, data, length, MSG_NOSIGNAL);

                if (n <= 0)
                        return;
                data += n;
                length -= (size_t)n;
        }
}

static void answer(struct broker *broker, int fd)
{
        _cleanup_free_ char *text = NULL;
        struct error err = ERROR_INIT;
        char head[256];
        bool good;
        int n;

        read_request(fd);
        good = metrics_text(broker, &text, &err) == 0;
        if (!good)
                broker_log_error(broker, "metrics", &err);
        n = snprintf(head, sizeof(head),
                "HTTP/1.1 %s\r\n"
                "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
                "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                good ? "200 OK" : "503 Service Unavailable", good ? strlen(text) : 0);
        send_all(fd, head, (size_t)n);
        if (good)
                send_all(fd, text, strlen(text));
}

static void *server_main(void *opaque)
{
        struct metrics_server *server = opaque;

        for (;;) {
                struct pollfd fds[] = {
                        {.fd = server->stop_fd, .events = POLLIN},
                        {.fd = server->fd, .events = POLLIN},
                };
                _cleanup_fd_ int fd = -1;

                if (poll(fds, 2, -1) < 0 && errno != EINTR)
                        return NULL;
                if (fds[0].revents)
                        return NULL;
                if (!(fds[1].revents & POLLIN))
                        continue;
                fd = accept4(server->fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0)
                        answer(server->broker, fd);
        }
}

/* A socket that nobody listens on any more is replaced; anything else stays. */
static int listen_on(const char *path, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct stat st;

        if (strlen(path) >= sizeof(address.sun_path))
                return fail(err, EINVAL, "'%s' is too long for a socket's path", path);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket for metrics");
        strcpy(address.sun_path, path);
        if (lstat(path, &st) == 0) {
                if (!S_ISSOCK(st.st_mode))
                        return fail(err, EEXIST, "'%s' is there, and no socket", path);
                if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
                        return fail(err, EADDRINUSE, "somebody listens on '%s' already", path);
                unlink(path);
        }
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0 ||
                chmod(path, 0660) < 0)
                return fail_os(err, errno, "cannot listen on '%s'", path);
        *ret = TAKE_FD(fd);
        return 0;
}

int metrics_start(struct broker *broker, struct metrics_server **ret, struct error *err)
{
        struct metrics_server *server;
        int r;

        *ret = NULL;
        if (!broker->options.metrics_path)
                return 0;
        server = calloc(1, sizeof(*server));
        if (!server)
                return fail(err, ENOMEM, "no memory for the metrics");
        server->broker = broker;
        server->fd = -1;
        server->path = strdup(broker->options.metrics_path);
        server->stop_fd = eventfd(0, EFD_CLOEXEC);
        r = server->path && server->stop_fd >= 0 ? listen_on(server->path, &server->fd, err)
                                                 : fail(err, ENOMEM, "no memory for the metrics");
        if (r == 0) {
                r = pthread_create(&server->thread, NULL, server_main, server);
                if (r > 0)
                        r = fail_os(err, r, "cannot start a thread for the metrics");
        }
        if (r < 0) {
                if (server->fd >= 0)
                        close(server->fd);
                if (server->stop_fd >= 0)
                        close(server->stop_fd);
                free(server->path);
                free(server);
                return r;
        }
        *ret = server;
        return 0;
}

struct metrics_server *metrics_stop(struct metrics_server *server)
{
        if (!server)
                return NULL;
        eventfd_write(server->stop_fd, 1);
        pthread_join(server->thread, NULL);
        unlink(server->path);
        close(server->fd);
        close(server->stop_fd);
        free(server->path);
        free(server);
        return NULL;
}
