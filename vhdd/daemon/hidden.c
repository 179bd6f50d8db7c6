/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/hidden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/images.h"

#define MOST_IMAGES 100000u /* that one image is looked through for */

struct finding {
        struct catalog *catalog;
        const struct merge_jobs *jobs;
        bool is_off;
        struct hidden_run *run;
};

void hidden_run_done(struct hidden_run *run)
{
        json_decref(run->hidden);
        json_decref(run->jobs);
        free(run->top);
        *run = (struct hidden_run){0};
}

/* ---- who uses an image ---- */

static void name_vm(struct catalog *catalog, const char *id, char *ret, size_t size)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = catalog_vm_find(catalog, id, &row, NULL);

        snprintf(ret, size, "%s", r == 0 ? row.name : id);
}

struct disks {
        struct disk_row *rows;
        size_t n;
};

/* Whoever has the image as its disk or frozen: of another vm? */
static int look_at_names(struct catalog *catalog, const char *vm, const struct disks *disks,
        const char *path, char *reason, struct error *err)
{
        struct snapshot_disk_row *frozen = NULL;
        char name[160];
        size_t n = 0;
        int r;

        for (size_t i = 0; i < disks->n; i++) {
                if (strcmp(disks->rows[i].file, path) != 0 || strcmp(disks->rows[i].vm, vm) == 0)
                        continue;
                name_vm(catalog, disks->rows[i].vm, name, sizeof(name));
                snprintf(reason, HIDDEN_REASON_MAX, "disk '%s' of vm '%s' stands on it, too",
                        disks->rows[i].name, name);
                return 0;
        }
        r = catalog_snapshot_disk_list_file(catalog, path, &frozen, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                _cleanup_(snapshot_row_done) struct snapshot_row row = {0};

                if (catalog_snapshot_find(catalog, vm, frozen[i].snapshot, &row, NULL) < 0)
                        snprintf(reason, HIDDEN_REASON_MAX,
                                "a snapshot of another vm stands on it, too");
        }
        snapshot_disk_rows_free(frozen, n);
        return r;
}

int hidden_users(struct catalog *catalog, const char *vm, const char *path,
        char reason[HIDDEN_REASON_MAX], struct error *err)
{
        json_auto_t *paths = json_pack("[s]", path);
        struct disks disks = {0};
        int r = paths ? catalog_disk_list(catalog, NULL, &disks.rows, &disks.n, err)
                      : fail(err, ENOMEM, "no memory for a list of images");

        reason[0] = '\0';
        for (size_t i = 0; r == 0 && !reason[0] && i < json_array_size(paths); i++) {
                const char *at = json_string_value(json_array_get(paths, i));
                struct image_row *children = NULL;
                size_t n = 0;

                r = look_at_names(catalog, vm, &disks, at, reason, err);
                if (r == 0)
                        r = catalog_image_children(catalog, at, &children, &n, err);
                for (size_t k = 0; r == 0 && k < n && i < MOST_IMAGES; k++)
                        json_array_append_new(paths, json_string(children[k].path));
                image_rows_free(children, n);
        }
        disk_rows_free(disks.rows, disks.n);
        return r;
}

int hidden_owner(
        struct catalog *catalog, const char *path, char ret[UUID_TEXT_SIZE], struct error *err)
{
        char reason[HIDDEN_REASON_MAX];
        struct vm_row *vms = NULL;
        size_t n = 0, n_others = 0;
        int r = catalog_vm_list(catalog, &vms, &n, err);

        /* Whoever stands on it is somebody else for all vms but one. */
        ret[0] = '\0';
        for (size_t i = 0; r == 0 && i < n; i++) {
                r = hidden_users(catalog, vms[i].id, path, reason, err);
                if (r == 0 && reason[0])
                        n_others++;
                else if (r == 0)
                        memcpy(ret, vms[i].id, UUID_TEXT_SIZE);
        }
        if (r == 0 && n_others + 1 != n)
                ret[0] = '\0';
        vm_rows_free(vms, n);
        return r;
}

