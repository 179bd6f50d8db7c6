/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - what vmm-host and its supervisors tell: one line each on standard error.
 *
 * Units      none.
 * Ownership  plain values; log_about() keeps the pointer.
 * Errors     none: a line that cannot be written is lost.
 * Threads    any, after log_about().
 */
#pragma once

#include "base/error.h"

enum log_level { LOG_ERR_LINE = 3, LOG_WARNING_LINE = 4, LOG_INFO_LINE = 6 };

/* Which vm the lines of this process are about; NULL: none. */
void log_about(const char *vm);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_info(...)    log_line(LOG_INFO_LINE, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING_LINE, __VA_ARGS__)
/* The sentence, with the hint behind it if there is one. */
void log_error(const struct error *err);
