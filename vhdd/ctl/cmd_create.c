/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl create - an empty VHD, or a child of another. */
#include <string.h>

#include "base/arith.h"
#include "base/size.h"
#include "chain/paths.h"
#include "formats/vhd/create.h"
#include "vhdd/ctl/newfile.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/vhdsize.h"

enum { KEY_SIZE = CTL_KEY_FIRST, KEY_TYPE, KEY_BLOCK_SIZE, KEY_SPARSE };

struct create_options {
        bool has_size, sparse;
        uint64_t size;
        enum vhd_type type; /* VHD_TYPE_NONE: not said */
        uint32_t block_size;
};

static const struct argp_option options[] = {
        {"size", KEY_SIZE, "SIZE", 0,
                "What the guest sees: bytes, or with K, M, G, T; rounded up to whole MiB", 0},
        {"type", KEY_TYPE, "TYPE", 0, "dynamic (the default) or fixed", 0},
        {"block-size", KEY_BLOCK_SIZE, "SIZE", 0,
                "512K or 2M (the default; a child takes its parent's)", 0},
        {"sparse", KEY_SPARSE, NULL, 0, "A fixed disk does not take all of its space at once", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct create_options *create = opaque;

        switch (key) {
        case KEY_SIZE: create->has_size = true; return size_parse(arg, &create->size, err);
        case KEY_BLOCK_SIZE: return vhd_block_size_parse(arg, &create->block_size, err);
        case KEY_SPARSE: create->sparse = true; return 0;
        case KEY_TYPE:
                if (strcmp(arg, "dynamic") == 0)
                        create->type = VHD_TYPE_DYNAMIC;
                else if (strcmp(arg, "fixed") == 0)
                        create->type = VHD_TYPE_FIXED;
                else
                        return fail(err, EINVAL, "--type takes dynamic or fixed, not '%s'", arg);
                return 0;
        default: return -EINVAL;
        }
}

/* What the child records about its parent; the texts live as long as this. */
struct parent {
        struct chain *chain; /* open until the child is there: nobody writes to it meanwhile */
        struct vhd_metadata metadata;
        char absolute[PATH_TEXT_MAX], relative[PATH_TEXT_MAX], directory[PATH_TEXT_MAX];
};

/* Opens the parent's whole chain, because a child of what cannot be read is no disk. */
static int read_parent(const struct ctl *ctl, const char *child, struct vhd_create_params *params,
        struct parent *parent, struct error *err)
{
        struct chain *chain;
        char child_path[PATH_TEXT_MAX], child_directory[PATH_TEXT_MAX];
        struct chain_options chain_options;
        const struct image *image;
        struct file_stat st;
        int r;

        ctl_chain_options(ctl, &chain_options);
        chain_options.parents++;
        chain_options.n_parents--;
        r = chain_open(ctl->parents[0], &chain_options, &parent->chain, err);
        if (r < 0)
                return r;
        chain = parent->chain;
        image = chain_layer(chain, chain_depth(chain) - 1);
        if (image->type == IMAGE_RAW)
                return fail(err, EINVAL, "'%s' is no VHD, and only a VHD can be a parent",
                        ctl->parents[0]);
        if (image->merging)
                return fail(err, EBUSY,
                        "a merge into '%s' was cut off, so nothing can stand on it but what does; "
                        "`vhdctl merge` of that goes on",
                        ctl->parents[0]);
        r = vhd_metadata_read(image->file, 0, &parent->metadata, err);
        if (r < 0)
                return r;
        r = file_stat_get(image->file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", ctl->parents[0]);
        r = path_absolute(ctl->parents[0], parent->absolute, sizeof(parent->absolute));
        if (r == 0)
                r = path_absolute(child, child_path, sizeof(child_path));
        if (r == 0) {
                path_directory(child_path, child_directory, sizeof(child_directory));
                path_directory(parent->absolute, parent->directory, sizeof(parent->directory));
                r = path_relative(child_directory, parent->absolute, parent->relative,
                        sizeof(parent->relative));
        }
        if (r < 0)
                return fail_os(err, -r, "cannot write down where '%s' lies", ctl->parents[0]);
        if (strcmp(child_directory, parent->directory) != 0)
                ctl_warn(ctl, "the parent lies elsewhere: opening '%s' takes --image-root '%s'",
                        child, parent->directory);

        params->type = VHD_TYPE_DIFFERENCING;
        params->size = chain_size(chain);
        if (params->block_size == 0)
                params->block_size = image->block_size;
        memcpy(params->parent_id, image->id, sizeof(params->parent_id));
        params->parent_timestamp = vhd_time_from_unix(st.mtime_s);
        params->parent_name = ctl_base_name(parent->absolute);
        params->parent_relative = parent->relative;
        params->parent_absolute = parent->absolute;
        return 0;
}

static const char *type_name(enum vhd_type type)
{
        return vhd_type_to_string(type);
}

static void report(const struct ctl *ctl, const char *path, const struct vhd_create_params *params,
        const uint8_t *id)
{
        char text[SIZE_TEXT_MAX];

        if (ctl->json) {
                json_t *object = json_object();

                json_object_set_new(object, "filename", json_text(path));
                json_object_set_new(object, "format", json_text("vhd"));
                json_object_set_new(object, "type", json_text(type_name(params->type)));
                json_object_set_new(object, "virtual-size", json_size(params->size));
                if (params->type != VHD_TYPE_FIXED)
                        json_object_set_new(object, "block-size", json_size(params->block_size));
                if (id)
                        json_object_set_new(object, "uuid", json_uuid(id));
                if (params->parent_name)
                        json_object_set_new(object, "parent", json_text(ctl->parents[0]));
                json_object_set_new(object, "dry-run", json_boolean(ctl->dry_run));
                json_print(object);
        } else if (!ctl->quiet) {
                _cleanup_free_ char *safe = text_safe(path);

                printf("%s: %s%s VHD, %s\n", safe, ctl->dry_run ? "would become a " : "",
                        type_name(params->type), size_to_text(params->size, text));
        }
}

static int make(const struct ctl *ctl, const char *path, const struct vhd_create_params *params,
        struct error *err)
{
        _cleanup_(newfile_abandonp) struct newfile *newfile = NULL;
        struct vhd_metadata made;
        int r = newfile_begin(path, ctl->force, &newfile, err);

        if (r < 0)
                return r;
        r = vhd_create(newfile_file(newfile), params, err);
        if (r == 0)
                r = vhd_metadata_read(newfile_file(newfile), 0, &made, err);
        if (r < 0) {
                r = fail_prefix(err, r, "cannot make '%s'", path);
                error_set_file(err, path);
                return r;
        }
        r = newfile_commit(TAKE_PTR(newfile), err);
        if (r < 0)
                return r;
        report(ctl, path, params, made.footer.unique_id);
        return CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct create_options *create = ctl->options;
        const char *path = ctl->operands[0];
        struct vhd_create_params params = {
                .type = create->type ? create->type : VHD_TYPE_DYNAMIC,
                .block_size = create->block_size,
                .sparse = create->sparse,
        };
        static struct parent parent;
        int r;

        if (ctl->n_parents > 0 && create->has_size)
                return ctl_usage(
                        ctl, "a child has its parent's size: --size or --parent, not both");
        if (ctl->n_parents > 0 && (create->type || create->sparse))
                return ctl_usage(ctl, "a child is a differencing disk: no --type, no --sparse");
        if (ctl->n_parents == 0 && !create->has_size)
                return ctl_usage(ctl, "how large? --size SIZE, or --parent FILE for a child");
        if (create->sparse && params.type != VHD_TYPE_FIXED)
                return ctl_usage(
                        ctl, "--sparse is for --type fixed: other disks are sparse anyway");
        if (create->block_size && params.type == VHD_TYPE_FIXED)
                return ctl_usage(ctl, "a fixed disk has no blocks: no --block-size");

        r = newfile_check(path, ctl->force, err);
        if (r == 0 && ctl->force)
                r = ctl_refuse_parent(ctl, path, err);
        if (r < 0)
                return r;
        if (ctl->n_parents > 0)
                r = read_parent(ctl, path, &params, &parent, err);
        else
                r = vhd_size_round_up(create->size, MIB, params.block_size, &params.size, err);
        if (params.block_size == 0 && params.type != VHD_TYPE_FIXED)
                params.block_size = 2 * (uint32_t)MIB;
        if (r == 0 && ctl->dry_run) {
                report(ctl, path, &params, NULL);
                r = CTL_DONE;
        } else if (r == 0) {
                r = make(ctl, path, &params, err);
        }
        if (parent.chain)
                ctl_chain_close(parent.chain);
        return r;
}

const struct command command_create = {
        .name = "create",
        .operands = "--size SIZE FILE\n--parent PARENT FILE",
        .summary = "make an empty disk, or a child of another disk",
        .doc = "Make an empty virtual disk, or a child of another. FILE appears when it is whole."
               "\v"
               "Examples:\n"
               "  vhdctl create disk.vhd --size 40G\n"
               "  vhdctl create fixed.vhd --size 10G --type fixed\n"
               "  vhdctl create try.avhd --parent disk.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .options = options,
        .options_size = sizeof(struct create_options),
        .take_option = take_option,
        .run = run,
};
