/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/hyperv_rows.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/folders.h"
#include "base/utf16.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/resolver.h"
#include "vhdd/daemon/snapshots.h"

#define FOLDERS_DEEP 3u
#define MAX_FILES    4096u /* configurations, and files with memory */

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for what Hyper-V says of a vm");
}

void hyperv_folder_done(struct hyperv_folder *folder)
{
        json_decref(folder->files);
        json_decref(folder->saved);
        json_decref(folder->vm);
        json_decref(folder->snapshots);
        json_decref(folder->unknown);
        *folder = (struct hyperv_folder){0};
}

/* ---- which files ---- */

/* "993F7B33-6057-4D1E-A1FE-A1A1D77BE974.exp" */
static const char *guid_ending(const char *name)
{
        for (unsigned i = 0; i < 36; i++)
                if (i == 8 || i == 13 || i == 18 || i == 23 ? name[i] != '-'
                                                           : !isxdigit((unsigned char)name[i]))
                        return "";
        return name + 36;
}

static bool is_one_of(const char *ending, const char *const *endings)
{
        for (; *endings; endings++)
                if (strcasecmp(ending, *endings) == 0)
                        return true;
        return false;
}

/* A folder of that name on the way from @folder to the file. */
static bool is_in_snapshots(const struct hyperv_folder *folder, const char *path)
{
        return strcasestr(path + strlen(folder->directory), "/Snapshots/") != NULL;
}

static int note_file(void *opaque, const char *path, const char *name, struct error *err)
{
        struct hyperv_folder *folder = opaque;
        static const char *const texts[] = {".exp", ".xml", NULL};
        static const char *const binaries[] = {".vmcx", NULL};
        static const char *const memories[] = {".bin", ".vsv", ".vmrs", NULL};
        const char *ending = guid_ending(name);
        bool text = is_one_of(ending, texts);
        int r = 0;

        if (json_array_size(folder->files) + json_array_size(folder->saved) >= MAX_FILES)
                return fail(err, E2BIG, "there are more than %u configurations in '%s'", MAX_FILES,
                        path);
        if (text || is_one_of(ending, binaries))
                r = json_array_append_new(folder->files,
                        json_pack("{s:s, s:b, s:b}", "path", path, "snapshot",
                                is_in_snapshots(folder, path), "binary", !text));
        else if (is_one_of(ending, memories))
                r = json_array_append_new(folder->saved, json_string(path));
        return r == 0 ? 0
                      : fail(err, EINVAL, "the name of '%s' is no UTF-8, or there is no memory", path);
}

int hyperv_folder_look(
        const char *directory, struct hyperv_folder *ret, bool *ret_any, struct error *err)
{
        const struct folder_walk walk = {.opaque = ret, .file = note_file};
        int r;

        ret->directory = directory;
        ret->files = json_array();
        ret->saved = json_array();
        ret->snapshots = json_array();
        ret->unknown = json_array();
        if (!ret->files || !ret->saved || !ret->snapshots || !ret->unknown)
                return no_memory(err);
        r = folder_walk(directory, FOLDERS_DEEP, &walk, err);
        *ret_any = json_array_size(ret->files) > 0;
        return r;
}

/* ---- reading them ---- */

static int refuse_saved(const struct hyperv_folder *folder, struct error *err)
{
        const char *first = json_string_value(json_array_get(folder->saved, 0));
        size_t n = json_array_size(folder->saved);

        if (n == 0)
                return 0;
        fail(err, EBUSY,
                "'%s'%s hold%s memory that Hyper-V saved, and it cannot be resumed here", first,
                n > 1 ? " and others" : "", n > 1 ? "" : "s");
        error_set_file(err, first);
        error_set_hint(err,
                "start and shut the vm down where it was saved, and export it again; --force imports "
                "it without its memory, as if its power had been cut");
        return -EBUSY;
}

static int refuse_binary(const char *path, struct error *err)
{
        fail(err, ENOTSUP,
                "'%s' is a configuration of Hyper-V 2016 or later, whose binary form is not documented",
                path);
        error_set_file(err, path);
        error_set_hint(err,
                "--only FILE makes a vm of the disks alone; say the rest with vhdctl vm set");
        return -ENOTSUP;
}

