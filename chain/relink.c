/* SPDX-License-Identifier: Apache-2.0 */
/* The order, and what a crash in each place leaves:
 *
 *   R1  the child is opened as for writing, and closed: what a dead process left in its redo file is
 *       in the image (it is bound to the header's bytes, which are about to change); together with its
 *       chain if what is there relies on that (alone.h)
 *   R2  where the file must grow, the end footer is written at its new place and synced: the old one
 *       is slack from then on. Crash: the same image with some slack.
 *   R3  texts and header in one intent. Crash: the old image, or one that the next opener completes. */
#include "chain/relink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/quote.h"
#include "base/utf16.h"
#include "base/uuid.h"
#include "chain/alone.h"
#include "chain/chain.h"
#include "chain/parent_texts.h"
#include "chain/paths.h"
#include "chain/seal.h"
#include "formats/format.h"
#include "formats/intent.h"
#include "formats/overlay.h"
#include "formats/vhd/hyperv.h"

struct relinking {
        const struct relink_params *params;
        struct fs *fs;
        const char *child_path;
        struct file *child, *parent;
        struct vhd_metadata child_metadata, parent_metadata;
        bool parent_is_raw;
        struct file_stat child_stat, parent_stat;
        struct vhd_bat *bat;
        struct parent_texts texts;
        char child_directory[PATH_TEXT_MAX], parent_real[PATH_TEXT_MAX];
        struct relink_report report;
};

static void relinking_free(struct relinking *relinking)
{
        parent_texts_done(&relinking->texts);
        vhd_bat_free(relinking->bat);
        file_close(relinking->parent);
        file_close(relinking->child);
        free(relinking);
}
DEFINE_CLEANUP(struct relinking *, relinking_free)

static void warn(const struct relinking *relinking, const char *sentence)
{
        if (relinking->params->warn)
                relinking->params->warn(relinking->params->opaque, sentence);
}

/* --- opening --- */

/* Takes @file over in any case. */
static int open_over_durable(struct file *file, struct image **ret, struct error *err)
{
        int r = image_open(file, "vhd", IMAGE_WRITABLE | IMAGE_NO_LOCK, ret, err);

        if (r < 0)
                file_close(file);
        return r;
}

/* R1, for an image whose records rely on others: by its own locators, or, if these lead nowhere, over the
 * parent that it is to have. */
static int settle_chain(const struct relinking *relinking, const char *parent, struct error *err)
{
        const struct locate_roots *roots = relinking->params->roots;
        struct chain_options options = {
                .fs = relinking->fs,
                .format = "vhd",
                .image_roots = roots ? roots->roots : NULL,
                .n_image_roots = roots ? roots->n_roots : 0,
        };
        int r = alone_settle(relinking->child_path, &options, err);

        if (r == 0 || r == -EROFS || r == -EIO)
                return r;
        error_clear(err);
        options.parents = &parent;
        options.n_parents = 1;
        return alone_settle(relinking->child_path, &options, err);
}

/* R1. Through a second descriptor, so that ours keeps the lock meanwhile. */
static int settle(const struct relinking *relinking, struct error *err)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct file *file;
        int r = file_open(relinking->fs, relinking->child_path, FILE_WRITE, &file, err);

        if (r == 0 && relinking->params->below_is_durable)
                r = open_over_durable(file, &image, err);
        else if (r == 0)
                r = alone_open(file, "vhd", IMAGE_NO_LOCK, &image, err);
        if (r < 0)
                return r;
        if (!image->writable) {
                fail(err, EROFS, "'%s' may not be changed: %s", relinking->child_path,
                        image->warning[0] ? image->warning : "it opens read-only");
                error_set_file(err, relinking->child_path);
                return -EROFS;
        }
        return image_close(TAKE_PTR(image), err);
}

static int open_child(struct relinking *relinking, const char *parent, struct error *err)
{
        bool dry_run = relinking->params->dry_run;
        struct vhd_metadata *metadata = &relinking->child_metadata;
        uint32_t problems = 0;
        int r = 0;

        if (!dry_run && !relinking->params->below_is_durable)
                r = settle_chain(relinking, parent, err);
        if (r < 0)
                return r;
        r = file_open(relinking->fs, relinking->child_path, dry_run ? FILE_READ : FILE_WRITE,
                &relinking->child, err);
        if (r == 0)
                r = file_lock_set(
                        relinking->child, dry_run ? FILE_LOCK_READ : FILE_LOCK_WRITE, err);
        if (r == 0)
                r = locate_read_metadata(relinking->child, 0, metadata, err);
        if (r < 0)
                return r;
        if (metadata->footer.type != VHD_TYPE_DIFFERENCING)
                return fail(err, EINVAL, "'%s' is a %s disk: it has no parent",
                        relinking->child_path, vhd_type_to_string(metadata->footer.type));
        if (!dry_run) {
                r = settle(relinking, err);
                if (r == 0)
                        r = vhd_metadata_read(relinking->child, 0, metadata, err);
        }
        if (r == 0)
                r = vhd_bat_load(relinking->child, metadata, &relinking->bat, &problems, err);
        if (r == 0)
                r = file_stat_get(relinking->child, &relinking->child_stat);
        return r;
}

