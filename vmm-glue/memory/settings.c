/* SPDX-License-Identifier: Apache-2.0 */
/* settings.c - memory settings out of JSON. */
#include "vmm-glue/memory/settings.h"

#define MiB (UINT64_C(1) << 20)

/* The member, brought between @least and @most. */
static uint64_t take(
        const json_t *memory, const char *key, uint64_t otherwise, uint64_t least, uint64_t most)
{
        const json_t *value = json_object_get(memory, key);
        json_int_t number = json_integer_value(value);

        if (!json_is_integer(value))
                return otherwise;
        if (number < 0 || (uint64_t)number < least)
                return least;
        return (uint64_t)number > most ? most : (uint64_t)number;
}

struct memory_settings memory_settings_from_json(const json_t *memory)
{
        uint64_t most = take(memory, "max", MEMORY_DEFAULT_STARTUP, MEMORY_BLOCK, MEMORY_MAX_SIZE);
        uint64_t startup =
                take(memory, "startup", most, MEMORY_BLOCK, MEMORY_MAX_SIZE) & ~(MiB - 1);
        struct memory_settings settings = {
                .startup = startup,
                .max = take(memory, "max", startup, startup, MEMORY_MAX_SIZE),
                .buffer = (uint32_t)take(
                        memory, "buffer", MEMORY_DEFAULT_BUFFER, 0, MEMORY_MAX_BUFFER),
                .weight = (uint32_t)take(
                        memory, "weight", MEMORY_DEFAULT_WEIGHT, 1, MEMORY_MAX_WEIGHT),
        };

        settings.max = memory_settings_top(&settings);
        return settings;
}

uint64_t memory_settings_top(const struct memory_settings *settings)
{
        uint64_t more = settings->max - settings->startup;

        return settings->startup + more - more % MEMORY_BLOCK;
}