static void note_unknown(struct hyperv_folder *folder, const char *path, const json_t *answer)
{
        const char *slash = strrchr(path, '/');
        json_t *item;
        size_t i;

        json_array_foreach(json_object_get(answer, "unknown"), i, item)
        {
                char text[ERROR_MESSAGE_MAX];

                snprintf(text, sizeof(text), "%s: %s", slash ? slash + 1 : path,
                        json_string_value(item) ? json_string_value(item) : "");
                json_array_append_new(folder->unknown, json_string(text));
        }
}

static int take_answer(struct hyperv_folder *folder, const char *path, bool in_snapshots,
        json_t *answer, struct error *err)
{
        note_unknown(folder, path, answer);
        json_object_set_new(answer, "file", json_string(path));
        if (in_snapshots || json_is_true(json_object_get(answer, "snapshot")))
                return json_array_append(folder->snapshots, answer) == 0 ? 0 : no_memory(err);
        if (folder->vm) {
                fail(err, EINVAL, "'%s' and '%s' are two vms, and one is imported at a time",
                        json_string_value(json_object_get(folder->vm, "file")), path);
                error_set_hint(err, "name the folder of one of them");
                return -EINVAL;
        }
        folder->vm = json_incref(answer);
        return 0;
}

int hyperv_folder_read(
        struct broker *broker, struct hyperv_folder *folder, bool force, struct error *err)
{
        const char *binary = NULL;
        json_t *file;
        size_t i;
        int r = force ? 0 : refuse_saved(folder, err);

        json_array_foreach(folder->files, i, file)
        {
                const char *path = param_text(file, "path");
                json_auto_t *answer = NULL;

                if (param_bool(file, "binary"))
                        binary = path;
                if (r < 0 || param_bool(file, "binary"))
                        continue;
                r = resolve_configuration(broker, path, &answer, err);
                if (r == 0)
                        r = take_answer(folder, path, param_bool(file, "snapshot"), answer, err);
        }
        if (r < 0)
                return r;
        if (binary && !folder->vm)
                return refuse_binary(binary, err);
        return folder->vm ? 0
                          : fail(err, EUCLEAN,
                                    "there are configurations of snapshots, and none of their vm");
}

/* ---- which image is meant ---- */

static const char *last_part(const char *path)
{
        const char *last = path;

        for (const char *p = path; *p; p++)
                if (*p == '/' || *p == '\\')
                        last = p + 1;
        return last;
}

/* How many parts at the end of both are the same. */
static unsigned common_tail(const char *ours, const char *theirs)
{
        size_t a = strlen(ours), b = strlen(theirs);
        unsigned n = 0;

        while (a > 0 && b > 0) {
                char x = ours[a - 1], y = theirs[b - 1];

                if (y == '\\')
                        y = '/';
                if (tolower((unsigned char)x) != tolower((unsigned char)y))
                        break;
                n += x == '/';
                a--;
                b--;
        }
        return n;
}

static size_t find_image(const struct forest *forest, const char *path)
{
        const char *name = last_part(path);
        size_t found = FOREST_NO_NODE;
        unsigned best = 0;

        for (size_t i = 0; name[0] && i < forest->n; i++) {
                const char *ours = forest->nodes[i].path;
                unsigned tail;

                if (strcasecmp(last_part(ours), name) != 0)
                        continue;
                tail = common_tail(ours, path);
                if (found == FOREST_NO_NODE || tail > best) {
                        found = i;
                        best = tail;
                }
        }
        return found;
}

static bool has_ending(const char *path, const char *ending)
{
        size_t n = strlen(path), k = strlen(ending);

        return n >= k && strcasecmp(path + n - k, ending) == 0;
}

