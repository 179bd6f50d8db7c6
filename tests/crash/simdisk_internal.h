/* SPDX-License-Identifier: Apache-2.0 */
/* simdisk_internal.h - what simdisk.c (worlds and cuts) and simfs.c (calls) share.
 *
 * Threads    as simdisk.h.
 */
#pragma once

#include "tests/crash/simdisk.h"

#define SECTORS_A_PAGE (SIM_PAGE / SIM_SECTOR)
#define MAX_REGIONS    8u
#define MAX_NAMES      256u

struct page {
        unsigned refs;
        bool hashed;
        uint64_t hash; /* 0: all zeros */
        uint8_t data[SIM_PAGE];
};

struct page_map {
        struct page **pages; /* NULL: a hole */
        uint32_t n;
};

/* What a sector was given by one change. */
struct version {
        uint32_t sector;
        uint32_t seq;
        uint32_t truncation; /* seq of the truncation that made it zeros, or 0 */
        bool lost;           /* a sync of it failed: no later one brings it to the disk */
        struct page *page;   /* NULL: zeros */
};

struct size_change {
        uint32_t seq;
        bool is_set;     /* by truncate or fallocate; else by a write that went past the end */
        uint32_t sector; /* of such a write: its last */
        uint64_t size;
};

struct inode {
        unsigned refs;
        struct page_map cache, durable;
        uint64_t size, durable_size;
        struct version *versions;
        uint32_t n_versions, room_versions;
        struct size_change *sizes;
        uint32_t n_sizes, room_sizes;
};

struct name {
        const char *path; /* interned */
        uint32_t inode;
};

enum name_event_kind { NAME_LINK, NAME_UNLINK, NAME_RENAME };

struct name_event {
        uint32_t seq;
        enum name_event_kind kind;
        const char *path, *to;
        uint32_t inode;
};

/* Bytes of a region at one instant; zeros at the end are left out. */
struct blob {
        unsigned refs;
        uint64_t size, used, hash;
        uint8_t data[];
};

struct saved_region {
        const char *name;
        struct blob *blob;
};

struct sim_world {
        uint32_t seq;
        uint32_t boot;
        struct inode **inodes;
        uint32_t n_inodes, room_inodes;
        struct name *names, *durable_names;
        uint32_t n_names, n_durable_names;
        struct name_event *name_events;
        uint32_t n_name_events;
        struct saved_region regions[MAX_REGIONS];
        uint32_t n_regions;
};

void *must(void *memory); /* not NULL */
const char *sim_intern(const char *path);
struct page *map_get(const struct page_map *map, uint64_t index);
void map_read(const struct page_map *map, uint8_t *data, size_t length, uint64_t offset);
struct inode *inode_new(void);
/* The world's file number @index, with no other world looking at it. */
struct inode *world_own(struct sim_world *world, uint32_t index);
int64_t find_name(const struct name *names, uint32_t n, const char *path);
void add_name_event(struct sim_world *world, enum name_event_kind kind, const char *path,
                    const char *to, uint32_t inode);
/* Names in the directory of @path (NULL: all) that changed up to @upto are durable. */
void fold_names(struct sim_world *world, const char *path, uint32_t upto);

void inode_write(struct inode *inode, uint32_t seq, const uint8_t *data, size_t length,
                 uint64_t offset);
/* The bytes become zeros: by a hole punched (@truncation 0) or a truncation. */
void inode_zero(struct inode *inode, uint32_t seq, uint64_t offset, uint64_t end,
                uint32_t truncation);
void inode_truncate(struct inode *inode, uint32_t seq, uint64_t size);
/* What of the sectors was written up to @upto is durable now. @all: a sync, which covers
 * truncations; else a write with DSYNC, of these sectors alone. */
void inode_fold(struct inode *inode, uint32_t upto, uint32_t first, uint32_t last, bool all);

struct blob *blob_new(const uint8_t *data, uint64_t size);
struct blob *blob_ref(struct blob *blob);
void blob_unref(struct blob *blob);
bool blob_shows(const struct blob *blob, const uint8_t *data, uint64_t size);
int find_region(const struct sim_world *world, const char *name);
