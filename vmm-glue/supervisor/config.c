/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "vhdd/control/names.h"

#define URI_PREFIX   "nbd+unix:///"
#define MAX_NETWORKS 8u /* as many as a vm of Hyper-V's has */
#define DEFAULT_CPUS 1

static const char *text_or(const json_t *settings, const char *name, const char *otherwise)
{
        const char *text = json_string_value(json_object_get(settings, name));

        return text ? text : otherwise;
}

/* --- disks --- */

static int hex(char c)
{
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Percent-decoded; NULL: not well formed, or no memory. */
static char *decode(const char *text, size_t length)
{
        char *ret = malloc(length + 1), *to = ret;

        for (size_t i = 0; ret && i < length; i++) {
                if (text[i] == '%') {
                        int high = length - i > 2 ? hex(text[i + 1]) : -1;
                        int low = high >= 0 ? hex(text[i + 2]) : -1;

                        if (low < 0 || (high == 0 && low == 0)) {
                                free(ret);
                                return NULL;
                        }
                        *to++ = (char)(high << 4 | low);
                        i += 2;
                } else {
                        *to++ = text[i];
                }
        }
        if (ret)
                *to = '\0';
        return ret;
}

/* nbd+unix:///EXPORT?socket=PATH */
static int split_uri(const char *uri, char **ret_export, char **ret_socket, struct error *err)
{
        _cleanup_free_ char *export = NULL;
        const char *query, *path;

        if (strncmp(uri, URI_PREFIX, strlen(URI_PREFIX)) != 0 || !(query = strchr(uri, '?')) ||
                strncmp(query, "?socket=", 8) != 0)
                return fail(err, ENOTSUP,
                        "the daemon serves its disks at '%s', but QEMU is given them on a unix socket "
                        "only: start it with --nbd-socket",
                        uri);
        path = uri + strlen(URI_PREFIX);
        export = decode(path, (size_t)(query - path));
        *ret_socket = export ? decode(query + 8, strcspn(query + 8, "&")) : NULL;
        if (!*ret_socket)
                return fail(err, EPROTO, "the daemon's URI '%s' makes no sense", uri);
        *ret_export = TAKE_PTR(export);
        return 0;
}

bool config_is_ide(const json_t *disk)
{
        const char *at = json_string_value(json_object_get(disk, "at"));

        return at && strncmp(at, "ide", 3) == 0;
}

int config_disk(const json_t *listed, json_t **ret, struct error *err)
{
        const char *name = json_string_value(json_object_get(listed, "name"));
        const char *uri = json_string_value(json_object_get(listed, "uri"));
        const char *at = json_string_value(json_object_get(listed, "at"));
        _cleanup_free_ char *export = NULL, *socket = NULL;
        struct control_place place;
        int r;

        if (!name || !uri || !at || !json_string_value(json_object_get(listed, "id")))
                return fail(err, EPROTO, "the daemon says too little of a disk");
        r = control_place_parse(at, &place, err);
        if (r == 0)
                r = split_uri(uri, &export, &socket, err);
        if (r < 0)
                return fail_prefix(err, r, "disk '%s'", name);
        if (!place.scsi && json_is_true(json_object_get(listed, "read-only"))) {
                fail(err, EINVAL, "disk '%s' at %s is read-only, which no IDE disk can be", name,
                        at);
                error_set_hint(err, "detach it, and attach it with --at scsi0:0 --read-only");
                return -EINVAL;
        }
        *ret = json_pack("{s:s, s:O, s:s, s:s, s:s, s:O?, s:b}", "name", name, "id",
                json_object_get(listed, "id"), "at", at, "export", export, "socket", socket, "size",
                json_object_get(listed, "size"), "read-only",
                json_is_true(json_object_get(listed, "read-only")));
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a disk");
}

const json_t *config_find_disk(const json_t *config, const char *name_or_id)
{
        json_t *disk;
        size_t i;

        json_array_foreach(json_object_get(config, "disks"), i, disk)
        {
                const char *id = json_string_value(json_object_get(disk, "id"));
                const char *name = json_string_value(json_object_get(disk, "name"));

                if ((id && strcmp(id, name_or_id) == 0) || (name && strcmp(name, name_or_id) == 0))
                        return disk;
        }
        return NULL;
}

static const json_t *find_place(const json_t *config, const char *at)
{
        json_t *disk;
        size_t i;

        json_array_foreach(json_object_get(config, "disks"), i, disk)
        {
                if (strcmp(json_string_value(json_object_get(disk, "at")), at) == 0)
                        return disk;
        }
        return NULL;
}

void config_node(const json_t *disk, char ret[CONFIG_NODE_MAX])
{
        const char *id = json_string_value(json_object_get(disk, "id"));
        size_t n = 0;

        /* QEMU takes 31 bytes, and an id has 32 digits. */
        ret[n++] = 'd';
        for (; *id && n < CONFIG_NODE_MAX - 2; id++)
                if (*id != '-')
                        ret[n++] = *id;
        ret[n] = '\0';
}

/* --- from the daemon --- */

static int take_disks(json_t *config, const json_t *listed, struct error *err)
{
        json_t *list = json_array(), *item;
        size_t i;

        json_object_set_new(config, "disks", list);
        json_array_foreach(listed, i, item)
        {
                json_t *disk = NULL;
                const char *at;
                int r = config_disk(item, &disk, err);

                if (r < 0)
                        return r;
                at = json_string_value(json_object_get(disk, "at"));
                if (find_place(config, at)) {
                        json_decref(disk);
                        return fail(err, EINVAL, "two disks are at %s", at);
                }
                json_array_append_new(list, disk);
        }
        return 0;
}

static int check_boot(const json_t *config, const char *vm, struct error *err)
{
        if (json_object_get(config, "kernel") || find_place(config, "ide0:0"))
                return 0;
        if (json_array_size(json_object_get(config, "disks")) > 0)
                fail(err, EINVAL,
                        "vm '%s' has no disk at ide0:0, and a vm starts from there only, never from a "
                        "SCSI disk",
                        vm);
        else
                fail(err, EINVAL, "vm '%s' has no disk to start from", vm);
        error_set_hint(err,
                "vhdctl disk attach '%s' FILE --at ide0:0, or vhdctl vm set '%s' --kernel FILE", vm,
                vm);
        return -EINVAL;
}

static int take_memory(json_t *config, const json_t *memory, struct error *err)
{
        uint64_t startup = (uint64_t)json_integer_value(json_object_get(memory, "startup"));
        uint64_t max = (uint64_t)json_integer_value(json_object_get(memory, "max"));
        char text[SIZE_TEXT_MAX], other[SIZE_TEXT_MAX];

        if (startup == 0)
                startup = max ? max : UINT64_C(512) << 20;
        if (max == 0)
                max = startup;
        startup -= startup % (UINT64_C(1) << 20);
        if (startup < CONFIG_MEMORY_LEAST)
                return fail(err, EINVAL, "a startup memory of %s is too little: at least %s",
                        size_to_text(startup, text), size_to_text(CONFIG_MEMORY_LEAST, other));
        if (max < startup)
                return fail(err, EINVAL, "the most memory, %s, is less than at startup, %s",
                        size_to_text(max, text), size_to_text(startup, other));
        max = startup + (max - startup) / CONFIG_MEMORY_UNIT * CONFIG_MEMORY_UNIT;
        json_object_set_new(config, "startup", json_integer((json_int_t)startup));
        json_object_set_new(config, "max", json_integer((json_int_t)max));
        return 0;
}

static int take_networks(json_t *config, const json_t *settings, struct error *err)
{
        json_t *networks = json_object_get(settings, "networks");

        if (json_array_size(networks) > MAX_NETWORKS)
                return fail(err, EINVAL, "the vm has %zu network cards, at most %u are possible",
                        json_array_size(networks), MAX_NETWORKS);
        json_object_set_new(config, "networks", networks ? json_deep_copy(networks) : json_array());
        return 0;
}

int config_from_daemon(const json_t *shown, const json_t *disks, json_t **ret, struct error *err)
{
        json_auto_t *config = NULL;
        const json_t *settings = json_object_get(shown, "settings");
        const char *name = text_or(shown, "name", "");
        json_t *cpus = json_object_get(settings, "cpus");
        int r;

        config = json_pack("{s:i, s:O?, s:s, s:s, s:I, s:s, s:b, s:b}", "format", CONFIG_FORMAT,
                "vm", json_object_get(shown, "id"), "machine", "pc", "accel",
                text_or(settings, "accel", "auto"), "cpus",
                cpus ? json_integer_value(cpus) : (json_int_t)DEFAULT_CPUS, "display",
                text_or(settings, "display", "none"), "hyperv",
                json_is_true(json_object_get(settings, "hyperv")), "vmbus", 0);
        if (!config)
                return fail(err, ENOMEM, "no memory for a vm's devices");
        if (text_or(settings, "kernel", NULL)) {
                json_object_set(config, "kernel", json_object_get(settings, "kernel"));
                if (json_object_get(settings, "initrd"))
                        json_object_set(config, "initrd", json_object_get(settings, "initrd"));
                if (json_object_get(settings, "append"))
                        json_object_set(config, "append", json_object_get(settings, "append"));
        } else if (text_or(settings, "initrd", NULL) || text_or(settings, "append", NULL)) {
                return fail(err, EINVAL, "vm '%s' has --initrd or --append, but no --kernel", name);
        }
        r = take_memory(config, json_object_get(settings, "memory"), err);
        if (r == 0)
                r = take_networks(config, settings, err);
        if (r == 0)
                r = take_disks(config, disks, err);
        if (r == 0)
                r = check_boot(config, name, err);
        if (r < 0)
                return fail_prefix(err, r, "cannot start vm '%s'", name);
        *ret = config;
        config = NULL;
        return 0;
}

/* --- with saved memory --- */

static const json_t *find_id_at(const json_t *config, const char *id, const char *at)
{
        const json_t *found = config_find_disk(config, id);

        return found && strcmp(text_or(found, "at", ""), at) == 0 ? found : NULL;
}

/* The id that a saved disk has today. */
static const char *id_today(const json_t *known, const json_t *disk)
{
        const json_t *one;
        size_t i;

        json_array_foreach(known, i, one)
        {
                if (json_equal(json_object_get(one, "at"), json_object_get(disk, "at")))
                        return text_or(one, "id", "");
        }
        return text_or(disk, "id", "");
}

static json_t *with_serial(const json_t *disk, const json_t *saved)
{
        const char *id = text_or(saved, "id", ""), *serial = text_or(saved, "serial", id);
        json_t *copy = json_copy((json_t *)disk);

        if (copy && strcmp(serial, text_or(disk, "id", "")) != 0)
                json_object_set_new(copy, "serial", json_string(serial));
        return copy;
}

static int take_saved_disks(json_t *config, const json_t *saved, const json_t *today,
        const json_t *known, struct error *err)
{
        json_t *list = json_array(), *disk;
        size_t i;

        json_object_set_new(config, "disks", list);
        json_array_foreach(json_object_get(saved, "disks"), i, disk)
        {
                const json_t *found =
                        find_id_at(today, id_today(known, disk), text_or(disk, "at", ""));

                if (!found)
                        return fail(err, ESTALE,
                                "the memory was saved with disk '%s' at %s, which the vm has not now",
                                text_or(disk, "name", "?"), text_or(disk, "at", "?"));
                json_array_append_new(list, with_serial(found, disk));
        }
        return 0;
}

static bool is_one_of(const char *text, const char *const *words)
{
        for (; *words; words++)
                if (strcmp(text, *words) == 0)
                        return true;
        return false;
}

static bool is_machine(const char *text)
{
        static const char family[] = "pc-i440fx-";

        if (strncmp(text, family, strlen(family)) != 0)
                return strcmp(text, "pc") == 0;
        text += strlen(family);
        return *text && strspn(text, "0123456789.") == strlen(text);
}

static bool is_size(const json_t *value)
{
        json_int_t n = json_integer_value(value);

        return n >= (json_int_t)CONFIG_MEMORY_LEAST && n % (1 << 20) == 0 &&
                n <= (json_int_t)1 << 46;
}

/* The file may have come from elsewhere: what goes into a command line is looked at, and nothing that
 * names a file is taken from it. */
static int check_saved(const json_t *saved, struct error *err)
{
        static const char *const accels[] = {"kvm", "tcg", NULL};
        static const char *const displays[] = {"vnc", "spice", "none", NULL};
        json_int_t cpus = json_integer_value(json_object_get(saved, "cpus"));
        const json_t *startup = json_object_get(saved, "startup"),
                     *max = json_object_get(saved, "max");
        json_t *item;
        size_t i;

        if (json_integer_value(json_object_get(saved, "format")) != CONFIG_FORMAT)
                return fail(err, ENOTSUP, "the saved memory is of another version of vmm-host's");
        if (!is_machine(text_or(saved, "machine", "")) ||
                !is_one_of(text_or(saved, "accel", ""), accels) ||
                !is_one_of(text_or(saved, "display", ""), displays) || cpus < 1 || cpus > 1024 ||
                !is_size(startup) || !is_size(max) ||
                json_integer_value(max) < json_integer_value(startup) ||
                json_array_size(json_object_get(saved, "networks")) > MAX_NETWORKS)
                return fail(err, EUCLEAN, "the saved memory's list of devices is damaged");
        json_array_foreach(json_object_get(saved, "disks"), i, item)
        {
                if (!json_is_string(json_object_get(item, "id")) ||
                        !json_is_string(json_object_get(item, "at")))
                        return fail(err, EUCLEAN, "the saved memory's list of disks is damaged");
        }
        json_array_foreach(json_object_get(saved, "networks"), i, item)
        {
                if (json_is_null(item))
                        continue;
                if (!json_is_string(json_object_get(item, "switch")) ||
                        (json_object_get(item, "mac") &&
                                control_mac_check(text_or(item, "mac", ""), err) < 0))
                        return fail(err, EUCLEAN, "the saved memory's list of networks is damaged");
        }
        return 0;
}

int config_for_memory(const json_t *saved, const json_t *today, const json_t *known, json_t **ret,
        json_t **ret_more, struct error *err)
{
        static const char *const kept[] = {"format", "machine", "accel", "cpus", "startup", "max",
                "display", "hyperv", "vmbus", "networks"};
        static const char *const todays[] = {"vm", "kernel", "initrd", "append"};
        json_auto_t *config = json_object(), *more = json_array();
        json_t *disk;
        size_t i;
        int r = check_saved(saved, err);

        if (r < 0)
                return r;
        for (i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
                json_object_set_new(
                        config, kept[i], json_deep_copy(json_object_get(saved, kept[i])));
        for (i = 0; i < sizeof(todays) / sizeof(todays[0]); i++)
                if (json_object_get(today, todays[i]))
                        json_object_set(config, todays[i], json_object_get(today, todays[i]));
        if (!config || !more)
                return fail(err, ENOMEM, "no memory for a vm's devices");
        r = take_saved_disks(config, saved, today, known, err);
        if (r < 0)
                return r;
        json_array_foreach(json_object_get(today, "disks"), i, disk)
        {
                if (find_id_at(config, text_or(disk, "id", ""), text_or(disk, "at", "")))
                        continue;
                if (config_is_ide(disk))
                        return fail(err, ESTALE,
                                "disk '%s' at %s was attached after the memory was saved, and an IDE "
                                "disk cannot be added to a running vm",
                                text_or(disk, "name", "?"), text_or(disk, "at", "?"));
                json_array_append(more, disk);
        }
        *ret = TAKE_PTR(config);
        *ret_more = TAKE_PTR(more);
        return 0;
}
