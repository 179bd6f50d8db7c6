/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/source.h"

#include <libnbd.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "vhdd/ctl/open.h"

/* A server may refuse larger ones (the protocol lets it from 32 MiB on). */
#define NBD_MAX_REQUEST ((size_t)(32 * MIB))
/* Extents that one answer of an NBD server may leave us with. */
#define MAX_EXTENTS 512u
/* One block status request covers at most this: its length has 32 bits, and servers like it whole. */
#define MAX_STATUS (GIB)

struct lane {
        struct nbd_handle *nbd;
        /* What the last block status said: extents from start on. Owner: the lane's thread. */
        uint64_t start;
        uint32_t n_extents, next;
        struct {
                uint64_t length;
                bool zero;
        } extents[MAX_EXTENTS];
};

struct source {
        /* immutable after source_open */
        char *name;
        uint64_t size;
        unsigned n_lanes;
        struct chain *chain; /* NULL: NBD */
        bool has_status;
        size_t max_request;
        /* each owned by its thread */
        struct lane *lanes[SOURCE_MAX_LANES];
};

static const char *const uri_schemes[] = {
        "nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://", "nbds+vsock://", NULL};

bool source_is_uri(const char *what)
{
        for (size_t i = 0; uri_schemes[i]; i++)
                if (strncmp(what, uri_schemes[i], strlen(uri_schemes[i])) == 0)
                        return true;
        return false;
}

/* libnbd's last word, which is per thread. */
static int fail_nbd(struct error *err, const char *name)
{
        int code = nbd_get_errno();
        const char *words = nbd_get_error();
        int r = fail(err, code > 0 ? code : EIO, "'%s': %s", name,
                words ? words : "the NBD library gave no reason");

        error_set_file(err, name);
        return r;
}

