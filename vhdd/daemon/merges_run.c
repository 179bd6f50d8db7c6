/* SPDX-License-Identifier: Apache-2.0 */
/* One merge, from its plan to its end; of a compaction, what is the same (the rest: compacts.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/compacts.h"
#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges_commit.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/worker_link.h"

#define OWN_CHAIN  "merge:" /* of a chain that was opened for a merge; its job's number follows */
#define PLAN_CHAIN "merge:plan"
#define BEGIN_MS   (10 * 60000u)
#define FINISH_MS  (10 * 60000u)
#define STOP_MS    (5 * 60000u)

/* ---- chains ---- */

static void own_chain(const struct merge_job *job, char ret[80])
{
        snprintf(ret, 80, OWN_CHAIN "%lld", (long long)job->row.id);
}

bool merges_own_job(const char *name, int64_t *ret)
{
        long long number;
        int end = 0;

        if (sscanf(name, OWN_CHAIN "%lld%n", &number, &end) != 1 || name[end])
                return false;
        *ret = number;
        return true;
}

bool merges_own_chain(struct vm *vm, const char *name)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        const struct merge_job *job;
        int64_t number;

        if (!merges_own_job(name, &number))
                return false;
        if (merge_jobs_load(vm->broker->catalog, vm->id, &jobs, NULL) < 0)
                return false;
        job = merge_jobs_find(&jobs, number);
        return job && merge_job_is_active(job);
}

/* Are the hidden images, and the top over them, neighbours in the chain? */
static bool chain_fits(const struct vm_chain *chain, const json_t *hidden, const char *top)
{
        size_t n = json_array_size(hidden);

        for (size_t i = 0; i + n < chain->n_paths; i++) {
                size_t same = 0;

                if (strcmp(chain->paths[i], top) != 0)
                        continue;
                while (same < n &&
                        strcmp(chain->paths[i + 1 + same],
                                json_string_value(json_array_get(hidden, n - 1 - same))) == 0)
                        same++;
                return same == n;
        }
        return false;
}

/* A running disk's chain that has them; a snapshot's may be closed at any time. */
struct vm_chain *merges_live_chain(struct vm *vm, const json_t *hidden, const char *top)
{
        for (size_t i = 0; i < vm->n_chains; i++) {
                struct vm_chain *chain = &vm->chains[i];

                if (!chain->trouble && chain->writable && !strpbrk(chain->name, "@:") &&
                        chain_fits(chain, hidden, top))
                        return chain;
        }
        return NULL;
}

/* Nobody else's may have it open when its leaf is opened for writing, nor be going to open it: a disk that could
 * not be opened is tried again. */
static int refuse_open(struct vm *vm, const char *top, struct error *err)
{
        _cleanup_(disk_row_done) struct disk_row disk = {0};

        if (catalog_disk_find_file(vm->broker->catalog, top, &disk, NULL) == 0 &&
                strcmp(disk.vm, vm->id) == 0 && !worker_chain_find(vm, disk.id))
                return fail(err, EBUSY, "disk '%s' is not served", disk.name);
        worker_snapshots_close(vm, NULL, false);
        for (size_t i = 0; i < vm->n_chains; i++) {
                const char *name = vm->chains[i].name;

                if (!worker_chain_has(&vm->chains[i], top))
                        continue;
                if (strchr(name, '@'))
                        return fail(err, EBUSY, "a snapshot that stands on it is being read");
                if (!strchr(name, ':'))
                        return fail(err, EBUSY, "a disk that is only read stands on it");
                return fail(err, EBUSY, "another merge has it open");
        }
        return 0;
}

static int open_own(struct vm *vm, const char *name, const char *top, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        int r;

        if (worker_chain_find(vm, name))
                return 0;
        r = refuse_open(vm, top, err);
        if (r == 0)
                r = image_chain_get(vm->broker->catalog, top, &images, err);
        return r < 0 ? r : worker_chain_open(vm, name, &images, true, err);
}

/* In the worker the merge stops; the files stay as they are, and can go on. */
int merges_end_in_worker(struct vm *vm, int64_t job, struct error *err)
{
        char own[80];
        int r = 0;

        if (vm->link && vm->up)
                r = worker_call(vm, "merge.free", json_pack("{s:I}", "job", (json_int_t)job),
                        STOP_MS, NULL, err);
        merging_forget(vm, job, NULL);
        snprintf(own, sizeof(own), OWN_CHAIN "%lld", (long long)job);
        if (r == 0 && worker_chain_find(vm, own))
                r = worker_chain_close(vm, own, err);
        return r;
}

/* ---- beginning ---- */

/* Every image that is written to: who goes, and who stays. */
static json_t *run_paths(const struct merge_job *job)
{
        const json_t *run = merge_job_run(job);
        json_t *paths = json_array();

        merges_add_paths(paths, json_object_get(run, "images"));
        json_array_append(paths, json_object_get(run, "destination"));
        return paths;
}

