/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed newstyle negotiation, from the server's hello to an export.
 *
 *      hello -> client's flags -> option* -> GO or EXPORT_NAME: served
 *                                        \-> ABORT, nonsense, silence, end: gone
 *
 * Hostile clients talk here. An option's header is read, and then exactly its length, so nothing that
 * follows is touched; one that is longer than NBD_OPTION_MAX ends the connection unread. All of it
 * has one deadline, for sending too. Nothing of a client's words is ever sent back. */
#include <assert.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "nbd/server/private.h"

struct greeting {
        struct client *client;
        uint64_t deadline_ms;
        bool fixed;    /* the client speaks fixed newstyle */
        uint8_t *data; /* of the option at hand: NBD_OPTION_MAX bytes */
        struct agreement agreement;
        const struct export *contexts_export; /* what SET_META_CONTEXT named */
        bool done;                            /* it has an export */
        uint8_t reply[sizeof(struct nbd_wire_option_reply) + sizeof(be32) + 2 * NBD_STRING_MAX];
};

/* What is left of an option's data. */
struct cursor {
        const uint8_t *p;
        size_t left;
};

static const struct {
        const char *name;
        enum meta_context context;
} contexts[] = {
        {"base:allocation", CONTEXT_ALLOCATION},
        {"vhdd:depth", CONTEXT_DEPTH},
        {"qemu:allocation-depth", CONTEXT_QEMU_DEPTH},
};
#define N_CONTEXT_NAMES (sizeof(contexts) / sizeof(contexts[0]))

static int wait_for(struct greeting *g, short events, struct error *err)
{
        for (;;) {
                uint64_t now = now_ms();
                struct pollfd pfd = {.fd = g->client->fd, .events = events};
                int n;

                if (now >= g->deadline_ms)
                        return fail(err, ETIMEDOUT, "it did not finish negotiating in %u ms",
                                g->client->server->options.handshake_timeout_ms);
                n = poll(&pfd, 1, (int)(g->deadline_ms - now));
                if (n > 0)
                        return 0;
                if (n < 0 && errno != EINTR)
                        return fail_os(err, errno, "cannot wait for it");
        }
}

static int receive(struct greeting *g, void *data, size_t length, struct error *err)
{
        uint8_t *p = data;

        while (length > 0) {
                ssize_t n;
                int r = wait_for(g, POLLIN, err);

                if (r < 0)
                        return r;
                n = recv(g->client->fd, p, length, MSG_DONTWAIT);
                if (n < 0 && (errno == EINTR || errno == EAGAIN))
                        continue;
                if (n < 0)
                        return fail_os(err, errno, "cannot receive");
                if (n == 0)
                        return fail(err, ECONNRESET, "it went away while negotiating");
                p += n;
                length -= (size_t)n;
        }
        return 0;
}

static int send_all(struct greeting *g, const void *data, size_t length, struct error *err)
{
        const uint8_t *p = data;

        while (length > 0) {
                ssize_t n = send(g->client->fd, p, length, MSG_DONTWAIT | MSG_NOSIGNAL);

                if (n < 0 && errno == EAGAIN) {
                        int r = wait_for(g, POLLOUT, err);

                        if (r < 0)
                                return r;
                        continue;
                }
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return fail_os(err, errno, "cannot send");
                p += n;
                length -= (size_t)n;
        }
        return 0;
}

/* One reply to an option: up to two parts of data behind the header, all in one send. */
static int reply2(struct greeting *g, uint32_t option, uint32_t type, const void *a,
        size_t a_length, const void *b, size_t b_length, struct error *err)
{
        struct nbd_wire_option_reply header = {
                .magic = be64_make(NBD_REP_MAGIC),
                .option = be32_make(option),
                .type = be32_make(type),
                .length = be32_make((uint32_t)(a_length + b_length)),
        };
        uint8_t *p = g->reply;

        /* The longest is an export's name and description. */
        assert(sizeof(header) + a_length + b_length <= sizeof(g->reply));
        p = mempcpy(p, &header, sizeof(header));
        if (a_length > 0)
                p = mempcpy(p, a, a_length);
        if (b_length > 0)
                p = mempcpy(p, b, b_length);
        return send_all(g, g->reply, (size_t)(p - g->reply), err);
}

static int reply(struct greeting *g, uint32_t option, uint32_t type, struct error *err)
{
        return reply2(g, option, type, NULL, 0, NULL, 0, err);
}

