/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* strerror_r's GNU form: thread-safe, answers a string that may or may not be @buf. */
static const char *system_words(int code, char *buf, size_t size)
{
        return strerror_r(code, buf, size);
}

void error_clear(struct error *err)
{
        if (err)
                *err = ERROR_INIT;
}

__attribute__((format(printf, 3, 0))) static void begin(
        struct error *err, int code, const char *format, va_list ap)
{
        error_clear(err);
        err->code = code;
        vsnprintf(err->message, sizeof(err->message), format, ap);
}

int fail(struct error *err, int code, const char *format, ...)
{
        va_list ap;

        if (!err)
                return -code;
        va_start(ap, format);
        begin(err, code, format, ap);
        va_end(ap);
        return -code;
}

int fail_os(struct error *err, int code, const char *format, ...)
{
        char words[128];
        size_t used;
        va_list ap;

        if (!err)
                return -code;
        va_start(ap, format);
        begin(err, code, format, ap);
        va_end(ap);
        used = strlen(err->message);
        snprintf(err->message + used, sizeof(err->message) - used, ": %s",
                system_words(code, words, sizeof(words)));
        return -code;
}

int fail_prefix(struct error *err, int r, const char *format, ...)
{
        char inner[ERROR_MESSAGE_MAX];
        size_t used;
        va_list ap;

        if (!err)
                return r;
        memcpy(inner, err->message, sizeof(inner));
        if (err->code == 0)
                err->code = -r;
        va_start(ap, format);
        vsnprintf(err->message, sizeof(err->message), format, ap);
        va_end(ap);
        used = strlen(err->message);
        snprintf(err->message + used, sizeof(err->message) - used, ": %s", inner);
        return r;
}

void error_set_file(struct error *err, const char *path)
{
        if (err && !err->file[0] && path)
                snprintf(err->file, sizeof(err->file), "%s", path);
}

void error_set_offset(struct error *err, uint64_t offset)
{
        if (err && err->offset == ERROR_NO_OFFSET)
                err->offset = offset;
}

void error_set_hint(struct error *err, const char *format, ...)
{
        va_list ap;

        if (!err || err->hint[0])
                return;
        va_start(ap, format);
        vsnprintf(err->hint, sizeof(err->hint), format, ap);
        va_end(ap);
}

void error_set_hyperv(struct error *err, uint32_t code)
{
        if (err && !err->hyperv)
                err->hyperv = code;
}