/* ---- neighbours ---- */

static const struct merge_job *job_of(const struct finding *finding, const char *image)
{
        for (size_t i = 0; i < finding->jobs->n; i++) {
                const struct merge_job *job = &finding->jobs->items[i];
                const char *path = merge_job_text(job, "image");

                if (path && strcmp(path, image) == 0 && !merge_job_is(job, JOB_DONE))
                        return job;
        }
        return NULL;
}

/* Another merge has the image in hand: its number, or 0. */
static const struct merge_job *begun_elsewhere(
        const struct finding *finding, const struct merge_job *but, const char *image)
{
        for (size_t i = 0; i < finding->jobs->n; i++) {
                const struct merge_job *job = &finding->jobs->items[i];

                if (job != but && merge_job_run(job) && !merge_job_is(job, JOB_DONE) &&
                        merge_job_touches(job, image))
                        return job;
        }
        return NULL;
}

static bool is_time(const struct finding *finding, const struct merge_job *job)
{
        const char *merge = merge_job_text(job, "merge");

        return finding->is_off || !merge || strcmp(merge, "deferred") != 0;
}

/* May the hidden image @path go with its neighbour, whose run this is? */
static const struct merge_job *may_join(
        const struct finding *finding, const struct merge_job *leader, const char *path)
{
        const struct merge_job *job = job_of(finding, path);

        if (!job || job == leader || !merge_job_is(job, JOB_WAITING) || merge_job_run(job) ||
                !is_time(finding, job) || begun_elsewhere(finding, leader, path))
                return NULL;
        return job;
}

static int find_children(struct catalog *catalog, const char *path, struct image_row **ret,
        size_t *ret_n, struct error *err)
{
        *ret = NULL;
        *ret_n = 0;
        return catalog_image_children(catalog, path, ret, ret_n, err);
}

/* Up from the image, as long as the next one is hidden, ours, and has one child, too. */
static int extend_up(struct finding *finding, const struct merge_job *leader, const char *from,
        struct error *err)
{
        _cleanup_free_ char *at = strdup(from);

        if (!at)
                return fail(err, ENOMEM, "no memory for a path");
        for (;;) {
                struct image_row *children = NULL, *above = NULL;
                const struct merge_job *joins = NULL;
                size_t n = 0, n_above = 0;
                int r = find_children(finding->catalog, at, &children, &n, err);

                if (r == 0 && n == 1)
                        r = find_children(
                                finding->catalog, children[0].path, &above, &n_above, err);
                if (r == 0 && n == 1 && n_above == 1 && children[0].made_by_us &&
                        strcmp(children[0].state, IMAGE_HIDDEN) == 0)
                        joins = may_join(finding, leader, children[0].path);
                if (r == 0 && n == 1) {
                        free(at);
                        at = TAKE_PTR(children[0].path);
                }
                image_rows_free(children, n);
                image_rows_free(above, n_above);
                if (r < 0)
                        return r;
                if (!joins) {
                        finding->run->top = TAKE_PTR(at);
                        return 0;
                }
                json_array_append_new(finding->run->hidden, json_string(at));
                json_array_append_new(finding->run->jobs, json_integer(joins->row.id));
        }
}

/* Down from it, the same; what is not ours may be the lowest, and nothing below it joins. */
static int extend_down(struct finding *finding, const struct merge_job *leader, const char *from,
        struct error *err)
{
        _cleanup_free_ char *at = strdup(from);

        while (at) {
                _cleanup_(image_row_done) struct image_row row = {0}, below = {0};
                struct image_row *children = NULL;
                const struct merge_job *joins = NULL;
                size_t n = 0;
                int r = catalog_image_find(finding->catalog, at, &row, err);

                if (r < 0 || !row.made_by_us || !row.parent)
                        return r;
                r = catalog_image_find(finding->catalog, row.parent, &below, err);
                if (r == 0)
                        r = find_children(finding->catalog, row.parent, &children, &n, err);
                image_rows_free(children, n);
                if (r < 0)
                        return r;
                if (n == 1 && strcmp(below.state, IMAGE_HIDDEN) == 0)
                        joins = may_join(finding, leader, below.path);
                if (!joins)
                        return 0;
                json_array_insert_new(finding->run->hidden, 0, json_string(below.path));
                json_array_append_new(finding->run->jobs, json_integer(joins->row.id));
                free(at);
                at = strdup(below.path);
        }
        return fail(err, ENOMEM, "no memory for a path");
}