static int grant_run(struct vm *vm, const struct merge_job *job, struct error *err)
{
        json_auto_t *paths = run_paths(job);
        json_t *item;
        size_t i;
        int r = merges_refresh_paths(vm, err);

        json_array_foreach(paths, i, item)
        {
                _cleanup_(image_row_done) struct image_row row = {0};

                if (r == 0)
                        r = catalog_image_find(
                                vm->broker->catalog, json_string_value(item), &row, err);
                if (r == 0)
                        r = worker_grant_image(vm, &row, LINK_READ | LINK_WRITE, err);
        }
        return r;
}

static json_t *begin_params(const struct merge_job *job, const char *chain)
{
        const json_t *run = merge_job_run(job);
        json_t *params;

        if (merge_job_is_compact(job))
                return json_pack("{s:I, s:s, s:I}", "job", (json_int_t)job->row.id, "chain", chain,
                        "rate", (json_int_t)merge_job_number(job, "rate"));
        params = json_pack("{s:I, s:s, s:O, s:O, s:O, s:b, s:I}", "job", (json_int_t)job->row.id,
                "chain", chain, "images", json_object_get(run, "images"), "direction",
                json_object_get(run, "direction"), "shared", json_object_get(run, "shared"),
                "force", merge_job_flag(job, "force"), "rate",
                (json_int_t)merge_job_number(job, "rate"));

        if (params && json_is_string(json_object_get(run, "new-id")))
                json_object_set(params, "new-id", json_object_get(run, "new-id"));
        return params;
}

/* No seal holds any more: what a snapshot noted of an image when it froze it. */
static int unseal(struct vm *vm, const struct merge_job *job, struct error *err)
{
        json_auto_t *paths = run_paths(job);
        json_t *item;
        size_t i;
        int r = 0;

        json_array_foreach(paths, i, item)
        {
                if (r == 0)
                        r = seals_void(vm->broker->catalog, json_string_value(item), err);
        }
        return r;
}

/* Somebody changed one of them behind the daemon's back: it is not merged, unless somebody insists. */
static int check_seals(struct vm *vm, const struct merge_job *job, struct error *err)
{
        json_auto_t *paths = run_paths(job);
        char sentence[ERROR_MESSAGE_MAX];
        json_t *item;
        size_t i;

        json_array_foreach(paths, i, item)
        {
                _cleanup_(image_row_done) struct image_row row = {0};
                int r = catalog_image_find(vm->broker->catalog, json_string_value(item), &row, err);

                if (r < 0)
                        return r;
                image_seal_warning(&row, sentence);
                if (sentence[0] && !merge_job_flag(job, "force"))
                        return fail(err, ESTALE, "%s; nothing was merged", sentence);
        }
        return 0;
}

/* Does but one image stand on @path? */
static int check_one_child(struct catalog *catalog, const json_t *run, const char *path,
        char reason[HIDDEN_REASON_MAX], struct error *err)
{
        const char *destination = json_string_value(json_object_get(run, "destination"));
        struct image_row *children = NULL;
        size_t n = 0;
        int r = 0;

        /* An end that was cut off has put children there, who may have become others since. */
        if (json_object_get(run, "moved") && destination && strcmp(destination, path) == 0)
                return 0;
        r = catalog_image_children(catalog, path, &children, &n, err);
        if (r == 0 && n > 1)
                snprintf(reason, HIDDEN_REASON_MAX, "%zu images stand on '%s'", n, path);
        image_rows_free(children, n);
        return r;
}

/* What was attached since the merge was planned may stand on what goes: a sentence in @reason, else "". */
static int find_newcomers(struct catalog *catalog, const struct vm *vm, const struct merge_job *job,
        char reason[HIDDEN_REASON_MAX], struct error *err)
{
        const json_t *run = merge_job_run(job), *hidden = json_object_get(run, "hidden");
        const char *lowest = json_string_value(json_array_get(hidden, 0));
        json_t *item;
        size_t i;
        int r = 0;

        reason[0] = '\0';
        if (lowest)
                r = hidden_users(catalog, vm->id, lowest, reason, err);
        json_array_foreach((json_t *)hidden, i, item)
        {
                if (r == 0 && !reason[0] && !json_is_true(json_object_get(run, "shared")))
                        r = check_one_child(catalog, run, json_string_value(item), reason, err);
        }
        return r;
}

