/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated disk as a `struct fs`: each call may fail on demand, is reported to the test, and
 * lets the scheduler run others before, inside and after it. */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk_internal.h"

/* A region that somebody has open: its memory is the engine's to change without a call. */
struct live_region {
        const char *name; /* NULL: free */
        uint8_t *memory;
        uint64_t size;
        unsigned n_open;
};

struct sim_file {
        struct file file;
        uint32_t inode;
        enum file_lock lock;
        struct sim_file *next; /* of all open ones of this fs */
};

struct sim_fs_private {
        struct sim_fs fs;
        struct live_region regions[MAX_REGIONS];
        struct sim_file *files;
        unsigned char
                *writing; /* by inode: a write is under way (as ext4's and XFS's inode lock) */
        uint32_t n_writing;
};

static struct sim_fs_private *private_of(struct fs *fs)
{
        return (struct sim_fs_private *)fs;
}

static struct sim_fs *sim_of(struct fs *fs)
{
        return (struct sim_fs *)fs;
}

static struct sim_file *sim_file_of(struct file *file)
{
        return (struct sim_file *)file;
}

const char *sim_call_to_string(enum sim_call call)
{
        static const char *const names[SIM_N_CALLS] = {"open", "read", "write", "sync", "truncate",
                "punch", "reserve", "rename", "unlink", "sync-directory", "region"};

        return call < SIM_N_CALLS ? names[call] : "?";
}

static bool ends_with(const char *path, const char *end)
{
        size_t n = strlen(path), m = strlen(end);

        return m <= n && strcmp(path + n - m, end) == 0;
}

/* Is this call the one that shall fail? */
static bool call_fails(struct sim_fs *fs, enum sim_call call, const char *path)
{
        fs->calls[call]++;
        if (!fs->fault_armed || fs->fault.call != call ||
                (fs->fault.path && !ends_with(path, fs->fault.path)))
                return false;
        if (fs->n_fault_calls++ < fs->fault.at)
                return false;
        if (!fs->fault.forever)
                fs->fault_armed = false;
        fs->fault_hit = true;
        return true;
}

static void changed(struct sim_fs *fs, enum sim_call call)
{
        fs->time++;
        if (fs->on_change)
                fs->on_change(fs, call);
        schedule_point();
}

__attribute__((format(printf, 2, 3))) static void trace(struct sim_fs *fs, const char *format, ...)
{
        va_list list;

        if (!fs->trace)
                return;
        fprintf(fs->trace, "  [%u] ", schedule_self());
        va_start(list, format);
        vfprintf(fs->trace, format, list);
        va_end(list);
        fputc('\n', fs->trace);
}

/* ---- bytes ---- */

static struct inode *own_inode(struct file *file)
{
        return world_own(sim_of(file->fs)->world, sim_file_of(file)->inode);
}

static struct inode *look_inode(struct file *file)
{
        return sim_of(file->fs)->world->inodes[sim_file_of(file)->inode];
}

static size_t iov_length(const struct iovec *iov, int n)
{
        size_t length = 0;

        for (int i = 0; i < n; i++)
                length += iov[i].iov_len;
        return length;
}

static ssize_t sim_readv(
        struct file *file, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        struct sim_fs *fs = sim_of(file->fs);
        ssize_t total = 0;
        bool fails;

        schedule_point();
        if ((flags & FILE_NOWAIT) && fs->nowait_again)
                return -EAGAIN;
        fails = call_fails(fs, SIM_READ, file->path);
        trace(fs, "read %s %llu+%zu%s", file->path, (unsigned long long)offset, iov_length(iov, n),
                fails ? " FAILS" : "");
        if (fails)
                return -fs->fault.error;
        for (int i = 0; i < n; i++) {
                struct inode *inode = look_inode(file);
                uint64_t left = offset < inode->size ? inode->size - offset : 0;
                size_t part = MIN_OF(left, iov[i].iov_len);

                map_read(&inode->cache, iov[i].iov_base, part, offset);
                offset += part;
                total += (ssize_t)part;
        }
        return total;
}

