/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed newstyle negotiation, from the server's hello to an export.
 *
 *      hello -> client's flags -> option* -> GO or EXPORT_NAME: served, or handed over
 *                                        \-> ABORT, nonsense, silence, end: gone
 *
 * What is told of an export is a copy: the export may go while a client is slow to take it.
 *
 * Hostile clients talk here. An option's header is read, and then exactly its length, so nothing that
 * follows is touched; one that is longer than NBD_OPTION_MAX ends the connection unread. All of it
 * has one deadline, for sending too. Nothing of a client's words is ever sent back. */
#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/utf16.h"
#include "nbd/server/private.h"

struct greeting {
        struct client *client;
        uint64_t deadline_ms;
        uint32_t flags; /* the client's */
        uint8_t *data;  /* of the option at hand: NBD_OPTION_MAX bytes */
        bool structured;
        bool done; /* it has an export */

        /* What SET_META_CONTEXT chose, and for which export; NULL: nothing was. */
        char *contexts_name;
        unsigned contexts, n_changed;
        uint8_t changed[NBD_CHANGED_MAX][NBD_CHANGED_NAME_MAX + 4];

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

static uint16_t export_flags(const struct greeting *g, const struct nbd_export_facts *facts)
{
        uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN |
                NBD_FLAG_SEND_CACHE;

        if (g->structured)
                flags |= NBD_FLAG_SEND_DF;
        if (facts->read_only)
                return flags | NBD_FLAG_READ_ONLY;
        return flags | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                NBD_FLAG_SEND_FAST_ZERO;
}

/* Names that a directory is asked for, and that fit in a handoff. */
static bool is_askable(const char *name, size_t length)
{
        for (size_t i = 0; i < length; i++)
                if ((uint8_t)name[i] < 0x20 || name[i] == 0x7f)
                        return false;
        return length <= NBD_HANDOFF_NAME_MAX && utf8_is_valid(name, length);
}

/* 0, -ENOENT, -EAGAIN, or another -errno. */
static int look_up(
        struct greeting *g, const char *name, size_t length, struct nbd_export_facts *ret)
{
        struct nbd_server *server = g->client->server;
        const struct nbd_directory *directory = server->options.directory;
        char asked[NBD_HANDOFF_NAME_MAX + 1];
        struct error err = ERROR_INIT;
        int r;