/* Names are text in a VHD, and text is UTF-16 there. */
static int check_parent_name(const char *path, struct error *err)
{
        if (!utf8_is_valid(path, strlen(path)))
                return fail(err, EINVAL,
                        "the name of '%s' is no UTF-8: a VHD cannot say it; rename it", path);
        if (strchr(path, '\\') || path_kind_of(path) == PATH_NONE)
                return fail(err, EINVAL,
                        "the path '%s' holds a backslash or a control character, which mean "
                        "something else in a VHD; rename it",
                        path);
        return 0;
}

static int real_path(
        const struct relinking *relinking, const char *path, char *ret, size_t ret_size)
{
        if (relinking->fs == host_fs())
                return path_absolute(path, ret, ret_size);
        /* A simulated disk has one directory. */
        snprintf(ret, ret_size, "%s%s", path[0] == '/' ? "" : "/", path);
        return 0;
}

static int open_parent(struct relinking *relinking, const char *path, struct error *err)
{
        char real[PATH_TEXT_MAX];
        int r = locate_open_named(relinking->fs, path, &relinking->parent, err);

        if (r == 0)
                r = file_stat_get(relinking->parent, &relinking->parent_stat);
        if (r == 0)
                r = real_path(
                        relinking, path, relinking->parent_real, sizeof(relinking->parent_real));
        if (r == 0)
                r = real_path(relinking, relinking->child_path, real, sizeof(real));
        if (r < 0)
                return err && err->code ? r : fail_os(err, -r, "cannot look at '%s'", path);
        path_directory(real, relinking->child_directory, sizeof(relinking->child_directory));
        if (!relinking->parent_stat.is_regular)
                return fail(err, EINVAL,
                        "'%s' is a device: a VHD cannot name it; say --parent when you open the "
                        "chain",
                        path);
        r = check_parent_name(relinking->parent_real, err);
        if (r < 0)
                return r;
        r = locate_read_metadata(relinking->parent, 0, &relinking->parent_metadata, err);
        if (r == -ENOMEDIUM) {
                relinking->parent_is_raw = true;
                r = 0;
        }
        return r < 0 ? fail_prefix(err, r, "opening the parent '%s'", path) : 0;
}

/* --- may it be the parent? --- */

static int fail_loop(const struct relinking *relinking, struct error *err)
{
        fail(err, ELOOP, "'%s' cannot be the parent of '%s': it stands on it",
                relinking->parent_real, relinking->child_path);
        error_set_hyperv(err, HYPERV_CHAIN_CYCLE);
        return -ELOOP;
}

static bool is_child(const struct relinking *relinking, struct file *file)
{
        struct file_stat st;

        return file_stat_get(file, &st) == 0 && st.device == relinking->child_stat.device &&
                st.inode == relinking->child_stat.inode;
}

/* Walks the parent's own chain. Where that is broken it ends: mending it is another relink. */
static int check_loop(struct relinking *relinking, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        struct file *at = relinking->parent;

        if (!metadata)
                return fail(err, ENOMEM, "no memory to follow a chain");
        *metadata = relinking->parent_metadata;
        for (unsigned depth = 0; depth < CHAIN_MAX_DEPTH; depth++) {
                struct file *next = NULL;

                if (is_child(relinking, at))
                        return fail_loop(relinking, err);
                if (relinking->parent_is_raw || metadata->footer.type != VHD_TYPE_DIFFERENCING ||
                        locate_parent(at, metadata, relinking->params->roots, NULL, &next, NULL) <
                                0)
                        return 0;
                file_close(file);
                at = file = next;
                if (locate_read_metadata(at, VHD_READ_FORCE, metadata, NULL) < 0)
                        return 0;
        }
        return fail(err, ELOOP, "the chain of '%s' is deeper than %u images, or a loop",
                relinking->parent_real, CHAIN_MAX_DEPTH);
}

