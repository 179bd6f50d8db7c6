/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/newfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/ctl/signals.h"

#define N_TRIES 32

struct newfile {
        char *path, *part;
        struct file *file;
        struct file
                *replaced; /* what goes when the new one has its name, locked until then; or NULL */
        bool replace;
};

bool newfile_stopped(void)
{
        return signals_stopped();
}

/* Nobody has it open, and, as long as *@ret is, nobody will. */
static int take_replaced(const char *path, struct file **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(host_fs(), path, FILE_WRITE, &file, err);

        if (r < 0)
                return r;
        r = file_lock_set(file, FILE_LOCK_WRITE, err);
        if (r < 0)
                return fail_prefix(err, r, "'%s' cannot be replaced", path);
        *ret = TAKE_PTR(file);
        return 0;
}

static int check_not_in_use(const char *path, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;

        return take_replaced(path, &file, err);
}

int newfile_check(const char *path, bool replace, struct error *err)
{
        struct stat st;
        int r;

        if (path[0] == '\0' || path[strlen(path) - 1] == '/')
                return fail(err, EINVAL, "'%s' is no name for a file", path);
        if (stat(path, &st) < 0) {
                if (errno != ENOENT)
                        r = fail_os(err, errno, "cannot look at '%s'", path);
                else if (lstat(path, &st) == 0)
                        r = fail(err, ENOENT, "'%s' is a symbolic link to nothing", path);
                else
                        return 0;
                error_set_file(err, path);
                return r;
        }
        if (!S_ISREG(st.st_mode)) {
                r = fail(err, EINVAL, "'%s' exists and is no regular file, so nothing replaces it",
                        path);
                error_set_file(err, path);
                return r;
        }
        if (!replace) {
                r = fail(err, EEXIST, "'%s' exists already", path);
                error_set_file(err, path);
                error_set_hint(err, "--force replaces it");
                return r;
        }
        return check_not_in_use(path, err);
}

static int open_part(struct newfile *newfile, struct error *err)
{
        static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
        int r = -EEXIST;

        for (unsigned i = 0; i < N_TRIES && r == -EEXIST; i++) {
                uint8_t random[6];
                char name[7] = {0};

                if (getrandom(random, sizeof(random), 0) != sizeof(random))
                        return fail_os(err, errno, "no random numbers for a temporary name");
                for (size_t c = 0; c < sizeof(random); c++)
                        name[c] = letters[random[c] % 32];
                free(newfile->part);
                if (asprintf(&newfile->part, "%s.%s.part", newfile->path, name) < 0) {
                        newfile->part = NULL;
                        return fail(err, ENOMEM, "no memory for a name");
                }
                r = file_open(host_fs(), newfile->part, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE,
                        &newfile->file, err);
        }
        return r;
}

static void free_newfile(struct newfile *newfile)
{
        signals_remove(NULL);
        signals_unwatch();
        file_close(newfile->file);
        file_close(newfile->replaced);
        free(newfile->path);
        free(newfile->part);
        free(newfile);
}

int newfile_begin(const char *path, bool replace, struct newfile **ret, struct error *err)
{
        struct newfile *newfile;
        int r = newfile_check(path, replace, err);

        if (r < 0)
                return r;
        newfile = calloc(1, sizeof(*newfile));
        if (!newfile)
                return fail(err, ENOMEM, "no memory for a new file");
        newfile->replace = replace;
        /* What a link points to is replaced, not the link. */
        newfile->path = realpath(path, NULL);
        if (!newfile->path && errno == ENOENT)
                newfile->path = strdup(path);
        signals_watch();
        r = newfile->path ? 0 : fail(err, ENOMEM, "no memory for a name");
        if (r == 0 && replace && access(newfile->path, F_OK) == 0)
                r = take_replaced(newfile->path, &newfile->replaced, err);
        if (r == 0)
                r = open_part(newfile, err);
        if (r < 0) {
                free_newfile(newfile);
                return r;
        }
        signals_remove(newfile->part);
        *ret = newfile;
        return 0;
}

struct file *newfile_file(struct newfile *newfile)
{
        return newfile->file;
}

const char *newfile_part(const struct newfile *newfile)
{
        return newfile->part;
}

int newfile_commit(struct newfile *newfile, struct error *err)
{
        int r;

        if (newfile_stopped()) {
                r = fail(err, EINTR, "stopped by a signal");
                newfile_abandon(newfile);
                return r;
        }
        r = file_sync(newfile->file);
        if (r < 0) {
                r = fail_os(err, -r, "cannot sync '%s'", newfile->part);
                newfile_abandon(newfile);
                return r;
        }
        r = fs_rename(host_fs(), newfile->part, newfile->path, newfile->replace);
        if (r < 0) {
                r = fail_os(
                        err, -r, "cannot give '%s' its name '%s'", newfile->part, newfile->path);
                newfile_abandon(newfile);
                return r;
        }
        signals_remove(NULL);
        r = fs_sync_directory(host_fs(), newfile->path);
        if (r < 0)
                r = fail_os(err, -r, "'%s' is whole, but its directory cannot be synced",
                        newfile->path);
        free_newfile(newfile);
        return r;
}

void newfile_abandon(struct newfile *newfile)
{
        if (!newfile)
                return;
        fs_unlink(host_fs(), newfile->part);
        free_newfile(newfile);
        signals_end();
}
