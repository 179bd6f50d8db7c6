/* SPDX-License-Identifier: Apache-2.0 */
/* settings.h - a vm's memory as its settings say it, with what holds where they say nothing.
 *
 * Units      bytes; percent.
 * Ownership  plain values.
 * Errors     none: the daemon has checked the settings by its schema; what is still odd is put right
 *            as the functions say.
 * Threads    pure functions.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

/* virtio-mem gives and takes so much at a time; every amount of memory between startup and max is
 * startup plus whole blocks. Linux takes no less at once (the largest order of its page allocator). */
#define MEMORY_BLOCK (UINT64_C(4) << 20)

#define MEMORY_DEFAULT_STARTUP (UINT64_C(512) << 20)
#define MEMORY_DEFAULT_BUFFER  20u /* percent */
#define MEMORY_MAX_BUFFER      2000u
#define MEMORY_DEFAULT_WEIGHT  50u
#define MEMORY_MAX_WEIGHT      100u
#define MEMORY_MAX_SIZE        (UINT64_C(1) << 46) /* 64 TiB for one vm */

struct memory_settings {
        uint64_t startup, max; /* bytes; startup <= max <= MEMORY_MAX_SIZE */
        uint32_t buffer;       /* percent of the demand, to MEMORY_MAX_BUFFER */
        uint32_t weight;       /* 1 to MEMORY_MAX_WEIGHT */
};

/* @memory: the member "memory" of a vm's settings; NULL and missing members: the defaults. Without max,
 * or with one below startup, max is startup: the vm's memory stays as it is. Without startup it is max.
 * Startup is downward to a MiB, and max to startup and whole blocks: as a guest is started. */
struct memory_settings memory_settings_from_json(const json_t *memory);

/* The most that can be reached from startup in whole blocks. */
uint64_t memory_settings_top(const struct memory_settings *settings);
