/* SPDX-License-Identifier: Apache-2.0 */
/* files.h - what one worker may have by name, and the descriptors it was given: the file policy.
 *
 * A path is opened only when it was granted, only by exactly this path, without following links, and
 * only if the file there is the one (device, inode) that was granted. With an image come the files
 * that belong to it: NAME.vhdd-intent, NAME.vhdd-seal, its redo region and mark; and to the vm its
 * switch record. Everything else is -EPERM, in a sentence that names the path.
 *
 * A reader's image that still has a redo file, because its writer died, may be written to until it has
 * none: it is settled before anybody stands on it.
 *
 * An image is locked (QEMU's byte locks) as it is opened, and its descriptor is kept until the grant
 * ends: a successor gets the same open file description, so its lock has no gap.
 *
 * Units      bytes.
 * Ownership  files_new hands out, files_free ends; descriptors that files_answer lends stay here.
 * Errors     0 or -errno with one sentence.
 * Threads    any; one lock inside, held over the system calls.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

#define FILES_MAX_REGION (UINT64_C(16) << 20)
#define FILES_MAX_ANSWER 2u /* descriptors of one answer */

struct files;

struct files_answer {
        json_t *result;
        int fds[FILES_MAX_ANSWER]; /* closed by files_answer_done */
        unsigned n_fds;
};

int files_new(const char *vm_id, struct files **ret, struct error *err);
struct files *files_free(struct files *files); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct files *, files_free)

/* @access: enum link_access (vhdd/daemon/link.h). */
int files_grant(struct files *files, const char *path, unsigned access, uint64_t device,
        uint64_t inode, struct error *err);
void files_revoke(struct files *files, const char *path);
/* Ends every grant that @keep says no to. @keep is asked under the lock: it asks nothing back. */
void files_revoke_others(
        struct files *files, bool (*keep)(void *opaque, const char *path), void *opaque);

/* A descriptor that an adopted worker has open under @path (taken over in any case). It is used, with
 * the lock that rides on it, once the path is granted, if it is the file that the grant means. */
void files_give_back(struct files *files, const char *path, int fd);

/* All that is used has been granted: what came back and was not is let go, and of the locks that came back
 * what goes beyond the grant. */
void files_drop_returned(struct files *files);

/* A worker's question, "fs.open" and so on. */
int files_answer(struct files *files, const char *method, const json_t *params,
        struct files_answer *ret, struct error *err);
void files_answer_done(struct files_answer *answer);
