/* SPDX-License-Identifier: Apache-2.0 */
/* quote.h - names of files in commands that people paste, and in what the kernel prints.
 *
 * Ownership  the caller's buffer.
 * Errors     none: what does not fit is cut off before the closing quote.
 * Threads    pure functions.
 */
#pragma once

#include <stddef.h>

/* Room for any path. */
#define QUOTE_TEXT_MAX 4200u

/* @text as one word of a shell: as it is if that is safe, else in single quotes. Control characters
 * become '?', so that a file's name cannot talk to the terminal. Returns @ret. */
char *shell_quote(const char *text, char *ret, size_t size);

/* In place: /proc writes blanks in paths as \040, and so on. */
void proc_unescape(char *text);
