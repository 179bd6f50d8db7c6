/* SPDX-License-Identifier: Apache-2.0 */
/* memfs.h - files in memory for the fuzzers: no system call, no trace left between two inputs.
 *
 * A file may be far longer than the bytes that it holds: what was never written reads as zeros, so
 * an input of some KiB can be an image of many MiB.
 *
 * Ownership  memfs_new hands out; memfs_free ends it with all its files, open ones too.
 * Errors     as the file calls; writing is refused past MEMFS_MAX_BYTES held.
 * Threads    the engine's own threads may read and write; opening and closing belong to one.
 */
#pragma once

#include <stddef.h>

#include "base/file.h"

#define MEMFS_MAX_BYTES   (8u << 20) /* of one file */
#define MEMFS_MAX_REGIONS 4

struct memfs;

struct memfs *memfs_new(void);
void memfs_free(struct memfs *memfs);
struct fs *memfs_fs(struct memfs *memfs);

/* Makes a file of @size bytes that begins with @head and ends with @tail. */
void memfs_add(struct memfs *memfs, const char *path, const void *head, size_t head_size,
        const void *tail, size_t tail_size, uint64_t size);
/* A hash of what the file holds and how long it is. */
uint64_t memfs_hash(struct memfs *memfs, const char *path);
bool memfs_has(struct memfs *memfs, const char *path);

/* What a dead process left: the bytes of the @index-th region, NULL if there is none. */
uint8_t *memfs_region(struct memfs *memfs, unsigned index, uint64_t *ret_size);
