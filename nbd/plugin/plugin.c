/* SPDX-License-Identifier: Apache-2.0 */
/* nbdkit-vhd-plugin - a chain of VHDs under nbdkit: its filters, its TLS, its ways of starting.
 *
 * All connections share one chain, so multi-conn holds by itself.
 *
 *      get_ready: open read-only, and close again: whatever is wrong with the images is said on the
 *                 terminal, before nbdkit goes to the background. Nothing stays open over its fork,
 *                 because the other process would keep the locks
 *      first open: open. Only now does nbdkit say whether -r was given, and an image that may only be
 *                 read must not be touched
 *      cleanup:   flush and clean close
 *
 * Threads    nbdkit calls from many threads at once; the chain bears with that. The slot below changes
 *            hands under its lock; a connection uses the chain that it found at its own open.
 */
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL       NBDKIT_THREAD_MODEL_PARALLEL

#include <nbdkit-plugin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "chain/chain.h"
#include "chain/tree.h"

/* image-root= and parent=, several of each; and the warnings. */
struct paths {
        char **paths;
        size_t n;
};

static struct {
        char *file, *format;
        struct paths image_roots, parents;
        bool direct;
} config;

/* Warnings that were said. Before the first connection, then guarded by slot.lock. */
static struct paths said;

/* The chain of all connections. */
static struct {
        pthread_mutex_t lock;
        /* guarded by lock */
        struct chain *chain; /* NULL before the first connection */
        bool readonly;       /* was asked for so */
        unsigned n_users;    /* connections that use it */
} slot = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct connection {
        struct chain *chain;
        bool readonly;
};

/* ---- configuration ---- */

static void free_paths(struct paths *paths)
{
        for (size_t i = 0; i < paths->n; i++)
                free(paths->paths[i]);
        free(paths->paths);
        *paths = (struct paths){0};
}

/* Takes @string over. */
static int add_string(struct paths *paths, char *string)
{
        char **more = reallocarray(paths->paths, paths->n + 1, sizeof(*more));

        if (!more) {
                nbdkit_error("no memory for '%s'", string);
                free(string);
                return -1;
        }
        paths->paths = more;
        more[paths->n++] = string;
        return 0;
}

/* nbdkit goes to "/" when it goes to the background, and the chain is opened after that. */
static int add_path(struct paths *paths, const char *value)
{
        char *path = nbdkit_absolute_path(value);

        return path ? add_string(paths, path) : -1;
}

static int set_once(char **setting, const char *key, char *value)
{
        if (!value)
                return -1;
        if (*setting) {
                nbdkit_error("%s= may be given once", key);
                free(value);
                return -1;
        }
        *setting = value;
        return 0;
}

static int set_format(const char *value)
{
        if (strcmp(value, "vhd") != 0 && strcmp(value, "raw") != 0) {
                nbdkit_error("format= is vhd or raw, not '%s'", value);
                return -1;
        }
        return set_once(&config.format, "format", strdup(value));
}

static int set_cache(const char *value)
{
        if (strcmp(value, "writeback") != 0 && strcmp(value, "direct") != 0) {
                nbdkit_error("cache= is writeback or direct, not '%s'", value);
                return -1;
        }
        config.direct = value[0] == 'd';
        return 0;
}

static int vhd_config(const char *key, const char *value)
{
        if (strcmp(key, "file") == 0)
                return set_once(&config.file, key, nbdkit_absolute_path(value));
        if (strcmp(key, "image-root") == 0)
                return add_path(&config.image_roots, value);
        if (strcmp(key, "parent") == 0)
                return add_path(&config.parents, value);
        if (strcmp(key, "format") == 0)
                return set_format(value);
        if (strcmp(key, "cache") == 0)
                return set_cache(value);
        nbdkit_error(
                "unknown parameter '%s'; there are file=, image-root=, parent=, format=, cache=",
                key);
        return -1;
}

static int vhd_config_complete(void)
{
        if (config.file)
                return 0;
        nbdkit_error("which image? Give its path: nbdkit vhd FILE");
        return -1;
}

static void vhd_unload(void)
{
        free(config.file);
        free(config.format);
        free_paths(&config.image_roots);
        free_paths(&config.parents);
        free_paths(&said);
}

static void vhd_dump_plugin(void)
{
        printf("vhd_formats=vhd raw\n");
        printf("vhd_types=fixed dynamic differencing\n");
        printf("vhd_max_chain_depth=%u\n", CHAIN_MAX_DEPTH);
        printf("vhd_engine_version=%s\n", VHDD_VERSION);
}

/* ---- the chain ---- */

/* Each once: the images are opened twice. nbdkit sends its errors to syslog when it is in the
 * background, and has no warnings. */
static void say_warning(void *opaque, const char *sentence)
{
        char *copy;

        for (size_t i = 0; i < said.n; i++)
                if (strcmp(said.paths[i], sentence) == 0)
                        return;
        copy = strdup(sentence);
        if (copy)
                add_string(&said, copy);
        nbdkit_error("warning: %s", sentence);
}

