/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl snapshot ... - points in time of a vm: taken, listed, drawn, applied, deleted, compared. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/ctl/branches.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/jobs.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

#define TEXT_OPERAND(name)                                                                         \
        {                                                                                          \
                name, PARAM_TEXT, NULL, NULL, NULL                                                 \
        }

static const struct param vm_operands[] = {TEXT_OPERAND("vm"), {0}};
static const struct param snapshot_operands[] = {TEXT_OPERAND("vm"), TEXT_OPERAND("name"), {0}};

static const char *describe_parts(const json_t *snapshot, char *text, size_t size)
{
        size_t n = json_array_size(json_object_get(snapshot, "disks"));

        bool frozen = strcmp(show_text(snapshot, "consistency"), "filesystem") == 0;

        snprintf(text, size, "%zu disk%s%s", n, PLURAL(n),
                show_flag(snapshot, "memory") ? ", memory"
                        : frozen              ? ", quiesced"
                                              : "");
        return text;
}

static const char *name_of_id(const json_t *snapshots, const char *id)
{
        json_t *snapshot;
        size_t i;

        json_array_foreach((json_t *)snapshots, i,
                snapshot) if (strcmp(show_text(snapshot, "id"), id) == 0) return show_text(snapshot,
                "name");
        return id[0] ? id : "-";
}

static int show_snapshots(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {
                "SNAPSHOT", "TAKEN", ">SIZE", "OF", "PARENT", "CURRENT", "NOTE", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], time[SHOW_TIME_MAX], parts[64];
        json_t *snapshot;
        size_t i;

        json_array_foreach((json_t *)result, i, snapshot)
        {
                table_cell(table, "%s", show_text(snapshot, "name"));
                table_cell(table, "%s", show_time(snapshot, "created", time));
                table_cell(table, "%s", show_size(snapshot, "size", size));
                table_cell(table, "%s", describe_parts(snapshot, parts, sizeof(parts)));
                table_cell(table, "%s", name_of_id(result, show_text(snapshot, "parent")));
                table_cell(table, "%s", show_flag(snapshot, "current") ? "yes" : "");
                table_cell(table, "%s", show_text(snapshot, "note"));
        }
        table_print(table, stdout);
        if (json_array_size(result) == 0 && !ctl->quiet)
                printf("no snapshots; `vhdctl snapshot take VM NAME' takes one\n");
        return CTL_DONE;
}

/* --- the tree --- */

/* A snapshot, or "now": the running state, which hangs on the current one. */
struct node {
        const json_t *snapshot; /* NULL: now */
        struct node *parent, *first_child, **last_child, *next_sibling;
};

struct drawing {
        struct table *table;
        const json_t *tree;
};

static const void *first_child(const void *node)
{
        return ((const struct node *)node)->first_child;
}

static const void *next_sibling(const void *node)
{
        return ((const struct node *)node)->next_sibling;
}

static const void *parent_of(const void *node)
{
        return ((const struct node *)node)->parent;
}

static void draw_row(void *opaque, const void *drawn, const char *branch)
{
        struct drawing *drawing = opaque;
        const struct node *node = drawn;
        const json_t *now = json_object_get(drawing->tree, "now");
        const char *note = show_text(node->snapshot, "note");
        bool memory = show_flag(node->snapshot, "memory");
        char size[SIZE_TEXT_MAX], time[SHOW_TIME_MAX];

        if (node->snapshot) {
                table_cell(drawing->table, "%s%s", branch, show_text(node->snapshot, "name"));
                table_cell(drawing->table, "%s", show_time(node->snapshot, "created", time));
                table_cell(drawing->table, "%s", show_size(node->snapshot, "size", size));
                table_cell(drawing->table, "%s%s%s", memory ? "with memory" : "",
                        memory && note[0] ? ": " : "", note);
                return;
        }
        table_cell(drawing->table, "%s* now", branch);
        table_cell(drawing->table, "%s", show_flag(now, "on") ? "running" : "");
        table_cell(drawing->table, "%s", show_size(now, "size", size));
        table_cell(drawing->table, "%s", "the vm is here");
}

