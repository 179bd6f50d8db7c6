/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl vm ... - the vms of the daemon: names, settings, on and off, import and export. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/jobs.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

#define VM_OPERAND                                                                                 \
        {                                                                                          \
                "vm", PARAM_TEXT, NULL, NULL, NULL                                                 \
        }

static const struct param vm_operands[] = {VM_OPERAND, {0}};

/* --- settings --- */

static json_t *settings_of(json_t *params)
{
        json_t *settings = json_object_get(params, "settings");

        if (!settings) {
                settings = json_object();
                json_object_set_new(params, "settings", settings);
        }
        return settings;
}

/* "20" or "20%". */
static int take_buffer(json_t *memory, const char *value, struct error *err)
{
        static const struct param member = {"buffer", PARAM_NUMBER, NULL, NULL, NULL};
        size_t length = strlen(value);
        _cleanup_free_ char *number =
                strndup(value, length > 0 && value[length - 1] == '%' ? length - 1 : length);

        return number ? daemon_take(memory, &member, number, err)
                      : fail(err, ENOMEM, "no memory for a number");
}

static int take_memory_pair(json_t *memory, const char *name, const char *value, struct error *err)
{
        static const struct param members[] = {
                {"startup", PARAM_SIZE, NULL, NULL, NULL},
                {"max", PARAM_SIZE, NULL, NULL, NULL},
                {"buffer", PARAM_OWN, NULL, NULL, take_buffer},
                {"weight", PARAM_NUMBER, NULL, NULL, NULL},
        };
        size_t length = strlen(value);
        char number[32];

        /* "20%" is what people write. */
        if (strcmp(name, "buffer") == 0 && length > 1 && length < sizeof(number) &&
                value[length - 1] == '%') {
                memcpy(number, value, length - 1);
                number[length - 1] = '\0';
                value = number;
        }
        for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
                if (strcmp(members[i].name, name) == 0)
                        return daemon_take(memory, &members[i], value, err);
        return fail(err, EINVAL, "'%s' is none of startup, max, buffer, weight", name);
}

static int take_memory(json_t *params, const char *value, struct error *err)
{
        json_t *memory = json_object();

        json_object_set_new(settings_of(params), "memory", memory);
        if (isdigit((unsigned char)value[0]) && !strchr(value, '=')) /* a size alone */
                return take_memory_pair(memory, "startup", value, err);
        return pairs_parse(value, memory, take_memory_pair, err);
}

static int take_on_off(json_t *object, const char *name, const char *value, struct error *err)
{
        bool on = strcmp(value, "on") == 0;

        if (!on && strcmp(value, "off") != 0)
                return fail(err, EINVAL, "%s is on or off, not '%.64s'", name, value);
        json_object_set_new(object, name, json_boolean(on));
        return 0;
}

static int take_network_pair(
        json_t *network, const char *name, const char *value, struct error *err)
{
        static const struct param members[] = {
                {"vlan", PARAM_NUMBER, NULL, NULL, NULL},
                {"mac", PARAM_TEXT, NULL, NULL, NULL},
                {"queues", PARAM_NUMBER, NULL, NULL, NULL},
        };

        if (strcmp(name, "mac-spoofing") == 0)
                return take_on_off(network, name, value, err);

        for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
                if (strcmp(members[i].name, name) == 0)
                        return daemon_take(network, &members[i], value, err);
        return fail(err, EINVAL, "'%s' is none of vlan, mac, queues, mac-spoofing", name);
}

/* SWITCH[:vlan=N][,mac=M][,queues=N][,mac-spoofing=on] into @network. */
static int read_network(json_t *network, const char *value, struct error *err)
{
        size_t length = strcspn(value, ":,");
        json_t *name = json_stringn(value, length);

        if (!name || length == 0) {
                json_decref(name);
                return fail(err, EINVAL, "'%s' does not begin with a switch's name", value);
        }
        json_object_set_new(network, "switch", name);
        return value[length] ? pairs_parse(value + length + 1, network, take_network_pair, err) : 0;
}

