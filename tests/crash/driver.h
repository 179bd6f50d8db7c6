/* SPDX-License-Identifier: Apache-2.0 */
/* driver.h - seeds, shared out to processes; distinct states, counted; mutants, hunted: what the crash
 * tests of jobs have in common.
 *
 *   PROGRAM [--seeds FIRST[-LAST]] [--states N] [--budget N] [--seconds N] [--jobs N]
 *           [--mutant NAME] [--all-mutants] [--trace]
 *
 *   --states  how many distinct states there have to be at the end, or it fails; it stops there
 *   --budget  how many of them one seed opens at most, about
 *   VHDD_LONG=1 in the environment: half a million states
 *
 * Exit status: 0 no violation (or every mutant seen), 1 otherwise, 2 usage.
 *
 * Threads    the main thread, under a schedule.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct driver_options {
        uint64_t first_seed, last_seed, states, budget;
        double seconds;
        unsigned jobs;
        const char *mutant;
        bool all_mutants, trace;
};
extern struct driver_options driver_options;

/* Of one process, shared with its parent. */
struct driver_result {
        uint64_t seeds, states, instants, seed;
        uint64_t counters[2]; /* what the test counts beside */
        bool violated;
        char text[1024];
};
extern struct driver_result *driver_result;
extern bool driver_mutants_on; /* while the mutant may act */

struct driver_mutant {
        const char *name, *what;
};

struct driver {
        const char *name;
        void (*run_seed)(uint64_t seed); /* unless it is violated, nothing is left */
        const char *counters[2];
        const struct driver_mutant *mutants;
        unsigned n_mutants;
        /* Optional. At each step of base/mutant.h, before the choice who runs next: true if it has been
         * made. */
        bool (*at_step)(const char *name);
};

/* What may not be: the first one is told, and ends the seed. */
__attribute__((format(printf, 1, 2))) void driver_violation(const char *format, ...);

int driver_main(int argc, char **argv, const struct driver *driver);

/* Hashes. */
struct driver_set {
        uint64_t *keys;
        uint64_t n, room;
};
bool driver_set_add(struct driver_set *set, uint64_t key); /* was it new? */
void driver_set_done(struct driver_set *set);
