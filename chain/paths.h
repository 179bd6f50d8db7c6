/* SPDX-License-Identifier: Apache-2.0 */
/* paths.h - what a path means, before anything is opened: Windows paths and ours as text.
 *
 * Nothing here touches a file but path_real_directory(). `..` is taken back by the text alone, as
 * Windows does; that is right because nobody follows a symbolic link afterwards (chain/beneath.h).
 *
 * Units      sizes of buffers are in bytes, the NUL included.
 * Ownership  the caller's buffers.
 * Errors     0 or -errno; sentences are the caller's.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PATH_TEXT_MAX 4096 /* as the kernel's PATH_MAX */

enum path_kind {
        PATH_RELATIVE, /* from a directory: ".\x.vhd", "..\y\x.vhd", "x.vhd" */
        PATH_ABSOLUTE, /* from our root: "/srv/x.vhd", "\srv\x.vhd" */
        PATH_FOREIGN, /* means something on another machine only: "C:\x.vhd", "\\server\share\x.vhd" */
        PATH_NONE,    /* means nothing: empty, or with control characters in it */
};

/* Both slashes part names: no file name that Windows can make holds either. */
enum path_kind path_kind_of(const char *text);

/* What stands behind the last slash of either kind; NULL if that is nothing, "." or "..", or if a
 * drive letter is all that is before it. */
const char *path_bare_name(const char *text);

/* @text as seen from the directory @base (absolute, normalised; unused if @text is absolute):
 * absolute, without ".", ".." and doubled slashes. ".." at the top stays at the top.
 *   -ENAMETOOLONG    -EINVAL  @text is foreign or none */
int path_resolve(const char *base, const char *text, char *ret, size_t ret_size);

/* Does @path (normalised) lie beneath the directory @root? *ret_rest is then the rest of it, without
 * a slash in front, and never empty. */
bool path_is_beneath(const char *path, const char *root, const char **ret_rest);

/* The directory part of a normalised path: "/" for what lies at the top. */
void path_directory(const char *path, char *ret, size_t ret_size);

/* The deepest directory that holds both (normalised) directories. */
void path_common_directory(const char *a, const char *b, char *ret, size_t ret_size);

/* From the directory @from to @to, both normalised: "./x.vhd", "../y/x.vhd". */
int path_relative(const char *from, const char *to, char *ret, size_t ret_size);

/* @path made absolute and free of symbolic links where it exists, by its text alone where not. */
int path_absolute(const char *path, char *ret, size_t ret_size);

/* The two names in one case, as NTFS compares them (a code point at a time; what is no UTF-8 is
 * compared byte by byte). */
bool path_same_name_folded(const char *a, const char *b);