static int take_network(json_t *params, const char *value, struct error *err)
{
        json_t *settings = settings_of(params), *list = json_object_get(settings, "networks");
        json_t *network = json_object();

        if (!list) {
                list = json_array();
                json_object_set_new(settings, "networks", list);
        }
        json_array_append_new(list, network);
        return read_network(network, value, err);
}

/* The plain ones: option and member have the same name. */
static int take_setting(json_t *params, const char *name, enum param_kind kind, const char *value,
        struct error *err)
{
        const struct param member = {name, kind, NULL, NULL, NULL};

        return daemon_take(settings_of(params), &member, value, err);
}

#define TAKE_SETTING(function, name, kind)                                                         \
        static int function(json_t *params, const char *value, struct error *err)                  \
        {                                                                                          \
                return take_setting(params, name, kind, value, err);                               \
        }
TAKE_SETTING(take_cpus, "cpus", PARAM_NUMBER)
TAKE_SETTING(take_display, "display", PARAM_TEXT)
TAKE_SETTING(take_accel, "accel", PARAM_TEXT)
TAKE_SETTING(take_hyperv, "hyperv", PARAM_FLAG)
TAKE_SETTING(take_kernel, "kernel", PARAM_PATH)
TAKE_SETTING(take_initrd, "initrd", PARAM_PATH)
TAKE_SETTING(take_append, "append", PARAM_TEXT)

/* clang-format off */
#define SETTING_OPTIONS                                                                            \
        {"memory", PARAM_OWN, "startup=,max=,buffer=,weight=",                                     \
                "Memory at the start and at most, a buffer in percent (20), its weight among others (1 to 100; 50). A size alone is startup's", take_memory}, \
        {"cpus", PARAM_OWN, "N", "Virtual processors", take_cpus},                                 \
        {"network", PARAM_OWN, "SWITCH[:vlan=N][,mac=M][,queues=N][,mac-spoofing=on]", \
                "A network card (again for more)", take_network}, \
        {"display", PARAM_OWN, "vnc|spice|none", "How its screen is shown", take_display},         \
        {"accel", PARAM_OWN, "auto|kvm|tcg", "How its code is run", take_accel},                   \
        {"hyperv", PARAM_OWN, NULL, "Hyper-V's enlightenments, for Windows guests", take_hyperv},  \
        {"snapshot-dir", PARAM_PATH, "DIR", "Where saved memory and settings go", NULL},           \
        {"kernel", PARAM_OWN, "FILE", "A kernel to start without a boot loader", take_kernel},     \
        {"initrd", PARAM_OWN, "FILE", "Its first file system", take_initrd},                       \
        {"append", PARAM_OWN, "TEXT", "Its command line", take_append}
/* clang-format on */

static const struct param create_options[] = {SETTING_OPTIONS, {0}};
static const struct param set_options[] = {
        {"name", PARAM_TEXT, "NAME", "Give it another name", NULL}, SETTING_OPTIONS, {0}};

/* --- showing --- */

static const char *dash(const char *text)
{
        return text[0] ? text : "-";
}

