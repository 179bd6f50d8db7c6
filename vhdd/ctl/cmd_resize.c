/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl resize - another size for a disk. */
#include <inttypes.h>

#include "base/arith.h"
#include "base/size.h"
#include "merge/resize.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"

enum { KEY_SHRINK = CTL_KEY_FIRST };

struct resize_options {
        bool shrink;
};

static const struct argp_option options[] = {
        {"shrink", KEY_SHRINK, NULL, 0,
                "Let the disk become smaller, if what is cut off reads as zeros", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct resize_options *resize_options = opaque;

        if (key != KEY_SHRINK)
                return -EINVAL;
        resize_options->shrink = true;
        return 0;
}

static const char *type_name(enum image_type type)
{
        switch (type) {
        case IMAGE_RAW: return "raw";
        case IMAGE_FIXED: return "fixed";
        case IMAGE_DYNAMIC: return "dynamic";
        case IMAGE_DIFFERENCING: return "differencing";
        }
        return "?";
}

static void print_json(const struct ctl *ctl, const struct resize_report *report)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(ctl->operands[0]));
        json_object_set_new(object, "type", json_text(type_name(report->type)));
        json_object_set_new(object, "virtual-size-before", json_size(report->size_before));
        json_object_set_new(object, "virtual-size", json_size(report->size_after));
        json_object_set_new(object, "blocks-moved", json_size(report->n_moved));
        json_object_set_new(object, "file-size-before", json_size(report->file_size));
        json_object_set_new(object, "file-size",
                ctl->dry_run ? json_null() : json_size(report->file_size_after));
        json_object_set_new(object, "dry-run", json_boolean(ctl->dry_run));
        json_print(object);
}

static void print_text(const struct ctl *ctl, const struct resize_report *report)
{
        _cleanup_free_ char *path = text_safe(ctl->operands[0]);
        char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];

        if (report->size_before == report->size_after) {
                printf("%s: %s as before\n", path, size_to_text(report->size_after, a));
                return;
        }
        printf("%s: %s, before %s\n", path, size_to_text(report->size_after, a),
                size_to_text(report->size_before, b));
        if (ctl->dry_run)
                printf("nothing was changed; %" PRIu64 " blocks would move\n", report->n_moved);
}

/* "SIZE" or "+SIZE", in whole sectors. */
static int parse_size(const struct ctl *ctl, struct resize_params *params)
{
        const char *text = ctl->operands[1];
        struct error why = ERROR_INIT;
        uint64_t size;

        if (size_parse(text[0] == '+' ? text + 1 : text, &size, &why) < 0)
                return ctl_usage(ctl, "%s", why.message);
        if (size > INT64_MAX - SECTOR_SIZE)
                return ctl_usage(ctl, "'%s' is more than any disk has", text);
        size = round_up_to(size, SECTOR_SIZE);
        if (text[0] == '+' && size == 0)
                return ctl_usage(ctl, "'%s' changes nothing", text);
        if (text[0] == '+')
                params->add = size;
        else
                params->size = size;
        return 0;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct resize_options *resize_options = ctl->options;
        struct resize_params params = {
                .shrink = resize_options->shrink,
                .force = ctl->force,
                .dry_run = ctl->dry_run,
        };
        struct resize_report report = {0};
        struct chain_options chain_options;
        int r = parse_size(ctl, &params);

        if (r != 0)
                return r;
        r = ctl_refuse_parent(ctl, ctl->operands[0], err);
        if (r < 0)
                return r;
        ctl_chain_options(ctl, &chain_options);
        r = resize(ctl->operands[0], &chain_options, &params, &report, err);
        if (r < 0)
                return r;
        if (!ctl->dry_run && report.size_before != report.size_after)
                ctl_warn_of_seal(ctl, ctl->operands[0]);
        if (ctl->json)
                print_json(ctl, &report);
        else if (!ctl->quiet)
                print_text(ctl, &report);
        return CTL_DONE;
}

const struct command command_resize = {
        .name = "resize",
        .operands = "FILE SIZE|+SIZE",
        .summary = "give a disk another size",
        .doc = "Make the disk in FILE SIZE large, or SIZE larger: what is new reads as zeros. It "
               "becomes smaller only with --shrink, and only if what is cut off reads as zeros. A "
               "child does not become larger than its parent unless --force says so. Partitions and "
               "file systems inside are the guest's."
               "\v"
               "Examples:\n"
               "  vhdctl resize disk.vhd 200G\n"
               "  vhdctl resize disk.vhd +20G\n"
               "  vhdctl resize --shrink --dry-run disk.vhd 40G",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .options = options,
        .options_size = sizeof(struct resize_options),
        .take_option = take_option,
        .run = run,
};
