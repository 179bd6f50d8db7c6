/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl tree - which disk stands on which, what is broken, and what mends it. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/quote.h"
#include "base/size.h"
#include "chain/tree.h"
#include "vhdd/ctl/branches.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/output.h"

#define IMAGE_ROOT_MAX 4096

struct drawing {
        const struct ctl *ctl;
        const struct tree *tree;
        struct table *table;
        size_t skip; /* bytes of every path that need not be shown: the one folder's */
        uint64_t n_trees, n_tips, n_broken;
};

static const char *shown_name(const struct drawing *drawing, const struct tree_node *node)
{
        size_t skip = drawing->skip;

        if (node->outside || !skip || strncmp(node->path, drawing->ctl->operands[0], skip) != 0)
                return node->path;
        return node->path + skip + strspn(node->path + skip, "/");
}

/* Where there is one folder, its name need not stand before each file. */
static size_t prefix_to_skip(const struct ctl *ctl)
{
        struct stat st;

        if (ctl->n_operands != 1 || stat(ctl->operands[0], &st) < 0 || !S_ISDIR(st.st_mode))
                return 0;
        return strlen(ctl->operands[0]);
}

static const char *date_of(int64_t unix_seconds, char text[TIME_TEXT_MAX])
{
        time_to_text(unix_seconds, text);
        text[strcspn(text, "T")] = '\0';
        return text;
}

static void add_word(char *state, size_t size, const char *word)
{
        size_t used = strlen(state);

        snprintf(state + used, size - used, "%s%s", used ? ", " : "", word);
}

/* Only what somebody who looks for a disk wants to know; --json and info tell the rest. */
static void describe_state(const struct tree_node *node, char *state, size_t size)
{
        char root[IMAGE_ROOT_MAX];

        state[0] = '\0';
        if (node->broken_at)
                add_word(state, size, node->broken_at == node ? "BROKEN" : "broken below");
        else if (tree_is_tip(node))
                add_word(state, size, "tip");
        if (node->problems)
                add_word(state, size, "damaged");
        if (node->saved_state)
                add_word(state, size, "saved state");
        if (node->merging)
                add_word(state, size, "merge unfinished");
        else if (node->hidden)
                add_word(state, size, "hidden");
        if (node->same_id)
                add_word(state, size, "same id as another");
        if (node->outside)
                add_word(state, size, "elsewhere");
        if (node->parent && node->parent->readable && node->size > node->parent->size)
                add_word(state, size, "larger than its parent");
        if (!node->broken_at && tree_is_tip(node) &&
                tree_image_root(node, root, sizeof(root)) == 0 && root[0]) {
                char need[IMAGE_ROOT_MAX + 32];

                snprintf(need, sizeof(need), "needs --image-root %s", root);
                add_word(state, size, need);
        }
}

static void draw_row(void *opaque, const void *drawn, const char *branch)
{
        struct drawing *drawing = opaque;
        const struct tree_node *node = drawn;
        char size[SIZE_TEXT_MAX], allocated[SIZE_TEXT_MAX], date[TIME_TEXT_MAX];
        char state[IMAGE_ROOT_MAX + 128];

        table_cell(drawing->table, "%s%s", branch, shown_name(drawing, node));
        table_cell(drawing->table, "%s",
                node->readable ? vhd_type_to_string(node->type) : "unreadable");
        table_cell(drawing->table, "%s", node->readable ? size_to_text(node->size, size) : "");
        table_cell(drawing->table, "%s", size_to_text(node->stat.allocated, allocated));
        table_cell(drawing->table, "%s", node->readable ? date_of(node->created, date) : "");
        table_cell(
                drawing->table, "%s", node->stat.mtime_s ? date_of(node->stat.mtime_s, date) : "");
        describe_state(node, state, sizeof(state));
        table_cell(drawing->table, "%s", state);
        drawing->n_tips += tree_is_tip(node);
        drawing->n_broken += node->error.code != 0;
}

static const void *first_child(const void *node)
{
        return ((const struct tree_node *)node)->children;
}

static const void *next_sibling(const void *node)
{
        return ((const struct tree_node *)node)->next_sibling;
}

static const void *parent_of(const void *node)
{
        return ((const struct tree_node *)node)->parent;
}

static void print_text(const char *before, const char *text, const char *behind)
{
        _cleanup_free_ char *safe = text_safe(text);

        printf("%s%s%s", before, safe, behind);
}

/* The command that mends it, ready to be pasted. */
static void print_cure(const struct drawing *drawing, const struct error *err)
{
        if (!err->hint[0])
                return;
        if (strncmp(err->hint, "--image-root", 12) == 0) {
                print_text("    vhdctl tree ", err->hint, "");
                for (size_t i = 0; i < drawing->ctl->n_operands; i++)
                        print_text(" '", drawing->ctl->operands[i], "'");
                printf("\n");
                return;
        }
        print_text("    ", err->hint, "\n");
}

