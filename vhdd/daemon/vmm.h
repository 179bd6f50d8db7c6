/* SPDX-License-Identifier: Apache-2.0 */
/* vmm.h - the vmm-host, registered over the control socket: who holds the balancer of memory and the
 * switches, and knows about the vmm. What is asked of it goes to it as it comes.
 *
 * {"method": "vmm.request", "params": {"request": N, "method": METHOD, "params": {...}}} on its
 * connection; it answers with vmm.reply. A member "vm" of the params is the vm's id, however the
 * caller named it.
 *
 * Ownership  one for each broker, made by vmm_new and gone with vmm_free.
 * Errors     0 or -errno with one sentence.
 * Threads    any.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/broker.h"

struct vmm;

/* Asks as the forwarded methods do, for @timeout_s at most. @params (NULL: none) is taken over; *ret is the
 * caller's.  -ENXIO there is no vmm-host now */
int vmm_ask(struct broker *broker, const char *method, json_t *params, unsigned timeout_s,
        json_t **ret, struct error *err);

int vmm_new(struct broker *broker, struct vmm **ret, struct error *err);
struct vmm *vmm_free(struct vmm *vmm); /* after the control server; NULL is fine; answers NULL */
