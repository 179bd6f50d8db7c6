/* SPDX-License-Identifier: Apache-2.0 */
/* fake_daemon SOCKET ANSWERS REQUESTS - a control server whose methods answer what a file says.
 *
 * ANSWERS is an object: method -> result, or method -> {"error": ERRNO, "message", "file", "hint"}. It is
 * read anew for each request. REQUESTS gets a line for each: METHOD PARAMS. What the server logs, also
 * that an answer is not what the schema promises, goes to stderr. "shutdown" ends it. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "vhdd/control/server.h"

struct broker {
        const char *answers, *requests;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool ends;
        struct control_server *server;
};

static void note_request(struct broker *broker, const char *method, const json_t *params)
{
        FILE *file = fopen(broker->requests, "a");

        if (!file)
                return;
        fprintf(file, "%s ", method);
        json_dumpf(params, file, JSON_COMPACT | JSON_SORT_KEYS);
        fputc('\n', file);
        fclose(file);
}

static int answer(struct broker *broker, const char *method, const json_t *params, json_t **ret,
        struct error *err)
{
        json_t *answers = json_load_file(broker->answers, 0, NULL);
        json_t *found = json_object_get(answers, method), *code = json_object_get(found, "error");
        const char *file = json_string_value(json_object_get(found, "file"));
        const char *hint = json_string_value(json_object_get(found, "hint"));

        note_request(broker, method, params);
        if (json_is_integer(code)) {
                int r = fail(err, (int)json_integer_value(code), "%s",
                        json_string_value(json_object_get(found, "message")));

                if (file)
                        error_set_file(err, file);
                if (hint)
                        error_set_hint(err, "%s", hint);
                json_decref(answers);
                return r;
        }
        *ret = found ? json_incref(found) : json_object();
        json_decref(answers);
        return 0;
}

/* clang-format off */
#define METHODS(X)                                                                                 \
        X("vm.create", vm_create, true) X("vm.set", vm_set, true) X("vm.list", vm_list, false)     \
        X("vm.show", vm_show, false) X("vm.remove", vm_remove, true)                               \
        X("vm.import", vm_import, true) X("vm.export", vm_export, true)                            \
        X("vm.start", vm_start, true) X("vm.stop", vm_stop, true)                                  \
        X("vm.shutdown", vm_shutdown, true) X("vm.reset", vm_reset, true)                          \
        X("vm.pause", vm_pause, true) X("vm.resume", vm_resume, true) X("vm.save", vm_save, true)  \
        X("vm.console", vm_console, false) X("vm.doctor", vm_doctor, false)                        \
        X("vm.network.attach", vm_network_attach, true)                                            \
        X("vm.network.detach", vm_network_detach, true)                                            \
        X("switch.create", switch_create, true) X("switch.set", switch_set, true)                  \
        X("switch.list", switch_list, false) X("switch.show", switch_show, false)                  \
        X("switch.remove", switch_remove, true)                                                    \
        X("disk.attach", disk_attach, true) X("disk.detach", disk_detach, true)                    \
        X("disk.compact", disk_compact, true) X("disk.resize", disk_resize, true)                  \
        X("disk.list", disk_list, false) X("disk.show", disk_show, false)                          \
        X("disk.uri", disk_uri, false) X("snippet", snippet, false)                                \
        X("snapshot.take", snapshot_take, true) X("snapshot.memory", snapshot_memory, true)         \
        X("snapshot.list", snapshot_list, false)           \
        X("snapshot.tree", snapshot_tree, false) X("snapshot.show", snapshot_show, false)          \
        X("snapshot.rename", snapshot_rename, true) X("snapshot.apply", snapshot_apply, true)      \
        X("snapshot.revert", snapshot_revert, true) X("snapshot.undo", snapshot_undo, true)        \
        X("snapshot.delete", snapshot_delete, true) X("snapshot.prune", snapshot_prune, true)      \
        X("snapshot.diff", snapshot_diff, false) X("job.list", job_list, false)                    \
        X("job.show", job_show, false) X("memory.show", memory_show, false)                        \
        X("metrics", metrics, false) X("doctor", doctor, true) X("status", status, false)
/* clang-format on */

#define DEFINE(name, function, changes)                                                            \
        static int function(struct broker *broker, const struct caller *caller,                    \
                const json_t *params, json_t **ret, struct error *err)                             \
        {                                                                                          \
                return answer(broker, name, params, ret, err);                                     \
        }
METHODS(DEFINE)

static int run_shutdown(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        note_request(broker, "shutdown", params);
        if (json_is_true(json_object_get(params, "dry-run")))
                return 0;
        pthread_mutex_lock(&broker->lock);
        broker->ends = true;
        pthread_cond_signal(&broker->changed);
        pthread_mutex_unlock(&broker->lock);
        return 0;
}

/* An event each time that anybody asks to restart it: something to wait for. */
static int run_restart(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        control_server_publish(broker->server,
                json_pack("{s:s, s:s, s:s, s:i}", "type", "snapshot", "vm", "web", "name",
                        "before\x1b[31m", "size", 7));
        control_server_publish(broker->server, json_pack("{s:s}", "type", "job"));
        return 0;
}

#define ROW(name, function, changes) {name, function, changes},
static const struct method methods[] = {METHODS(ROW){"shutdown", run_shutdown, true},
        {"restart", run_restart, true}, {NULL, NULL, false}};

static void print_log(void *opaque, const char *sentence)
{
        (void)opaque;
        fprintf(stderr, "%s\n", sentence);
}

int main(int argc, char **argv)
{
        static const struct method *const tables[] = {methods, NULL};
        struct broker broker = {
                .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
        struct control_options options = {
                .listen_fd = -1, .broker = &broker, .tables = tables, .log = print_log};
        struct error err = ERROR_INIT;

        if (argc != 4) {
                fprintf(stderr, "usage: fake_daemon SOCKET ANSWERS REQUESTS\n");
                return 2;
        }
        options.path = argv[1];
        broker.answers = argv[2];
        broker.requests = argv[3];
        if (control_server_new(&options, &broker.server, &err) < 0) {
                fprintf(stderr, "fake_daemon: %s\n", err.message);
                return 3;
        }
        pthread_mutex_lock(&broker.lock);
        while (!broker.ends)
                pthread_cond_wait(&broker.changed, &broker.lock);
        pthread_mutex_unlock(&broker.lock);
        control_server_stop(broker.server, 1000);
        control_server_free(broker.server);
        return 0;
}
