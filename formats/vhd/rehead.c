/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/vhd/rehead.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/overlay.h"
#include "formats/vhd/image.h"

struct vhd_rehead {
        struct image *image;
        struct vhd_image *vhd; /* NULL: fixed */
        struct vhd_metadata *before, *after;
};

static void rehead_free(struct vhd_rehead *rehead)
{
        free(rehead->before);
        free(rehead->after);
        free(rehead);
}
DEFINE_CLEANUP(struct vhd_rehead *, rehead_free)

static bool is_fixed(const struct image *image)
{
        return image->type == IMAGE_FIXED;
}

static int no_memory(const struct image *image, struct error *err)
{
        return fail(err, ENOMEM, "no memory to change the head of '%s'", image->file->path);
}

int vhd_head_get(struct image *image, struct vhd_metadata *ret, struct error *err)
{
        struct vhd_image *vhd = vhd_of(image);

        if (image->type == IMAGE_RAW)
                return fail(err, ENOTSUP, "'%s' is no VHD", image->file->path);
        if (is_fixed(image))
                return vhd_metadata_read(image->file, 0, ret, err);
        MUTEX_GUARD(&vhd->lock);
        *ret = vhd->metadata;
        ret->tail_offset = vhd->footer_offset;
        return 0;
}

static void forget_parent(struct vhd_raw_header *header)
{
        memset(header->parent_id, 0, sizeof(header->parent_id));
        memset(header->parent_name, 0, sizeof(header->parent_name));
        memset(header->locators, 0, sizeof(header->locators));
        header->parent_timestamp = be32_make(0);
}

/* @rehead->after from @rehead->before. What is encoded is decoded again: it passes the same checks as
 * what comes from a file. */
static int make_head(struct vhd_rehead *rehead, const struct vhd_new_head *head, struct error *err)
{
        struct vhd_metadata *after = rehead->after;
        struct vhd_raw_header header = after->header.raw;
        struct vhd_raw_footer footer;
        uint32_t problems = 0;
        int r;

        if (head->id)
                memcpy(after->footer.unique_id, head->id, sizeof(after->footer.unique_id));
        if (head->hidden) {
                after->footer.hidden = *head->hidden != 0;
                after->footer.merging = *head->hidden == VHD_HIDDEN_MERGE;
                after->footer.raw.hidden = *head->hidden;
        }
        if (head->root)
                after->footer.type = VHD_TYPE_DYNAMIC;
        vhd_footer_encode(&after->footer, &footer);
        r = vhd_footer_decode(&footer, 0, &after->footer, &problems, err);
        if (r < 0 || is_fixed(rehead->image))
                return r;
        if (head->header)
                header = *head->header;
        if (head->parent_id)
                memcpy(header.parent_id, head->parent_id, sizeof(header.parent_id));
        if (head->root)
                forget_parent(&header);
        header.checksum = be32_make(vhd_header_checksum(&header));
        return vhd_header_decode(&header, 0, &after->header, &problems, err);
}

static int gather(const struct vhd_rehead *rehead, const struct vhd_new_head *head,
        struct intent *intent, struct error *err)
{
        const struct vhd_metadata *before = rehead->before, *after = rehead->after;
        _cleanup_(overlay_done) struct overlay overlay = {.file = rehead->image->file};
        int image = intent_add_image(
                intent, overlay.file, before->footer.unique_id, after->footer.unique_id, err);
        int r = image < 0 ? image : 0;
        bool footers;

        for (size_t i = 0; r == 0 && i < head->n_texts; i++)
                r = overlay_put(&overlay, head->texts[i].bytes, head->texts[i].length,
                        head->texts[i].offset, err);
        if (r == 0 && !is_fixed(rehead->image))
                r = overlay_put(&overlay, &after->header.raw, sizeof(after->header.raw),
                        before->footer.data_offset, err);
        /* Footers that stay as they are stay out of it. */
        footers = memcmp(&before->footer.raw, &after->footer.raw, VHD_FOOTER_SIZE) != 0;
        if (r == 0 && footers && !is_fixed(rehead->image))
                r = overlay_put(&overlay, &after->footer.raw, VHD_FOOTER_SIZE, 0, err);
        if (r == 0 && (footers || is_fixed(rehead->image)))
                r = overlay_put(
                        &overlay, &after->footer.raw, VHD_FOOTER_SIZE, before->tail_offset, err);
        return r == 0 ? overlay_add(&overlay, intent, (unsigned)image, err) : r;
}

static void accept_both(const struct vhd_rehead *rehead)
{
        struct redo_ident now = vhd_redo_ident(rehead->before);
        struct redo_ident soon = vhd_redo_ident(rehead->after);

        MUTEX_GUARD(&rehead->vhd->lock);
        redo_ident_also(rehead->vhd->redo, &now, &soon);
}

