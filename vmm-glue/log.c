/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096

static const char *about;

void log_about(const char *vm)
{
        about = vm;
}

/* A terminal must not obey what a stranger wrote, and one event is one line. */
static void make_printable(char *text)
{
        for (char *p = text; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f)
                        *p = '?';
}

void log_line(enum log_level level, const char *format, ...)
{
        char line[LINE_MAX_BYTES] = "";
        size_t n;
        va_list args;

        if (getenv("JOURNAL_STREAM"))
                snprintf(line, sizeof(line), "<%d>", (int)level);
        n = strlen(line);
        snprintf(
                line + n, sizeof(line) - n, "vmm-host%s%s: ", about ? " " : "", about ? about : "");
        n = strlen(line);
        va_start(args, format);
        vsnprintf(line + n, sizeof(line) - n - 1, format, args);
        va_end(args);
        make_printable(line);
        n = strlen(line);
        line[n++] = '\n';
        /* In one call: lines of several processes do not mix. */
        if (write(STDERR_FILENO, line, n) < 0)
                return;
}

void log_error(const struct error *err)
{
        log_line(LOG_ERR_LINE, "%s%s%s%s", err->message, err->hint[0] ? " (" : "", err->hint,
                err->hint[0] ? ")" : "");
}
