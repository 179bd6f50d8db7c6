/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl convert - a disk into a new image, whole or not at all. */
#include <string.h>

#include "base/arith.h"
#include "base/size.h"
#include "formats/vhd/metadata.h"
#include "vhdd/ctl/conversion.h"
#include "vhdd/ctl/newfile.h"
#include "vhdd/ctl/vhdsize.h"

enum { KEY_TYPE = CTL_KEY_FIRST, KEY_BLOCK_SIZE, KEY_FOR };

struct convert_options {
        enum target target;
        uint32_t block_size;
        bool for_azure;
};

static const struct argp_option options[] = {
        {"type", KEY_TYPE, "TYPE", 0, "dynamic, fixed or raw; else DST's ending decides", 0},
        {"block-size", KEY_BLOCK_SIZE, "SIZE", 0, "Of a dynamic VHD: 512K or 2M (the default)", 0},
        {"for", KEY_FOR, "WHOM", 0, "azure: a fixed VHD, its size rounded up to a whole MiB", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct convert_options *convert = opaque;

        switch (key) {
        case KEY_BLOCK_SIZE: return vhd_block_size_parse(arg, &convert->block_size, err);
        case KEY_FOR:
                if (strcmp(arg, "azure") != 0)
                        return fail(err, EINVAL, "--for takes azure, not '%s'", arg);
                convert->for_azure = true;
                return 0;
        case KEY_TYPE:
                for (int i = TARGET_DYNAMIC; i <= TARGET_RAW; i++)
                        if (strcmp(arg, target_to_string((enum target)i)) == 0) {
                                convert->target = (enum target)i;
                                return 0;
                        }
                return fail(err, EINVAL, "--type takes dynamic, fixed or raw, not '%s'", arg);
        default: return -EINVAL;
        }
}

/* CTL_DONE if the options make sense together, or what ctl_usage() gave. */
static int decide(const struct ctl *ctl, struct conversion *plan)
{
        const struct convert_options *convert = ctl->options;

        plan->from = ctl->operands[0];
        plan->to = ctl->operands[1];
        plan->target = convert->target;
        plan->block_size = convert->block_size;
        plan->unit = convert->for_azure ? MIB : SECTOR_SIZE;
        if (source_is_uri(plan->to))
                return ctl_usage(ctl, "'%s' is no file: convert writes files only", plan->to);
        if (ctl->format && source_is_uri(plan->from))
                return ctl_usage(
                        ctl, "--format speaks of files: what NBD serves is a disk already");
        if (convert->for_azure) {
                if (plan->target == TARGET_DYNAMIC || plan->target == TARGET_RAW)
                        return ctl_usage(ctl, "Azure takes fixed VHDs only, not --type %s",
                                target_to_string(plan->target));
                plan->target = TARGET_FIXED;
        }
        if (plan->target == TARGET_UNKNOWN)
                plan->target = target_of_name(plan->to);
        if (plan->target == TARGET_UNKNOWN)
                return ctl_usage(ctl,
                        "the name '%s' does not tell what to make: --type dynamic, fixed or raw?",
                        plan->to);
        if (plan->block_size && plan->target != TARGET_DYNAMIC)
                return ctl_usage(ctl, "a %s image has no blocks: no --block-size",
                        target_to_string(plan->target));
        return CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        _cleanup_(source_closep) struct source *source = NULL;
        struct conversion plan = {0};
        int r = decide(ctl, &plan);

        if (r != CTL_DONE)
                return r;
        r = newfile_check(plan.to, ctl->force, err);
        if (r == 0)
                r = source_open(ctl, plan.from, CONVERSION_LANES, &source, err);
        if (r == 0)
                r = conversion_run(ctl, source, &plan, err);
        if (r == 0)
                r = conversion_report(ctl, &plan, err);
        return r < 0 ? r : CTL_DONE;
}

const struct command command_convert = {
        .name = "convert",
        .operands = "SRC DST",
        .summary = "copy a disk into a new image",
        .doc = "Copy the disk that SRC is (an image with its parents, a block device, an NBD URI) into "
               "a new image DST: a dynamic VHD (.vhd), a fixed one, or a raw file (.raw, .img). "
               "DST appears when it is whole."
               "\v"
               "Examples:\n"
               "  vhdctl convert disk_GUID.avhd flat.vhd\n"
               "  vhdctl convert disk.vhd disk.raw\n"
               "  vhdctl convert disk.raw upload.vhd --for azure\n"
               "  vhdctl convert nbd://localhost/ copy.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .options = options,
        .options_size = sizeof(struct convert_options),
        .take_option = take_option,
        .run = run,
};
