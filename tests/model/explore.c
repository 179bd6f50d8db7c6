/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/model/explore.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_PARENT UINT32_MAX

static const struct model *model;
static uint8_t *states;
static uint32_t *parents, *table; /* table: number of a state + 1, by its hash */
static size_t n_states, room, table_size;
static uint32_t current;
static unsigned start;
/* While a trace is printed: the successor whose step is to be named, else NULL. */
static const void *wanted;

bool explore_is_long(void)
{
        const char *text = getenv("VHDD_LONG");

        return text && *text && strcmp(text, "0") != 0;
}

static void *state_at(size_t i)
{
        return states + i * model->size;
}

static size_t slot_of(const void *state)
{
        const uint8_t *bytes = state;
        uint64_t hash = 1469598103934665603u;

        for (size_t i = 0; i < model->size; i++)
                hash = (hash ^ bytes[i]) * 1099511628211u;
        return (hash ^ hash >> 29) & (table_size - 1);
}

static void *must_have(void *memory)
{
        if (memory)
                return memory;
        perror("memory");
        exit(2);
}

static void make_room(void)
{
        if (n_states == room) {
                room = room ? room + room / 2 : 1u << 16;
                states = must_have(realloc(states, room * model->size));
                parents = must_have(realloc(parents, room * sizeof(*parents)));
        }
        if (n_states * 3 < table_size * 2)
                return;
        table_size = table_size ? table_size * 2 : 1u << 17;
        free(table);
        table = must_have(calloc(table_size, sizeof(*table)));
        for (size_t i = 0; i < n_states; i++) {
                size_t slot = slot_of(state_at(i));

                while (table[slot])
                        slot = (slot + 1) & (table_size - 1);
                table[slot] = (uint32_t)i + 1;
        }
}

void explore_emit(const void *state, const char *format, ...)
{
        size_t slot;

        if (wanted) {
                va_list args;

                if (memcmp(wanted, state, model->size) != 0)
                        return;
                wanted = NULL;
                printf("      ");
                va_start(args, format);
                vprintf(format, args);
                va_end(args);
                printf("\n");
                return;
        }
        make_room();
        slot = slot_of(state);
        while (table[slot]) {
                if (memcmp(state_at(table[slot] - 1), state, model->size) == 0)
                        return;
                slot = (slot + 1) & (table_size - 1);
        }
        memcpy(state_at(n_states), state, model->size);
        parents[n_states] = current;
        table[slot] = (uint32_t)++n_states;
        if (n_states > EXPLORE_MAX_STATES) {
                fprintf(stderr, "more than %u states\n", EXPLORE_MAX_STATES);
                exit(2);
        }
}

static void print_trace(uint32_t i)
{
        uint8_t aim[EXPLORE_MAX_STATE], from[EXPLORE_MAX_STATE];

        if (parents[i] != NO_PARENT)
                print_trace(parents[i]);
        memcpy(aim, state_at(i), model->size);
        wanted = aim;
        if (parents[i] == NO_PARENT) {
                model->init(start);
        } else {
                memcpy(from, state_at(parents[i]), model->size);
                model->step(from);
        }
        wanted = NULL; /* one that was there before is named by its first step */
}

/* Starts do not meet, so each is explored alone: less memory. */
static bool begin(unsigned number)
{
        start = number;
        n_states = 0;
        current = NO_PARENT;
        if (table)
                memset(table, 0, table_size * sizeof(*table));
        return model->init(number);
}

static const char *explore(void)
{
        for (size_t i = 0; i < n_states; i++) {
                uint8_t state[EXPLORE_MAX_STATE] __attribute__((aligned(8)));
                const char *broken;

                memcpy(state, state_at(i), model->size); /* the array moves */
                broken = model->check(state);
                if (broken) {
                        print_trace((uint32_t)i);
                        return broken;
                }
                current = (uint32_t)i;
                model->step(state);
        }
        return NULL;
}

int explore_runs(
        const struct model *the_model, const struct run *runs, size_t n_runs, unsigned *flags)
{
        int status = 0;

        model = the_model;
        for (size_t i = 0; i < n_runs; i++) {
                const char *broken = NULL;
                size_t n_all = 0;
                bool as_expected;

                *flags = runs[i].flags;
                for (unsigned number = 0; !broken && begin(number); number++) {
                        broken = explore();
                        n_all += n_states;
                }
                as_expected = (broken != NULL) == runs[i].must_fail;
                printf("%s %-66s %9zu states: %s\n",
                        as_expected ? " " : "NOT EXPECTED:", runs[i].name, n_all,
                        broken ? broken : "holds");
                fflush(stdout);
                if (!as_expected)
                        status = 1;
        }
        return status;
}