/* M1. 1: it has to wait for what @reason says; nothing was written. */
static int put_begun(
        struct vm *vm, struct merge_job *job, char reason[HIDDEN_REASON_MAX], struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        /* In here, where no other vm can come between. */
        r = find_newcomers(catalog, vm, job, reason, err);
        if (r == 0 && reason[0])
                return catalog_end(catalog, 1, err);
        merge_job_set(job, JOB_RUNNING);
        merge_job_clear_failure(job);
        json_object_del(job->payload, "leader");
        if (r == 0)
                r = unseal(vm, job, err);
        if (r == 0)
                r = merge_job_save(catalog, job, err);
        r = catalog_end(catalog, r, err);
        if (r == 0)
                merges_publish(vm, &job->row);
        return r;
}

static int put_ids(struct vm *vm, const json_t *layers, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        return catalog_end(catalog, merges_put_ids(catalog, layers, err), err);
}

/* What the engine said no to: later again, when somebody frees space, or when somebody says so. */
static int begin_refused(
        struct vm *vm, struct merge_job *job, const struct error *why, struct error *err)
{
        if (why->code == EHOSTDOWN || why->code == ETIMEDOUT) {
                if (err)
                        *err = *why;
                return -why->code;
        }
        if (why->code == EBUSY)
                return merges_wait_for(vm, job, false, why->message, err);
        return merges_note_failure(vm, job, why->code, why->message, err);
}

/* The worker has said no. */
static int not_begun(
        struct vm *vm, struct merge_job *job, const struct error *why, struct error *err)
{
        char own[80];

        own_chain(job, own);
        merging_forget(vm, job->row.id, NULL);
        if (vm->up && worker_chain_find(vm, own))
                worker_chain_close(vm, own, NULL);
        return begin_refused(vm, job, why, err);
}

static bool have_one_in_common(
        const struct vm_chain *one, const struct vm_chain *other, const struct image_chain *images)
{
        for (size_t i = 0; one && i < one->n_paths; i++)
                if (worker_chain_has(other, one->paths[i]))
                        return true;
        for (size_t i = 0; !one && i < images->n; i++)
                if (worker_chain_has(other, images->rows[i].path))
                        return true;
        return false;
}

/* A job at work on the chain, or on another one that has an image of it: whatever ends there changes the layers
 * here. Its number, or 0. @top: the chain is not open, and this is its leaf. */
static int find_beside(
        struct vm *vm, const char *chain, const char *top, int64_t *ret, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        const struct vm_chain *open = worker_chain_find(vm, chain);
        int64_t other;
        int r = 0;

        *ret = 0;
        if (merging_on_chain(vm, chain, ret))
                return 0;
        if (!open && top)
                r = image_chain_get(vm->broker->catalog, top, &images, err);
        for (size_t i = 0; r == 0 && *ret == 0 && i < vm->n_chains; i++)
                if (merging_on_chain(vm, vm->chains[i].name, &other) &&
                        have_one_in_common(open, &vm->chains[i], &images))
                        *ret = other;
        return r;
}

/* A clone of what goes may have come since the merge was planned. What cannot be told for now is asked later: half
 * merged, it is nothing that has failed. */
static int ask_strangers_again(struct vm *vm, const struct merge_job *job,
        char reason[HIDDEN_REASON_MAX], bool *ret_stuck, struct error *err)
{
        struct error why = ERROR_INIT;
        int r = merges_ask_strangers(vm, merge_job_run(job), reason, &why);

        *ret_stuck = r == 0;
        if (r == 0)
                return 0;
        if (r == -EHOSTDOWN || r == -ETIMEDOUT) {
                if (err)
                        *err = why;
                return r;
        }
        snprintf(reason, HIDDEN_REASON_MAX, "%.500s", why.message);
        return 0;
}

/* As merges_begin_on(). @again: it was planned before now. */
static int begin_on(struct vm *vm, struct merge_job *job, const char *chain, const char *top,
        bool again, struct error *err)
{
        const char *verb = merge_job_is_compact(job) ? "compact.begin" : "merge.begin";
        json_auto_t *answer = NULL, *said = NULL;
        struct error why = ERROR_INIT;
        char reason[HIDDEN_REASON_MAX] = "";
        bool stuck = false;
        int64_t other;
        int r = find_beside(vm, chain, top, &other, err);

        if (r < 0)
                return r;
        if (other) {
                snprintf(reason, sizeof(reason), "it comes after job %lld", (long long)other);
                return merges_wait_for(vm, job, false, reason, err);
        }
        if (again && !merge_job_flag(job, "force"))
                r = ask_strangers_again(vm, job, reason, &stuck, err);
        if (r < 0)
                return r;
        if (reason[0])
                return merges_wait_for(vm, job, stuck, reason, err);
        r = seals_stop(vm, err);
        if (r < 0)
                return r;
        r = check_seals(vm, job, &why);
        if (r < 0)
                return begin_refused(vm, job, &why, err);
        r = put_begun(vm, job, reason, err);
        if (r != 0)
                return r < 0 ? r : merges_wait_for(vm, job, true, reason, err);
        /* Opened for writing, an image is not what it was sealed as any more: so not before. */
        if (top && open_own(vm, chain, top, &why) < 0)
                return begin_refused(vm, job, &why, err);
        r = grant_run(vm, job, err);
        if (r < 0)
                return r;
        /* Before: an event may come before the answer does. */
        said = json_pack("{s:s}", "state", "running");
        r = merging_remember(vm, job->row.id, chain, said, err);
        if (r < 0)
                return r;
        r = worker_call(vm, verb, begin_params(job, chain), BEGIN_MS, &answer, &why);
        if (r < 0)
                return not_begun(vm, job, &why, err);
        merging_set_total(vm, job->row.id, (uint64_t)param_int(answer, "bytes-total", 0));
        r = put_ids(vm, json_object_get(answer, "layers"), err);
        merges_publish(vm, &job->row);
        return r;
}

