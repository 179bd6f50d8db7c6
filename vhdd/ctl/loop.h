/* SPDX-License-Identifier: Apache-2.0 */
/* loop.h - a file, or a part of it, as a block device that ends when nobody uses it any more.
 *
 * Units      bytes.
 * Ownership  the descriptor is the caller's; when it and the last mount are gone, so is the device.
 * Errors     -errno, without a sentence: the caller knows what the device was for.
 * Threads    any.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define LOOP_NAME_SIZE 32u

struct loop_part {
        const char *path;
        uint64_t offset, size; /* size 0: to the end */
        bool read_only;
};

/* A descriptor of the device, and its name ("/dev/loop3"). */
int loop_attach(const struct loop_part *part, char ret_name[LOOP_NAME_SIZE]);
