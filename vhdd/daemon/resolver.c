/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/resolver.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/host_fs.h"
#include "base/uuid.h"
#include "chain/beneath.h"
#include "formats/intent.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/process.h"
#include "vhdd/ipc/rpc.h"

#define RESOLVE_MS 30000
#define MAX_OPENED 8192u /* files: layers, and what lies beside them */
#define PATH_SIZE  4096u

/* What was opened for the process, as the kernel told us: its own word for it is not asked. */
struct opened {
        char *path;
        uint64_t device, inode;
        int64_t birth_ns;
};

struct resolving {
        /* immutable */
        const char *leaf;
        char **roots; /* the leaf's directory first */
        size_t n_roots;
        struct rpc *rpc;
        const struct image_chain *exactly; /* these and no others; NULL: what is beneath the roots */
        const struct flatten_watch *watch; /* of a flattening */

        /* owner: the channel's thread, and after it has ended the caller */
        struct opened *opened;
        size_t n_opened;
        char outside[PATH_SIZE]; /* the last path that was refused for its place */
};

/* --- the policy --- */

static const char *beneath(const char *path, const char *root)
{
        size_t n = strlen(root);

        if (n == 1) /* "/" */
                return path + 1;
        return strncmp(path, root, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

static int note_opened(struct resolving *resolving, int fd, const char *path, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_fd_ int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        struct file_stat st;
        struct opened *more;
        int r;

        if (resolving->n_opened == MAX_OPENED)
                return fail(err, E2BIG, "the chain asks for more than %u files", MAX_OPENED);
        if (copy < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
        r = file_from_fd(copy, path, FILE_READ, &file, err);
        if (r < 0)
                return r;
        TAKE_FD(copy);
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", path);
        more = reallocarray(resolving->opened, resolving->n_opened + 1, sizeof(*more));
        if (!more)
                return fail(err, ENOMEM, "no memory to open '%s'", path);
        resolving->opened = more;
        more += resolving->n_opened;
        *more = (struct opened){.path = strdup(path),
                .device = st.device,
                .inode = st.inode,
                .birth_ns = st.birth_ns};
        if (!more->path)
                return fail(err, ENOMEM, "no memory to open '%s'", path);
        resolving->n_opened++;
        return 0;
}

/* The file that the user named: also a block device. */
static int open_leaf(const struct resolving *resolving, int *ret_fd, struct error *err)
{
        struct stat st;
        int fd;

        if (stat(resolving->leaf, &st) < 0)
                return fail_os(err, errno, "cannot open '%s'", resolving->leaf);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return fail(err, EMEDIUMTYPE, "'%s' is neither a regular file nor a block device",
                        resolving->leaf);
        fd = open(resolving->leaf, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", resolving->leaf);
        *ret_fd = fd;
        return 0;
}

/* What an image names: only beneath a root, over no link. */
static int open_named(struct resolving *resolving, const char *path, int *ret_fd, char *ret_path,
        struct error *err)
{
        bool inside = false;
        int r = -ENOENT;

        for (size_t i = 0; i < resolving->n_roots; i++) {
                const char *rest = beneath(path, resolving->roots[i]);
                char real[PATH_SIZE];
                int root_fd;

                if (!rest)
                        continue;
                inside = true;
                r = beneath_open_root(resolving->roots[i], &root_fd);
                if (r < 0)
                        continue;
                r = beneath_open(root_fd, rest, ret_fd, real, sizeof(real));
                close(root_fd);
                if (r < 0)
                        continue;
                if ((size_t)snprintf(ret_path, PATH_SIZE, "%s/%s",
                            strcmp(resolving->roots[i], "/") ? resolving->roots[i] : "",
                            real) < PATH_SIZE)
                        return 0;
                close(*ret_fd);
                r = -ENAMETOOLONG;
        }
        if (!inside)
                snprintf(resolving->outside, sizeof(resolving->outside), "%s", path);
        return fail_os(err, inside ? -r : EPERM, "cannot open '%s'", path);
}

/* A layer of the chain, if it is the file that the row means; or what lies beside it on its account. */
static int open_exactly(const struct resolving *resolving, const char *path, int *ret_fd,
        char *ret_path, struct error *err)
{
        for (size_t i = 0; i < resolving->exactly->n; i++) {
                const struct image_row *row = &resolving->exactly->rows[i];
                size_t n = strlen(row->path);
                struct stat st;
                int fd;

                if (strncmp(path, row->path, n) != 0 ||
                        (path[n] && strcmp(path + n, INTENT_ENDING) != 0))
                        continue;
                fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
                if (fd < 0 || fstat(fd, &st) < 0)
                        return fail_os(err, errno, "cannot open '%s'", path);
                if (!S_ISREG(st.st_mode) ||
                        (!path[n] &&
                                ((uint64_t)st.st_dev != row->device ||
                                        (uint64_t)st.st_ino != row->inode))) {
                        close(fd);
                        return fail(err, ESTALE,
                                "'%s' is another file than the one that was attached", path);
                }
                snprintf(ret_path, PATH_SIZE, "%s", path);
                *ret_fd = fd;
                return 0;
        }
        return fail(err, EPERM, "'%s' is none of the chain's images", path);
}

static int answer_open(struct resolving *resolving, const json_t *params, int *ret_fd, json_t **ret,
        struct error *err)
{
        const char *path = json_string_value(json_object_get(params, "path"));
        json_int_t flags = json_integer_value(json_object_get(params, "flags"));
        char real[PATH_SIZE];
        int fd = -1, r;

        if (!path || path[0] != '/')
                return fail(err, EPROTO, "the resolver asks for no path");
        if (flags & ~(json_int_t)FILE_NOFOLLOW)
                return fail(err, EPERM, "the resolver may only read");
        if (resolving->exactly) {
                r = open_exactly(resolving, path, &fd, real, err);
        } else if (!strcmp(path, resolving->leaf)) {
                snprintf(real, sizeof(real), "%s", path);
                r = open_leaf(resolving, &fd, err);
        } else {
                r = open_named(resolving, path, &fd, real, err);
        }
        if (r == 0)
                r = note_opened(resolving, fd, real, err);
        if (r < 0) {
                if (fd >= 0)
                        close(fd);
                return r;
        }
        *ret_fd = fd;
        *ret = json_pack("{s:s}", "path", real);
        return 0;
}

/* Only to look at, and only of what it has open. */
static int answer_region(struct resolving *resolving, const json_t *params, int *ret_fd,
        json_t **ret, struct error *err)
{
        const char *name = json_string_value(json_object_get(params, "name"));
        const char *beside = json_string_value(json_object_get(params, "beside"));
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        bool fits = false;
        char link[64];
        int r;

        for (size_t i = 0; name && beside && i < resolving->n_opened && !fits; i++) {
                const struct opened *opened = &resolving->opened[i];
                unsigned long long device, inode;
                char kind[8];
                int end = 0;

                if (sscanf(name, "vhdd-%4[a-z]-%llx-%llx%n", kind, &device, &inode, &end) == 3 &&
                        name[end] == '\0' && !strcmp(beside, opened->path))
                        fits = device == opened->device && inode == opened->inode;
        }
        if (!fits || json_is_true(json_object_get(params, "create")))
                return fail(err, EPERM, "the resolver may not have the region '%.64s'",
                        name ? name : "");
        r = host_region_open_fd(name, beside, 0, false, &fd, &path, err);
        if (r < 0)
                return r == -ENOENT ? fail(err, ENOENT, "there is no region '%s'", name) : r;
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        *ret_fd = open(link, O_RDONLY | O_CLOEXEC);
        if (*ret_fd < 0)
                return fail_os(err, errno, "cannot open the region '%s'", path);
        *ret = json_pack("{s:s}", "path", path);
        return 0;
}

/* It has all its files: nothing else of it waits while this one does. */
static int answer_step(struct resolving *resolving, const json_t *params, struct error *err)
{
        json_int_t bytes = json_integer_value(json_object_get(params, "bytes"));
        int r = resolving->watch->step(
                resolving->watch->opaque, bytes > 0 ? (uint64_t)bytes : 0);

        return r < 0 ? fail(err, -r, "it was broken off") : 0;
}

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct resolving *resolving = opaque;
        struct error err = ERROR_INIT;
        json_t *result = NULL;
        int fd = -1, r;

        if (!strcmp(method, "fs.open"))
                r = answer_open(resolving, params, &fd, &result, &err);
        else if (!strcmp(method, "fs.region-open"))
                r = answer_region(resolving, params, &fd, &result, &err);
        else if (!strcmp(method, "flatten.step") && resolving->watch)
                r = answer_step(resolving, params, &err);
        else
                r = fail(&err, EPERM, "the resolver may not ask for '%.64s'", method);
        if (r < 0) {
                rpc_reply_error(rpc, id, &err);
                return;
        }
        rpc_reply(rpc, id, result, &fd, fd >= 0 ? 1 : 0);
        if (fd >= 0)
                close(fd);
}

static void *serve(void *opaque)
{
        struct resolving *resolving = opaque;

        rpc_run(resolving->rpc, NULL);
        return NULL;
}

/* --- what it answers --- */

static const struct opened *find_opened(const struct resolving *resolving, const char *path)
{
        for (size_t i = 0; path && i < resolving->n_opened; i++)
                if (!strcmp(resolving->opened[i].path, path))
                        return &resolving->opened[i];
        return NULL;
}

static bool take_text(const json_t *object, const char *key, char *ret, size_t size)
{
        const char *text = json_string_value(json_object_get(object, key));

        return text && (size_t)snprintf(ret, size, "%s", text) < size;
}

static int take_layer(const struct resolving *resolving, const json_t *json,
        struct resolved_layer *ret, struct error *err)
{
        const struct opened *opened =
                find_opened(resolving, json_string_value(json_object_get(json, "path")));
        const char *uuid = json_string_value(json_object_get(json, "uuid"));
        json_int_t size = json_integer_value(json_object_get(json, "size"));

        if (!opened || !uuid || !uuid_parse(uuid, ret->uuid) || size < 0 ||
                !take_text(json, "type", ret->type, sizeof(ret->type)) ||
                !take_text(json, "format", ret->format, sizeof(ret->format)))
                return fail(err, EPROTO, "the resolver's answer is none");
        ret->path = strdup(opened->path);
        if (!ret->path)
                return fail(err, ENOMEM, "no memory for a chain");
        ret->device = opened->device;
        ret->inode = opened->inode;
        ret->birth_ns = opened->birth_ns;
        ret->size = (uint64_t)size;
        return 0;
}

static int take_layers(const struct resolving *resolving, const json_t *answer,
        struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        const json_t *list = json_object_get(answer, "layers");
        size_t n = json_array_size(list);
        struct resolved_layer *layers;

        if (n == 0 || n > MAX_OPENED)
                return fail(err, EPROTO, "the resolver's answer has %zu layers", n);
        layers = calloc(n, sizeof(*layers));
        if (!layers)
                return fail(err, ENOMEM, "no memory for a chain of %zu images", n);
        for (size_t i = 0; i < n; i++) {
                int r = take_layer(resolving, json_array_get(list, i), &layers[i], err);

                if (r < 0) {
                        resolved_layers_free(layers, n);
                        return r;
                }
        }
        *ret = layers;
        *ret_n = n;
        return 0;
}

void resolved_layers_free(struct resolved_layer *layers, size_t n)
{
        for (size_t i = 0; layers && i < n; i++)
                free(layers[i].path);
        free(layers);
}

/* The child only knows that it did not get the file; we know why. */
static int explain(const struct resolving *resolving, int r, struct error *err)
{
        char directory[PATH_SIZE];
        struct stat st;

        if ((r != -ENOENT && r != -EPERM) || !resolving->outside[0] ||
                stat(resolving->outside, &st) < 0 || !S_ISREG(st.st_mode))
                return r;
        host_directory_of(resolving->outside, directory, sizeof(directory));
        error_clear(err);
        fail(err, EPERM,
                "a parent of '%s' is '%s', which lies outside the folders that images may be in",
                resolving->leaf, resolving->outside);
        error_set_file(err, resolving->leaf);
        error_set_hint(err, "start the daemon with --image-root '%s'", directory);
        return -EPERM;
}

/* --- the process --- */

/* @params is taken over; @fd goes along unless it is -1. */
static int ask(struct broker *broker, struct resolving *resolving, const char *question,
        json_t *params, int fd, unsigned timeout_ms, struct message *ret, struct error *err)
{
        char uid[16], gid[16];
        const char *args[] = {"vhdd", "--resolver", "--uid", uid, "--gid", gid, NULL};
        const struct rpc_handlers handlers = {.request = on_request, .opaque = resolving};
        int ends[2], pidfd, status, r;
        pthread_t thread;
        pid_t pid;

        snprintf(uid, sizeof(uid), "%u", (unsigned)broker->worker_uid);
        snprintf(gid, sizeof(gid), "%u", (unsigned)broker->worker_gid);
        r = channel_pair(ends, err);
        if (r < 0) {
                json_decref(params);
                return r;
        }
        r = process_spawn(broker, args, &ends[1], 1, &pid, &pidfd, err);
        close(ends[1]);
        if (r == 0) {
                r = rpc_new(ends[0], &handlers, &resolving->rpc, err);
                if (r == 0)
                        TAKE_FD(ends[0]);
                if (r == 0) {
                        r = pthread_create(&thread, NULL, serve, resolving);
                        if (r != 0)
                                r = fail_os(err, r, "cannot start a thread");
                }
                if (r == 0) {
                        r = rpc_call(resolving->rpc, question, json_incref(params), &fd,
                                fd >= 0 ? 1 : 0, timeout_ms, ret, err);
                        rpc_shutdown(resolving->rpc);
                        pthread_join(thread, NULL);
                }
                resolving->rpc = rpc_unref(resolving->rpc);
                process_kill(pidfd);
                process_wait(pidfd, -1, &status);
                close(pidfd);
        }
        json_decref(params);
        if (ends[0] >= 0)
                close(ends[0]);
        return r;
}

static int collect_roots(
        struct resolving *resolving, char *const *roots, size_t n_roots, struct error *err)
{
        char directory[PATH_SIZE];

        resolving->roots = calloc(n_roots + 1, sizeof(*resolving->roots));
        if (!resolving->roots)
                return fail(err, ENOMEM, "no memory to resolve '%s'", resolving->leaf);
        host_directory_of(resolving->leaf, directory, sizeof(directory));
        resolving->roots[resolving->n_roots++] = strdup(directory);
        for (size_t i = 0; i < n_roots; i++) {
                char real[PATH_MAX];

                /* A root may be written with links in it; what is beneath it may not. */
                resolving->roots[resolving->n_roots++] =
                        strdup(realpath(roots[i], real) ? real : roots[i]);
        }
        for (size_t i = 0; i < resolving->n_roots; i++)
                if (!resolving->roots[i])
                        return fail(err, ENOMEM, "no memory to resolve '%s'", resolving->leaf);
        return 0;
}

static void forget_opened(struct resolving *resolving)
{
        for (size_t i = 0; i < resolving->n_opened; i++)
                free(resolving->opened[i].path);
        free(resolving->opened);
}

static void resolving_done(struct resolving *resolving)
{
        for (size_t i = 0; i < resolving->n_roots; i++)
                free(resolving->roots[i]);
        free(resolving->roots);
        forget_opened(resolving);
}

/* Where the file really is: parents lie relative to that, and a worker follows no links. A disk keeps
 * the name that it was called by, which may be the one that outlives a reboot. */
static int real_leaf(const char *path, char *ret, struct error *err)
{
        struct stat st;
        char *real;

        if (path[0] != '/')
                return fail(err, EINVAL, "'%s' is no absolute path", path);
        if (stat(path, &st) < 0) {
                fail_os(err, errno, "cannot open '%s'", path);
                error_set_file(err, path);
                return -err->code;
        }
        if (S_ISBLK(st.st_mode)) {
                snprintf(ret, PATH_SIZE, "%s", path);
                return 0;
        }
        real = realpath(path, NULL);
        if (!real)
                return fail_os(err, errno, "cannot open '%s'", path);
        snprintf(ret, PATH_SIZE, "%s", real);
        free(real);
        return 0;
}

int resolve_chain(struct broker *broker, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        _cleanup_(resolving_done) struct resolving resolving = {0};
        struct message answer = MESSAGE_INIT;
        struct error local = ERROR_INIT;
        char leaf[PATH_SIZE];
        json_t *params;
        int r;

        err = err ? err : &local;
        r = real_leaf(path, leaf, err);
        if (r < 0)
                return r;
        resolving.leaf = leaf;
        r = collect_roots(&resolving, roots, n_roots, err);
        if (r < 0)
                return r;
        params = json_pack("{s:s, s:s*}", "path", leaf, "format", format);
        r = params ? ask(broker, &resolving, "resolve", params, -1, RESOLVE_MS, &answer, err)
                   : fail(err, EINVAL, "the name of '%s' is no UTF-8", leaf);
        if (r == -EHOSTDOWN) {
                fail(err, EUCLEAN, "reading the headers of '%s' killed the process that did it",
                        leaf);
                error_set_file(err, leaf);
                r = -EUCLEAN;
        }
        if (r == 0)
                r = take_layers(&resolving, answer.json, ret, ret_n, err);
        message_done(&answer);
        return r < 0 ? explain(&resolving, r, err) : 0;
}

int resolve_configuration(struct broker *broker, const char *path, json_t **ret, struct error *err)
{
        _cleanup_(resolving_done) struct resolving resolving = {.leaf = path};
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        struct message answer = MESSAGE_INIT;
        struct stat st;
        int r;

        if (fd < 0 || fstat(fd, &st) < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        if (!S_ISREG(st.st_mode))
                return fail(err, EMEDIUMTYPE, "'%s' is no regular file", path);
        r = ask(broker, &resolving, "configuration", json_object(), fd, RESOLVE_MS,
                &answer, err);
        if (r == 0)
                *ret = json_incref(answer.json);
        else if (r == -EHOSTDOWN)
                r = fail(err, EUCLEAN, "reading '%s' killed the process that did it", path);
        else
                fail_prefix(err, r, "cannot use '%s'", path);
        if (r < 0)
                error_set_file(err, path);
        message_done(&answer);
        return r;
}

/* A stranger's word, but for the paths, which are ours. */
static int take_parents(
        const json_t *answer, const json_t *paths, json_t *ret, struct error *err)
{
        json_t *image;
        size_t i;

        json_array_foreach(json_object_get(answer, "images"), i, image)
        {
                const char *path = json_string_value(json_object_get(image, "path"));
                const char *parent = json_string_value(json_object_get(image, "parent"));
                uint8_t id[16];

                if (!path || !parent || !json_has_text(paths, path) || !uuid_parse(parent, id))
                        return fail(err, EPROTO, "the resolver's answer is none");
                if (json_array_append_new(
                            ret, json_pack("{s:s, s:s}", "path", path, "parent", parent)) < 0)
                        return fail(err, ENOMEM, "no memory for a list of images");
        }
        return 0;
}

int resolve_parents(struct broker *broker, const char *folder, const json_t *paths, json_t **ret,
        struct error *err)
{
        char *roots[] = {(char *)folder};
        struct resolving resolving = {.leaf = "", .roots = roots, .n_roots = 1};
        struct message answer = MESSAGE_INIT;
        json_auto_t *images = json_array();
        json_t *params = json_pack("{s:O}", "paths", paths);
        int r = images && params
                ? ask(broker, &resolving, "parents", params, -1, RESOLVE_MS, &answer, err)
                : fail(err, ENOMEM, "no memory for a list of images");

        if (r == -EHOSTDOWN)
                r = fail(err, EUCLEAN, "reading headers in '%s' killed the process that did it",
                        folder);
        if (r == 0)
                r = take_parents(answer.json, paths, images, err);
        if (r == 0)
                *ret = json_incref(images);
        message_done(&answer);
        forget_opened(&resolving);
        return r;
}

int flatten_chain(struct broker *broker, const struct image_chain *images, int fd,
        const char *output, const char *uuid, const struct flatten_watch *watch,
        struct error *err)
{
        _cleanup_(resolving_done) struct resolving resolving = {
                .leaf = images->rows[0].path, .exactly = images, .watch = watch};
        struct message answer = MESSAGE_INIT;
        json_t *parents = json_array(), *params;
        int r;

        for (size_t i = 1; i < images->n; i++)
                json_array_append_new(parents, json_string(images->rows[i].path));
        params = json_pack("{s:s, s:o, s:s, s:s, s:s}", "path", images->rows[0].path, "parents",
                parents, "format", images->rows[0].format, "output", output, "uuid", uuid);
        if (!params)
                return fail(err, ENOMEM, "no memory for a chain");
        r = ask(broker, &resolving, "flatten", params, fd, 0, &answer, err);
        if (r == -EHOSTDOWN)
                r = fail(err, EUCLEAN, "reading '%s' killed the process that did it",
                        images->rows[0].path);
        message_done(&answer);
        return r;
}
