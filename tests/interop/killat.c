/* SPDX-License-Identifier: Apache-2.0 */
/* killat - preloaded into the daemon: once the file $KILLAT holds a number N, the process ends with SIGKILL
 * right before its Nth call from then on that a file system remembers: a name made or taken away, bytes made
 * durable. The daemon's workers, which have the same library, count nothing. What was counted is in
 * $KILLAT.count, so that a test knows when there are no more steps. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_broker(void)
{
        static int known; /* 1 yes, 2 no */
        char line[4096] = "";
        ssize_t n;
        int fd;

        if (known)
                return known == 1;
        fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
        if (fd >= 0)
                close(fd);
        known = n > 0 && strstr(line + strlen(line) + 1, "--state-dir") == line + strlen(line) + 1
                ? 1
                : 2;
        return known == 1;
}

static void put_number(const char *path, const char *ending, long number)
{
        char name[4200], text[32];
        int fd, n;

        snprintf(name, sizeof(name), "%s%s", path, ending);
        fd = (int)syscall(
                SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        n = snprintf(text, sizeof(text), "%-12ld\n", number); /* over the last one, in one write */
        if (fd < 0)
                return;
        if (write(fd, text, (size_t)n) < 0)
                abort();
        close(fd);
}

static void step(void)
{
        static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
        static struct timespec seen;
        static long count;
        struct stat st;
        const char *path = getenv("KILLAT");
        char text[32] = "";
        int fd;

        if (!path || !is_broker())
                return;
        pthread_mutex_lock(&lock);
        fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                if (read(fd, text, sizeof(text) - 1) < 0 || fstat(fd, &st) < 0)
                        abort();
                close(fd);
                /* Another number: it counts from here on. */
                if (st.st_mtim.tv_sec != seen.tv_sec || st.st_mtim.tv_nsec != seen.tv_nsec)
                        count = 0;
                seen = st.st_mtim;
                put_number(path, ".count", ++count);
                if (count == strtol(text, NULL, 10))
                        kill(getpid(), SIGKILL);
        }
        pthread_mutex_unlock(&lock);
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

int fdatasync(int fd)
{
        step();
        return REAL(int, "fdatasync", int)(fd);
}

int fsync(int fd)
{
        step();
        return REAL(int, "fsync", int)(fd);
}

int mkdir(const char *path, mode_t mode)
{
        step();
        return REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

int rmdir(const char *path)
{
        step();
        return REAL(int, "rmdir", const char *)(path);
}

int unlink(const char *path)
{
        step();
        return REAL(int, "unlink", const char *)(path);
}

int rename(const char *from, const char *to)
{
        step();
        return REAL(int, "rename", const char *, const char *)(from, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
        step();
        return REAL(int, "renameat2", int, const char *, int, const char *, unsigned)(
                from_fd, from, to_fd, to, flags);
}

ssize_t copy_file_range(
        int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags)
{
        step();
        return REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned)(
                from, from_at, to, to_at, length, flags);
}