int merges_begin_on(
        struct vm *vm, struct merge_job *job, const char *chain, const char *top, struct error *err)
{
        return begin_on(vm, job, chain, top, false, err);
}

/* @job has a run. @again: it was planned before now. */
static int begin(struct vm *vm, struct merge_job *job, bool again, struct error *err)
{
        const json_t *run = merge_job_run(job);
        const char *top = json_string_value(json_object_get(run, "top"));
        const json_t *hidden = json_object_get(run, "hidden");
        const struct vm_chain *live = merges_live_chain(vm, hidden, top);
        char chain[80];

        own_chain(job, chain);
        if (live)
                snprintf(chain, sizeof(chain), "%s", live->name);
        return begin_on(vm, job, chain, live ? NULL : top, again, err);
}

/* Everything that a run speaks of is there, and its own. */
static int check_run(
        struct vm *vm, struct merge_job *job, bool *ret_good, char *reason, struct error *err)
{
        const json_t *run = merge_job_run(job);
        const char *top = json_string_value(json_object_get(run, "top"));
        const json_t *hidden = json_object_get(run, "hidden");
        _cleanup_(image_row_done) struct image_row row = {0};
        json_t *item;
        size_t i;
        int r = top ? catalog_image_find(vm->broker->catalog, top, &row, NULL) : -ENOENT;

        reason[0] = '\0';
        *ret_good = r == 0;
        json_array_foreach((json_t *)hidden, i, item)
        {
                struct image_row one = {0};

                if (r == 0)
                        r = catalog_image_find(
                                vm->broker->catalog, json_string_value(item), &one, NULL);
                image_row_done(&one);
                *ret_good = *ret_good && r == 0;
        }
        if (r == -ENOENT)
                return 0;
        if (r < 0)
                return fail_os(err, -r, "cannot look for the images of a merge");
        if (strcmp(row.state, IMAGE_DETACHED) == 0)
                snprintf(reason, HIDDEN_REASON_MAX, "the disk that stands on it was detached");
        else
                r = hidden_users(vm->broker->catalog, vm->id,
                        json_string_value(json_array_get(hidden, 0)), reason, err);
        return r;
}

/* On with what was begun. */
static int begin_again(struct vm *vm, struct merge_job *job, struct error *err)
{
        char reason[HIDDEN_REASON_MAX];
        bool good;
        int r = check_run(vm, job, &good, reason, err);

        if (r < 0)
                return r;
        if (!good) { /* its images are gone; what is left of it is planned anew */
                json_object_del(job->payload, "run");
                return merges_wait_for(vm, job, false, "its images are gone", err);
        }
        return reason[0] ? merges_wait_for(vm, job, true, reason, err) : begin(vm, job, true, err);
}

/* ---- planning ---- */

int merges_ask_plan(struct vm *vm, const json_t *question, json_t **ret, struct error *err)
{
        const char *top = param_text(question, "top");
        const json_t *hidden = json_object_get(question, "hidden");
        const struct vm_chain *live = merges_live_chain(vm, hidden, top);
        _cleanup_(image_chain_done) struct image_chain images = {0};
        int r = live ? 0 : image_chain_get(vm->broker->catalog, top, &images, err);

        if (r == 0 && !live)
                r = worker_chain_open(vm, PLAN_CHAIN, &images, false, err);
        if (r < 0)
                return r;
        r = worker_call(vm, "merge.plan",
                json_pack("{s:s, s:O, s:O, s:O}", "chain", live ? live->name : PLAN_CHAIN, "hidden",
                        hidden, "shared", json_object_get(question, "shared"), "direction",
                        json_object_get(question, "direction")),
                WORKER_CALL_MS, ret, err);
        if (vm->up && worker_chain_find(vm, PLAN_CHAIN))
                worker_chain_close(vm, PLAN_CHAIN, NULL);
        return r;
}