static int connect_lane(struct source *source, unsigned index, struct error *err)
{
        struct lane *lane = calloc(1, sizeof(*lane));

        if (!lane)
                return fail(err, ENOMEM, "no memory for a connection");
        source->lanes[index] = lane;
        lane->nbd = nbd_create();
        if (!lane->nbd || nbd_add_meta_context(lane->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
                nbd_connect_uri(lane->nbd, source->name) < 0)
                return fail_nbd(err, source->name);
        return 0;
}

static int open_nbd(struct source *source, unsigned lanes, struct error *err)
{
        struct nbd_handle *first;
        int64_t n;
        int r = connect_lane(source, 0, err);

        if (r < 0)
                return r;
        source->n_lanes = 1;
        first = source->lanes[0]->nbd;
        n = nbd_get_size(first);
        if (n < 0)
                return fail_nbd(err, source->name);
        source->size = (uint64_t)n;
        source->has_status = nbd_can_meta_context(first, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
        source->max_request = NBD_MAX_REQUEST;
        n = nbd_get_block_size(first, LIBNBD_SIZE_MAXIMUM);
        if (n >= 4096 && (uint64_t)n < NBD_MAX_REQUEST)
                source->max_request = (size_t)round_down_to((uint64_t)n, 4096);
        if (nbd_can_multi_conn(first) != 1)
                return 0;
        for (; source->n_lanes < lanes; source->n_lanes++) {
                r = connect_lane(source, source->n_lanes, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

int source_open(const struct ctl *ctl, const char *what, unsigned lanes, struct source **ret,
        struct error *err)
{
        _cleanup_(source_closep) struct source *source = calloc(1, sizeof(*source));
        int r;

        if (!source || !(source->name = strdup(what)))
                return fail(err, ENOMEM, "no memory to open '%s'", what);
        lanes = MIN_OF(lanes, SOURCE_MAX_LANES);
        if (source_is_uri(what)) {
                r = open_nbd(source, lanes, err);
        } else {
                r = ctl_chain_open(ctl, what, &source->chain, err);
                if (r == 0) {
                        source->size = chain_size(source->chain);
                        source->n_lanes = lanes;
                }
        }
        if (r < 0)
                return r;
        *ret = TAKE_PTR(source);
        return 0;
}

struct source *source_close(struct source *source)
{
        if (!source)
                return NULL;
        for (unsigned i = 0; i < SOURCE_MAX_LANES; i++)
                if (source->lanes[i]) {
                        struct nbd_handle *nbd = source->lanes[i]->nbd;

                        /* Whoever left requests under way may have freed their buffers. */
                        if (nbd && nbd_aio_is_ready(nbd) == 1 && nbd_aio_in_flight(nbd) == 0)
                                nbd_shutdown(nbd, 0);
                        nbd_close(nbd);
                        free(source->lanes[i]);
                }
        if (source->chain)
                ctl_chain_close(source->chain);
        free(source->name);
        free(source);
        return NULL;
}

const char *source_name(const struct source *source)
{
        return source->name;
}

uint64_t source_size(const struct source *source)
{
        return source->size;
}

unsigned source_lanes(const struct source *source)
{
        return source->n_lanes;
}

struct chain *source_chain(struct source *source)
{
        return source->chain;
}

bool source_is_async(const struct source *source)
{
        return !source->chain;
}

size_t source_max_request(const struct source *source)
{
        return source->chain ? SIZE_MAX : source->max_request;
}

static int chain_extent_get(struct source *source, uint64_t offset, uint64_t length,
        struct source_extent *ret, struct error *err)
{
        struct chain_extent extent;
        int r = chain_map(source->chain, offset, length, CHAIN_HOLES, &extent);

        if (r < 0) {
                r = fail_os(err, -r, "cannot tell what lies at offset %llu of '%s'",
                        (unsigned long long)offset, source->name);
                error_set_file(err, source->name);
                return r;
        }
        *ret = (struct source_extent){
                .length = extent.length,
                .zero = extent.kind != EXTENT_DATA,
                .file = extent.kind == EXTENT_DATA ? extent.file : NULL,
                .file_offset = extent.kind == EXTENT_DATA ? extent.file_offset : 0,
        };
        return 0;
}

static int keep_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
        size_t n_entries, int *error)
{
        struct lane *lane = opaque;

        (void)error;
        if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != lane->start)
                return 0;
        for (size_t i = 0; i + 1 < n_entries && lane->n_extents < MAX_EXTENTS; i += 2) {
                lane->extents[lane->n_extents].length = entries[i];
                lane->extents[lane->n_extents].zero = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
                lane->n_extents++;
        }
        return 0;
}

/* Does what the lane remembers begin at or before @offset and reach beyond it? Goes on to the extent
 * that holds it. */
static bool lane_knows(struct lane *lane, uint64_t offset)
{
        if (offset < lane->start)
                return false;
        while (lane->next < lane->n_extents) {
                uint64_t length = lane->extents[lane->next].length;

                if (offset - lane->start < length)
                        return true;
                lane->start += length;
                lane->next++;
        }
        return false;
}

static int nbd_extent_get(struct source *source, struct lane *lane, uint64_t offset,
        uint64_t length, struct source_extent *ret, struct error *err)
{
        uint64_t left;

        *ret = (struct source_extent){.length = length};
        if (!source->has_status)
                return 0;
        if (!lane_knows(lane, offset)) {
                uint64_t asked = MIN_OF(source->size - offset, MAX_STATUS);

                lane->start = offset;
                lane->n_extents = lane->next = 0;
                if (nbd_block_status(lane->nbd, asked, offset,
                            (nbd_extent_callback){.callback = keep_extents, .user_data = lane},
                            0) < 0)
                        return fail_nbd(err, source->name);
                if (!lane_knows(lane, offset))
                        return fail(err, EPROTO, "'%s' answers no block status for offset %llu",
                                source->name, (unsigned long long)offset);
        }
        left = lane->start + lane->extents[lane->next].length - offset;
        ret->length = MIN_OF(left, length);
        ret->zero = lane->extents[lane->next].zero;
        return 0;
}

int source_extent_get(struct source *source, unsigned lane, uint64_t offset, uint64_t length,
        struct source_extent *ret, struct error *err)
{
        if (source->chain)
                return chain_extent_get(source, offset, length, ret, err);
        return nbd_extent_get(source, source->lanes[lane], offset, length, ret, err);
}

int source_read(struct source *source, unsigned lane, void *data, size_t length, uint64_t offset,
        struct error *err)
{
        uint8_t *p = data;
        int r;

        if (source->chain) {
                r = chain_read(source->chain, data, length, offset, 0);
                if (r == 0)
                        return 0;
                r = fail_os(err, -r, "cannot read %zu bytes at offset %llu of '%s'", length,
                        (unsigned long long)offset, source->name);
                error_set_file(err, source->name);
                error_set_offset(err, offset);
                return r;
        }
        while (length > 0) {
                size_t part = MIN_OF(length, source->max_request);

                if (nbd_pread(source->lanes[lane]->nbd, p, part, offset, 0) < 0)
                        return fail_nbd(err, source->name);
                p += part;
                offset += part;
                length -= part;
        }
        return 0;
}

struct request {
        source_done *done;
        void *opaque;
};

static int request_ended(void *opaque, int *error)
{
        struct request *request = opaque;

        request->done(request->opaque, -*error);
        return 1; /* libnbd may forget it */
}

int source_submit(struct source *source, unsigned lane, void *data, size_t length, uint64_t offset,
        source_done *done, void *opaque, struct error *err)
{
        struct request *request;

        if (source->chain)
                return fail(err, EOPNOTSUPP, "'%s' is read at once", source->name);
        request = malloc(sizeof(*request));
        if (!request)
                return fail(err, ENOMEM, "no memory for a request");
        *request = (struct request){done, opaque};
        if (nbd_aio_pread(source->lanes[lane]->nbd, data, length, offset,
                    (nbd_completion_callback){
                            .callback = request_ended, .user_data = request, .free = free},
                    0) < 0)
                return fail_nbd(err, source->name);
        return 0;
}

int source_wait(struct source *source, unsigned lane, int timeout_ms, struct error *err)
{
        if (nbd_poll(source->lanes[lane]->nbd, timeout_ms) < 0)
                return fail_nbd(err, source->name);
        return 0;
}
