/* SPDX-License-Identifier: Apache-2.0 */
/* Long reads go from the page cache to the socket without being copied (E15).
 *
 * Only if the map answers at once, its pieces are long and lie in files of the host, and the first
 * and last page of each are in the page cache; never on TCP to this host, where the receiver would
 * see the page change under it. What is queued in a socket is a reference to the page: a ticket (E8)
 * keeps the place from other use until the bytes have left the socket. */
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "nbd/server/private.h"

/* More pieces than this, or shorter ones, are copied: each costs a system call and a chunk. */
#define MAX_PIECES 32u
#define PIECE_MIN  (16u << 10)

struct piece {
        uint64_t length;
        uint64_t file_offset;
        int fd; /* -1: zeros */
};

static const uint8_t zeros[64 << 10];

static bool is_cached(struct file *file, uint64_t offset)
{
        uint8_t byte;

        return file_read(file, &byte, 1, offset, FILE_NOWAIT) == 1;
}

static bool piece_from(const struct chain_extent *extent, struct piece *ret)
{
        *ret = (struct piece){.length = extent->length, .fd = -1};
        if (extent->kind != EXTENT_DATA)
                return true;
        if (extent->file->fd < 0 || extent->file->flags & FILE_DIRECT ||
                !is_cached(extent->file, extent->file_offset) ||
                !is_cached(extent->file, extent->file_offset + extent->length - 1))
                return false;
        ret->fd = extent->file->fd;
        ret->file_offset = extent->file_offset;
        return true;
}

/* All the pieces of the read, or false. */
static bool find_pieces(const struct client *client, const struct command *command,
        struct piece *ret, unsigned *ret_n)
{
        struct chain *chain = client->agreement.export->volume->chain;
        uint64_t at = command->offset, end = command->offset + command->length;
        bool any_data = false;
        unsigned n = 0;

        while (at < end) {
                struct chain_extent extent;

                if (n == MAX_PIECES || chain_map(chain, at, end - at, CHAIN_NOWAIT, &extent) < 0)
                        return false;
                extent.length = MIN_OF(extent.length, end - at);
                if (!piece_from(&extent, &ret[n]))
                        return false;
                any_data |= ret[n].fd >= 0;
                /* Neighbours in the file, or in nothing, are one piece. */
                if (n > 0 && ret[n].fd == ret[n - 1].fd &&
                        (ret[n].fd < 0 ||
                                ret[n].file_offset == ret[n - 1].file_offset + ret[n - 1].length))
                        ret[n - 1].length += extent.length;
                else
                        n++;
                at += extent.length;
        }
        *ret_n = n;
        return any_data && command->length / n >= PIECE_MIN;
}

static void send_zeros(struct client *client, uint64_t length)
{
        while (length > 0) {
                size_t n = MIN_OF(length, sizeof(zeros));

                if (tx_send(&client->tx, zeros, n, length > n) < 0)
                        return;
                length -= n;
        }
}

/* The bytes of one piece; after a failure of the disk zeros fill it up, because the header promised a
 * length. */
static int send_piece(struct client *client, const struct piece *piece)
{
        size_t sent;
        int r;

        if (piece->fd < 0) {
                send_zeros(client, piece->length);
                return 0;
        }
        r = tx_sendfile(&client->tx, piece->fd, piece->file_offset, piece->length, &sent);
        if (r < 0)
                send_zeros(client, piece->length - sent);
        return r;
}

/* False: it failed, and the client was told in the one way or the other. */
static bool send_simple(struct client *client, const struct command *command,
        const struct piece *pieces, unsigned n)
{
        uint8_t header[sizeof(struct nbd_wire_simple_reply)];

        tx_send(&client->tx, header, reply_simple_header(header, command, NBD_SUCCESS), true);
        for (unsigned i = 0; i < n; i++) {
                if (send_piece(client, &pieces[i]) < 0) {
                        /* Success was promised, and there is no way to take it back but this. */
                        tx_break(&client->tx);
                        client->ended = true;
                        count(&client->errors, 1);
                        return false;
                }
        }
        return true;
}

