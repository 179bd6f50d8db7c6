/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/recover.h"

#include <unistd.h>

#include "chain/beneath.h"
#include "chain/hints.h"
#include "chain/paths.h"
#include "formats/intent.h"

struct allowed {
        const struct locate_roots *roots;
        char own[PATH_TEXT_MAX]; /* the folder of the image that is opened */
};

/* Is the file that @path means one that can be reached beneath @root without following links? */
static bool is_beneath(const char *root, const char *path, struct file *file)
{
        char real[PATH_TEXT_MAX], spelled[PATH_TEXT_MAX];
        _cleanup_(file_closep) struct file *found = NULL;
        struct file_stat one, other;
        int root_fd = -1, fd = -1;
        const char *rest;
        bool is = false;

        if (path_absolute(root, real, sizeof(real)) < 0 || !path_is_beneath(path, real, &rest) ||
                beneath_open_root(real, &root_fd) < 0)
                return false;
        if (beneath_open(root_fd, rest, &fd, spelled, sizeof(spelled)) == 0 &&
                file_from_fd(fd, path, FILE_READ, &found, NULL) == 0) {
                fd = -1;
                is = file_stat_get(found, &one) == 0 && file_stat_get(file, &other) == 0 &&
                        one.device == other.device && one.inode == other.inode;
        }
        if (fd >= 0)
                close(fd);
        close(root_fd);
        return is;
}

static bool is_allowed(const struct allowed *allowed, const char *path, struct file *file)
{
        if (!hints_on_host(file))
                return true; /* who gives out these files has his own rules */
        if (is_beneath(allowed->own, path, file))
                return true;
        for (size_t i = 0; allowed->roots && i < allowed->roots->n_roots; i++)
                if (is_beneath(allowed->roots->roots[i], path, file))
                        return true;
        return false;
}

static int open_other(
        void *opaque, struct fs *fs, const char *path, struct file **ret, struct error *err)
{
        const struct allowed *allowed = opaque;
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(fs, path, FILE_WRITE | FILE_NOFOLLOW, &file, err);

        if (r == 0 && !is_allowed(allowed, path, file))
                r = fail(err, EPERM, "'%s' lies in a folder that was not allowed", path);
        if (r == 0)
                r = file_lock_set(file, FILE_LOCK_WRITE, err);
        if (r == 0)
                *ret = TAKE_PTR(file);
        return r;
}

int recover_intent(struct file *file, const struct locate_roots *roots, struct error *err)
{
        struct allowed allowed = {.roots = roots};
        struct intent_opener opener = {open_other, &allowed};
        struct file *view = NULL;
        int r = file_lock_set(file, FILE_LOCK_WRITE, err);

        if (r < 0) {
                error_set_file(err, file->path);
                return r;
        }
        if (hints_on_host(file) && hints_directory(file, allowed.own, sizeof(allowed.own)) < 0)
                allowed.own[0] = '\0';
        return intent_recover(file, true, &opener, &view, err);
}
