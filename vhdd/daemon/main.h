/* SPDX-License-Identifier: Apache-2.0 */
/* main.h - the broker's whole life.
 *
 *      options -> state directory, locked -> sockets -> catalog -> vms and their workers -> greeter
 *              -> control server -> READY ... until a signal or a request
 *      stop (SIGTERM, SIGINT, "shutdown"): workers drain, flush and end, exit status 0
 *      restart (SIGHUP, "restart"): the program is executed anew; workers, sockets and the lock stay
 *
 * kill -9 leaves the workers running; the next broker on the directory adopts them.
 */
#pragma once

#include "base/error.h"
#include "vhdd/daemon/broker.h"

/* Answers the exit status: 0 ended as asked, 2 wrong usage, 3 it failed. */
int daemon_main(int argc, char **argv);

/* While the program is being replaced there may be none for a moment: better to stay the old one. Any
 * thread. */
int daemon_can_restart(struct broker *broker, struct error *err);
