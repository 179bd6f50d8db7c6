/* SPDX-License-Identifier: Apache-2.0 */
/* The session around libfuse's: options, threads, signals.
 *
 *      mount -> run -> (umount by somebody) ------------------------------------> ended
 *                 \-> (signal) detached: no new user, what is open is served
 *                       \-> (last file closed) ---------------------------------> ended
 *                       \-> (LINGER_SECONDS, or a second signal) cut off: the
 *                           files that are open answer ENOTCONN ----------------> ended
 */
#include "fuse/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fuse/internal.h"
#include "fuse/mountpoint.h"

#define LINGER_SECONDS 5u
#define WAKE_NS        20000000L
#define OPTIONS_MAX    4096u

/* More than there can be requests that wait for the kernel to forget something (tree.h): all that it
 * has in the background, and one a thread for each file that is written to. Threads are made as they
 * are needed. */
#define MAX_THREADS (4 * VHDFUSE_MAX_BACKGROUND)

#define WAKE_MAIN    SIGUSR1 /* interrupts libfuse's wait */
#define WAKE_WATCHER SIGUSR2 /* tells the watcher that there is nothing to watch any more */

struct vhdfuse_session {
        struct vhdfuse_mount mount;
        struct fuse_session *fuse;
        char *mountpoint;
        void (*in_use)(void *opaque, unsigned seconds);
        bool mounted;
        pthread_t main;
        _Atomic bool ended; /* libfuse's loop is over */
};

static const int end_signals[] = {SIGTERM, SIGINT, SIGHUP};

static void watched_signals(sigset_t *ret)
{
        sigemptyset(ret);
        for (size_t i = 0; i < sizeof(end_signals) / sizeof(end_signals[0]); i++)
                sigaddset(ret, end_signals[i]);
        sigaddset(ret, WAKE_WATCHER);
}

static void on_wake(int number)
{
}

void vhdfuse_session_block_signals(void)
{
        /* Without SA_RESTART: what it interrupts is to look again. */
        const struct sigaction action = {.sa_handler = on_wake};
        sigset_t set;

        watched_signals(&set);
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        sigaction(WAKE_MAIN, &action, NULL);
}

/* --- what libfuse says goes into our sentence */

static pthread_mutex_t said_lock = PTHREAD_MUTEX_INITIALIZER;
static char said[256]; /* guarded by said_lock */

/* It says one sentence in pieces. */
static void on_log(enum fuse_log_level level, const char *format, va_list ap)
        __attribute__((format(printf, 2, 0)));

static void on_log(enum fuse_log_level level, const char *format, va_list ap)
{
        size_t n;

        MUTEX_GUARD(&said_lock);
        n = strlen(said);
        vsnprintf(said + n, sizeof(said) - n, format, ap);
        said[strcspn(said, "\n")] = '\0';
}

static int fail_fuse(struct error *err, int code, const char *what, const char *mountpoint)
{
        const char *text;

        MUTEX_GUARD(&said_lock);
        text = strncmp(said, "fuse: ", 6) == 0 ? said + 6 : said;
        if (text[0])
                return fail(err, code, "%s '%s': %s", what, mountpoint, text);
        return fail(err, code, "%s '%s'", what, mountpoint);
}

/* --- options */

bool vhdfuse_options_have(const char *options, const char *word)
{
        size_t length = strlen(word);

        for (const char *at = options; at && *at;) {
                size_t n = strcspn(at, ",");

                if (n == length && strncmp(at, word, n) == 0)
                        return true;
                at += n + (at[n] == ',');
        }
        return false;
}

/* @text with what would end an option or be eaten in it escaped. */
static void append_escaped(char *options, size_t size, const char *text)
{
        size_t n = strlen(options);

        for (; *text && n + 3 < size; text++) {
                if (*text == ',' || *text == '\\')
                        options[n++] = '\\';
                options[n++] = *text;
        }
        options[n] = '\0';
}

static int make_arguments(
        const struct vhdfuse_session_options *options, struct fuse_args *ret, struct error *err)
{
        const char *given = options->options ? options->options : "";
        bool others = vhdfuse_options_have(given, "allow_other") ||
                vhdfuse_options_have(given, "allow_root");
        char text[OPTIONS_MAX];

        if (strlen(given) + strlen(options->source) * 2 + 256 > sizeof(text))
                return fail(err, E2BIG, "the mount options are too long");
        snprintf(text, sizeof(text), "%s%ssubtype=%s,max_read=%u,%sfsname=", given,
                given[0] ? "," : "", VHDFUSE_SUBTYPE, VHDFUSE_IO_MAX,
                others ? "default_permissions," : "");
        append_escaped(text, sizeof(text), options->source);
        if (options->read_only)
                strcat(text, ",ro");
        if (fuse_opt_add_arg(ret, VHDFUSE_SUBTYPE) < 0 || fuse_opt_add_arg(ret, "-o") < 0 ||
                fuse_opt_add_arg(ret, text) < 0)
                return fail(err, ENOMEM, "no memory for the mount options");
        return 0;
}

/* --- mounting */

/* The kernel reads ahead 128 KiB; with more, whoever reads on and on has fewer requests. Only root may
 * say so, and nothing depends on it. */
static void read_far_ahead(const char *mountpoint)
{
        struct statx st;
        char path[64];
        FILE *f;

        /* Without asking us, who do not answer yet. */
        if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0)
                return;
        snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", st.stx_dev_major,
                st.stx_dev_minor);
        f = fopen(path, "we");
        if (!f)
                return;
        fprintf(f, "%u", VHDFUSE_IO_MAX >> 10);
        fclose(f);
}