static struct node *find_node(struct node *nodes, size_t n, const char *id)
{
        for (size_t i = 0; id[0] && i < n; i++)
                if (strcmp(show_text(nodes[i].snapshot, "id"), id) == 0)
                        return &nodes[i];
        return NULL;
}

static void hang(struct node *node, struct node *parent, struct node *root)
{
        struct node *on = parent && parent != node ? parent : root;

        node->parent = on;
        *on->last_child = node;
        on->last_child = &node->next_sibling;
}

/* The daemon's word is taken for who is whose parent, but not that it is a tree: what cannot be reached
 * from the top is not drawn, and nothing runs in a circle. */
static void draw_tree(struct drawing *drawing)
{
        const json_t *snapshots = json_object_get(drawing->tree, "snapshots");
        size_t n = json_array_size(snapshots);
        _cleanup_free_ struct node *nodes = calloc(n + 1, sizeof(*nodes));
        struct node top = {.last_child = &top.first_child};
        const struct branches branches = {first_child, next_sibling, parent_of, draw_row, drawing};

        if (!nodes)
                return;
        for (size_t i = 0; i <= n; i++) {
                nodes[i].snapshot = i < n ? json_array_get(snapshots, i) : NULL;
                nodes[i].last_child = &nodes[i].first_child;
        }
        for (size_t i = 0; i < n; i++)
                hang(&nodes[i], find_node(nodes, n, show_text(nodes[i].snapshot, "parent")), &top);
        hang(&nodes[n], find_node(nodes, n, show_text(drawing->tree, "current")), &top);
        for (struct node *root = top.first_child; root; root = root->next_sibling)
                branches_draw(&branches, root);
}

