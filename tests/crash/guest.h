/* SPDX-License-Identifier: Apache-2.0 */
/* guest.h - the operations of a model, done to a chain: what a client of a disk does while something else
 * is made of its images.
 *
 * Units      none.
 * Ownership  all of it is the test's.
 * Errors     what may not be is a violation (tests/crash/driver.h).
 * Threads    one guest_main() each, under tests/crash/schedule.h.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "chain/chain.h"
#include "tests/crash/instants.h"
#include "tests/crash/model.h"

struct guest {
        struct chain *chain;
        struct model *model;
        struct instants *instants; /* one is taken after each operation */
        unsigned thread, life;     /* whose operations */
        pthread_t id;
};

/* Operation @i, to its answer. It may fail only where instants_may_fail(), or where the chain takes no
 * writes. */
void guest_perform(const struct guest *guest, uint32_t i);
/* All of them, one after the other. @guest: a struct guest. */
void *guest_main(void *guest);
