/* SPDX-License-Identifier: Apache-2.0 */
/* recover.h - completing a change of several images (E13) where they do not all lie in one folder.
 * Private to chain/.
 *
 * Units      none.
 * Ownership  the caller's file.
 * Errors     0 or -errno with one sentence. -EPERM: one of the images lies in no folder that the user
 *            allowed.
 * Threads    one at a time for an image.
 */
#pragma once

#include "chain/locate.h"

/* @file is open for writing. Takes its lock, and completes what lies beside it. The other images are
 * reached beneath its own folder and beneath @roots. */
int recover_intent(struct file *file, const struct locate_roots *roots, struct error *err);
