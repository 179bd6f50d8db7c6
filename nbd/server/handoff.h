/* SPDX-License-Identifier: Apache-2.0 */
/* handoff.h - a client that negotiated with one process and is served by another.
 *
 * The one who greeted (a server with a directory, server.h) reads the option that chooses an export,
 * exactly its length, and does not answer it. What was agreed on so far, and that option, travel in
 * this struct, beside the socket; the one who serves answers the option.
 *
 * Units      bytes.
 * Ownership  plain values.
 * Errors     0 or -errno with one sentence. -EINVAL: a field is not what a greeter of ours sends.
 * Threads    none.
 */
#pragma once

#include <assert.h>
#include <stdint.h>

#include "base/error.h"

#define NBD_HANDOFF_VERSION  1u
#define NBD_HANDOFF_NAME_MAX 511u /* an export's name; VM/DISK@SNAPSHOT has at most 386 */
#define NBD_HANDOFF_PEER_MAX 95u
#define NBD_CHANGED_NAME_MAX 128u /* a snapshot's name in vhdd:changed:NAME */
#define NBD_CHANGED_MAX      8u   /* so many of them a client may choose at a time */

/* Of the same host, and so of its byte order. Everything that is not used is zero. */
struct nbd_handoff {
        uint32_t version;      /* NBD_HANDOFF_VERSION */
        uint32_t option;       /* NBD_OPT_GO or NBD_OPT_EXPORT_NAME */
        uint32_t client_flags; /* of the hello: NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES */
        uint32_t structured;   /* 1: structured replies were agreed on */
        uint32_t contexts;     /* bits of the fixed meta contexts, as the server numbers them */
        uint32_t infos;        /* bits 1 << enum nbd_info: what GO asks for beside the export */
        uint32_t n_changed;
        uint8_t changed[NBD_CHANGED_MAX][NBD_CHANGED_NAME_MAX + 4]; /* NUL-terminated, in the order
                                                                     * of their ids */
        uint8_t export_name[NBD_HANDOFF_NAME_MAX + 1];              /* NUL-terminated */
        uint8_t peer[NBD_HANDOFF_PEER_MAX + 1];                     /* for people; NUL-terminated */
};
static_assert(sizeof(struct nbd_handoff) == 7 * 4 + 8 * 132 + 512 + 96, "no padding");

/* Every field against every other: it came from another process. */
int nbd_handoff_check(const struct nbd_handoff *handoff, struct error *err);

/* As text without blanks or quotes, for a message: sizeof(struct) * 2 digits and the NUL. */
#define NBD_HANDOFF_TEXT_SIZE (2 * sizeof(struct nbd_handoff) + 1)
void nbd_handoff_to_text(const struct nbd_handoff *handoff, char ret[NBD_HANDOFF_TEXT_SIZE]);
/* The other way round; what comes out has been checked. */
int nbd_handoff_from_text(const char *text, struct nbd_handoff *ret, struct error *err);
