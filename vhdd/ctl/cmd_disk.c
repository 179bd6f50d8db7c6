/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl disk ..., vhdctl snippet - the disks of the daemon's vms, and how others use them. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "base/file.h"
#include "base/size.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/jobs.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

#define TEXT_OPERAND(name)                                                                         \
        {                                                                                          \
                name, PARAM_TEXT, NULL, NULL, NULL                                                 \
        }

static const struct param disk_operands[] = {TEXT_OPERAND("vm"), TEXT_OPERAND("disk"), {0}};

static void describe(const json_t *disk, char *state, size_t size)
{
        snprintf(state, size, "%s%s%s", show_text(disk, "state"),
                show_flag(disk, "read-only") ? ", read-only" : "",
                show_flag(disk, "pass-through") ? ", pass-through" : "");
}

static int show_disks(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {"VM", "DISK", "AT", ">SIZE", ">ON DISK", ">DEPTH",
                ">CLIENTS", "STATE", "FILE", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], state[128];
        json_t *disk;
        size_t i;

        json_array_foreach((json_t *)result, i, disk)
        {
                table_cell(table, "%s", show_text(disk, "vm"));
                table_cell(table, "%s", show_text(disk, "name"));
                table_cell(table, "%s", show_text(disk, "at"));
                table_cell(table, "%s", show_size(disk, "size", size));
                table_cell(table, "%s", show_size(disk, "allocated", size));
                table_cell(table, "%" PRId64, show_number(disk, "depth"));
                table_cell(table, "%" PRId64, show_number(disk, "clients"));
                describe(disk, state, sizeof(state));
                table_cell(table, "%s", state);
                table_cell(table, "%s", show_text(disk, "file"));
        }
        table_print(table, stdout);
        if (json_array_size(result) == 0 && !ctl->quiet)
                printf("no disks; `vhdctl disk attach VM FILE' attaches one\n");
        return CTL_DONE;
}

static void show_layers(const json_t *layers)
{
        static const char *const columns[] = {">", "LAYER", "TYPE", ">ON DISK", "SNAPSHOTS", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX];
        json_t *layer;
        size_t i;

        json_array_foreach((json_t *)layers, i, layer)
        {
                const json_t *names = json_object_get(layer, "snapshots");
                char list[512] = "";
                json_t *name;
                size_t n;

                json_array_foreach((json_t *)names, n, name)
                {
                        size_t used = strlen(list);

                        snprintf(list + used, sizeof(list) - used, "%s%s", n ? ", " : "",
                                json_is_string(name) ? json_string_value(name) : "");
                }
                table_cell(table, "%zu", i);
                table_cell(table, "%s", show_text(layer, "file"));
                table_cell(table, "%s", show_text(layer, "type"));
                table_cell(table, "%s", show_size(layer, "allocated", size));
                table_cell(table, "%s", list);
        }
        if (i > 0)
                printf("\n");
        table_print(table, stdout);
}

static void show_clients(const json_t *clients)
{
        static const char *const columns[] = {"CLIENT", "EXPORT", ">CONNECTED", ">REQUESTS",
                ">ERRORS", ">READ", ">WRITTEN", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], age[SHOW_AGE_MAX];
        json_t *client;
        size_t i;

        json_array_foreach((json_t *)clients, i, client)
        {
                table_cell(table, "%s", show_text(client, "peer"));
                table_cell(table, "%s%s", show_text(client, "export"),
                        show_flag(client, "read-only") ? " (read-only)" : "");
                table_cell(table, "%s", show_age(show_number(client, "age-ms"), age));
                table_cell(table, "%" PRId64, show_number(client, "requests"));
                table_cell(table, "%" PRId64, show_number(client, "errors"));
                table_cell(table, "%s", show_size(client, "bytes-read", size));
                table_cell(table, "%s", show_size(client, "bytes-written", size));
        }
        if (i > 0)
                printf("\n");
        table_print(table, stdout);
}