static int show_tree(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {"SNAPSHOT", "TAKEN", ">SIZE", "", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        struct drawing drawing = {.table = table, .tree = result};

        draw_tree(&drawing);
        table_print(table, stdout);
        return CTL_DONE;
}

/* --- one --- */

static int show_snapshot(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {"DISK", "AT", ">SIZE", ">ON DISK", "FILE", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], time[SHOW_TIME_MAX];
        json_t *disk;
        size_t i;

        show_line(0, "name", "%s", show_text(result, "name"));
        show_line(0, "id", "%s", show_text(result, "id"));
        show_line(0, "taken", "%s", show_time(result, "created", time));
        if (show_text(result, "parent")[0])
                show_line(0, "parent", "%s", show_text(result, "parent"));
        show_line(0, "current", "%s", show_flag(result, "current") ? "yes" : "no");
        show_line(0, "memory", "%s", show_flag(result, "memory") ? "saved" : "not saved");
        if (show_text(result, "consistency")[0])
                show_line(0, "consistency", "%s", show_text(result, "consistency"));
        show_line(0, "on disk", "%s", show_size(result, "size", size));
        if (show_text(result, "note")[0])
                show_line(0, "note", "%s", show_text(result, "note"));
        json_array_foreach(json_object_get(result, "disks"), i, disk)
        {
                table_cell(table, "%s", show_text(disk, "name"));
                table_cell(table, "%s", show_text(disk, "at"));
                table_cell(table, "%s", show_size(disk, "size", size));
                table_cell(table, "%s", show_size(disk, "allocated", size));
                table_cell(table, "%s",
                        show_flag(disk, "skipped") ? "left out: pass-through"
                                                   : show_text(disk, "file"));
        }
        if (i > 0)
                printf("\n");
        table_print(table, stdout);
        return CTL_DONE;
}

static int show_taken(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *name = text_safe(show_text(params, "name"));
        const json_t *stall = json_object_get(result, "stall-us");
        char parts[64];

        printf("%s %s: %s", name, ctl->dry_run ? "would be taken" : "taken",
                describe_parts(result, parts, sizeof(parts)));
        if (json_is_integer(stall) && !ctl->dry_run)
                printf("; writes waited %.2f ms", (double)json_integer_value(stall) / 1000);
        if (json_object_get(result, "pause-us") && !ctl->dry_run)
                printf("; the guest stood still for %.2f ms",
                        (double)show_number(result, "pause-us") / 1000);
        printf("\n");
        return CTL_DONE;
}

/* --- its memory --- */

static int take_output(const struct ctl *ctl, json_t *params, struct error *err)
{
        json_t *output = json_object_get(params, "output");

        (void)ctl;
        if (!output)
                return fail(err, EINVAL, "where to? --output FILE names a new file");
        json_object_set(params, "file", output);
        json_object_del(params, "output");
        return 0;
}

static int show_memory(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *file = text_safe(show_text(result, "file"));
        char size[SIZE_TEXT_MAX];

        printf("%s %s, %s\n", file, ctl->dry_run ? "would have the memory" : "has the memory",
                show_size(result, "size", size));
        return CTL_DONE;
}

static int show_renamed(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *old = text_safe(show_text(params, "old"));
        _cleanup_free_ char *new = text_safe(show_text(params, "new"));

        printf("%s %s %s\n", old, ctl->dry_run ? "would be called" : "is called", new);
        return CTL_DONE;
}

/* --- apply, revert, undo --- */

static int show_applied(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));
        _cleanup_free_ char *name = text_safe(show_text(result, "snapshot"));
        _cleanup_free_ char *saved = text_safe(show_text(result, "saved"));
        char time[SHOW_TIME_MAX];
        json_t *disk;
        size_t i;

        printf("%s %s %s%s\n", vm, ctl->dry_run ? "would go on from" : "goes on from", name,
                show_flag(result, "memory") ? ", with its memory" : "");
        if (saved[0])
                printf("what was there %s the snapshot %s\n", ctl->dry_run ? "would be" : "is",
                        saved);
        show_list("attached ", json_object_get(result, "attached"));
        json_array_foreach(json_object_get(result, "detached"), i, disk)
        {
                _cleanup_free_ char *which = text_safe(show_text(disk, "name"));
                _cleanup_free_ char *file = text_safe(show_text(disk, "file"));

                printf("detached %s; its file stays: %s\n", which, file);
        }
        if (show_text(result, "error")[0])
                printf("it is off: %s\n", show_text(result, "error"));
        if (show_text(result, "undo-until")[0])
                printf("`vhdctl snapshot undo' takes it back until %s\n",
                        show_time(result, "undo-until", time));
        return CTL_DONE;
}

/* clang-format off */
#define APPLY_OPTIONS                                                                              \
        {"disks-only", PARAM_FLAG, NULL, "The disks, not the memory: the vm starts as after a power cut", NULL}, \
        {"save-current", PARAM_TEXT, "NAME2", "First make a snapshot NAME2 of what would be lost", NULL}, \
        {"keep-discarded", PARAM_SECONDS, "TIME", "Keep what is given up so long (24h, 7d) for undo", NULL}
/* clang-format on */

/* --- delete, prune --- */

static bool waits; /* --wait, which is not the daemon's */

static int take_wait(const struct ctl *ctl, json_t *params, struct error *err)
{
        waits = json_is_true(json_object_get(params, "wait")) && !ctl->dry_run;
        json_object_del(params, "wait");
        return 0;
}

static int wait_for_merges(struct ctl *ctl, const json_t *result, struct error *err)
{
        return waits ? jobs_follow(ctl, json_object_get(result, "jobs"), err) : 0;
}

/* Of a dry run. */
static void show_merge(const json_t *merge)
{
        size_t i, n = json_array_size(json_object_get(merge, "images"));
        char bytes[SIZE_TEXT_MAX];
        json_t *image;

        if (show_text(merge, "reason")[0]) {
                printf("would not be merged yet: %s: %s\n", show_text(merge, "file"),
                        show_text(merge, "reason"));
                return;
        }
        printf("would %s %zu image%s (%s) into %s\n",
                show_flag(merge, "keeps-sources") ? "copy" : "merge", n, PLURAL(n),
                show_size(merge, "bytes", bytes), show_text(merge, "destination"));
        json_array_foreach(json_object_get(merge, "images"), i, image)
                printf("  %s\n", json_string_value(image));
}