        if (!directory)
                return server_export_facts(server, name, length, ret);
        if (!is_askable(name, length))
                return -ENOENT;
        memcpy(asked, name, length);
        asked[length] = '\0';
        r = directory->lookup(directory->opaque, asked, ret, &err);
        if (r < 0 && r != -ENOENT)
                client_log(g->client, r == -EAGAIN ? NBD_LOG_DEBUG : NBD_LOG_ERROR,
                        "cannot look an export up for it: %s", err.message);
        return r;
}

/* Why it cannot have an export, in words that are ours alone. */
static const char *why_not(int r)
{
        switch (r) {
        case -ENOENT: return "no such export";
        case -EAGAIN: return "the export takes no clients just now";
        case -EBUSY: return "too many clients are served already";
        case -ESTALE: return "a snapshot that was chosen with a meta context is gone";
        case -ENOMEM: return "no memory left";
        default: return "the server cannot tell just now";
        }
}

static int refuse_export(struct greeting *g, uint32_t option, int r, struct error *err)
{
        return refuse(g, option, r == -ENOENT ? NBD_REP_ERR_UNKNOWN : NBD_REP_ERR_POLICY,
                why_not(r), err);
}

/* Contexts were chosen for one export by name; on another they mean nothing. */
static void drop_foreign_contexts(struct greeting *g, const char *export_name)
{
        if (g->contexts_name && strcmp(g->contexts_name, export_name) == 0)
                return;
        g->contexts = g->n_changed = 0;
}

/* The client is served here: the last step of a greeting. */
static int settle(struct greeting *g, const struct nbd_export_facts *facts)
{
        const struct choice choice = {
                .export_name = facts->name,
                .export_name_length = strlen(facts->name),
                .structured = g->structured,
                .contexts = g->contexts,
                .n_changed = g->n_changed,
                .changed = g->changed,
        };
        int r = server_promote(g->client, &choice);

        g->done = r == 0;
        return r;
}

/* The client is served elsewhere: there the option is answered. */
static int hand_over(struct greeting *g, uint32_t option, const struct nbd_export_facts *facts,
        uint32_t infos, struct error *err)
{
        const struct nbd_directory *directory = g->client->server->options.directory;
        struct nbd_handoff handoff = {
                .version = NBD_HANDOFF_VERSION,
                .option = option,
                .client_flags = g->flags,
                .structured = g->structured,
                .contexts = g->contexts,
                .infos = infos,
                .n_changed = g->n_changed,
        };
        int r;

        memcpy(handoff.changed, g->changed, sizeof(handoff.changed));
        snprintf((char *)handoff.export_name, sizeof(handoff.export_name), "%s", facts->name);
        snprintf((char *)handoff.peer, sizeof(handoff.peer), "%s", g->client->peer);
        r = nbd_handoff_check(&handoff, err);
        if (r < 0)
                return r;
        if (!server_begin_hand_over(g->client))
                return fail(err, ESHUTDOWN, "the server has no more time for it");
        r = directory->hand_over(directory->opaque, g->client->fd, &handoff, err);
        if (r < 0)
                return r;
        client_log(g->client, NBD_LOG_INFO, "goes to export '%s'", facts->name);
        g->done = true;
        return 0;
}

/* EXPORT_NAME has no way to say no but to close. */
static int answer_export_name(
        struct greeting *g, const struct nbd_export_facts *facts, struct error *err)
{
        uint8_t out[sizeof(struct nbd_wire_export) + NBD_EXPORT_ZEROES] = {0};
        struct nbd_wire_export wire = {
                .size = be64_make(facts->size),
                .flags = be16_make(export_flags(g, facts)),
        };
        int r = settle(g, facts);

        if (r < 0)
                return fail(err, -r, "%s", why_not(r));
        memcpy(out, &wire, sizeof(wire));
        return send_all(g, out, g->flags & NBD_FLAG_NO_ZEROES ? sizeof(wire) : sizeof(out), err);
}

static int do_export_name(struct greeting *g, struct cursor data, struct error *err)
{
        _cleanup_(nbd_export_facts_done) struct nbd_export_facts facts = {0};
        int r = look_up(g, (const char *)data.p, data.left, &facts);

        if (r < 0)
                return fail(err, -r, "%s", why_not(r));
        drop_foreign_contexts(g, facts.name);
        if (g->client->server->options.directory)
                return hand_over(g, NBD_OPT_EXPORT_NAME, &facts, 0, err);
        return answer_export_name(g, &facts, err);
}

/* A directory's texts come from elsewhere. */
static size_t text_length(const char *text)
{
        return strnlen(text, NBD_STRING_MAX);
}

static int reply_listed(
        struct greeting *g, const char *name, const char *description, struct error *err)
{
        size_t name_length = text_length(name);
        be32 wire_length = be32_make((uint32_t)name_length);
        uint8_t head[sizeof(wire_length) + NBD_STRING_MAX];

