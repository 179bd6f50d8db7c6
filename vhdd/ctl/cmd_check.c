/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl check - damage in images, and mending it. One image at a time is looked through by
 * formats/vhd/check.h; here are the paths, the parents, the seals, and what is printed. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "chain/locate.h"
#include "chain/seal.h"
#include "chain/tree.h"
#include "formats/poison.h"
#include "formats/vhd/check.h"
#include "formats/vhd/hyperv.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"

#define READ_SIZE ((size_t)MIB)

enum { KEY_CHAIN = CTL_KEY_FIRST, KEY_DEEP, KEY_REPAIR, KEY_USE };

struct check_options {
        bool chain, deep, repair;
        unsigned use; /* VHD_CHECK_USE_HEAD, VHD_CHECK_USE_TAIL, or 0 */
};

static const struct argp_option options[] = {
        {"chain", KEY_CHAIN, NULL, 0, "Check the parents too, and that they are those asked for",
                0},
        {"deep", KEY_DEEP, NULL, 0, "Read every bitmap and all data as well", 0},
        {"repair", KEY_REPAIR, NULL, 0, "Mend what needs no guessing", 0},
        {"use", KEY_USE, "WHICH", 0, "With --repair: the footer at the head or the tail is right",
                0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct check_options *check = opaque;

        switch (key) {
        case KEY_CHAIN: check->chain = true; return 0;
        case KEY_DEEP: check->deep = true; return 0;
        case KEY_REPAIR: check->repair = true; return 0;
        case KEY_USE:
                if (strcmp(arg, "head") == 0)
                        check->use = VHD_CHECK_USE_HEAD;
                else if (strcmp(arg, "tail") == 0)
                        check->use = VHD_CHECK_USE_TAIL;
                else
                        return fail(err, EINVAL, "--use takes head or tail, not '%s'", arg);
                return 0;
        default: return -EINVAL;
        }
}

struct seen {
        uint64_t device, inode;
};

/* One run of the verb. */
struct session {
        const struct ctl *ctl;
        struct seen *seen; /* looked through already: parents are shared */
        size_t n_seen;
        json_t *answers; /* NULL: text */
        uint64_t n_images;
        uint64_t n_sealed; /* that have a seal, and were held against it */
        bool damage_remains, failed;
};

/* What is found in one image. */
struct report {
        const char *path; /* for sentences */
        struct session *session;
        struct vhd_finding *findings; /* that there are now */
        size_t n_findings;
        json_t *mended; /* findings that are no more; NULL: printed at once */
        unsigned n_infos, n_warnings, n_damages, n_repairable, n_repaired;
        char backup[4096];
};

static const char *severity_name(enum vhd_severity severity)
{
        return vhd_severity_to_string(severity);
}

static json_t *finding_to_json(const struct vhd_finding *finding)
{
        json_t *object = json_object();
        char hyperv[16];

        json_object_set_new(object, "id", json_text(finding->id));
        json_object_set_new(object, "severity", json_text(severity_name(finding->severity)));
        json_object_set_new(object, "message", json_text(finding->sentence));
        json_object_set_new(object, "offset",
                finding->offset == ERROR_NO_OFFSET ? json_null() : json_size(finding->offset));
        json_object_set_new(object, "repairable", json_boolean(finding->repairable));
        if (finding->hint[0])
                json_object_set_new(object, "hint", json_text(finding->hint));
        if (finding->hyperv) {
                snprintf(hyperv, sizeof(hyperv), "0x%08" PRIX32, finding->hyperv);
                json_object_set_new(object, "hyperv", json_text(hyperv));
        }
        return object;
}

static void print_finding(const struct report *report, const struct vhd_finding *finding)
{
        const struct ctl *ctl = report->session->ctl;
        _cleanup_free_ char *path = text_safe(report->path);
        _cleanup_free_ char *sentence = text_safe(finding->sentence);

        if (finding->severity == VHD_INFO && ctl->quiet)
                return;
        printf("%s: %s: %s%s\n", path, severity_name(finding->severity), sentence,
                finding->repairable ? " (--repair mends it)" : "");
        if (finding->hint[0]) {
                _cleanup_free_ char *hint = text_safe(finding->hint);

                printf("        %s\n", hint);
        }
}

static void take_mended(void *opaque, const struct vhd_finding *finding)
{
        struct report *report = opaque;
        _cleanup_free_ char *path = text_safe(report->path);
        _cleanup_free_ char *sentence = text_safe(finding->sentence);

        if (report->mended)
                json_array_append_new(report->mended, finding_to_json(finding));
        else
                printf("%s: %s: %s\n", path,
                        report->session->ctl->dry_run ? "would mend" : "mended", sentence);
}

/* Kept until it is known whether it stays: --repair may mend it. */
static void take_finding(void *opaque, const struct vhd_finding *finding)
{
        struct report *report = opaque;
        struct vhd_finding *grown =
                reallocarray(report->findings, report->n_findings + 1, sizeof(*grown));

        if (grown) {
                report->findings = grown;
                grown[report->n_findings++] = *finding;
        }
        report->n_infos += finding->severity == VHD_INFO;
        report->n_warnings += finding->severity == VHD_WARNING;
        report->n_damages += finding->severity == VHD_DAMAGE;
        report->n_repairable += finding->repairable && finding->severity != VHD_INFO;
}

static void forget_findings(struct report *report)
{
        report->n_findings = 0;
        report->n_infos = report->n_warnings = report->n_damages = report->n_repairable = 0;
}

/* A finding of our own: about what lies beside the image, not in it. */
static void find(
        struct report *report, const char *id, enum vhd_severity severity, const struct error *err)
{
        struct vhd_finding finding = {
                .id = id,
                .severity = severity,
                .offset = err->offset,
                .hyperv = err->hyperv,
        };

        snprintf(finding.sentence, sizeof(finding.sentence), "%s", err->message);
        snprintf(finding.hint, sizeof(finding.hint), "%s", err->hint);
        take_finding(report, &finding);
}

static unsigned flags_of(const struct ctl *ctl)
{
        const struct check_options *check = ctl->options;

        return check->use | (check->deep ? VHD_CHECK_DEEP : 0) |
                (ctl->force ? VHD_CHECK_FORCE : 0) | (ctl->dry_run ? VHD_CHECK_DRY_RUN : 0);
}

/* Every byte that takes space can be read: what the disk lost shows here. */
static void read_all_data(struct report *report, struct file *file)
{
        _cleanup_free_ uint8_t *buffer = malloc(READ_SIZE);
        struct progress *progress;
        uint64_t size = 0, offset = 0, next;
        struct error err = ERROR_INIT;

        if (!buffer || file_size_get(file, &size) < 0)
                return;
        progress = progress_new(report->session->ctl, ctl_base_name(report->path), size);
        while (offset < size && file_seek_data(file, offset, &next) == 0) {
                ssize_t n;

                progress_add(progress, next - offset);
                offset = next;
                if (offset >= size)
                        break;
                n = file_read(file, buffer, (size_t)MIN_OF(size - offset, READ_SIZE), offset, 0);
                if (n < 0) {
                        progress_end(progress, false);
                        fail_os(&err, (int)-n, "%zu bytes at offset %" PRIu64 " cannot be read",
                                READ_SIZE, offset);
                        error_set_offset(&err, offset);
                        find(report, "data-unreadable", VHD_DAMAGE, &err);
                        return;
                }
                if (n == 0)
                        break;
                progress_add(progress, (uint64_t)n);
                offset += (uint64_t)n;
        }
        progress_end(progress, true);
}

static void note_difference(void *opaque, const char *sentence)
{
        struct report *report = opaque;
        struct error err = ERROR_INIT;

        fail(&err, EUCLEAN, "it is not what was sealed: %s", sentence);
        error_set_hint(&err, "if the change was meant: vhdctl seal --force");
        find(report, "seal-differs", VHD_DAMAGE, &err);
}

/* Is the image still what its seal says? Only an image without damage can be asked. */
static void check_seal(struct report *report, const char *path)
{
        const struct check_options *check = report->session->ctl->options;
        const struct seal_watcher watcher = {.opaque = report, .differs = note_difference};
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct file *file = NULL;
        struct error err = ERROR_INIT;
        uint64_t n;

        if (file_open(host_fs(), path, FILE_READ, &file, NULL) < 0)
                return;
        if (image_open(file, "vhd", 0, &image, NULL) < 0) {
                file_close(file);
                return;
        }
        if (seal_exists(image)) {
                report->session->n_sealed++;
                if (seal_compare(image, check->deep, &watcher, &n, &err) < 0)
                        find(report, "seal-unreadable", VHD_WARNING, &err);
        } else if (check->deep) {
                fail(&err, ENOENT, "it has no seal: its data was compared with nothing");
                find(report, "no-seal", VHD_INFO, &err);
        }
}

/* --deep is asked whether the data is what it was, and nobody ever said what that is. */
static void fail_no_seal(const struct ctl *ctl, struct error *err)
{
        fail(err, ENOENT, "no seal: nobody has sealed '%s', so nobody knows what its data was",
                ctl->operands[0]);
        error_set_file(err, ctl->operands[0]);
        error_set_hint(err, "vhdctl seal, while you know that it is as it should be");
}

/* A raw disk has no structure that could be wrong; but its last server may have failed to sync it. */
static bool is_raw(const struct report *report, struct file *file)
{
        const struct format *format;

        return format_find(file, report->session->ctl->format, &format, NULL) == 0 &&
                format == &raw_format;
}

static const struct vhd_finding raw_sync_failed = {
        .id = "sync-failed",
        .severity = VHD_DAMAGE,
        .offset = ERROR_NO_OFFSET,
        .repairable = true,
        .sentence = "a sync of the disk failed, and it opens read-only since: some of the latest "
                    "writes may be lost; --repair lets it be written again",
};

static int look_through_raw(struct report *report, struct file *file, struct error *err)
{
        int code = 0, r = poison_look(file, &code, NULL, err);

        if (r == 0 && code != 0)
                take_finding(report, &raw_sync_failed);
        return r;
}

static int repair_raw(struct report *report, struct file *file, struct error *err)
{
        int r = report->session->ctl->dry_run ? 0 : poison_lift(file, err);

        if (r < 0)
                return r;
        take_mended(report, &raw_sync_failed);
        report->n_repaired = 1;
        return 0;
}

static int repair(struct report *report, const char *path, struct error *err)
{
        const struct ctl *ctl = report->session->ctl;
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_repair_result result = {0};
        int r = ctl_refuse_parent(ctl, path, err);

        if (r == 0)
                r = file_open(host_fs(), path, FILE_WRITE, &file, err);
        if (r == 0)
                r = file_lock_set(file, FILE_LOCK_WRITE, err);
        if (r < 0)
                return r;
        if (is_raw(report, file))
                return repair_raw(report, file, err);
        r = vhd_repair(file, flags_of(ctl), take_mended, report, &result, err);
        if (r < 0)
                return r;
        report->n_repaired = result.n_repaired;
        snprintf(report->backup, sizeof(report->backup), "%s", result.backup);
        return 0;
}

/* Looks through one file that is open and locked against writers. */
static int look_through(struct report *report, struct file *file, struct error *err)
{
        const struct check_options *check = report->session->ctl->options;
        struct vhd_check_result result;
        int r;

        if (is_raw(report, file))
                r = look_through_raw(report, file, err);
        else
                r = vhd_check(file, flags_of(report->session->ctl) & ~(unsigned)VHD_CHECK_DRY_RUN,
                        take_finding, report, &result, err);
        if (r == 0 && check->deep)
                read_all_data(report, file);
        return r;
}

static void print_summary(const struct report *report)
{
        _cleanup_free_ char *path = text_safe(report->path);
        const struct ctl *ctl = report->session->ctl;

        if (report->n_repaired && !ctl->dry_run && report->backup[0]) {
                _cleanup_free_ char *backup = text_safe(report->backup);

                printf("%s: what the mended bytes were is kept in '%s'\n", path, backup);
        }
        if (ctl->quiet)
                return;
        if (report->n_damages)
                printf("%s: %u %s of damage%s\n", path, report->n_damages,
                        report->n_damages == 1 ? "place" : "places",
                        report->n_repairable ? ", some of which --repair mends" : "");
        else
                printf("%s: no damage%s\n", path, report->n_warnings ? ", but oddities" : "");
}

static void answer_json(struct session *session, const struct report *report)
{
        json_t *object = json_object(), *findings = json_array();

        for (size_t i = 0; i < report->n_findings; i++)
                json_array_append_new(findings, finding_to_json(&report->findings[i]));
        json_object_set_new(object, "filename", json_text(report->path));
        json_object_set_new(object, "clean", json_boolean(report->n_damages == 0));
        json_object_set_new(object, "damages", json_size(report->n_damages));
        json_object_set_new(object, "warnings", json_size(report->n_warnings));
        json_object_set_new(object, "infos", json_size(report->n_infos));
        json_object_set_new(object, "findings", findings);
        json_object_set(object, "repaired", report->mended);
        json_object_set_new(
                object, "backup", report->backup[0] ? json_text(report->backup) : json_null());
        json_object_set_new(object, "dry-run", json_boolean(session->ctl->dry_run));
        json_array_append_new(session->answers, object);
}

static void answer(struct session *session, const struct report *report)
{
        session->n_images++;
        session->damage_remains |= report->n_damages > 0;
        if (session->answers) {
                answer_json(session, report);
                return;
        }
        for (size_t i = 0; i < report->n_findings; i++)
                print_finding(report, &report->findings[i]);
        print_summary(report);
}

static void answer_failure(struct session *session, const char *path, struct error *err)
{
        json_t *object;

        error_set_file(err, path);
        ctl_print_error(session->ctl, err);
        session->failed = true;
        if (!session->answers)
                return;
        object = json_object();
        json_object_set_new(object, "filename", json_text(path));
        json_object_set_new(object, "error", error_to_json(err));
        json_array_append_new(session->answers, object);
}

static bool see(struct session *session, struct file *file)
{
        struct file_stat st;
        struct seen *grown;

        if (file_stat_get(file, &st) < 0)
                return true;
        for (size_t i = 0; i < session->n_seen; i++)
                if (session->seen[i].device == st.device && session->seen[i].inode == st.inode)
                        return false;
        grown = reallocarray(session->seen, session->n_seen + 1, sizeof(*grown));
        if (grown) {
                session->seen = grown;
                grown[session->n_seen++] = (struct seen){st.device, st.inode};
        }
        return true;
}

/* Looks through @file and, with --repair, mends it and looks again. */
static int check_file(struct session *session, struct file *file, const char *path,
        struct report *report, struct error *err)
{
        const struct check_options *check = session->ctl->options;
        int r = look_through(report, file, err);

        if (r < 0)
                return r;
        if (check->repair && report->n_repairable > 0) {
                /* Ours is a lock against writers, and now we are to be one. */
                r = file_lock_set(file, FILE_LOCK_NONE, err);
                if (r == 0)
                        r = repair(report, path, err);
                if (r == 0)
                        r = file_lock_set(file, FILE_LOCK_READ, err);
                if (r < 0)
                        return r;
                if (report->n_repaired > 0 && !session->ctl->dry_run) {
                        forget_findings(report);
                        r = look_through(report, file, err);
                        if (r < 0)
                                return r;
                }
        }
        if (report->n_damages == 0)
                check_seal(report, path);
        return 0;
}

/* With --chain: the parent that @file asks for, or NULL: there is none to ask for, or it cannot be
 * found, which is then a finding. */
static struct file *find_parent(
        struct session *session, struct file *file, unsigned depth, struct report *report)
{
        const struct ctl *ctl = session->ctl;
        const struct locate_roots roots = {.roots = ctl->roots, .n_roots = ctl->n_roots};
        const char *named = depth < ctl->n_parents ? ctl->parents[depth] : NULL;
        struct vhd_metadata *metadata _cleanup_(cleanup_free) = malloc(sizeof(*metadata));
        struct vhd_metadata *of_parent _cleanup_(cleanup_free) = malloc(sizeof(*of_parent));
        struct error err = ERROR_INIT;
        struct file *parent = NULL;

        if (!metadata || !of_parent ||
                vhd_metadata_read(file, VHD_READ_FORCE, metadata, NULL) < 0 ||
                metadata->footer.type != VHD_TYPE_DIFFERENCING)
                return NULL;
        if (locate_parent(file, metadata, &roots, named, &parent, &err) < 0) {
                find(report, err.code == ESTALE ? "parent-id" : "parent-not-found", VHD_DAMAGE,
                        &err);
                return NULL;
        }
        if (vhd_metadata_read(parent, VHD_READ_FORCE, of_parent, NULL) == 0 &&
                of_parent->footer.current_size != metadata->footer.current_size) {
                fail(&err, EUCLEAN,
                        "it has %" PRIu64 " bytes and its parent %" PRIu64
                        ", which Hyper-V does not read",
                        metadata->footer.current_size, of_parent->footer.current_size);
                error_set_hyperv(&err, HYPERV_PARENT_SIZE);
                find(report, "parent-size", VHD_WARNING, &err);
        }
        return parent;
}

/* One image and, with --chain, what it stands on. @file is the caller's gift; @path as he knows it. */
static void check_image(struct session *session, struct file *opened, const char *path)
{
        const struct check_options *check = session->ctl->options;
        _cleanup_(file_closep) struct file *file = opened;

        for (unsigned depth = 0; file && see(session, file); depth++) {
                const char *name = depth == 0 ? path : file->path;
                _cleanup_(file_closep) struct file *parent = NULL;
                struct report report = {.path = name, .session = session};
                struct error err = ERROR_INIT;
                int r = file_lock_set(file, FILE_LOCK_READ, &err);

                if (session->answers)
                        report.mended = json_array();
                if (r == 0)
                        r = check_file(session, file, name, &report, &err);
                if (r == 0 && check->chain)
                        parent = find_parent(session, file, depth, &report);
                if (r < 0)
                        answer_failure(session, name, &err);
                else
                        answer(session, &report);
                free(report.findings);
                json_decref(report.mended);
                if (r < 0 || !parent)
                        return;
                file_close(file);
                file = TAKE_PTR(parent);
        }
}

static void check_path(struct session *session, const char *path)
{
        struct error err = ERROR_INIT;
        struct file *file = NULL;

        if (file_open(host_fs(), path, FILE_READ, &file, &err) < 0)
                answer_failure(session, path, &err);
        else
                check_image(session, file, path);
}

/* Every VHD in a folder, and every file that looks as if it were one. */
static void check_folder(struct session *session, const char *folder)
{
        const struct ctl *ctl = session->ctl;
        const struct locate_roots roots = {.roots = ctl->roots, .n_roots = ctl->n_roots};
        _cleanup_(tree_freep) struct tree *tree = NULL;
        struct error err = ERROR_INIT;

        if (tree_scan(&folder, 1, &roots, &tree, &err) < 0) {
                answer_failure(session, folder, &err);
                return;
        }
        for (size_t i = 0; i < tree->n_notes; i++)
                ctl_warn(ctl, "%s", tree->notes[i]);
        for (size_t i = 0; i < tree->n_nodes; i++)
                if (!tree->nodes[i]->outside && !tree->nodes[i]->alias)
                        check_path(session, tree->nodes[i]->path);
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct check_options *check = ctl->options;
        struct session session = {.ctl = ctl};

        if (check->use && !check->repair)
                return ctl_usage(ctl, "--use says how to repair: it goes with --repair");
        if (ctl->json)
                session.answers = json_array();
        for (size_t i = 0; i < ctl->n_operands; i++) {
                struct stat st;

                if (stat(ctl->operands[i], &st) == 0 && S_ISDIR(st.st_mode))
                        check_folder(&session, ctl->operands[i]);
                else
                        check_path(&session, ctl->operands[i]);
        }
        free(session.seen);
        if (session.answers)
                json_print(session.answers);
        else if (session.n_images == 0 && !session.failed && !ctl->quiet)
                printf("There is no VHD in '%s'.\n", ctl->operands[0]);
        if (session.failed)
                return CTL_FAILED;
        if (check->deep && !session.n_sealed && session.n_images && !session.damage_remains) {
                fail_no_seal(ctl, err);
                ctl_print_error(ctl, err); /* the answer itself stands on stdout */
                return CTL_FAILED;
        }
        return session.damage_remains ? CTL_NO : CTL_DONE;
}

const struct command command_check = {
        .name = "check",
        .operands = "PATH...",
        .summary = "look for damage, and mend it",
        .doc = "Look for damage in images, or in every image of a folder. With --repair what can be "
               "mended without guessing is mended, and a copy of every byte that changes is kept "
               "beside the image."
               "\v"
               "Examples:\n"
               "  vhdctl check disk.vhd\n"
               "  vhdctl check --chain --deep disk_GUID.avhd\n"
               "  vhdctl check --repair --dry-run disk.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = COMMAND_ANY_NUMBER,
        .options = options,
        .options_size = sizeof(struct check_options),
        .take_option = take_option,
        .run = run,
};
