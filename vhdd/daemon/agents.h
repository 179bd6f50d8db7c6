/* SPDX-License-Identifier: Apache-2.0 */
/* agents.h - the compute side of a vm, registered over the control socket.
 *
 * The daemon asks it by notifications on its connection, {"method": "agent.request", "params":
 * {"request": N, "vm": NAME, "verb": VERB, ...}}, and it answers with agent.reply. The saved memory
 * goes to, or comes from, a descriptor that comes with the notification. An agent that dies, or does
 * not answer in its time, is an error to whoever asked and holds up nothing else.
 *
 * Units      seconds where a name ends in _s.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence. -ENXIO there is no agent. -EOPNOTSUPP it does not offer
 *            that verb. -ETIMEDOUT, -EPIPE (it is gone), -EREMOTEIO (it says that it could not).
 * Threads    any, with or without the vm's lock.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/vms.h"

bool agent_is_there(struct vm *vm);
/* Of the one that is registered now; another that comes after it has another. 0: there is none. */
uint64_t agent_registration(struct vm *vm);
bool agent_offers(struct vm *vm, const char *verb);
const char *agent_name(struct vm *vm, char *ret, size_t size); /* NULL: there is none */
/* There is one that does this; else a sentence that says so. */
int agent_must(struct vm *vm, const struct vm_row *row, const char *verb, struct error *err);
/* Asks and waits. @params is taken over; @fds stay the caller's. @ret may be NULL. */
int agent_ask(struct vm *vm, const char *verb, json_t *params, const int *fds, size_t n_fds,
        json_t **ret, struct error *err);
/* The same, for @timeout_s at most; 0: as long as the agent said that it may take. */
int agent_ask_within(struct vm *vm, const char *verb, json_t *params, const int *fds, size_t n_fds,
        unsigned timeout_s, json_t **ret, struct error *err);

/* In two halves, for one who has something to do meanwhile. @verb lives as long as the call.
 * -EPIPE: it is not the one of that @registration (0: whichever). agent_call_end() waits and ends it; agent_call_drop() ends it without waiting (NULL is fine). */
struct agent_call;
int agent_call_begin(struct vm *vm, uint64_t registration, const char *verb, json_t *params,
        const int *fds, size_t n_fds, struct agent_call **ret, struct error *err);
int agent_call_end(struct agent_call *call, json_t **ret, struct error *err);
struct agent_call *agent_call_drop(struct agent_call *call);
