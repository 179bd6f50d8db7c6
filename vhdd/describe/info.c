/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/describe/info.h"

#include <string.h>

#include "base/arith.h"
#include "formats/intent.h"

void facts_done(struct facts *facts)
{
        facts->file = file_close(facts->file);
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
static int find_format(const char *name, struct facts *facts, struct error *err)
{
        const struct format *format = NULL;
        struct error unforced = ERROR_INIT;
        int r = format_find(facts->file, name, &format, &unforced);

        if (r == 0 && format == &raw_format)
                return 0;
        facts->is_vhd = vhd_metadata_read(facts->file, VHD_READ_FORCE, &facts->metadata, err) == 0;
        if (facts->is_vhd)
                return 0;
        if (r < 0)
                *err = unforced;
        return -err->code;
}

int facts_gather(const char *path, const char *format, struct facts *facts, struct error *err)
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
        r = find_format(format, facts, err);
        if (r == 0 && facts->is_vhd && facts->metadata.footer.type != VHD_TYPE_FIXED)
                r = count_blocks(facts, err);
        if (r == 0 && facts->is_vhd && facts->metadata.footer.type == VHD_TYPE_DIFFERENCING)
                facts->n_candidates =
                        locate_candidates(facts->file, &facts->metadata.header, facts->candidates);
        return r;
}

const char *facts_type(const struct facts *facts)
{
        return facts->is_vhd ? vhd_type_to_string(facts->metadata.footer.type) : "raw";
}

uint64_t facts_virtual_size(const struct facts *facts)
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

json_t *facts_to_json(const struct facts *facts)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(facts->path));
        json_object_set_new(object, "format", json_text(facts->is_vhd ? "vhd" : "raw"));
        json_object_set_new(object, "type", json_text(facts_type(facts)));
        json_object_set_new(object, "virtual-size", json_size(facts_virtual_size(facts)));
        json_object_set_new(object, "file-size", json_size(facts->st.size));
        json_object_set_new(object, "disk-size", json_size(facts->st.allocated));
        if (facts->is_vhd)
                vhd_to_json(facts, object);
        return object;
}

/* One file, with what the caller adds. */
static int describe(const char *path, const char *format, const struct info_request *request,
        json_t **ret, struct error *err)
{
        struct facts *facts _cleanup_(cleanup_free) = calloc(1, sizeof(*facts));
        _cleanup_json_ json_t *object = NULL;
        int r;

        if (!facts)
                return fail(err, ENOMEM, "no memory to look at '%s'", path);
        r = facts_gather(path, format, facts, err);
        if (r == 0) {
                object = facts_to_json(facts);
                if (request->add)
                        r = request->add(request->opaque, facts, object, err);
        }
        facts_done(facts);
        if (r < 0) {
                error_set_file(err, path);
                return r;
        }
        *ret = TAKE_PTR(object);
        return 0;
}

static int describe_chain(
        const char *path, const struct info_request *request, json_t *object, struct error *err)
{
        struct chain_options options = *request->chain_options;
        struct chain *chain;
        json_t *list;
        int r;

        options.loose_lock = true;
        options.writable = false;
        r = chain_open(path, &options, &chain, err);
        if (r < 0)
                return r;
        list = must(json_array());
        for (unsigned depth = 0; r == 0 && depth < chain_depth(chain); depth++) {
                const char *layer = chain_layer_path(chain, chain_depth(chain) - 1 - depth);
                json_t *one = NULL;

                r = describe(depth == 0 ? path : layer, options.format, request, &one, err);
                if (r == 0) {
                        json_object_set_new(one, "depth", json_size(depth));
                        json_array_append_new(list, one);
                }
        }
        json_object_set_new(object, "chain", list);
        chain_close(chain, NULL);
        return r;
}

int info_to_json(
        const char *path, const struct info_request *request, json_t **ret, struct error *err)
{
        _cleanup_json_ json_t *object = NULL;
        int r = describe(path, request->chain_options->format, request, &object, err);

        if (r == 0 && request->chain)
                r = describe_chain(path, request, object, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}
