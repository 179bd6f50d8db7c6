/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl convert - a disk into a new image, whole or not at all. */
#include <string.h>
#include <sys/statvfs.h>

#include "base/arith.h"
#include "base/size.h"
#include "formats/vhd/create.h"
#include "vhdd/ctl/copy.h"
#include "vhdd/ctl/newfile.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/vhdsize.h"

/* Reading and writing overlap, and two threads keep both going; an NBD server gets as many
 * connections, if it takes more than one. */
#define N_LANES 2u

enum { KEY_TYPE = CTL_KEY_FIRST, KEY_BLOCK_SIZE, KEY_FOR };

enum target { TARGET_UNKNOWN, TARGET_DYNAMIC, TARGET_FIXED, TARGET_RAW };

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

static const char *const target_names[] = {"", "dynamic", "fixed", "raw"};

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
                        if (strcmp(arg, target_names[i]) == 0) {
                                convert->target = (enum target)i;
                                return 0;
                        }
                return fail(err, EINVAL, "--type takes dynamic, fixed or raw, not '%s'", arg);
        default: return -EINVAL;
        }
}

static enum target target_of_name(const char *path)
{
        const char *dot = strrchr(ctl_base_name(path), '.');

        if (!dot)
                return TARGET_UNKNOWN;
        if (strcasecmp(dot, ".vhd") == 0)
                return TARGET_DYNAMIC;
        if (strcasecmp(dot, ".raw") == 0 || strcasecmp(dot, ".img") == 0)
                return TARGET_RAW;
        return TARGET_UNKNOWN;
}

/* One conversion, decided and checked. */
struct plan {
        const char *from, *to;
        enum target target;
        uint32_t block_size;
        uint64_t size; /* that the guest will see */
};

/* CTL_DONE if the options make sense together, or what ctl_usage() gave. */
static int decide(const struct ctl *ctl, struct plan *plan)
{
        const struct convert_options *convert = ctl->options;

        plan->from = ctl->operands[0];
        plan->to = ctl->operands[1];
        plan->target = convert->target;
        plan->block_size = convert->block_size;
        if (source_is_uri(plan->to))
                return ctl_usage(ctl, "'%s' is no file: convert writes files only", plan->to);
        if (ctl->format && source_is_uri(plan->from))
                return ctl_usage(
                        ctl, "--format speaks of files: what NBD serves is a disk already");
        if (convert->for_azure) {
                if (plan->target == TARGET_DYNAMIC || plan->target == TARGET_RAW)
                        return ctl_usage(ctl, "Azure takes fixed VHDs only, not --type %s",
                                target_names[plan->target]);
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
                        target_names[plan->target]);
        return CTL_DONE;
}

static int choose_size(
        const struct ctl *ctl, const struct source *source, struct plan *plan, struct error *err)
{
        const struct convert_options *convert = ctl->options;
        int r;

        if (plan->target == TARGET_RAW) {
                plan->size = source_size(source);
                return 0;
        }
        r = vhd_size_round_up(source_size(source), convert->for_azure ? MIB : SECTOR_SIZE,
                plan->block_size, &plan->size, err);
        if (r < 0) {
                r = fail_prefix(err, r, "'%s' cannot become a VHD", plan->from);
                error_set_file(err, plan->from);
                if (r == -EFBIG)
                        error_set_hint(err, "--type raw has no such limit");
        }
        return r;
}

/* Replacing a layer of the source's own chain would end the disk that was just read. */
static int refuse_own_layer(struct source *source, const struct plan *plan, struct error *err)
{
        struct chain *chain = source_chain(source);
        _cleanup_(file_closep) struct file *there = NULL;
        struct file_stat to, layer;
        int r;

        if (!chain || file_open(host_fs(), plan->to, FILE_READ, &there, NULL) < 0 ||
                file_stat_get(there, &to) < 0)
                return 0;
        for (unsigned i = 0; i < chain_depth(chain); i++) {
                r = file_stat_get(chain_layer(chain, i)->file, &layer);
                if (r < 0)
                        return fail_os(err, -r, "cannot look at '%s'", chain_layer_path(chain, i));
                if (layer.device == to.device && layer.inode == to.inode) {
                        r = fail(err, EBUSY, "'%s' is part of what is read, so it is not replaced",
                                plan->to);
                        error_set_file(err, plan->to);
                        return r;
                }
        }
        return 0;
}

/* Better refused now than after half an hour. */
static int check_space(struct source *source, const struct plan *plan, struct error *err)
{
        char directory[4096], have[SIZE_TEXT_MAX], want[SIZE_TEXT_MAX];
        const char *base = ctl_base_name(plan->to);
        struct statvfs fs;
        uint64_t room, needed;
        int r;

        snprintf(directory, sizeof(directory), "%.*s", (int)(base - plan->to), plan->to);
        if (statvfs(directory[0] ? directory : ".", &fs) < 0)
                return fail_os(err, errno, "cannot look at the directory of '%s'", plan->to);
        room = (uint64_t)fs.f_bavail * fs.f_frsize;
        if (room >= plan->size)
                return 0;
        r = copy_count_data(source, room, &needed, err);
        if (r < 0 || needed <= room)
                return r;
        r = fail(err, ENOSPC, "'%s' needs at least %s, and its file system has %s left", plan->to,
                size_to_text(needed, want), size_to_text(room, have));
        error_set_file(err, plan->to);
        return r;
}