/* ---- which way ---- */

static int has_detached_child(
        struct catalog *catalog, const char *path, bool *ret, struct error *err)
{
        struct image_row *children = NULL;
        size_t n = 0;
        int r = find_children(catalog, path, &children, &n, err);

        *ret = false;
        for (size_t i = 0; i < n; i++)
                *ret = *ret || strcmp(children[i].state, IMAGE_DETACHED) == 0;
        image_rows_free(children, n);
        return r;
}

static int wait_for(struct finding *finding, bool stuck, const char *reason)
{
        finding->run->stuck = stuck;
        snprintf(finding->run->reason, sizeof(finding->run->reason), "%s", reason);
        free(finding->run->top);
        finding->run->top = NULL;
        return 0;
}

/* What another job waits for in vain this one does, too. */
static int wait_for_job(struct finding *finding, const struct merge_job *other)
{
        char text[HIDDEN_REASON_MAX];

        snprintf(text, sizeof(text), "it comes after job %lld", (long long)other->row.id);
        return wait_for(
                finding, merge_job_is(other, JOB_WAITING) && merge_job_flag(other, "stuck"), text);
}

/* Does a disk that the vm has stand on @path, or is it @path? */
static int is_below_disk(
        struct catalog *catalog, const char *vm, const char *path, bool *ret, struct error *err)
{
        struct disk_row *disks = NULL;
        size_t n = 0;
        int r = catalog_disk_list(catalog, vm, &disks, &n, err);

        *ret = false;
        for (size_t i = 0; r == 0 && i < n && !*ret; i++) {
                _cleanup_(image_chain_done) struct image_chain chain = {0};

                if (image_chain_get(catalog, disks[i].file, &chain, NULL) < 0)
                        continue; /* a pass-through disk */
                for (size_t k = 0; k < chain.n && !*ret; k++)
                        *ret = strcmp(chain.rows[k].path, path) == 0;
        }
        disk_rows_free(disks, n);
        return r;
}

/* A file that was said to be kept when its disk was taken away: a snapshot has it frozen still. */
static int is_kept(struct finding *finding, const char *vm, bool *ret, struct error *err)
{
        _cleanup_(image_row_done) struct image_row top = {0};
        bool has_disk = true;
        int r = catalog_image_find(finding->catalog, finding->run->top, &top, err);

        if (r == 0 && !top.made_by_us)
                r = is_below_disk(finding->catalog, vm, top.path, &has_disk, err);
        *ret = !has_disk;
        return r;
}

static int choose_direction(struct finding *finding, const struct merge_job *job, struct error *err)
{
        const char *lowest = json_string_value(json_array_get(finding->run->hidden, 0));
        _cleanup_(image_row_done) struct image_row row = {0};
        bool stays, kept = false, detached = false;
        int r = catalog_image_find(finding->catalog, lowest, &row, err);

        if (r == 0)
                r = has_detached_child(finding->catalog, finding->run->top, &detached, err);
        if (r == 0)
                r = is_kept(finding, job->row.vm, &kept, err);
        if (r < 0)
                return r;
        /* The first name of a disk is the user's, and a root is never emptied. */
        stays = !row.parent || !row.made_by_us;
        finding->run->direction = stays ? "down" : detached || kept ? "up" : "";
        if (stays && (detached || kept))
                return wait_for(finding, true,
                        detached ? "a disk that was detached stands on what it goes with"
                                 : "it goes with the file of a disk that was taken away");
        return 0;
}

