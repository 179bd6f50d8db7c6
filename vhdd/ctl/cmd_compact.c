/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl compact - makes an image as small as what it holds. */
#include <inttypes.h>

#include "base/arith.h"
#include "base/size.h"
#include "merge/compact.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/guest_free.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/signals.h"

enum { KEY_GUEST_FREE = CTL_KEY_FIRST };

struct compact_options {
        bool guest_free;
};

static const struct argp_option options[] = {
        {"guest-free", KEY_GUEST_FREE, NULL, 0,
                "First mount the file systems inside and trim what they do not use (as root)", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct compact_options *compact_options = opaque;

        if (key != KEY_GUEST_FREE)
                return -EINVAL;
        compact_options->guest_free = true;
        return 0;
}

struct showing {
        const struct ctl *ctl;
        struct progress *progress; /* made when the total is known */
        uint64_t done;
};

static void show_progress(void *opaque, uint64_t done, uint64_t total)
{
        struct showing *showing = opaque;

        if (!showing->progress)
                showing->progress = progress_new(showing->ctl, "compacting", total);
        if (done > showing->done)
                progress_add(showing->progress, done - showing->done);
        showing->done = MAX_OF(done, showing->done);
}

static void print_json(const struct ctl *ctl, const struct compact_report *report,
        const struct guest_free_report *inside, const struct file_stat *after)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(ctl->operands[0]));
        json_object_set_new(object, "blocks", json_size(report->n_blocks));
        json_object_set_new(object, "blocks-freed", json_size(report->n_released));
        json_object_set_new(object, "blocks-moved", json_size(report->n_moved));
        json_object_set_new(object, "bytes-moved", json_size(report->bytes_moved));
        json_object_set_new(object, "bytes-punched", json_size(report->bytes_punched));
        json_object_set_new(object, "file-size-before", json_size(report->file_size));
        json_object_set_new(object, "file-size", json_size(report->file_size_after));
        json_object_set_new(object, "disk-size-before", json_size(report->allocated));
        json_object_set_new(object, "disk-size", after ? json_size(after->allocated) : json_null());
        json_object_set_new(object, "file-systems-trimmed", json_size(inside->n_trimmed));
        json_object_set_new(object, "bytes-trimmed", json_size(inside->bytes));
        json_object_set_new(object, "dry-run", json_boolean(ctl->dry_run));
        json_print(object);
}

static void print_text(const struct ctl *ctl, const struct compact_report *report,
        const struct guest_free_report *inside, const struct file_stat *after)
{
        _cleanup_free_ char *path = text_safe(ctl->operands[0]);
        char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];

        if (inside->n_trimmed)
                printf("%s: %u file system%s inside, %s of free space trimmed\n", path,
                        inside->n_trimmed, inside->n_trimmed == 1 ? "" : "s",
                        size_to_text(inside->bytes, a));
        printf("%s: %" PRIu64 " of %" PRIu64 " blocks %s freed, %" PRIu64 " moved\n", path,
                report->n_released, report->n_blocks, ctl->dry_run ? "would be" : "were",
                report->n_moved);
        if (report->bytes_punched)
                printf("%s of zeros in the others %s holes\n",
                        size_to_text(report->bytes_punched, a),
                        ctl->dry_run ? "would become" : "became");
        printf("the file %s %s long, and %s %s\n", ctl->dry_run ? "is" : "was",
                size_to_text(report->file_size, a), ctl->dry_run ? "would be about" : "is",
                size_to_text(report->file_size_after, b));
        if (after)
                printf("it took %s, and takes %s\n", size_to_text(report->allocated, a),
                        size_to_text(after->allocated, b));
}

static int look_after(const struct ctl *ctl, struct compact_report *report, struct file_stat *ret,
        struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(host_fs(), ctl->operands[0], FILE_READ, &file, err);

        if (r == 0)
                r = file_stat_get(file, ret);
        if (r == 0)
                report->file_size_after = ret->size;
        return r;
}

static bool is_stopped(void *opaque)
{
        (void)opaque;
        return signals_stopped();
}

/* Opens, works, closes: what is told is what the closed file is. */
static int work(struct ctl *ctl, struct compact_report *report, struct error *err)
{
        struct showing showing = {.ctl = ctl};
        struct compact_watcher watcher = {
                .opaque = &showing, .progress = show_progress, .cancelled = is_stopped};
        struct chain_options chain_options;
        struct chain *chain = NULL;
        int r, closed;

        ctl_chain_options(ctl, &chain_options);
        chain_options.writable = !ctl->dry_run;
        chain_options.force = false; /* a damaged image is not written to */
        r = chain_open(ctl->operands[0], &chain_options, &chain, err);
        if (r < 0)
                return r;
        signals_watch();
        r = ctl->dry_run ? compact_plan(chain, &watcher, report, err)
                         : compact_run(chain, &watcher, report, err);
        if (showing.progress)
                progress_end(showing.progress, r == 0);
        closed = chain_close(chain, r == 0 ? err : NULL);
        signals_unwatch();
        signals_end();
        return r < 0 ? r : closed;
}

static bool has_changed(const struct compact_report *report)
{
        return report->n_released || report->n_moved || report->bytes_punched ||
                report->file_size != report->file_size_after;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct compact_options *compact_options = ctl->options;
        struct guest_free_report inside = {0};
        struct compact_report report = {0};
        struct file_stat after;
        int r;

        if (compact_options->guest_free && ctl->dry_run)
                return ctl_usage(
                        ctl, "--guest-free mounts what is inside, which a dry run does not");
        r = ctl_refuse_parent(ctl, ctl->operands[0], err);
        if (r == 0 && compact_options->guest_free)
                r = guest_free(ctl, ctl->operands[0], &inside, err);
        if (r == 0)
                r = work(ctl, &report, err);
        if (r == 0 && !ctl->dry_run)
                r = look_after(ctl, &report, &after, err);
        if (r < 0)
                return r;
        if (!ctl->dry_run && has_changed(&report))
                ctl_warn_of_seal(ctl, ctl->operands[0]);
        if (ctl->json)
                print_json(ctl, &report, &inside, ctl->dry_run ? NULL : &after);
        else if (!ctl->quiet)
                print_text(ctl, &report, &inside, ctl->dry_run ? NULL : &after);
        return CTL_DONE;
}

const struct command command_compact = {
        .name = "compact",
        .operands = "FILE",
        .summary = "make an image as small as what it holds",
        .doc = "Free the blocks of FILE that read as zeros or, in a child, as its parents do anyway; "
               "move the last blocks of the file into the gaps, and end the file behind what is left. "
               "Zeros in blocks that stay become holes. What the disk reads as stays the same; with "
               "--guest-free only what its file systems hold does."
               "\v"
               "Examples:\n"
               "  vhdctl compact disk.vhd\n"
               "  vhdctl compact --dry-run --json child.avhd\n"
               "  vhdctl compact --guest-free disk.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .options = options,
        .options_size = sizeof(struct compact_options),
        .take_option = take_option,
        .run = run,
};
