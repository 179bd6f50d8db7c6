/* SPDX-License-Identifier: Apache-2.0 */
/* show.h - pieces of the daemon's answers as people read them.
 *
 * A member that is missing or null shows as nothing (or the word given), never as a failure: a newer or
 * older daemon may know more or less.
 *
 * Units      bytes; RFC 3339 in UTC comes in, local time goes out.
 * Ownership  texts belong to the answer, or to the caller's buffer.
 * Errors     none.
 * Threads    one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/size.h"

const char *show_text(const json_t *object, const char *key); /* "" if there is none */
int64_t show_number(const json_t *object, const char *key);   /* 0 if there is none */
bool show_flag(const json_t *object, const char *key);

/* "1.5 GiB", or "-". Answers @buf. */
const char *show_size(const json_t *object, const char *key, char buf[SIZE_TEXT_MAX]);

#define SHOW_TIME_MAX 48
/* "2026-01-31 13:00" where we are, or what came if that is no time. Answers @buf. */
const char *show_time(const json_t *object, const char *key, char buf[SHOW_TIME_MAX]);

#define SHOW_AGE_MAX 32
/* "12s", "3m 20s", "5h 3m", "2d 4h". Answers @buf. */
const char *show_age(int64_t ms, char buf[SHOW_AGE_MAX]);

/* "name       value" as one line of a description, @indent columns to the right; control characters in
 * it are made harmless. */
void show_line(unsigned indent, const char *name, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* "1 disk", "3 disks". */
#define PLURAL(n) ((n) == 1 ? "" : "s")

/* Prints each string of the list on a line of its own behind @head. */
void show_list(const char *head, const json_t *list);