static bool send_structured(struct client *client, const struct command *command,
        const struct piece *pieces, unsigned n)
{
        bool one_chunk = command->flags & NBD_CMD_FLAG_DF;
        uint8_t header[REPLY_ERROR_MAX];
        uint64_t at = command->offset;

        if (one_chunk)
                tx_send(&client->tx, header,
                        reply_data_header(header, command, at, command->length, false), true);
        for (unsigned i = 0; i < n; i++) {
                uint32_t length = (uint32_t)pieces[i].length;
                int r = 0;

                if (!one_chunk && pieces[i].fd < 0) {
                        tx_send(&client->tx, header, reply_hole(header, command, at, length, false),
                                true);
                } else {
                        if (!one_chunk)
                                tx_send(&client->tx, header,
                                        reply_data_header(header, command, at, length, false),
                                        true);
                        r = send_piece(client, &pieces[i]);
                }
                if (r < 0) {
                        /* In one chunk the rest is owed all the same. */
                        if (one_chunk)
                                send_zeros(client, command->offset + command->length - at - length);
                        tx_send(&client->tx, header,
                                reply_error_offset(header, command, nbd_error_from(r), at), false);
                        count(&client->errors, 1);
                        return false;
                }
                at += length;
        }
        tx_send(&client->tx, header, reply_plain(header, client, command, NBD_SUCCESS), false);
        return true;
}

static void keep_ticket(struct client *client, uint64_t ticket)
{
        unsigned i = (client->tickets_start + client->n_tickets++) % MAX_SENT_TICKETS;

        client->tickets[i] = (struct sent_ticket){
                .ticket = ticket,
                .stream_end = atomic_load(&client->tx.total),
        };
}

static void put_oldest_ticket(struct client *client)
{
        chain_ticket_put(client->agreement.export->volume->chain,
                client->tickets[client->tickets_start].ticket);
        client->tickets_start = (client->tickets_start + 1) % MAX_SENT_TICKETS;
        client->n_tickets--;
}

void client_settle_tickets(struct client *client)
{
        uint64_t total = atomic_load(&client->tx.total);
        int queued;

        if (client->n_tickets == 0)
                return;
        /* A unix socket counts the memory of what its peer has not read, which is no less than its
         * bytes; TCP what was not acknowledged. So at least total - queued bytes have left. */
        if (ioctl(client->fd, SIOCOUTQ, &queued) < 0 || queued < 0)
                return;
        while (client->n_tickets > 0 &&
                client->tickets[client->tickets_start].stream_end + (uint64_t)queued <= total)
                put_oldest_ticket(client);
}

void client_drop_tickets(struct client *client)
{
        while (client->n_tickets > 0)
                put_oldest_ticket(client);
}

bool client_sendfile(struct client *client, const struct command *command)
{
        struct chain *chain = client->agreement.export->volume->chain;
        struct piece pieces[MAX_PIECES];
        uint64_t ticket;
        unsigned n;
        bool sent;

        /* E8: while blocks move, a slow client's ticket would hold that up. */
        if (!client->may_sendfile || command->length < SENDFILE_MIN || chain_is_moving(chain))
                return false;
        client_settle_tickets(client);
        if (client->n_tickets == MAX_SENT_TICKETS)
                return false;

        ticket = chain_ticket_get(chain);
        if (!find_pieces(client, command, pieces, &n)) {
                chain_ticket_put(chain, ticket);
                return false;
        }
        arena_flush(client);
        tx_begin(&client->tx);
        sent = client->agreement.structured ? send_structured(client, command, pieces, n)
                                            : send_simple(client, command, pieces, n);
        stats_add(client, command, !sent);
        keep_ticket(client, ticket);
        tx_end(&client->tx);
        count(&client->server->sendfile_reads, 1);
        count(&client->bytes_read, command->length);
        return true;
}
