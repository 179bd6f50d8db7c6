/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl info - what an image is. Opens nothing but the files that it is given, unless --chain. */
#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "base/size.h"
#include "chain/locate.h"
#include "formats/intent.h"
#include "formats/vhd/metadata.h"
#include "vhdd/ctl/fields.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

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

static void facts_done(struct facts *facts)
{
        file_close(facts->file);
}

#define BAT_CHUNK 16384u

/* Entries that name a place. A damaged BAT is counted as it is: what is wrong with it tells check. */
static int count_blocks(struct facts *facts, struct error *err)
{
        const struct vhd_metadata *metadata = &facts->metadata;
        uint32_t n = MIN_OF(metadata->n_blocks, metadata->header.max_table_entries);
        _cleanup_free_ be32 *entries = malloc(BAT_CHUNK * sizeof(*entries));

        if (!entries)
                return fail(err, ENOMEM, "no memory for a piece of the BAT");
        for (uint32_t at = 0; at < n; at += BAT_CHUNK) {
                uint32_t part = MIN_OF(BAT_CHUNK, n - at);
                uint64_t offset = metadata->header.table_offset + (uint64_t)at * sizeof(*entries);
                int r = file_read_exact(facts->file, entries, part * sizeof(*entries), offset);

                if (r < 0) {
                        r = fail_os(err, -r, "cannot read the BAT of '%s'", facts->path);
                        error_set_offset(err, offset);
                        return r;
                }
                for (uint32_t i = 0; i < part; i++)
                        facts->allocated_blocks += be32_get(entries[i]) != VHD_BAT_UNUSED;
        }
        return 0;
}

/* A VHD as far as it can be read; else what the file is taken for, or why it is nothing. */
static int find_format(const struct ctl *ctl, struct facts *facts, struct error *err)
{
        const struct format *format = NULL;
        struct error unforced = ERROR_INIT;
        int r = format_find(facts->file, ctl->format, &format, &unforced);

        if (r == 0 && format == &raw_format)
                return 0;
        facts->is_vhd = vhd_metadata_read(facts->file, VHD_READ_FORCE, &facts->metadata, err) == 0;
        if (facts->is_vhd)
                return 0;
        if (r < 0)
                *err = unforced;
        return -err->code;
}

static int gather(const struct ctl *ctl, const char *path, struct facts *facts, struct error *err)
{
        struct file *view = NULL;
        int r;

        facts->path = path;
        r = file_open(host_fs(), path, FILE_READ, &facts->file, err);
        if (r == 0)
                r = file_lock_set(facts->file, FILE_LOCK_READ_LOOSE, err);
        /* E13: a change that was cut off is seen as complete. */
        if (r == 0)
                r = intent_recover(facts->file, false, NULL, &view, err);
        if (r < 0)
                return r;
        if (view)
                facts->file = view;
        r = file_stat_get(facts->file, &facts->st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", path);
        r = find_format(ctl, facts, err);
        if (r == 0 && facts->is_vhd && facts->metadata.footer.type != VHD_TYPE_FIXED)
                r = count_blocks(facts, err);
        if (r == 0 && facts->is_vhd && facts->metadata.footer.type == VHD_TYPE_DIFFERENCING)
                facts->n_candidates =
                        locate_candidates(facts->file, &facts->metadata.header, facts->candidates);
        return r;
}

static const char *type_of(const struct facts *facts)
{
        return facts->is_vhd ? vhd_type_to_string(facts->metadata.footer.type) : "raw";
}

static uint64_t virtual_size(const struct facts *facts)
{
        return facts->is_vhd ? facts->metadata.footer.current_size : facts->st.size;
}

/* Where the parent lies by the first hint that means something here; else what the header calls it. */
static const char *parent_filename(const struct facts *facts)
{
        for (size_t i = 0; i < facts->n_candidates; i++)
                if (facts->candidates[i].path[0])
                        return facts->candidates[i].path;
        return facts->metadata.header.parent_name;
}

static json_t *parent_to_json(const struct facts *facts)
{
        const struct vhd_header *header = &facts->metadata.header;
        json_t *parent = json_object(), *locators = json_array();

        for (size_t i = 0; i < facts->n_candidates; i++) {
                const struct locate_candidate *candidate = &facts->candidates[i];
                json_t *object = json_object();

                json_object_set_new(object, "source", json_text(candidate->source));
                json_object_set_new(object, "text", json_text(candidate->text));
                json_object_set_new(object, "path",
                        candidate->path[0] ? json_text(candidate->path) : json_null());
                json_array_append_new(locators, object);
        }
        json_object_set_new(parent, "filename", json_text(parent_filename(facts)));
        json_object_set_new(parent, "uuid", json_uuid(header->parent_id));
        json_object_set_new(
                parent, "modified", json_time(vhd_time_to_unix(header->parent_timestamp)));
        json_object_set_new(parent, "locators", locators);
        return parent;
}

static json_t *problems_to_json(uint32_t problems)
{
        json_t *list = json_array();

        for (unsigned bit = 0; bit < 32; bit++)
                if (problems & (1u << bit))
                        json_array_append_new(list,
                                json_text(vhd_problem_to_string((enum vhd_problem)(1u << bit))));
        return list;
}

static json_t *geometry_to_json(const struct vhd_footer *footer)
{
        json_t *geometry = json_object();

        json_object_set_new(geometry, "cylinders", json_size(footer->cylinders));
        json_object_set_new(geometry, "heads", json_size(footer->heads));
        json_object_set_new(geometry, "sectors-per-track", json_size(footer->sectors_per_track));
        return geometry;
}

static void vhd_to_json(const struct facts *facts, json_t *object)
{
        const struct vhd_footer *footer = &facts->metadata.footer;
        bool flat = footer->type == VHD_TYPE_FIXED;
        char version[16];

        snprintf(version, sizeof(version), "%u.%u", footer->creator_version >> 16,
                footer->creator_version & 0xffff);
        json_object_set_new(object, "block-size",
                flat ? json_null() : json_size(facts->metadata.header.block_size));
        json_object_set_new(object, "uuid", json_uuid(footer->unique_id));
        json_object_set_new(object, "allocated-blocks",
                flat ? json_null() : json_size(facts->allocated_blocks));
        json_object_set_new(
                object, "blocks", flat ? json_null() : json_size(facts->metadata.n_blocks));
        json_object_set_new(object, "parent",
                footer->type == VHD_TYPE_DIFFERENCING ? parent_to_json(facts) : json_null());
        json_object_set_new(object, "creator-app", json_text(footer->creator_app));
        json_object_set_new(object, "creator-version", json_text(version));
        json_object_set_new(object, "creator-os", json_text(footer->creator_os));
        json_object_set_new(object, "created", json_time(vhd_time_to_unix(footer->timestamp)));
        json_object_set_new(object, "original-size", json_size(footer->original_size));
        json_object_set_new(object, "geometry", geometry_to_json(footer));
        json_object_set_new(object, "saved-state", json_boolean(footer->saved_state));
        json_object_set_new(object, "hidden", json_boolean(footer->hidden));
        json_object_set_new(object, "merge-unfinished", json_boolean(footer->merging));
        json_object_set_new(object, "encrypted", json_boolean(facts->metadata.encrypted));
        json_object_set_new(object, "problems", problems_to_json(facts->metadata.problems));
}

static json_t *to_json(const struct facts *facts)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(facts->path));
        json_object_set_new(object, "format", json_text(facts->is_vhd ? "vhd" : "raw"));
        json_object_set_new(object, "type", json_text(type_of(facts)));
        json_object_set_new(object, "virtual-size", json_size(virtual_size(facts)));
        json_object_set_new(object, "file-size", json_size(facts->st.size));
        json_object_set_new(object, "disk-size", json_size(facts->st.allocated));
        if (facts->is_vhd)
                vhd_to_json(facts, object);
        return object;
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
                show_line(2, "merge", "cut off: vhdctl merge CHILD goes on, CHILD being the image that "
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
        show_line(2, "format", "%s%s%s", facts->is_vhd ? "vhd, " : "", type_of(facts),
                facts->st.is_block ? " block device" : "");
        show_line(2, "virtual size", "%s (%" PRIu64 " bytes)",
                size_to_text(virtual_size(facts), text), virtual_size(facts));
        if (facts->st.is_regular)
                show_line(2, "on disk", "%s", size_to_text(facts->st.allocated, text));
        if (facts->is_vhd)
                print_vhd(facts);
}

