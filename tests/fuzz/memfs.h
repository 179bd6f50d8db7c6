/* SPDX-License-Identifier: Apache-2.0 */
/* memfs.h - one file and a few regions in memory, for fuzzers: no system call, gone at the end.
 *
 * Units      bytes.
 * Ownership  memfs_init sets up, memfs_done ends; files and regions opened in it end before.
 * Errors     as base/file.h; past MEMFS_FILE_MAX there is -ENOSPC.
 * Threads    as base/file.h; a lock inside.
 */
#pragma once

#include <pthread.h>

#include "base/file.h"

#define MEMFS_FILE_MAX (UINT64_C(256) << 20) /* address space; only what is touched takes memory */
#define MEMFS_REGIONS  4

struct memfs_region {
        char name[256];
        uint8_t *data; /* NULL: the slot is free */
        uint64_t size;
};

struct memfs {
        struct fs fs;
        pthread_mutex_t lock;
        /* guarded by lock */
        uint8_t *data;
        uint64_t size;
        struct memfs_region regions[MEMFS_REGIONS];
};

void memfs_init(struct memfs *memfs, const void *data, size_t size);
void memfs_done(struct memfs *memfs);

/* The file; @path is what it says its name is. */
struct file *memfs_open(struct memfs *memfs, const char *path, unsigned flags);
