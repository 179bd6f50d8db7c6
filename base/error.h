/* SPDX-License-Identifier: Apache-2.0 */
/* error.h - one clear sentence about what failed, where, and what to do.
 *
 * A library function returns 0 or -errno and, on failure, fills a struct error that its caller
 * gave it. It never prints. Callers on the way up add context with fail_prefix(); the tool or the
 * daemon at the top prints or logs once.
 *
 * Units      offset is in bytes from the start of the file, ERROR_NO_OFFSET if none applies.
 * Ownership  a struct error is a plain value on the caller's stack; nothing in it is allocated.
 * Errors     these functions cannot fail. A NULL err is fine everywhere: the code alone is returned.
 * Threads    a struct error belongs to one thread at a time.
 */
#pragma once

#include <errno.h>
#include <stdint.h>

#define ERROR_NO_OFFSET   UINT64_MAX
#define ERROR_MESSAGE_MAX 1024
#define ERROR_PATH_MAX    512

struct error {
        int code;                        /* errno, positive; 0 while nothing failed */
        uint32_t hyperv;                 /* Hyper-V's own code (0xC03A00xx), or 0 */
        uint64_t offset;                 /* where in the file, or ERROR_NO_OFFSET */
        char message[ERROR_MESSAGE_MAX]; /* one sentence, no newline, no full stop */
        char file[ERROR_PATH_MAX];       /* the file it is about, or "" */
        char hint[ERROR_MESSAGE_MAX];    /* what to do, often a command, or "" */
};

#define ERROR_INIT ((struct error){.offset = ERROR_NO_OFFSET})

/* Our own finding: sets code and sentence, forgets what was there. Returns -code. */
int fail(struct error *err, int code, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* The system's finding: as fail(), with ": " and the system's words for the code behind. */
int fail_os(struct error *err, int code, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* A level of context in front: "cannot open chain 'x': " + what stands there. Keeps the code.
 * Returns -code, so that `return fail_prefix(err, r, ...)` works; r is the callee's -errno. */
int fail_prefix(struct error *err, int r, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* Facts about the failure that machines want apart from the sentence. The innermost call wins:
 * a file, offset, hint or Hyper-V code that is set already stays. */
void error_set_file(struct error *err, const char *path);
void error_set_offset(struct error *err, uint64_t offset);
void error_set_hint(struct error *err, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
void error_set_hyperv(struct error *err, uint32_t code);

/* Back to "nothing failed". */
void error_clear(struct error *err);
