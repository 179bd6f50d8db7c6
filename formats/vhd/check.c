/* SPDX-License-Identifier: Apache-2.0 */
/* Looking through a VHD: the footers here, the rest beside. */
#include "formats/vhd/check.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/quote.h"
#include "base/uuid.h"
#include "formats/intent.h"
#include "formats/poison.h"
#include "formats/redo.h"
#include "formats/vhd/check_internal.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/image.h"

#define MAX_OF_ONE_ID 100u /* bad entries of one kind that are told one by one */
#define CLOCKS_DIFFER 1800 /* seconds that a time stamp may lie in the future */

const char *vhd_severity_to_string(enum vhd_severity severity)
{
        switch (severity) {
        case VHD_INFO: return "info";
        case VHD_WARNING: return "warning";
        case VHD_DAMAGE: return "damage";
        }
        return "unknown";
}

/* ---- reporting ---- */

static void count(struct vhd_check_result *result, enum vhd_severity severity, bool repairable)
{
        result->n_infos += severity == VHD_INFO;
        result->n_warnings += severity == VHD_WARNING;
        result->n_damages += severity == VHD_DAMAGE;
        result->n_repairable += repairable && severity != VHD_INFO;
}

void check_flush(struct checker *checker)
{
        struct vhd_finding finding = {
                .id = checker->last_id, .severity = VHD_INFO, .offset = ERROR_NO_OFFSET};

        if (checker->n_same > MAX_OF_ONE_ID && checker->report) {
                snprintf(finding.sentence, sizeof(finding.sentence), "and %u more of this kind",
                        checker->n_same - MAX_OF_ONE_ID);
                checker->report(checker->opaque, &finding);
        }
        checker->last_id = NULL;
        checker->n_same = 0;
}

void check_found(struct checker *checker, enum vhd_severity severity, const char *id,
        uint64_t offset, uint32_t hyperv, bool repairable, const char *format, ...)
{
        struct vhd_finding finding = {.id = id,
                .severity = severity,
                .offset = offset,
                .hyperv = hyperv,
                .repairable = repairable && checker->may_mend};
        va_list ap;

        if (!checker->last_id || strcmp(checker->last_id, id) != 0) {
                check_flush(checker);
                checker->last_id = id;
        }
        count(&checker->result, severity, finding.repairable);
        if (++checker->n_same > MAX_OF_ONE_ID || !checker->report)
                return;
        va_start(ap, format);
        vsnprintf(finding.sentence, sizeof(finding.sentence), format, ap);
        va_end(ap);
        checker->report(checker->opaque, &finding);
}

/* What a struct error says, as a finding. */
static void found_error(struct checker *checker, const char *id, const struct error *error,
        bool repairable, const char *hint)
{
        struct vhd_finding finding = {.id = id,
                .severity = VHD_DAMAGE,
                .offset = error->offset,
                .hyperv = error->hyperv,
                .repairable = repairable};

        check_flush(checker);
        count(&checker->result, VHD_DAMAGE, repairable);
        snprintf(finding.sentence, sizeof(finding.sentence), "%s", error->message);
        if (!repairable)
                snprintf(finding.hint, sizeof(finding.hint), "%s", hint ? hint : error->hint);
        if (checker->report)
                checker->report(checker->opaque, &finding);
}

/* ---- the two footers ---- */

bool check_footers_agree(const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail)
{
        if (tail->result < 0)
                return false;
        if (tail->footer.type == VHD_TYPE_FIXED)
                return true;
        return head->result == 0 && memcmp(&head->footer.raw, &tail->footer.raw, tail->size) == 0;
}

/* A tail whose sum is wrong, and that is yet sure to be the same footer as the valid head: so the
 * head is no guest's invention, and its copy may be written over the tail. */
static bool tail_confirms_head(
        const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail)
{
        const struct vhd_raw_footer *h = &head->footer.raw, *t = &tail->footer.raw;

        return tail->has_cookie && memcmp(h->cookie, t->cookie, sizeof(h->cookie)) == 0 &&
                memcmp(h->unique_id, t->unique_id, sizeof(h->unique_id)) == 0 &&
                memcmp(&h->type, &t->type, sizeof(h->type)) == 0 &&
                memcmp(&h->data_offset, &t->data_offset, sizeof(h->data_offset)) == 0;
}

