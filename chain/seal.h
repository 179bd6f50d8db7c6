/* SPDX-License-Identifier: Apache-2.0 */
/* seal.h - what an image was when somebody vouched for it, to see later whether it still is.
 *
 * A child is right only over the bytes that it was made over, and the id of a parent does not change
 * when somebody writes to it. A seal is a file beside the image, NAME.vhdd-seal: size, time of
 * change, XXH3 of the metadata, and XXH3 of each block that holds data (docs/formats.md). Opening a
 * chain compares all but the blocks; check --deep compares them too.
 *
 * Units      bytes.
 * Ownership  the caller's images. Nothing is kept.
 * Errors     0 or -errno with one sentence. -ENOENT: there is no seal. -EUCLEAN: the seal itself is
 *            damaged. -EEXIST: there is one already. -EBUSY: a writer died, and its work is not done.
 *            -ESTALE: somebody changed the image while it was read.
 * Threads    one at a time for an image.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "formats/format.h"

#define SEAL_ENDING     ".vhdd-seal"
#define SEAL_NEW_ENDING ".vhdd-seal.new" /* until it is whole */

struct seal_watcher {
        void *opaque;
        /* Optional. On the calling thread: so many of so many bytes of the disk are done. */
        void (*progress)(void *opaque, uint64_t done, uint64_t total);
        /* Optional. So many bytes of the file were read since the last call. Other than 0: the answer of
         * the whole, which ends there; it has filled err. */
        int (*pace)(void *opaque, uint64_t bytes, struct error *err);
        /* Others work with the image: what was not in the page cache is not left there. */
        bool beside;
        /* Optional, for seal_compare(): one sentence for each difference. */
        void (*differs)(void *opaque, const char *sentence);
};

struct seal_facts {
        char path[4096];    /* of the seal */
        char changed[64];   /* of the image: RFC 3339, UTC, to the nanosecond */
        char sealed[64];    /* when */
        int64_t changed_ns; /* since 1970 */
        uint64_t file_size;
        uint64_t metadata;   /* XXH3; 0 for raw images */
        uint32_t block_size; /* of the pieces that are summed */
        uint64_t n_blocks;   /* that hold data */
        uint64_t contents;   /* XXH3 over all of theirs */
};

/* Reads the image whole and puts a seal beside it, in one step: there is a whole seal, or none.
 * @replace: also where there is one. The caller holds the image against writers. */
int seal_make(struct image *image, bool replace, const struct seal_watcher *watcher,
        struct seal_facts *ret, struct error *err);

/* Its two halves, for those who look once more in between whether the image is what it was. The first
 * leaves a seal that nobody looks at, whole and durable, under NAME.vhdd-seal.new; the second puts it in
 * its place, durably. @image_path: as its seal's path is formed. */
int seal_write(struct image *image, const struct seal_watcher *watcher, struct seal_facts *ret,
        struct error *err);
int seal_put(struct fs *fs, const char *image_path, bool replace, struct error *err);

/* Nobody vouches for the image any more: its seal goes, and one that is not whole, durably. */
int seal_remove(struct fs *fs, const char *image_path, struct error *err);

/* Is there a seal at all? */
bool seal_exists(struct image *image);

/* Compares, with the blocks if @deep. *ret_n: how many differences there are. */
int seal_compare(struct image *image, bool deep, const struct seal_watcher *watcher,
        uint64_t *ret_n, struct error *err);

/* For opening a chain: a sentence if there is a seal and the image does not fit it (the blocks are
 * not read), else "". Never fails: a seal that cannot be read is such a sentence. */
void seal_warning(struct image *image, char *ret, size_t ret_size);