static int show_disk(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        char size[SIZE_TEXT_MAX], state[128];

        describe(result, state, sizeof(state));
        show_line(0, "disk", "%s/%s", show_text(result, "vm"), show_text(result, "name"));
        show_line(0, "id", "%s", show_text(result, "id"));
        show_line(0, "at", "%s", show_text(result, "at"));
        show_line(0, "state", "%s", state);
        if (show_text(result, "error")[0])
                show_line(0, "error", "%s", show_text(result, "error"));
        show_line(0, "size", "%s (%" PRId64 " bytes)", show_size(result, "size", size),
                show_number(result, "size"));
        show_line(0, "on disk", "%s", show_size(result, "allocated", size));
        show_line(0, "file", "%s", show_text(result, "file"));
        show_line(0, "format", "%s, %s", show_text(result, "format"), show_text(result, "type"));
        show_line(0, "depth", "%" PRId64 " layer%s", show_number(result, "depth"),
                PLURAL(show_number(result, "depth")));
        show_line(0, "clients", "%" PRId64, show_number(result, "clients"));
        show_line(0, "uri", "%s", show_text(result, "uri"));
        show_layers(json_object_get(result, "layers"));
        show_clients(json_object_get(result, "client-list"));
        return CTL_DONE;
}

/* Whether the guest of a vm that is on has taken it, where its agent could tell. */
static void say_guest(const json_t *result)
{
        if (strcmp(show_text(result, "guest"), "taken") == 0)
                printf("the guest has taken it\n");
        else if (show_text(result, "guest")[0])
                printf("the guest has not taken it yet\n");
}

static int show_attached(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));
        _cleanup_free_ char *name = text_safe(show_text(result, "name"));
        _cleanup_free_ char *uri = text_safe(show_text(result, "uri"));
        char size[SIZE_TEXT_MAX];

        printf("%s/%s %s at %s: %s\n", vm, name, ctl->dry_run ? "would be attached" : "attached",
                show_text(result, "at"), show_size(result, "size", size));
        if (uri[0])
                printf("%s\n", uri);
        say_guest(result);
        return CTL_DONE;
}

static int show_detached(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));
        _cleanup_free_ char *name = text_safe(show_text(params, "disk"));
        _cleanup_free_ char *file = text_safe(show_text(result, "file"));

        printf("%s/%s %s; its file stays: %s\n", vm, name,
                ctl->dry_run ? "would be detached" : "detached", file);
        return CTL_DONE;
}

/* "SIZE" or "+SIZE": whole sectors, as an image has. */
static int take_new_size(json_t *params, const char *value, struct error *err)
{
        bool more = value[0] == '+';
        uint64_t size;
        int r = size_parse(more ? value + 1 : value, &size, err);

        if (r < 0)
                return r;
        if (size == 0 || size > INT64_MAX - SECTOR_SIZE)
                return fail(err, EINVAL, "'%s' is no size that a disk can have", value);
        json_object_set_new(params, more ? "add" : "size",
                json_integer((json_int_t)round_up_to(size, SECTOR_SIZE)));
        return 0;
}

static int show_resized(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));
        _cleanup_free_ char *name = text_safe(show_text(result, "name"));
        char size[SIZE_TEXT_MAX], before[SIZE_TEXT_MAX];

        if (show_number(result, "size") == show_number(result, "size-before"))
                printf("%s/%s: %s as before\n", vm, name, show_size(result, "size", size));
        else
                printf("%s/%s %s %s, %s %s\n", vm, name, ctl->dry_run ? "would have" : "has",
                        show_size(result, "size", size), ctl->dry_run ? "and has" : "before",
                        show_size(result, "size-before", before));
        say_guest(result);
        return CTL_DONE;
}

static bool waits; /* --wait, which is not the daemon's */

static int take_wait(const struct ctl *ctl, json_t *params, struct error *err)
{
        waits = json_is_true(json_object_get(params, "wait")) && !ctl->dry_run;
        json_object_del(params, "wait");
        return 0;
}

static int wait_for_job(struct ctl *ctl, const json_t *result, struct error *err)
{
        _cleanup_json_ json_t *ids = json_pack("[O]", json_object_get(result, "id"));

        return waits ? jobs_follow(ctl, ids, err) : 0;
}

static int show_compact(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));
        _cleanup_free_ char *name = text_safe(show_text(params, "disk"));
        _cleanup_free_ char *file = text_safe(show_text(result, "file"));

        if (ctl->dry_run)
                printf("%s/%s would be compacted: %s\n", vm, name, file);
        else
                printf("job %" PRId64 " compacts %s/%s: %s\n", show_number(result, "id"), vm, name,
                        file);
        return CTL_DONE;
}

