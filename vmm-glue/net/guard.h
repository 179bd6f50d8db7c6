/* SPDX-License-Identifier: Apache-2.0 */
/* guard.h - what an uplink needs besides being a port, where the datapath is a program.
 *
 * Open vSwitch's user-space datapath reads an interface beside the host's own stack, as a packet capture does.
 * So on a switch that the host has no part in, what comes in has to be dropped before that stack: by a filter
 * of one instruction at the interface's ingress (clsact, cls_bpf), behind the place where captures look.
 * And frames are to come as they were on the wire: not put together to large ones (GRO, LRO), and where
 * the other end is ours (a veth's), with their checksums filled in.
 *
 * The kernel's datapath needs none of this: it takes an interface from the host's stack.
 *
 * Units      none.
 * Ownership  none.
 * Errors     0 or -errno with one sentence.
 * Threads    one thread at a time.
 */
#pragma once

#include "vmm-glue/net/links.h"

/* From now on the host's stack gets nothing from it. Again does no harm. */
int guard_keep_host_out(struct links *links, const struct net_link *uplink, struct error *err);
/* The host's stack gets everything again. One that was never kept out is fine. */
int guard_let_host_in(struct links *links, const struct net_link *uplink, struct error *err);

/* Switches off what would change frames on the uplink, and on a veth's other end if that is here. @ret_was_on
 * (a new string of words) is what was on, for guard_restore. What an interface cannot be told stays. */
int guard_plain_frames(
        struct links *links, const struct net_link *uplink, char **ret_was_on, struct error *err);
void guard_restore(struct links *links, const struct net_link *uplink, const char *was_on);
