/* SPDX-License-Identifier: Apache-2.0 */
/* Files that nobody names: AVHDs in the folders of the vms' images, and saved memory. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/quote.h"
#include "vhdd/daemon/doctor_internal.h"

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for what the doctor finds");
}

static bool ends_with(const char *name, const char *ending)
{
        size_t n = strlen(name), m = strlen(ending);

        return n > m && strcasecmp(name + n - m, ending) == 0;
}

/* NAME_GUID.avhd: only a daemon makes such names. */
static bool looks_ours(const char *name)
{
        size_t n = strlen(name), tail = strlen("_") + UUID_TEXT_SIZE - 1 + strlen(".avhd");
        char id[UUID_TEXT_SIZE];
        uint8_t bytes[16];

        if (n <= tail || name[n - tail] != '_')
                return false;
        memcpy(id, name + n - tail + 1, UUID_TEXT_SIZE - 1);
        id[UUID_TEXT_SIZE - 1] = '\0';
        return uuid_parse(id, bytes);
}

/* An operation that is under way, or waits for the next start, says so itself. */
static bool journal_names(const struct records *records, const char *path)
{
        for (size_t i = 0; i < records->n_operations; i++)
                if (strstr(records->operations[i].payload, path))
                        return true;
        return false;
}

static int examine_file(
        struct examination *x, const char *directory, const char *name, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        char hint[ERROR_MESSAGE_MAX], word[QUOTE_TEXT_MAX];
        bool named = true;
        int r;

        if (!ends_with(name, ".avhd"))
                return 0;
        if (asprintf(&path, "%s/%s", directory, name) < 0)
                return no_memory(err);
        r = catalog_names_path(x->doctor->catalog, path, &named, err);
        if (r < 0 || named || journal_names(&x->records, path))
                return r;
        snprintf(hint, sizeof(hint), "look with vhdctl tree %s; then remove or import it",
                shell_quote(directory, word, sizeof(word)));
        doctor_add(x->findings, "orphan-file", "warning", NULL, path, hint,
                looks_ours(name) ? "no disk and no snapshot uses '%s', which a daemon has made"
                                 : "no disk and no snapshot uses '%s'",
                path);
        return 0;
}

static int examine_folder(struct examination *x, const char *directory, struct error *err)
{
        DIR *dir = opendir(directory);
        struct dirent *entry;
        int r = 0;

        if (!dir) {
                doctor_add(x->findings, "folder-unreadable", "warning", NULL, directory, NULL,
                        "cannot look into the folder '%s': %s", directory, strerror(errno));
                return 0;
        }
        while (r == 0 && (entry = readdir(dir)))
                r = examine_file(x, directory, entry->d_name, err);
        closedir(dir);
        return r;
}

/* Each folder in which an image or a vm's sidecar lies, once. */
static int collect_folder(json_t *folders, const char *path, bool is_file, struct error *err)
{
        const char *slash = is_file ? strrchr(path, '/') : NULL;
        _cleanup_free_ char *folder = NULL;

        if (is_file && !slash)
                return 0;
        folder = is_file ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(path);
        if (!folder || json_object_set_new(folders, folder, json_null()) < 0)
                return no_memory(err);
        return 0;
}

/* Memory that no snapshot has: FOLDER/GUID/memory. */
static int examine_memory(struct examination *x, const char *vm, const char *folder, const char *id,
        struct error *err)
{
        _cleanup_free_ char *path = NULL;
        char hint[ERROR_MESSAGE_MAX], word[QUOTE_TEXT_MAX];
        uint8_t bytes[16];
        bool named = true;
        int r;

        if (!uuid_parse(id, bytes))
                return 0;
        if (asprintf(&path, "%s/%s/memory", folder, id) < 0)
                return no_memory(err);
        if (access(path, F_OK) < 0 || journal_names(&x->records, path))
                return 0;
        r = catalog_names_path(x->doctor->catalog, path, &named, err);
        if (r < 0 || named)
                return r;
        snprintf(hint, sizeof(hint), "rm %s", shell_quote(path, word, sizeof(word)));
        doctor_add(x->findings, "orphan-file", "warning", vm, path, hint,
                "no snapshot uses the saved memory '%s'", path);
        return 0;
}

/* A vm without saved memory has no such folder. */
static int examine_memories(struct examination *x, const struct vm_row *vm, struct error *err)
{
        _cleanup_free_ char *folder = NULL;
        struct dirent *entry;
        DIR *dir;
        int r = 0;

        if (!vm->snapshot_dir && !vm->directory)
                return 0;
        if (asprintf(&folder, "%s%s", vm->snapshot_dir ? vm->snapshot_dir : vm->directory,
                    vm->snapshot_dir ? "" : "/Snapshots") < 0)
                return no_memory(err);
        dir = opendir(folder);
        while (r == 0 && dir && (entry = readdir(dir)))
                r = examine_memory(x, vm->name, folder, entry->d_name, err);
        if (dir)
                closedir(dir);
        return r;
}

int doctor_examine_folders(struct examination *x, struct error *err)
{
        json_auto_t *folders = json_object();
        const char *folder;
        json_t *unused;
        int r = folders ? 0 : no_memory(err);

        for (size_t i = 0; r == 0 && i < x->records.n_images; i++)
                r = collect_folder(folders, x->records.images[i].path, true, err);
        for (size_t i = 0; r == 0 && i < x->records.n_vms; i++)
                if (x->records.vms[i].directory)
                        r = collect_folder(folders, x->records.vms[i].directory, false, err);
        json_object_foreach(folders, folder, unused)
        {
                if (r == 0)
                        r = examine_folder(x, folder, err);
        }
        for (size_t i = 0; r == 0 && i < x->records.n_vms; i++)
                r = examine_memories(x, &x->records.vms[i], err);
        return r;
}
