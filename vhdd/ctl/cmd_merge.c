/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl merge - an image into the one that it stands on, or a whole chain into one new file. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/size.h"
#include "chain/paths.h"
#include "chain/push.h"
#include "chain/seal.h"
#include "chain/tree.h"
#include "merge/merge.h"
#include "merge/resize.h"
#include "vhdd/ctl/conversion.h"
#include "vhdd/ctl/newfile.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/signals.h"

enum { KEY_KEEP = CTL_KEY_FIRST, KEY_INTO, KEY_OUTPUT };

struct merge_options {
        const char *into, *output;
        bool keep;
};

static const struct argp_option options[] = {
        {"keep", KEY_KEEP, NULL, 0, "CHILD stays, empty, as a child of its parent", 0},
        {"into", KEY_INTO, "FILE", 0,
                "Not into the parent: into FILE, further down, and all between goes with it", 0},
        {"output", KEY_OUTPUT, "NEW", 0, "Change nothing: make one new file of the whole chain", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct merge_options *merge = opaque;

        (void)err;
        switch (key) {
        case KEY_KEEP: merge->keep = true; return 0;
        case KEY_INTO: merge->into = arg; return 0;
        case KEY_OUTPUT: merge->output = arg; return 0;
        default: return -EINVAL;
        }
}

/* One run of the verb. Layers are counted from the root. */
struct merging {
        const struct ctl *ctl;
        struct chain *chain;
        unsigned first, last; /* that go; first - 1 stays */
        char **layers;        /* paths of those that go, and of the one that stays: [0] */
        unsigned n_layers;
        char **children; /* who stand on the last of them, and will stand on what stays */
        size_t n_children;
        struct merge_plan plan;
        uint64_t
                grows_to; /* what stays, before anything is moved; 0: it is as large as it must be */
        uint64_t grows_from, size; /* of the disk */
        bool is_empty;             /* what goes holds nothing: what stays need not be touched */
        struct progress *progress;
        struct merge_progress done;
        uint8_t id[16]; /* of what stays, afterwards */
};

static void strings_free(char **strings, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(strings[i]);
        free(strings);
}

static void forget_names(struct merging *merging)
{
        strings_free(merging->layers, merging->n_layers);
        strings_free(merging->children, merging->n_children);
        merging->layers = merging->children = NULL;
        merging->n_layers = 0;
        merging->n_children = 0;
}

static void merging_done(struct merging *merging)
{
        /* Closed in any case, and cleanly: what was moved is durable then. */
        if (merging->chain)
                ctl_chain_close(merging->chain);
        forget_names(merging);
}

static const char *destination_of(const struct merging *merging)
{
        return merging->layers[0];
}

static const char *child_of(const struct merging *merging)
{
        return merging->layers[merging->n_layers - 1];
}

/* --- what is asked for --- */

static int open_chain(struct merging *merging, struct error *err)
{
        const struct ctl *ctl = merging->ctl;
        struct chain_options chain_options;
        int r;

        ctl_chain_options(ctl, &chain_options);
        chain_options.writable = !ctl->dry_run;
        chain_options.for_merge = true;
        chain_options.force = false; /* here it speaks of seals, and damage is not merged */
        r = chain_open(ctl->operands[0], &chain_options, &merging->chain, err);
        if (r < 0)
                return r;
        if (chain_depth(merging->chain) < 2)
                return fail(err, EINVAL,
                        "'%s' stands on no other image: there is nothing to merge "
                        "it into",
                        ctl->operands[0]);
        if (!ctl->dry_run && !chain_is_writable(merging->chain))
                return fail(err, EROFS, "the chain of '%s' can only be read", ctl->operands[0]);
        return 0;
}

static bool is_layer(const struct chain *chain, unsigned layer, const struct stat *st)
{
        struct file_stat has;

        return file_stat_get(chain_layer(chain, layer)->file, &has) == 0 &&
                has.device == st->st_dev && has.inode == st->st_ino;
}

static int find_layers(struct merging *merging, struct error *err)
{
        const struct merge_options *asked = merging->ctl->options;
        struct stat st;
        unsigned into;

        merging->last = chain_depth(merging->chain) - 1;
        merging->first = merging->last;
        if (asked->into) {
                if (stat(asked->into, &st) < 0) {
                        error_set_file(err, asked->into);
                        return fail_os(err, errno, "cannot look at '%s'", asked->into);
                }
                for (into = 0; into < merging->last; into++)
                        if (is_layer(merging->chain, into, &st))
                                break;
                if (into == merging->last)
                        return fail(err, EINVAL, "'%s' does not stand on '%s'",
                                merging->ctl->operands[0], asked->into);
                merging->first = into + 1;
        }
        merging->n_layers = merging->last - merging->first + 2;
        merging->layers = calloc(merging->n_layers, sizeof(*merging->layers));
        for (unsigned i = 0; merging->layers && i < merging->n_layers; i++) {
                merging->layers[i] =
                        strdup(chain_layer_path(merging->chain, merging->first - 1 + i));
                if (!merging->layers[i])
                        return fail(err, ENOMEM, "no memory for names");
        }
        return merging->layers ? 0 : fail(err, ENOMEM, "no memory for names");
}

/* A parent that changed behind its children's back is never mixed with them. */
static int check_seals(const struct merging *merging, struct error *err)
{
        char sentence[ERROR_MESSAGE_MAX];

        for (unsigned i = 0; i < chain_depth(merging->chain) - 1 && !merging->ctl->force; i++) {
                const char *path = chain_layer_path(merging->chain, i);
                _cleanup_(image_abandonp) struct image *image = NULL;
                struct file *file = NULL;

                if (file_open(host_fs(), path, FILE_READ, &file, NULL) < 0)
                        continue;
                if (image_open(file, NULL, IMAGE_LOOSE_LOCK, &image, NULL) < 0) {
                        file_close(file);
                        continue;
                }
                seal_warning(image, sentence, sizeof(sentence));
                if (!sentence[0])
                        continue;
                fail(err, ESTALE, "refused: %s", sentence);
                error_set_file(err, path);
                error_set_hint(err,
                        "vhdctl check --deep tells what changed; --force merges all the "
                        "same");
                return -ESTALE;
        }
        return 0;
}

/* --- who stands where --- */

/* Those who stand on @path: in its folder, in CHILD's where that is another one, and beneath each
 * --image-root. */
static int list_children(const struct merging *merging, const char *path, char ***ret,
        size_t *ret_n, struct error *err)
{
        const struct ctl *ctl = merging->ctl;
        char real[PATH_TEXT_MAX], folder[PATH_TEXT_MAX], other[PATH_TEXT_MAX];
        _cleanup_free_ const char **folders = calloc(ctl->n_image_roots + 1, sizeof(*folders));
        struct locate_roots roots = {.roots = folders, .n_roots = ctl->n_image_roots};
        int r;

        if (!folders)
                return fail(err, ENOMEM, "no memory for a list of folders");
        for (size_t i = 0; i < ctl->n_image_roots; i++)
                folders[i] = ctl->image_roots[i];
        r = path_absolute(path, real, sizeof(real));
        if (r == 0) {
                path_directory(real, other, sizeof(other));
                r = path_absolute(child_of(merging), real, sizeof(real));
        }
        if (r < 0)
                return fail_os(err, -r, "cannot tell the folder of '%s'", path);
        path_directory(real, folder, sizeof(folder));
        if (strcmp(folder, other) != 0)
                folders[roots.n_roots++] = folder;
        return tree_children_of(path, &roots, ret, ret_n, err);
}

static bool is_same_file(const char *path, const struct file_stat *st)
{
        struct stat other;

        return stat(path, &other) == 0 && other.st_dev == st->device && other.st_ino == st->inode;
}

/* Does anybody but the layer above stand on @layer? A merge would change what they read. */
static int refuse_others(const struct merging *merging, unsigned layer, struct error *err)
{
        const char *path = chain_layer_path(merging->chain, layer);
        char list[ERROR_MESSAGE_MAX / 2] = "";
        char **children = NULL;
        struct file_stat above;
        size_t n = 0, n_others = 0, used = 0;
        int r = file_stat_get(chain_layer(merging->chain, layer + 1)->file, &above);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", merging->ctl->operands[0]);
        r = list_children(merging, path, &children, &n, err);
        for (size_t i = 0; i < n; i++) {
                int more;

                if (is_same_file(children[i], &above))
                        continue;
                more = used < sizeof(list) ? snprintf(list + used, sizeof(list) - used, "%s'%s'",
                                                     n_others ? ", " : "", children[i])
                                           : 0;
                used += more > 0 ? (size_t)more : 0;
                n_others++;
        }
        strings_free(children, n);
        if (r < 0 || n_others == 0)
                return r;
        if (used >= sizeof(list))
                memcpy(list + sizeof(list) - 5, " ...", 5);
        r = fail(err, EBUSY, "refused: %zu image%s on '%s' besides '%s', and would change: %s",
                n_others, n_others == 1 ? " stands" : "s stand", path,
                chain_layer_path(merging->chain, layer + 1), list);
        error_set_file(err, path);
        error_set_hint(err, "merge these first, or `vhdctl merge --output` makes a new file");
        return r;
}

/* At the end they are written to, and names are removed; better refused now than then. */
static int check_children(const struct merging *merging, struct error *err)
{
        for (size_t i = 0; i < merging->n_children; i++) {
                _cleanup_(file_closep) struct file *file = NULL;
                int r = file_open(host_fs(), merging->children[i], FILE_WRITE, &file, err);

                if (r < 0)
                        return fail_prefix(err, r,
                                "'%s' stands on '%s' and would have to be relinked",
                                merging->children[i], child_of(merging));
        }
        return 0;
}

static int check_folders(const struct merging *merging, struct error *err)
{
        const struct merge_options *asked = merging->ctl->options;
        char folder[PATH_TEXT_MAX], real[PATH_TEXT_MAX];

        for (unsigned i = asked->keep ? merging->n_layers : 1; i < merging->n_layers; i++) {
                const char *path = merging->layers[i];
                int r = path_absolute(path, real, sizeof(real));

                if (r < 0)
                        return fail_os(err, -r, "cannot tell the folder of '%s'", path);
                path_directory(real, folder, sizeof(folder));
                if (eaccess(folder, W_OK | X_OK) == 0)
                        continue;
                r = fail_os(err, errno, "'%s' could not be removed when it is empty, from '%s'",
                        path, folder);
                error_set_file(err, path);
                error_set_hint(err, "--keep leaves it there");
                return r;
        }
        return 0;
}

/* Those that a merge linked before it was cut off are linked once more: what it left beside them is completed
 * by that. */
static int add_linked(struct merging *merging, struct error *err)
{
        unsigned stays = merging->first - 1;
        struct file_stat above;
        char **found = NULL, **all;
        size_t n = 0;
        int r = file_stat_get(chain_layer(merging->chain, stays + 1)->file, &above);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", merging->ctl->operands[0]);
        r = list_children(merging, chain_layer_path(merging->chain, stays), &found, &n, err);
        if (r < 0)
                return r;
        all = reallocarray(merging->children, merging->n_children + n + 1, sizeof(*all));
        if (!all) {
                strings_free(found, n);
                return fail(err, ENOMEM, "no memory for a list of children");
        }
        merging->children = all;
        for (size_t i = 0; i < n; i++)
                if (!is_same_file(found[i], &above))
                        all[merging->n_children++] = TAKE_PTR(found[i]);
        strings_free(found, n);
        return 0;
}

static int decide(struct merging *merging, struct error *err)
{
        const struct image *stays, *child;
        bool moves_nothing, others;
        int r = find_layers(merging, err);

        if (r == 0)
                r = check_seals(merging, err);
        if (r == 0)
                r = list_children(
                        merging, child_of(merging), &merging->children, &merging->n_children, err);
        if (r == 0)
                r = merge_plan_grown(merging->chain, merging->first, merging->last, &merging->plan,
                        &merging->grows_to, err);
        if (r < 0)
                return r;
        stays = chain_layer(merging->chain, merging->first - 1);
        child = chain_layer(merging->chain, merging->last);
        memcpy(merging->id, stays->id, sizeof(merging->id));
        merging->size = child->size;
        moves_nothing = merging->plan.bytes == 0 && stays->size == child->size;
        merging->is_empty = moves_nothing && merging->n_children == 0 && !stays->merging;
        /* One that was cut off in its end may have linked some of CHILD's children already; nobody else can
         * have come to stand on it meanwhile (E12). */
        others = !merging->is_empty && !(moves_nothing && stays->merging);
        for (unsigned i = merging->first - (others ? 1 : 0); r == 0 && i < merging->last; i++)
                r = refuse_others(merging, i, err);
        if (r == 0 && stays->merging && !others)
                r = add_linked(merging, err);
        if (r == 0)
                r = check_children(merging, err);
        if (r == 0)
                r = check_folders(merging, err);
        return r;
}

/* --- a parent that is smaller than its child --- */

/* The root alone, as vhdctl resize does it: nobody has it open, and a cut leaves it as it was or larger,
 * which its only child reads the same. */
static int grow_root(
        const struct merging *merging, const char *path, bool is_raw, struct error *err)
{
        const struct chain_options chain_options = {.format = is_raw ? "raw" : "vhd"};
        const struct resize_params params = {
                .size = merging->grows_to, .dry_run = merging->ctl->dry_run};
        struct resize_report report;
        int r = params.dry_run ? 0 : seal_remove(host_fs(), path, err);

        if (r == 0)
                r = resize(path, &chain_options, &params, &report, err);
        return r < 0
                ? fail_prefix(err, r, "'%s' is larger than the image that it is to be merged into",
                          merging->ctl->operands[0])
                : 0;
}

/* Grown it is merged into as any other; so everything is looked at once more. */
static int grow_first(struct merging *merging, struct error *err)
{
        const struct image *root = chain_layer(merging->chain, 0);
        _cleanup_free_ char *path = strdup(destination_of(merging));
        bool is_raw = root->type == IMAGE_RAW;
        int r;

        if (!path)
                return fail(err, ENOMEM, "no memory for names");
        merging->grows_from = root->size;
        if (merging->ctl->dry_run)
                return grow_root(merging, path, is_raw, err);
        r = chain_close(TAKE_PTR(merging->chain), err);
        if (r == 0)
                r = grow_root(merging, path, is_raw, err);
        forget_names(merging);
        if (r == 0)
                r = open_chain(merging, err);
        if (r == 0)
                r = decide(merging, err);
        if (r == 0 && merging->grows_to)
                r = fail(err, ESTALE, "'%s' was changed meanwhile", merging->ctl->operands[0]);
        return r;
}

/* --- doing it --- */

static bool go_on(void *opaque)
{
        (void)opaque;
        return !signals_stopped();
}

static void show_progress(void *opaque, const struct merge_progress *progress)
{
        struct merging *merging = opaque;

        if (progress->bytes_done > merging->done.bytes_done)
                progress_add(merging->progress, progress->bytes_done - merging->done.bytes_done);
        merging->done = *progress;
}

static int fail_unfinished(const struct merging *merging, int r, struct error *err)
{
        if (r == -ECANCELED)
                fail(err, ECANCELED,
                        "stopped: '%s' is merged in part, and all disks read as before",
                        child_of(merging));
        error_set_file(err, child_of(merging));
        error_set_hint(err, "the same command goes on where it was");
        return r;
}

static int finish(struct merging *merging, struct merge *merge, struct error *err)
{
        _cleanup_free_ struct merge_child *children =
                calloc(merging->n_children + 1, sizeof(*children));
        int r;

        if (!children) {
                merge_free(merge);
                return fail(err, ENOMEM, "no memory for a list of children");
        }
        for (size_t i = 0; i < merging->n_children; i++)
                children[i].path = merging->children[i];
        merge_new_id(merge, merging->id);
        r = merge_finish(merge, children, merging->n_children, err);
        if (r == -EBUSY || r == -ENOSPC)
                merge_free(merge); /* it did not end it */
        return r;
}

static int move_blocks(struct merging *merging, struct error *err)
{
        const struct merge_params params = {.force = merging->ctl->force};
        const struct merge_controls controls = {
                .opaque = merging, .go_on = go_on, .progress = show_progress};
        struct merge *merge = NULL;
        int r = merge_begin(merging->chain, &merging->plan, &params, &merge, err);

        if (r < 0)
                return r;
        merging->progress =
                progress_new(merging->ctl, ctl_base_name(child_of(merging)), merging->plan.bytes);
        r = merge_run(merge, &controls, err);
        progress_end(merging->progress, r == 0);
        if (r == 0)
                r = finish(merging, merge, err);
        else
                merge_free(merge);
        return r < 0 ? fail_unfinished(merging, r, err) : 0;
}

/* Whoever waited for our lock may have opened it, and written to it: then it is no empty image any more, but a child
 * of what it was merged into. @file has the lock. */
static int check_empty(const char *path, struct error *err)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct file *file;
        int r = file_open(host_fs(), path, FILE_READ, &file, err);

        if (r < 0)
                return r;
        r = image_open(file, "vhd", IMAGE_NO_LOCK, &image, err);
        if (r < 0) {
                file_close(file);
                return r;
        }
        for (uint64_t at = 0; at < image->size; at += image->block_size)
                if (image->format->holds(image, at))
                        return fail(err, EBUSY,
                                "'%s' is merged, and was written to since: it stays", path);
        return 0;
}

