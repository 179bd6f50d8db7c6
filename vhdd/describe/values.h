/* SPDX-License-Identifier: Apache-2.0 */
/* values.h - values as people and JSON see them; names that came from a hostile file.
 *
 * Names out of images and directories may hold anything, terminal escapes too. Whatever goes to a
 * terminal passes text_safe(), whatever goes into JSON json_text().
 *
 * Units      bytes.
 * Ownership  as each function says.
 * Errors     memory that cannot be had ends the process with exit code 3: nothing to clean up here.
 * Threads    one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

/* @p, which is not NULL when it returns. */
void *must(void *p);

/* A copy in which control characters and bytes that are no UTF-8 stand as \n, \t, \xNN. The
 * caller frees it. */
char *text_safe(const char *text);

/* JSON values; a new reference each, never NULL. */
json_t *json_text(const char *text);     /* bytes that are no UTF-8 become U+FFFD */
json_t *json_size(uint64_t size);        /* beyond 2^63 - 1: null */
json_t *json_uuid(const uint8_t id[16]); /* 8-4-4-4-12, lower case */
json_t *json_time(int64_t unix_seconds); /* RFC 3339, UTC */
json_t *error_to_json(const struct error *err);
/* To stdout with a newline; the reference is dropped. */
void json_print(json_t *value);

static inline void cleanup_json(json_t **value)
{
        json_decref(*value); /* takes NULL */
}
#define _cleanup_json_ _cleanup_(cleanup_json)

#define UUID_TEXT_MAX 37
const char *uuid_to_text(const uint8_t id[16], char buf[UUID_TEXT_MAX]);
#define TIME_TEXT_MAX 32
const char *time_to_text(int64_t unix_seconds, char buf[TIME_TEXT_MAX]); /* RFC 3339, UTC */

/* The failure on stderr, as all our programs say it: "PROGRAM: sentence", and the hint below. */
void error_print(const char *program, const struct error *err);
