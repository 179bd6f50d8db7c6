/* SPDX-License-Identifier: Apache-2.0 */
/* info.h - what an image is: what `vhdctl info` prints, and a mount's info.json.
 *
 * Units      bytes.
 * Ownership  facts_gather fills, facts_done ends, also after a failure. JSON is the caller's.
 * Errors     0 or -errno with one sentence that names the file.
 * Threads    one thread at a time.
 */
#pragma once

#include "chain/chain.h"
#include "chain/locate.h"
#include "formats/vhd/metadata.h"
#include "vhdd/describe/values.h"

/* All that is known of one file. */
struct facts {
        const char *path;
        struct file *file;
        struct file_stat st;
        bool is_vhd;
        struct vhd_metadata metadata;
        uint64_t allocated_blocks;
        size_t n_candidates;
        struct locate_candidate candidates[LOCATE_MAX_CANDIDATES];
};

/* Opens @path and nothing else. @format: "vhd", "raw", or NULL: look. @facts: zeros before. */
int facts_gather(const char *path, const char *format, struct facts *facts, struct error *err);
void facts_done(struct facts *facts);

const char *facts_type(const struct facts *facts); /* "dynamic", ...: a word that lives for ever */
uint64_t facts_virtual_size(const struct facts *facts);
json_t *facts_to_json(const struct facts *facts);

struct info_request {
        const struct chain_options *chain_options; /* how the parents are found */
        bool chain;                                /* the parents too, as "chain", leaf first */
        /* Optional: adds more to what is said of one file. */
        int (*add)(void *opaque, const struct facts *facts, json_t *object, struct error *err);
        void *opaque;
};

/* `vhdctl info --json PATH`. */
int info_to_json(
        const char *path, const struct info_request *request, json_t **ret, struct error *err);
