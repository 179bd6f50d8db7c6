/* SPDX-License-Identifier: Apache-2.0 */
/* open.h - from the command line's words to open chains.
 *
 * Parents may lie beside the image, beside the other files named, and beneath each --image-root.
 *
 * Units      bytes.
 * Ownership  chains are the caller's; the options' lists belong to the struct ctl.
 * Errors     0 or -errno with one sentence that names the file.
 * Threads    the main thread only.
 */
#pragma once

#include "chain/chain.h"
#include "vhdd/ctl/ctl.h"

/* What the common and chain options say; warnings go to stderr. The verb adds writable and so on. */
void ctl_chain_options(const struct ctl *ctl, struct chain_options *ret);

/* Opens an image with its chain, for reading. */
int ctl_chain_open(const struct ctl *ctl, const char *path, struct chain **ret, struct error *err);

/* Closes a chain that was only read, or whose writes are given up: nobody asks how its flush went. */
void ctl_chain_close(struct chain *chain);
DEFINE_CLEANUP(struct chain *, ctl_chain_close)

/* The base name of a path: the part behind the last slash. */
const char *ctl_base_name(const char *path);

/* -EBUSY if images in the folder of @path or beneath an --image-root name it as their parent: a write
 * to it would change what they read. The hint lists them. */
int ctl_refuse_parent(const struct ctl *ctl, const char *path, struct error *err);

/* Warns if there is a seal beside @path: the image was just changed, and its seal speaks of what it was. */
void ctl_warn_of_seal(const struct ctl *ctl, const char *path);
