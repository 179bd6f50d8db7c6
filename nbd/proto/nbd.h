/* SPDX-License-Identifier: Apache-2.0 */
/* nbd.h - the NBD protocol as it travels: numbers and structs, nothing that acts.
 *
 * Everything on the wire is big-endian. A struct here is bytes (alignment 1, no padding): it is
 * copied into or out of a buffer, never pointed at one.
 *
 * Units      bytes, unless the name says otherwise.
 * Spec       https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

/* Handshake, "newstyle negotiation" */
#define NBD_MAGIC        UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REP_MAGIC    UINT64_C(0x0003e889045565a9)

#define NBD_FLAG_FIXED_NEWSTYLE UINT16_C(1)
#define NBD_FLAG_NO_ZEROES      UINT16_C(2)

#define NBD_STRING_MAX  4096u       /* names and error texts, as the spec says */
#define NBD_OPTION_MAX  (64u << 10) /* ours: the longest option that we take */
#define NBD_REQUEST_MAX (32u << 20) /* ours: the longest read or write; advertised */

enum nbd_option {
        NBD_OPT_EXPORT_NAME = 1,
        NBD_OPT_ABORT = 2,
        NBD_OPT_LIST = 3,
        NBD_OPT_STARTTLS = 5,
        NBD_OPT_INFO = 6,
        NBD_OPT_GO = 7,
        NBD_OPT_STRUCTURED_REPLY = 8,
        NBD_OPT_LIST_META_CONTEXT = 9,
        NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERROR(n) (UINT32_C(1) << 31 | (n))
enum nbd_option_reply {
        NBD_REP_ACK = 1,
        NBD_REP_SERVER = 2,
        NBD_REP_INFO = 3,
        NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP    NBD_REP_ERROR(1)
#define NBD_REP_ERR_POLICY   NBD_REP_ERROR(2)
#define NBD_REP_ERR_INVALID  NBD_REP_ERROR(3)
#define NBD_REP_ERR_UNKNOWN  NBD_REP_ERROR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERROR(7)
#define NBD_REP_ERR_TOO_BIG  NBD_REP_ERROR(9)

enum nbd_info {
        NBD_INFO_EXPORT = 0,
        NBD_INFO_NAME = 1,
        NBD_INFO_DESCRIPTION = 2,
        NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags */
#define NBD_FLAG_HAS_FLAGS         UINT16_C(0x0001)
#define NBD_FLAG_READ_ONLY         UINT16_C(0x0002)
#define NBD_FLAG_SEND_FLUSH        UINT16_C(0x0004)
#define NBD_FLAG_SEND_FUA          UINT16_C(0x0008)
#define NBD_FLAG_SEND_TRIM         UINT16_C(0x0020)
#define NBD_FLAG_SEND_WRITE_ZEROES UINT16_C(0x0040)
#define NBD_FLAG_SEND_DF           UINT16_C(0x0080)
#define NBD_FLAG_CAN_MULTI_CONN    UINT16_C(0x0100)
#define NBD_FLAG_SEND_CACHE        UINT16_C(0x0400)
#define NBD_FLAG_SEND_FAST_ZERO    UINT16_C(0x0800)

/* Transmission */
#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

enum nbd_command {
        NBD_CMD_READ = 0,
        NBD_CMD_WRITE = 1,
        NBD_CMD_DISC = 2,
        NBD_CMD_FLUSH = 3,
        NBD_CMD_TRIM = 4,
        NBD_CMD_CACHE = 5,
        NBD_CMD_WRITE_ZEROES = 6,
        NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA       UINT16_C(0x01)
#define NBD_CMD_FLAG_NO_HOLE   UINT16_C(0x02)
#define NBD_CMD_FLAG_DF        UINT16_C(0x04)
#define NBD_CMD_FLAG_REQ_ONE   UINT16_C(0x08)
#define NBD_CMD_FLAG_FAST_ZERO UINT16_C(0x10)

#define NBD_REPLY_FLAG_DONE UINT16_C(1)
enum nbd_reply_type {
        NBD_REPLY_TYPE_NONE = 0,
        NBD_REPLY_TYPE_OFFSET_DATA = 1,
        NBD_REPLY_TYPE_OFFSET_HOLE = 2,
        NBD_REPLY_TYPE_BLOCK_STATUS = 5,
        NBD_REPLY_TYPE_ERROR = 0x8001,
        NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002,
};

/* base:allocation */
#define NBD_STATE_HOLE UINT32_C(1)
#define NBD_STATE_ZERO UINT32_C(2)

/* Error numbers of the protocol: Linux's of 2009, whatever the host's are. */
enum nbd_error {
        NBD_SUCCESS = 0,
        NBD_EPERM = 1,
        NBD_EIO = 5,
        NBD_ENOMEM = 12,
        NBD_EINVAL = 22,
        NBD_ENOSPC = 28,
        NBD_EOVERFLOW = 75,
        NBD_ENOTSUP = 95,
        NBD_ESHUTDOWN = 108,
};

struct nbd_wire_hello { /* server first, at once */
        be64 magic, option_magic;
        be16 flags;
};

struct nbd_wire_option {
        be64 magic; /* NBD_OPTION_MAGIC */
        be32 option, length;
};

struct nbd_wire_option_reply {
        be64 magic; /* NBD_REP_MAGIC */
        be32 option, type, length;
};

struct nbd_wire_export { /* the end of EXPORT_NAME; 124 zeros follow unless NO_ZEROES */
        be64 size;
        be16 flags;
};
#define NBD_EXPORT_ZEROES 124u

struct nbd_wire_info_export {
        be16 info; /* NBD_INFO_EXPORT */
        be64 size;
        be16 flags;
};

struct nbd_wire_info_block_size {
        be16 info; /* NBD_INFO_BLOCK_SIZE */
        be32 minimum, preferred, maximum;
};

struct nbd_wire_request {
        be32 magic; /* NBD_REQUEST_MAGIC */
        be16 flags, command;
        uint8_t cookie[8]; /* the client's: given back as it is */
        be64 offset;
        be32 length;
};

struct nbd_wire_simple_reply {
        be32 magic; /* NBD_SIMPLE_REPLY_MAGIC */
        be32 error;
        uint8_t cookie[8];
};

struct nbd_wire_chunk {
        be32 magic; /* NBD_STRUCTURED_REPLY_MAGIC */
        be16 flags, type;
        uint8_t cookie[8];
        be32 length; /* of what follows */
};

struct nbd_wire_data_chunk {
        struct nbd_wire_chunk chunk;
        be64 offset;
        /* data */
};

struct nbd_wire_hole_chunk {
        struct nbd_wire_chunk chunk;
        be64 offset;
        be32 hole_size;
};

struct nbd_wire_error_chunk { /* ERROR: the message follows */
        struct nbd_wire_chunk chunk;
        be32 error;
        be16 message_length;
};

struct nbd_wire_extent { /* of a BLOCK_STATUS chunk, after the context's id */
        be32 length, flags;
};

static_assert(sizeof(struct nbd_wire_hello) == 18, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_option) == 16, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_option_reply) == 20, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_export) == 10, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_info_export) == 12, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_info_block_size) == 14, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_request) == 28, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_simple_reply) == 16, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_chunk) == 20, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_data_chunk) == 28, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_hole_chunk) == 32, "as the spec draws it");
static_assert(sizeof(struct nbd_wire_error_chunk) == 26, "as the spec draws it");