static int make_empty(struct newfile *newfile, const struct plan *plan, struct error *err)
{
        struct vhd_create_params params = {
                .type = plan->target == TARGET_FIXED ? VHD_TYPE_FIXED : VHD_TYPE_DYNAMIC,
                .size = plan->size,
                .block_size = plan->block_size,
                .sparse = true,
        };
        int r;

        if (plan->target != TARGET_RAW)
                return vhd_create(newfile_file(newfile), &params, err);
        r = file_truncate(newfile_file(newfile), plan->size);
        if (r < 0)
                return fail_os(err, -r, "cannot give '%s' its size of %llu bytes",
                        newfile_part(newfile), (unsigned long long)plan->size);
        return 0;
}

/* Opens the new image for writing: through the engine where blocks must be found places. */
static int open_sink(struct newfile *newfile, const struct plan *plan, struct chain **ret_chain,
        struct sink *sink, struct error *err)
{
        struct chain_options chain_options = {.writable = true, .format = "vhd"};
        int r;

        sink->name = plan->to;
        if (plan->target != TARGET_DYNAMIC) {
                sink->file = newfile_file(newfile);
                return 0;
        }
        r = chain_open(newfile_part(newfile), &chain_options, ret_chain, err);
        sink->chain = *ret_chain;
        return r;
}

static int copy_into(const struct ctl *ctl, struct source *source, const struct plan *plan,
        struct newfile *newfile, struct error *err)
{
        /* Closed in any case, and cleanly: a redo file of what is removed next helps nobody. */
        _cleanup_(ctl_chain_closep) struct chain *chain = NULL;
        struct sink sink = {0};
        struct progress *progress;
        int r = make_empty(newfile, plan, err);

        if (r == 0)
                r = open_sink(newfile, plan, &chain, &sink, err);
        if (r < 0)
                return r;
        progress = progress_new(ctl, ctl_base_name(plan->to), source_size(source));
        r = copy_run(source, &sink, progress, err);
        progress_end(progress, r == 0);
        if (r == 0 && chain)
                r = chain_close(TAKE_PTR(chain), err);
        return r;
}

static int report(const struct ctl *ctl, const struct plan *plan, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        char virtual_size[SIZE_TEXT_MAX], on_disk[SIZE_TEXT_MAX];
        struct file_stat st = {0};
        int r = 0;

        if (!ctl->dry_run)
                r = file_open(host_fs(), plan->to, FILE_READ, &file, err);
        if (r == 0 && file)
                file_stat_get(file, &st);
        if (r < 0)
                return r;
        if (ctl->json) {
                bool raw = plan->target == TARGET_RAW;
                json_t *object = json_object();

                json_object_set_new(object, "filename", json_text(plan->to));
                json_object_set_new(object, "format", json_text(raw ? "raw" : "vhd"));
                json_object_set_new(object, "type", json_text(target_names[plan->target]));
                json_object_set_new(object, "virtual-size", json_size(plan->size));
                if (!ctl->dry_run) {
                        json_object_set_new(object, "file-size", json_size(st.size));
                        json_object_set_new(object, "disk-size", json_size(st.allocated));
                }
                json_object_set_new(object, "dry-run", json_boolean(ctl->dry_run));
                json_print(object);
        } else if (!ctl->quiet) {
                _cleanup_free_ char *safe = text_safe(plan->to);

                printf("%s: %s%s %s, %s", safe, ctl->dry_run ? "would become a " : "",
                        target_names[plan->target], plan->target == TARGET_RAW ? "image" : "VHD",
                        size_to_text(plan->size, virtual_size));
                if (!ctl->dry_run)
                        printf(" (%s on disk)", size_to_text(st.allocated, on_disk));
                printf("\n");
        }
        return CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        _cleanup_(source_closep) struct source *source = NULL;
        _cleanup_(newfile_abandonp) struct newfile *newfile = NULL;
        struct plan plan = {0};
        int r = decide(ctl, &plan);

        if (r != CTL_DONE)
                return r;
        r = newfile_check(plan.to, ctl->force, err);
        if (r == 0)
                r = source_open(ctl, plan.from, N_LANES, &source, err);
        if (r == 0)
                r = refuse_own_layer(source, &plan, err);
        if (r == 0 && ctl->force)
                r = ctl_refuse_parent(ctl, plan.to, err);
        if (r == 0)
                r = choose_size(ctl, source, &plan, err);
        if (r == 0)
                r = check_space(source, &plan, err);
        if (r < 0)
                return r;
        if (ctl->dry_run)
                return report(ctl, &plan, err);

        r = newfile_begin(plan.to, ctl->force, &newfile, err);
        if (r == 0)
                r = copy_into(ctl, source, &plan, newfile, err);
        if (r == 0)
                r = newfile_commit(TAKE_PTR(newfile), err);
        if (r < 0)
                return r;
        return report(ctl, &plan, err);
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
