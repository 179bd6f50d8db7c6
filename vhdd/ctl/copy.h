/* SPDX-License-Identifier: Apache-2.0 */
/* copy.h - all bytes of a source into a new image, fast, zeros left out.
 *
 * The destination is new: what is not written there reads as zeros. Threads share one cursor over the
 * source; each takes the next piece that is not known to be zero, reads it and writes those parts
 * that are not zero after all. Where the file system can share blocks between files (XFS, btrfs), a
 * flat destination gets them without a copy.
 *
 * Units      bytes.
 * Ownership  source and sink are the caller's.
 * Errors     0 or -errno with one sentence. -EINTR: newfile_stopped().
 * Threads    copy_run() starts its own and waits for them.
 */
#pragma once

#include "chain/chain.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/source.h"

/* One of the two. */
struct sink {
        struct chain *chain; /* an image whose format says where bytes go */
        struct file *file;   /* a flat one: byte n of the disk is byte n of the file */
        const char *name;    /* for sentences */
};

int copy_run(struct source *source, const struct sink *sink, struct progress *progress,
        struct error *err);

/* Bytes of the source that are not known to be zero; stops counting beyond @enough. */
int copy_count_data(struct source *source, uint64_t enough, uint64_t *ret, struct error *err);