static void say_error(const struct error *err)
{
        bool named = !err->file[0] || strstr(err->message, err->file);

        nbdkit_set_error(err->code);
        nbdkit_error("%s%s%s%s%s%s", named ? "" : err->file, named ? "" : ": ", err->message,
                err->hint[0] ? "   (" : "", err->hint, err->hint[0] ? ")" : "");
}

/* 0, or -errno after the sentence was said. */
static int open_chain(bool writable, struct chain **ret)
{
        struct chain_options options = {
                .writable = writable,
                .direct = config.direct,
                .format = config.format,
                .image_roots = (const char *const *)config.image_roots.paths,
                .n_image_roots = config.image_roots.n,
                .parents = (const char *const *)config.parents.paths,
                .n_parents = config.parents.n,
                .warn = say_warning,
        };
        struct error err = ERROR_INIT;
        int r = chain_open(config.file, &options, ret, &err);

        if (r < 0)
                say_error(&err);
        return r;
}

static int vhd_get_ready(void)
{
        struct chain *chain;

        if (open_chain(false, &chain) < 0)
                return -1;
        chain_abandon(chain);
        return 0;
}

/* Closes what was opened for reading only, so that it can be opened for writing: our own lock keeps
 * writers out, us too. */
static int close_readonly_locked(void)
{
        if (slot.n_users > 0) {
                nbdkit_set_error(EBUSY);
                nbdkit_error("'%s' is open for reading only, by other connections", config.file);
                return -1;
        }
        slot.chain = chain_abandon(slot.chain);
        return 0;
}

/* An image that others stand on would change under them. */
static int refuse_parent(void)
{
        const struct locate_roots roots = {
                .roots = (const char *const *)config.image_roots.paths,
                .n_roots = config.image_roots.n,
        };
        struct error err = ERROR_INIT;

        /* What cannot be read cannot have been anybody's parent, or is refused by who opens it. */
        if (tree_refuse_if_parent(config.file, &roots, &err) != -EBUSY)
                return 0;
        nbdkit_set_error(EBUSY);
        nbdkit_error("%s   (nbdkit -r reads it; --filter=cow takes writes and throws them away)",
                err.message);
        return -EBUSY;
}

static int open_locked(bool readonly)
{
        int r = readonly ? 0 : refuse_parent();

        if (r < 0)
                return r;
        r = open_chain(!readonly, &slot.chain);
        /* A file that nobody lets us write to is served as it is. */
        if (!readonly && (r == -EACCES || r == -EPERM || r == -EROFS))
                r = open_chain(false, &slot.chain);
        slot.readonly = readonly;
        return r;
}

/* The chain, opened as it is wanted; NULL after saying why not. */
static struct chain *use_chain(bool readonly)
{
        MUTEX_GUARD(&slot.lock);
        if (slot.chain && slot.readonly && !readonly && close_readonly_locked() < 0)
                return NULL;
        if (!slot.chain && open_locked(readonly) < 0)
                return NULL;
        slot.n_users++;
        return slot.chain;
}

static void *vhd_open(int readonly)
{
        struct connection *c = malloc(sizeof(*c));

        if (!c) {
                nbdkit_error("no memory for a connection");
                return NULL;
        }
        c->readonly = readonly;
        c->chain = use_chain(readonly);
        if (!c->chain) {
                free(c);
                return NULL;
        }
        return c;
}

static void vhd_close(void *handle)
{
        pthread_mutex_lock(&slot.lock);
        slot.n_users--;
        pthread_mutex_unlock(&slot.lock);
        free(handle);
}

static void vhd_cleanup(void)
{
        struct error err = ERROR_INIT;

        if (slot.chain && chain_close(slot.chain, &err) < 0)
                nbdkit_error("closing '%s': %s", config.file, err.message);
        slot.chain = NULL;
}

/* ---- what there is ---- */

static const char *describe(struct chain *chain)
{
        unsigned depth = chain_depth(chain);

        if (depth == 1)
                return nbdkit_strdup_intern(config.file);
        return nbdkit_printf_intern(
                "%s and %u %s", config.file, depth - 1, depth == 2 ? "parent" : "parents");
}

static const char *vhd_export_description(void *handle)
{
        return describe(((struct connection *)handle)->chain);
}

static int vhd_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
        const char *description;

        MUTEX_GUARD(&slot.lock);
        description = slot.chain ? describe(slot.chain) : NULL;
        return nbdkit_add_export(exports, "", description);
}

static const char *vhd_default_export(int readonly, int is_tls)
{
        return "";
}

static int64_t vhd_get_size(void *handle)
{
        return (int64_t)chain_size(((struct connection *)handle)->chain);
}

static int vhd_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
        *minimum = 1;
        *preferred = MIN_OF(
                chain_preferred_size(((struct connection *)handle)->chain), (uint32_t)(32 * MIB));
        *maximum = UINT32_MAX;
        return 0;
}

