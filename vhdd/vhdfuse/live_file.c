/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/vhdfuse/live_file.h"

#include <errno.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <syslog.h>

#include "base/arith.h"

#define MAX_HANDLES 4u           /* so many reads of one file are under way at a time */
#define PIECE       (256u << 10) /* of a read: the worker works on several at once */
#define MAX_PIECES  64u
#define CONNECT_MS  15000 /* the daemon waits for a vm's worker for 10 s */
#define PATIENCE_MS 4000  /* a daemon that is restarted is back by then */
#define PAUSE_NS    100000000L
#define MAX_STATUS  (1u << 30) /* of one question for extents */

struct live_file {
        /* immutable */
        struct live_daemon *daemon;
        char *export_name;
        bool now;
        struct timespec mtime;

        _Atomic uint64_t size;

        pthread_mutex_t lock;
        pthread_cond_t freed;
        /* guarded by lock */
        unsigned n_users;   /* opens */
        unsigned n_handles; /* connected, or being connected */
        struct nbd_handle *idle[MAX_HANDLES];
        unsigned n_idle;
};

int live_file_new(struct live_daemon *daemon, const char *export_name, bool now, uint64_t size,
        const struct timespec *mtime, struct live_file **ret)
{
        struct live_file *file = calloc(1, sizeof(*file));

        if (!file)
                return -ENOMEM;
        file->daemon = daemon;
        file->now = now;
        file->mtime = *mtime;
        file->export_name = strdup(export_name);
        atomic_init(&file->size, size);
        pthread_mutex_init(&file->lock, NULL);
        pthread_cond_init(&file->freed, NULL);
        *ret = file;
        if (file->export_name)
                return 0;
        *ret = live_file_free(file);
        return -ENOMEM;
}

struct live_file *live_file_free(struct live_file *file)
{
        if (!file)
                return NULL;
        for (unsigned i = 0; i < file->n_idle; i++)
                nbd_close(file->idle[i]);
        pthread_mutex_destroy(&file->lock);
        pthread_cond_destroy(&file->freed);
        free(file->export_name);
        free(file);
        return NULL;
}

bool live_file_set_size(struct live_file *file, uint64_t size)
{
        return atomic_exchange(&file->size, size) != size;
}

/* --- one connection */

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

/* The export's URI: its name goes behind the host's slash. NULL: the daemon serves nothing, or no memory. */
static char *uri_of(const struct live_file *file)
{
        static const char safe[] =
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/@";
        struct live_daemon *daemon = file->daemon;
        _cleanup_free_ char *encoded = calloc(1, 3 * strlen(file->export_name) + 1);
        const char *host, *slash, *query;
        char *ret = NULL, *out = encoded;

        if (!encoded)
                return NULL;
        for (const char *p = file->export_name; *p; p++)
                out += strchr(safe, *p) ? sprintf(out, "%c", *p)
                                        : sprintf(out, "%%%02X", (unsigned)(unsigned char)*p);
        MUTEX_GUARD(&daemon->lock);
        host = daemon->uri ? strstr(daemon->uri, "://") : NULL;
        if (!host)
                return NULL;
        query = strchr(host, '?');
        slash = strchr(host + 3, '/');
        if (!slash || (query && slash > query))
                slash = query ? query : host + strlen(host);
        if (asprintf(&ret, "%.*s/%s%s", (int)(slash - daemon->uri), daemon->uri, encoded,
                    query ? query : "") < 0)
                return NULL;
        return ret;
}

/* Once for each reason: a reader that tries again and again must not fill the log. */
static void remember_why(const struct live_file *file, const char *why)
{
        struct live_daemon *daemon = file->daemon;
        bool said;

        pthread_mutex_lock(&daemon->lock);
        said = strncmp(daemon->why, why, sizeof(daemon->why) - 1) == 0;
        snprintf(daemon->why, sizeof(daemon->why), "%s", why);
        pthread_mutex_unlock(&daemon->lock);
        if (!said)
                eventfd_write(daemon->changed, 1);
        if (!said && why[0])
                syslog(LOG_WARNING,
                        "'%s' cannot be read: %s; is the daemon running? vhdctl status tells",
                        file->export_name, why);
}

static int wait_connected(struct nbd_handle *handle)
{
        int64_t end = now_ms() + CONNECT_MS;

        while (nbd_aio_is_connecting(handle)) {
                int64_t left = end - now_ms();

                if (left <= 0)
                        return -ETIMEDOUT;
                if (nbd_poll(handle, (int)left) < 0)
                        return -EIO;
        }
        return nbd_aio_is_ready(handle) ? 0 : -EIO;
}