static int refuse_missing(const struct forest *forest, const char *path, struct error *err)
{
        if (has_ending(path, ".vhdx") || has_ending(path, ".avhdx")) {
                fail(err, ENOTSUP, "the vm has the disk '%s', which is a VHDX and not read here",
                        path);
                error_set_hint(err, "make a VHD of it: Convert-VHD, or qemu-nbd and vhdctl convert");
                return -ENOTSUP;
        }
        if (forest->n_left_out > 0 &&
                strcasecmp(last_part(forest->why.file), last_part(path)) == 0) {
                *err = forest->why;
                return fail_prefix(err, -err->code, "the disk '%s' cannot be used", path);
        }
        return fail(err, ENOENT, "the vm has the disk '%s', and no such file lies in the folder",
                path);
}

/* ---- words of ours ---- */

/* What a name may not hold becomes '-'. */
static int clean_name(const char *text, const char *otherwise, char **ret, struct error *err)
{
        char name[NAME_SIZE_MAX + 1];
        struct error why = ERROR_INIT;
        size_t n = 0;

        for (const char *p = text ? text : ""; *p && n < NAME_SIZE_MAX; p++)
                name[n++] = (unsigned char)*p < 0x20 || *p == 0x7f || *p == '/' || *p == '@' ? '-'
                                                                                          : *p;
        while (n > 0 && !utf8_is_valid(name, n))
                n--;
        name[n] = '\0';
        *ret = strdup(name_check("vm", name, &why) == 0 ? name : otherwise);
        return *ret ? 0 : no_memory(err);
}

static void take_id(const json_t *config, char ret[UUID_TEXT_SIZE])
{
        const char *text = param_text(config, "id");
        char lower[UUID_TEXT_SIZE] = "";
        uint8_t id[16];

        for (size_t i = 0; text && text[i] && i + 1 < sizeof(lower); i++)
                lower[i] = (char)tolower((unsigned char)text[i]);
        if (!text || strlen(text) != UUID_TEXT_SIZE - 1 || !uuid_parse(lower, id))
                uuid_random(id);
        uuid_format(id, ret);
}

/* "00-15-5D-0A-0B-0C", "00155D0A0B0C": with colons; all zeros are none. */
static bool mac_of(const char *text, char ret[18])
{
        char digits[12];
        size_t n = 0;

        for (; text && *text && n < 12; text++)
                if (isxdigit((unsigned char)*text))
                        digits[n++] = (char)tolower((unsigned char)*text);
        if (n != 12 || strncmp(digits, "000000000000", 12) == 0)
                return false;
        for (size_t i = 0; i < 6; i++)
                snprintf(ret + 3 * i, 18 - 3 * i, i < 5 ? "%.2s:" : "%.2s", digits + 2 * i);
        return true;
}

static json_t *networks_of(const json_t *config, json_t *notes)
{
        json_t *list = json_array(), *card;
        size_t i;

        json_array_foreach(json_object_get(config, "networks"), i, card)
        {
                const char *name = param_text(card, "switch");
                json_t *ours = json_object(), *vlan = json_object_get(card, "vlan");
                struct error why = ERROR_INIT;
                char mac[18];

                if (!name || name_check("switch", name, &why) < 0 || !ours) {
                        if (notes)
                                note_add(notes, "network card %zu is left out: %s", i + 1,
                                        name && name[0] ? "its switch's name cannot be used"
                                                        : "it is connected to no switch");
                        json_decref(ours);
                        continue;
                }
                json_object_set_new(ours, "switch", json_string(name));
                if (mac_of(param_text(card, "mac"), mac) && param_bool(card, "static"))
                        json_object_set_new(ours, "mac", json_string(mac));
                if (json_is_integer(vlan))
                        json_object_set(ours, "vlan", vlan);
                json_array_append_new(list, ours);
        }
        return list;
}

/* A number of theirs that it can have; else -1: it was read in a process that a stranger's file may have
 * made its own. */
static json_int_t number_within(const json_t *object, const char *key, json_int_t most)
{
        json_int_t number = param_int(object, key, -1);

        return number <= most ? number : -1;
}

