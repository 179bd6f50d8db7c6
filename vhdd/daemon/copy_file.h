/* SPDX-License-Identifier: Apache-2.0 */
/* copy_file.h - a file of the host as it is, byte by byte, with its holes and its time of change.
 *
 * Nothing in it is looked at. It is locked against writers while it is read, and the copy is synced;
 * its name is the caller's to make durable.
 *
 * Units      bytes.
 * Errors     0 or -errno with one sentence. -EEXIST the new name is taken; -EBUSY somebody has the
 *            file open for writing; -ECANCELED @stop became true. A copy that failed is removed.
 * Threads    any.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

int copy_file(const char *from, const char *to, const _Atomic bool *stop, struct error *err);

/* The folder in which @path shall lie, and those above it that are not there yet, durably. */
int make_folders(const char *path, struct error *err);
