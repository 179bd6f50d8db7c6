/* SPDX-License-Identifier: Apache-2.0 */
/* method.h - what a method of the control API is made of, and who calls it.
 *
 * The server knows methods by tables that the daemon hands it, so that the requests' grammar does
 * not depend on what they do. What a method takes and answers is written in schema.json; a method
 * that is not there is not registered.
 *
 * Units      as schema.json says: bytes, RFC 3339 in UTC.
 * Ownership  a caller lives as long as the call. A control_client is counted: a method that wants to
 *            speak to this connection later (an agent's) takes a reference.
 * Errors     a method returns 0 and a value (the server drops the reference), or -errno with err
 *            filled. -EINVAL: wrong usage, JSON-RPC's -32602; everything else -32000 with the errno's
 *            name in data.code.
 * Threads    a method runs on its connection's thread; requests of one connection run in order,
 *            those of several at the same time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/* Descriptors that may come with one message. */
#define CONTROL_MAX_DESCRIPTORS 32u

struct broker; /* whose methods these are; control only hands it through */
struct control_client;

struct caller {
        uid_t uid;
        gid_t gid;
        pid_t pid;
        struct control_client *client; /* the connection, for control_client_*() */
        int *fds; /* came with the request; what a method keeps it sets to -1 */
        size_t n_fds;
};

/* @params: an object that was checked against the schema; never NULL. */
typedef int (*method_fn)(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);

/* A table ends with {NULL}. */
struct method {
        const char *name;
        method_fn run;
        bool changes; /* takes dry-run; must say what schema.json says */
};
