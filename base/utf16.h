/* SPDX-License-Identifier: Apache-2.0 */
/* utf16.h - UTF-16 as Windows writes it in files, to and from UTF-8.
 *
 * Strict both ways: an unpaired surrogate, an overlong or cut-off UTF-8 sequence is an error, never
 * a replacement character: a path that was "mended" would be another path.
 *
 * Units      sizes are in bytes on both sides.
 * Ownership  the caller's buffers.
 * Errors     -EILSEQ: not text in its encoding (or an odd number of bytes). -ENOSPC: @ret is too
 *            small. On failure what @ret holds is undefined. No sentences: the caller knows what
 *            the text was.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum utf16_order { UTF16_LITTLE, UTF16_BIG };

/* All @size bytes, NULs too, as UTF-8 with a NUL behind. The length without that NUL, or -errno. */
ssize_t utf16_to_utf8(
        const void *text, size_t size, enum utf16_order order, char *ret, size_t ret_size);

/* The @length bytes of UTF-8 as UTF-16 without a NUL behind. The number of bytes, or -errno. */
ssize_t utf16_from_utf8(
        const char *text, size_t length, enum utf16_order order, void *ret, size_t ret_size);

/* One code point at @p, of at most @left bytes (at least 1): how many bytes it takes, 0 if it is none. */
size_t utf8_get(const uint8_t *p, size_t left, uint32_t *ret);

/* Is it well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF)? */
bool utf8_is_valid(const char *text, size_t length);
