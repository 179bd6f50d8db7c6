/* SPDX-License-Identifier: Apache-2.0 */
/* session.h - a tree, mounted: from the mount to its end, by umount or by a signal.
 *
 * Units      none.
 * Ownership  vhdfuse_session_mount hands out, vhdfuse_session_free ends. The tree is the caller's, and
 *            outlives the session. Texts need live during the mount only.
 * Errors     0 or -errno with one sentence.
 * Threads    the main one, with SIGTERM, SIGINT, SIGHUP and VHDFUSE_WAKE_SIGNALs blocked
 *            (vhdfuse_session_block_signals) before any thread was made. Operations run on
 *            threads of the session's own, from vhdfuse_session_run on.
 */
#pragma once

#include <stdbool.h>
#include <sys/statvfs.h>

#include "fuse/tree.h"

struct vhdfuse_session;

struct vhdfuse_session_options {
        struct vhdfuse_tree *tree;
        const char *mountpoint;
        const char *source;  /* what is mounted, for /proc/mounts */
        const char *options; /* as behind -o, for the kernel or libfuse; NULL: none */
        bool read_only;      /* whatever options say */
        /* Of the file system that holds what is mounted. May fill in part of it. NULL: all zeros */
        void (*statfs)(void *opaque, struct statvfs *ret);
        /* On the main thread's watcher, once: a signal came and the mount is in use; it goes on for so
         * many seconds. NULL: nobody asks */
        void (*in_use)(void *opaque, unsigned seconds);
        void *opaque;
};

void vhdfuse_session_block_signals(void);

/* Mounts; the kernel's requests wait until vhdfuse_session_run(). */
int vhdfuse_session_mount(const struct vhdfuse_session_options *options,
        struct vhdfuse_session **ret, struct error *err);

/* Serves until it is unmounted. SIGTERM, SIGINT and SIGHUP unmount it: what is open then is served for
 * some seconds more, or until the second signal. Not mounted any more when it returns. */
int vhdfuse_session_run(struct vhdfuse_session *session, struct error *err);

/* Unmounts what was not run. NULL is fine; always returns NULL. */
struct vhdfuse_session *vhdfuse_session_free(struct vhdfuse_session *session);
DEFINE_CLEANUP(struct vhdfuse_session *, vhdfuse_session_free)

/* Is there @word in a list of options ("a,b=c,d")? */
bool vhdfuse_options_have(const char *options, const char *word);
