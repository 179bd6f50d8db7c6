/* SPDX-License-Identifier: Apache-2.0 */
/* names.h - what vms, disks and snapshots may be called, and the files that are named after them.
 *
 * Units      bytes of UTF-8.
 * Ownership  answered strings are allocated; the caller frees them.
 * Errors     0 or -EINVAL with a sentence that says which rule the name breaks; -ENOMEM.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define NAME_SIZE_MAX 128u

/* UTF-8, 1 to 128 bytes, without '/', '@' and control characters, not "now", not "." or "..", and not
 * of the form of an id, because an id is taken wherever a name is. @what: "vm", "disk", "snapshot":
 * for the sentence. */
int name_check(const char *what, const char *name, struct error *err);

/* A disk's name when none is given: the file's, without folder, ending and a snapshot's _GUID. What a
 * name may not hold becomes '-'. */
int name_of_file(const char *path, char **ret, struct error *err);

/* DIRECTORY-OF(beside)/NAME_GUID.avhd */
int name_of_avhd(const char *beside, const char *name, const uint8_t uuid[16], char **ret,
        struct error *err);

/* The directory that holds @path, "/" for a file in the root. */
char *name_directory(const char *path);

/* The form of an id: 36 characters, hyphens and lower-case hexadecimal digits in their places. */
bool name_is_id(const char *text);

/* Does the file's name end as a VHD's does: .vhd, .avhd, .vud? */
bool name_is_image(const char *name);

/* @text percent-encoded as one part of a URI's path ('/', '@' and blanks too). */
char *name_percent_encode(const char *text);
/* The same, but '/' stays. */
char *name_percent_encode_path(const char *path);
