/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl serve - disks over NBD, in the foreground, until a signal says stop. */
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/size.h"
#include "chain/tree.h"
#include "nbd/server/server.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"

/* Exit within 30 s: clients get most of it to take their last replies, the flushes the rest. */
#define DRAIN_MS 15000u

enum {
        KEY_SOCKET = CTL_KEY_FIRST,
        KEY_LISTEN,
        KEY_INSECURE,
        KEY_READ_ONLY,
        KEY_SCRATCH,
        KEY_CACHE,
        KEY_THREADS,
        KEY_NAME,
};

struct serve_options {
        const char *socket, *name;
        char listen_host[256]; /* "": no TCP */
        uint16_t listen_port;
        bool insecure, read_only, scratch, direct;
        unsigned threads;
};

static const struct argp_option options[] = {
        {"socket", KEY_SOCKET, "PATH", 0,
                "Listen on this unix socket (else one in a new private folder, if not --listen)",
                0},
        {"listen", KEY_LISTEN, "HOST:PORT", 0, "Listen on TCP; needs --insecure", 0},
        {"insecure", KEY_INSECURE, NULL, 0,
                "Allow TCP without encryption, on loopback addresses only", 0},
        {"read-only", KEY_READ_ONLY, NULL, 0, "Take no writes", 0},
        {"scratch", KEY_SCRATCH, NULL, 0, "Writes go to a child that is thrown away at the end", 0},
        {"cache", KEY_CACHE, "MODE", 0, "writeback (the default) or direct: past the page cache",
                0},
        {"threads", KEY_THREADS, "N", 0, "At most so many requests wait for the disk at a time", 0},
        {"name", KEY_NAME, "EXPORT", 0, "Name of the export, if there is one image", 0},
        {0},
};

static int take_threads(struct serve_options *serve, const char *arg, struct error *err)
{
        char *end;
        unsigned long n = strtoul(arg, &end, 10);

        if (arg[0] < '0' || arg[0] > '9' || *end || n < 1 || n > 4096)
                return fail(err, EINVAL, "--threads takes a number from 1 to 4096, not '%s'", arg);
        serve->threads = (unsigned)n;
        return 0;
}

/* "127.0.0.1:10809", "localhost:0", "[::1]:10809". */
static int take_listen(struct serve_options *serve, const char *arg, struct error *err)
{
        const char *colon = strrchr(arg, ':'), *host = arg;
        size_t length = colon ? (size_t)(colon - arg) : 0;
        char *end = NULL;
        unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;

        if (!colon || colon[1] < '0' || colon[1] > '9' || *end || port > UINT16_MAX ||
                length == 0 || length >= sizeof(serve->listen_host))
                return fail(err, EINVAL, "--listen takes HOST:PORT, not '%s'", arg);
        if (host[0] == '[' && length > 2 && host[length - 1] == ']') {
                host++;
                length -= 2;
        }
        memcpy(serve->listen_host, host, length);
        serve->listen_host[length] = '\0';
        serve->listen_port = (uint16_t)port;
        return 0;
}

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct serve_options *serve = opaque;

        switch (key) {
        case KEY_SOCKET: serve->socket = arg; return 0;
        case KEY_LISTEN: return take_listen(serve, arg, err);
        case KEY_NAME: serve->name = arg; return 0;
        case KEY_INSECURE: serve->insecure = true; return 0;
        case KEY_READ_ONLY: serve->read_only = true; return 0;
        case KEY_SCRATCH: serve->scratch = true; return 0;
        case KEY_THREADS: return take_threads(serve, arg, err);
        case KEY_CACHE:
                serve->direct = strcmp(arg, "direct") == 0;
                if (!serve->direct && strcmp(arg, "writeback") != 0)
                        return fail(
                                err, EINVAL, "--cache takes writeback or direct, not '%s'", arg);
                return 0;
        default: return -EINVAL;
        }
}

/* One disk that is served. */
struct disk {
        char *path;
        const char *name; /* of its export */
        bool in_folder;   /* found in a folder: left out if it cannot be opened */
        struct chain *chain;
};

struct service {
        const struct ctl *ctl;
        struct disk *disks;
        size_t n_disks;
        struct nbd_server *server;
        char *socket_directory; /* that we made, or NULL */
        char *socket_path;      /* in it */
        sigset_t signals;       /* that end it */
};

