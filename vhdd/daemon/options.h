/* SPDX-License-Identifier: Apache-2.0 */
/* options.h - the daemon's command line.
 *
 * Units      none.
 * Ownership  options_read fills, options_done frees what is in it.
 * Errors     --help and --version end the process with 0, wrong usage with 2.
 * Threads    before there are any.
 */
#pragma once

#include "vhdd/daemon/broker.h"

/* Defaults are filled in: paths are absolute, but need not exist. */
void options_read(int argc, char **argv, struct broker_options *ret);
void options_done(struct broker_options *options);