static int connect_once(const struct live_file *file, struct nbd_handle **ret)
{
        _cleanup_free_ char *uri = uri_of(file);
        struct nbd_handle *handle = uri ? nbd_create() : NULL;
        int r = -EIO;

        if (!uri) {
                remember_why(file, "the daemon serves no NBD");
                return -EIO;
        }
        if (handle && nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
                nbd_aio_connect_uri(handle, uri) == 0)
                r = wait_connected(handle);
        if (r < 0) {
                const char *why = nbd_get_error();

                remember_why(file,
                        r == -ETIMEDOUT ? "the daemon does not answer"
                                : why   ? why
                                        : "it is not served");
                if (handle)
                        nbd_close(handle);
                return -EIO;
        }
        remember_why(file, "");
        *ret = handle;
        return 0;
}

static bool daemon_is_there(struct live_daemon *daemon)
{
        MUTEX_GUARD(&daemon->lock);
        return daemon->is_there;
}

/* --- the pool */

/* *ret is NULL where a connection is to be made. */
static void take_idle(struct live_file *file, struct nbd_handle **ret)
{
        MUTEX_GUARD(&file->lock);
        while (file->n_idle == 0 && file->n_handles == MAX_HANDLES)
                pthread_cond_wait(&file->freed, &file->lock);
        if (file->n_idle > 0) {
                *ret = file->idle[--file->n_idle];
                return;
        }
        file->n_handles++;
        *ret = NULL;
}

static void drop_handle(struct live_file *file, struct nbd_handle *handle)
{
        if (handle)
                nbd_close(handle);
        MUTEX_GUARD(&file->lock);
        file->n_handles--;
        pthread_cond_signal(&file->freed);
}

static void give_handle(struct live_file *file, struct nbd_handle *handle)
{
        pthread_mutex_lock(&file->lock);
        if (file->n_users > 0) {
                file->idle[file->n_idle++] = handle;
                pthread_cond_signal(&file->freed);
                handle = NULL;
        }
        pthread_mutex_unlock(&file->lock);
        if (handle) {
                nbd_shutdown(handle, 0);
                drop_handle(file, handle);
        }
}

/* --- asking */

/* ESHUTDOWN is what a server says that is about to end: its successor may say more. */
static bool is_answer(int r)
{
        return r != -ENOTCONN && r != -ESHUTDOWN;
}

typedef int (*ask_fn)(struct nbd_handle *handle, void *opaque);

/* Asks on a connection of the file's. 0, what the server answered as -errno, or -EIO when it cannot be
 * asked: a dead connection is made anew, for as long as a restart takes. */
static int ask(struct live_file *file, ask_fn fn, void *opaque)
{
        int64_t end = now_ms() + PATIENCE_MS;
        int r;

        for (;;) {
                const struct timespec pause = {.tv_nsec = PAUSE_NS};
                struct nbd_handle *handle;
                bool fresh;

                take_idle(file, &handle);
                fresh = !handle;
                r = fresh ? connect_once(file, &handle) : 0;
                if (r == 0) {
                        r = fn(handle, opaque);
                        if (is_answer(r) && nbd_aio_is_ready(handle)) {
                                give_handle(file, handle);
                                return r;
                        }
                        remember_why(file, "the connection ended");
                        if (r == 0) { /* all was said before it ended */
                                drop_handle(file, handle);
                                return 0;
                        }
                }
                drop_handle(file, handle);
                if (!fresh)
                        continue; /* the others may have died with it: each is tried once */
                if (now_ms() >= end || !daemon_is_there(file->daemon))
                        return -EIO;
                nanosleep(&pause, NULL);
        }
}

struct read_request {
        char *data;
        size_t length;
        uint64_t offset;
};

static int error_of_server(void)
{
        int code = nbd_get_errno();

        return code > 0 ? -code : -EIO;
}

/* In pieces, all of them under way at once. None is when it answers, but for -ENOTCONN: then the handle must be
 * closed before the buffer goes. */