/* One file: printed, or as JSON for the answer. */
static int describe(const struct ctl *ctl, const char *path, json_t **ret, struct error *err)
{
        const struct info_options *info = ctl->options;
        _cleanup_(table_freep) struct table *table = NULL;
        _cleanup_json_ json_t *object = NULL, *list = NULL;
        struct facts *facts _cleanup_(cleanup_free) = calloc(1, sizeof(*facts));
        int r;

        if (!facts)
                return fail(err, ENOMEM, "no memory to look at '%s'", path);
        r = gather(ctl, path, facts, err);
        if (r == 0 && ctl->json)
                object = to_json(facts);
        else if (r == 0)
                print_facts(facts);
        if (r == 0 && info->raw) {
                if (ctl->json)
                        list = json_array();
                else
                        table = table_new(fields_columns);
                r = fields_show(
                        facts->file, facts->is_vhd ? &facts->metadata : NULL, table, list, err);
                if (r == 0 && table)
                        table_print(table, stdout);
                if (r == 0 && list)
                        json_object_set_new(object, "raw", TAKE_PTR(list));
        }
        facts_done(facts);
        if (r < 0) {
                error_set_file(err, path);
                return r;
        }
        *ret = TAKE_PTR(object);
        return 0;
}

/* The layers from the leaf down, each as describe() shows it. */
static int describe_chain(
        const struct ctl *ctl, const char *path, json_t *object, struct error *err)
{
        _cleanup_(ctl_chain_closep) struct chain *chain = NULL;
        _cleanup_json_ json_t *list = json_array();
        struct chain_options chain_options;
        int r;

        ctl_chain_options(ctl, &chain_options);
        chain_options.loose_lock = true;
        r = chain_open(path, &chain_options, &chain, err);
        if (r < 0)
                return r;
        for (unsigned depth = 0; depth < chain_depth(chain); depth++) {
                const char *layer = chain_layer_path(chain, chain_depth(chain) - 1 - depth);
                json_t *one = NULL;

                if (!object && depth == 0)
                        continue; /* printed already */
                r = describe(ctl, depth == 0 ? path : layer, &one, err);
                if (r < 0)
                        return r;
                if (object) {
                        json_object_set_new(one, "depth", json_size(depth));
                        json_array_append_new(list, one);
                }
        }
        if (object)
                json_object_set_new(object, "chain", TAKE_PTR(list));
        return 0;
}

static int one_file(const struct ctl *ctl, const char *path, json_t **ret, struct error *err)
{
        const struct info_options *info = ctl->options;
        _cleanup_json_ json_t *object = NULL;
        int r = describe(ctl, path, &object, err);

        if (r == 0 && info->chain)
                r = describe_chain(ctl, path, object, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
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
