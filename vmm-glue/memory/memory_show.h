/* SPDX-License-Identifier: Apache-2.0 */
/* memory_show.h - what memory.show answers, and the state that it answers from.
 *
 * Units      bytes; microseconds where a name ends in _us.
 * Ownership  struct memory is memory.c's.
 * Errors     0 or -errno with one sentence.
 * Threads    the event loop's.
 */
#pragma once

#include "vmm-glue/host.h"
#include "vmm-glue/memory/guest.h"

struct memory {
        struct host *host;
        sd_event_source *timer;
        uint64_t stepped_us; /* when the last step was */
        struct memory_host last;
        uint64_t n_steps;
        uint64_t added, removed; /* by what guests told, since this vmm-host began */
        uint64_t n_added, n_removed;
};

/* Of all vms, or of @vm (name or id; NULL: all).  -ENOENT it is none of ours */
int memory_show(struct memory *memory, const char *vm, const struct host_module *module,
        json_t **ret, struct error *err);