static int remove_layer(const char *path, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ char *seal = NULL;
        int r = file_open(host_fs(), path, FILE_WRITE, &file, err);

        if (r == 0)
                r = file_lock_set(file, FILE_LOCK_WRITE, err);
        if (r < 0)
                return fail_prefix(err, r, "'%s' is merged and empty, and cannot be removed", path);
        r = check_empty(path, err);
        if (r == 0)
                r = chain_forget_image(host_fs(), path, err);
        if (r < 0)
                return r;
        r = fs_unlink(host_fs(), path);
        if (r < 0)
                return fail_os(err, -r, "'%s' is merged and empty, and cannot be removed", path);
        if (asprintf(&seal, "%s" SEAL_ENDING, path) > 0)
                fs_unlink(host_fs(), seal);
        r = fs_sync_directory(host_fs(), path);
        return r < 0 ? fail_os(err, -r, "cannot sync the folder of '%s'", path) : 0;
}

/* From the top, so that each is a chain that opens, whatever ends us. */
static int remove_layers(const struct merging *merging, struct error *err)
{
        const struct merge_options *asked = merging->ctl->options;
        int r = 0;

        for (unsigned i = merging->n_layers - 1; r == 0 && i > 0 && !asked->keep; i--)
                r = remove_layer(merging->layers[i], err);
        return r;
}

