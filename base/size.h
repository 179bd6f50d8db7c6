/* SPDX-License-Identifier: Apache-2.0 */
/* size.h - sizes as people write and read them: 512, 64K, 1.5G, 127 GiB.
 *
 * Units      bytes; K, M, G, T are powers of 1024.
 * Ownership  plain values.
 * Errors     -EINVAL with a sentence that quotes the text; -ERANGE when it needs more than 64 bits.
 * Threads    pure functions.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* "4096", "64K", "10g", "1.5T", "10GiB", "512B". Not "10GB": it means 1000 to some and 1024 to
 * others. A fraction must come to whole bytes. No sign, no blanks. */
int size_parse(const char *text, uint64_t *ret, struct error *err);

#define SIZE_TEXT_MAX 32

/* "127 GiB", "1.5 MiB", "512 bytes", "1 byte", "2040 GiB": whole, or rounded down to one decimal.
 * Answers @buf. */
const char *size_to_text(uint64_t size, char buf[SIZE_TEXT_MAX]);