static bool is_poisoned(const struct vhd_footer_copy *copy)
{
        return memcmp(copy->footer.raw.cookie, VHD_POISON_COOKIE, 8) == 0;
}

static bool is_fixed(const struct vhd_footer_copy *copy)
{
        return be32_get(copy->footer.raw.type) == VHD_TYPE_FIXED;
}

enum footer_plan check_footer_plan(
        const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail, unsigned flags)
{
        bool use_head = flags & VHD_CHECK_USE_HEAD, use_tail = flags & VHD_CHECK_USE_TAIL;
        bool head_ok =
                head->result == 0 && !is_fixed(head) && !(tail->has_cookie && is_fixed(tail));

        if (is_poisoned(tail) || (is_poisoned(head) && !(tail->has_cookie && is_fixed(tail))))
                return FOOTERS_KEEP;
        if (tail->result == 0 && (is_fixed(tail) || check_footers_agree(head, tail)))
                return FOOTERS_FROM_TAIL; /* nothing to decide; small things may be mended */
        if (tail->result == 0 && head->result == 0)
                return use_tail               ? FOOTERS_FROM_TAIL
                        : use_head && head_ok ? FOOTERS_FROM_HEAD
                                              : FOOTERS_KEEP;
        if (tail->result == 0)
                return use_head ? FOOTERS_KEEP : FOOTERS_FROM_TAIL;
        if (head_ok)
                return use_head || (tail_confirms_head(head, tail) && !use_tail) ? FOOTERS_FROM_HEAD
                                                                                 : FOOTERS_KEEP;
        if (!(flags & VHD_CHECK_FORCE))
                return FOOTERS_KEEP;
        if (tail->has_cookie && !use_head)
                return FOOTERS_BELIEVE_TAIL;
        if (head->has_cookie && use_head && !is_fixed(head) &&
                !(tail->has_cookie && is_fixed(tail)))
                return FOOTERS_BELIEVE_HEAD;
        return FOOTERS_KEEP;
}

/* What is wrong with one of the two, by the code that decoding it gave. */
static const char *broken_id(const struct vhd_footer_copy *copy, const char *missing,
        const char *checksum, const char *corrupt)
{
        switch (copy->error.hyperv) {
        case HYPERV_FOOTER_MISSING:
        case HYPERV_INVALID_FILE_SIZE: return missing;
        case HYPERV_FOOTER_CHECKSUM: return checksum;
        default: return corrupt;
        }
}

static void hint_use(struct checker *checker, const char *which, char *ret, size_t size)
{
        char quoted[QUOTE_TEXT_MAX];

        snprintf(ret, size, "vhdctl check --repair --use %s %s%s", which,
                checker->blocks_are_lost ? "--force " : "",
                shell_quote(checker->file->path, quoted, sizeof(quoted)));
}

static void check_tail(struct checker *checker, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, enum footer_plan plan)
{
        struct error why = tail->error;
        char hint[ERROR_MESSAGE_MAX] = "";
        const char *id;

        if (tail->result == 0)
                return;
        if (head->result == 0 && !is_fixed(head) && !is_poisoned(tail))
                hint_use(checker, "head", hint, sizeof(hint));
        id = broken_id(tail, "footer-missing", "footer-checksum", "footer-corrupt");
        if (is_poisoned(tail)) {
                id = "footer-poisoned";
        } else if (tail->has_tapdisk_mark) {
                id = "footer-tapdisk-mark";
                fail(&why, EUCLEAN,
                        "the footer is overwritten by tapdisk's mark: XenServer has the file open, "
                        "or crashed while it had");
                error_set_offset(&why, tail->offset);
                error_set_hyperv(&why, HYPERV_FOOTER_MISSING);
        } else if (!tail->has_cookie && head->result == 0 && !is_fixed(head)) {
                fail(&why, EUCLEAN,
                        "there is no footer at the end; the copy at the head claims a %s disk of "
                        "%" PRIu64 " bytes",
                        vhd_type_to_string(head->footer.type), head->footer.current_size);
                error_set_offset(&why, tail->offset);
                error_set_hyperv(&why, HYPERV_FOOTER_MISSING);
        }
        found_error(checker, id, &why, plan != FOOTERS_KEEP, hint[0] ? hint : NULL);
}