static int show_deleted(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        json_t *merge, *job;
        size_t i;
        size_t waiting = json_array_size(json_object_get(result, "waiting"));

        show_list(ctl->dry_run ? "would delete " : "deleted ", json_object_get(result, "deleted"));
        show_list("keeps ", json_object_get(result, "kept"));
        show_list(ctl->dry_run ? "would free " : "freed ", json_object_get(result, "freed"));
        show_list("its file stays: ", json_object_get(result, "kept-files"));
        if (waiting > 0 && !ctl->dry_run)
                printf("%zu image%s: others stand on %s, so %s merged\n", waiting, PLURAL(waiting),
                        waiting == 1 ? "it" : "them", waiting == 1 ? "it is" : "they are");
        json_array_foreach(json_object_get(result, "merges"), i, merge) show_merge(merge);
        if (!ctl->dry_run && !waits)
                json_array_foreach(json_object_get(result, "jobs"), i, job)
                        printf("job %" JSON_INTEGER_FORMAT "\n", json_integer_value(job));
        return CTL_DONE;
}

static int check_prune(const struct ctl *ctl, json_t *params, struct error *err)
{
        take_wait(ctl, params, err);
        if (json_object_get(params, "keep-last") || json_object_get(params, "keep-daily"))
                return 0;
        return fail(err, EINVAL, "what is to be kept? --keep-last N, --keep-daily N, or both");
}

/* --- diff --- */

static int show_diff(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {">START", ">LENGTH", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char changed[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX];
        size_t i, n = json_array_size(json_object_get(result, "extents"));
        json_t *extent;

        json_array_foreach(json_object_get(result, "extents"), i, extent)
        {
                table_cell(table, "%" JSON_INTEGER_FORMAT,
                        json_integer_value(json_array_get(extent, 0)));
                table_cell(table, "%" JSON_INTEGER_FORMAT,
                        json_integer_value(json_array_get(extent, 1)));
        }
        table_print(table, stdout);
        if (!ctl->quiet)
                printf("%s of %s changed, in %zu range%s\n", show_size(result, "changed", changed),
                        show_size(result, "size", size), n, PLURAL(n));
        return CTL_DONE;
}

/* --- the verbs --- */

const struct command command_snapshot_take = {
        .name = "snapshot take",
        .operands = "VM NAME",
        .summary = "freeze all disks of a vm at one instant",
        .doc = "Take a snapshot of all disks of a vm at one instant, under the running guest, and of its "
               "settings; of its memory too if its agent can save it and neither --disks-only nor --quiesce "
               "is given. If the memory cannot be saved, no snapshot is taken."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot take web 'before 2.0'\n"
               "  vhdctl snapshot take web monday --disks-only --note 'weekly'",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.take",
                .operands = snapshot_operands,
                .options = (const struct param[]){{"disks-only", PARAM_FLAG, NULL,
                                                          "Do not save the memory", NULL},
                        {"quiesce", PARAM_FLAG, NULL,
                                "Freeze the guest's file systems meanwhile, and save no memory",
                                NULL},
                        {"skip-pass-through", PARAM_FLAG, NULL,
                                "Leave pass-through disks out, of which there is no snapshot",
                                NULL},
                        {"note", PARAM_TEXT, "TEXT", "Words for whoever reads the list", NULL},
                        {0}},
                .changes = true,
                .show = show_taken},
};

const struct command command_snapshot_memory = {
        .name = "snapshot memory",
        .operands = "VM NAME",
        .summary = "copy a snapshot's saved memory into a file",
        .doc = "Copy the memory that was saved with a snapshot into a new file, as the vm's agent wrote it. The "
               "daemon makes the file, and it belongs to the daemon's user."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot memory web monday --output monday.memory",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.memory",
                .operands = snapshot_operands,
                .options = (const struct param[]){{"output", PARAM_PATH, "FILE",
                                                          "The new file (required)", NULL},
                        {0}},
                .changes = true,
                .prepare = take_output,
                .show = show_memory},
};