static int show_vms(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {
                "VM", "STATE", ">DISKS", ">SNAPSHOTS", "CURRENT", ">CLIENTS", "CREATED", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char time[SHOW_TIME_MAX];
        json_t *vm;
        size_t i;

        json_array_foreach((json_t *)result, i, vm)
        {
                table_cell(table, "%s", show_text(vm, "name"));
                table_cell(table, "%s", show_flag(vm, "on") ? "on" : "off");
                table_cell(table, "%" PRId64, show_number(vm, "disks"));
                table_cell(table, "%" PRId64, show_number(vm, "snapshots"));
                table_cell(table, "%s", dash(show_text(vm, "current")));
                table_cell(table, "%" PRId64, show_number(vm, "clients"));
                table_cell(table, "%s", show_time(vm, "created", time));
        }
        table_print(table, stdout);
        if (json_array_size(result) == 0 && !ctl->quiet)
                printf("no vms; `vhdctl vm create NAME' makes one\n");
        return CTL_DONE;
}

static void show_setting(const char *name, const json_t *value)
{
        _cleanup_free_ char *text = NULL;
        char size[SIZE_TEXT_MAX];
        const char *key;
        json_t *member;

        if (strcmp(name, "memory") == 0) {
                json_object_foreach((json_t *)value, key, member)
                {
                        char head[32];

                        snprintf(head, sizeof(head), "memory %s", key);
                        if (strcmp(key, "startup") == 0 || strcmp(key, "max") == 0)
                                show_line(0, head, "%s", show_size(value, key, size));
                        else
                                show_line(0, head, "%" JSON_INTEGER_FORMAT,
                                        json_integer_value(member));
                }
                return;
        }
        text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        show_line(0, name, "%s",
                json_is_string(value) ? json_string_value(value)
                        : text        ? text
                                      : "");
}

static void show_machine(const json_t *machine)
{
        const json_t *guest = json_object_get(machine, "guest");
        const json_t *end = json_object_get(machine, "last-end");

        show_line(0, "machine", "%s", show_text(machine, "state"));
        if (show_number(machine, "pid") > 0)
                show_line(0, "qemu", "%s, %s, process %" PRId64, show_text(machine, "qemu"),
                        show_text(machine, "accel"), show_number(machine, "pid"));
        if (show_flag(guest, "agent"))
                show_line(0, "guest", "%s%sagent %s, heartbeat %s", show_text(guest, "os"),
                        show_text(guest, "os")[0] ? ", " : "", show_text(guest, "version"),
                        show_text(guest, "heartbeat"));
        else if (show_number(machine, "pid") > 0)
                show_line(0, "guest", "no agent answers%s",
                        strcmp(show_text(guest, "heartbeat"), "lost") == 0 ? " any more" : "");
        if (show_text(end, "how")[0])
                show_line(0, "last end", "%s: %s", show_text(end, "how"),
                        show_text(end, "message"));
}

static int show_vm(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        char time[SHOW_TIME_MAX];
        const char *name;
        json_t *value;

        show_line(0, "name", "%s", show_text(result, "name"));
        show_line(0, "id", "%s", show_text(result, "id"));
        show_line(0, "state", "%s", show_flag(result, "on") ? "on" : "off");
        show_line(0, "created", "%s", show_time(result, "created", time));
        show_line(0, "disks", "%" PRId64, show_number(result, "disks"));
        show_line(0, "snapshots", "%" PRId64, show_number(result, "snapshots"));
        if (show_text(result, "current")[0])
                show_line(0, "current", "%s", show_text(result, "current"));
        show_line(0, "clients", "%" PRId64, show_number(result, "clients"));
        if (show_text(result, "agent")[0])
                show_line(0, "agent", "%s", show_text(result, "agent"));
        if (show_text(result, "resumes-from")[0])
                show_line(0, "resumes from", "the memory of %s", show_text(result, "resumes-from"));
        if (json_object_get(result, "machine"))
                show_machine(json_object_get(result, "machine"));
        if (show_text(result, "directory")[0])
                show_line(0, "directory", "%s", show_text(result, "directory"));
        if (show_text(result, "snapshot-dir")[0])
                show_line(0, "snapshot dir", "%s", show_text(result, "snapshot-dir"));
        json_object_foreach(json_object_get(result, "settings"), name, value)
                show_setting(name, value);
        return CTL_DONE;
}

static int ask_machine(const struct ctl *ctl, json_t *params, struct error *err)
{
        json_object_set_new(params, "machine", json_true());
        return 0;
}

static void say(const struct ctl *ctl, const json_t *params, const char *done, const char *would)
{
        _cleanup_free_ char *vm = text_safe(show_text(params, "vm"));

        printf("%s %s\n", vm, ctl->dry_run ? would : done);
}

static int show_created(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, "created", "would be created");
        return CTL_DONE;
}

