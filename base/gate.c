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

#define BLOCK_SHIFT  56u /* 256 stripes: what is left of 64 bits of key */
#define THREAD_SHIFT 60u /* 16 */
#define CLOSED    UINT32_C(0x80000000)

struct stripe {
        _Atomic uint32_t word;
} __attribute__((aligned(64)));

struct gates {
        /* immutable after new */
        unsigned shift;

        struct stripe stripes[];
};

static unsigned n_stripes(const struct gates *gates)
{
        return 1u << (64 - gates->shift);
}

static struct gates *make(unsigned shift)
{
        size_t size = sizeof(struct gates) + ((size_t)1 << (64 - shift)) * sizeof(struct stripe);
        struct gates *gates = aligned_alloc(64, size);

        if (!gates)
                return NULL;
        gates->shift = shift;
        for (unsigned i = 0; i < n_stripes(gates); i++)
                atomic_init(&gates->stripes[i].word, 0);
        return gates;
}

struct gates *gates_new(void)
{
        return make(BLOCK_SHIFT);
}

struct gates *gates_new_small(void)
{
        return make(THREAD_SHIFT);
}

struct gates *gates_free(struct gates *gates)
{
        free(gates);
        return NULL;
}

static _Atomic uint32_t *word_of(struct gates *gates, uint64_t key)
{
        return &gates->stripes[(key * UINT64_C(0x9e3779b97f4a7c15)) >> gates->shift].word;
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

static void wait_until_empty(_Atomic uint32_t *word)
{
        uint32_t seen;

        while ((seen = atomic_load(word)) != CLOSED)
                word_wait(word, seen);
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
        wait_until_empty(word);
}

void gate_open(struct gates *gates, uint64_t key)
{
        _Atomic uint32_t *word = word_of(gates, key);

        atomic_fetch_and(word, ~CLOSED);
        word_wake(word);
}

uint64_t gate_own_key(void)
{
        static _Atomic uint64_t next;
        static _Thread_local uint64_t own;

        if (own == 0)
                own = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) + 1;
        return own;
}

void gates_shut(struct gates *gates)
{
        for (unsigned i = 0; i < n_stripes(gates); i++)
                atomic_fetch_or(&gates->stripes[i].word, CLOSED);
}

void gates_drain(struct gates *gates)
{
        for (unsigned i = 0; i < n_stripes(gates); i++)
                wait_until_empty(&gates->stripes[i].word);
}

void gates_reopen(struct gates *gates)
{
        for (unsigned i = 0; i < n_stripes(gates); i++) {
                atomic_fetch_and(&gates->stripes[i].word, ~CLOSED);
                word_wake(&gates->stripes[i].word);
        }
}