static int add_disk(struct service *service, const char *path, bool in_folder, struct error *err)
{
        struct disk *grown =
                reallocarray(service->disks, service->n_disks + 1, sizeof(*service->disks));

        if (!grown)
                return fail(err, ENOMEM, "no memory for a list of disks");
        service->disks = grown;
        grown[service->n_disks] = (struct disk){.path = strdup(path), .in_folder = in_folder};
        if (!grown[service->n_disks].path)
                return fail(err, ENOMEM, "no memory for a list of disks");
        grown[service->n_disks].name = ctl_base_name(grown[service->n_disks].path);
        service->n_disks++;
        return 0;
}

/* Every tip in a folder; one whose chain is broken is named and left out. */
static int add_folder(struct service *service, const char *folder, struct error *err)
{
        const struct ctl *ctl = service->ctl;
        const struct locate_roots roots = {.roots = ctl->roots, .n_roots = ctl->n_roots};
        _cleanup_(tree_freep) struct tree *tree = NULL;
        int r = tree_scan(&folder, 1, &roots, &tree, err);

        for (size_t i = 0; r == 0 && i < tree->n_notes; i++)
                ctl_warn(ctl, "%s", tree->notes[i]);
        for (size_t i = 0; r == 0 && i < tree->n_nodes; i++) {
                const struct tree_node *node = tree->nodes[i];

                if (node->outside || node->alias)
                        continue;
                if (!node->readable)
                        ctl_warn(ctl, "'%s' is left out: %s", node->path, node->error.message);
                else if (tree_is_tip(node) && node->broken_at &&
                        !(ctl->force && node->broken_at->error.code == EUCLEAN))
                        ctl_warn(ctl, "'%s' is left out: %s", node->path,
                                node->broken_at->error.message);
                else if (tree_is_tip(node))
                        r = add_disk(service, node->path, true, err);
        }
        return r;
}

static int gather_disks(struct service *service, struct error *err)
{
        const struct ctl *ctl = service->ctl;
        int r = 0;

        for (size_t i = 0; r == 0 && i < ctl->n_operands; i++) {
                struct stat st;

                if (stat(ctl->operands[i], &st) == 0 && S_ISDIR(st.st_mode))
                        r = add_folder(service, ctl->operands[i], err);
                else
                        r = add_disk(service, ctl->operands[i], false, err);
        }
        return r;
}

static int open_disk(const struct ctl *ctl, struct disk *disk, struct error *err)
{
        const struct serve_options *serve = ctl->options;
        struct chain_options chain_options;
        int r;

        ctl_chain_options(ctl, &chain_options);
        chain_options.writable = !serve->read_only && !serve->scratch;
        chain_options.scratch = serve->scratch;
        chain_options.direct = serve->direct;
        if (chain_options.writable) {
                r = ctl_refuse_parent(ctl, disk->path, err);
                if (r < 0) {
                        err->hint[0] = '\0'; /* we know better than who looked */
                        error_set_hint(err,
                                "--read-only serves it as it is, --scratch takes writes "
                                "and throws them away");
                        return r;
                }
        }
        r = chain_open(disk->path, &chain_options, &disk->chain, err);
        if (r == -EACCES || r == -EROFS || r == -EPERM)
                error_set_hint(err, "--read-only, if it need not be written to");
        return r;
}

static int open_disks(struct service *service, struct error *err)
{
        const struct ctl *ctl = service->ctl;
        size_t kept = 0;
        int r = 0;

        for (size_t i = 0; r == 0 && i < service->n_disks; i++) {
                struct disk *disk = &service->disks[i];

                r = open_disk(ctl, disk, err);
                if (r < 0 && disk->in_folder) {
                        ctl_warn(ctl, "'%s' is left out: %s", disk->path, err->message);
                        free(disk->path);
                        disk->path = NULL;
                        error_clear(err);
                        r = 0;
                }
        }
        if (r < 0)
                return r;
        for (size_t i = 0; i < service->n_disks; i++)
                if (service->disks[i].path)
                        service->disks[kept++] = service->disks[i];
        service->n_disks = kept;
        if (kept > 0)
                return 0;
        r = fail(err, ENOENT, "there is no disk to serve in '%s'", ctl->operands[0]);
        error_set_hint(err, "vhdctl tree shows what is there, and what is broken");
        return r;
}

