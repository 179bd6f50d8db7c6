/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/forest.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/folders.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/snapshots.h"

#define FOLDERS_DEEP 8u

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for a folder of images");
}

void forest_done(struct forest *forest)
{
        for (size_t i = 0; i < forest->n; i++)
                free(forest->nodes[i].path);
        free(forest->nodes);
        *forest = (struct forest){0};
}

/* ---- finding the files ---- */

struct search {
        const char *folder;
        json_t *paths, *notes;
};

static int note_image(void *opaque, const char *path, const char *name, struct error *err)
{
        struct search *search = opaque;

        if (!name_is_image(name))
                return 0;
        if (json_array_size(search->paths) >= FOREST_MAX_FILES)
                return fail(err, E2BIG, "more than %u images lie beneath '%s'", FOREST_MAX_FILES,
                        search->folder);
        if (json_array_append_new(search->paths, json_string(path)) < 0)
                note_add(search->notes, "'%s' is left out: its name is no UTF-8", path);
        return 0;
}

/* ---- the trees ---- */

static size_t find_node(const struct forest *forest, const char *path)
{
        for (size_t i = 0; i < forest->n; i++)
                if (strcmp(forest->nodes[i].path, path) == 0)
                        return i;
        return FOREST_NO_NODE;
}

static int add_node(struct forest *forest, const struct resolved_layer *layer, size_t parent,
        size_t *ret, struct error *err)
{
        struct forest_node *nodes =
                reallocarray(forest->nodes, forest->n + 1, sizeof(*forest->nodes));
        struct forest_node *node = nodes ? &nodes[forest->n] : NULL;
        struct stat st;

        if (!nodes)
                return no_memory(err);
        forest->nodes = nodes;
        *node = (struct forest_node){
                .path = strdup(layer->path),
                .device = layer->device,
                .inode = layer->inode,
                .birth_ns = layer->birth_ns,
                .size = layer->size,
                .parent = parent,
                .root = parent == FOREST_NO_NODE ? forest->n : nodes[parent].root,
        };
        if (!node->path)
                return no_memory(err);
        memcpy(node->uuid, layer->uuid, sizeof(node->uuid));
        memcpy(node->format, layer->format, sizeof(node->format));
        if (stat(layer->path, &st) == 0)
                node->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        if (parent != FOREST_NO_NODE)
                nodes[parent].n_children++;
        *ret = forest->n++;
        return 0;
}

/* From the root upward: what is there already is shared with another chain. */
static int add_chain(
        struct forest *forest, const struct resolved_layer *layers, size_t n, struct error *err)
{
        size_t parent = FOREST_NO_NODE;

        for (size_t i = n; i-- > 0;) {
                size_t node = find_node(forest, layers[i].path);
                int r = node == FOREST_NO_NODE ? add_node(forest, &layers[i], parent, &node, err)
                                               : 0;

                if (r < 0)
                        return r;
                parent = node;
        }
        return 0;
}

static int compare_paths(const void *a, const void *b)
{
        return strcmp(
                json_string_value(*(json_t *const *)a), json_string_value(*(json_t *const *)b));
}

/* By name, so that numbers stay the same from one call to the next. */
static int sort_paths(json_t *paths, struct error *err)
{
        size_t n = json_array_size(paths);
        _cleanup_free_ json_t **items = calloc(n + 1, sizeof(*items));

        if (!items)
                return no_memory(err);
        for (size_t i = 0; i < n; i++)
                items[i] = json_incref(json_array_get(paths, i));
        qsort(items, n, sizeof(*items), compare_paths);
        for (size_t i = 0; i < n; i++)
                json_array_set_new(paths, i, items[i]);
        return 0;
}

static int resolve_one(const struct doctor *reader, const char *directory, const char *path,
        struct forest *forest, json_t *notes, struct error *err)
{
        _cleanup_free_ char **roots = calloc(reader->n_roots + 1, sizeof(*roots));
        struct resolved_layer *layers = NULL;
        struct error why = ERROR_INIT;
        size_t n = 0;
        int r;

