/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl info - what an image is. Opens nothing but the files that it is given, unless --chain. */
#include <inttypes.h>
#include <string.h>

#include "base/size.h"
#include "vhdd/ctl/fields.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"
#include "vhdd/describe/info.h"

enum { KEY_CHAIN = CTL_KEY_FIRST, KEY_RAW };

struct info_options {
        bool chain, raw;
};

static const struct argp_option options[] = {
        {"chain", KEY_CHAIN, NULL, 0, "Find and open the parents too, and print each", 0},
        {"raw", KEY_RAW, NULL, 0, "Print every field of footers and header with its offset", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct info_options *info = opaque;

        switch (key) {
        case KEY_CHAIN: info->chain = true; return 0;
        case KEY_RAW: info->raw = true; return 0;
        default: return -EINVAL;
        }
}

static void print_parent(const struct facts *facts)
{
        const struct vhd_header *header = &facts->metadata.header;
        char id[UUID_TEXT_MAX], head[32];

        show_line(2, "parent", "%s", header->parent_name[0] ? header->parent_name : "(no name)");
        show_line(2, "parent uuid", "%s", uuid_to_text(header->parent_id, id));
        for (size_t i = 0; i < facts->n_candidates; i++) {
                const struct locate_candidate *candidate = &facts->candidates[i];

                snprintf(head, sizeof(head), "  %s", candidate->source);
                show_line(2, head, "%s -> %s", candidate->text,
                        candidate->path[0] ? candidate->path : "means nothing here");
        }
}

static void print_vhd(const struct facts *facts)
{
        const struct vhd_metadata *metadata = &facts->metadata;
        const struct vhd_footer *footer = &metadata->footer;
        char text[SIZE_TEXT_MAX], id[UUID_TEXT_MAX], time[TIME_TEXT_MAX];

        if (footer->type != VHD_TYPE_FIXED) {
                show_line(2, "block size", "%s", size_to_text(metadata->header.block_size, text));
                show_line(2, "allocated", "%" PRIu64 " of %" PRIu32 " blocks",
                        facts->allocated_blocks, metadata->n_blocks);
        }
        show_line(2, "uuid", "%s", uuid_to_text(footer->unique_id, id));
        show_line(2, "created", "%s by '%s' %u.%u on '%s'",
                time_to_text(vhd_time_to_unix(footer->timestamp), time), footer->creator_app,
                footer->creator_version >> 16, footer->creator_version & 0xffff,
                footer->creator_os);
        show_line(2, "geometry", "%" PRIu32 "/%" PRIu32 "/%" PRIu32, footer->cylinders,
                footer->heads, footer->sectors_per_track);
        if (footer->type == VHD_TYPE_DIFFERENCING)
                print_parent(facts);
        if (footer->merging)
                show_line(2, "merge",
                        "cut off: vhdctl merge CHILD goes on, CHILD being the image that "
                        "stands on this one");
        else if (footer->hidden)
                show_line(2, "hidden", "yes (an inner node of a XenServer chain)");
        if (metadata->encrypted)
                show_line(2, "encrypted", "yes: what the guest sees cannot be read here");
        for (unsigned bit = 0; bit < 32; bit++)
                if (metadata->problems & (1u << bit))
                        show_line(2, "problem", "%s",
                                vhd_problem_to_string((enum vhd_problem)(1u << bit)));
}

static void print_facts(const struct facts *facts)
{
        _cleanup_free_ char *safe = text_safe(facts->path);
        char text[SIZE_TEXT_MAX];

        printf("%s\n", safe);
        show_line(2, "format", "%s%s%s", facts->is_vhd ? "vhd, " : "", facts_type(facts),
                facts->st.is_block ? " block device" : "");
        show_line(2, "virtual size", "%s (%" PRIu64 " bytes)",
                size_to_text(facts_virtual_size(facts), text), facts_virtual_size(facts));
        if (facts->st.is_regular)
                show_line(2, "on disk", "%s", size_to_text(facts->st.allocated, text));
        if (facts->is_vhd)
                print_vhd(facts);
}

/* The footers' and the header's fields, into the one or the other. */
static int show_raw(const struct facts *facts, struct table *table, json_t *list, struct error *err)
{
        return fields_show(facts->file, facts->is_vhd ? &facts->metadata : NULL, table, list, err);
}

static int add_raw(void *opaque, const struct facts *facts, json_t *object, struct error *err)
{
        _cleanup_json_ json_t *list = json_array();
        int r = show_raw(facts, NULL, list, err);

        if (r == 0)
                json_object_set_new(object, "raw", TAKE_PTR(list));
        return r;
}

/* One file, printed. */
static int print_file(const struct ctl *ctl, const char *path, struct error *err)
{
        const struct info_options *info = ctl->options;
        _cleanup_(table_freep) struct table *table = NULL;
        struct facts *facts _cleanup_(cleanup_free) = calloc(1, sizeof(*facts));
        int r;

        if (!facts)
                return fail(err, ENOMEM, "no memory to look at '%s'", path);
        r = facts_gather(path, ctl->format, facts, err);
        if (r == 0)
                print_facts(facts);
        if (r == 0 && info->raw) {
                table = table_new(fields_columns);
                r = show_raw(facts, table, NULL, err);
                if (r == 0)
                        table_print(table, stdout);
        }
        facts_done(facts);
        if (r < 0)
                error_set_file(err, path);
        return r;
}

/* The parents, the nearest first. */
static int print_parents(const struct ctl *ctl, const char *path, struct error *err)
{
        _cleanup_(ctl_chain_closep) struct chain *chain = NULL;
        struct chain_options chain_options;
        int r;

        ctl_chain_options(ctl, &chain_options);
        chain_options.loose_lock = true;
        r = chain_open(path, &chain_options, &chain, err);
        for (unsigned layer = r == 0 ? chain_depth(chain) - 1 : 0; r == 0 && layer > 0; layer--)
                r = print_file(ctl, chain_layer_path(chain, layer - 1), err);
        return r;
}

static int one_file(const struct ctl *ctl, const char *path, json_t **ret, struct error *err)
{
        const struct info_options *info = ctl->options;
        struct chain_options chain_options;
        const struct info_request request = {
                .chain_options = &chain_options,
                .chain = info->chain,
                .add = info->raw ? add_raw : NULL,
        };
        int r;

        if (ctl->json) {
                ctl_chain_options(ctl, &chain_options);
                return info_to_json(path, &request, ret, err);
        }
        r = print_file(ctl, path, err);
        return r == 0 && info->chain ? print_parents(ctl, path, err) : r;
}

static json_t *failure_to_json(const char *path, const struct error *err)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(path));
        json_object_set_new(object, "error", error_to_json(err));
        return object;
}

