/* SPDX-License-Identifier: Apache-2.0 */
/* An NBD server without exports: its directory is the broker, asked over the channel. */
#include "vhdd/greeter/greeter.h"

#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbd/server/server.h"
#include "vhdd/greeter/sandbox.h"
#include "vhdd/ipc/rpc.h"

/* Clients that negotiate at a time. Those that wait for a worker count, and a host's machines may all
 * come back at once. */
#define MAX_GREETING 256

struct greeter {
        /* immutable once the channel runs */
        struct rpc *rpc;
        unsigned landlock;

        /* owner: the thread that runs the channel */
        struct nbd_server *server; /* NULL until start */
};

/* ---- what the NBD server asks ---- */

/* One question to the broker. On success *ret is the caller's. */
static int ask(struct greeter *greeter, const char *method, json_t *params, const int *fd,
        struct message *ret, struct error *err)
{
        return rpc_call(greeter->rpc, method, params, fd, fd ? 1 : 0, GREETER_ASK_MS, ret, err);
}

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for what the broker said");
}

static int nonsense(struct error *err, const char *what)
{
        return fail(err, EPROTO, "the broker's answer to '%s' makes no sense", what);
}

/* NULL is no string, and stays NULL. */
static bool copy_text(const json_t *json, char **ret)
{
        *ret = NULL;
        if (!json_is_string(json))
                return true;
        *ret = strdup(json_string_value(json));
        return *ret != NULL;
}

static int read_changed(const json_t *json, struct nbd_export_facts *ret, struct error *err)
{
        size_t n = json_array_size(json);

        if (n == 0)
                return 0;
        if (n > NBD_EXPORT_MAX_CHANGED)
                return nonsense(err, "lookup");
        ret->changed = calloc(n, sizeof(*ret->changed));
        if (!ret->changed)
                return no_memory(err);
        for (size_t i = 0; i < n; i++) {
                if (!json_is_string(json_array_get(json, i)))
                        return nonsense(err, "lookup");
                if (!copy_text(json_array_get(json, i), &ret->changed[i]))
                        return no_memory(err);
                ret->n_changed++;
        }
        return 0;
}

static int read_facts(const json_t *json, struct nbd_export_facts *ret, struct error *err)
{
        const json_t *size = json_object_get(json, "size");
        json_int_t preferred = json_integer_value(json_object_get(json, "preferred-size"));

        if (!json_is_string(json_object_get(json, "name")) || !json_is_integer(size) ||
                json_integer_value(size) < 0 || preferred < 0 || preferred > UINT32_MAX)
                return nonsense(err, "lookup");
        ret->size = (uint64_t)json_integer_value(size);
        ret->preferred_size = preferred ? (uint32_t)preferred : 4096;
        ret->read_only = json_is_true(json_object_get(json, "read-only"));
        if (!copy_text(json_object_get(json, "name"), &ret->name) ||
                !copy_text(json_object_get(json, "description"), &ret->description))
                return no_memory(err);
        return read_changed(json_object_get(json, "changed"), ret, err);
}

static int lookup(void *opaque, const char *name, struct nbd_export_facts *ret, struct error *err)
{
        struct nbd_export_facts facts = {0};
        struct message answer = MESSAGE_INIT;
        int r = ask(opaque, "lookup", json_pack("{s:s}", "name", name), NULL, &answer, err);

        if (r < 0)
                return r;
        r = read_facts(answer.json, &facts, err);
        message_done(&answer);
        if (r < 0)
                nbd_export_facts_done(&facts);
        else
                *ret = facts;
        return r;
}

static int read_list(const json_t *json, struct nbd_export_list *ret, struct error *err)
{
        const json_t *exports = json_object_get(json, "exports");
        size_t n = json_array_size(exports);

        if (!json_is_array(exports) || n > NBD_SERVER_MAX_EXPORTS)
                return nonsense(err, "list");
        ret->entries = calloc(n + 1, sizeof(*ret->entries));
        if (!ret->entries)
                return no_memory(err);
        for (size_t i = 0; i < n; i++) {
                const json_t *entry = json_array_get(exports, i);
                struct nbd_listed *listed = &ret->entries[i];

                if (!json_is_string(json_object_get(entry, "name")))
                        return nonsense(err, "list");
                ret->n_entries++;
                if (!copy_text(json_object_get(entry, "name"), &listed->name) ||
                        !copy_text(json_object_get(entry, "description"), &listed->description))
                        return no_memory(err);
        }
        return 0;
}

static int list(void *opaque, struct nbd_export_list *ret, struct error *err)
{
        struct nbd_export_list entries = {0};
        struct message answer = MESSAGE_INIT;
        int r = ask(opaque, "list", NULL, NULL, &answer, err);

        if (r < 0)
                return r;
        r = read_list(answer.json, &entries, err);
        message_done(&answer);
        if (r < 0)
                nbd_export_list_done(&entries);
        else
                *ret = entries;
        return r;
}

static int hand_over(void *opaque, int fd, const struct nbd_handoff *handoff, struct error *err)
{
        char text[NBD_HANDOFF_TEXT_SIZE];

        nbd_handoff_to_text(handoff, text);
        return ask(opaque, "client", json_pack("{s:s}", "handoff", text), &fd, NULL, err);
}

static void log_sentence(void *opaque, enum nbd_log_level level, const char *sentence)
{
        struct greeter *greeter = opaque;
        const char *name = level == NBD_LOG_ERROR ? "error"
                : level == NBD_LOG_INFO           ? "info"
                                                  : "debug";

        /* Debug lines are many, and for whoever runs the server under a debugger. A sentence that was
         * cut in the middle of a letter is no JSON, and lost. */
        if (level != NBD_LOG_DEBUG)
                rpc_send_event(greeter->rpc, "log",
                        json_pack("{s:s, s:s}", "level", name, "message", sentence));
}