int vhdfuse_session_mount(const struct vhdfuse_session_options *options,
        struct vhdfuse_session **ret, struct error *err)
{
        _cleanup_(vhdfuse_session_freep) struct vhdfuse_session *session =
                calloc(1, sizeof(*session));
        struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
        int r;

        if (!session)
                return fail(err, ENOMEM, "no memory for a mount");
        session->mount = (struct vhdfuse_mount){options->tree, options->statfs, options->opaque};
        session->in_use = options->in_use;
        session->mountpoint = realpath(options->mountpoint, NULL);
        if (!session->mountpoint)
                return fail_os(err, errno, "cannot mount at '%s'", options->mountpoint);
        r = make_arguments(options, &args, err);
        if (r == 0) {
                said[0] = '\0';
                fuse_set_log_func(on_log);
                session->fuse =
                        fuse_session_new(&args, &vhdfuse_ops, sizeof(vhdfuse_ops), &session->mount);
                if (!session->fuse)
                        r = fail_fuse(err, EINVAL, "cannot mount at", options->mountpoint);
        }
        fuse_opt_free_args(&args);
        if (r < 0)
                return r;
        if (fuse_session_mount(session->fuse, session->mountpoint) < 0)
                return fail_fuse(err, errno ? errno : EIO, "cannot mount at", options->mountpoint);
        session->mounted = true;
        read_far_ahead(session->mountpoint);
        *ret = TAKE_PTR(session);
        return 0;
}

struct vhdfuse_session *vhdfuse_session_free(struct vhdfuse_session *session)
{
        if (!session)
                return NULL;
        if (session->mounted)
                fuse_session_unmount(session->fuse);
        if (session->fuse)
                fuse_session_destroy(session->fuse);
        free(session->mountpoint);
        free(session);
        return NULL;
}

/* --- running */

/* A signal, or 0: there is nothing to watch any more, or the time is over. */
static int wait_for_signal(unsigned seconds)
{
        struct timespec timeout = {.tv_sec = (time_t)seconds};
        sigset_t set;
        int number;

        watched_signals(&set);
        do
                number = seconds ? sigtimedwait(&set, NULL, &timeout) : sigwaitinfo(&set, NULL);
        while (number < 0 && errno == EINTR);
        return number < 0 || number == WAKE_WATCHER ? 0 : number;
}

/* libfuse looks whether it is to end only when its wait is interrupted, which may be just before. */
static void cut_off(struct vhdfuse_session *session)
{
        const struct timespec pause = {.tv_nsec = WAKE_NS};

        fuse_session_exit(session->fuse);
        while (!atomic_load(&session->ended)) {
                pthread_kill(session->main, WAKE_MAIN);
                nanosleep(&pause, NULL);
        }
}

static bool has_ended_soon(struct vhdfuse_session *session)
{
        const struct timespec pause = {.tv_nsec = WAKE_NS};

        for (int i = 0; i < 10 && !atomic_load(&session->ended); i++)
                nanosleep(&pause, NULL);
        return atomic_load(&session->ended);
}

static void *watch(void *opaque)
{
        struct vhdfuse_session *session = opaque;

        if (wait_for_signal(0) == 0)
                return NULL;
        if (mountpoint_detach(session->mountpoint, true, NULL) == 0 && !has_ended_soon(session)) {
                if (session->in_use)
                        session->in_use(session->mount.opaque, LINGER_SECONDS);
                wait_for_signal(LINGER_SECONDS);
        }
        cut_off(session);
        return NULL;
}

/* A request that is read just when the last user's umount ends the connection fails with ECONNABORTED: that is
 * an end as any other. With the mount still there somebody broke it off (/sys/fs/fuse/connections). */
static bool was_unmounted(const struct vhdfuse_session *session, int r)
{
        return r == -ECONNABORTED &&
                (access(session->mountpoint, F_OK) == 0 ||
                        (errno != ENOTCONN && errno != ECONNABORTED));
}

static int loop(struct vhdfuse_session *session, struct error *err)
{
        struct fuse_loop_config *config = fuse_loop_cfg_create();
        int r;

        if (!config)
                return fail(err, ENOMEM, "no memory for the threads of '%s'", session->mountpoint);
        fuse_loop_cfg_set_clone_fd(config, 1);
        fuse_loop_cfg_set_max_threads(config, MAX_THREADS);
        r = fuse_session_loop_mt(session->fuse, config);
        fuse_loop_cfg_destroy(config);
        if (was_unmounted(session, r))
                return 0;
        if (r < 0)
                return fail_os(err, -r, "the mount at '%s' broke", session->mountpoint);
        return 0; /* ended, or a signal's number */
}

int vhdfuse_session_run(struct vhdfuse_session *session, struct error *err)
{
        pthread_t watcher;
        int r;

        session->main = pthread_self();
        r = pthread_create(&watcher, NULL, watch, session);
        if (r != 0)
                return fail_os(err, r, "cannot start a thread");
        vhdfuse_tree_set_session(session->mount.tree, session->fuse);
        r = loop(session, err);
        vhdfuse_tree_set_session(session->mount.tree, NULL);
        atomic_store(&session->ended, true);
        pthread_kill(watcher, WAKE_WATCHER);
        pthread_join(watcher, NULL);
        fuse_session_unmount(session->fuse);
        session->mounted = false;
        return r;
}