static int refuse(
        struct greeting *g, uint32_t option, uint32_t type, const char *sentence, struct error *err)
{
        client_log(g->client, NBD_LOG_DEBUG, "option %u refused: %s", option, sentence);
        return reply2(g, option, type, sentence, strlen(sentence), NULL, 0, err);
}

static bool take(struct cursor *c, void *ret, size_t size)
{
        if (c->left < size)
                return false;
        memcpy(ret, c->p, size);
        c->p += size;
        c->left -= size;
        return true;
}

/* A 32-bit length, and so many bytes. The string lies in the option's data. */
static bool take_string(struct cursor *c, const char **ret, size_t *ret_length)
{
        be32 length;

        if (!take(c, &length, sizeof(length)) || be32_get(length) > c->left)
                return false;
        *ret = (const char *)c->p;
        *ret_length = be32_get(length);
        c->p += *ret_length;
        c->left -= *ret_length;
        return true;
}

uint16_t export_flags(const struct export *export, bool structured)
{
        uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN |
                NBD_FLAG_SEND_CACHE;

        if (structured)
                flags |= NBD_FLAG_SEND_DF;
        if (export->read_only)
                return flags | NBD_FLAG_READ_ONLY;
        return flags | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                NBD_FLAG_SEND_FAST_ZERO;
}

/* The last thing of a greeting: the client counts as served from here on. */
static bool settle(struct greeting *g, const struct export *export)
{
        g->agreement.export = export;
        /* Contexts were chosen for one export by name; on another they mean nothing. */
        if (g->contexts_export != export)
                g->agreement.contexts = 0;
        g->done = server_promote(g->client, &g->agreement);
        return g->done;
}

/* EXPORT_NAME has no way to say no but to close. */
static int do_export_name(struct greeting *g, struct cursor data, struct error *err)
{
        const struct export *export =
                server_find_export(g->client->server, (const char *)data.p, data.left);
        uint8_t out[sizeof(struct nbd_wire_export) + NBD_EXPORT_ZEROES] = {0};
        struct nbd_wire_export wire;

        if (!export)
                return fail(err, ENOENT, "it asked for an export that does not exist");
        if (!settle(g, export))
                return fail(err, EBUSY, "too many clients are served already");
        wire.size = be64_make(export->size);
        wire.flags = be16_make(export_flags(export, g->agreement.structured));
        memcpy(out, &wire, sizeof(wire));
        return send_all(g, out, g->agreement.no_zeroes ? sizeof(wire) : sizeof(out), err);
}

static int do_list(struct greeting *g, struct cursor data, struct error *err)
{
        const struct nbd_server *server = g->client->server;

        if (data.left > 0)
                return refuse(g, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "LIST takes no data", err);
        for (size_t i = 0; i < server->n_exports; i++) {
                const struct export *export = &server->exports[i];
                const char *description = export->description ? export->description : "";
                be32 name_length = be32_make((uint32_t) export->name_length);
                uint8_t head[sizeof(name_length) + NBD_STRING_MAX];
                int r;

                memcpy(head, &name_length, sizeof(name_length));
                memcpy(head + sizeof(name_length), export->name, export->name_length);
                r = reply2(g, NBD_OPT_LIST, NBD_REP_SERVER, head,
                        sizeof(name_length) + export->name_length, description, strlen(description),
                        err);
                if (r < 0)
                        return r;
        }
        return reply(g, NBD_OPT_LIST, NBD_REP_ACK, err);
}

static int reply_info_text(struct greeting *g, uint32_t option, enum nbd_info info,
        const char *text, size_t length, struct error *err)
{
        be16 head = be16_make((uint16_t)info);

        return reply2(g, option, NBD_REP_INFO, &head, sizeof(head), text, length, err);
}

static int reply_block_size(
        struct greeting *g, uint32_t option, const struct export *export, struct error *err)
{
        uint32_t preferred = chain_preferred_size(export->volume->chain);
        struct nbd_wire_info_block_size info = {
                .info = be16_make(NBD_INFO_BLOCK_SIZE),
                .minimum = be32_make(1),
                .preferred = be32_make(MIN_OF(preferred, NBD_REQUEST_MAX)),
                .maximum = be32_make(NBD_REQUEST_MAX),
        };

