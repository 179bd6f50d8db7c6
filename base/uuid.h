/* SPDX-License-Identifier: Apache-2.0 */
/* uuid.h - unique ids: sixteen opaque bytes, of which only equality matters.
 *
 * Writers disagree on the byte order of a GUID's first fields, so the text form here is the bytes
 * in the order in which they lie in the file, and says nothing else.
 *
 * Ownership  the caller's buffers.
 * Errors     uuid_parse() answers whether the text is one; uuid_random() cannot fail.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define UUID_TEXT_SIZE 37u /* 36 characters and the NUL */

/* "5fa21a55-f394-aa4d-9958-1951a67d5540", lower case. Returns @ret. */
char *uuid_format(const uint8_t id[16], char ret[UUID_TEXT_SIZE]);

/* The same back: with the hyphens in their places or without any, either case, braces allowed. */
bool uuid_parse(const char *text, uint8_t ret[16]);

/* A new random one (version 4). */
void uuid_random(uint8_t ret[16]);

bool uuid_is_zero(const uint8_t id[16]);
bool uuid_equal(const uint8_t a[16], const uint8_t b[16]);
