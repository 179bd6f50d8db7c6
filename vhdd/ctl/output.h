/* SPDX-License-Identifier: Apache-2.0 */
/* output.h - how vhdctl shows things: tables, and what vhdd/describe/values.h has.
 *
 * Units      bytes; column widths are in terminal cells.
 * Ownership  as each function says.
 * Errors     memory that cannot be had ends the process with CTL_FAILED: nothing to clean up here.
 * Threads    one thread at a time.
 */
#pragma once

#include <stdio.h>

#include "vhdd/describe/values.h"

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
