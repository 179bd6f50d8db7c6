/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/connection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/cleanup.h"

#define VARIABLE        "SSH_CONNECTION="
#define MAX_GENERATIONS 64
#define MAX_ENVIRONMENT (1u << 20)

static bool take(const char *value, char ret[SSH_CONNECTION_MAX])
{
        if (!value || !value[0] || strlen(value) >= SSH_CONNECTION_MAX)
                return false;
        memcpy(ret, value, strlen(value) + 1);
        return true;
}

/* The environment that a process was started with: texts, each with its NUL. */
static bool look_at(pid_t pid, char ret[SSH_CONNECTION_MAX])
{
        _cleanup_stream_ FILE *file = NULL;
        _cleanup_free_ char *text = NULL;
        char path[64];
        size_t length;

        snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
        file = fopen(path, "re");
        text = calloc(1, MAX_ENVIRONMENT + 1);
        if (!file || !text)
                return false;
        length = fread(text, 1, MAX_ENVIRONMENT, file);
        for (char *p = text; p < text + length; p += strlen(p) + 1)
                if (strncmp(p, VARIABLE, strlen(VARIABLE)) == 0)
                        return take(p + strlen(VARIABLE), ret);
        return false;
}

/* The fourth word of /proc/PID/stat, behind the name, which may have blanks and brackets in it. */
static pid_t parent_of(pid_t pid)
{
        _cleanup_stream_ FILE *file = NULL;
        char path[64], line[512];
        const char *behind;
        int parent;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        file = fopen(path, "re");
        if (!file || !fgets(line, sizeof(line), file))
                return 0;
        behind = strrchr(line, ')');
        return behind && sscanf(behind + 1, " %*c %d", &parent) == 1 ? parent : 0;
}

bool connection_find(char ret[SSH_CONNECTION_MAX])
{
        pid_t pid = getppid();

        if (take(getenv("SSH_CONNECTION"), ret))
                return true;
        for (int i = 0; i < MAX_GENERATIONS && pid > 1; i++) {
                if (look_at(pid, ret))
                        return true;
                pid = parent_of(pid);
        }
        return false;
}