static int check_id(struct relinking *relinking, struct error *err)
{
        const uint8_t *asked = relinking->child_metadata.header.parent_id;
        const uint8_t *has = relinking->parent_metadata.footer.unique_id;
        char asked_text[UUID_TEXT_SIZE], has_text[UUID_TEXT_SIZE];

        memcpy(relinking->report.id_before, asked, 16);
        if (relinking->parent_is_raw) {
                if (!uuid_is_zero(asked))
                        return fail(err, ESTALE,
                                "'%s' is no VHD, and '%s' was made over the VHD with id %s",
                                relinking->parent_real, relinking->child_path,
                                uuid_format(asked, asked_text));
                return 0;
        }
        memcpy(relinking->report.id_after, has, 16);
        if (uuid_equal(asked, has) || relinking->params->force)
                return 0;
        fail(err, ESTALE,
                "'%s' has the id %s, and '%s' was made over %s: over another disk its contents are "
                "rubbish",
                relinking->parent_real, uuid_format(has, has_text), relinking->child_path,
                uuid_format(asked, asked_text));
        error_set_hyperv(err, HYPERV_PARENT_ID);
        error_set_hint(err, "--force writes the other id, if you know that it is the same disk");
        return -ESTALE;
}

/* A size that differs was so before, if the id is the same; with --force it says that this is not the
 * same disk. */
static int check_size(struct relinking *relinking, struct error *err)
{
        uint64_t child = relinking->child_metadata.footer.current_size;
        uint64_t parent = relinking->parent_is_raw ? relinking->parent_stat.size
                                                   : relinking->parent_metadata.footer.current_size;
        char sentence[ERROR_MESSAGE_MAX];

        if (child == parent)
                return 0;
        if (!uuid_equal(relinking->report.id_before, relinking->report.id_after)) {
                fail(err, EINVAL,
                        "'%s' has %" PRIu64 " bytes and '%s' %" PRIu64
                        ": they cannot be the same disk",
                        relinking->parent_real, parent, relinking->child_path, child);
                error_set_hyperv(err, HYPERV_PARENT_SIZE);
                return -EINVAL;
        }
        snprintf(sentence, sizeof(sentence),
                "the parent has %" PRIu64 " bytes and the child %" PRIu64
                "; Hyper-V opens no such chain",
                parent, child);
        warn(relinking, sentence);
        return 0;
}

/* --- writing --- */

static int plan(struct relinking *relinking, struct error *err)
{
        struct relink_report *report = &relinking->report;
        const char *name = path_bare_name(relinking->parent_real);
        struct parent_names names = {
                .timestamp = vhd_time_from_unix(relinking->parent_stat.mtime_s),
                .name = name ? name : "",
                .relative = report->relative,
                .absolute = report->absolute,
        };
        char back[PATH_TEXT_MAX];
        const char *rest;
        int r;

        memcpy(names.id, report->id_after, 16);
        snprintf(report->absolute, sizeof(report->absolute), "%s", relinking->parent_real);
        r = path_relative(relinking->child_directory, relinking->parent_real, report->relative,
                sizeof(report->relative));
        /* What is written must lead back to the file that was meant. */
        if (r == 0)
                r = path_resolve(relinking->child_directory, report->relative, back, sizeof(back));
        if (r < 0 || strcmp(back, relinking->parent_real) != 0)
                return fail(err, ENAMETOOLONG, "no path leads from '%s' to '%s'",
                        relinking->child_path, relinking->parent_real);
        if (!path_is_beneath(relinking->parent_real, relinking->child_directory, &rest)) {
                char directory[PATH_TEXT_MAX];

                path_directory(relinking->parent_real, directory, sizeof(directory));
                snprintf(report->image_root, sizeof(report->image_root), "%s", directory);
        }
        r = parent_texts_plan(
                &relinking->child_metadata, relinking->bat, &names, &relinking->texts, err);
        report->appended =
                r == 0 && relinking->texts.tail_offset != relinking->child_metadata.tail_offset;
        return r;
}

/* R2 */
static int put_footer_ahead(struct relinking *relinking, struct error *err)
{
        const struct vhd_metadata *metadata = &relinking->child_metadata;
        uint64_t offset = relinking->texts.tail_offset;
        int r;

        if (!relinking->report.appended)
                return 0;
        r = file_write(relinking->child, &metadata->footer.raw, VHD_FOOTER_SIZE, offset, 0);
        if (r == 0)
                r = file_sync(relinking->child);
        return r < 0 ? fail_os(err, -r, "cannot write '%s' at offset %" PRIu64,
                               relinking->child_path, offset)
                     : 0;
}