        return reply2(g, option, NBD_REP_INFO, &info, sizeof(info), NULL, 0, err);
}

static int reply_export(
        struct greeting *g, uint32_t option, const struct export *export, struct error *err)
{
        struct nbd_wire_info_export info = {
                .info = be16_make(NBD_INFO_EXPORT),
                .size = be64_make(export->size),
                .flags = be16_make(export_flags(export, g->agreement.structured)),
        };

        return reply2(g, option, NBD_REP_INFO, &info, sizeof(info), NULL, 0, err);
}

/* The information that INFO and GO ask for; what every client should know comes unasked. */
static int reply_infos(struct greeting *g, uint32_t option, const struct export *export,
        struct cursor requests, struct error *err)
{
        bool told_name = false, told_description = false;
        be16 info;
        int r = reply_export(g, option, export, err);

        if (r == 0)
                r = reply_block_size(g, option, export, err);
        while (r == 0 && take(&requests, &info, sizeof(info))) {
                if (be16_get(info) == NBD_INFO_NAME && !told_name) {
                        told_name = true;
                        r = reply_info_text(
                                g, option, NBD_INFO_NAME, export->name, export->name_length, err);
                }
                if (be16_get(info) == NBD_INFO_DESCRIPTION && !told_description &&
                        export->description) {
                        told_description = true;
                        r = reply_info_text(g, option, NBD_INFO_DESCRIPTION, export->description,
                                strlen(export->description), err);
                }
        }
        return r;
}

static int do_info(struct greeting *g, uint32_t option, struct cursor data, struct error *err)
{
        const struct export *export;
        const char *name;
        size_t name_length;
        be16 n_infos;
        int r;

        if (!take_string(&data, &name, &name_length) || !take(&data, &n_infos, sizeof(n_infos)) ||
                data.left != be16_get(n_infos) * sizeof(be16))
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "the lengths in this option do not fit together", err);
        export = server_find_export(g->client->server, name, name_length);
        if (!export)
                return refuse(g, option, NBD_REP_ERR_UNKNOWN, "no such export", err);
        if (option == NBD_OPT_GO && !settle(g, export))
                return refuse(
                        g, option, NBD_REP_ERR_POLICY, "too many clients are served already", err);
        r = reply_infos(g, option, export, data, err);
        if (r < 0)
                return r;
        return reply(g, option, NBD_REP_ACK, err);
}

static int do_structured(struct greeting *g, struct cursor data, struct error *err)
{
        if (data.left > 0)
                return refuse(g, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                        "STRUCTURED_REPLY takes no data", err);
        g->agreement.structured = true;
        return reply(g, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, err);
}

/* Does a query choose this context? A namespace with nothing behind it stands for all in it, but only
 * where contexts are listed. */
static bool query_matches(const char *query, size_t length, const char *name, bool list)
{
        size_t namespace_length = (size_t)(strchr(name, ':') - name) + 1;

        if (length == strlen(name) && memcmp(query, name, length) == 0)
                return true;
        return list && length == namespace_length && memcmp(query, name, length) == 0;
}

static int reply_contexts(struct greeting *g, uint32_t option, unsigned chosen, struct error *err)
{
        for (size_t i = 0; i < N_CONTEXT_NAMES; i++) {
                be32 id = be32_make(CONTEXT_ID(contexts[i].context));
                int r;

                if (!(chosen & 1u << contexts[i].context))
                        continue;
                r = reply2(g, option, NBD_REP_META_CONTEXT, &id, sizeof(id), contexts[i].name,
                        strlen(contexts[i].name), err);
                if (r < 0)
                        return r;
        }
        return reply(g, option, NBD_REP_ACK, err);
}

static int do_meta_context(
        struct greeting *g, uint32_t option, struct cursor data, struct error *err)
{
        bool list = option == NBD_OPT_LIST_META_CONTEXT;
        const struct export *export;
        const char *name, *query;
        size_t name_length, length;
        unsigned chosen = 0;
        be32 n_queries;

