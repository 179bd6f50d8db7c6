/* SPDX-License-Identifier: Apache-2.0 */
/* marks.c - what a supervisor leaves for the one that comes after its death: a word in a file beside QEMU's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/supervisor/internal.h"

int path_of(struct supervisor *supervisor, const char *name, char **ret, struct error *err)
{
        return vm_path(&supervisor->options, supervisor->id, name, ret, err);
}

/* A death leaves the old word or the new one. */
int mark_set(struct supervisor *supervisor, const char *name, const char *word, struct error *err)
{
        _cleanup_free_ char *path = NULL, *new = NULL;
        _cleanup_fd_ int fd = -1;
        int r = path_of(supervisor, name, &path, err);

        if (r < 0)
                return r;
        if (asprintf(&new, "%s.new", path) < 0) {
                new = NULL;
                return fail(err, ENOMEM, "no memory to write '%s'", path);
        }
        fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 || dprintf(fd, "%s\n", word) < 0 || rename(new, path) < 0) {
                r = fail_os(err, errno ? errno : EIO, "cannot write '%s'", path);
                unlink(new);
                return r;
        }
        return 0;
}

bool mark_get(struct supervisor *supervisor, const char *name, char *ret, size_t size)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        ssize_t n;

        if (path_of(supervisor, name, &path, NULL) < 0)
                return false;
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return false;
        n = read(fd, ret, size - 1);
        ret[n > 0 ? n : 0] = '\0';
        ret[strcspn(ret, "\n")] = '\0';
        return true;
}

void mark_end(struct supervisor *supervisor, const char *name)
{
        _cleanup_free_ char *path = NULL;

        if (path_of(supervisor, name, &path, NULL) == 0)
                unlink(path);
}