json_t *hyperv_memory(const json_t *theirs)
{
        json_int_t buffer = number_within(theirs, "buffer", HYPERV_MOST_BUFFER);
        json_int_t weight = number_within(theirs, "priority", HYPERV_MOST_WEIGHT);
        json_int_t startup = param_int(theirs, "startup", 0), max = param_int(theirs, "max", 0);
        json_t *ours = json_object();

        if (startup > 0)
                json_object_set_new(ours, "startup", json_integer(startup));
        if (startup > 0 && param_bool(theirs, "dynamic") && max >= startup)
                json_object_set_new(ours, "max", json_integer(max));
        if (buffer >= 0)
                json_object_set_new(ours, "buffer", json_integer(buffer));
        if (weight >= 0)
                json_object_set_new(ours, "weight", json_integer(MAX_OF(1, (weight + 50) / 100)));
        return ours;
}

static json_t *settings_of(const json_t *config, json_t *notes)
{
        json_t *settings = json_object(),
               *memory = hyperv_memory(json_object_get(config, "memory"));
        json_t *networks = networks_of(config, notes);
        json_int_t cpus = param_int(config, "cpus", 0);

        if (cpus > 0 && cpus <= 1024)
                json_object_set_new(settings, "cpus", json_integer(cpus));
        if (json_object_size(memory) > 0)
                json_object_set(settings, "memory", memory);
        if (json_array_size(networks) > 0)
                json_object_set(settings, "networks", networks);
        json_decref(memory);
        json_decref(networks);
        return settings;
}

/* ---- rows ---- */

struct building {
        const struct hyperv_folder *folder;
        const struct forest *forest;
        struct sidecar *rows;
        bool *needed; /* nodes: some disk stands on them, or they are its own */
        json_t *notes;
        struct error *err;
};

static int check_place(const json_t *disk, struct error *err)
{
        json_int_t controller = param_int(disk, "controller", 0), bus = param_int(disk, "bus", 0),
                   unit = param_int(disk, "unit", 0);
        json_int_t most_bus = controller ? 3 : 1, most_unit = controller ? 63 : 1;

        if (bus >= 0 && bus <= most_bus && unit >= 0 && unit <= most_unit)
                return 0;
        return fail(err, EINVAL,
                "the disk '%s' is at %s%" JSON_INTEGER_FORMAT ":%" JSON_INTEGER_FORMAT
                ", and there is ide0:0 to ide1:1 and scsi0:0 to scsi3:63",
                param_text(disk, "path"), controller ? "scsi" : "ide", bus, unit);
}

static bool is_vhd(const json_t *disk)
{
        const char *kind = param_text(disk, "kind");

        return kind && strcasecmp(kind, "VHD") == 0;
}

static const char *place_of(const json_t *disk, char ret[32])
{
        snprintf(ret, 32, "%s%d:%d", param_int(disk, "controller", 0) ? "scsi" : "ide",
                (int)param_int(disk, "bus", 0), (int)param_int(disk, "unit", 0));
        return ret;
}

static bool same_place(const struct disk_row *a, const struct disk_row *b)
{
        return a->controller == b->controller && a->bus == b->bus && a->unit == b->unit;
}

static int unique_disk_name(
        const struct disk_row *disks, size_t n, const char *path, char **ret, struct error *err)
{
        _cleanup_free_ char *base = NULL;
        int r = name_of_file(path, &base, err);

        for (unsigned number = 1; r == 0; number++) {
                _cleanup_free_ char *name = NULL;
                bool taken = false;

                if ((number == 1 ? asprintf(&name, "%s", base)
                                 : asprintf(&name, "%.110s %u", base, number)) < 0)
                        return no_memory(err);
                for (size_t i = 0; i < n && !taken; i++)
                        taken = strcmp(disks[i].name, name) == 0;
                if (!taken) {
                        *ret = TAKE_PTR(name);
                        return 0;
                }
        }
        return r;
}

static void need(struct building *b, size_t node)
{
        for (; node != FOREST_NO_NODE && !b->needed[node]; node = b->forest->nodes[node].parent)
                b->needed[node] = true;
}

static int make_disk(struct building *b, const json_t *disk, struct disk_row *rows, size_t n,
        struct error *err)
{
        struct disk_row *row = &rows[n];
        const char *path = param_text(disk, "path");
        const struct forest_node *node;
        size_t found;
        uint8_t id[16];
        int r = check_place(disk, err);