static int show_changed(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, "changed", "would be changed");
        return CTL_DONE;
}

static int show_removed(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, "removed", "would be removed");
        show_list(ctl->dry_run ? "would delete " : "deleted ", json_object_get(result, "deleted"));
        show_list("kept ", json_object_get(result, "kept"));
        return CTL_DONE;
}

/* --- long work --- */

static int follow_import(struct ctl *ctl, json_t *result, struct error *err)
{
        bool copied = json_object_get(result, "job") != NULL;
        json_t *vm = NULL;
        int r = job_follow_result(ctl, result, err);

        if (r < 0 || !copied || json_object_get(result, "job"))
                return r;
        r = daemon_call(ctl, "vm.show", json_pack("{s:s}", "vm", show_text(result, "id")), &vm, err);
        return r < 0 ? r : json_object_set_new(result, "vm", vm);
}

static int show_job_begun(const json_t *result)
{
        const json_t *job = json_object_get(result, "job");

        if (!job)
                return 0;
        printf("job %" PRId64 "\n", show_number(job, "id"));
        return 1;
}

static int show_imported(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *vm = json_object_get(result, "vm");
        _cleanup_free_ char *name = text_safe(show_text(vm, "name"));
        int64_t disks = show_number(vm, "disks"), snapshots = show_number(vm, "snapshots");
        json_t *tree;
        size_t i;

        json_array_foreach(json_object_get(result, "trees"), i, tree)
        {
                _cleanup_free_ char *line =
                        text_safe(show_text(tree, "file")[0] ? show_text(tree, "file")
                                                             : show_text(tree, "root"));

                printf("tree %zu: %s\n", i + 1, line);
        }
        if (vm)
                printf("%s %s: %" PRId64 " disk%s, %" PRId64 " snapshot%s\n", name,
                        ctl->dry_run ? "would be imported" : "imported", disks, PLURAL(disks),
                        snapshots, PLURAL(snapshots));
        show_list("note: ", json_object_get(result, "notes"));
        show_list("not used: ", json_object_get(result, "unknown"));
        show_job_begun(result);
        return CTL_DONE;
}

static int show_exported(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        char size[SIZE_TEXT_MAX];
        size_t n = json_array_size(json_object_get(result, "files"));
        _cleanup_free_ char *directory = text_safe(show_text(result, "directory"));

        if (show_job_begun(result))
                return CTL_DONE;
        show_list("", json_object_get(result, "files"));
        printf("%s %zu file%s, %s in %s\n", ctl->dry_run ? "would export" : "exported", n,
                PLURAL(n), show_size(result, "size", size), directory);
        return CTL_DONE;
}

/* What a running guest does not have before its next start. The vmm-host knows; without one there is
 * nobody who runs it. */
static int tell_next_start(struct ctl *ctl, const json_t *result, struct error *err)
{
        const json_t *memory = json_object_get(json_object_get(result, "settings"), "memory");
        json_auto_t *answer = NULL;
        struct error none = ERROR_INIT;
        const json_t *vm;

        if (!json_object_get(json_object_get(ctl->params, "settings"), "memory") || ctl->dry_run ||
                ctl->json || ctl->quiet ||
                daemon_call(ctl, "memory.show", json_pack("{s:s}", "vm", show_text(result, "id")),
                        &answer, &none) < 0)
                return 0;
        vm = json_array_get(json_object_get(answer, "vms"), 0);
        if (!show_flag(vm, "on"))
                return 0;
        if (show_number(memory, "startup") > 0 &&
                show_number(memory, "startup") != show_number(vm, "startup"))
                printf("startup takes effect at its next start\n");
        if (show_number(memory, "max") > show_number(vm, "started-max"))
                printf("max beyond what it was started with takes effect at its next start\n");
        return 0;
}

