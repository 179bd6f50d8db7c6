/* SPDX-License-Identifier: Apache-2.0 */
/* exports.h - what NBD clients may ask for, and who serves it to them.
 *
 *      VM/DISK            the live disk
 *      VM/DISK@now        the same, read-only; counts as no use of the vm
 *      VM/DISK@SNAPSHOT   a snapshot's disk, read-only; its chain is open while somebody reads it
 *
 * Units      bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence. -ENOENT no such export. -EAGAIN its vm's worker is not
 *            there (any more) within EXPORTS_WAIT_MS.
 * Threads    any; lookup and hand_over may block for EXPORTS_WAIT_MS, list does not.
 */
#pragma once

#include <jansson.h>

#include "base/error.h"
#include "vhdd/daemon/broker.h"

#define EXPORTS_WAIT_MS 10000

struct nbd_handoff;

/* {name, size, preferred-size, read-only, description, changed: [NAME, ...]} */
int exports_lookup(struct broker *broker, const char *name, json_t **ret, struct error *err);
/* {exports: [{name, description}, ...]}: the live disks and the snapshots'. */
int exports_list(struct broker *broker, json_t **ret, struct error *err);
/* Brings a client that was greeted to the worker that serves it. @fd stays the caller's, who closes
 * it. */
int exports_hand_over(
        struct broker *broker, const struct nbd_handoff *handoff, int fd, struct error *err);

/* nbd+unix:///VM/DISK?socket=PATH, or nbd:// for an address. Allocated. */
char *exports_uri(struct broker *broker, const char *export_name);