/* Pages that the write would take, against the space there is. */
static bool no_space(struct sim_fs *fs, const struct inode *inode, uint64_t offset, size_t length)
{
        uint64_t used = 0, more = 0;

        if (fs->space == 0)
                return false;
        for (uint64_t k = offset / SIM_PAGE; k * SIM_PAGE < offset + length; k++)
                more += map_get(&inode->cache, k) ? 0 : SIM_PAGE;
        if (more == 0)
                return false;
        for (uint32_t i = 0; i < fs->world->n_inodes; i++)
                for (uint32_t k = 0; fs->world->inodes[i] && k < fs->world->inodes[i]->cache.n; k++)
                        used += fs->world->inodes[i]->cache.pages[k] ? SIM_PAGE : 0;
        return used + more > fs->space;
}

static void begin_writing(struct sim_fs_private *private, uint32_t inode)
{
        if (inode >= private->n_writing) {
                private->writing = must(realloc(private->writing, inode + 1));
                memset(private->writing + private->n_writing, 0, inode + 1 - private->n_writing);
                private->n_writing = inode + 1;
        }
        while (private->writing[inode])
                schedule_wait(&private->writing);
        private->writing[inode] = 1;
}

static void end_writing(struct sim_fs_private *private, uint32_t inode)
{
        private->writing[inode] = 0;
        schedule_wake(&private->writing);
}

/* The next piece's end: a page's, or now and then a sector's. */
static uint64_t piece_end(struct sim_fs *fs, uint64_t at, uint64_t end)
{
        uint64_t unit = random_chance(&fs->random, 75) ? SIM_PAGE : SIM_SECTOR;

        if (!fs->split_writes)
                return end;
        return MIN_OF(end, round_down_to(at, unit) + unit);
}

static ssize_t write_pieces(
        struct file *file, const uint8_t *data, size_t length, uint64_t offset, unsigned flags)
{
        struct sim_fs *fs = sim_of(file->fs);
        uint64_t end = offset + length;
        uint32_t seq = 0;

        for (uint64_t at = offset; at < end;) {
                uint64_t to = piece_end(fs, at, end);

                if (no_space(fs, look_inode(file), at, to - at))
                        return at > offset ? (ssize_t)(at - offset) : -ENOSPC;
                seq = ++fs->world->seq;
                inode_write(own_inode(file), seq, data + (at - offset), to - at, at);
                at = to;
                if (at == end && (flags & FILE_DSYNC))
                        break;
                changed(fs, SIM_WRITE);
        }
        if (flags & FILE_DSYNC) {
                changed(fs, SIM_WRITE);
                inode_fold(own_inode(file), seq, (uint32_t)(offset / SIM_SECTOR),
                        (uint32_t)((end - 1) / SIM_SECTOR), false);
                changed(fs, SIM_SYNC);
        }
        return (ssize_t)length;
}

static ssize_t sim_writev(
        struct file *file, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        struct sim_fs *fs = sim_of(file->fs);
        size_t length = iov_length(iov, n), done = 0;
        _cleanup_free_ uint8_t *data = must(malloc(length + 1));
        bool fails;
        ssize_t r;

        assert(file->flags & FILE_WRITE);
        schedule_point();
        if ((flags & FILE_NOWAIT) && fs->nowait_again)
                return -EAGAIN;
        fails = call_fails(fs, SIM_WRITE, file->path);
        trace(fs, "write %s %llu+%zu%s%s", file->path, (unsigned long long)offset, length,
                flags & FILE_DSYNC ? " dsync" : "", fails ? " FAILS" : "");
        if (fails && (fs->fault.failure == SIM_FAIL || length <= SIM_SECTOR))
                return -fs->fault.error;
        if (fails)
                length = round_down_to(length / 2 + SIM_SECTOR - 1, SIM_SECTOR);
        for (int i = 0; i < n && done < length; i++) {
                size_t part = MIN_OF(length - done, iov[i].iov_len);

                memcpy(data + done, iov[i].iov_base, part);
                done += part;
        }
        if (length == 0)
                return 0;
        begin_writing(private_of(file->fs), sim_file_of(file)->inode);
        r = write_pieces(file, data, length, offset, flags);
        end_writing(private_of(file->fs), sim_file_of(file)->inode);
        return r;
}