static void log_sentence(void *opaque, enum nbd_log_level level, const char *sentence)
{
        const struct service *service = opaque;

        if (level == NBD_LOG_ERROR)
                ctl_warn(service->ctl, "%s", sentence);
}

static int add_exports(struct service *service, struct error *err)
{
        const struct serve_options *serve = service->ctl->options;

        for (size_t i = 0; i < service->n_disks; i++) {
                struct disk *disk = &service->disks[i];
                struct nbd_export_options export = {
                        .name = serve->name ? serve->name : disk->name,
                        .chain = disk->chain,
                        .read_only = serve->read_only || !chain_is_writable(disk->chain),
                        .is_default = service->n_disks == 1,
                };
                int r;

                disk->name = export.name;
                r = nbd_server_add_export(service->server, &export, err);
                if (r == -EEXIST)
                        error_set_hint(err, "two disks of one name: serve them apart");
                if (r < 0)
                        return fail_prefix(err, r, "cannot export '%s'", disk->path);
        }
        return 0;
}

/* A new folder of our own, so that the socket is nobody else's: where sockets belong, else in /tmp. */
static int make_socket_directory(struct service *service, struct error *err)
{
        const char *const places[] = {getenv("XDG_RUNTIME_DIR"), "/run/vhdd", "/tmp"};

        for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
                char *path;

                if (!places[i] || places[i][0] != '/')
                        continue;
                if (asprintf(&path, "%s/vhdctl-XXXXXX", places[i]) < 0)
                        return fail(err, ENOMEM, "no memory for a path");
                if (mkdtemp(path)) {
                        service->socket_directory = path;
                        if (asprintf(&service->socket_path, "%s/nbd.sock", path) < 0) {
                                service->socket_path = NULL;
                                return fail(err, ENOMEM, "no memory for a path");
                        }
                        return 0;
                }
                free(path);
        }
        return fail_os(err, errno, "cannot make a folder for a socket in /tmp");
}

static int listen_all(struct service *service, struct error *err)
{
        const struct serve_options *serve = service->ctl->options;
        const char *path = serve->socket;
        int r = 0;

        if (!path && !serve->listen_host[0]) {
                r = make_socket_directory(service, err);
                path = service->socket_path;
        }
        if (r == 0 && path)
                r = nbd_server_listen_unix(service->server, path, err);
        if (r == 0 && serve->listen_host[0])
                r = nbd_server_listen_tcp(
                        service->server, serve->listen_host, serve->listen_port, err);
        return r;
}

/* The shortest one that reaches the disk, unless the user chose a name. */
static const char *uri_name(const struct service *service, const struct disk *disk)
{
        const struct serve_options *serve = service->ctl->options;

        return service->n_disks == 1 && !serve->name ? "" : disk->name;
}

static void announce_json(const struct service *service)
{
        json_t *answer = json_object(), *exports = json_array();

        for (size_t i = 0; i < service->n_disks; i++) {
                const struct disk *disk = &service->disks[i];
                json_t *object = json_object(), *uris = json_array();

                for (size_t n = 0; n < nbd_server_n_listeners(service->server); n++) {
                        _cleanup_free_ char *uri =
                                nbd_server_uri(service->server, n, uri_name(service, disk));

                        json_array_append_new(uris, json_text(uri ? uri : ""));
                }
                json_object_set_new(object, "name", json_text(disk->name));
                json_object_set_new(object, "filename", json_text(disk->path));
                json_object_set_new(object, "virtual-size", json_size(chain_size(disk->chain)));
                json_object_set_new(object, "depth", json_size(chain_depth(disk->chain)));
                json_object_set_new(
                        object, "read-only", json_boolean(!chain_is_writable(disk->chain)));
                json_object_set_new(object, "uris", uris);
                json_array_append_new(exports, object);
        }
        json_object_set_new(answer, "exports", exports);
        json_print(answer);
}

/* The URIs on stdout, for whoever started us; what they are on stderr, for people. */
static void announce_text(const struct service *service)
{
        for (size_t i = 0; i < service->n_disks; i++) {
                const struct disk *disk = &service->disks[i];
                _cleanup_free_ char *path = text_safe(disk->path);
                char size[SIZE_TEXT_MAX];
                unsigned depth = chain_depth(disk->chain);

                if (!service->ctl->quiet)
                        fprintf(stderr, "vhdctl: serving '%s', %s, %u %s%s\n", path,
                                size_to_text(chain_size(disk->chain), size), depth,
                                depth == 1 ? "layer" : "layers",
                                chain_is_writable(disk->chain) ? "" : ", read-only");
                for (size_t n = 0; n < nbd_server_n_listeners(service->server); n++) {
                        _cleanup_free_ char *uri =
                                nbd_server_uri(service->server, n, uri_name(service, disk));

                        printf("%s\n", uri ? uri : "(no memory for the URI)");
                }
        }
}