/* ---- what the broker asks ---- */

static int listen_on(struct nbd_server *server, struct message *message, struct error *err)
{
        for (unsigned i = 0; i < message->n_fds; i++) {
                _cleanup_fd_ int fd = message_take_fd(message, i);
                int r = nbd_server_listen_fd(server, fd, err);

                if (r < 0)
                        return r;
                TAKE_FD(fd);
        }
        return 0;
}

static int start(struct greeter *greeter, struct message *message, struct error *err)
{
        const struct nbd_directory directory = {
                .lookup = lookup,
                .list = list,
                .hand_over = hand_over,
                .opaque = greeter,
        };
        const struct nbd_server_options options = {
                .max_greeting = MAX_GREETING,
                .no_io_uring = true,
                .directory = &directory,
                .log = log_sentence,
                .opaque = greeter,
        };
        _cleanup_(nbd_server_freep) struct nbd_server *server = NULL;
        int r;

        if (greeter->server)
                return fail(err, EALREADY, "the greeter listens already");
        if (message->n_fds == 0)
                return fail(err, EINVAL, "there is no socket to listen on");
        r = nbd_server_new(&options, &server, err);
        if (r == 0)
                r = listen_on(server, message, err);
        if (r == 0)
                r = nbd_server_start(server, err);
        if (r == 0)
                greeter->server = TAKE_PTR(server);
        return r;
}

static json_t *counters_json(struct greeter *greeter)
{
        struct nbd_server_counters c = {0};

        if (greeter->server)
                nbd_server_counters_get(greeter->server, &c);
        return json_pack("{s:I, s:I, s:I, s:I, s:I}", "accepted", (json_int_t)c.accepted, "refused",
                (json_int_t)c.refused, "failed", (json_int_t)c.failed_greetings, "handed-over",
                (json_int_t)c.handed_over, "greeting", (json_int_t)c.greeting);
}

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct greeter *greeter = opaque;
        struct error err = ERROR_INIT;

        if (strcmp(method, "start") == 0) {
                if (start(greeter, message, &err) < 0)
                        rpc_reply_error(rpc, id, &err);
                else
                        rpc_reply(rpc, id,
                                json_pack("{s:i, s:b}", "landlock", (int)greeter->landlock,
                                        "seccomp", 1),
                                NULL, 0);
        } else if (strcmp(method, "counters") == 0) {
                rpc_reply(rpc, id, counters_json(greeter), NULL, 0);
        } else {
                fail(&err, ENOSYS, "the greeter knows no '%s'", method);
                rpc_reply_error(rpc, id, &err);
        }
}

/* ---- the process ---- */

struct arguments {
        uid_t uid;
        gid_t gid;
};

static bool read_id(const char *text, unsigned *ret)
{
        char *end;
        unsigned long value;

        errno = 0;
        value = strtoul(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno || value >= UINT32_MAX)
                return false;
        *ret = (unsigned)value;
        return true;
}

/* "--greeter" itself is argv[1] or has been taken out. */
static int read_arguments(int argc, char **argv, struct arguments *ret, struct error *err)
{
        static const struct option options[] = {
                {"greeter", no_argument, NULL, 'G'},
                {"uid", required_argument, NULL, 'u'},
                {"gid", required_argument, NULL, 'g'},
                {0},
        };
        int c;

        *ret = (struct arguments){.uid = getuid(), .gid = getgid()};
        optind = 1;
        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                bool fine = c == 'G' || (c == 'u' && read_id(optarg, &ret->uid)) ||
                        (c == 'g' && read_id(optarg, &ret->gid));

                if (!fine)
                        return fail(err, EINVAL,
                                "vhdd --greeter --uid UID --gid GID is started by the daemon");
        }
        return 0;
}

/* The broker ends it by closing the channel; what a terminal says is the broker's to decide. */
static void leave_signals(void)
{
        signal(SIGPIPE, SIG_IGN);
        signal(SIGINT, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
}

static int run(int argc, char **argv, struct error *err)
{
        struct greeter greeter = {0};
        const struct rpc_handlers handlers = {.request = on_request, .opaque = &greeter};
        struct arguments arguments;
        int r = read_arguments(argc, argv, &arguments, err);

        if (r < 0)
                return r;
        leave_signals();
        if (fcntl(GREETER_CHANNEL_FD, F_SETFD, FD_CLOEXEC) < 0)
                return fail_os(err, errno, "the greeter has no channel to the broker");
        r = greeter_sandbox(arguments.uid, arguments.gid, &greeter.landlock, err);
        if (r == 0)
                r = rpc_new(GREETER_CHANNEL_FD, &handlers, &greeter.rpc, err);
        if (r < 0)
                return r;
        r = rpc_run(greeter.rpc, err);
        /* Whoever waits for an answer has been told that there will be none. */
        nbd_server_free(greeter.server);
        rpc_unref(greeter.rpc);
        return r;
}

int greeter_main(int argc, char **argv)
{
        struct error err = ERROR_INIT;
        int r = run(argc, argv, &err);

        if (r < 0)
                fprintf(stderr, "vhdd: greeter: %s\n", err.message);
        fflush(NULL);
        /* At once: what a sanitizer does at the end of a process the sandbox takes for an attack. */
        _exit(r < 0 ? 3 : 0);
}