static int overlay_fill(
        struct overlay *overlay, const struct relinking *relinking, struct error *err)
{
        const struct parent_texts *texts = &relinking->texts;
        int r = 0;

        for (unsigned i = 0; r == 0 && i < texts->n_texts; i++)
                r = overlay_put(overlay, texts->texts[i].bytes, texts->texts[i].size,
                        texts->texts[i].offset, err);
        if (r == 0)
                r = overlay_put(overlay, &texts->header, sizeof(texts->header),
                        relinking->child_metadata.footer.data_offset, err);
        return r;
}

/* R3 */
static int write_through_intent(struct relinking *relinking, struct error *err)
{
        _cleanup_(overlay_done) struct overlay overlay = {.file = relinking->child};
        _cleanup_(intent_freep) struct intent *intent = intent_new();
        const uint8_t *id = relinking->child_metadata.footer.unique_id;
        int image, r;

        if (!intent)
                return fail(err, ENOMEM, "no memory to change '%s'", relinking->child_path);
        r = overlay_fill(&overlay, relinking, err);
        if (r < 0)
                return r;
        image = intent_add_image(intent, relinking->child, id, id, err);
        if (image < 0)
                return image;
        r = overlay_add(&overlay, intent, (unsigned)image, err);
        return r == 0 ? intent_run(intent, err) : r;
}

/* Another way round: does the child, read anew, lead to the parent? */
static int check_result(struct relinking *relinking, struct error *err)
{
        const char *root = relinking->report.image_root;
        struct locate_roots roots = {.roots = &root, .n_roots = root[0] ? 1 : 0, .quick = true};
        _cleanup_(file_closep) struct file *found = NULL;
        struct file_stat st;
        int r = vhd_metadata_read(relinking->child, 0, &relinking->child_metadata, err);

        /* A raw parent is found only when it is named. */
        if (r < 0 || relinking->parent_is_raw)
                return r;
        r = locate_parent(relinking->child, &relinking->child_metadata, &roots, NULL, &found, err);
        if (r == 0)
                r = file_stat_get(found, &st);
        if (r == 0 &&
                (st.device != relinking->parent_stat.device ||
                        st.inode != relinking->parent_stat.inode))
                r = fail(err, ESTALE, "'%s' now leads to '%s', not to '%s'", relinking->child_path,
                        found->path, relinking->parent_real);
        return r;
}

/* The header is part of what a seal vouches for. */
static void warn_of_seal(const struct relinking *relinking)
{
        _cleanup_(file_closep) struct file *seal = NULL;
        char path[PATH_TEXT_MAX], sentence[ERROR_MESSAGE_MAX];

        if (real_path(relinking, relinking->child_path, path, sizeof(path)) < 0 ||
                strlen(path) + sizeof(SEAL_ENDING) > sizeof(path))
                return;
        strcat(path, SEAL_ENDING);
        if (file_open(relinking->fs, path, FILE_READ | FILE_NOFOLLOW, &seal, NULL) < 0)
                return;
        snprintf(sentence, sizeof(sentence),
                "the seal of '%s' does not fit it any more; vhdctl seal --force makes a new one",
                relinking->child_path);
        warn(relinking, sentence);
}

int relink(const char *child, const char *parent, const struct relink_params *params,
        struct relink_report *ret, struct error *err)
{
        _cleanup_(relinking_freep) struct relinking *relinking = calloc(1, sizeof(*relinking));
        int r;

        if (!relinking)
                return fail(err, ENOMEM, "no memory to relink '%s'", child);
        relinking->params = params;
        relinking->fs = params->fs ? params->fs : host_fs();
        relinking->child_path = child;
        r = open_child(relinking, parent, err);
        if (r == 0)
                r = open_parent(relinking, parent, err);
        if (r == 0)
                r = check_loop(relinking, err);
        if (r == 0)
                r = check_id(relinking, err);
        if (r == 0)
                r = check_size(relinking, err);
        if (r == 0)
                r = plan(relinking, err);
        if (r == 0 && !params->dry_run) {
                r = put_footer_ahead(relinking, err);
                if (r == 0)
                        r = write_through_intent(relinking, err);
                if (r == 0)
                        r = check_result(relinking, err);
                if (r == 0)
                        warn_of_seal(relinking);
        }
        if (r < 0) {
                error_set_file(err, child);
                return r;
        }
        if (ret)
                *ret = relinking->report;
        return 0;
}