json_t *merges_question(const struct hidden_run *run)
{
        return json_pack("{s:O, s:s, s:b, s:s}", "hidden", run->hidden, "top", run->top, "shared",
                run->shared, "direction", run->direction);
}

static int put_run(struct merge_job *job, const struct hidden_run *found, const json_t *plan,
        struct error *err)
{
        const char *direction = param_text(plan, "direction");
        char text[UUID_TEXT_SIZE];
        json_t *run = json_pack("{s:O, s:s, s:O, s:O, s:O, s:b}", "hidden", found->hidden, "top",
                found->top, "images", json_object_get(plan, "images"), "destination",
                json_object_get(plan, "destination"), "direction",
                json_object_get(plan, "direction"), "shared", found->shared);
        uint8_t id[16];

        if (!run || !direction)
                return fail(err, EPROTO, "the worker answers a plan that is none");
        uuid_random(id);
        if (strcmp(direction, "down") == 0)
                json_object_set_new(run, "new-id", json_string(uuid_format(id, text)));
        json_object_set_new(job->payload, "run", run);
        json_object_set(job->payload, "total", json_object_get(plan, "bytes"));
        json_object_set_new(job->payload, "done", json_integer(0));
        return 0;
}

/* One that the catalog does not know stands on @path: its sentence in @reason, else "". */
static int ask_strangers(struct strangers *strangers, const char *path,
        char reason[HIDDEN_REASON_MAX], struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        _cleanup_free_ char *who = NULL;
        int r = path ? catalog_image_find(strangers->broker->catalog, path, &row, err)
                     : fail(err, EPROTO, "the worker answers a plan that is none");

        reason[0] = '\0';
        if (r == 0)
                r = strangers_find(strangers, &row, NULL, &who, err);
        if (r == 0 && who)
                snprintf(reason, HIDDEN_REASON_MAX,
                        "'%s', which is no vm's, stands on '%s' too: attach it, move it away or remove it; "
                        "'vhdctl job resume --force' merges, and it cannot be read any more",
                        who, path);
        return r;
}

int merges_ask_strangers(
        struct vm *vm, const json_t *plan, char reason[HIDDEN_REASON_MAX], struct error *err)
{
        const char *direction = param_text(plan, "direction");
        _cleanup_(strangers_done) struct strangers strangers = {0};
        int r = strangers_init(&strangers, vm->broker, err);
        json_t *image;
        size_t i;

        reason[0] = '\0';
        json_array_foreach(json_object_get(plan, "images"), i, image)
        {
                if (r == 0 && !reason[0])
                        r = ask_strangers(&strangers, json_string_value(image), reason, err);
        }
        if (r == 0 && !reason[0] && direction && strcmp(direction, "down") == 0)
                r = ask_strangers(&strangers, param_text(plan, "destination"), reason, err);
        return r;
}

static int put_followers(struct vm *vm, const struct merge_jobs *jobs,
        const struct merge_job *leader, const struct hidden_run *run, struct error *err)
{
        json_t *item;
        size_t i;
        int r = 0;

        json_array_foreach(run->jobs, i, item)
        {
                struct merge_job *job = merge_jobs_find(jobs, json_integer_value(item));

                if (r < 0 || !job)
                        continue;
                json_object_set_new(job->payload, "leader", json_integer(leader->row.id));
                merge_job_set_text(job, "reason", NULL);
                r = merges_save(vm, job, err);
        }
        return r;
}

static int plan(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job,
        const struct hidden_run *run, struct error *err)
{
        struct error why = ERROR_INIT;
        json_auto_t *answer = NULL, *question = merges_question(run);
        char reason[HIDDEN_REASON_MAX] = "";
        int r = question ? merges_ask_plan(vm, question, &answer, &why)
                         : fail(&why, ENOMEM, "no memory to plan a merge");

        if (r == 0 && !merge_job_flag(job, "force"))
                r = merges_ask_strangers(vm, answer, reason, &why);
        if (r < 0)
                return begin_refused(vm, job, &why, err);
        if (reason[0])
                return merges_wait_for(vm, job, true, reason, err);
        r = put_run(job, run, answer, err);
        if (r == 0)
                r = put_followers(vm, jobs, job, run, err);
        return r == 0 ? begin(vm, job, false, err) : r;
}

/* Its image is needed again (it was a detached disk's parent and is a disk's own), or gone. */
static int drop_moot(struct vm *vm, struct merge_job *job, bool *ret_dropped, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        const char *image = merge_job_text(job, "image");
        int r = image ? catalog_image_find(vm->broker->catalog, image, &row, NULL) : -ENOENT;

        *ret_dropped = false;
        if (r < 0 && r != -ENOENT)
                return fail_os(err, -r, "cannot look for '%s' in the catalog", image);
        if (r == 0 && strcmp(row.state, IMAGE_HIDDEN) == 0)
                return 0;
        *ret_dropped = true;
        broker_log(vm->broker, BROKER_LOG_INFO, vm->id, "job %lld has nothing to merge: '%s' is %s",
                (long long)job->row.id, image ? image : "", r == 0 ? row.state : "gone");
        merge_job_set(job, JOB_DONE); /* for those who look at it in this round */
        return catalog_job_delete(vm->broker->catalog, job->row.id, err);
}