        memcpy(head, &wire_length, sizeof(wire_length));
        memcpy(head + sizeof(wire_length), name, name_length);
        return reply2(g, NBD_OPT_LIST, NBD_REP_SERVER, head, sizeof(wire_length) + name_length,
                description, description ? text_length(description) : 0, err);
}

static int list_directory(struct greeting *g, struct error *err)
{
        const struct nbd_directory *directory = g->client->server->options.directory;
        _cleanup_(nbd_export_list_done) struct nbd_export_list list = {0};
        struct error why = ERROR_INIT;
        int r = directory->list(directory->opaque, &list, &why);

        if (r < 0) {
                client_log(g->client, NBD_LOG_ERROR, "cannot list the exports for it: %s",
                        why.message);
                return refuse_export(g, NBD_OPT_LIST, r == -ENOENT ? -EIO : r, err);
        }
        for (size_t i = 0; i < list.n_entries; i++) {
                r = reply_listed(g, list.entries[i].name, list.entries[i].description, err);
                if (r < 0)
                        return r;
        }
        return reply(g, NBD_OPT_LIST, NBD_REP_ACK, err);
}

static int list_own(struct greeting *g, struct error *err)
{
        uint64_t number = 0;

        for (;;) {
                _cleanup_free_ char *name = NULL;
                _cleanup_free_ char *description = NULL;
                int r = server_export_next(g->client->server, number, &number, &name, &description);

                if (r == -ENOENT)
                        return reply(g, NBD_OPT_LIST, NBD_REP_ACK, err);
                if (r < 0)
                        return refuse_export(g, NBD_OPT_LIST, r, err);
                r = reply_listed(g, name, description, err);
                if (r < 0)
                        return r;
        }
}

static int do_list(struct greeting *g, struct cursor data, struct error *err)
{
        if (data.left > 0)
                return refuse(g, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "LIST takes no data", err);
        return g->client->server->options.directory ? list_directory(g, err) : list_own(g, err);
}

static int reply_info_text(struct greeting *g, uint32_t option, enum nbd_info info,
        const char *text, struct error *err)
{
        be16 head = be16_make((uint16_t)info);

        return reply2(g, option, NBD_REP_INFO, &head, sizeof(head), text, text_length(text), err);
}

static int reply_block_size(struct greeting *g, uint32_t option,
        const struct nbd_export_facts *facts, struct error *err)
{
        struct nbd_wire_info_block_size info = {
                .info = be16_make(NBD_INFO_BLOCK_SIZE),
                .minimum = be32_make(1),
                .preferred = be32_make(MIN_OF(facts->preferred_size, NBD_REQUEST_MAX)),
                .maximum = be32_make(NBD_REQUEST_MAX),
        };

        return reply2(g, option, NBD_REP_INFO, &info, sizeof(info), NULL, 0, err);
}

static int reply_export(struct greeting *g, uint32_t option, const struct nbd_export_facts *facts,
        struct error *err)
{
        struct nbd_wire_info_export info = {
                .info = be16_make(NBD_INFO_EXPORT),
                .size = be64_make(facts->size),
                .flags = be16_make(export_flags(g, facts)),
        };

        return reply2(g, option, NBD_REP_INFO, &info, sizeof(info), NULL, 0, err);
}

/* The information that INFO and GO ask for; what every client should know comes unasked. */
static int reply_infos(struct greeting *g, uint32_t option, const struct nbd_export_facts *facts,
        uint32_t infos, struct error *err)
{
        int r = reply_export(g, option, facts, err);

        if (r == 0)
                r = reply_block_size(g, option, facts, err);
        if (r == 0 && infos & 1u << NBD_INFO_NAME)
                r = reply_info_text(g, option, NBD_INFO_NAME, facts->name, err);
        if (r == 0 && infos & 1u << NBD_INFO_DESCRIPTION && facts->description)
                r = reply_info_text(g, option, NBD_INFO_DESCRIPTION, facts->description, err);
        return r == 0 ? reply(g, option, NBD_REP_ACK, err) : r;
}

static uint32_t take_infos(struct cursor data)
{
        uint32_t infos = 0;
        be16 info;

        while (take(&data, &info, sizeof(info)))
                if (be16_get(info) < 32)
                        infos |= 1u << be16_get(info);
        return infos & INFO_BITS;
}

static int answer_go(
        struct greeting *g, const struct nbd_export_facts *facts, uint32_t infos, struct error *err)
{
        int r = settle(g, facts);

