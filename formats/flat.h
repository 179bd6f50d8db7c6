/* SPDX-License-Identifier: Apache-2.0 */
/* flat.h - a disk that lies in its file as it is: offset X of the disk is offset X of the file.
 *
 * What a raw image and a fixed VHD have in common: nothing is allocated and nothing describes the
 * data, so mapping is the identity, a flush round (E3) is one fdatasync, and an answered write
 * survives its process without a redo file (E4). What is left of the rules is E5: after the first
 * failed sync the image is poisoned, here and beyond this process's death (formats/poison.h).
 *
 * Units      bytes.
 * Ownership  a struct flat lives inside the image's struct. The file stays the image's.
 * Errors     0 or -errno; -EROFS: not open for writing; -EIO: poisoned.
 * Threads    all but flat_open and flat_close may be called from many at once.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/format.h"
#include "formats/poison.h"

struct flat {
        /* immutable after open */
        struct file *file;
        uint64_t size;
        bool unclean; /* read-only, and there is the mark of a writer */
        bool lost;    /* there is poison: what was answered may not be here */

        /* NULL: read-only. Ended by flat_settle with the lock held, when nobody writes any more. */
        struct poison *poison;

        /* guarded by lock */
        pthread_mutex_t lock;
        pthread_cond_t round_ended;
        uint64_t started, ended; /* numbers of flush rounds */
        uint64_t first_failed;   /* the round whose sync failed; 0: none */
        bool running;
};

/* The first @size bytes of @file as a disk. With @writable the caller holds the write lock.
 * *ret_writable is @writable, or false where a sync failed since boot and nobody has checked the
 * image: then *warning (ERROR_MESSAGE_MAX bytes) says so. Syncs what a dead writer left (E4).
 * On failure there is nothing to close. */
int flat_open(struct flat *flat, struct file *file, uint64_t size, bool writable,
        bool *ret_writable, char *warning, struct error *err);

/* As struct format's close: @clean flushes, and the mark of a writer goes; the result is that of
 * the flush. Everything is let go of in any case. */
int flat_close(struct flat *flat, bool clean, struct error *err);

/* As the members of struct format of the same names. */
int flat_settle(struct flat *flat, struct error *err);
int flat_map(
        struct flat *flat, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret);
int flat_prepare(struct flat *flat, uint64_t offset, uint64_t length, uint64_t *ret_file_offset,
        bool *ret_zero);
int flat_complete(struct flat *flat, uint64_t offset, uint64_t length, bool *ret_changed);
bool flat_is_durable(struct flat *flat, uint64_t offset, uint64_t length);
int flat_flush(struct flat *flat);
void flat_poison(struct flat *flat, int code);
