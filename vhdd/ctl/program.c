/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/program.h"

#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

#define SAID_SIZE 4096u

extern char **environ;

bool program_find(const char *name, char *ret, size_t size)
{
        static const char more[] = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
        const char *path = getenv("PATH");
        _cleanup_free_ char *places = NULL;
        char *rest, *place, file[PATH_MAX];

        if (asprintf(&places, "%s:%s", path ? path : "", more) < 0) {
                places = NULL;
                return false;
        }
        for (rest = places; (place = strsep(&rest, ":"));) {
                snprintf(file, sizeof(file), "%s/%s", place, name);
                if (place[0] != '/' || access(file, X_OK) < 0)
                        continue;
                if (ret)
                        snprintf(ret, size, "%s", file);
                return true;
        }
        return false;
}

/* Its last words are the ones that say why; an unlinked file takes any number of them. */
static int open_said(void)
{
        return memfd_create("stderr", MFD_CLOEXEC);
}

/* The end of it, without the line feeds behind the last line. */
static void read_said(int fd, char ret[SAID_SIZE])
{
        off_t size = lseek(fd, 0, SEEK_END);
        off_t from = size > (off_t)SAID_SIZE - 1 ? size - (off_t)SAID_SIZE + 1 : 0;
        ssize_t n = pread(fd, ret, SAID_SIZE - 1, from);

        for (n = n < 0 ? 0 : n; n > 0 && (ret[n - 1] == '\n' || ret[n - 1] == ' '); n--)
                ;
        ret[n] = '\0';
}

static const char *last_line(const char *said)
{
        const char *line = strrchr(said, '\n');

        return line ? line + 1 : said;
}

static int spawn(const char *file, char *const argv[], int said, pid_t *ret)
{
        posix_spawn_file_actions_t actions;
        int r;

        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
        posix_spawn_file_actions_adddup2(&actions, 0, 1);
        posix_spawn_file_actions_adddup2(&actions, said, 2);
        r = posix_spawn(ret, file, &actions, NULL, argv, environ);
        posix_spawn_file_actions_destroy(&actions);
        return -r;
}

static int run_file(const char *file, char *const argv[], int *ret_code, char said[SAID_SIZE],
        struct error *err)
{
        _cleanup_fd_ int fd = open_said();
        pid_t pid, waited;
        int status = 0, r;

        if (fd < 0)
                return fail_os(err, errno, "cannot run %s", argv[0]);
        fflush(NULL);
        r = spawn(file, argv, fd, &pid);
        if (r < 0)
                return fail_os(err, -r, "cannot run '%s'", file);
        do
                waited = waitpid(pid, &status, 0);
        while (waited < 0 && errno == EINTR);
        read_said(fd, said);
        if (waited != pid || !WIFEXITED(status))
                return fail(err, EINTR, "%s was ended by signal %d", argv[0], WTERMSIG(status));
        *ret_code = WEXITSTATUS(status);
        return 0;
}

static int run(char *const argv[], int *ret_code, char said[SAID_SIZE], struct error *err)
{
        char file[PATH_MAX];

        if (!program_find(argv[0], file, sizeof(file)))
                return fail(err, ENOENT, "%s is not installed", argv[0]);
        return run_file(file, argv, ret_code, said, err);
}

int program_run(char *const argv[], int *ret_code, struct error *err)
{
        char said[SAID_SIZE];

        return run(argv, ret_code, said, err);
}

int program_do(char *const argv[], struct error *err)
{
        char said[SAID_SIZE];
        int code, r = run(argv, &code, said, err);

        if (r < 0 || code == 0)
                return r;
        return fail(err, EIO, "%s ended with %d: %.700s", argv[0], code,
                said[0] ? last_line(said) : "it did not say why");
}

/* "vhdctl: sentence", and behind it the hint, set off by blanks. */
static int take_failure(char *said, struct error *err)
{
        static const char hint_head[] = "        ", head[] = "vhdctl: ";
        char *hint = NULL, *line = (char *)(uintptr_t)last_line(said);

        if (line > said && strncmp(line, hint_head, sizeof(hint_head) - 1) == 0) {
                hint = line + sizeof(hint_head) - 1;
                line[-1] = '\0';
                line = (char *)(uintptr_t)last_line(said);
        }
        if (strncmp(line, head, sizeof(head) - 1) == 0)
                line += sizeof(head) - 1;
        fail(err, EIO, "%.900s", line[0] ? line : "vhdfuse did not say why it failed");
        if (hint)
                error_set_hint(err, "%.900s", hint);
        return -EIO;
}

int program_run_ours(const char *file, char *const argv[], struct error *err)
{
        char said[SAID_SIZE];
        int code, r = run_file(file, argv, &code, said, err);

        if (r < 0)
                return r;
        if (code != 0)
                return take_failure(said, err);
        if (said[0])
                fprintf(stderr, "%s\n", said);
        return 0;
}

unsigned long long process_started(pid_t pid)
{
        char path[64], line[1024], *p;
        unsigned long long ticks = 0;
        FILE *file;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        file = fopen(path, "re");
        if (!file)
                return 0;
        p = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
        fclose(file);
        /* Behind the name: the state, which is 3, and so on to 22. One that is a zombie has ended. */
        if (!p || p[1] != ' ' || p[2] == 'Z' || p[2] == 'X')
                return 0;
        for (int field = 2; p && field < 22; field++)
                p = strchr(p + 1, ' ');
        return p && sscanf(p, "%llu", &ticks) == 1 ? ticks : 0;
}

char *process_name(pid_t pid, char *ret, size_t size)
{
        char path[64];
        FILE *file;

        snprintf(ret, size, "a process");
        snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
        file = fopen(path, "re");
        if (!file)
                return ret;
        if (fgets(ret, (int)size, file))
                ret[strcspn(ret, "\n")] = '\0';
        fclose(file);
        return ret;
}