static int sim_sync(struct file *file)
{
        struct sim_fs *fs = sim_of(file->fs);
        bool fails = call_fails(fs, SIM_SYNC, file->path);
        uint32_t upto = fs->world->seq;
        struct inode *inode;

        trace(fs, "sync %s%s", file->path, fails ? " FAILS" : "");
        changed(fs, SIM_SYNC);
        if (fails) {
                inode = own_inode(file);
                for (uint32_t i = 0; fs->fault.failure == SIM_LOSE && i < inode->n_versions; i++)
                        if (inode->versions[i].seq <= upto && !inode->versions[i].truncation)
                                inode->versions[i].lost = true;
                changed(fs, SIM_SYNC);
                return -fs->fault.error;
        }
        inode_fold(own_inode(file), upto, 0, UINT32_MAX, true);
        trace(fs, "synced %s", file->path);
        changed(fs, SIM_SYNC);
        return 0;
}

static int sim_truncate(struct file *file, uint64_t size)
{
        struct sim_fs *fs = sim_of(file->fs);
        bool fails;

        assert(file->flags & FILE_WRITE);
        schedule_point();
        fails = call_fails(fs, SIM_TRUNCATE, file->path);
        trace(fs, "truncate %s %llu%s", file->path, (unsigned long long)size,
                fails ? " FAILS" : "");
        if (fails)
                return -fs->fault.error;
        begin_writing(private_of(file->fs), sim_file_of(file)->inode);
        inode_truncate(own_inode(file), ++fs->world->seq, size);
        end_writing(private_of(file->fs), sim_file_of(file)->inode);
        changed(fs, SIM_TRUNCATE);
        return 0;
}

static int sim_punch(struct file *file, uint64_t offset, uint64_t length)
{
        struct sim_fs *fs = sim_of(file->fs);
        struct inode *inode;
        bool fails;

        assert(file->flags & FILE_WRITE);
        schedule_point();
        fails = call_fails(fs, SIM_PUNCH, file->path);
        trace(fs, "punch %s %llu+%llu%s", file->path, (unsigned long long)offset,
                (unsigned long long)length, fails ? " FAILS" : "");
        if (fails)
                return -fs->fault.error;
        if (fs->no_punch)
                return -EOPNOTSUPP;
        begin_writing(private_of(file->fs), sim_file_of(file)->inode);
        inode = own_inode(file);
        if (offset < inode->size)
                inode_zero(
                        inode, ++fs->world->seq, offset, MIN_OF(inode->size, offset + length), 0);
        end_writing(private_of(file->fs), sim_file_of(file)->inode);
        changed(fs, SIM_PUNCH);
        return 0;
}

static int sim_reserve(struct file *file, uint64_t offset, uint64_t length)
{
        struct sim_fs *fs = sim_of(file->fs);

        schedule_point();
        if (call_fails(fs, SIM_RESERVE, file->path))
                return -fs->fault.error;
        trace(fs, "reserve %s %llu+%llu", file->path, (unsigned long long)offset,
                (unsigned long long)length);
        if (fs->no_reserve)
                return -EOPNOTSUPP;
        if (no_space(fs, look_inode(file), offset, length))
                return -ENOSPC;
        if (offset + length > look_inode(file)->size)
                inode_truncate(own_inode(file), ++fs->world->seq, offset + length);
        changed(fs, SIM_RESERVE);
        return 0;
}

static int sim_seek(struct file *file, uint64_t offset, bool data, uint64_t *ret)
{
        struct inode *inode = look_inode(file);

        schedule_point();
        while (offset < inode->size && (map_get(&inode->cache, offset / SIM_PAGE) != NULL) != data)
                offset = round_down_to(offset, SIM_PAGE) + SIM_PAGE;
        *ret = MIN_OF(offset, inode->size);
        return 0;
}

