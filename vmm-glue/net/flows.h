/* SPDX-License-Identifier: Apache-2.0 */
/* flows.h - what a switch lets through, as rules of OpenFlow.
 *
 * A bridge of ours is "secure": without rules nothing goes through it, so that there is no moment in which
 * a guest could send what it may not, not even after ovs-vswitchd has died. The rules say who may send,
 * and as whom; where it goes is a learning switch's business (NORMAL), and VLANs are its ports'.
 *
 *      40  the VLAN of those who are not there: dropped
 *      20  a guest's port, with the address of its card (or with any, if that is allowed): on
 *      10  the uplink, and the host's port where it has one: on
 *       0  everything else: dropped
 *
 * Ownership  the text is the caller's.
 * Errors     NULL: no memory.
 * Threads    any.
 * Spec       ovs-fields(7), ovs-actions(7).
 */
#pragma once

#include "vmm-glue/net/picture.h"

char *flows_of(const struct net_switch *net_switch);
