/* SPDX-License-Identifier: Apache-2.0 */
/* notes.h - sentences for a person, gathered while something is done: what was left out and why.
 *
 * Ownership  the list is the caller's.
 * Errors     none: one that there is no memory for is lost.
 * Threads    one at a time for a list.
 */
#pragma once

#include <jansson.h>

/* @notes: an array. The sentence is cut at ERROR_MESSAGE_MAX bytes. */
void note_add(json_t *notes, const char *format, ...) __attribute__((format(printf, 2, 3)));
