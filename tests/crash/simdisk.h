/* SPDX-License-Identifier: Apache-2.0 */
/* simdisk.h - a disk in memory that knows what a power cut could leave of it.
 *
 * Three things:
 *   struct sim_world  the machine's storage at one instant: files as their page cache shows them,
 *                     what of each sector is durable and which newer values it has had since, names
 *                     and their unsynced changes, regions. A clone is cheap (pages are shared).
 *   struct sim_fs     a `struct fs` over a world, for the engine: counts and reports each call, fails
 *                     on demand, lets the scheduler run others inside a call.
 *   struct sim_cut    an enumerator of the worlds that a power cut at this instant may leave.
 *
 * What a cut leaves, per file and apart from all other files:
 *   - a sector has the durable value or any that it was given since the last completed sync began
 *     (any subset, any order, torn between any two sectors);
 *   - a write that makes the file longer makes the new size durable only with its last sector (as
 *     ext4 ordered, XFS and btrfs do);
 *   - an unsynced truncation happened or not, before all later changes of size;
 *   - an unsynced creation, rename or unlink happened or not, whatever the file's own syncs said;
 *   - what a failed sync should have written may be missing for ever, though the cache shows it and
 *     later syncs succeed;
 *   - regions are gone, and the boot id is another one.
 * A process's death leaves the world as it is, whatever is under way: a call of more than one page
 * reaches the cache page by page, so half a write is one of the instants.
 *
 * Units      bytes, unless a name says _sectors.
 * Ownership  worlds, fs and cuts are ended by their _free. sim_fs_new takes its world over.
 * Errors     memory is not expected to run out: a test ends with an assertion.
 * Threads    only under tests/crash/schedule.h, or from one thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/file.h"
#include "tests/crash/random.h"

#define SIM_PAGE   4096u
#define SIM_SECTOR 512u

struct sim_world;

struct sim_world *sim_world_new(void);
struct sim_world *sim_world_clone(const struct sim_world *world);
struct sim_world *sim_world_free(struct sim_world *world); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct sim_world *, sim_world_free)

/* All of it is durable from here on, names too. */
void sim_world_settle(struct sim_world *world);
/* The world as a cut leaves it when everything unsynced got lost or, @kept, everything was kept. */
struct sim_world *sim_world_cut(const struct sim_world *world, bool kept);

/* A hash of what an opener could see: names, sizes, bytes, regions. */
uint64_t sim_world_hash(const struct sim_world *world);
/* And of what is durable of it: two worlds that look the same and differ here are one until the
 * power is cut. */
uint64_t sim_world_durable_hash(const struct sim_world *world);
/* The same of one file's bytes alone; 0 if there is none of that name. */
uint64_t sim_world_file_hash(const struct sim_world *world, const char *path);
bool sim_world_has(const struct sim_world *world, const char *path);
uint64_t sim_world_size(const struct sim_world *world, const char *path);
/* Reads what the cache shows; bytes past the end are zeros. */
void sim_world_read(const struct sim_world *world, const char *path, void *data, size_t length,
                    uint64_t offset);
/* Calls back with each name there is. */
void sim_world_each(const struct sim_world *world,
                    void (*call)(void *opaque, const char *path, uint64_t size), void *opaque);
unsigned sim_world_n_regions(const struct sim_world *world);
/* Do the two show the same regions? */
bool sim_world_same_regions(const struct sim_world *a, const struct sim_world *b);
/* A clone of @now in which only a part of the record that was written to a region since @before is
 * there: a process that died between two stores. NULL if it was not one record that changed. */
struct sim_world *sim_world_torn_regions(const struct sim_world *before,
                                         const struct sim_world *now, struct random *random);

/* The power cuts of one instant. */
struct sim_cut;

struct sim_cut *sim_cut_new(const struct sim_world *world);
struct sim_cut *sim_cut_free(struct sim_cut *cut); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct sim_cut *, sim_cut_free)
/* Independent choices that a cut makes here: runs of sectors with the same history, truncations,
 * changes of names. */
unsigned sim_cut_n_units(const struct sim_cut *cut);
/* How many combinations of them there are, UINT64_MAX if more than fit. */
uint64_t sim_cut_n_states(const struct sim_cut *cut);
/* The combination number @index, below sim_cut_n_states(). */
struct sim_world *sim_cut_state(const struct sim_cut *cut, uint64_t index);
/* One of them by chance: each unit apart, or a point in time, or all but one, or torn inside of
 * units. */
struct sim_world *sim_cut_sample(const struct sim_cut *cut, struct random *random);

enum sim_call {
        SIM_OPEN,
        SIM_READ,
        SIM_WRITE,
        SIM_SYNC,
        SIM_TRUNCATE,
        SIM_PUNCH,
        SIM_RESERVE,
        SIM_RENAME,
        SIM_UNLINK,
        SIM_SYNC_DIRECTORY,
        SIM_REGION,
        SIM_N_CALLS,
};

enum sim_failure {
        SIM_FAIL,  /* the call answers the error and does nothing */
        SIM_SHORT, /* a write does half and answers so; the error comes if nothing is left to do */
        SIM_LOSE,  /* a sync: answers the error, and what it should have written counts as clean */
};

/* What goes wrong, once: the call number @at (0 the first) of the kind on a path that ends in @path
 * (NULL: any). */
struct sim_fault {
        enum sim_call call;
        enum sim_failure failure;
        int error; /* positive errno */
        unsigned at;
        const char *path;
        bool forever; /* and each one behind it */
};

struct sim_fs {
        struct fs fs;
        struct sim_world *world;
        /* The test's: called after each change of the world, and before and after a sync. */
        void (*on_change)(struct sim_fs *fs, enum sim_call call);
        void *opaque;
        bool split_writes;     /* a write reaches the cache piece by piece, others run in between */
        bool nowait_again;     /* FILE_NOWAIT is answered with -EAGAIN */
        bool no_punch;         /* the file system has no holes: -EOPNOTSUPP */
        bool no_reserve;       /* nor fallocate */
        uint64_t space;        /* bytes that there are; 0: no bound. -ENOSPC beyond */
        uint64_t region_limit; /* regions are made no larger than this; 0: no bound */
        struct sim_fault fault;
        bool fault_armed, fault_hit;
        unsigned n_fault_calls;
        struct random random; /* how writes are split */
        uint64_t calls[SIM_N_CALLS];
        int64_t time;
        unsigned n_open;
        FILE *trace; /* each call, or NULL */
};

struct sim_fs *sim_fs_new(struct sim_world *world);
struct sim_fs *sim_fs_free(struct sim_fs *fs); /* files may be open still; NULL is fine */
DEFINE_CLEANUP(struct sim_fs *, sim_fs_free)
/* The world as it is now, regions included: what a process that dies here leaves. */
struct sim_world *sim_fs_snapshot(struct sim_fs *fs);
/* Have the regions changed since the last snapshot, or the last answer of yes? */
bool sim_fs_regions_changed(struct sim_fs *fs);
void sim_fs_arm(struct sim_fs *fs, const struct sim_fault *fault);
const char *sim_call_to_string(enum sim_call call);