static int run(struct ctl *ctl, struct error *err)
{
        _cleanup_json_ json_t *list = NULL;
        json_t *object = NULL;
        int result = CTL_DONE, r;

        if (ctl->n_operands == 1) {
                r = one_file(ctl, ctl->operands[0], &object, err);
                if (r == 0 && ctl->json)
                        json_print(object);
                return r;
        }
        /* Of several files those that can be read are told of, and the others too. */
        list = json_array();
        for (size_t i = 0; i < ctl->n_operands; i++) {
                struct error one = ERROR_INIT;

                object = NULL;
                if (i > 0 && !ctl->json)
                        printf("\n");
                if (one_file(ctl, ctl->operands[i], &object, &one) < 0) {
                        ctl_print_error(ctl, &one);
                        object = failure_to_json(ctl->operands[i], &one);
                        result = CTL_FAILED;
                }
                if (object)
                        json_array_append_new(list, object);
        }
        if (ctl->json)
                json_print(TAKE_PTR(list));
        return result;
}

const struct command command_info = {
        .name = "info",
        .operands = "FILE...",
        .summary = "say what an image is",
        .doc = "Print format, type, sizes, id, parent and maker of each image. Opens nothing but the "
               "files given (without the parents), so it is safe on an image you do not trust."
               "\v"
               "Examples:\n"
               "  vhdctl info disk.vhd\n"
               "  vhdctl info --chain disk_GUID.avhd\n"
               "  vhdctl info --raw disk.vhd | grep checksum",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = COMMAND_ANY_NUMBER,
        .options = options,
        .options_size = sizeof(struct info_options),
        .take_option = take_option,
        .run = run,
};
