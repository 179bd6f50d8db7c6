/* SPDX-License-Identifier: Apache-2.0 */
/* signals.h - ending long work in order when a signal asks for it.
 *
 * SIGINT, SIGTERM and SIGHUP while they are watched: the first makes signals_stopped() true, so that the
 * verb ends in order; a second one ends the process at once.
 *
 * Units      none.
 * Ownership  a path that signals_remove() was given lives until it is given another one.
 * Threads    signals_stopped from any thread; the others from the main one.
 */
#pragma once

#include <stdbool.h>

void signals_watch(void);
/* A file that a second signal removes before it ends the process; NULL: none. */
void signals_remove(char *path);
void signals_unwatch(void);
bool signals_stopped(void);
/* Ends the process as the first signal asked; returns if there was none. */
void signals_end(void);
