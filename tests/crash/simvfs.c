/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/simvfs.h"

#include <assert.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

struct sim_sqlite_file {
        sqlite3_file base;
        struct file *file;
        bool sync_name; /* its name is not durable yet, and its first sync makes it so */
        bool remove;    /* when it is closed */
};

static struct fs *current_fs;

static struct sim_sqlite_file *of(sqlite3_file *file)
{
        return (struct sim_sqlite_file *)file;
}

static int code_of(int r, int otherwise)
{
        return r == 0 ? SQLITE_OK : r == -ENOSPC ? SQLITE_FULL : otherwise;
}

static int sim_close(sqlite3_file *file)
{
        struct sim_sqlite_file *f = of(file);

        if (f->remove)
                fs_unlink(f->file->fs, f->file->path);
        f->file = file_close(f->file);
        return SQLITE_OK;
}

static int sim_read(sqlite3_file *file, void *data, int length, sqlite3_int64 offset)
{
        ssize_t n = file_read(of(file)->file, data, (size_t)length, (uint64_t)offset, 0);

        if (n < 0)
                return SQLITE_IOERR_READ;
        if (n < length) {
                memset((char *)data + n, 0, (size_t)(length - n));
                return SQLITE_IOERR_SHORT_READ;
        }
        return SQLITE_OK;
}

static int sim_write(sqlite3_file *file, const void *data, int length, sqlite3_int64 offset)
{
        return code_of(file_write(of(file)->file, data, (size_t)length, (uint64_t)offset, 0),
                SQLITE_IOERR_WRITE);
}

static int sim_truncate(sqlite3_file *file, sqlite3_int64 size)
{
        return code_of(file_truncate(of(file)->file, (uint64_t)size), SQLITE_IOERR_TRUNCATE);
}

static int sim_sync(sqlite3_file *file, int flags)
{
        struct sim_sqlite_file *f = of(file);

        if (file_sync(f->file) < 0)
                return SQLITE_IOERR_FSYNC;
        if (f->sync_name && fs_sync_directory(f->file->fs, f->file->path) < 0)
                return SQLITE_IOERR_DIR_FSYNC;
        f->sync_name = false;
        return SQLITE_OK;
}

static int sim_size(sqlite3_file *file, sqlite3_int64 *ret)
{
        uint64_t size;

        if (file_size_get(of(file)->file, &size) < 0)
                return SQLITE_IOERR_FSTAT;
        *ret = (sqlite3_int64)size;
        return SQLITE_OK;
}

static int sim_lock(sqlite3_file *file, int level)
{
        return SQLITE_OK;
}

static int sim_check_lock(sqlite3_file *file, int *ret)
{
        *ret = 0;
        return SQLITE_OK;
}

static int sim_control(sqlite3_file *file, int op, void *arg)
{
        return SQLITE_NOTFOUND;
}

static int sim_sector_size(sqlite3_file *file)
{
        return 512;
}

static int sim_characteristics(sqlite3_file *file)
{
        return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static const sqlite3_io_methods methods = {
        .iVersion = 1,
        .xClose = sim_close,
        .xRead = sim_read,
        .xWrite = sim_write,
        .xTruncate = sim_truncate,
        .xSync = sim_sync,
        .xFileSize = sim_size,
        .xLock = sim_lock,
        .xUnlock = sim_lock,
        .xCheckReservedLock = sim_check_lock,
        .xFileControl = sim_control,
        .xSectorSize = sim_sector_size,
        .xDeviceCharacteristics = sim_characteristics,
};

static bool is_there(const char *path)
{
        struct file *file = NULL;
        bool there = file_open(current_fs, path, FILE_READ, &file, NULL) == 0;

        file_close(file);
        return there;
}

static int sim_open(
        sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *ret_flags)
{
        struct sim_sqlite_file *f = of(file);
        const int logs = SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL;
        bool create = flags & SQLITE_OPEN_CREATE;

        *f = (struct sim_sqlite_file){.remove = flags & SQLITE_OPEN_DELETEONCLOSE};
        assert(name); /* temp_store=MEMORY: no files without a name */
        f->sync_name = create && (flags & logs);
        if (file_open(current_fs, name, FILE_WRITE | (create ? FILE_CREATE : 0), &f->file, NULL) <
                0)
                return SQLITE_CANTOPEN;
        f->base.pMethods = &methods;
        if (ret_flags)
                *ret_flags = flags;
        return SQLITE_OK;
}

static int sim_delete(sqlite3_vfs *vfs, const char *name, int sync_directory)
{
        int r = fs_unlink(current_fs, name);

        if (r == -ENOENT)
                return SQLITE_IOERR_DELETE_NOENT;
        if (r == 0 && sync_directory)
                r = fs_sync_directory(current_fs, name);
        return code_of(r, SQLITE_IOERR_DELETE);
}

static int sim_access(sqlite3_vfs *vfs, const char *name, int flags, int *ret)
{
        *ret = is_there(name);
        return SQLITE_OK;
}

static int sim_full_path(sqlite3_vfs *vfs, const char *name, int size, char *ret)
{
        snprintf(ret, (size_t)size, "%s", name);
        return SQLITE_OK;
}

/* The same each time: a failing state is found again. */
static int sim_randomness(sqlite3_vfs *vfs, int size, char *ret)
{
        memset(ret, 7, (size_t)size);
        return size;
}

static int sim_sleep(sqlite3_vfs *vfs, int microseconds)
{
        return microseconds;
}

static int sim_time(sqlite3_vfs *vfs, double *ret)
{
        *ret = 2460000.5;
        return SQLITE_OK;
}

static int sim_last_error(sqlite3_vfs *vfs, int size, char *ret)
{
        return 0;
}

void simvfs_use(struct fs *fs)
{
        static sqlite3_vfs vfs = {
                .iVersion = 1,
                .szOsFile = sizeof(struct sim_sqlite_file),
                .mxPathname = 512,
                .zName = SIMVFS_NAME,
                .xOpen = sim_open,
                .xDelete = sim_delete,
                .xAccess = sim_access,
                .xFullPathname = sim_full_path,
                .xRandomness = sim_randomness,
                .xSleep = sim_sleep,
                .xCurrentTime = sim_time,
                .xGetLastError = sim_last_error,
        };

        if (!sqlite3_vfs_find(SIMVFS_NAME) && sqlite3_vfs_register(&vfs, 0) != SQLITE_OK)
                assert(!"SQLite takes a VFS");
        current_fs = fs;
}