        if (r < 0)
                return refuse_export(g, NBD_OPT_GO, r, err);
        return reply_infos(g, NBD_OPT_GO, facts, infos, err);
}

/* To the one who serves. If that failed the client is told, and that is the end; but two must not talk
 * on one socket, so where it is not known who has it now, nothing is said. */
static int hand_over_go(
        struct greeting *g, const struct nbd_export_facts *facts, uint32_t infos, struct error *err)
{
        int r = hand_over(g, NBD_OPT_GO, facts, infos, err);
        struct error later = ERROR_INIT;

        if (r < 0 && r != -ETIMEDOUT && r != -EHOSTDOWN)
                refuse_export(g, NBD_OPT_GO, r == -ENOENT ? r : -EIO, &later);
        return r;
}

static int do_info(struct greeting *g, uint32_t option, struct cursor data, struct error *err)
{
        _cleanup_(nbd_export_facts_done) struct nbd_export_facts facts = {0};
        const char *name;
        size_t name_length;
        be16 n_infos;
        int r;

        if (!take_string(&data, &name, &name_length) || !take(&data, &n_infos, sizeof(n_infos)) ||
                data.left != be16_get(n_infos) * sizeof(be16))
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "the lengths in this option do not fit together", err);
        r = look_up(g, name, name_length, &facts);
        if (r < 0)
                return refuse_export(g, option, r, err);
        if (option == NBD_OPT_INFO)
                return reply_infos(g, option, &facts, take_infos(data), err);
        drop_foreign_contexts(g, facts.name);
        if (g->client->server->options.directory)
                return hand_over_go(g, &facts, take_infos(data), err);
        return answer_go(g, &facts, take_infos(data), err);
}

static int do_structured(struct greeting *g, struct cursor data, struct error *err)
{
        if (data.left > 0)
                return refuse(g, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                        "STRUCTURED_REPLY takes no data", err);
        g->structured = true;
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

/* The contexts of an export that queries asked for. */
struct chosen {
        unsigned fixed;    /* bits */
        bool *is_changed;  /* for each of the export's snapshots */
        uint32_t *changed; /* the same as a list, in the order of the queries */
        uint32_t n_changed;
};

static void chosen_done(struct chosen *chosen)
{
        free(chosen->is_changed);
        free(chosen->changed);
}

static int chosen_init(struct chosen *chosen, const struct nbd_export_facts *facts)
{
        *chosen = (struct chosen){
                .is_changed = calloc(facts->n_changed + 1, sizeof(*chosen->is_changed)),
                .changed = calloc(facts->n_changed + 1, sizeof(*chosen->changed)),
        };
        return chosen->is_changed && chosen->changed ? 0 : -ENOMEM;
}

static void choose_changed(struct chosen *chosen, uint32_t i)
{
        if (chosen->is_changed[i])
                return;
        chosen->is_changed[i] = true;
        chosen->changed[chosen->n_changed++] = i;
}

static void choose_all(struct chosen *chosen, const struct nbd_export_facts *facts)
{
        chosen->fixed = (1u << N_CONTEXTS) - 1;
        for (uint32_t i = 0; i < facts->n_changed; i++)
                choose_changed(chosen, i);
}

static bool equals(const char *query, size_t length, const char *text)
{
        return length == strlen(text) && memcmp(query, text, length) == 0;
}

/* "vhdd:" and "vhdd:changed:" list every snapshot; a name chooses one. */
static void choose_snapshots(struct chosen *chosen, const struct nbd_export_facts *facts,
        const char *query, size_t length, bool list)
{
        const size_t prefix = strlen(CONTEXT_CHANGED_PRE);
        bool all = list &&
                (equals(query, length, "vhdd:") || equals(query, length, CONTEXT_CHANGED_PRE));

        if (!all && (length <= prefix || memcmp(query, CONTEXT_CHANGED_PRE, prefix) != 0))
                return;
        for (uint32_t i = 0; i < facts->n_changed; i++)
                if (all || equals(query + prefix, length - prefix, facts->changed[i]))
                        choose_changed(chosen, i);
}

static void choose(struct chosen *chosen, const struct nbd_export_facts *facts,
        struct cursor queries, uint32_t n_queries, bool list)
{
        for (uint32_t i = 0; i < n_queries; i++) {
                const char *query = NULL;
                size_t length = 0;

                take_string(&queries, &query, &length);
                for (size_t j = 0; j < N_CONTEXT_NAMES; j++)
                        if (query_matches(query, length, contexts[j].name, list))
                                chosen->fixed |= 1u << contexts[j].context;
                choose_snapshots(chosen, facts, query, length, list);
        }
        if (list && n_queries == 0)
                choose_all(chosen, facts);
}

static int reply_context(
        struct greeting *g, uint32_t option, uint32_t id, const char *name, struct error *err)
{
        be32 wire = be32_make(id);

        return reply2(
                g, option, NBD_REP_META_CONTEXT, &wire, sizeof(wire), name, strlen(name), err);
}

static int reply_contexts(struct greeting *g, uint32_t option, const struct chosen *chosen,
        const struct nbd_export_facts *facts, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < N_CONTEXT_NAMES; i++)
                if (chosen->fixed & 1u << contexts[i].context)
                        r = reply_context(
                                g, option, CONTEXT_ID(contexts[i].context), contexts[i].name, err);
        for (uint32_t i = 0; r == 0 && i < chosen->n_changed; i++) {
                char name[sizeof(CONTEXT_CHANGED_PRE) + NBD_CHANGED_NAME_MAX];

                snprintf(name, sizeof(name), "%s%s", CONTEXT_CHANGED_PRE,
                        facts->changed[chosen->changed[i]]);
                r = reply_context(g, option, CONTEXT_ID(CONTEXT_CHANGED(i)), name, err);
        }
        return r == 0 ? reply(g, option, NBD_REP_ACK, err) : r;
}

