/* SPDX-License-Identifier: Apache-2.0 */
/* output.h - how vhdctl shows things: tables, JSON, names that came from a hostile file.
 *
 * Names out of images and directories may hold anything, terminal escapes too. Whatever goes to a
 * terminal passes text_safe(), whatever goes into JSON json_text().
 *
 * Units      bytes; column widths are in terminal cells.
 * Ownership  as each function says.
 * Errors     memory that cannot be had ends the process with CTL_FAILED: nothing to clean up here.
 * Threads    one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/error.h"

/* A copy in which control characters and bytes that are no UTF-8 stand as \n, \t, \xNN. The
 * caller frees it. */
char *text_safe(const char *text);

struct table;

/* @columns: heads, ended by NULL. A head that begins with ">" (which is not shown) stands to
 * the right; so do its cells. */
struct table *table_new(const char *const *columns);
/* The next cell of the row; after the last column the next row begins. */
void table_cell(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Heads (if there is a row) and rows. The last column is never padded. */
void table_print(const struct table *table, FILE *out);
struct table *table_free(struct table *table); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct table *, table_free)

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