/* The disk that stands on it was attached to another vm since: the job is that one's. */
static int move_away(struct vm *vm, struct merge_job *job, bool *ret_moved, struct error *err)
{
        const char *image = merge_job_text(job, "image");
        _cleanup_(vm_unrefp) struct vm *other = NULL;
        char owner[UUID_TEXT_SIZE] = "";
        int r = image && merge_job_flag(job, "stuck")
                ? hidden_owner(vm->broker->catalog, image, owner, err)
                : 0;

        *ret_moved = r == 0 && owner[0] && strcmp(owner, vm->id) != 0;
        if (!*ret_moved)
                return r;
        memcpy(job->row.vm, owner, sizeof(owner));
        json_object_del(job->payload, "leader");
        r = merges_save(vm, job, err);
        if (r == 0 && vm_peek(vm->broker, owner, &other, NULL, NULL) == 0) {
                other->has_merges = true;
                merges_kick(other);
        }
        merge_job_set(job, JOB_DONE); /* for those who look at it in this round */
        return r;
}

/* A job that waits: can it begin? */
static int try_begin(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err)
{
        _cleanup_(hidden_run_done) struct hidden_run run = {0};
        int64_t leader = merge_job_number(job, "leader");
        const struct merge_job *other = leader ? merge_jobs_find(jobs, leader) : NULL;
        bool dropped;
        int r;

        if (other && merge_job_run(other) && !merge_job_is(other, JOB_DONE))
                return 0;
        r = move_away(vm, job, &dropped, err);
        if (r < 0 || dropped)
                return r < 0 ? r : 1;
        json_object_del(job->payload, "leader");
        if (merge_job_run(job))
                return begin_again(vm, job, err);
        r = drop_moot(vm, job, &dropped, err);
        if (r < 0 || dropped)
                return r < 0 ? r : 1;
        r = hidden_run_find(vm->broker->catalog, jobs, job, off, &run, err);
        if (r < 0)
                return r;
        return run.top ? plan(vm, jobs, job, &run, err)
                       : merges_wait_for(vm, job, run.stuck, run.reason, err);
}

/* ---- finishing ---- */

/* The paths of those who stand on what goes, and are told of another parent; with those that a death has left told,
 * perhaps not quite. Allocated, also on failure. */
static int list_children(
        struct catalog *catalog, const struct merge_job *job, json_t **ret, struct error *err)
{
        const json_t *run = merge_job_run(job);
        const char *direction = json_string_value(json_object_get(run, "direction"));
        struct image_row *rows = NULL;
        size_t n = 0;
        int r = 0;

        *ret = json_array();
        if (!*ret)
                return fail(err, ENOMEM, "no memory for a list");
        if (direction && strcmp(direction, "down") == 0)
                r = catalog_image_children(
                        catalog, json_string_value(json_object_get(run, "top")), &rows, &n, err);
        for (size_t i = 0; i < n; i++)
                json_array_append_new(*ret, json_string(rows[i].path));
        image_rows_free(rows, n);
        merges_add_paths(*ret, json_object_get(run, "moved"));
        return r;
}

/* They are relinked, so they are written to; those of the chain itself, too, but of these the engine knows. */
static int find_children(struct vm *vm, const struct merge_job *job, const char *chain,
        json_t **ret, struct error *err)
{
        json_auto_t *paths = NULL, *list = json_array();
        json_t *path;
        size_t i;
        int r = list ? list_children(vm->broker->catalog, job, &paths, err)
                     : fail(err, ENOMEM, "no memory for a list");

        json_array_foreach(paths, i, path)
        {
                const char *text = json_string_value(path);
                _cleanup_(image_row_done) struct image_row row = {0};

                if (r == 0)
                        r = catalog_image_find(vm->broker->catalog, text, &row, err);
                if (r == -ENOENT) { /* it has gone with another merge */
                        error_clear(err);
                        r = 0;
                        continue;
                }
                if (r < 0)
                        return r;
                if (!worker_chain_has(worker_chain_find(vm, chain), text))
                        json_array_append(list, path);
                r = worker_grant_image(vm, &row, LINK_READ | LINK_WRITE, err);
                if (r < 0)
                        return r;
        }
        if (r == 0)
                *ret = json_incref(list);
        return r;
}

/* Chains beside the merge's that have layers which go: what is open for another merge is closed, and its
 * job begins again; a snapshot's that nobody reads is closed. */
