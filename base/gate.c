/* SPDX-License-Identifier: Apache-2.0 */
/* One word a stripe: the top bit says closed, the rest counts who is inside. Waiting is a futex on
 * that word. */
#include "base/gate.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"

#define N_STRIPES 256u /* a power of two */
#define CLOSED    UINT32_C(0x80000000)

struct stripe {
        _Atomic uint32_t word;
} __attribute__((aligned(64)));

struct gates {
        struct stripe stripes[N_STRIPES];
};

struct gates *gates_new(void)
{
        struct gates *gates = aligned_alloc(64, sizeof(*gates));

        if (gates)
                for (unsigned i = 0; i < N_STRIPES; i++)
                        atomic_init(&gates->stripes[i].word, 0);
        return gates;
}

struct gates *gates_free(struct gates *gates)
{
        free(gates);
        return NULL;
}

static _Atomic uint32_t *word_of(struct gates *gates, uint64_t key)
{
        return &gates->stripes[(key * UINT64_C(0x9e3779b97f4a7c15)) >> 56].word;
}

static void word_wait(_Atomic uint32_t *word, uint32_t seen)
{
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void word_wake(_Atomic uint32_t *word)
{
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

bool gate_try_enter(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);
        uint32_t seen = atomic_load_explicit(word, memory_order_relaxed);

        while (!(seen & CLOSED))
                if (atomic_compare_exchange_weak(word, &seen, seen + 1))
                        return true;
        return false;
}

void gate_enter(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);

        while (!gate_try_enter(gates, key)) {
                uint32_t seen = atomic_load(word);

                if (seen & CLOSED)
                        word_wait(word, seen);
        }
}

void gate_leave(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);

        if (atomic_fetch_sub(word, 1) == (CLOSED | 1))
                word_wake(word);
}

bool gate_try_close(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);
        uint32_t nobody = 0;

        return atomic_compare_exchange_strong(word, &nobody, CLOSED);
}

void gate_close(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);
        uint32_t seen = atomic_load(word);

        for (;;) {
                if (seen & CLOSED) {
                        word_wait(word, seen);
                        seen = atomic_load(word);
                } else if (atomic_compare_exchange_weak(word, &seen, seen | CLOSED)) {
                        break;
                }
        }
        for (seen = atomic_load(word); seen != CLOSED; seen = atomic_load(word))
                word_wait(word, seen);
}

void gate_open(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);

        atomic_fetch_and(word, ~CLOSED);
        word_wake(word);
}