/* --- the verbs --- */

const struct command command_vm_create = {
        .name = "vm create",
        .operands = "VM",
        .summary = "make a vm without disks",
        .doc = "Make a vm: a name under which disks are attached and snapshotted together. The settings "
               "are for its compute side; the daemon keeps them, and snapshots bring them back."
               "\v"
               "Examples:\n"
               "  vhdctl vm create web\n"
               "  vhdctl vm create web --memory startup=2G,max=8G --cpus 4",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.create",
                .operands = vm_operands,
                .options = create_options,
                .changes = true,
                .show = show_created},
};

const struct command command_vm_set = {
        .name = "vm set",
        .operands = "VM",
        .summary = "change a vm's settings or its name",
        .doc = "Change those settings that are given; the others stay. Of a running vm, weight, buffer and "
               "max of its memory change at once (max not beyond what it was started with), the rest at "
               "its next start."
               "\v"
               "Examples:\n"
               "  vhdctl vm set web --cpus 8\n"
               "  vhdctl vm set web --memory weight=80,max=4G\n"
               "  vhdctl vm set web --name 'web (old)'",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.set",
                .operands = vm_operands,
                .options = set_options,
                .changes = true,
                .show = show_changed,
                .after = tell_next_start},
};

const struct command command_vm_list = {
        .name = "vm list",
        .operands = "",
        .summary = "the vms: on or off, disks, snapshots",
        .doc = "List the vms."
               "\v"
               "Examples:\n"
               "  vhdctl vm list\n"
               "  vhdctl vm list --json | jq -r '.[] | select(.on) | .name'",
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.list", .show = show_vms},
};

const struct command command_vm_show = {
        .name = "vm show",
        .operands = "VM",
        .summary = "one vm and its settings",
        .doc = "Show a vm, its settings, and how its machine and its guest are. `vhdctl disk list VM' lists "
               "its disks."
               "\v"
               "Examples:\n"
               "  vhdctl vm show web",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){.method = "vm.show",
                        .operands = vm_operands,
                        .prepare = ask_machine,
                        .show = show_vm},
};

const struct command command_vm_remove = {
        .name = "vm remove",
        .operands = "VM",
        .summary = "forget a vm; its files stay",
        .doc = "Forget a vm, its disks and its snapshots. Their files stay where they are, and are named, "
               "unless --delete-files is given. Refused while a client has one of its disks open."
               "\v"
               "Examples:\n"
               "  vhdctl vm remove web\n"
               "  vhdctl vm remove web --delete-files --dry-run",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.remove",
                .operands = vm_operands,
                .options = (const struct param[]){{"delete-files", PARAM_FLAG, NULL,
                                                          "Delete its images and snapshots, too",
                                                          NULL},
                        {0}},
                .changes = true,
                .show = show_removed},
};

#define POWER_VERB(verb, what, explained, is_done, would, ...)                                     \
        static int show_##verb(const struct ctl *ctl, const json_t *params, const json_t *result)  \
        {                                                                                          \
                say(ctl, params, is_done, would);                                                  \
                return CTL_DONE;                                                                   \
        }                                                                                          \
        const struct command command_vm_##verb = {                                                 \
                .name = "vm " #verb,                                                               \
                .operands = "VM",                                                                  \
                .summary = what,                                                                   \
                .doc = explained " The vm's agent is asked to do it: the compute side that is "    \
                                 "registered for it. Without one this fails, and says so."         \
                                 "\v"                                                              \
                                 "Examples:\n"                                                     \
                                 "  vhdctl vm " #verb " web",                                      \
                .n_operands_min = 1,                                                               \
                .n_operands_max = 1,                                                               \
                .run = daemon_run,                                                                 \
                .daemon = &(const struct daemon_verb){.method = "vm." #verb,                       \
                        .operands = vm_operands,                                                   \
                        .changes = true,                                                           \
                        .show = show_##verb,                                                       \
                        __VA_ARGS__},                                                              \
        }

