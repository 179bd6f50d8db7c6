/* SPDX-License-Identifier: Apache-2.0 */
/* memory_image.h - saved memory in a file: what the vm's devices were, then QEMU's own stream.
 *
 *      0   "VHDDMEM1"   8 bytes
 *      8   be32         length of the JSON behind, in bytes
 *      12  JSON         the config (config.h), no NUL
 *      ... QEMU's migration stream, to the end
 *
 * Units      bytes.
 * Ownership  descriptors are the caller's; they are left behind the JSON.
 * Errors     0 or -errno with one sentence. -EUCLEAN: it is no such file.
 * Threads    any.
 */
#pragma once

#include <jansson.h>

#include "base/error.h"

#define MEMORY_IMAGE_CONFIG_MAX (1u << 20)

int memory_image_write(int fd, const json_t *config, struct error *err);
int memory_image_read(int fd, json_t **ret_config, struct error *err);