const struct command command_snapshot_list = {
        .name = "snapshot list",
        .operands = "VM",
        .summary = "the snapshots of a vm, the oldest first",
        .doc = "List a vm's snapshots."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot list web\n"
               "  vhdctl snapshot list web --json | jq -r '.[] | select(.current) | .name'",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "snapshot.list", .operands = vm_operands, .show = show_snapshots},
};

const struct command command_snapshot_tree = {
        .name = "snapshot tree",
        .operands = "VM",
        .summary = "the snapshots of a vm, drawn as a tree",
        .doc = "Draw a vm's snapshots as the tree that they are, and where the vm is now."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot tree web",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "snapshot.tree", .operands = vm_operands, .show = show_tree},
};

const struct command command_snapshot_show = {
        .name = "snapshot show",
        .operands = "VM NAME",
        .summary = "one snapshot and its images",
        .doc = "Show a snapshot and its frozen images."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot show web monday",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.show",
                .operands = snapshot_operands,
                .show = show_snapshot},
};

const struct command command_snapshot_rename = {
        .name = "snapshot rename",
        .operands = "VM OLD NEW",
        .summary = "give a snapshot another name",
        .doc = "Give a snapshot another name. Its files keep theirs."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot rename web monday 'before the move'",
        .n_operands_min = 3,
        .n_operands_max = 3,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.rename",
                .operands = (const struct param[]){TEXT_OPERAND("vm"), TEXT_OPERAND("old"),
                        TEXT_OPERAND("new"), {0}},
                .changes = true,
                .show = show_renamed},
};

const struct command command_snapshot_apply = {
        .name = "snapshot apply",
        .operands = "VM NAME",
        .summary = "let a vm go on from a snapshot",
        .doc = "Let a vm go on from a snapshot, which stays as it is, as do all others. What was written "
               "since the last snapshot is lost unless --save-current or --keep-discarded keeps it. "
               "Settings come back; disks that were attached since are detached, and those that were "
               "detached come back. While clients have its disks open this needs --force."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot apply web monday\n"
               "  vhdctl snapshot apply web monday --save-current 'the failed update'",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.apply",
                .operands = snapshot_operands,
                .options = (const struct param[]){APPLY_OPTIONS, {0}},
                .takes_force = true,
                .changes = true,
                .show = show_applied},
};

const struct command command_snapshot_revert = {
        .name = "snapshot revert",
        .operands = "VM",
        .summary = "go back to the current snapshot",
        .doc = "Apply the snapshot that the running state descends from: what was written since is lost "
               "unless --save-current or --keep-discarded keeps it."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot revert web\n"
               "  vhdctl snapshot revert web --keep-discarded 24h",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.revert",
                .operands = vm_operands,
                .options = (const struct param[]){APPLY_OPTIONS, {0}},
                .takes_force = true,
                .changes = true,
                .show = show_applied},
};

const struct command command_snapshot_undo = {
        .name = "snapshot undo",
        .operands = "VM",
        .summary = "take the last apply or revert back",
        .doc = "Take the last apply or revert back, if it was told to keep what it discarded, for as "
               "long as that is kept."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot undo web",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.undo",
                .operands = vm_operands,
                .takes_force = true,
                .changes = true,
                .show = show_applied},
};

const struct command command_snapshot_delete = {
        .name = "snapshot delete",
        .operands = "VM NAME",
        .summary = "delete a snapshot",
        .doc = "Delete a snapshot. An image on which nothing stands is deleted at once; one on which one "
               "other stands is merged with it, under the guest or, deferred, when the vm is off; one on "
               "which several stand waits until one is left, or is pushed into each. Its children get its "
               "parent."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot delete web monday\n"
               "  vhdctl snapshot delete web monday --wait\n"
               "  vhdctl snapshot delete web experiment --subtree --dry-run",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.delete",
                .operands = snapshot_operands,
                .options = (const struct param[]){{"subtree", PARAM_FLAG, NULL,
                                                          "And all snapshots that descend from it",
                                                          NULL},
                        {"merge", PARAM_TEXT, "live|deferred",
                                "When what others stand on is merged: now, or when the vm is off",
                                NULL},
                        {"push", PARAM_FLAG, NULL,
                                "Copy what several stand on into each, rather than wait until one is left",
                                NULL},
                        {"wait", PARAM_FLAG, NULL, "Return when the merges are over", NULL}, {0}},
                .changes = true,
                .prepare = take_wait,
                .show = show_deleted,
                .after = wait_for_merges},
};