POWER_VERB(start, "switch a vm on", "Switch a vm on.", "started", "would be started");
POWER_VERB(stop, "switch a vm off at once", "Switch a vm off, as if its power were cut.", "stopped",
        "would be stopped");
POWER_VERB(shutdown, "let the guest shut down",
        "Ask the guest to shut down, and wait until it has: two minutes, or --timeout. If it has not by then the "
        "command fails; the guest stays on, and may shut down still.",
        "is off", "would shut down",
        .options = (const struct param[]){{"timeout", PARAM_SECONDS, "TIME",
                                                  "Wait so long for the guest to shut down: "
                                                  "seconds, or with m or h behind",
                                                  NULL},
                {0}});
POWER_VERB(reset, "reset a vm", "Reset a vm, as its button would.", "reset", "would be reset");
POWER_VERB(pause, "let a vm stand still", "Let a vm stand still.", "paused", "would be paused");
POWER_VERB(resume, "let a paused vm go on", "Let a paused vm go on.", "goes on", "would go on");
POWER_VERB(save, "save a vm's memory and switch it off",
        "Save a vm's memory, and switch it off; the next start goes on from there.", "saved",
        "would be saved");

/* --- network cards --- */

static int read_change(const struct ctl *ctl, bool attach, json_t *params, struct error *err)
{
        json_t *network;

        json_object_set_new(params, "vm", json_string(ctl->operands[1]));
        if (ctl->dry_run)
                json_object_set_new(params, "dry-run", json_true());
        if (!attach) {
                json_object_set_new(params, "network", json_string(ctl->operands[2]));
                return 0;
        }
        network = json_object();
        json_object_set_new(params, "network", network);
        return read_network(network, ctl->operands[2], err);
}

static void say_change(const struct ctl *ctl, bool attach, const json_t *result)
{
        const json_t *network = json_object_get(result, "network");
        _cleanup_free_ char *vm = text_safe(ctl->operands[1]);
        const char *done = attach ? "is plugged into" : "is taken off";

        printf("%s: network card %s %s '%s'%s\n", vm, show_text(network, "mac"),
                ctl->dry_run ? (attach ? "would be plugged into" : "would be taken off") : done,
                show_text(network, "switch"),
                show_flag(result, "now") ? "" : " at the vm's next start, and not before");
}

static int run_network(struct ctl *ctl, struct error *err)
{
        bool attach = strcmp(ctl->operands[0], "attach") == 0;
        _cleanup_json_ json_t *result = NULL;
        int r;

        if (!attach && strcmp(ctl->operands[0], "detach") != 0)
                return ctl_usage(ctl, "'%s' is none of attach, detach", ctl->operands[0]);
        r = read_change(ctl, attach, ctl->params, err);
        if (r == 0)
                r = daemon_call(ctl, attach ? "vm.network.attach" : "vm.network.detach",
                        json_incref(ctl->params), &result, err);
        if (r < 0)
                return r;
        if (ctl->json)
                json_print(json_incref(result));
        else if (!ctl->quiet)
                say_change(ctl, attach, result);
        return CTL_DONE;
}