/* --- saying it --- */

static json_t *list_of(char *const *strings, size_t n)
{
        json_t *list = json_array();

        for (size_t i = 0; i < n; i++)
                json_array_append_new(list, json_text(strings[i]));
        return list;
}

static void print_json(const struct merging *merging)
{
        const struct merge_options *asked = merging->ctl->options;
        json_t *object = json_object(), *parent = json_object();

        json_object_set_new(parent, "filename", json_text(destination_of(merging)));
        json_object_set_new(parent, "uuid", json_uuid(merging->id));
        json_object_set_new(parent, "grows-from",
                merging->grows_from ? json_size(merging->grows_from) : json_null());
        json_object_set_new(object, "filename", json_text(child_of(merging)));
        json_object_set_new(object, "parent", parent);
        json_object_set_new(object, "merged", list_of(merging->layers + 1, merging->n_layers - 1));
        json_object_set_new(object, "children", list_of(merging->children, merging->n_children));
        json_object_set_new(object, "bytes-planned", json_size(merging->plan.bytes));
        json_object_set_new(object, "bytes-other-way",
                json_size(merging->plan.bytes_other_way)); /* UINT64_MAX: null */
        json_object_set_new(object, "bytes-moved", json_size(merging->done.bytes_done));
        json_object_set_new(object, "kept", json_boolean(asked->keep));
        json_object_set_new(object, "dry-run", json_boolean(merging->ctl->dry_run));
        json_print(object);
}

