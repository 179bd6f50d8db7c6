/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/conversion.h"

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

const char *target_to_string(enum target target)
{
        switch (target) {
        case TARGET_UNKNOWN: break;
        case TARGET_DYNAMIC: return "dynamic";
        case TARGET_FIXED: return "fixed";
        case TARGET_RAW: return "raw";
        }
        return "";
}

enum target target_of_name(const char *path)
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

static int choose_size(const struct source *source, struct conversion *plan, struct error *err)
{
        int r;

        if (plan->target == TARGET_RAW) {
                plan->size = source_size(source);
                return 0;
        }
        r = vhd_size_round_up(source_size(source), plan->unit, plan->block_size, &plan->size, err);
        if (r < 0) {
                r = fail_prefix(err, r, "'%s' cannot become a VHD", plan->from);
                error_set_file(err, plan->from);
                if (r == -EFBIG)
                        error_set_hint(err, "--type raw has no such limit");
        }
        return r;
}

/* Replacing a layer of the source's own chain would end the disk that was just read. */
static int refuse_own_layer(struct source *source, const struct conversion *plan, struct error *err)
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
static int check_space(struct source *source, const struct conversion *plan, struct error *err)
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

static int make_empty(struct newfile *newfile, const struct conversion *plan, struct error *err)
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
static int open_sink(struct newfile *newfile, const struct conversion *plan,
        struct chain **ret_chain, struct sink *sink, struct error *err)
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

static int copy_into(const struct ctl *ctl, struct source *source, const struct conversion *plan,
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

int conversion_run(
        const struct ctl *ctl, struct source *source, struct conversion *plan, struct error *err)
{
        _cleanup_(newfile_abandonp) struct newfile *newfile = NULL;
        int r = refuse_own_layer(source, plan, err);

        if (r == 0 && ctl->force)
                r = ctl_refuse_parent(ctl, plan->to, err);
        if (r == 0)
                r = choose_size(source, plan, err);
        if (r == 0)
                r = check_space(source, plan, err);
        if (r < 0 || ctl->dry_run)
                return r;
        r = newfile_begin(plan->to, ctl->force, &newfile, err);
        if (r == 0)
                r = copy_into(ctl, source, plan, newfile, err);
        if (r == 0)
                r = newfile_commit(TAKE_PTR(newfile), err);
        return r;
}

int conversion_report(const struct ctl *ctl, const struct conversion *plan, struct error *err)
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
                json_object_set_new(object, "type", json_text(target_to_string(plan->target)));
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
                        target_to_string(plan->target),
                        plan->target == TARGET_RAW ? "image" : "VHD",
                        size_to_text(plan->size, virtual_size));
                if (!ctl->dry_run)
                        printf(" (%s on disk)", size_to_text(st.allocated, on_disk));
                printf("\n");
        }
        return 0;
}