static int check_top(struct finding *finding, const struct merge_job *job, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        const struct merge_job *other = begun_elsewhere(finding, job, finding->run->top);
        char text[HIDDEN_REASON_MAX];
        int r = catalog_image_find(finding->catalog, finding->run->top, &row, err);

        if (r < 0)
                return r;
        if (strcmp(row.state, IMAGE_DETACHED) == 0)
                return wait_for(finding, true, "the disk that stands on it was detached");
        if (other)
                return wait_for_job(finding, other);
        r = hidden_users(finding->catalog, job->row.vm,
                json_string_value(json_array_get(finding->run->hidden, 0)), text, err);
        if (r == 0 && text[0])
                return wait_for(finding, true, text);
        return r;
}

/* Copies go to those first that no running disk stands on; the last one needs none. */
static int choose_pushed(struct finding *finding, const struct merge_job *job,
        const struct image_row *children, size_t n, struct error *err)
{
        bool busy = false;
        size_t chosen = n;

        for (size_t i = 0; i < n; i++) {
                struct image_row *above = NULL;
                struct disk_row disk = {0};
                size_t n_above = 0;
                bool live;
                int r = catalog_disk_find_file(finding->catalog, children[i].path, &disk, NULL);

                disk_row_done(&disk);
                live = r == 0;
                if (begun_elsewhere(finding, job, children[i].path)) {
                        busy = true;
                        continue;
                }
                if (strcmp(children[i].state, IMAGE_DETACHED) == 0)
                        continue;
                if (find_children(finding->catalog, children[i].path, &above, &n_above, err) < 0)
                        return -EIO;
                image_rows_free(above, n_above);
                if (chosen == n || !live)
                        chosen = i;
                if (!live)
                        break;
        }
        if (chosen == n)
                return busy ? wait_for(finding, false, "what stands on it is being merged")
                            : wait_for(finding, true, "the disks that stand on it were detached");
        finding->run->shared = true;
        finding->run->direction = "up";
        finding->run->top = strdup(children[chosen].path);
        return finding->run->top ? check_top(finding, job, err)
                                 : fail(err, ENOMEM, "no memory for a path");
}

static int find_run(
        struct finding *finding, const struct merge_job *job, const char *image, struct error *err)
{
        struct image_row *children = NULL;
        const struct merge_job *other = begun_elsewhere(finding, job, image);
        char text[HIDDEN_REASON_MAX];
        size_t n = 0;
        int r;

        if (other)
                return wait_for_job(finding, other);
        if (!is_time(finding, job))
                return wait_for(finding, false, "the vm is on");
        r = find_children(finding->catalog, image, &children, &n, err);
        if (r == 0 && n == 0)
                r = wait_for(finding, false, "nothing stands on it any more");
        else if (r == 0 && n > 1 && merge_job_flag(job, "push"))
                r = choose_pushed(finding, job, children, n, err);
        else if (r == 0 && n > 1) {
                snprintf(text, sizeof(text), "%zu images stand on it", n);
                r = wait_for(finding, true, text);
        } else if (r == 0) {
                r = extend_down(finding, job, image, err);
                if (r == 0)
                        r = extend_up(finding, job, image, err);
                if (r == 0)
                        r = choose_direction(finding, job, err);
                if (r == 0 && finding->run->top)
                        r = check_top(finding, job, err);
        }
        image_rows_free(children, n);
        return r;
}

int hidden_run_find(struct catalog *catalog, const struct merge_jobs *jobs,
        const struct merge_job *job, bool is_off, struct hidden_run *ret, struct error *err)
{
        _cleanup_(hidden_run_done) struct hidden_run run = {.direction = ""};
        struct finding finding = {catalog, jobs, is_off, &run};
        const char *image = merge_job_text(job, "image");
        int r;

        run.hidden = json_pack("[s?]", image);
        run.jobs = json_array();
        if (!image || !run.hidden || !run.jobs)
                return fail(err, image ? ENOMEM : EUCLEAN, "a merge's job names no image");
        r = find_run(&finding, job, image, err);
        if (r < 0)
                return r;
        *ret = run;
        run = (struct hidden_run){0};
        return 0;
}