static void check_head(struct checker *checker, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, enum footer_plan plan)
{
        struct error why = head->error;
        bool fixed = tail->has_cookie ? is_fixed(tail) : head->result == 0 && is_fixed(head);

        if (fixed)
                return; /* the guest's bytes */
        if (head->result < 0) {
                fail_prefix(&why, head->result, "the copy at the head");
                found_error(checker,
                        is_poisoned(head) ? "footer-poisoned"
                                          : broken_id(head, "footer-copy-missing",
                                                    "footer-copy-checksum", "footer-copy-corrupt"),
                        &why, plan != FOOTERS_KEEP, NULL);
                return;
        }
        if (tail->result < 0 || check_footers_agree(head, tail))
                return;
        fail(&why, EUCLEAN,
                "the footer and its copy at the head differ: %s disk of %" PRIu64
                " bytes, and %s disk of %" PRIu64 " bytes",
                vhd_type_to_string(tail->footer.type), tail->footer.current_size,
                vhd_type_to_string(head->footer.type), head->footer.current_size);
        error_set_offset(&why, tail->offset);
        error_set_hyperv(&why, HYPERV_FOOTER_CORRUPT);
        found_error(checker, "footers-differ", &why, plan != FOOTERS_KEEP,
                "vhdctl check --repair --use tail, or --use head, whichever is right");
}

bool check_geometry_is_larger(const struct vhd_footer *footer)
{
        uint64_t sectors = (uint64_t)footer->cylinders * footer->heads * footer->sectors_per_track;

        /* The largest geometry stands for "look at the size". */
        if (footer->cylinders == 65535 && footer->heads == 16 && footer->sectors_per_track == 255)
                return false;
        return sectors * SECTOR_SIZE > footer->current_size;
}

/* The fields of the footer that is believed. */
static void check_footer(struct checker *checker, const struct vhd_metadata *metadata)
{
        const struct vhd_footer *footer = &metadata->footer;
        uint64_t at = metadata->tail_offset;
        int64_t age = fs_now(checker->file->fs) - vhd_time_to_unix(footer->timestamp);

        if (metadata->problems & VHD_PROBLEM_OLD_FOOTER)
                check_found(checker, VHD_WARNING, "footer-old", at, 0, true,
                        "the footer has 511 bytes, as before Virtual PC 2004");
        if (metadata->problems & VHD_PROBLEM_HIDDEN_CHECKSUM)
                check_found(checker, VHD_DAMAGE, "footer-hidden-checksum", at,
                        HYPERV_FOOTER_CHECKSUM, true,
                        "an early tapdisk hid the image and left the footer's checksum as it was");
        if (footer->saved_state)
                check_found(checker, VHD_WARNING, "saved-state", at, 0, false,
                        "the image belongs to the saved state of a virtual machine");
        if (footer->merging)
                check_found(checker, VHD_WARNING, "merge-unfinished", at, 0, false,
                        "a merge was cut off here: the image is right only beneath the one that "
                        "stands on it, and `vhdctl merge` of that one goes on");
        else if (footer->hidden)
                check_found(checker, VHD_INFO, "hidden", at, 0, false,
                        "tapdisk's flag says that the image is hidden: an inner node of a tree");
        if (uuid_is_zero(footer->unique_id))
                check_found(checker, VHD_WARNING, "id-zero", at, 0, true,
                        "the unique id is all zeros: no child can name this image");
        if (check_geometry_is_larger(footer))
                check_found(checker, VHD_DAMAGE, "geometry", at, HYPERV_FOOTER_CORRUPT, true,
                        "the geometry %u/%u/%u promises more than the %" PRIu64
                        " bytes that the disk has",
                        footer->cylinders, footer->heads, footer->sectors_per_track,
                        footer->current_size);
        if (age < -CLOCKS_DIFFER)
                check_found(checker, VHD_WARNING, "timestamp", at, 0, false,
                        "the image was made in the future, if its time stamp %u is right",
                        footer->timestamp);
        if (footer->original_size != footer->current_size)
                check_found(checker, VHD_INFO, "resized", at, 0, false,
                        "the disk was made with %" PRIu64 " bytes and has %" PRIu64 " now",
                        footer->original_size, footer->current_size);
        if ((footer->features & ~1u) != 2)
                check_found(checker, VHD_INFO, "features", at, 0, false,
                        "the footer's features are %08x, usual is 00000002", footer->features);
        if (!bytes_are_zero(footer->raw.reserved, sizeof(footer->raw.reserved)))
                check_found(checker, VHD_INFO, "footer-reserved", at, 0, false,
                        "reserved bytes of the footer are in use; they are kept");
}