static int close_others(
        struct vm *vm, const struct merge_job *job, const char *chain, struct error *err)
{
        const json_t *images = json_object_get(merge_job_run(job), "images");
        int r = 0;

        worker_snapshots_close(vm, NULL, false);
        for (size_t i = vm->n_chains; r == 0 && i-- > 0;) {
                int64_t other;
                bool has = false;

                if (strcmp(vm->chains[i].name, chain) == 0 ||
                        !merges_own_job(vm->chains[i].name, &other))
                        continue;
                for (size_t k = 0; k < vm->chains[i].n_paths && !has; k++)
                        has = json_has_text(images, vm->chains[i].paths[k]);
                if (has)
                        r = merges_end_in_worker(vm, other, err);
        }
        return r;
}

void merges_forget_file(struct vm *vm, const char *path)
{
        if (vm->link && vm->up)
                worker_image_forget(vm, path);
}

/* After the worker has done it. Answers 1: other jobs' rows have changed. */
static int finish_here(
        struct vm *vm, struct merge_job *job, const json_t *layers, struct error *err)
{
        json_auto_t *images = json_deep_copy(json_object_get(merge_job_run(job), "images"));
        bool shared = json_is_true(json_object_get(merge_job_run(job), "shared"));
        struct error why = ERROR_INIT;
        int64_t id = job->row.id;
        int r;

        worker_chain_merged(vm, shared ? merge_job_destination(job) : NULL, images);
        r = merges_commit(vm, job, layers, merges_forget_file, err);
        if (r < 0) {
                /* The worker has done it, and will say so (M2). */
                vm_set_down(vm, err ? err->message : "a merge could not be noted");
                return r;
        }
        if (merges_end_in_worker(vm, id, &why) < 0 || merges_refresh_paths(vm, &why) < 0 ||
                worker_grants_renew(vm, &why) < 0 || worker_renew_exports(vm, &why) < 0)
                broker_log_error(vm->broker, vm->id, &why);
        vm_changed(vm, "merged", json_pack("{s:I, s:O}", "job", (json_int_t)id, "files", images));
        return 1;
}

/* Its end failed, perhaps after all that counts was done: the files say so. Then the chain is opened anew,
 * as they are. */
static int settle_failed(
        struct vm *vm, struct merge_job *job, const struct error *why, struct error *err)
{
        int64_t id = job->row.id;
        bool finished = false;
        int r = merges_end_in_worker(vm, id, err);

        if (r == 0)
                r = merges_settle(vm, job, &finished, err);
        if (r < 0)
                return r;
        if (finished) {
                vm_set_down(vm, why->message);
                return 1;
        }
        if (why->code != EHOSTDOWN) /* a broker before us had died */
                return merges_note_failure(vm, job, why->code, why->message, err);
        merges_kick(vm);
        return 0;
}

/* Cut off in the middle, some of them have another head already. */
static int unseal_children(struct catalog *catalog, const struct merge_job *job, struct error *err)
{
        json_auto_t *paths = NULL;
        json_t *path;
        size_t i;
        int r = list_children(catalog, job, &paths, err);

        json_array_foreach(paths, i, path)
        {
                if (r == 0)
                        r = seals_clear(catalog, json_string_value(path), err);
        }
        return r;
}

/* M2. */
static int put_finishing(struct vm *vm, struct merge_job *job, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        merge_job_set(job, JOB_FINISHING);
        r = merge_job_save(catalog, job, err);
        if (r == 0)
                r = unseal_children(catalog, job, err);
        return catalog_end(catalog, r, err);
}

static int finish(struct vm *vm, struct merge_job *job, const char *chain, struct error *err)
{
        json_auto_t *children = NULL, *answer = NULL;
        struct error why = ERROR_INIT;
        int r = seals_stop(vm, err); /* its image may be one of those that are relinked */

        if (r == 0)
                r = close_others(vm, job, chain, err);
        if (r == 0)
                r = find_children(vm, job, chain, &children, err);
        if (r == 0)
                r = put_finishing(vm, job, err);
        if (r < 0)
                return r;
        r = worker_call(vm, "merge.finish",
                json_pack("{s:I, s:O}", "job", (json_int_t)job->row.id, "children", children),
                FINISH_MS, &answer, &why);
        if (r == 0)
                return finish_here(vm, job, json_object_get(answer, "layers"), err);
        if (r == -EHOSTDOWN || r == -ETIMEDOUT) {
                *err = why;
                return r;
        }
        if (r != -EBUSY && r != -ENOSPC)
                return settle_failed(vm, job, &why, err);
        if (merges_follow_files(vm, job, err) < 0)
                return -err->code;
        if (r == -ENOSPC) {
                r = merges_end_in_worker(vm, job->row.id, err);
                return r < 0 ? r : merges_note_failure(vm, job, why.code, why.message, err);
        }
        merge_job_set_text(job, "reason", why.message); /* later, once more */
        return merges_save(vm, job, err);
}

