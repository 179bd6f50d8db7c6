/* SPDX-License-Identifier: Apache-2.0 */
/* source.h - a disk to read from, wherever it is: an image with its chain, a device, an NBD export.
 *
 * Units      bytes on the guest's disk.
 * Ownership  source_open hands out, source_close ends. A returned struct file lives as long as the
 *            source.
 * Errors     0 or -errno with one sentence that names the source.
 * Threads    calls with different lanes may run at the same time; source_lanes() says how many lanes
 *            there are (an NBD server may allow one only). Opening and closing belong to one thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "chain/chain.h"
#include "vhdd/ctl/ctl.h"

#define SOURCE_MAX_LANES 8u

struct source;

struct source_extent {
        uint64_t length;
        bool zero;         /* reads as zeros */
        struct file *file; /* where it lies, or NULL if that is not known */
        uint64_t file_offset;
};

/* @what: a file, a block device, or a URI (nbd://, nbds://, nbd+unix://, ...). */
int source_open(const struct ctl *ctl, const char *what, unsigned lanes, struct source **ret,
        struct error *err);
struct source *source_close(struct source *source); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct source *, source_close)

bool source_is_uri(const char *what);
const char *source_name(const struct source *source);
uint64_t source_size(const struct source *source);
unsigned source_lanes(const struct source *source);
/* The chain, or NULL for an NBD export. */
struct chain *source_chain(struct source *source);

/* The run at @offset, at most @length long (inside the disk, not empty). */
int source_extent_get(struct source *source, unsigned lane, uint64_t offset, uint64_t length,
        struct source_extent *ret, struct error *err);
int source_read(struct source *source, unsigned lane, void *data, size_t length, uint64_t offset,
        struct error *err);

/* Reading with many requests under way on one lane (NBD only: a chain answers -EOPNOTSUPP, because a
 * read returns at once from the page cache). @done is called from source_wait() with 0 or -errno;
 * @data must stay until then. */
typedef void source_done(void *opaque, int result);
bool source_is_async(const struct source *source);
size_t source_max_request(const struct source *source); /* for source_submit() */
int source_submit(struct source *source, unsigned lane, void *data, size_t length, uint64_t offset,
        source_done *done, void *opaque, struct error *err);
/* Waits until something happened, at most @timeout_ms. */
int source_wait(struct source *source, unsigned lane, int timeout_ms, struct error *err);