static void wait_for_signal(const struct service *service)
{
        while (sigwaitinfo(&service->signals, NULL) < 0 && errno == EINTR)
                ;
}

/* Drains, flushes, closes; the first thing that failed is what is told. */
static int end_service(struct service *service, struct error *err)
{
        struct error later = ERROR_INIT;
        int r = 0, r_close;

        if (service->server) {
                r = nbd_server_stop(service->server, DRAIN_MS, err);
                service->server = nbd_server_free(service->server);
        }
        for (size_t i = 0; i < service->n_disks; i++) {
                struct disk *disk = &service->disks[i];

                if (disk->chain) {
                        r_close = chain_close(disk->chain, r == 0 ? err : &later);
                        if (r == 0)
                                r = r_close;
                }
                free(disk->path);
        }
        free(service->disks);
        if (service->socket_directory) {
                unlink(service->socket_path);
                rmdir(service->socket_directory);
        }
        free(service->socket_path);
        free(service->socket_directory);
        return r;
}

static int serve_until_signal(struct service *service, struct error *err)
{
        const struct serve_options *serve = service->ctl->options;
        const struct nbd_server_options server_options = {
                .threads = serve->threads,
                .log = log_sentence,
                .opaque = service,
        };
        int r = gather_disks(service, err);

        if (r == 0 && serve->name && service->n_disks > 1)
                return ctl_usage(service->ctl, "--name names one export, and there are %zu disks",
                        service->n_disks);
        if (r == 0)
                r = open_disks(service, err);
        if (r == 0)
                r = nbd_server_new(&server_options, &service->server, err);
        if (r == 0)
                r = add_exports(service, err);
        if (r == 0 && !service->ctl->dry_run)
                r = listen_all(service, err);
        if (r == 0 && !service->ctl->dry_run)
                r = nbd_server_start(service->server, err);
        if (r < 0)
                return r;
        if (service->ctl->json)
                announce_json(service);
        else
                announce_text(service);
        fflush(stdout);
        if (!service->ctl->dry_run)
                wait_for_signal(service);
        return CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct serve_options *serve = ctl->options;
        struct service service = {.ctl = ctl};
        struct error later = ERROR_INIT;
        int r, r_end;

        if (serve->listen_host[0] && !serve->insecure)
                return ctl_usage(ctl,
                        "--listen is not encrypted: say --insecure too, which allows "
                        "loopback addresses only");
        if (serve->read_only && serve->scratch)
                return ctl_usage(ctl,
                        "--read-only takes no writes, --scratch throws them away: "
                        "which of the two?");

        /* Before any thread is there: all of them leave these signals to wait_for_signal(). A second
         * one must not cut the flushes short, so they stay blocked to the end. */
        sigemptyset(&service.signals);
        sigaddset(&service.signals, SIGTERM);
        sigaddset(&service.signals, SIGINT);
        sigaddset(&service.signals, SIGHUP);
        pthread_sigmask(SIG_BLOCK, &service.signals, NULL);

        r = serve_until_signal(&service, err);
        r_end = end_service(&service, r < 0 ? &later : err);
        return r != CTL_DONE ? r : r_end;
}

const struct command command_serve = {
        .name = "serve",
        .operands = "PATH...",
        .summary = "serve disks over NBD",
        .doc = "Serve disks, each with its parents, over NBD in the foreground, and print the URI. Of a "
               "folder every disk that no other stands on is served. SIGTERM or Ctrl-C ends it, with "
               "everything flushed."
               "\v"
               "Examples:\n"
               "  vhdctl serve --socket /tmp/nbd.sock disk_GUID.avhd\n"
               "  vhdctl serve --scratch backup.vhd\n"
               "  vhdctl serve --listen 127.0.0.1:10809 --insecure ~/vhds",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = COMMAND_ANY_NUMBER,
        .options = options,
        .options_size = sizeof(struct serve_options),
        .take_option = take_option,
        .run = run,
};
