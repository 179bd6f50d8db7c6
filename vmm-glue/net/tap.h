/* SPDX-License-Identifier: Apache-2.0 */
/* tap.h - the host's end of a guest's network card: a tap device with one descriptor for each queue.
 *
 * The device is gone with the last of its descriptors, so nothing is left of a guest that is killed.
 *
 * Units      none.
 * Ownership  descriptors are the caller's.
 * Errors     0 or -errno with one sentence; then no device and no descriptor is left.
 * Threads    any.
 */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* What one message can carry, and more than processors that a guest has here. */
#define TAP_MAX_QUEUES 16u

/* A new device; @ret_device has its name, @ret one descriptor for each of @n_queues. @with_header: each
 * frame has a struct virtio_net_hdr in front, so that checksums and segments may be left to the other side;
 * only the kernel's datapath understands that. */
int tap_open(size_t n_queues, bool with_header, char ret_device[IF_NAMESIZE], int *ret,
        struct error *err);

/* /dev/vhost-net, @n times. 0 of them, and no failure, where the kernel has it not. */
int vhost_open(size_t n, int *ret, size_t *ret_n, struct error *err);