        /* Whatever was set before is void, also if this one fails. */
        if (!list) {
                g->agreement.contexts = 0;
                g->contexts_export = NULL;
        }
        if (!g->agreement.structured)
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "meta contexts need structured replies first", err);
        if (!take_string(&data, &name, &name_length) || !take(&data, &n_queries, sizeof(n_queries)))
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "the lengths in this option do not fit together", err);
        for (uint32_t i = 0; i < be32_get(n_queries); i++) {
                if (!take_string(&data, &query, &length))
                        return refuse(g, option, NBD_REP_ERR_INVALID,
                                "the lengths in this option do not fit together", err);
                for (size_t j = 0; j < N_CONTEXT_NAMES; j++)
                        if (query_matches(query, length, contexts[j].name, list))
                                chosen |= 1u << contexts[j].context;
        }
        if (data.left > 0)
                return refuse(g, option, NBD_REP_ERR_INVALID, "data behind the last query", err);
        export = server_find_export(g->client->server, name, name_length);
        if (!export)
                return refuse(g, option, NBD_REP_ERR_UNKNOWN, "no such export", err);

        if (list) {
                if (be32_get(n_queries) == 0)
                        chosen = (1u << N_CONTEXTS) - 1;
        } else {
                g->agreement.contexts = chosen;
                g->contexts_export = export;
        }
        return reply_contexts(g, option, chosen, err);
}

static int do_option(struct greeting *g, uint32_t option, uint32_t length, struct error *err)
{
        struct cursor data = {.p = g->data, .left = length};

        switch (option) {
        case NBD_OPT_EXPORT_NAME: return do_export_name(g, data, err);
        case NBD_OPT_ABORT:
                reply(g, option, NBD_REP_ACK, err);
                return fail(err, ECONNABORTED, "it wants no export");
        case NBD_OPT_LIST: return do_list(g, data, err);
        case NBD_OPT_INFO:
        case NBD_OPT_GO: return do_info(g, option, data, err);
        case NBD_OPT_STRUCTURED_REPLY: return do_structured(g, data, err);
        case NBD_OPT_LIST_META_CONTEXT:
        case NBD_OPT_SET_META_CONTEXT: return do_meta_context(g, option, data, err);
        case NBD_OPT_STARTTLS:
                return refuse(g, option, NBD_REP_ERR_UNSUP, "this server has no TLS", err);
        default:
                return refuse(
                        g, option, NBD_REP_ERR_UNSUP, "this server does not know the option", err);
        }
}

static int next_option(struct greeting *g, struct error *err)
{
        struct nbd_wire_option wire;
        uint32_t option, length;
        int r = receive(g, &wire, sizeof(wire), err);

        if (r < 0)
                return r;
        option = be32_get(wire.option);
        length = be32_get(wire.length);
        if (be64_get(wire.magic) != NBD_OPTION_MAGIC)
                return fail(err, EPROTO, "an option without its magic number");
        if (length > NBD_OPTION_MAX)
                return fail(err, EPROTO, "option %u of %u bytes; we take %u at most", option,
                        length, NBD_OPTION_MAX);
        if (!g->fixed && option != NBD_OPT_EXPORT_NAME)
                return fail(err, EPROTO, "option %u from a client without fixed newstyle", option);
        r = receive(g, g->data, length, err);
        if (r < 0)
                return r;
        return do_option(g, option, length, err);
}

static int say_hello(struct greeting *g, struct error *err)
{
        struct nbd_wire_hello hello = {
                .magic = be64_make(NBD_MAGIC),
                .option_magic = be64_make(NBD_OPTION_MAGIC),
                .flags = be16_make(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
        };
        be32 wire;
        uint32_t flags;
        int r = send_all(g, &hello, sizeof(hello), err);

        if (r == 0)
                r = receive(g, &wire, sizeof(wire), err);
        if (r < 0)
                return r;
        flags = be32_get(wire);
        if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
                return fail(err, EPROTO, "client flags %08x that do not exist", flags);
        g->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
        g->agreement.no_zeroes = flags & NBD_FLAG_NO_ZEROES;
        return 0;
}

int client_greet(struct client *client, struct agreement *ret, struct error *err)
{
        _cleanup_free_ uint8_t *data = malloc(NBD_OPTION_MAX);
        struct greeting g = {
                .client = client,
                .deadline_ms = client->begun_ms + client->server->options.handshake_timeout_ms,
                .data = data,
        };
        int r;

        if (!data)
                return fail(err, ENOMEM, "no memory to negotiate with it");
        r = say_hello(&g, err);
        while (r == 0 && !g.done)
                r = next_option(&g, err);
        if (r < 0)
                return r;
        *ret = g.agreement;
        return 0;
}
