/* SPDX-License-Identifier: Apache-2.0 */
/* vhdsize.h - the sizes that create and convert make.
 *
 * Units      bytes.
 * Errors     -EFBIG with both numbers; -EINVAL.
 * Threads    pure functions.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* "512K" or "2M": what we make; others are only read. */
int vhd_block_size_parse(const char *text, uint32_t *ret, struct error *err);

/* @size as a disk's size: whole @unit (a power of two, at least 512), at least one, and no more than
 * a VHD with that block size (0: 2 MiB, or fixed) can be made to hold. */
int vhd_size_round_up(
        uint64_t size, uint64_t unit, uint32_t block_size, uint64_t *ret, struct error *err);
