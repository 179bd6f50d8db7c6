/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl relink - give a child its parent back. */
#include <string.h>

#include "base/quote.h"
#include "base/uuid.h"
#include "chain/relink.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/output.h"

static void print_json(const struct ctl *ctl, const struct relink_report *report)
{
        json_t *object = json_object(), *parent = json_object();

        json_object_set_new(parent, "filename", json_text(report->absolute));
        json_object_set_new(parent, "uuid", json_uuid(report->id_after));
        json_object_set_new(parent, "uuid-before", json_uuid(report->id_before));
        json_object_set_new(parent, "relative", json_text(report->relative));
        json_object_set_new(object, "filename", json_text(ctl->operands[0]));
        json_object_set_new(object, "parent", parent);
        json_object_set_new(object, "grew", json_boolean(report->appended));
        json_object_set_new(object, "image-root",
                report->image_root[0] ? json_text(report->image_root) : json_null());
        json_object_set_new(object, "dry-run", json_boolean(ctl->dry_run));
        json_print(object);
}

static void print_text(const struct ctl *ctl, const struct relink_report *report)
{
        _cleanup_free_ char *child = text_safe(ctl->operands[0]);
        _cleanup_free_ char *parent = text_safe(report->absolute);
        char quoted[QUOTE_TEXT_MAX], before[UUID_TEXT_SIZE], after[UUID_TEXT_SIZE];

        printf("%s %s %s\n", child, ctl->dry_run ? "would stand on" : "stands on", parent);
        if (memcmp(report->id_before, report->id_after, 16) != 0)
                printf("it asked for the id %s, and %s %s\n",
                        uuid_format(report->id_before, before),
                        ctl->dry_run ? "would ask for" : "asks for",
                        uuid_format(report->id_after, after));
        if (report->image_root[0])
                printf("the parent lies elsewhere: open the chain with --image-root %s\n",
                        shell_quote(report->image_root, quoted, sizeof(quoted)));
}

static int run(struct ctl *ctl, struct error *err)
{
        struct locate_roots roots = {.roots = ctl->image_roots, .n_roots = ctl->n_image_roots};
        struct relink_params params = {
                .force = ctl->force,
                .dry_run = ctl->dry_run,
                .roots = &roots,
                .warn = ctl_warn_chain,
                .opaque = ctl,
        };
        struct relink_report *report;
        int r;

        if (ctl->n_parents != 1)
                return ctl_usage(
                        ctl, "relink takes one --parent: the file that the child stands on");
        if (ctl->format && strcmp(ctl->format, "vhd") != 0)
                return ctl_usage(ctl, "a raw disk has no parent: relink is for VHDs");
        report = calloc(1, sizeof(*report));
        if (!report)
                return fail(err, ENOMEM, "no memory to relink");
        r = relink(ctl->operands[0], ctl->parents[0], &params, report, err);
        if (r == 0 && ctl->json)
                print_json(ctl, report);
        else if (r == 0 && !ctl->quiet)
                print_text(ctl, report);
        free(report);
        return r < 0 ? r : CTL_DONE;
}

const struct command command_relink = {
        .name = "relink",
        .operands = "CHILD --parent P",
        .summary = "give a child whose parent was moved its parent back",
        .doc = "Write the place of P, whose id must be the one that CHILD asks for, into CHILD. The "
               "disk's contents are not touched. --force takes a parent with another id and writes "
               "that id into CHILD: only you can know that it is the same disk."
               "\v"
               "Examples:\n"
               "  vhdctl relink child.avhd --parent ../base/base.vhd\n"
               "  vhdctl relink --dry-run child.avhd --parent base.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run,
};