static int vhd_can_write(void *handle)
{
        struct connection *c = handle;

        return !c->readonly && chain_is_writable(c->chain);
}

static int yes(void *handle)
{
        return 1;
}

static int vhd_can_fua(void *handle)
{
        return NBDKIT_FUA_NATIVE;
}

static int vhd_can_cache(void *handle)
{
        return NBDKIT_CACHE_NATIVE;
}

static int vhd_is_rotational(void *handle)
{
        return 0;
}

/* ---- requests ---- */

static int result(int r, const char *what, uint32_t count, uint64_t offset)
{
        if (r == 0)
                return 0;
        nbdkit_set_error(-r);
        /* "Not quickly" is an answer, and nothing to complain of. */
        if (r != -EOPNOTSUPP)
                nbdkit_error("%s %u bytes at %llu: %s", what, count, (unsigned long long)offset,
                        strerror(-r));
        return -1;
}

static int vhd_pread(void *handle, void *data, uint32_t count, uint64_t offset, uint32_t flags)
{
        struct connection *c = handle;

        return result(chain_read(c->chain, data, count, offset, 0), "reading", count, offset);
}

static unsigned chain_flags(uint32_t flags)
{
        return flags & NBDKIT_FLAG_FUA ? CHAIN_FUA : 0;
}

static int vhd_pwrite(
        void *handle, const void *data, uint32_t count, uint64_t offset, uint32_t flags)
{
        struct connection *c = handle;

        return result(chain_write(c->chain, data, count, offset, chain_flags(flags)), "writing",
                count, offset);
}

static int vhd_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
        struct connection *c = handle;
        unsigned f = chain_flags(flags);

        if (!(flags & NBDKIT_FLAG_MAY_TRIM))
                f |= CHAIN_NO_HOLE;
        if (flags & NBDKIT_FLAG_FAST_ZERO)
                f |= CHAIN_FAST_ZERO;
        return result(chain_zero(c->chain, count, offset, f), "zeroing", count, offset);
}

static int vhd_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
        struct connection *c = handle;

        return result(
                chain_trim(c->chain, count, offset, chain_flags(flags)), "trimming", count, offset);
}

static int vhd_flush(void *handle, uint32_t flags)
{
        struct connection *c = handle;

        return result(chain_flush(c->chain), "flushing", 0, 0);
}

static int vhd_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
        struct connection *c = handle;

        return result(chain_cache(c->chain, count, offset), "caching", count, offset);
}

static int vhd_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
        struct nbdkit_extents *extents)
{
        struct connection *c = handle;
        uint64_t end = offset + count;

        while (offset < end) {
                struct chain_extent extent;
                uint32_t type;
                int r = chain_status(c->chain, offset, end - offset, CHAIN_HOLES, &extent);

                if (r < 0)
                        return result(r, "mapping", count, offset);
                extent.length = MIN_OF(extent.length, end - offset);
                type = extent.kind == EXTENT_DATA ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
                if (nbdkit_add_extent(extents, offset, extent.length, type) < 0)
                        return -1;
                offset += extent.length;
                if (flags & NBDKIT_FLAG_REQ_ONE)
                        break;
        }
        return 0;
}

static struct nbdkit_plugin plugin = {
        .name = "vhd",
        .longname = "VHD images and chains of them",
        .version = VHDD_VERSION,
        .description = "Fixed, dynamic and differencing VHDs, with their parents, and raw images",
        .unload = vhd_unload,
        .config = vhd_config,
        .config_complete = vhd_config_complete,
        .config_help =
                "[file=]FILE      (required) The image; its parents are found by themselves\n"
                "image-root=DIR   Parents may lie beneath DIR too (several)\n"
                "parent=FILE      The next parent, by hand (several)\n"
                "format=vhd|raw   What FILE is, if it is not to be looked at\n"
                "cache=writeback|direct",
        .magic_config_key = "file",
        .dump_plugin = vhd_dump_plugin,
        .get_ready = vhd_get_ready,
        .cleanup = vhd_cleanup,
        .list_exports = vhd_list_exports,
        .default_export = vhd_default_export,
        .export_description = vhd_export_description,
        .open = vhd_open,
        .close = vhd_close,
        .get_size = vhd_get_size,
        .block_size = vhd_block_size,
        .can_write = vhd_can_write,
        .can_flush = yes,
        .is_rotational = vhd_is_rotational,
        .can_trim = vhd_can_write,
        .can_zero = vhd_can_write,
        .can_fast_zero = vhd_can_write,
        .can_fua = vhd_can_fua,
        .can_multi_conn = yes,
        .can_extents = yes,
        .can_cache = vhd_can_cache,
        .pread = vhd_pread,
        .pwrite = vhd_pwrite,
        .zero = vhd_zero,
        .trim = vhd_trim,
        .flush = vhd_flush,
        .cache = vhd_cache,
        .extents = vhd_extents,
        .errno_is_preserved = 0,
};

/* What nbdkit looks up; its header defines it without saying so first. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