static int ask_read(struct nbd_handle *handle, void *opaque)
{
        const struct read_request *request = opaque;
        int64_t cookies[MAX_PIECES];
        size_t n = 0, step = PIECE;
        int r = 0;

        while (step * MAX_PIECES < request->length)
                step *= 2;
        for (size_t done = 0; done < request->length; done += step) {
                cookies[n] = nbd_aio_pread(handle, request->data + done,
                        MIN_OF(step, request->length - done), request->offset + done,
                        NBD_NULL_COMPLETION, 0);
                if (cookies[n] < 0) {
                        r = error_of_server();
                        break;
                }
                n++;
        }
        for (size_t i = 0; i < n; i++) {
                int done;

                while ((done = nbd_aio_command_completed(handle, (uint64_t)cookies[i])) == 0)
                        if (nbd_poll(handle, -1) < 0)
                                return -ENOTCONN;
                if (done < 0 && r == 0)
                        r = error_of_server();
        }
        return r;
}

struct map_request {
        uint64_t length, offset;
        bool known, hole;
        uint64_t answer;
};

static int take_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
        size_t n_entries, int *error)
{
        struct map_request *request = opaque;

        if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != request->offset)
                return 0;
        for (size_t i = 0; i + 1 < n_entries; i += 2) {
                bool hole = entries[i + 1] & LIBNBD_STATE_ZERO;

                if (!request->known)
                        request->hole = hole;
                else if (request->hole != hole)
                        break;
                request->known = true;
                request->answer += entries[i];
        }
        return 0;
}

static int ask_map(struct nbd_handle *handle, void *opaque)
{
        struct map_request *request = opaque;
        uint64_t length = MIN_OF(request->length, (uint64_t)MAX_STATUS);

        request->known = false;
        request->answer = 0;
        if (nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1 &&
                nbd_block_status(handle, length, request->offset,
                        (nbd_extent_callback){.callback = take_extents, .user_data = request},
                        0) < 0)
                return error_of_server();
        if (!request->known || request->answer == 0) {
                request->hole = false;
                request->answer = length;
        }
        return 0;
}

/* --- the file */

static uint64_t file_size(void *closure)
{
        struct live_file *file = closure;

        return atomic_load(&file->size);
}

/* A live disk's is now, whenever it is asked for: nobody knows that it has not changed. */
static void file_mtime(void *closure, struct timespec *ret)
{
        const struct live_file *file = closure;

        if (file->now)
                clock_gettime(CLOCK_REALTIME, ret);
        else
                *ret = file->mtime;
}

/* How much of it is no hole would take long to count. Less than the size: so copying programs look. */
static uint64_t file_allocated(void *closure)
{
        uint64_t size = file_size(closure);

        return size > SECTOR_SIZE ? size - SECTOR_SIZE : size;
}

static int ask_nothing(struct nbd_handle *handle, void *opaque)
{
        int64_t size = nbd_get_size(handle);

        if (size >= 0)
                *(uint64_t *)opaque = (uint64_t)size;
        return 0;
}

static int file_open(void *closure, bool writable, void **ret_handle)
{
        struct live_file *file = closure;
        uint64_t size = file_size(file);
        int r;

        if (writable)
                return -EROFS;
        pthread_mutex_lock(&file->lock);
        file->n_users++;
        pthread_mutex_unlock(&file->lock);
        /* It opens only if it can be read. */
        r = ask(file, ask_nothing, &size);
        if (r < 0)
                live_file_ops.release(file, NULL);
        else
                atomic_store(&file->size, size);
        *ret_handle = NULL;
        return r;
}

static void file_release(void *closure, void *handle)
{
        struct live_file *file = closure;
        struct nbd_handle *idle[MAX_HANDLES];
        unsigned n = 0;

        pthread_mutex_lock(&file->lock);
        if (--file->n_users == 0) {
                n = file->n_idle;
                memcpy(idle, file->idle, sizeof(idle));
                file->n_idle = 0;
        }
        pthread_mutex_unlock(&file->lock);
        for (unsigned i = 0; i < n; i++) {
                nbd_shutdown(idle[i], 0);
                drop_handle(file, idle[i]);
        }
}

static int file_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        struct read_request request = {.data = data, .length = length, .offset = offset};

        return ask(closure, ask_read, &request);
}

static int file_map(void *closure, void *handle, uint64_t length, uint64_t offset, bool *ret_data,
        uint64_t *ret_length)
{
        struct map_request request = {.length = length, .offset = offset};
        int r = ask(closure, ask_map, &request);

        if (r < 0)
                return r;
        *ret_data = !request.hole;
        *ret_length = MIN_OF(request.answer, length);
        return 0;
}

static void file_free(void *closure)
{
        live_file_free(closure);
}

const struct vhdfuse_file_ops live_file_ops = {
        .size = file_size,
        .mtime = file_mtime,
        .allocated = file_allocated,
        .open = file_open,
        .release = file_release,
        .read = file_read,
        .map = file_map,
        .free = file_free,
};