        if (!roots)
                return no_memory(err);
        roots[0] = (char *)directory;
        for (size_t i = 0; i < reader->n_roots; i++)
                roots[i + 1] = reader->roots[i];
        r = reader->resolve(
                reader->opaque, path, "vhd", roots, reader->n_roots + 1, &layers, &n, &why);
        if (r < 0) {
                note_add(notes, "'%s' is left out: %s", path, why.message);
                error_set_file(&why, path);
                if (forest->n_left_out++ == 0)
                        forest->why = why;
                return 0;
        }
        r = add_chain(forest, layers, n, err);
        resolved_layers_free(layers, n);
        return r;
}

int forest_scan(const struct doctor *reader, const char *directory, struct forest *ret,
        json_t *notes, struct error *err)
{
        _cleanup_(forest_done) struct forest forest = {0};
        json_auto_t *paths = json_array();
        struct search search = {.folder = directory, .paths = paths, .notes = notes};
        const struct folder_walk walk = {.opaque = &search, .file = note_image};
        json_t *path;
        size_t i;
        int r = paths ? folder_walk(directory, FOLDERS_DEEP, &walk, err) : no_memory(err);

        if (r == 0)
                r = sort_paths(paths, err);
        json_array_foreach(paths, i, path)
        {
                const char *text = json_string_value(path);

                if (r == 0 && find_node(&forest, text) == FOREST_NO_NODE)
                        r = resolve_one(reader, directory, text, &forest, notes, err);
        }
        if (r < 0)
                return r;
        *ret = forest;
        forest = (struct forest){0};
        return 0;
}

/* ---- choosing one ---- */

static json_t *tree_to_json(const struct forest *forest, size_t root, unsigned number)
{
        json_t *tips = json_array();
        json_int_t n = 0;

        for (size_t i = 0; i < forest->n; i++) {
                if (forest->nodes[i].root != root)
                        continue;
                n++;
                if (forest->nodes[i].n_children == 0)
                        json_array_append_new(tips, json_string(forest->nodes[i].path));
        }
        return json_pack("{s:i, s:s, s:I, s:I, s:o}", "number", (int)number, "root",
                forest->nodes[root].path, "size", (json_int_t)forest->nodes[root].size, "images", n,
                "tips", tips);
}

json_t *forest_to_json(const struct forest *forest)
{
        json_t *trees = json_array();
        unsigned number = 0;

        for (size_t i = 0; i < forest->n; i++)
                if (forest->nodes[i].root == i)
                        json_array_append_new(trees, tree_to_json(forest, i, ++number));
        return trees;
}

static const char *bare_name(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? slash + 1 : path;
}

static bool is_meant(const struct forest_node *node, const char *only)
{
        return strcmp(node->path, only) == 0 || strcmp(bare_name(node->path), only) == 0;
}

static int refuse_several(const struct forest *forest, struct error *err)
{
        char list[ERROR_MESSAGE_MAX / 2] = "";
        size_t used = 0;
        unsigned number = 0;

        for (size_t i = 0; i < forest->n; i++) {
                int n;

                if (forest->nodes[i].root != i)
                        continue;
                number++;
                if (used >= sizeof(list))
                        continue;
                n = snprintf(list + used, sizeof(list) - used, "%s%u: '%s'", used ? ", " : "",
                        number, bare_name(forest->nodes[i].path));
                used += n > 0 ? (size_t)n : 0;
        }
        fail(err, EINVAL, "there are %u trees of images, and a vm is made of one: %s", number,
                list);
        error_set_hint(err, "choose one with --only NUMBER or --only FILE");
        return -EINVAL;
}

int forest_choose(
        const struct forest *forest, const char *only, size_t *ret_root, struct error *err)
{
        size_t root = FOREST_NO_NODE;
        unsigned number = 0;
        char text[16];

        for (size_t i = 0; i < forest->n; i++) {
                const struct forest_node *node = &forest->nodes[i];
                bool meant = !only || is_meant(node, only);

                if (node->root == i) {
                        snprintf(text, sizeof(text), "%u", ++number);
                        meant |= only && strcmp(text, only) == 0;
                }
                if (!meant || node->root == root)
                        continue;
                if (root != FOREST_NO_NODE)
                        return refuse_several(forest, err);
                root = node->root;
        }
        if (root == FOREST_NO_NODE)
                return only ? fail(err, ENOENT, "no tree of images here is called '%s'", only)
                            : fail(err, ENOENT, "no image was found that can be used");
        *ret_root = root;
        return 0;
}

