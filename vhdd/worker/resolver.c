/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/resolver.h"

#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/uuid.h"
#include "chain/chain.h"
#include "chain/locate.h"
#include "vhdd/ipc/rpc.h"
#include "vhdd/worker/flatten.h"
#include "vhdd/worker/fs.h"
#include "vhdd/worker/hyperv.h"
#include "vhdd/worker/layers.h"
#include "vhdd/worker/sandbox.h"

#define CHANNEL_FD 3
/* A chain of 1024 of the largest images, as chain_open() bounds it, and room to spare. */
#define MAX_MEMORY (UINT64_C(4) << 30)

struct resolving {
        pthread_mutex_t lock;
        pthread_cond_t asked;
        /* guarded by lock */
        bool has_question, ended;
        int64_t id;
        char method[24];
        json_t *params;
        int fd; /* that came with it, or -1 */
};

static int resolve(struct fs *fs, const json_t *params, json_t **ret, struct error *err)
{
        const char *path = json_string_value(json_object_get(params, "path"));
        const struct chain_options options = {
                .fs = fs,
                .loose_lock = true,
                .format = json_string_value(json_object_get(params, "format")),
        };
        struct chain *chain;
        int r;

        if (!path)
                return fail(err, EINVAL, "the question has no 'path'");
        r = chain_open(path, &options, &chain, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:o}", "layers", layers_to_json(chain));
        chain_abandon(chain);
        return 0;
}

/* Which image @path names as its parent; 0: it is none that does, or cannot be read. */
static int note_parent(struct fs *fs, const char *path, struct vhd_metadata *room, json_t *images)
{
        _cleanup_(file_closep) struct file *file = NULL;
        char text[UUID_TEXT_SIZE];

        if (locate_open_named(fs, path, &file, NULL) < 0 ||
                locate_read_metadata(file, VHD_READ_FORCE, room, NULL) < 0 ||
                room->footer.type != VHD_TYPE_DIFFERENCING)
                return 0;
        return json_array_append_new(images,
                json_pack("{s:s, s:s}", "path", path, "parent",
                        uuid_format(room->header.parent_id, text)));
}

static int read_parents(struct fs *fs, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_free_ struct vhd_metadata *room = malloc(sizeof(*room));
        json_auto_t *images = json_array();
        json_t *path;
        size_t i;
        int r = room && images ? 0 : -1;

        json_array_foreach(json_object_get(params, "paths"), i, path)
        {
                if (r == 0 && json_is_string(path))
                        r = note_parent(fs, json_string_value(path), room, images);
        }
        *ret = r == 0 ? json_pack("{s:O}", "images", images) : NULL;
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a list of images");
}

/* All of a configuration of Hyper-V's, and what it says. */
static int read_configuration(int fd, json_t **ret, struct error *err)
{
        _cleanup_free_ char *text = malloc(HYPERV_MAX_SIZE + 1);
        size_t n = 0;

        if (!text)
                return fail(err, ENOMEM, "no memory for a configuration");
        while (n <= HYPERV_MAX_SIZE) {
                ssize_t k = pread(fd, text + n, HYPERV_MAX_SIZE + 1 - n, (off_t)n);

                if (k < 0)
                        return fail_os(err, errno, "cannot read a configuration");
                if (k == 0)
                        break;
                n += (size_t)k;
        }
        return hyperv_parse(text, n, ret, err);
}

static int answer(struct fs *fs, struct rpc *rpc, const struct resolving *resolving, json_t **ret,
        struct error *err)
{
        if (strcmp(resolving->method, "flatten") == 0)
                return flatten(fs, rpc, resolving->params, resolving->fd, ret, err);
        if (strcmp(resolving->method, "configuration") == 0)
                return read_configuration(resolving->fd, ret, err);
        if (strcmp(resolving->method, "parents") == 0)
                return read_parents(fs, resolving->params, ret, err);
        return resolve(fs, resolving->params, ret, err);
}

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct resolving *resolving = opaque;

        MUTEX_GUARD(&resolving->lock);
        if (resolving->has_question)
                return;
        resolving->has_question = true;
        resolving->id = id;
        snprintf(resolving->method, sizeof(resolving->method), "%s", method);
        resolving->params = json_incref(params);
        resolving->fd = message_take_fd(message, 0);
        pthread_cond_signal(&resolving->asked);
}

struct reading {
        struct rpc *rpc;
        struct resolving *resolving;
};

static void *read_all(void *opaque)
{
        struct reading *reading = opaque;

        rpc_run(reading->rpc, NULL);
        MUTEX_GUARD(&reading->resolving->lock);
        reading->resolving->ended = true;
        pthread_cond_signal(&reading->resolving->asked);
        return NULL;
}

static bool wait_for_question(struct resolving *resolving)
{
        MUTEX_GUARD(&resolving->lock);
        while (!resolving->has_question && !resolving->ended)
                pthread_cond_wait(&resolving->asked, &resolving->lock);
        return resolving->has_question;
}

static int live(struct proxy_fs *fs, struct error *err)
{
        static struct resolving resolving = {
                .lock = PTHREAD_MUTEX_INITIALIZER, .asked = PTHREAD_COND_INITIALIZER};
        const struct rpc_handlers handlers = {.request = on_request, .opaque = &resolving};
        static struct reading reading = {.resolving = &resolving};
        struct error why = ERROR_INIT;
        json_t *result = NULL;
        pthread_t thread;
        int r = rpc_new(CHANNEL_FD, &handlers, &reading.rpc, err);

        if (r < 0)
                return r;
        proxy_fs_connect(fs, reading.rpc);
        r = pthread_create(&thread, NULL, read_all, &reading);
        if (r != 0)
                return fail_os(err, r, "cannot start a thread");
        if (!wait_for_question(&resolving))
                return 0;
        if (answer(proxy_fs_get(fs), reading.rpc, &resolving, &result, &why) < 0)
                rpc_reply_error(reading.rpc, resolving.id, &why);
        else
                rpc_reply(reading.rpc, resolving.id, result, NULL, 0);
        pthread_join(thread, NULL); /* until the broker has read it and closes */
        return 0;
}

static int parse_options(int argc, char **argv, struct sandbox *sandbox)
{
        static const struct option options[] = {
                {"resolver", no_argument, NULL, 'r'},
                {"uid", required_argument, NULL, 'u'},
                {"gid", required_argument, NULL, 'g'},
                {0},
        };
        int c;

        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                switch (c) {
                case 'r': break;
                case 'u': sandbox->uid = (uid_t)strtoul(optarg, NULL, 10); break;
                case 'g': sandbox->gid = (gid_t)strtoul(optarg, NULL, 10); break;
                default: return -EINVAL;
                }
        }
        return 0;
}

int resolver_main(int argc, char **argv)
{
        struct sandbox sandbox = SANDBOX_INIT("resolver");
        struct error err = ERROR_INIT;
        struct proxy_fs *fs = NULL;
        int r;

        if (parse_options(argc, argv, &sandbox) < 0) {
                fprintf(stderr, "vhdd: --resolver is for the daemon's own use\n");
                return 2;
        }
        signal(SIGPIPE, SIG_IGN);
        sandbox.max_memory = MAX_MEMORY;
        r = proxy_fs_new(&fs, &err);
        if (r == 0)
                r = sandbox_enter(&sandbox, &err);
        if (r == 0)
                r = sandbox_seal(&sandbox, &err);
        if (r == 0)
                r = live(fs, &err);
        if (r < 0)
                fprintf(stderr, "vhdd resolver: %s\n", err.message);
        return r < 0 ? 3 : 0;
}