        if (r < 0)
                return r;
        found = find_image(b->forest, path ? path : "");
        if (found == FOREST_NO_NODE)
                return refuse_missing(b->forest, path ? path : "", err);
        need(b, found);
        node = &b->forest->nodes[found];
        uuid_random(id);
        uuid_format(id, row->id);
        strcpy(row->vm, b->rows->vm.id);
        strcpy(row->kind, "vhd");
        row->controller = (int)param_int(disk, "controller", 0);
        row->bus = (int)param_int(disk, "bus", 0);
        row->unit = (int)param_int(disk, "unit", 0);
        row->size = node->size;
        row->created_us = b->rows->vm.created_us;
        row->file = strdup(node->path);
        if (!row->file)
                return no_memory(err);
        return unique_disk_name(rows, n, node->path, &row->name, err);
}

/* *ret_n is right whatever it answers. */
static int make_disks(struct building *b, const json_t *config, struct disk_row **ret,
        size_t *ret_n, json_t *notes, struct error *err)
{
        const json_t *list = json_object_get(config, "disks");
        struct disk_row *rows = calloc(json_array_size(list) + 1, sizeof(*rows));
        json_t *disk;
        size_t i;
        int r = rows ? 0 : no_memory(err);

        *ret = rows;
        *ret_n = 0;
        json_array_foreach((json_t *)list, i, disk)
        {
                char place[32];

                if (r < 0)
                        break;
                if (!is_vhd(disk)) {
                        if (notes)
                                note_add(notes, "'%s' at %s is left out: it is a drive of the type %s",
                                        param_text(disk, "path"), place_of(disk, place),
                                        param_text(disk, "kind"));
                        continue;
                }
                r = make_disk(b, disk, rows, (*ret_n)++, err);
        }
        for (size_t k = 0; r == 0 && k < *ret_n; k++)
                for (size_t m = 0; m < k; m++)
                        if (same_place(&rows[k], &rows[m]))
                                return fail(err, EUCLEAN, "two disks of it are at the same place: "
                                                         "'%s' and '%s'",
                                        rows[m].file, rows[k].file);
        return r;
}

/* A snapshot's disk is the vm's that is at the same place, if both are of one tree. */
static void share_disk(const struct building *b, struct disk_row *disk)
{
        size_t ours = find_image(b->forest, disk->file);

        for (size_t i = 0; i < b->rows->n_disks; i++) {
                const struct disk_row *live = &b->rows->disks[i];
                size_t theirs = find_image(b->forest, live->file);
                char *name;

                if (!same_place(live, disk) ||
                        b->forest->nodes[ours].root != b->forest->nodes[theirs].root)
                        continue;
                name = strdup(live->name);
                if (!name)
                        return;
                memcpy(disk->id, live->id, sizeof(disk->id));
                free(disk->name);
                disk->name = name;
        }
}

static int unique_snapshot_name(const struct sidecar *rows, size_t n, char **name, struct error *err)
{
        for (unsigned number = 2;; number++) {
                bool taken = false;
                char *other;

                for (size_t i = 0; i < n && !taken; i++)
                        taken = strcmp(rows->snapshots[i].name, *name) == 0;
                if (!taken)
                        return 0;
                if (asprintf(&other, "%.100s (%u)", *name, number) < 0)
                        return no_memory(err);
                free(*name);
                *name = other;
        }
}

static int hold_disk(struct building *b, const struct snapshot_row *row, const struct disk_row *disk,
        struct error *err)
{
        struct snapshot_disk_row *larger = reallocarray(
                b->rows->held, b->rows->n_held + 1, sizeof(*larger));

        if (!larger)
                return no_memory(err);
        b->rows->held = larger;
        larger += b->rows->n_held;
        *larger = snapshot_disk_of(row->id, disk, false);
        strcpy(larger->kind, "vhd");
        larger->name = strdup(disk->name);
        larger->file = strdup(disk->file);
        b->rows->n_held++;
        return larger->name && larger->file ? 0 : no_memory(err);
}