/* ---- step by step ---- */

/* It runs on a chain of its own, and a disk goes on over its top by now: there it must go on. */
static bool is_on_wrong_chain(struct vm *vm, const struct merge_job *job, const char *chain)
{
        const json_t *run = merge_job_run(job);
        const char *top = json_string_value(json_object_get(run, "top"));
        const struct vm_chain *live = merges_live_chain(vm, json_object_get(run, "hidden"), top);

        return live && strcmp(live->name, chain) != 0;
}

static int run_in_worker(struct vm *vm, const struct merge_job *job, const struct merging *merging,
        struct error *err)
{
        json_auto_t *said = json_pack("{s:s, s:I, s:I}", "state", "running", "bytes-done",
                (json_int_t)merging->done, "bytes-total", (json_int_t)merging->total);
        /* Before: what the worker tells then is newer. */
        int r = merging_remember(vm, job->row.id, merging->chain, said, err);

        return r < 0 ? r
                     : worker_call(vm, "merge.resume",
                               json_pack("{s:I}", "job", (json_int_t)job->row.id), WORKER_CALL_MS,
                               NULL, err);
}

/* The worker does not have it, or shall not have it any more as it is. */
static int begin_anew(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err)
{
        struct merging merging;
        int r = 0;

        if (merges_look(vm, job->row.id, &merging))
                r = merges_end_in_worker(vm, job->row.id, err);
        if (r < 0)
                return r;
        return merge_job_is_compact(job) ? compact_begin(vm, jobs, job, off, err)
                                         : begin_again(vm, job, err);
}

/* A broker before us had died under it; or a snapshot has given a disk that is compacted another leaf. */
static bool failed_for_now(const struct merge_job *job, const struct merging *merging)
{
        return merging->code == EHOSTDOWN || (merging->code == ESTALE && merge_job_is_compact(job));
}

static int follow(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err)
{
        _cleanup_free_ char *why = NULL;
        bool compact = merge_job_is_compact(job), finished;
        struct merging merging;
        int r;

        if (!merges_look(vm, job->row.id, &merging)) {
                /* How far its end came is to be known before anything else. */
                if (merge_job_is(job, JOB_FINISHING)) {
                        r = merges_settle(vm, job, &finished, err);
                        if (r == 0 && finished) /* what is open is not what there is any more */
                                vm_set_down(vm, "a merge had ended");
                        if (r < 0 || finished)
                                return r < 0 ? r : 1;
                }
                return begin_anew(vm, jobs, job, off, err);
        }
        merges_keep_progress(job, &merging);
        if (strcmp(merging.state, "failed") == 0) {
                if (failed_for_now(job, &merging))
                        return begin_anew(vm, jobs, job, off, err);
                why = merging_error(vm, job->row.id);
                /* Others need not wait for it; when it is asked for again it goes on from what the files say. */
                r = merges_end_in_worker(vm, job->row.id, err);
                if (r < 0)
                        return r;
                return merges_note_failure(vm, job, merging.code, why ? why : "it failed", err);
        }
        if (!compact && is_on_wrong_chain(vm, job, merging.chain))
                return begin_anew(vm, jobs, job, off, err);
        if (strcmp(merging.state, "done") == 0)
                return compact ? compact_finish(vm, job, err) : finish(vm, job, merging.chain, err);
        if (strcmp(merging.state, "paused") == 0)
                return run_in_worker(vm, job, &merging, err);
        return 0;
}

int merges_resume_in_worker(struct vm *vm, struct merge_job *job, struct error *err)
{
        struct merging merging;
        int r;

        merge_job_clear_failure(job);
        merge_job_set(job, merge_job_run(job) ? JOB_RUNNING : JOB_WAITING);
        r = merges_save(vm, job, err);
        merges_kick(vm);
        if (r < 0 || !merges_look(vm, job->row.id, &merging))
                return r;
        if (strcmp(merging.state, "done") == 0)
                return 0;
        return run_in_worker(vm, job, &merging, err);
}

/* 0 or -errno: what is wrong with one job is noted there and does not stop the others. */
int merges_advance(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err)
{
        if (merge_job_is(job, JOB_RUNNING) || merge_job_is(job, JOB_FINISHING))
                return follow(vm, jobs, job, off, err);
        if (merge_job_is(job, JOB_WAITING) && merge_job_is_compact(job))
                return compact_begin(vm, jobs, job, off, err);
        if (merge_job_is(job, JOB_WAITING))
                return try_begin(vm, jobs, job, off, err);
        if (merge_job_is(job, JOB_PAUSED) && merges_have_space(job))
                return merges_resume_in_worker(vm, job, err);
        return 0;
}