static int sim_stat(struct file *file, struct file_stat *ret)
{
        struct inode *inode = look_inode(file);

        *ret = (struct file_stat){.size = inode->size,
                .device = 1,
                .inode = sim_file_of(file)->inode + 1,
                .mtime_s = sim_of(file->fs)->time,
                .is_regular = true};
        for (uint32_t i = 0; i < inode->cache.n; i++)
                ret->allocated += inode->cache.pages[i] ? SIM_PAGE : 0;
        return 0;
}

static bool locks_clash(enum file_lock a, enum file_lock b)
{
        return (a == FILE_LOCK_WRITE && (b == FILE_LOCK_WRITE || b == FILE_LOCK_READ)) ||
                (b == FILE_LOCK_WRITE && a == FILE_LOCK_READ);
}

static int sim_lock(struct file *file, enum file_lock mode)
{
        struct sim_file *self = sim_file_of(file);

        for (struct sim_file *f = private_of(file->fs)->files; f; f = f->next)
                if (f != self && f->inode == self->inode && locks_clash(mode, f->lock))
                        return -EBUSY;
        self->lock = mode;
        return 0;
}

static void sim_close(struct file *file)
{
        struct sim_fs_private *private = private_of(file->fs);
        struct sim_file **p = &private->files;

        while (*p != sim_file_of(file))
                p = &(*p)->next;
        *p = (*p)->next;
        private->fs.n_open--;
        free(file->path);
        free(file);
}

static const struct file_ops sim_file_ops = {
        .readv = sim_readv,
        .writev = sim_writev,
        .sync = sim_sync,
        .truncate = sim_truncate,
        .punch = sim_punch,
        .reserve = sim_reserve,
        .seek = sim_seek,
        .stat = sim_stat,
        .lock = sim_lock,
        .close = sim_close,
};

/* ---- names ---- */

/* The folder's own dots mean nothing here: "/d/./x" and "/d//x" are "/d/x". */
static const char *plain_path(const char *path)
{
        char plain[4096];
        size_t n = 0;

        for (size_t i = 0; path[i] && n < sizeof(plain) - 1; i++) {
                if (path[i] == '/' && path[i + 1] == '/')
                        continue;
                if (path[i] == '/' && path[i + 1] == '.' && path[i + 2] == '/') {
                        i++;
                        continue;
                }
                plain[n++] = path[i];
        }
        plain[n] = 0;
        return sim_intern(plain);
}

static uint32_t new_inode(struct sim_world *world)
{
        if (world->n_inodes == world->room_inodes) {
                world->room_inodes = 2 * world->room_inodes + 4;
                world->inodes =
                        must(realloc(world->inodes, world->room_inodes * sizeof(struct inode *)));
        }
        world->inodes[world->n_inodes] = inode_new();
        return world->n_inodes++;
}

static int sim_open(
        struct fs *base, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        struct sim_fs_private *private = private_of(base);
        struct sim_fs *fs = sim_of(base);
        struct sim_file *file;
        uint32_t inode;
        int64_t at;

        path = plain_path(path);
        if (call_fails(fs, SIM_OPEN, path))
                return -fs->fault.error;
        at = find_name(fs->world->names, fs->world->n_names, path);
        if (at < 0 && !(flags & FILE_CREATE))
                return -ENOENT;
        if (at >= 0 && (flags & FILE_CREATE) && (flags & FILE_EXCLUSIVE))
                return -EEXIST;
        if (at < 0) {
                inode = new_inode(fs->world);
                trace(fs, "create %s", path);
                add_name_event(fs->world, NAME_LINK, path, NULL, inode);
                changed(fs, SIM_OPEN);
        } else {
                inode = fs->world->names[at].inode;
        }
        file = must(calloc(1, sizeof(*file)));
        file->file = (struct file){.ops = &sim_file_ops,
                .fs = base,
                .path = must(strdup(path)),
                .fd = -1,
                .flags = flags};
        file->inode = inode;
        file->next = private->files;
        private->files = file;
        fs->n_open++;
        if ((flags & FILE_TRUNCATE) && look_inode(&file->file)->size > 0) {
                inode_truncate(own_inode(&file->file), ++fs->world->seq, 0);
                changed(fs, SIM_TRUNCATE);
        }
        *ret = &file->file;
        return 0;
}

