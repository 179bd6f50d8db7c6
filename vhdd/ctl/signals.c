/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/signals.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
#define N_SIGNALS (sizeof(signals) / sizeof(signals[0]))

/* The signal handler's: what to remove, and which signal came first (0: none). */
static char *_Atomic to_remove;
static atomic_int signal_seen;

static void end_as_asked(int number)
{
        signal(number, SIG_DFL);
        raise(number);
}

static void on_signal(int number)
{
        int none = 0;
        const char *path;

        if (atomic_compare_exchange_strong(&signal_seen, &none, number))
                return;
        path = atomic_load(&to_remove);
        if (path)
                unlink(path);
        end_as_asked(number);
}

void signals_watch(void)
{
        /* SA_NODEFER: a second signal of the same kind must not wait for the first's end. */
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NODEFER};

        for (size_t i = 0; i < N_SIGNALS; i++) {
                struct sigaction old;

                /* What was ignored when we started (nohup) stays ignored. */
                if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
                        sigaction(signals[i], &action, NULL);
        }
}

void signals_remove(char *path)
{
        atomic_store(&to_remove, path);
}

void signals_unwatch(void)
{
        for (size_t i = 0; i < N_SIGNALS; i++) {
                struct sigaction old;

                if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == on_signal)
                        signal(signals[i], SIG_DFL);
        }
}

bool signals_stopped(void)
{
        return atomic_load_explicit(&signal_seen, memory_order_relaxed) != 0;
}

void signals_end(void)
{
        int number = atomic_load(&signal_seen);

        if (number)
                end_as_asked(number);
}