/* ---- a vm out of one ---- */

struct planting {
        const struct forest *forest;
        size_t root, leaf;
        struct sidecar *rows;
        char (*ids)[UUID_TEXT_SIZE]; /* of each node's snapshot */
        json_t *notes;
};

static void new_id(char ret[UUID_TEXT_SIZE])
{
        uint8_t id[16];

        uuid_random(id);
        uuid_format(id, ret);
}

static size_t find_leaf(const struct forest *forest, size_t root, unsigned *ret_tips)
{
        size_t leaf = FOREST_NO_NODE;

        *ret_tips = 0;
        for (size_t i = 0; i < forest->n; i++) {
                const struct forest_node *node = &forest->nodes[i];

                if (node->root != root || node->n_children > 0)
                        continue;
                (*ret_tips)++;
                if (leaf == FOREST_NO_NODE || node->mtime_ns > forest->nodes[leaf].mtime_ns)
                        leaf = i;
        }
        return leaf;
}

/* "base", or, of a file that a snapshot made, "base 2026-11-22 15:47": its bare name says nothing. */
static int label_of(const struct forest_node *node, char **ret, struct error *err)
{
        _cleanup_free_ char *name = NULL;
        const char *bare = bare_name(node->path), *dot = strrchr(bare, '.');
        time_t seconds = (time_t)(node->mtime_ns / 1000000000);
        struct tm tm;
        char date[32];
        int r = name_of_file(node->path, &name, err);

        if (r < 0)
                return r;
        if (!dot || strlen(name) == (size_t)(dot - bare)) {
                *ret = TAKE_PTR(name);
                return 0;
        }
        gmtime_r(&seconds, &tm);
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M", &tm);
        return asprintf(ret, "%.100s %s", name, date) < 0 ? no_memory(err) : 0;
}

static bool is_taken(const struct sidecar *rows, size_t n, const char *name)
{
        for (size_t i = 0; i < n; i++)
                if (rows->snapshots[i].name && strcmp(rows->snapshots[i].name, name) == 0)
                        return true;
        return false;
}

/* Cut where a character ends, so that a number has room behind it. */
static int unique_label(
        const struct sidecar *rows, size_t n, const char *label, char **ret, struct error *err)
{
        size_t length = strlen(label) > 110 ? 110 : strlen(label);

        while (length > 0 && ((unsigned char)label[length] & 0xc0) == 0x80)
                length--;
        for (unsigned number = 1;; number++) {
                _cleanup_free_ char *name = NULL;
                int k = number == 1 ? asprintf(&name, "%s", label)
                                    : asprintf(&name, "%.*s (%u)", (int)length, label, number);

                if (k < 0)
                        return no_memory(err);
                if (!is_taken(rows, n, name)) {
                        *ret = TAKE_PTR(name);
                        return 0;
                }
        }
}

static int plant_image(struct planting *p, size_t i, struct error *err)
{
        const struct forest_node *node = &p->forest->nodes[i];
        struct image_row *row = &p->rows->images[p->rows->n_images++];

        *row = (struct image_row){
                .path = strdup(node->path),
                .device = node->device,
                .inode = node->inode,
                .birth_ns = node->birth_ns,
                .state = "in-use",
                .sealed_mtime_ns = i == p->leaf ? 0 : node->mtime_ns,
        };
        memcpy(row->uuid, node->uuid, sizeof(row->uuid));
        memcpy(row->format, node->format, sizeof(row->format));
        if (node->parent != FOREST_NO_NODE)
                row->parent = strdup(p->forest->nodes[node->parent].path);
        if (!row->path || (node->parent != FOREST_NO_NODE && !row->parent))
                return no_memory(err);
        if (i != p->leaf) {
                struct stat st;

                row->sealed_size = stat(node->path, &st) == 0 ? (uint64_t)st.st_size : 0;
        }
        return 0;
}

static int plant_disk(struct planting *p, struct error *err)
{
        const struct forest_node *leaf = &p->forest->nodes[p->leaf];
        struct disk_row *row = p->rows->disks = calloc(1, sizeof(*row));

        if (!row)
                return no_memory(err);
        p->rows->n_disks = 1;
        new_id(row->id);
        strcpy(row->vm, p->rows->vm.id);
        strcpy(row->kind, "vhd");
        row->controller = 1;
        row->size = leaf->size;
        row->created_us = p->rows->vm.created_us;
        row->file = strdup(leaf->path);
        if (!row->file)
                return no_memory(err);
        return name_of_file(p->forest->nodes[p->root].path, &row->name, err);
}