static int make_snapshot(struct building *b, const json_t *config, struct error *err)
{
        struct snapshot_row *row = &b->rows->snapshots[b->rows->n_snapshots++];
        struct disk_row *disks = NULL;
        json_auto_t *theirs = settings_of(config, NULL), *settings = NULL;
        _cleanup_free_ char *text = theirs ? json_dumps(theirs, JSON_COMPACT) : NULL;
        struct vm_row then = b->rows->vm;
        size_t n = 0;
        int r;

        take_id(config, row->id);
        strcpy(row->vm, b->rows->vm.id);
        strcpy(row->state, "committed");
        row->created_us = b->rows->vm.created_us;
        r = clean_name(param_text(config, "name"), "snapshot", &row->name, err);
        if (r == 0)
                r = unique_snapshot_name(b->rows, b->rows->n_snapshots - 1, &row->name, err);
        if (r == 0)
                r = make_disks(b, config, &disks, &n, NULL, err);
        if (r < 0)
                fail_prefix(err, r, "snapshot '%s'", row->name ? row->name : "");
        for (size_t i = 0; r == 0 && i < n; i++) {
                size_t node = find_image(b->forest, disks[i].file);
                int64_t changed_us = b->forest->nodes[node].mtime_ns / 1000;

                share_disk(b, &disks[i]);
                r = hold_disk(b, row, &disks[i], err);
                row->created_us = i == 0 ? changed_us : MAX_OF(row->created_us, changed_us);
        }
        if (r == 0 && text) {
                then.settings = text;
                settings = snapshot_settings(&then, disks, n);
                row->settings = settings ? json_dumps(settings, JSON_COMPACT) : NULL;
        }
        disk_rows_free(disks, n);
        return r == 0 && !row->settings ? no_memory(err) : r;
}

/* The nearest image under @file that a snapshot holds, and that snapshot; NULL: none. */
static const struct snapshot_row *find_below(
        const struct building *b, const char *file, const char *but)
{
        size_t node = find_image(b->forest, file);

        for (node = b->forest->nodes[node].parent; node != FOREST_NO_NODE;
                node = b->forest->nodes[node].parent)
                for (size_t i = 0; i < b->rows->n_held; i++) {
                        const struct snapshot_disk_row *held = &b->rows->held[i];

                        if (strcmp(held->file, b->forest->nodes[node].path) != 0 ||
                                strcmp(held->snapshot, but) == 0)
                                continue;
                        for (size_t k = 0; k < b->rows->n_snapshots; k++)
                                if (strcmp(b->rows->snapshots[k].id, held->snapshot) == 0)
                                        return &b->rows->snapshots[k];
                }
        return NULL;
}

static void make_tree(struct building *b)
{
        for (size_t i = 0; i < b->rows->n_held; i++) {
                const struct snapshot_disk_row *held = &b->rows->held[i];
                const struct snapshot_row *parent = find_below(b, held->file, held->snapshot);

                for (size_t k = 0; parent && k < b->rows->n_snapshots; k++)
                        if (strcmp(b->rows->snapshots[k].id, held->snapshot) == 0 &&
                                !b->rows->snapshots[k].parent[0])
                                strcpy(b->rows->snapshots[k].parent, parent->id);
        }
        for (size_t i = 0; i < b->rows->n_disks && !b->rows->vm.current[0]; i++) {
                const struct snapshot_row *parent = find_below(b, b->rows->disks[i].file, "");

                if (parent)
                        strcpy(b->rows->vm.current, parent->id);
        }
}

/* Who writes to what a snapshot has frozen takes the snapshot away. */
static int refuse_written(const struct building *b, struct error *err)
{
        for (size_t i = 0; i < b->rows->n_disks; i++)
                for (size_t k = 0; k < b->rows->n_held; k++)
                        if (strcmp(b->rows->disks[i].file, b->rows->held[k].file) == 0)
                                return fail(err, EUCLEAN,
                                        "'%s' is what the vm writes to, and what a snapshot has "
                                        "frozen",
                                        b->rows->disks[i].file);
        return 0;
}