const struct command command_vm_network = {
        .name = "vm network",
        .operands = "attach VM SWITCH[:vlan=N][,mac=M][,queues=N][,mac-spoofing=on]\n"
                    "detach VM CARD",
        .summary = "give a vm a network card, or take one away",
        .doc = "Plug a network card of a vm into a switch, or take a card away: CARD is its MAC address, or "
               "the switch that it is on if it is the only one there. A card gets an address of the pool "
               "unless mac= names one, and keeps it. On a running vm it comes and goes at once where "
               "that can be, else at the next start, and the answer says so. What is not allowed by "
               "mac-spoofing=on is dropped: frames from other addresses than the card's."
               "\v"
               "Examples:\n"
               "  vhdctl vm network attach web lan:vlan=10,queues=2\n"
               "  vhdctl vm network detach web 5a:36:51:0a:0b:0c",
        .n_operands_min = 3,
        .n_operands_max = 3,
        .run = run_network,
        .daemon = &(const struct daemon_verb){.method = "vm.network.attach", .changes = true},
};

static int check_import(const struct ctl *ctl, json_t *params, struct error *err)
{
        bool copy = show_flag(params, "copy") || json_object_get(params, "to");

        (void)ctl;
        return copy != show_flag(params, "move")
                      ? 0
                      : fail(err, EINVAL,
                                "how: --move uses the files as they lie, --copy copies them, --to "
                                "DIR copies them there");
}

const struct command command_vm_import = {
        .name = "vm import",
        .operands = "DIR",
        .summary = "make a vm out of a folder of VHDs and AVHDs",
        .doc = "Make a vm of a folder that `vhdctl vm export' made: what it was, with all snapshots. A copy "
               "is another vm, with an id of its own; what is used in place keeps its id. Of any other "
               "folder find the images in DIR, rebuild the snapshot tree from their headers, and make a "
               "vm of it. Where there are several trees they are listed, and --only chooses one."
               "\v"
               "Examples:\n"
               "  vhdctl vm import /mnt/usb/web --copy --name web2\n"
               "  vhdctl vm import /srv/old/web --move\n"
               "  vhdctl vm import /mnt/usb/web --to /srv/vms/web --name web-copy\n"
               "  vhdctl vm import /srv/old --move --only data.vhd --dry-run",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.import",
                .operands =
                        (const struct param[]){{"directory", PARAM_PATH, NULL, NULL, NULL}, {0}},
                .options = (const struct param[]){{"copy", PARAM_FLAG, NULL,
                                                          "Copy the files, into a folder beside DIR",
                                                          NULL},
                        {"move", PARAM_FLAG, NULL, "Use the files as they lie", NULL},
                        {"to", PARAM_PATH, "DIR2", "Copy the files to DIR2", NULL},
                        {"name", PARAM_TEXT, "NAME", "The vm's name (else the folder's)", NULL},
                        {"only", PARAM_TEXT, "TREE",
                                "Of several trees this one: its root's file, or its number", NULL},
                        JOB_OPTIONS, {0}},
                .takes_force = true,
                .changes = true,
                .prepare = check_import,
                .follow = follow_import,
                .show = show_imported},
};

const struct command command_vm_export = {
        .name = "vm export",
        .operands = "VM DIR",
        .summary = "copy a vm with its snapshots into a folder",
        .doc = "Copy a vm's images, snapshots and settings into DIR, from where `vhdctl vm import' makes "
               "a vm of them again. DIR must not be there yet; it gets its name when all of it is there. "
               "The vm must be off, and nobody can use it meanwhile; with --live it goes on, and what its "
               "disks were at one instant is exported."
               "\v"
               "Examples:\n"
               "  vhdctl vm export web /mnt/usb/web\n"
               "  vhdctl vm export web /mnt/usb/web --live --no-wait\n"
               "  vhdctl vm export web /srv/settings --config-only",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.export",
                .operands = (const struct param[]){VM_OPERAND,
                        {"directory", PARAM_PATH, NULL, NULL, NULL}, {0}},
                .options = (const struct param[]){{"config-only", PARAM_FLAG, NULL,
                                                          "The settings and the tree, no images",
                                                          NULL},
                        {"live", PARAM_FLAG, NULL, "Although it runs", NULL}, JOB_OPTIONS,
                        {0}},
                .changes = true,
                .follow = job_follow_result,
                .show = show_exported},
};