static int sim_rename(struct fs *base, const char *from, const char *to, bool replace)
{
        struct sim_fs *fs = sim_of(base);
        int64_t at;

        from = plain_path(from);
        to = plain_path(to);
        schedule_point();
        if (call_fails(fs, SIM_RENAME, from))
                return -fs->fault.error;
        at = find_name(fs->world->names, fs->world->n_names, from);
        if (at < 0)
                return -ENOENT;
        if (!replace && find_name(fs->world->names, fs->world->n_names, to) >= 0)
                return -EEXIST;
        trace(fs, "rename %s %s", from, to);
        add_name_event(fs->world, NAME_RENAME, from, to, fs->world->names[at].inode);
        changed(fs, SIM_RENAME);
        return 0;
}

static int sim_unlink(struct fs *base, const char *path)
{
        struct sim_fs *fs = sim_of(base);

        path = plain_path(path);
        schedule_point();
        if (call_fails(fs, SIM_UNLINK, path))
                return -fs->fault.error;
        if (find_name(fs->world->names, fs->world->n_names, path) < 0)
                return -ENOENT;
        trace(fs, "unlink %s", path);
        add_name_event(fs->world, NAME_UNLINK, path, NULL, 0);
        changed(fs, SIM_UNLINK);
        return 0;
}

static int sim_sync_directory(struct fs *base, const char *path)
{
        struct sim_fs *fs = sim_of(base);
        uint32_t upto = fs->world->seq;

        path = plain_path(path);
        trace(fs, "sync directory of %s", path);
        changed(fs, SIM_SYNC_DIRECTORY);
        if (call_fails(fs, SIM_SYNC_DIRECTORY, path))
                return -fs->fault.error;
        fold_names(fs->world, path, upto);
        changed(fs, SIM_SYNC_DIRECTORY);
        return 0;
}

/* ---- regions ---- */

static struct live_region *find_live(struct sim_fs_private *private, const char *name)
{
        for (unsigned i = 0; i < MAX_REGIONS; i++)
                if (private->regions[i].name == name)
                        return &private->regions[i];
        return NULL;
}

/* What the memory holds goes to the world, if it is not there already: true if it was not. */
static bool save_region(struct sim_world *world, const struct live_region *live)
{
        int i = find_region(world, live->name);

        if (i < 0) {
                assert(world->n_regions < MAX_REGIONS);
                i = (int)world->n_regions++;
                world->regions[i] = (struct saved_region){.name = live->name};
        } else if (blob_shows(world->regions[i].blob, live->memory, live->size)) {
                return false;
        } else {
                blob_unref(world->regions[i].blob);
        }
        world->regions[i].blob = blob_new(live->memory, live->size);
        return true;
}

static void forget_region(struct sim_world *world, const char *name)
{
        int i = find_region(world, name);

        if (i < 0)
                return;
        blob_unref(world->regions[i].blob);
        world->regions[i] = world->regions[--world->n_regions];
}

static struct live_region *bring_to_life(
        struct sim_fs_private *private, const char *name, uint64_t size)
{
        struct live_region *live = find_live(private, NULL);
        int i = find_region(private->fs.world, name);

        assert(live != NULL);
        if (i >= 0)
                size = private->fs.world->regions[i].blob->size;
        *live = (struct live_region){
                .name = name, .memory = must(calloc(1, size + 1)), .size = size};
        if (i >= 0)
                memcpy(live->memory, private->fs.world->regions[i].blob->data,
                        private->fs.world->regions[i].blob->used);
        return live;
}

