/* SPDX-License-Identifier: Apache-2.0 */
/* greeter.h - the process that listens for NBD clients, negotiates with them, and hands them over.
 *
 *      vhdd --greeter --uid UID --gid GID      with descriptor 3: its end of a channel to the broker
 *
 * Hostile clients talk to it first, so it has nothing: no file, no chain, no name. It goes into its
 * sandbox before it reads the first message (vhdd/greeter/sandbox.h). It ends when the channel does, and
 * is killed when the broker's thread that started it ends: the next broker starts another. Clients that
 * were handed over do not notice.
 *
 * What the broker asks (vhdd/ipc/rpc.h):
 *
 *  start {} and 1 to 32 descriptors           {landlock: the kernel's version or 0, seccomp: bool}
 *                                             sockets that listen: clients are answered from here on
 *  counters {}                                {accepted, refused, failed, handed-over, greeting}
 *
 * What it asks the broker, on a thread of the client that it is about:
 *
 *  lookup {name}                              {name, size, preferred-size, read-only, description?,
 *                                             changed: [snapshot name, ...]}; the name that comes back
 *                                             is the one that goes with the handoff.
 *                                             -ENOENT; -EAGAIN: it takes no clients just now
 *  list {}                                    {exports: [{name, description?}, ...]}
 *  client {handoff} and the socket            {} when the one who serves has it; any other answer but
 *                                             none means that nobody has. handoff: the text of
 *                                             nbd/server/handoff.h
 *
 * Events: "log" {level: error|info|debug, message}.
 *
 * Units      bytes; milliseconds where the name says _MS.
 * Threads    main reads the channel; the NBD server has its own.
 */
#pragma once

#define GREETER_CHANNEL_FD 3
/* A client waits no longer for the broker's answer. The broker may hold one while a worker starts. */
#define GREETER_ASK_MS 15000

/* The process's whole life: ends it with 0 when the broker closed the channel, else with 3. */
int greeter_main(int argc, char **argv);