static int show_uri(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_free_ char *uri = text_safe(show_text(result, "uri"));

        printf("%s\n", uri);
        return CTL_DONE;
}

static int show_snippet(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const char *text = show_text(result, "text");
        size_t length = strlen(text);

        printf("%s%s", text, length && text[length - 1] == '\n' ? "" : "\n");
        return CTL_DONE;
}

/* "D@SNAP" in the member @key: the part behind '@' is the member "snapshot". */
static int split_snapshot(json_t *params, const char *key, struct error *err)
{
        char name[512];
        char *at;

        snprintf(name, sizeof(name), "%s", show_text(params, key));
        at = strchr(name, '@');
        if (!at)
                return 0;
        *at++ = '\0';
        if (!*at)
                return fail(err, EINVAL, "which snapshot? Nothing stands behind the '@'");
        json_object_set_new(params, "snapshot", json_text(at));
        json_object_set_new(params, key, json_text(name));
        return 0;
}

static int prepare_uri(const struct ctl *ctl, json_t *params, struct error *err)
{
        return split_snapshot(params, "disk", err);
}

/* "VM/D[@SNAP]" */
static int prepare_snippet(const struct ctl *ctl, json_t *params, struct error *err)
{
        char vm[512];
        char *slash;

        snprintf(vm, sizeof(vm), "%s", show_text(params, "vm"));
        slash = strchr(vm, '/');
        if (!slash)
                return fail(err, EINVAL, "'%s' is not of the form VM/DISK", vm);
        *slash = '\0';
        json_object_set_new(params, "disk", json_text(slash + 1));
        json_object_set_new(params, "vm", json_text(vm));
        return split_snapshot(params, "disk", err);
}

const struct command command_disk_attach = {
        .name = "disk attach",
        .operands = "VM FILE",
        .summary = "give a vm a disk, and serve it",
        .doc = "Attach FILE to a vm and serve it over NBD as VM/NAME, at once, while the vm's other "
               "disks are in use. Its parents are found and recorded. Of a vm that is on, its agent is "
               "asked to give the disk to the guest; if it cannot, nothing is attached. Disks on IDE come "
               "and go only while the vm is off."
               "\v"
               "Examples:\n"
               "  vhdctl disk attach web web.vhd --at ide0:0\n"
               "  vhdctl disk attach web /srv/data.vhd --name data --create 100G\n"
               "  vhdctl disk attach web /dev/sdb --pass-through",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "disk.attach",
                .operands = (const struct param[]){TEXT_OPERAND("vm"),
                        {"file", PARAM_PATH, NULL, NULL, NULL}, {0}},
                .options = (const struct param[]){{"name", PARAM_TEXT, "NAME",
                                                          "The disk's name (else the file's)",
                                                          NULL},
                        {"at", PARAM_TEXT, "PLACE",
                                "ide0:0 to ide1:1, scsi0:0 to scsi3:63 (else the first "
                                "free SCSI place)",
                                NULL},
                        {"pass-through", PARAM_FLAG, NULL,
                                "FILE is a block device, or raw, and the guest's as it is", NULL},
                        {"read-only", PARAM_FLAG, NULL, "The guest may not write", NULL},
                        {"create", PARAM_SIZE, "SIZE", "Make FILE: a dynamic VHD of that size",
                                NULL},
                        {"format", PARAM_TEXT, "vhd|raw", "FILE's format, whatever it looks like",
                                NULL},
                        {0}},
                .changes = true,
                .show = show_attached},
};

const struct command command_disk_detach = {
        .name = "disk detach",
        .operands = "VM DISK",
        .summary = "take a disk away; its files stay",
        .doc = "Detach a disk. Of a vm that is on, its agent is asked to take it from the guest first. "
               "While clients have it open this is refused: --timeout waits for them, "
               "--force cuts them off. Its files stay, and its snapshots still name it."
               "\v"
               "Examples:\n"
               "  vhdctl disk detach web data\n"
               "  vhdctl disk detach web data --timeout 30",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "disk.detach",
                .operands = disk_operands,
                .options = (const struct param[]){{"timeout", PARAM_SECONDS, "TIME",
                                                          "Wait so long for its clients to leave: "
                                                          "seconds, or with m or h behind",
                                                          NULL},
                        {0}},
                .takes_force = true,
                .changes = true,
                .show = show_detached},
};