static void print_text(const struct merging *merging)
{
        const struct merge_options *asked = merging->ctl->options;
        bool dry = merging->ctl->dry_run;
        _cleanup_free_ char *child = text_safe(child_of(merging));
        _cleanup_free_ char *into = text_safe(destination_of(merging));
        char size[SIZE_TEXT_MAX], before[SIZE_TEXT_MAX];

        if (merging->grows_from)
                printf("%s %s %s, before %s\n", into, dry ? "would become" : "is",
                        size_to_text(merging->size, size),
                        size_to_text(merging->grows_from, before));
        if (dry)
                printf("%s would be merged into %s: at most %s to move\n", child, into,
                        size_to_text(merging->plan.bytes, size));
        else
                printf("%s is merged into %s: %s moved\n", child, into,
                        size_to_text(merging->done.bytes_done, size));
        for (unsigned i = 1; i + 1 < merging->n_layers; i++) {
                _cleanup_free_ char *layer = text_safe(merging->layers[i]);

                printf("so %s %s\n", dry ? "would" : "is", layer);
        }
        for (size_t i = 0; i < merging->n_children; i++) {
                _cleanup_free_ char *safe = text_safe(merging->children[i]);

                printf("%s %s on %s\n", safe, dry ? "would stand" : "stands now", into);
        }
        if (asked->keep)
                printf("%s %s, empty\n", child, dry ? "would stay" : "is left");
}

