/* SPDX-License-Identifier: Apache-2.0 */
/* nbd_client.h - a bare NBD client for tests: it says exactly what it is told to, right or wrong.
 *
 * Every call that waits gives up after CLIENT_TIMEOUT_MS with a failed assertion, so a test of a
 * server that hangs fails instead of hanging.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd/proto/nbd.h"
#include "nbd/server/server.h"

#define CLIENT_TIMEOUT_MS 8000

struct option_reply {
        uint32_t option, type, length;
        uint8_t data[8192];
};

/* One reply, simple or structured, whole. */
struct nbd_answer {
        uint64_t cookie;
        uint32_t error; /* the protocol's number, 0 */
        bool has_error_offset;
        uint64_t error_offset;
        uint32_t data_bytes; /* that came as data */
        uint32_t hole_bytes; /* that came as holes */
        unsigned chunks;
        /* block status */
        unsigned n_contexts;
        struct {
                uint32_t id;
                unsigned n;
                uint32_t length[64], flags[64];
        } contexts[4];
};

/* A socket to the server, over a pair. Nothing is said yet. */
int client_connect(struct nbd_server *server);
void client_send(int fd, const void *data, size_t length);
void client_receive(int fd, void *data, size_t length);
/* The server closed (or reset) the connection; what it sent before is dropped. */
bool client_sees_end(int fd);
/* The same, but nothing may have been sent. */
bool client_sees_silent_end(int fd);

/* Takes the hello and answers it with these client flags. */
void client_hello(int fd, uint32_t flags);
void client_option(int fd, uint32_t option, const void *data, uint32_t length);
void client_option_header(int fd, uint32_t option, uint32_t length);
void client_option_reply(int fd, struct option_reply *ret);
/* An option of which every reply but the last is dropped; answers the last one's type. */
uint32_t client_option_result(int fd, uint32_t option, const void *data, uint32_t length);
/* The data of INFO and GO, or SET_META_CONTEXT with one query or none; answers its length. */
uint32_t client_info_data(uint8_t *out, const char *name);
uint32_t client_context_data(
        uint8_t *out, const char *name, const char *const *queries, uint32_t n_queries);

/* The whole way to an export. @contexts: NULL, or a list that ends with NULL. Answers the flags. */
uint16_t client_go(
        int fd, const char *name, bool structured, const char *const *contexts, uint64_t *ret_size);

void client_request(
        int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length);
/* A reply to a request of @read_length bytes at @offset (0 if it was no read); its bytes go to
 * @data. */
void client_answer_get(
        int fd, struct nbd_answer *ret, uint8_t *data, uint64_t offset, uint32_t read_length);
/* Request and reply at once. */
uint32_t client_read(int fd, void *data, uint32_t length, uint64_t offset);
uint32_t client_write(int fd, const void *data, uint32_t length, uint64_t offset, uint16_t flags);
uint32_t client_do(int fd, uint16_t type, uint16_t flags, uint64_t offset, uint32_t length);
