/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhdd/daemon/broker.h"

#define LINE_MAX_BYTES 4096

/* A terminal must not obey what a stranger wrote, and one event is one line. */
static void make_printable(char *text)
{
        for (char *p = text; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f)
                        *p = '?';
}

static void write_line(enum broker_log_level level, const char *about, const char *sentence)
{
        static const char *const marks[] = {
                [BROKER_LOG_ERROR] = "<3>",
                [BROKER_LOG_WARNING] = "<4>",
                [BROKER_LOG_INFO] = "<6>",
                [BROKER_LOG_DEBUG] = "<7>",
        };
        char line[LINE_MAX_BYTES];
        int n = snprintf(line, sizeof(line) - 1, "%svhdd%s%s: %s",
                getenv("JOURNAL_STREAM") ? marks[level] : "", about ? " " : "", about ? about : "",
                sentence);

        if (n < 0)
                return;
        make_printable(line);
        n = (int)strlen(line);
        line[n++] = '\n';
        /* In one call: lines of several threads and processes do not mix. */
        if (write(STDERR_FILENO, line, (size_t)n) < 0)
                return;
}

void broker_log(struct broker *broker, enum broker_log_level level, const char *about,
        const char *format, ...)
{
        char sentence[LINE_MAX_BYTES];
        va_list args;

        if (level == BROKER_LOG_DEBUG && !getenv("VHDD_DEBUG"))
                return;
        va_start(args, format);
        vsnprintf(sentence, sizeof(sentence), format, args);
        va_end(args);
        write_line(level, about, sentence);
}

void broker_log_error(struct broker *broker, const char *about, const struct error *err)
{
        broker_log(broker, BROKER_LOG_ERROR, about, "%s%s%s%s", err->message,
                err->hint[0] ? " (" : "", err->hint, err->hint[0] ? ")" : "");
}