static void print_broken(const struct drawing *drawing)
{
        for (size_t i = 0; i < drawing->tree->n_nodes; i++) {
                const struct tree_node *node = drawing->tree->nodes[i];

                if (!node->error.code)
                        continue;
                print_text("\n", shown_name(drawing, node), ": broken\n");
                print_text("    ", node->error.message, "\n");
                print_cure(drawing, &node->error);
        }
}

/* Each ring once, from its first path. */
static void print_copies(const struct drawing *drawing)
{
        for (size_t i = 0; i < drawing->tree->n_nodes; i++) {
                const struct tree_node *node = drawing->tree->nodes[i];
                const struct tree_node *other = node->same_id;
                bool first = other != NULL;

                for (; other && other != node; other = other->same_id)
                        first &= strcmp(node->path, other->path) < 0;
                if (!first)
                        continue;
                print_text("\n", shown_name(drawing, node), " has the same id as");
                for (other = node->same_id; other != node; other = other->same_id)
                        print_text(" ", shown_name(drawing, other), "");
                printf(": copies; children cannot tell them apart\n");
        }
}

/* A merge that was cut off: the child through which it goes on stands on the marked image. */
static void print_unfinished(const struct drawing *drawing)
{
        for (size_t i = 0; i < drawing->tree->n_nodes; i++) {
                const struct tree_node *node = drawing->tree->nodes[i];
                char quoted[QUOTE_TEXT_MAX];

                if (!node->merging || node->alias)
                        continue;
                print_text("\n", shown_name(drawing, node), ": a merge into it was cut off\n");
                if (node->n_children == 1) {
                        shell_quote(node->children->path, quoted, sizeof(quoted));
                        print_text("    vhdctl merge ", quoted, "\n");
                } else {
                        printf("    vhdctl merge CHILD goes on, CHILD being the image that stands on "
                               "it\n");
                }
        }
}

static void print_names(const struct drawing *drawing)
{
        for (size_t i = 0; i < drawing->tree->n_nodes; i++) {
                const struct tree_node *node = drawing->tree->nodes[i];

                if (!node->alias)
                        continue;
                print_text("\n", shown_name(drawing, node), " is another name of ");
                print_text("", shown_name(drawing, node->alias), " (hard link)\n");
        }
}