static bool is_leaf(const struct building *b, const char *path)
{
        for (size_t i = 0; i < b->rows->n_disks; i++)
                if (strcmp(b->rows->disks[i].file, path) == 0)
                        return true;
        return false;
}

static int make_image(struct building *b, size_t i, struct error *err)
{
        const struct forest_node *node = &b->forest->nodes[i];
        struct image_row *row = &b->rows->images[b->rows->n_images++];
        struct stat st;

        *row = (struct image_row){
                .path = strdup(node->path),
                .device = node->device,
                .inode = node->inode,
                .birth_ns = node->birth_ns,
                .state = "in-use",
        };
        memcpy(row->uuid, node->uuid, sizeof(row->uuid));
        memcpy(row->format, node->format, sizeof(row->format));
        if (node->parent != FOREST_NO_NODE)
                row->parent = strdup(b->forest->nodes[node->parent].path);
        if (!row->path || (node->parent != FOREST_NO_NODE && !row->parent))
                return no_memory(err);
        if (!is_leaf(b, node->path) && stat(node->path, &st) == 0) {
                row->sealed_size = (uint64_t)st.st_size;
                row->sealed_mtime_ns = node->mtime_ns;
        }
        return 0;
}

static int make_images(struct building *b, struct error *err)
{
        int r = 0;

        b->rows->images = calloc(b->forest->n + 1, sizeof(*b->rows->images));
        if (!b->rows->images)
                return no_memory(err);
        for (size_t i = 0; r == 0 && i < b->forest->n; i++) {
                if (b->needed[i])
                        r = make_image(b, i, err);
                else
                        note_add(b->notes, "'%s' is left out: no configuration names it",
                                b->forest->nodes[i].path);
        }
        return r;
}

static int make_vm(struct building *b, struct error *err)
{
        const json_t *config = b->folder->vm;
        json_auto_t *settings = settings_of(config, b->notes);
        struct vm_row *vm = &b->rows->vm;
        int r = clean_name(param_text(config, "name"), "imported", &vm->name, err);

        if (r < 0)
                return r;
        if (param_text(config, "name") && strcmp(vm->name, param_text(config, "name")) != 0)
                note_add(b->notes, "the vm '%s' is called '%s' here", param_text(config, "name"),
                        vm->name);
        take_id(config, vm->id);
        vm->created_us = now_us();
        vm->settings = settings ? json_dumps(settings, JSON_COMPACT) : NULL;
        return vm->settings ? 0 : no_memory(err);
}

static int build(struct building *b, struct error *err)
{
        json_t *config;
        size_t i;
        int r = make_vm(b, err);

        if (r == 0)
                r = make_disks(b, b->folder->vm, &b->rows->disks, &b->rows->n_disks, b->notes, err);
        b->rows->snapshots =
                calloc(json_array_size(b->folder->snapshots) + 1, sizeof(*b->rows->snapshots));
        if (r == 0 && !b->rows->snapshots)
                r = no_memory(err);
        json_array_foreach(b->folder->snapshots, i, config)
        {
                if (r == 0)
                        r = make_snapshot(b, config, err);
        }
        if (r == 0)
                r = refuse_written(b, err);
        if (r < 0)
                return r;
        make_tree(b);
        return make_images(b, err);
}

int hyperv_folder_to_rows(const struct hyperv_folder *folder, const struct forest *forest,
        struct sidecar *ret, json_t *notes, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar rows = {0};
        _cleanup_free_ bool *needed = calloc(forest->n + 1, sizeof(*needed));
        struct building b = {
                .folder = folder, .forest = forest, .rows = &rows, .needed = needed, .notes = notes};
        const char *path;
        json_t *saved;
        size_t i;
        int r = needed ? build(&b, err) : no_memory(err);

        if (r < 0)
                return r;
        json_array_foreach(folder->saved, i, saved)
        {
                path = json_string_value(saved);
                note_add(notes, "'%s' is left out: memory that Hyper-V saved cannot be resumed here",
                        path);
        }
        *ret = rows;
        rows = (struct sidecar){0};
        return 0;
}