/* A move of the end footer whose sync failed has left the file with another end than we know; and what a sync
 * that failed has lost is not to be forgotten over a new head (E5). Under extend_lock. */
static int refuse_poisoned(const struct vhd_rehead *rehead, struct error *err)
{
        if (!rehead->vhd || !atomic_load(&rehead->vhd->poisoned))
                return 0;
        fail(err, EIO, "a sync of '%s' has failed, so what its header says stays as it is",
                rehead->image->file->path);
        error_set_file(err, rehead->image->file->path);
        return -EIO;
}

int vhd_rehead_begin(struct image *image, const struct vhd_new_head *head, struct intent *intent,
        struct vhd_rehead **ret, struct error *err)
{
        _cleanup_(rehead_freep) struct vhd_rehead *rehead = calloc(1, sizeof(*rehead));
        int r;

        *ret = NULL;
        if (image->type == IMAGE_RAW)
                return 0;
        if (!image->writable)
                return fail(err, EROFS, "'%s' is not open for writing", image->file->path);
        if (rehead) {
                rehead->before = malloc(sizeof(*rehead->before));
                rehead->after = malloc(sizeof(*rehead->after));
        }
        if (!rehead || !rehead->before || !rehead->after)
                return no_memory(image, err);
        rehead->image = image;
        rehead->vhd = is_fixed(image) ? NULL : vhd_of(image);
        /* The end footer stays where it is until the end (space.c). */
        if (rehead->vhd)
                pthread_mutex_lock(&rehead->vhd->extend_lock);
        r = refuse_poisoned(rehead, err);
        if (r == 0)
                r = vhd_head_get(image, rehead->before, err);
        if (r == 0) {
                *rehead->after = *rehead->before;
                r = make_head(rehead, head, err);
        }
        if (r == 0)
                r = gather(rehead, head, intent, err);
        if (r < 0) {
                if (rehead->vhd)
                        pthread_mutex_unlock(&rehead->vhd->extend_lock);
                return r;
        }
        if (rehead->vhd)
                accept_both(rehead);
        *ret = TAKE_PTR(rehead);
        return 0;
}

/* The head in memory becomes what the file says now. */
static void take_over(const struct vhd_rehead *rehead)
{
        struct image *image = rehead->image;
        const struct vhd_metadata *after = rehead->after;

        memcpy(image->id, after->footer.unique_id, sizeof(image->id));
        image->hidden = after->footer.hidden;
        image->merging = after->footer.merging;
        if (!rehead->vhd)
                return;
        memcpy(image->parent_id, after->header.parent_id, sizeof(image->parent_id));
        image->type = after->footer.type == VHD_TYPE_DYNAMIC ? IMAGE_DYNAMIC : IMAGE_DIFFERENCING;
        rehead->vhd->metadata.footer = after->footer;
        rehead->vhd->metadata.header = after->header;
}

void vhd_rehead_end(struct vhd_rehead *rehead, enum vhd_rehead_outcome outcome)
{
        struct vhd_image *vhd;

        if (!rehead)
                return;
        vhd = rehead->vhd;
        if (vhd)
                pthread_mutex_lock(&vhd->lock);
        if (outcome == REHEAD_APPLIED)
                take_over(rehead);
        if (vhd && outcome != REHEAD_UNKNOWN) {
                struct redo_ident ident =
                        vhd_redo_ident(outcome == REHEAD_APPLIED ? rehead->after : rehead->before);

                redo_ident_only(vhd->redo, &ident);
        }
        if (vhd) {
                pthread_mutex_unlock(&vhd->lock);
                pthread_mutex_unlock(&vhd->extend_lock);
        }
        rehead_free(rehead);
}

/* E13: what is left is for the next opener to complete, who compares sector by sector: nobody may change
 * these images before that, not even move an end footer. And if it was a sync that failed, it was the
 * only one that tells of what requests had written before (E5). */
static void poison_all(struct vhd_rehead *const *reheads, size_t n, int code)
{
        for (size_t i = 0; i < n; i++)
                reheads[i]->image->format->poison(reheads[i]->image, code);
}

int vhd_rehead_run(
        struct vhd_rehead *const *reheads, size_t n, struct intent *intent, struct error *err)
{
        enum vhd_rehead_outcome outcome = REHEAD_UNKNOWN;
        int r = intent_write(intent, err);

        if (r < 0 && !intent_is_left(intent))
                outcome = REHEAD_DROPPED;
        if (r == 0) {
                r = intent_apply(intent, err);
                if (r == 0)
                        outcome = REHEAD_APPLIED;
        }
        if (r == 0)
                r = intent_remove(intent, err);
        if (intent_is_left(intent))
                poison_all(reheads, n, -r);
        for (size_t i = 0; i < n; i++)
                vhd_rehead_end(reheads[i], outcome);
        return r;
}