const struct command command_snapshot_prune = {
        .name = "snapshot prune",
        .operands = "VM",
        .summary = "delete all snapshots but the newest ones",
        .doc = "Delete the snapshots that no rule keeps: --keep-last N keeps the newest N, --keep-daily N "
               "the last one of each of the newest N days that have one. The current one is always "
               "kept."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot prune web --keep-last 3 --keep-daily 14 --dry-run",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.prune",
                .operands = vm_operands,
                .options = (const struct param[]){{"keep-last", PARAM_NUMBER, "N",
                                                          "Keep the newest N", NULL},
                        {"keep-daily", PARAM_NUMBER, "N",
                                "Keep the last one of each of the newest N days", NULL},
                        {"wait", PARAM_FLAG, NULL, "Return when the merges are over", NULL}, {0}},
                .changes = true,
                .prepare = check_prune,
                .show = show_deleted,
                .after = wait_for_merges},
};

/* --- export --- */

static int show_snapshot_exported(
        const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *job = json_object_get(result, "job");
        size_t n = json_array_size(json_object_get(result, "files"));
        _cleanup_free_ char *directory = text_safe(show_text(result, "directory"));

        show_list("note: ", json_object_get(result, "notes"));
        if (job) {
                printf("job %" PRId64 "\n", show_number(job, "id"));
                return CTL_DONE;
        }
        show_list("", json_object_get(result, "files"));
        printf("%s %zu file%s in %s\n", ctl->dry_run ? "would export" : "exported", n, PLURAL(n),
                directory);
        return CTL_DONE;
}

const struct command command_snapshot_export = {
        .name = "snapshot export",
        .operands = "VM NAME DIR",
        .summary = "a vm without snapshots out of a snapshot",
        .doc = "Make a folder DIR with what the vm was at a snapshot: each disk as one new VHD, and the "
               "settings of then, from where `vhdctl vm import' makes a vm of its own. The vm may run on. DIR "
               "must not be there yet; it gets its name when all of it is there."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot export web monday /srv/monday\n"
               "  vhdctl snapshot export web monday /mnt/usb/monday --limit 50M --no-wait",
        .n_operands_min = 3,
        .n_operands_max = 3,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.export",
                .operands = (const struct param[]){TEXT_OPERAND("vm"), TEXT_OPERAND("name"),
                        {"directory", PARAM_PATH, NULL, NULL, NULL}, {0}},
                .options = (const struct param[]){JOB_OPTIONS, {0}},
                .changes = true,
                .follow = job_follow_result,
                .show = show_snapshot_exported},
};

const struct command command_snapshot_diff = {
        .name = "snapshot diff",
        .operands = "VM DISK",
        .summary = "which ranges of a disk changed",
        .doc = "List the ranges of a disk that differ, by its images, between two snapshots. Without "
               "--from: all that was ever written; without --to: up to now. The same is in the NBD "
               "context vhdd:changed:SNAPSHOT."
               "\v"
               "Examples:\n"
               "  vhdctl snapshot diff web data --from monday\n"
               "  vhdctl snapshot diff web data --from monday --to tuesday --json",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snapshot.diff",
                .operands = (const struct param[]){TEXT_OPERAND("vm"), TEXT_OPERAND("disk"), {0}},
                .options = (const struct param[]){{"from", PARAM_TEXT, "SNAPSHOT",
                                                          "What changed since this one", NULL},
                        {"to", PARAM_TEXT, "SNAPSHOT", "Up to this one", NULL}, {0}},
                .show = show_diff},
};