/* Whatever was set before is void, also if the new one fails. */
static void forget_contexts(struct greeting *g)
{
        free(g->contexts_name);
        g->contexts_name = NULL;
        g->contexts = g->n_changed = 0;
        memset(g->changed, 0, sizeof(g->changed));
}

static int keep_contexts(
        struct greeting *g, const struct chosen *chosen, const struct nbd_export_facts *facts)
{
        g->contexts_name = strdup(facts->name);
        if (!g->contexts_name)
                return -ENOMEM;
        g->contexts = chosen->fixed;
        g->n_changed = chosen->n_changed;
        for (uint32_t i = 0; i < chosen->n_changed; i++)
                snprintf((char *)g->changed[i], NBD_CHANGED_NAME_MAX + 1, "%s",
                        facts->changed[chosen->changed[i]]);
        return 0;
}

static int answer_contexts(struct greeting *g, uint32_t option, struct cursor queries,
        uint32_t n_queries, const struct nbd_export_facts *facts, struct error *err)
{
        bool list = option == NBD_OPT_LIST_META_CONTEXT;
        _cleanup_(chosen_done) struct chosen chosen;
        int r = chosen_init(&chosen, facts);

        if (r < 0)
                return refuse_export(g, option, r, err);
        choose(&chosen, facts, queries, n_queries, list);
        if (!list && chosen.n_changed > NBD_CHANGED_MAX)
                return refuse(g, option, NBD_REP_ERR_TOO_BIG,
                        "changes since more than 8 snapshots at a time", err);
        if (!list)
                r = keep_contexts(g, &chosen, facts);
        if (r < 0)
                return refuse_export(g, option, r, err);
        return reply_contexts(g, option, &chosen, facts, err);
}

