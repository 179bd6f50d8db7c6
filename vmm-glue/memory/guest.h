/* SPDX-License-Identifier: Apache-2.0 */
/* guest.h - what vmm-host knows of one vm's memory: settings, what its supervisor tells, what was asked.
 *
 * A supervisor tells each second while its guest runs ("memory" note):
 *      startup, max        as this guest was started: later settings cannot go beyond
 *      plugged             what virtio-mem has added
 *      actual              what the guest has: startup and plugged, less what is in the balloon
 *      target              what it was last asked to come to; 0: nothing
 *      total, available, swap-in, major-faults        the balloon's statistics; missing: not known yet
 *
 * Units      bytes; microseconds where a name ends in _us; milliseconds in _ms.
 * Ownership  one for each vm that is run here; plain values.
 * Errors     none: what a note does not say, or says oddly, is as if it had not been told.
 * Threads    the event loop's.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm-glue/memory/balancer.h"
#include "vmm-glue/memory/demand.h"
#include "vmm-glue/memory/follow.h"

struct memory_guest {
        struct memory_settings settings; /* as they are now */
        bool is_on, is_running;
        bool is_known;     /* somebody has said whether it is on */
        uint64_t since_us; /* when that was, or when it was first seen */
        uint64_t occupied; /* while nobody says anything: by its QEMU, if there is one */
        uint64_t admitted; /* the startup memory of a start that is under way; 0: none is */

        /* Of the guest that runs; all zeroes while none does. */
        bool has_told;
        uint64_t startup, max;
        uint64_t assigned;
        uint64_t told_us; /* when */
        struct demand demand;
        struct memory_follow follow;
        uint64_t added, removed; /* since this guest's start, or ours */
        uint64_t n_added, n_removed;

        struct memory_vm step; /* as the last step of the balancer left it */
        uint64_t step_now;     /* demand.now as it was then */
};

/* The vm is on or off, runs or stands still, has these settings. @is_lost: its supervisor is not there, so
 * nobody can tell: a guest that was on counts as on. */
void memory_guest_changed(struct memory_guest *guest, const json_t *settings, bool is_on,
        bool is_running, bool is_lost, uint64_t now_us);

/* A note at @now_us. Adds what the guest got or lost since the last one to *@added and *@removed. */
void memory_guest_told(struct memory_guest *guest, const json_t *note, uint64_t now_us,
        uint64_t *added, uint64_t *removed);

/* Whether it is too early to reckon with it: nobody has said yet whether it is on, or what it has. That
 * ends after some seconds, with an answer or without. */
bool memory_guest_is_awaited(const struct memory_guest *guest, uint64_t now_us);

/* Whether it can be asked: somebody is there, the guest runs and has told something lately. */
bool memory_guest_can_be_asked(const struct memory_guest *guest, uint64_t now_us);

/* Nobody has said yet whether it is on; there is a QEMU of its that occupies so much, or none (@occupied 0).
 * What a guest has is not less than that. */
void memory_guest_guess(struct memory_guest *guest, uint64_t occupied);

/* What nobody can take from it: the startup memory of the guest that runs, or is about to; 0: neither. */
uint64_t memory_guest_keeps(const struct memory_guest *guest);

/* As the balancer wants it. */
struct memory_vm memory_guest_to_vm(const struct memory_guest *guest, uint64_t now_us);