static void check_fixed(struct checker *checker, const struct vhd_metadata *metadata)
{
        uint64_t slack = metadata->tail_offset - metadata->footer.current_size;

        if (slack)
                check_found(checker, VHD_INFO, "fixed-slack", metadata->footer.current_size, 0,
                        false,
                        "%" PRIu64 " bytes between the disk's end and the footer are not used",
                        slack);
}

/* ---- beside the image ---- */

static int check_intent(struct checker *checker, struct error *err)
{
        int r = intent_look(checker->file, err);

        if (r == 1)
                check_found(checker, VHD_WARNING, "intent", ERROR_NO_OFFSET, 0, true,
                        "a change of the image was cut off: what follows is seen as if it were "
                        "complete, and whoever opens the image for writing completes it");
        else if (r == 2)
                check_found(checker, VHD_INFO, "intent-torn", ERROR_NO_OFFSET, 0, false,
                        "beside the image lies a change that was never begun, or is over; it is ignored");
        return r < 0 ? r : 0;
}

int check_what_is_left(struct file *file, const struct vhd_metadata *metadata, enum check_left *ret,
        struct error *err)
{
        struct redo_ident ident;
        enum redo_found found = REDO_NONE;
        struct redo *redo = NULL;
        int code = 0, r;

        *ret = LEFT_NOTHING;
        if (metadata->footer.type == VHD_TYPE_FIXED) {
                r = poison_look(file, &code, NULL, err);
                *ret = code ? LEFT_POISON : LEFT_NOTHING;
                return r;
        }
        ident = vhd_redo_ident(metadata);
        r = redo_open(file, &ident, false, &redo, &found, err);
        redo_close(redo, false);
        if (r < 0)
                return r;
        if (found == REDO_REPLAY)
                *ret = LEFT_RECORDS;
        else if (found == REDO_POISONED)
                *ret = LEFT_POISON;
        else if (found == REDO_FOREIGN)
                *ret = LEFT_FOREIGN;
        return 0;
}

/* E5, E11: as long as it is poisoned nothing is replayed above it, where blocks are given up whose copies
 * may be among what was lost. */
bool check_may_lift(const struct vhd_metadata *metadata, unsigned flags)
{
        return !metadata->footer.merging || flags & VHD_CHECK_FORCE;
}

static void check_left(struct checker *checker, const struct vhd_metadata *metadata)
{
        struct error why = ERROR_INIT;
        enum check_left left;

        if (check_what_is_left(checker->file, metadata, &left, &why) < 0) {
                check_found(checker, VHD_WARNING, "redo-unreadable", ERROR_NO_OFFSET, 0, false,
                        "%s", why.message);
                return;
        }
        switch (left) {
        case LEFT_NOTHING: break;
        case LEFT_RECORDS:
                check_found(checker, VHD_WARNING, "redo", ERROR_NO_OFFSET, 0, false,
                        "a server of the image died; what it had answered is in its redo file, and "
                        "comes into the image when it is opened for writing");
                break;
        case LEFT_POISON:
                if (!check_may_lift(metadata, checker->flags)) {
                        check_found(checker, VHD_DAMAGE, "sync-failed", ERROR_NO_OFFSET, 0, false,
                                "a sync of the image failed in the middle of a merge into it: what an "
                                "image above has given up may be lost here; mend those that stand on "
                                "it first (check --repair), then this one with --repair --force");
                        break;
                }
                check_found(checker, VHD_DAMAGE, "sync-failed", ERROR_NO_OFFSET, 0, true,
                        "a sync of the image failed, and it opens read-only since: what was just "
                        "read is what the disk holds, and --repair lets it be written again");
                break;
        case LEFT_FOREIGN:
                check_found(checker, VHD_DAMAGE, "redo-foreign", ERROR_NO_OFFSET, 0,
                        checker->flags & VHD_CHECK_FORCE,
                        "a server of the image died with answered writes in its redo file, and "
                        "another program changed the image since: --repair --force gives them up");
                break;
        }
}

/* Has the sentence been told with the footers? */
static bool is_about_footers(const struct error *why)
{
        return why->hyperv == HYPERV_FOOTER_CHECKSUM || why->hyperv == HYPERV_FOOTER_MISSING ||
                why->hyperv == HYPERV_FOOTER_CORRUPT;
}

