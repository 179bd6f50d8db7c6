/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/images.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/file.h"
#include "chain/chain.h"
#include "vhdd/daemon/merge_job.h"

void image_chain_done(struct image_chain *chain)
{
        image_rows_free(chain->rows, chain->n);
        *chain = (struct image_chain){0};
}

int image_chain_get(
        struct catalog *catalog, const char *path, struct image_chain *ret, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain chain = {0};

        chain.rows = calloc(CHAIN_MAX_DEPTH, sizeof(chain.rows[0]));
        if (!chain.rows)
                return fail(err, ENOMEM, "no memory for a chain of images");
        for (const char *next = path; next; next = chain.rows[chain.n - 1].parent) {
                int r;

                if (chain.n == CHAIN_MAX_DEPTH)
                        return fail(err, EUCLEAN,
                                "the catalog's chain of '%s' has more than %u images", path,
                                CHAIN_MAX_DEPTH);
                r = catalog_image_find(catalog, next, &chain.rows[chain.n], err);
                if (r < 0)
                        return fail_prefix(err, r, "the chain of '%s'", path);
                chain.n++;
        }
        *ret = chain;
        chain = (struct image_chain){0};
        return 0;
}

int images_put_layers(struct catalog *catalog, const struct resolved_layer *layers, size_t n,
        bool leaf_made_by_us, struct error *err)
{
        /* The root first: a row names a parent that is there. */
        for (size_t i = n; i-- > 0;) {
                const struct resolved_layer *layer = &layers[i];
                struct image_row old = {0};
                struct image_row row = {
                        .path = layer->path,
                        .device = layer->device,
                        .inode = layer->inode,
                        .birth_ns = layer->birth_ns,
                        .parent = i + 1 < n ? layers[i + 1].path : NULL,
                        .made_by_us = i == 0 && leaf_made_by_us,
                        .state = IMAGE_IN_USE,
                };
                int r = catalog_image_find(catalog, layer->path, &old, NULL);

                memcpy(row.uuid, layer->uuid, sizeof(row.uuid));
                snprintf(row.format, sizeof(row.format), "%s", layer->format);
                if (r == 0) {
                        /* What is known of it stays; only one that lay aside is used again. */
                        row.made_by_us = old.made_by_us;
                        row.sealed_size = old.sealed_size;
                        row.sealed_mtime_ns = old.sealed_mtime_ns;
                        if (strcmp(old.state, IMAGE_DETACHED) != 0)
                                memcpy(row.state, old.state, sizeof(row.state));
                }
                image_row_done(&old);
                r = catalog_image_put(catalog, &row, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

int image_put_child(struct catalog *catalog, const char *path, const uint8_t uuid[16],
        const char *parent, struct error *err)
{
        struct image_row row = {
                .path = (char *)path,
                .parent = (char *)parent,
                .format = "vhd",
                .made_by_us = true,
                .state = IMAGE_IN_USE,
        };
        struct statx stat;

        memcpy(row.uuid, uuid, sizeof(row.uuid));
        if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &stat) < 0)
                return fail_os(err, errno, "cannot look at the new image '%s'", path);
        row.device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
        row.inode = stat.stx_ino;
        if (stat.stx_mask & STATX_BTIME)
                row.birth_ns = stat.stx_btime.tv_sec * 1000000000 + stat.stx_btime.tv_nsec;
        return catalog_image_put(catalog, &row, err);
}

/* ---- who has it ---- */

static bool is_same(const struct image_row *row, const struct resolved_layer *layer)
{
        if (strcmp(row->path, layer->path) == 0)
                return true;
        return row->device == layer->device && row->inode == layer->inode && row->device != 0;
}

/* A sentence that names the disk whose leaf @row is. 0: there is none. */
static int refuse_leaf(struct catalog *catalog, const struct image_row *row,
        const struct resolved_layer *layer, bool also_readers, struct error *err)
{
        struct disk_row disk = {0};
        struct vm_row vm = {0};
        int r = catalog_disk_find_file(catalog, row->path, &disk, err);

        if (r == -ENOENT)
                return 0;
        if (r == 0 && (!disk.read_only || also_readers)) {
                r = catalog_vm_find(catalog, disk.vm, &vm, err);
                if (r == 0)
                        r = fail(err, EBUSY, "'%s' is in use: it is disk '%s' of vm '%s'",
                                layer->path, disk.name, vm.name);
        }
        disk_row_done(&disk);
        vm_row_done(&vm);
        return r;
}

/* "snapshot 'S' of vm 'V'", whosever it is. */
static void describe_snapshot(struct catalog *catalog, const char *id, char *ret, size_t size)
{
        struct vm_row *vms = NULL;
        size_t n = 0;

        snprintf(ret, size, "snapshot %s", id);
        if (catalog_vm_list(catalog, &vms, &n, NULL) < 0)
                return;
        for (size_t i = 0; i < n; i++) {
                struct snapshot_row row = {0};

                if (catalog_snapshot_find(catalog, vms[i].id, id, &row, NULL) == 0)
                        snprintf(ret, size, "snapshot '%s' of vm '%s'", row.name, vms[i].name);
                snapshot_row_done(&row);
        }
        vm_rows_free(vms, n);
}

static int refuse_frozen(struct catalog *catalog, const struct image_row *row,
        const struct resolved_layer *layer, struct error *err)
{
        struct snapshot_disk_row *disks = NULL;
        char who[320];
        size_t n = 0;
        int r = catalog_snapshot_disk_list_file(catalog, row->path, &disks, &n, err);

        if (r == 0 && n > 0) {
                describe_snapshot(catalog, disks[0].snapshot, who, sizeof(who));
                r = fail(err, EBUSY, "'%s' is in use: %s has it frozen", layer->path, who);
        }
        snapshot_disk_rows_free(disks, n);
        return r;
}

static int refuse_stood_on(struct catalog *catalog, const struct image_row *row,
        const struct resolved_layer *layer, struct error *err)
{
        struct image_row *children = NULL;
        size_t n = 0;
        int r = catalog_image_children(catalog, row->path, &children, &n, err);

        if (r == 0 && n > 0)
                r = fail(err, EBUSY, "'%s' is in use: %zu image%s on it, '%s' for one", layer->path,
                        n, n == 1 ? " stands" : "s stand", children[0].path);
        image_rows_free(children, n);
        return r;
}

static int refuse_row(struct catalog *catalog, const char *vm, const struct image_row *row,
        const struct resolved_layer *layer, bool is_leaf, bool writable, struct error *err)
{
        bool held = false;
        int r;

        if (strcmp(row->state, IMAGE_DISCARDED) == 0)
                return fail(err, EBUSY, "'%s' is in use: it is kept for an undo", layer->path);
        r = merge_jobs_hold(catalog, vm, row->path, &held, err);
        if (r == 0 && held)
                r = fail(err, EBUSY, "'%s' is in use: it is being merged", layer->path);
        if (r < 0)
                return r;
        /* Below a disk that comes back it is as good a parent as it was when the disk left. */
        if (strcmp(row->state, IMAGE_HIDDEN) == 0 && is_leaf)
                return fail(err, EBUSY,
                        "'%s' is in use: it is what a deleted snapshot left, and waits for a merge",
                        layer->path);
        r = refuse_leaf(catalog, row, layer, is_leaf && writable, err);
        if (r < 0 || !is_leaf || !writable)
                return r;
        r = refuse_frozen(catalog, row, layer, err);
        if (r < 0)
                return r;
        return refuse_stood_on(catalog, row, layer, err);
}

int image_refuse_kept(struct catalog *catalog, const struct image_row *row, struct error *err)
{
        struct resolved_layer layer = {.path = row->path}; /* lent */
        int r = refuse_frozen(catalog, row, &layer, err);

        return r == 0 ? refuse_stood_on(catalog, row, &layer, err) : r;
}

int images_refuse_used(struct catalog *catalog, const char *vm, const struct resolved_layer *layers,
        size_t n, bool writable, struct error *err)
{
        struct image_row *rows = NULL;
        size_t n_rows = 0;
        int r = catalog_image_list(catalog, NULL, &rows, &n_rows, err);

        for (size_t i = 0; r == 0 && i < n_rows; i++)
                for (size_t k = 0; r == 0 && k < n; k++)
                        if (is_same(&rows[i], &layers[k]))
                                r = refuse_row(
                                        catalog, vm, &rows[i], &layers[k], k == 0, writable, err);
        image_rows_free(rows, n_rows);
        return r;
}

void image_seal_warning(const struct image_row *row, char *ret)
{
        struct stat st;

        ret[0] = '\0';
        if (row->sealed_mtime_ns == 0 || stat(row->path, &st) < 0)
                return;
        if ((uint64_t)st.st_size != row->sealed_size ||
                (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec !=
                        row->sealed_mtime_ns)
                snprintf(ret, ERROR_MESSAGE_MAX,
                        "'%s' was changed after it was frozen: what stands on it may read wrong data",
                        row->path);
}

/* ---- giving up ---- */

int image_is_needed(
        struct catalog *catalog, const struct image_row *row, bool *ret, struct error *err)
{
        struct snapshot_disk_row *disks = NULL;
        struct image_row *children = NULL;
        struct disk_row disk = {0};
        size_t n_disks = 0, n_children = 0;
        int r;

        *ret = true;
        if (strcmp(row->state, IMAGE_DISCARDED) == 0 || strcmp(row->state, IMAGE_DETACHED) == 0)
                return 0;
        r = catalog_disk_find_file(catalog, row->path, &disk, err);
        disk_row_done(&disk);
        if (r != -ENOENT)
                return r;
        r = catalog_snapshot_disk_list_file(catalog, row->path, &disks, &n_disks, err);
        if (r == 0)
                r = catalog_image_children(catalog, row->path, &children, &n_children, err);
        snapshot_disk_rows_free(disks, n_disks);
        image_rows_free(children, n_children);
        if (r == 0)
                *ret = n_disks > 0 || n_children > 0;
        return r;
}

static int append_path(json_t *list, const char *path, struct error *err)
{
        if (json_array_append_new(list, json_string(path)) < 0)
                return fail(err, ENOMEM, "no memory for the name of '%s'", path);
        return 0;
}

/* Others stand on it as well: when they are fewer it is merged into, or goes. */
static int has_other_children(
        struct catalog *catalog, const struct image_row *row, bool *ret, struct error *err)
{
        struct image_row *children = NULL;
        size_t n = 0;
        int r = catalog_image_children(catalog, row->path, &children, &n, err);

        image_rows_free(children, n);
        *ret = n > 1;
        return r;
}

/* Does @path stand on something that a snapshot, an undo or a merge may want to remove, or write to? */
static int stands_on_ours(struct catalog *catalog, const char *path, bool *ret, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain chain = {0};
        int r = image_chain_get(catalog, path, &chain, err);

        *ret = false;
        for (size_t i = 1; r == 0 && i < chain.n && !*ret; i++) {
                struct snapshot_disk_row *disks = NULL;
                size_t n = 0;

                r = catalog_snapshot_disk_list_file(catalog, chain.rows[i].path, &disks, &n, err);
                snapshot_disk_rows_free(disks, n);
                *ret = n > 0 || chain.rows[i].made_by_us ||
                        strcmp(chain.rows[i].state, IMAGE_IN_USE) != 0;
                if (r == 0 && !*ret)
                        r = has_other_children(catalog, &chain.rows[i], ret, err);
        }
        return r;
}

/* The user's file, on images of ours: these stay as long as it, whoever else is done with them. */
static int keep_as_detached(struct catalog *catalog, struct image_row *row, struct error *err)
{
        snprintf(row->state, sizeof(row->state), IMAGE_DETACHED);
        return catalog_image_update(catalog, row, err);
}

static int give_up(
        struct catalog *catalog, struct image_row *row, bool *ret_goes, struct error *err)
{
        bool ours = false;
        int r = row->made_by_us ? 0 : stands_on_ours(catalog, row->path, &ours, err);

        *ret_goes = !ours;
        if (r < 0)
                return r;
        return ours ? keep_as_detached(catalog, row, err)
                    : catalog_image_delete(catalog, row->path, err);
}

/* Who would lose what he reads, with the file, and is not in @files himself, makes it the user's. */
static int ask_strangers(
        struct strangers *strangers, struct image_row *row, const json_t *files, struct error *err)
{
        _cleanup_free_ char *who = NULL;
        int r = strangers && row->made_by_us ? strangers_find(strangers, row, files, &who, err) : 0;

        if (r < 0 || !who)
                return r;
        row->made_by_us = false;
        broker_log(strangers->broker, BROKER_LOG_WARNING, NULL,
                "'%s' is kept: '%s' stands on it, which is no vm's", row->path, who);
        return 0;
}

static int release_one(struct catalog *catalog, struct strangers *strangers, const char *path,
        json_t *files, json_t *kept, struct error *err)
{
        _cleanup_free_ char *next = strdup(path);
        bool named = true; /* by the caller: others are only told of when they go */

        if (!next)
                return fail(err, ENOMEM, "no memory for a path");
        while (next) {
                struct image_row row = {0};
                bool needed = true, goes = false, was_ours;
                int r = catalog_image_find(catalog, next, &row, err);

                if (r == -ENOENT) {
                        error_clear(err);
                        return 0;
                }
                was_ours = row.made_by_us;
                if (r == 0)
                        r = image_is_needed(catalog, &row, &needed, err);
                if (r == 0 && !needed)
                        r = merge_jobs_hold(catalog, NULL, row.path, &needed, err);
                if (r == 0 && !needed)
                        r = ask_strangers(strangers, &row, files, err);
                if (r == 0 && !needed) {
                        r = give_up(catalog, &row, &goes, err);
                        if (r == 0 && row.made_by_us)
                                r = append_path(files, row.path, err);
                        else if (r == 0 && (named || was_ours))
                                r = append_path(kept, row.path, err);
                }
                free(next);
                next = r == 0 && goes ? TAKE_PTR(row.parent) : NULL;
                named = false;
                image_row_done(&row);
                if (r < 0)
                        return r;
        }
        return 0;
}

int images_release(struct strangers *strangers, const char *const *paths, size_t n_paths,
        json_t *files, json_t *kept, struct error *err)
{
        for (size_t i = 0; i < n_paths; i++) {
                int r = release_one(
                        strangers->broker->catalog, strangers, paths[i], files, kept, err);

                if (r < 0)
                        return r;
        }
        return 0;
}

int image_detach(struct catalog *catalog, const char *path, struct error *err)
{
        json_auto_t *files = json_array(), *kept = json_array();
        struct image_row row = {0};
        bool needed = true, ours = false;
        int r = catalog_image_find(catalog, path, &row, err);

        if (r == 0)
                r = image_is_needed(catalog, &row, &needed, err);
        if (r == 0 && !needed)
                r = stands_on_ours(catalog, path, &ours, err);
        if (r == 0) {
                /* The user's from now on, also when a snapshot has it frozen: what was said to be
                 * kept is not removed with the snapshot. */
                row.made_by_us = false;
                r = !needed && ours ? keep_as_detached(catalog, &row, err)
                                    : catalog_image_update(catalog, &row, err);
        }
        if (r == 0 && !needed && !ours)
                r = release_one(catalog, NULL, path, files, kept, err);
        image_row_done(&row);
        return r;
}

uint64_t file_allocated(const char *path)
{
        struct stat st;

        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
                return 0;
        return (uint64_t)st.st_blocks * 512;
}