const struct command command_disk_resize = {
        .name = "disk resize",
        .operands = "VM DISK SIZE|+SIZE",
        .summary = "give a disk another size, also under its guest",
        .doc = "Make a disk SIZE large, or SIZE larger; what is new reads as zeros. Its clients are cut off for "
               "a moment, and find the new size when they come back; the agent of a vm that is on tells the "
               "guest. It becomes smaller only with --shrink, while the vm is off, and if what is cut off "
               "reads as zeros. A disk with snapshots is resized only with --force: Hyper-V opens no child "
               "that is larger than its parent."
               "\v"
               "Examples:\n"
               "  vhdctl disk resize web data 200G\n"
               "  vhdctl disk resize web data +20G\n"
               "  vhdctl disk resize web data 40G --shrink --dry-run",
        .n_operands_min = 3,
        .n_operands_max = 3,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "disk.resize",
                .operands = (const struct param[]){TEXT_OPERAND("vm"), TEXT_OPERAND("disk"),
                        {"size", PARAM_OWN, NULL, NULL, take_new_size}, {0}},
                .options =
                        (const struct param[]){
                                {"shrink", PARAM_FLAG, NULL,
                                        "Let it become smaller, if what is cut off reads "
                                        "as zeros",
                                        NULL},
                                {0}},
                .takes_force = true,
                .changes = true,
                .show = show_resized},
};

const struct command command_disk_compact = {
        .name = "disk compact",
        .operands = "VM DISK",
        .summary = "make a disk's image as small as what it holds, beside its clients",
        .doc = "Free the blocks of the image that takes a disk's writes without which the disk reads the same, "
               "and close the gaps, as a job, while the disk is in use. A guest frees what its file systems do "
               "not use by itself, with fstrim."
               "\v"
               "Examples:\n"
               "  vhdctl disk compact web data\n"
               "  vhdctl disk compact web data --wait",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "disk.compact",
                .operands = disk_operands,
                .options = (const struct param[]){{"wait", PARAM_FLAG, NULL,
                                                          "Return when the job is over", NULL},
                        {0}},
                .changes = true,
                .prepare = take_wait,
                .show = show_compact,
                .after = wait_for_job},
};

const struct command command_disk_list = {
        .name = "disk list",
        .operands = "[VM]",
        .summary = "the disks of one vm, or of all",
        .doc = "List disks: where each is attached, its size, how deep its chain is, who uses it."
               "\v"
               "Examples:\n"
               "  vhdctl disk list\n"
               "  vhdctl disk list web",
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "disk.list", .operands = disk_operands, .show = show_disks},
};

const struct command command_disk_show = {
        .name = "disk show",
        .operands = "VM DISK",
        .summary = "one disk with its layers and clients",
        .doc = "Show a disk: its layers, the leaf first, which snapshots stand on each, and its clients."
               "\v"
               "Examples:\n"
               "  vhdctl disk show web data",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "disk.show", .operands = disk_operands, .show = show_disk},
};

const struct command command_disk_uri = {
        .name = "disk uri",
        .operands = "VM DISK[@SNAPSHOT]",
        .summary = "the NBD URI of a disk or of a snapshot's disk",
        .doc = "Print where a disk is served. With @SNAPSHOT: as it was then, read-only; with @now: as "
               "it is, read-only."
               "\v"
               "Examples:\n"
               "  vhdctl disk uri web data\n"
               "  nbdinfo \"$(vhdctl disk uri web data@monday)\"",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "disk.uri",
                .operands = disk_operands,
                .prepare = prepare_uri,
                .show = show_uri},
};

const struct command command_snippet = {
        .name = "snippet",
        .operands = "libvirt|qemu|virt-v2v VM/DISK[@SNAPSHOT]",
        .summary = "what to paste into another program to use a disk",
        .doc = "Print the lines with which libvirt, QEMU or virt-v2v use a disk."
               "\v"
               "Examples:\n"
               "  vhdctl snippet libvirt web/data\n"
               "  vhdctl snippet qemu web/data@monday",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "snippet",
                .operands = (const struct param[]){TEXT_OPERAND("kind"), TEXT_OPERAND("vm"), {0}},
                .prepare = prepare_snippet,
                .show = show_snippet},
};