static const char *unreadable_id(const struct error *why)
{
        switch (why->hyperv) {
        case HYPERV_HEADER_CORRUPT:
        case HYPERV_HEADER_VERSION: return "header-corrupt";
        case HYPERV_BLOCK_SIZE: return "block-size";
        case HYPERV_BAT_CORRUPT: return "bat-misplaced";
        case HYPERV_INVALID_SIZE: return "size";
        case HYPERV_INVALID_FILE_SIZE: return "file-too-short";
        default: return "unreadable";
        }
}

/* Behind the footers. */
static int check_content(struct checker *checker, const struct vhd_metadata *metadata,
        const struct vhd_blocks *blocks, struct error *err)
{
        int r;

        check_footer(checker, metadata);
        check_left(checker, metadata);
        if (metadata->footer.type == VHD_TYPE_FIXED) {
                check_fixed(checker, metadata);
                return 0;
        }
        r = check_header(checker, metadata, err);
        return r < 0 ? r : check_blocks(checker, metadata, blocks, err);
}

/* Footers that lead somewhere: which of them may be mended hangs on the blocks, too. */
static int check_readable(struct checker *checker, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, enum footer_plan plan,
        const struct vhd_metadata *metadata, struct error *err)
{
        struct vhd_blocks blocks = {0};
        int r = 0;

        if (metadata->footer.type != VHD_TYPE_FIXED)
                r = check_blocks_scan(checker->file, metadata, &blocks, err);
        if (r < 0)
                return r;
        checker->blocks_are_lost = !check_blocks_allow_repair(metadata, &blocks, checker->flags);
        if (checker->blocks_are_lost)
                plan = FOOTERS_KEEP;
        checker->may_mend = plan != FOOTERS_KEEP;
        check_tail(checker, head, tail, plan);
        check_head(checker, head, tail, plan);
        r = check_content(checker, metadata, &blocks, err);
        check_blocks_done(&blocks);
        return r;
}

/* What the footers lead to makes no sense: nothing can be mended. */
static void check_unreadable(struct checker *checker, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, const struct error *why)
{
        checker->may_mend = false;
        check_tail(checker, head, tail, FOOTERS_KEEP);
        check_head(checker, head, tail, FOOTERS_KEEP);
        if (!is_about_footers(why) || checker->result.n_damages == 0)
                found_error(checker, unreadable_id(why), why, false, NULL);
}

static int check_image(struct checker *checker, struct error *err)
{
        struct vhd_footer_copy head, tail;
        struct vhd_metadata metadata;
        struct error why = ERROR_INIT;
        enum footer_plan plan;
        bool use_head;
        int r;

        r = vhd_footers_read(checker->file, &head, &tail, err);
        if (r < 0)
                return r;
        plan = check_footer_plan(&head, &tail, checker->flags);
        use_head = plan == FOOTERS_FROM_HEAD || plan == FOOTERS_BELIEVE_HEAD;
        r = vhd_metadata_read(checker->file, VHD_READ_FORCE | (use_head ? VHD_READ_USE_HEAD : 0),
                &metadata, &why);
        if (r == 0)
                return check_readable(checker, &head, &tail, plan, &metadata, err);
        if (r == -EUCLEAN || r == -ENOTSUP) {
                check_unreadable(checker, &head, &tail, &why);
                return 0;
        }
        if (err)
                *err = why;
        return r;
}

int vhd_check(struct file *file, unsigned flags, vhd_report report, void *opaque,
        struct vhd_check_result *ret, struct error *err)
{
        struct checker checker = {
                .file = file, .flags = flags, .report = report, .opaque = opaque, .may_mend = true};
        struct file *view = NULL;
        int r;

        *ret = (struct vhd_check_result){0};
        /* After a failed sync the page cache looks as if the disk had it all (E5). */
        if (file->fd >= 0)
                posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
        r = check_intent(&checker, err);
        if (r == 0)
                r = intent_recover(file, false, NULL, &view, err);
        if (r == 0) {
                checker.file = view ? view : file;
                r = check_image(&checker, err);
        }
        check_flush(&checker);
        intent_view_dismiss(view);
        if (r < 0)
                error_set_file(err, file->path);
        *ret = checker.result;
        return r;
}