static int sim_region_open(struct fs *base, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        struct sim_fs_private *private = private_of(base);
        struct sim_fs *fs = sim_of(base);
        struct live_region *live;
        struct region *region;
        bool is_there;

        name = sim_intern(name);
        live = find_live(private, name);
        is_there = live || find_region(fs->world, name) >= 0;
        if (call_fails(fs, SIM_REGION, beside))
                return fail_os(err, fs->fault.error, "cannot open the region '%s'", name);
        if (create && is_there)
                return -EEXIST;
        if (!create && !is_there)
                return -ENOENT;
        if (fs->region_limit)
                size = MIN_OF(size, fs->region_limit);
        if (!live)
                live = bring_to_life(private, name, size);
        live->n_open++;
        trace(fs, "%s region %s", create ? "make" : "open", name);
        region = must(calloc(1, sizeof(*region)));
        *region = (struct region){
                .fs = base, .data = live->memory, .size = live->size, .path = must(strdup(name))};
        changed(fs, SIM_REGION);
        *ret = region;
        return 0;
}

static void sim_region_close(struct region *region, bool remove)
{
        struct sim_fs_private *private = private_of(region->fs);
        struct live_region *live = find_live(private, sim_intern(region->path));

        assert(live != NULL);
        trace(&private->fs, "%s region %s", remove ? "remove" : "close", region->path);
        if (remove)
                forget_region(private->fs.world, live->name);
        else
                save_region(private->fs.world, live);
        if (--live->n_open == 0) {
                free(live->memory);
                *live = (struct live_region){0};
        }
        free(region->path);
        free(region);
        changed(&private->fs, SIM_REGION);
}

static void sim_boot_id(struct fs *fs, uint8_t ret[16])
{
        memset(ret, 0x5a, 16);
        memcpy(ret, &sim_of(fs)->world->boot, sizeof(uint32_t));
}

static int64_t sim_now(struct fs *fs)
{
        return 1700000000 + sim_of(fs)->time;
}

static const struct fs_ops sim_fs_ops = {
        .open = sim_open,
        .rename = sim_rename,
        .unlink = sim_unlink,
        .sync_directory = sim_sync_directory,
        .region_open = sim_region_open,
        .region_close = sim_region_close,
        .boot_id = sim_boot_id,
        .now = sim_now,
};

struct sim_fs *sim_fs_new(struct sim_world *world)
{
        struct sim_fs_private *private = must(calloc(1, sizeof(*private)));

        private->fs.fs.ops = &sim_fs_ops;
        private->fs.world = world;
        return &private->fs;
}

struct sim_fs *sim_fs_free(struct sim_fs *fs)
{
        struct sim_fs_private *private = (struct sim_fs_private *)fs;

        if (!fs)
                return NULL;
        for (unsigned i = 0; i < MAX_REGIONS; i++)
                free(private->regions[i].memory);
        sim_world_free(fs->world);
        free(private->writing);
        free(private);
        return NULL;
}

struct sim_world *sim_fs_snapshot(struct sim_fs *fs)
{
        struct sim_fs_private *private = (struct sim_fs_private *)fs;

        for (unsigned i = 0; i < MAX_REGIONS; i++)
                if (private->regions[i].name)
                        save_region(fs->world, &private->regions[i]);
        return sim_world_clone(fs->world);
}

bool sim_fs_regions_changed(struct sim_fs *fs)
{
        struct sim_fs_private *private = (struct sim_fs_private *)fs;
        bool yes = false;

        for (unsigned i = 0; i < MAX_REGIONS; i++)
                if (private->regions[i].name)
                        yes |= save_region(fs->world, &private->regions[i]);
        return yes;
}

void sim_fs_arm(struct sim_fs *fs, const struct sim_fault *fault)
{
        fs->fault = *fault;
        fs->fault_armed = true;
        fs->fault_hit = false;
        fs->n_fault_calls = 0;
}