static int do_meta_context(
        struct greeting *g, uint32_t option, struct cursor data, struct error *err)
{
        _cleanup_(nbd_export_facts_done) struct nbd_export_facts facts = {0};
        const char *name, *query;
        size_t name_length, length;
        struct cursor queries;
        be32 n_queries;
        int r;

        if (option == NBD_OPT_SET_META_CONTEXT)
                forget_contexts(g);
        if (!g->structured)
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "meta contexts need structured replies first", err);
        if (!take_string(&data, &name, &name_length) || !take(&data, &n_queries, sizeof(n_queries)))
                return refuse(g, option, NBD_REP_ERR_INVALID,
                        "the lengths in this option do not fit together", err);
        queries = data;
        for (uint32_t i = 0; i < be32_get(n_queries); i++)
                if (!take_string(&data, &query, &length))
                        return refuse(g, option, NBD_REP_ERR_INVALID,
                                "the lengths in this option do not fit together", err);
        if (data.left > 0)
                return refuse(g, option, NBD_REP_ERR_INVALID, "data behind the last query", err);
        r = look_up(g, name, name_length, &facts);
        if (r < 0)
                return refuse_export(g, option, r, err);
        return answer_contexts(g, option, queries, be32_get(n_queries), &facts, err);
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
        if (!(g->flags & NBD_FLAG_FIXED_NEWSTYLE) && option != NBD_OPT_EXPORT_NAME)
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
        int r = send_all(g, &hello, sizeof(hello), err);

        if (r == 0)
                r = receive(g, &wire, sizeof(wire), err);
        if (r < 0)
                return r;
        g->flags = be32_get(wire);
        if (g->flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
                return fail(err, EPROTO, "client flags %08x that do not exist", g->flags);
        return 0;
}

static void greeting_done(struct greeting *g)
{
        free(g->contexts_name);
        free(g->data);
}

int client_greet(struct client *client, struct error *err)
{
        _cleanup_(greeting_done) struct greeting g = {
                .client = client,
                .deadline_ms = client->begun_ms + client->server->options.handshake_timeout_ms,
                .data = malloc(NBD_OPTION_MAX),
        };
        int r;

        if (!g.data)
                return fail(err, ENOMEM, "no memory to negotiate with it");
        r = say_hello(&g, err);
        while (r == 0 && !g.done)
                r = next_option(&g, err);
        if (r < 0)
                return r;
        return client->handed_over ? GREETED_HANDED_OVER : GREETED_SERVED;
}

/* As if the options had been said here. */
static void take_up(struct greeting *g, const struct nbd_handoff *handoff)
{
        g->flags = handoff->client_flags;
        g->structured = handoff->structured;
        g->contexts = handoff->contexts;
        g->n_changed = handoff->n_changed;
        memcpy(g->changed, handoff->changed, sizeof(g->changed));
}

int client_greet_handed(struct client *client, struct error *err)
{
        const struct nbd_handoff *handoff = client->handoff;
        const char *name = (const char *)handoff->export_name;
        _cleanup_(nbd_export_facts_done) struct nbd_export_facts facts = {0};
        struct greeting g = {
                .client = client,
                .deadline_ms = client->begun_ms + client->server->options.handshake_timeout_ms,
        };
        int r = server_export_facts(client->server, name, strlen(name), &facts);

        take_up(&g, handoff);
        if (handoff->option == NBD_OPT_EXPORT_NAME && r < 0)
                return fail(err, -r, "%s", why_not(r));
        if (handoff->option == NBD_OPT_EXPORT_NAME)
                r = answer_export_name(&g, &facts, err);
        else if (r < 0)
                r = refuse_export(&g, NBD_OPT_GO, r, err);
        else
                r = answer_go(&g, &facts, handoff->infos, err);
        if (r < 0)
                return r;
        /* Refused, and there is nobody here to go on negotiating with it. */
        return g.done ? GREETED_SERVED
                      : fail(err, ENOENT, "it was handed over for an export that it cannot have");
}
