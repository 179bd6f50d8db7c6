/* SPDX-License-Identifier: Apache-2.0 */
/* host_memory.c - /proc/meminfo, /proc/PID/statm. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vmm-glue/memory/host_memory.h"

/* "MemTotal:       24683520 kB" */
static bool find_line(const char *text, const char *name, uint64_t *ret)
{
        size_t length = strlen(name);
        uint64_t kib;

        for (const char *line = text; line; line = strchr(line, '\n')) {
                line += *line == '\n';
                if (strncmp(line, name, length) == 0 && line[length] == ':' &&
                        sscanf(line + length + 1, "%" SCNu64, &kib) == 1 &&
                        kib <= UINT64_MAX >> 20) {
                        *ret = kib * 1024;
                        return true;
                }
        }
        return false;
}

int host_memory_parse(const char *meminfo, struct host_memory *ret, struct error *err)
{
        struct host_memory host;

        if (!find_line(meminfo, "MemTotal", &host.total))
                return fail(err, EBADMSG, "/proc/meminfo does not tell MemTotal");
        if (!find_line(meminfo, "MemAvailable", &host.available))
                return fail(err, EBADMSG, "/proc/meminfo does not tell MemAvailable");
        *ret = host;
        return 0;
}

/* The file's beginning, as text. */
static int read_proc(const char *path, char *buf, size_t size, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

        if (n < 0)
                return fail_os(err, errno, "cannot read '%s'", path);
        buf[n] = '\0';
        return 0;
}

int host_memory_read(struct host_memory *ret, struct error *err)
{
        char text[8192];
        int r = read_proc("/proc/meminfo", text, sizeof(text), err);

        return r < 0 ? r : host_memory_parse(text, ret, err);
}

uint64_t host_memory_budget(const struct host_memory *host, uint64_t resident)
{
        uint64_t part = host->total / HOST_RESERVE_PART;
        uint64_t reserve = part > HOST_RESERVE ? part : HOST_RESERVE;
        uint64_t all = host->available + resident;

        return all > reserve ? all - reserve : 0;
}

uint64_t host_memory_settle(uint64_t before, uint64_t now)
{
        if (now < before)
                return before - now < HOST_STEP_DOWN ? before : now;
        return before > 0 && now - before < HOST_STEP_UP ? before : now;
}

int host_memory_of(pid_t pid, uint64_t *ret, struct error *err)
{
        uint64_t size, resident, shared;
        char path[64], text[256];
        int r;

        snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
        r = read_proc(path, text, sizeof(text), err);
        if (r < 0)
                return r;
        if (sscanf(text, "%" SCNu64 " %" SCNu64 " %" SCNu64, &size, &resident, &shared) != 3)
                return fail(err, EBADMSG, "'%s' does not look as it should", path);
        *ret = (resident > shared ? resident - shared : 0) * (uint64_t)sysconf(_SC_PAGESIZE);
        return 0;
}