static void print_forest(const struct ctl *ctl, const struct tree *tree)
{
        static const char *const columns[] = {
                "IMAGE", "TYPE", ">SIZE", ">ON DISK", "CREATED", "CHANGED", "STATE", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        struct drawing drawing = {
                .ctl = ctl,
                .tree = tree,
                .table = table,
                .skip = prefix_to_skip(ctl),
        };
        const struct branches branches = {first_child, next_sibling, parent_of, draw_row, &drawing};

        for (const struct tree_node *root = tree->roots; root; root = tree_next_root(root)) {
                branches_draw(&branches, root);
                drawing.n_trees++;
        }
        table_print(table, stdout);
        print_broken(&drawing);
        print_unfinished(&drawing);
        print_copies(&drawing);
        print_names(&drawing);
        printf("%s%" PRIu64 " tree%s, %zu image%s, %" PRIu64 " tip%s, %" PRIu64 " broken, %" PRIu64
               " other file%s\n",
                tree->n_nodes ? "\n" : "", drawing.n_trees, drawing.n_trees == 1 ? "" : "s",
                tree->n_nodes, tree->n_nodes == 1 ? "" : "s", drawing.n_tips,
                drawing.n_tips == 1 ? "" : "s", drawing.n_broken, tree->n_other,
                tree->n_other == 1 ? "" : "s");
}

/* --- JSON --- */

static json_t *problems_to_json(uint32_t problems)
{
        json_t *list = json_array();

        for (unsigned bit = 0; bit < 32; bit++)
                if (problems & UINT32_C(1) << bit)
                        json_array_append_new(list,
                                json_text(vhd_problem_to_string(
                                        (enum vhd_problem)(UINT32_C(1) << bit))));
        return list;
}

static json_t *parent_to_json(const struct tree_node *node)
{
        json_t *object;

        if (node->type != VHD_TYPE_DIFFERENCING)
                return json_null();
        object = json_object();
        json_object_set_new(
                object, "filename", node->parent ? json_text(node->parent->path) : json_null());
        json_object_set_new(object, "uuid", json_uuid(node->parent_id));
        json_object_set_new(object, "says", json_text(node->parent_says ? node->parent_says : ""));
        return object;
}

static json_t *children_to_json(const struct tree_node *node)
{
        json_t *list = json_array();

        for (const struct tree_node *child = node->children; child; child = child->next_sibling)
                json_array_append_new(list, json_text(child->path));
        return list;
}

static json_t *copies_to_json(const struct tree_node *node)
{
        json_t *list = json_array();

        for (const struct tree_node *other = node->same_id; other && other != node;
                other = other->same_id)
                json_array_append_new(list, json_text(other->path));
        return list;
}

static json_t *image_root_to_json(const struct tree_node *node)
{
        char root[IMAGE_ROOT_MAX];

        if (node->broken_at || tree_image_root(node, root, sizeof(root)) < 0 || !root[0])
                return json_null();
        return json_text(root);
}

static void describe_image(json_t *object, const struct tree_node *node)
{
        json_object_set_new(object, "format", json_text("vhd"));
        json_object_set_new(object, "type", json_text(vhd_type_to_string(node->type)));
        json_object_set_new(object, "virtual-size", json_size(node->size));
        if (node->block_size)
                json_object_set_new(object, "block-size", json_size(node->block_size));
        json_object_set_new(object, "uuid", json_uuid(node->id));
        json_object_set_new(object, "creator-app", json_text(node->creator_app));
        json_object_set_new(object, "created", json_time(node->created));
        json_object_set_new(object, "parent", parent_to_json(node));
        json_object_set_new(object, "children", children_to_json(node));
        json_object_set_new(object, "depth", json_integer(tree_depth(node)));
        json_object_set_new(object, "tip", json_boolean(tree_is_tip(node)));
        json_object_set_new(object, "hidden", json_boolean(node->hidden));
        json_object_set_new(object, "merge-unfinished", json_boolean(node->merging));
        json_object_set_new(object, "saved-state", json_boolean(node->saved_state));
        json_object_set_new(object, "problems", problems_to_json(node->problems));
        json_object_set_new(object, "same-id", copies_to_json(node));
        json_object_set_new(object, "image-root", image_root_to_json(node));
}

static json_t *node_to_json(const struct tree_node *node)
{
        json_t *object = json_object();

        json_object_set_new(object, "filename", json_text(node->path));
        json_object_set_new(object, "readable", json_boolean(node->readable));
        if (node->readable)
                describe_image(object, node);
        json_object_set_new(object, "file-size", json_size(node->stat.size));
        json_object_set_new(object, "allocated-size", json_size(node->stat.allocated));
        json_object_set_new(object, "changed", json_time(node->stat.mtime_s));
        json_object_set_new(object, "elsewhere", json_boolean(node->outside));
        json_object_set_new(
                object, "link-to", node->alias ? json_text(node->alias->path) : json_null());
        json_object_set_new(
                object, "error", node->error.code ? error_to_json(&node->error) : json_null());
        json_object_set_new(object, "broken-at",
                node->broken_at ? json_text(node->broken_at->path) : json_null());
        return object;
}

static void print_json(const struct tree *tree)
{
        json_t *object = json_object(), *images = json_array(), *roots = json_array();
        json_t *notes = json_array();

        for (size_t i = 0; i < tree->n_nodes; i++)
                json_array_append_new(images, node_to_json(tree->nodes[i]));
        for (const struct tree_node *root = tree->roots; root; root = tree_next_root(root))
                json_array_append_new(roots, json_text(root->path));
        for (size_t i = 0; i < tree->n_notes; i++)
                json_array_append_new(notes, json_text(tree->notes[i]));
        json_object_set_new(object, "images", images);
        json_object_set_new(object, "roots", roots);
        json_object_set_new(object, "other-files", json_size(tree->n_other));
        json_object_set_new(object, "notes", notes);
        json_print(object);
}

static bool is_broken(const struct tree *tree)
{
        for (size_t i = 0; i < tree->n_nodes; i++)
                if (tree->nodes[i]->error.code)
                        return true;
        return false;
}

static int run(struct ctl *ctl, struct error *err)
{
        struct locate_roots roots = {.roots = ctl->image_roots, .n_roots = ctl->n_image_roots};
        _cleanup_(tree_freep) struct tree *tree = NULL;
        int r;

        if (ctl->n_parents || ctl->format)
                return ctl_usage(ctl, "tree reads many images: it takes no --parent or --format");
        r = tree_scan((const char *const *)ctl->operands, ctl->n_operands, &roots, &tree, err);
        if (r < 0)
                return r;
        for (size_t i = 0; i < tree->n_notes; i++)
                ctl_warn(ctl, "%s", tree->notes[i]);
        if (ctl->json)
                print_json(tree);
        else
                print_forest(ctl, tree);
        return is_broken(tree) ? CTL_NO : CTL_DONE;
}

const struct command command_tree = {
        .name = "tree",
        .operands = "PATH...",
        .summary = "draw which disk stands on which, and what is broken",
        .doc = "Draw the forest that the images in PATH (files, and folders with all that is in them) "
               "are, by what their headers say: sizes, dates, tips (nobody stands on them), and for each "
               "broken link why, and the command that mends it. Exit status 1 if there is one."
               "\v"
               "Examples:\n"
               "  vhdctl tree ~/vhds\n"
               "  vhdctl tree --image-root /srv/bases 'Virtual Hard Disks' Snapshots\n"
               "  vhdctl tree --json ~/vhds",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = COMMAND_ANY_NUMBER,
        .run = run,
};