static void report(const struct merging *merging)
{
        if (merging->ctl->json)
                print_json(merging);
        else if (!merging->ctl->quiet)
                print_text(merging);
}

/* A shell wants to see that it was the signal. */
static void end_as_asked(const struct merging *merging, const struct error *err)
{
        ctl_print_error(merging->ctl, err);
        if (merging->ctl->json)
                json_print(error_to_json(err));
        fflush(stdout);
        signals_end();
}

static int merge_in_place(struct ctl *ctl, struct error *err)
{
        _cleanup_(merging_done) struct merging merging = {.ctl = ctl};
        int r;

        signals_watch();
        r = open_chain(&merging, err);
        if (r == 0)
                r = decide(&merging, err);
        if (r == 0 && merging.grows_to)
                r = grow_first(&merging, err);
        if (r == 0 && ctl->dry_run) {
                report(&merging);
                return CTL_DONE;
        }
        if (r == 0 && !merging.is_empty)
                r = move_blocks(&merging, err);
        if (merging.chain) {
                int closed = chain_close(TAKE_PTR(merging.chain), r == 0 ? err : NULL);

                r = r < 0 ? r : closed;
        }
        if (r == 0)
                r = remove_layers(&merging, err);
        if (r == -ECANCELED)
                end_as_asked(&merging, err);
        if (r < 0)
                return r;
        report(&merging);
        return CTL_DONE;
}

