/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.h - the JSON-RPC that Open vSwitch's programs speak on their unix sockets.
 *
 * ovsdb-server's remotes and every program's control socket (unixctl) speak it alike: JSON texts one behind
 * the other, with nothing between them. One request is under way at a time; what the other side asks
 * meanwhile ("echo") is answered, its notifications are dropped.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  ovs_rpc_open hands out, ovs_rpc_close ends. Results are new references.
 * Errors     0 or -errno with one sentence. -ETIMEDOUT, -EPIPE, -EPROTO: the connection is of no use any
 *            more. -EREMOTEIO: the other side said no, in its words.
 * Threads    one thread at a time.
 * Spec       RFC 7047, "Open vSwitch Database Management Protocol", sections 3 and 4; JSON-RPC 1.0.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

/* The longest text that is taken: a database of many thousand ports is far below it. */
#define OVS_RPC_MAX_TEXT (64u << 20)

struct ovs_rpc;

/* @path may be longer than what a socket's address holds. */
int ovs_rpc_open(const char *path, struct ovs_rpc **ret, struct error *err);
struct ovs_rpc *ovs_rpc_close(struct ovs_rpc *rpc); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct ovs_rpc *, ovs_rpc_close)

/* False after a failure that ended it. */
bool ovs_rpc_is_alive(const struct ovs_rpc *rpc);
/* The process at the other end, by the kernel's word; 0: not known. */
pid_t ovs_rpc_peer(const struct ovs_rpc *rpc);

/* @params, a list, is taken over. @ret may be NULL. */
int ovs_rpc_call(struct ovs_rpc *rpc, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err);