/* What the vm was then: this disk, on that image. */
static int plant_settings(
        struct planting *p, const struct forest_node *node, char **ret, struct error *err)
{
        struct disk_row disk = p->rows->disks[0];
        json_auto_t *settings = NULL;

        disk.file = node->path;
        disk.size = node->size;
        settings = snapshot_settings(&p->rows->vm, &disk, 1);
        *ret = settings ? json_dumps(settings, JSON_COMPACT) : NULL;
        return *ret ? 0 : no_memory(err);
}

static int plant_snapshot(struct planting *p, size_t i, struct error *err)
{
        const struct forest_node *node = &p->forest->nodes[i];
        struct snapshot_row *row = &p->rows->snapshots[p->rows->n_snapshots++];
        struct snapshot_disk_row *held = &p->rows->held[p->rows->n_held++];
        struct disk_row disk = p->rows->disks[0];
        _cleanup_free_ char *label = NULL;
        int r = label_of(node, &label, err);

        if (r == 0)
                r = unique_label(p->rows, p->rows->n_snapshots - 1, label, &row->name, err);
        if (r == 0)
                r = plant_settings(p, node, &row->settings, err);
        if (r < 0)
                return r;
        strcpy(row->id, p->ids[i]);
        strcpy(row->vm, p->rows->vm.id);
        strcpy(row->state, "committed");
        row->created_us = node->mtime_ns / 1000;
        if (node->parent != FOREST_NO_NODE)
                strcpy(row->parent, p->ids[node->parent]);
        disk.file = node->path;
        disk.size = node->size;
        *held = snapshot_disk_of(row->id, &disk, false);
        held->name = strdup(disk.name);
        held->file = strdup(node->path);
        return held->name && held->file ? 0 : no_memory(err);
}

static int plant(struct planting *p, struct error *err)
{
        const struct forest *forest = p->forest;
        const struct forest_node *leaf = &forest->nodes[p->leaf];
        int r = plant_disk(p, err);

        for (size_t i = 0; r == 0 && i < forest->n; i++)
                if (forest->nodes[i].root == p->root)
                        r = plant_image(p, i, err);
        for (size_t i = 0; r == 0 && i < forest->n; i++)
                if (forest->nodes[i].root == p->root && i != p->leaf)
                        r = plant_snapshot(p, i, err);
        if (r == 0 && leaf->parent != FOREST_NO_NODE)
                strcpy(p->rows->vm.current, p->ids[leaf->parent]);
        return r;
}

int forest_to_rows(const struct forest *forest, size_t root, const char *name, struct sidecar *ret,
        json_t *notes, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar rows = {0};
        _cleanup_free_ char(*ids)[UUID_TEXT_SIZE] = calloc(forest->n, sizeof(*ids));
        struct planting p = {
                .forest = forest, .root = root, .rows = &rows, .ids = ids, .notes = notes};
        struct timespec now;
        unsigned n_tips;
        int r;

        clock_gettime(CLOCK_REALTIME, &now);
        rows.vm.name = strdup(name);
        rows.vm.settings = strdup("{}");
        rows.images = calloc(forest->n, sizeof(*rows.images));
        rows.snapshots = calloc(forest->n, sizeof(*rows.snapshots));
        rows.held = calloc(forest->n, sizeof(*rows.held));
        if (!ids || !rows.vm.name || !rows.vm.settings || !rows.images || !rows.snapshots ||
                !rows.held)
                return no_memory(err);
        for (size_t i = 0; i < forest->n; i++)
                new_id(ids[i]);
        new_id(rows.vm.id);
        rows.vm.created_us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        p.leaf = find_leaf(forest, root, &n_tips);
        r = plant(&p, err);
        if (r < 0)
                return r;
        if (n_tips > 1)
                note_add(notes,
                        "'%s' was changed last and is the running state; the %u other tips are "
                        "snapshots",
                        forest->nodes[p.leaf].path, n_tips - 1);
        *ret = rows;
        rows = (struct sidecar){0};
        return 0;
}