/* --- one new file --- */

static int decide_output(struct ctl *ctl, struct conversion *plan)
{
        const struct merge_options *asked = ctl->options;

        *plan = (struct conversion){
                .from = ctl->operands[0],
                .to = asked->output,
                .target = target_of_name(asked->output),
                .unit = SECTOR_SIZE,
        };
        if (asked->keep || asked->into)
                return ctl_usage(ctl, "--output changes nothing but NEW: no --keep and no --into");
        if (plan->target == TARGET_UNKNOWN)
                return ctl_usage(ctl,
                        "the name '%s' does not tell what to make: a .vhd, .raw or .img?",
                        plan->to);
        return CTL_DONE;
}

static int make_output(struct ctl *ctl, struct error *err)
{
        _cleanup_(source_closep) struct source *source = NULL;
        _cleanup_(merging_done) struct merging merging = {.ctl = ctl};
        struct conversion plan;
        const struct image *root;
        int r = decide_output(ctl, &plan);

        if (r != CTL_DONE)
                return r;
        r = newfile_check(plan.to, ctl->force, err);
        if (r == 0)
                r = source_open(ctl, plan.from, CONVERSION_LANES, &source, err);
        if (r < 0)
                return r;
        merging.chain = source_chain(source);
        r = check_seals(&merging, err);
        merging.chain = NULL;
        if (r < 0)
                return r;
        /* A VHD is what its root was: fixed, or of these blocks. */
        root = chain_layer(source_chain(source), 0);
        if (plan.target == TARGET_DYNAMIC && root->type == IMAGE_FIXED)
                plan.target = TARGET_FIXED;
        if (plan.target == TARGET_DYNAMIC && root->block_size == 512 * KIB)
                plan.block_size = root->block_size;
        r = conversion_run(ctl, source, &plan, err);
        if (r == 0)
                r = conversion_report(ctl, &plan, err);
        return r < 0 ? r : CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct merge_options *asked = ctl->options;

        if (source_is_uri(ctl->operands[0]))
                return ctl_usage(ctl, "'%s' is no file: merge works on images", ctl->operands[0]);
        return asked->output ? make_output(ctl, err) : merge_in_place(ctl, err);
}

const struct command command_merge = {
        .name = "merge",
        .operands = "CHILD\nCHILD --output NEW",
        .summary = "fold a differencing disk into its parent",
        .doc = "Move what CHILD holds into the image that it stands on, and remove CHILD. Who stands on "
               "CHILD stands on the parent then. All disks read the same at every moment; a merge that "
               "was cut off, by a signal, kill -9 or a power cut, goes on with the same command. "
               "Refused if other images stand on the parent, or if a seal says that it was changed "
               "(unless --force)."
               "\v"
               "Examples:\n"
               "  vhdctl merge --dry-run child.avhd\n"
               "  vhdctl merge child.avhd\n"
               "  vhdctl merge newest.avhd --into base.vhd\n"
               "  vhdctl merge child.avhd --output flat.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .options = options,
        .options_size = sizeof(struct merge_options),
        .take_option = take_option,
        .run = run,
};
