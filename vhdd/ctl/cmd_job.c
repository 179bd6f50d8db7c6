/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl job ... - long work of the daemon. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/jobs.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/show.h"

#define PAUSE_MS 200
#define STUCK_MS 1000u

static int show_jobs(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {
                ">JOB", "KIND", "VM", "STATE", ">DONE", ">OF", "CREATED", "WHAT", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], time[SHOW_TIME_MAX];
        json_t *job;
        size_t i;

        json_array_foreach((json_t *)result, i, job)
        {
                table_cell(table, "%" PRId64, show_number(job, "id"));
                table_cell(table, "%s", show_text(job, "kind"));
                table_cell(table, "%s", show_text(job, "vm"));
                table_cell(table, "%s", show_text(job, "state"));
                table_cell(table, "%s", show_size(job, "done", size));
                table_cell(table, "%s", show_size(job, "total", size));
                table_cell(table, "%s", show_time(job, "created", time));
                table_cell(table, "%s",
                        show_text(job, "error")[0] ? show_text(job, "error")
                                                   : show_text(job, "what"));
        }
        table_print(table, stdout);
        if (json_array_size(result) == 0 && !ctl->quiet)
                printf("no jobs\n");
        return CTL_DONE;
}

/* Nothing becomes of it by itself any more. That it is stuck is asked more than once: the daemon looks
 * anew behind a change that has just been answered. */
static bool is_over(const json_t *job, unsigned *n_stuck)
{
        const char *state = show_text(job, "state");

        *n_stuck = show_flag(job, "stuck") ? *n_stuck + 1 : 0;
        return strcmp(state, "done") == 0 || strcmp(state, "failed") == 0 ||
                strcmp(state, "cancelled") == 0 || *n_stuck * PAUSE_MS >= STUCK_MS;
}

/* How far it is, in words that a bar can be made of. */
static void follow(struct ctl *ctl, struct progress **bar, uint64_t *shown, const json_t *job)
{
        uint64_t done = (uint64_t)show_number(job, "done");

        if (!*bar && show_number(job, "total") > 0)
                *bar = progress_new(ctl, "job", (uint64_t)show_number(job, "total"));
        if (*bar && done > *shown) {
                progress_add(*bar, done - *shown);
                *shown = done;
        }
}

static int await(struct ctl *ctl, json_int_t id, json_t **ret, struct error *err)
{
        const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000};
        struct progress *bar = NULL;
        unsigned n_stuck = 0;
        uint64_t shown = 0;
        json_t *job = NULL;
        int r;

        for (;;) {
                r = daemon_call(ctl, "job.show", json_pack("{s:I}", "id", id), &job, err);
                if (r < 0 || is_over(job, &n_stuck))
                        break;
                follow(ctl, &bar, &shown, job);
                json_decref(job);
                job = NULL;
                nanosleep(&pause, NULL);
        }
        if (bar)
                progress_end(bar, r == 0 && strcmp(show_text(job, "state"), "done") == 0);
        if (r == 0)
                *ret = job;
        return r;
}

/* A job that failed fails the command that waits for it. */
static int verdict(const json_t *job, struct error *err)
{
        if (strcmp(show_text(job, "state"), "done") == 0)
                return 0;
        if (show_flag(job, "stuck"))
                return fail(err, EBUSY, "job %" PRId64 " waits: %s", show_number(job, "id"),
                        show_text(job, "reason"));
        return fail(err, ECANCELED, "job %" PRId64 " %s%s%s", show_number(job, "id"),
                show_text(job, "state"), show_text(job, "error")[0] ? ": " : "",
                show_text(job, "error"));
}

static int await_all(struct ctl *ctl, const json_t *jobs, json_t *over, struct error *err)
{
        json_t *job;
        size_t i;

        json_array_foreach((json_t *)jobs, i, job)
        {
                json_t *end = NULL;
                int r = await(ctl, show_number(job, "id"), &end, err);

                if (r == -ENOENT) { /* it was done, and is forgotten */
                        error_clear(err);
                        continue;
                }
                if (r < 0)
                        return r;
                json_array_append_new(over, end);
                r = verdict(end, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

int jobs_follow(struct ctl *ctl, const json_t *ids, struct error *err)
{
        json_t *id;
        size_t i;

        json_array_foreach((json_t *)ids, i, id)
        {
                _cleanup_json_ json_t *end = NULL;
                int r = await(ctl, json_integer_value(id), &end, err);

                if (r == -ENOENT) {
                        error_clear(err);
                        continue;
                }
                if (r == 0 && show_flag(end, "stuck")) {
                        if (!ctl->quiet && !ctl->json)
                                printf("job %" PRId64 " waits: %s\n", show_number(end, "id"),
                                        show_text(end, "reason"));
                        continue;
                }
                if (r == 0)
                        r = verdict(end, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static bool does_not_wait;

int job_take_no_wait(json_t *params, const char *value, struct error *err)
{
        does_not_wait = true;
        return 0;
}

int job_follow_result(struct ctl *ctl, json_t *result, struct error *err)
{
        const json_t *job = json_object_get(result, "job");
        _cleanup_json_ json_t *ids = NULL;
        int r;

        if (!job || does_not_wait)
                return 0;
        ids = json_pack("[I]", (json_int_t)show_number(job, "id"));
        r = ids ? jobs_follow(ctl, ids, err) : fail(err, ENOMEM, "no memory for a job");
        if (r == 0)
                json_object_del(result, "job");
        return r;
}

static int run_wait(struct ctl *ctl, struct error *err)
{
        static const struct param operand = {"id", PARAM_NUMBER, NULL, NULL, NULL};
        _cleanup_json_ json_t *jobs = NULL, *over = json_array();
        int r = 0;

        if (ctl->n_operands == 1) {
                r = daemon_take(ctl->params, &operand, ctl->operands[0], err);
                if (r == 0)
                        jobs = json_pack("[O]", ctl->params);
        } else {
                r = daemon_call(ctl, "job.list", NULL, &jobs, err);
        }
        if (r == 0)
                r = await_all(ctl, jobs, over, err);
        if (r < 0)
                return r;
        if (ctl->json)
                json_print(json_incref(over));
        else if (!ctl->quiet)
                show_jobs(ctl, ctl->params, over);
        return CTL_DONE;
}

static int show_job(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        _cleanup_json_ json_t *list = json_pack("[O]", result);

        return show_jobs(ctl, params, list);
}

static int show_facts(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        char done[SIZE_TEXT_MAX], total[SIZE_TEXT_MAX], rate[SIZE_TEXT_MAX], time[SHOW_TIME_MAX];
        json_t *image;
        size_t i;

        printf("job %" PRId64 " (%s) of vm %s: %s, since %s\n", show_number(result, "id"),
                show_text(result, "kind"), show_text(result, "vm"), show_text(result, "state"),
                show_time(result, "created", time));
        printf("%s\n", show_text(result, "what"));
        if (show_text(result, "error")[0])
                printf("error: %s\n", show_text(result, "error"));
        if (show_number(result, "total") > 0)
                printf("%s of %s\n", show_size(result, "done", done),
                        show_size(result, "total", total));
        if (show_number(result, "rate") > 0)
                printf("%s a second, %" PRId64 " s left\n", show_size(result, "rate", rate),
                        show_number(result, "seconds-left"));
        if (show_number(result, "limit") > 0)
                printf("at most %s a second\n", show_size(result, "limit", rate));
        json_array_foreach(json_object_get(result, "images"), i, image)
                printf("goes: %s\n", json_string_value(image));
        if (show_text(result, "destination")[0])
                printf("stays: %s\n", show_text(result, "destination"));
        return CTL_DONE;
}

static const struct param job_operands[] = {{"id", PARAM_NUMBER, NULL, NULL, NULL}, {0}};

const struct command command_job_list = {
        .name = "job list",
        .operands = "[VM]",
        .summary = "long work, and what waits to be done",
        .doc = "List the daemon's jobs, of one vm or of all: merges and compactions, and with --all also the "
               "seals of images that became parents, which are made in the background."
               "\v"
               "Examples:\n"
               "  vhdctl job list\n"
               "  vhdctl job list web --all",
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.list",
                .operands = (const struct param[]){{"vm", PARAM_TEXT, NULL, NULL, NULL}, {0}},
                .options =
                        (const struct param[]){
                                {"all", PARAM_FLAG, NULL,
                                        "seals too, which are made in the background", NULL},
                                {0}},
                .show = show_jobs},
};

const struct command command_job_wait = {
        .name = "job wait",
        .operands = "[JOB]",
        .summary = "wait until a job, or every job, is over",
        .doc = "Wait until the job with this number is over, or all that there are now. Fails if one "
               "failed."
               "\v"
               "Examples:\n"
               "  vhdctl job wait 7",
        .n_operands_max = 1,
        .run = run_wait,
        .daemon = &(const struct daemon_verb){.method = "job.show"},
};

const struct command command_job_show = {
        .name = "job show",
        .operands = "JOB",
        .summary = "one job: what it does, and how far it is",
        .doc = "Show a job: which files go, which one stays, how far it is, and why it waits or failed."
               "\v"
               "Examples:\n"
               "  vhdctl job show 7",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "job.show", .operands = job_operands, .show = show_facts},
};

const struct command command_job_pause = {
        .name = "job pause",
        .operands = "JOB",
        .summary = "stop a job for a while",
        .doc = "Stop a job at the next place where that can be, until `vhdctl job resume'. The disk goes on "
               "meanwhile."
               "\v"
               "Examples:\n"
               "  vhdctl job pause 7",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.pause",
                .operands = job_operands,
                .changes = true,
                .show = show_job},
};

const struct command command_job_resume = {
        .name = "job resume",
        .operands = "JOB",
        .summary = "go on with a job that was paused, failed or was cancelled",
        .doc = "Go on with a job. With --force a merge goes on although a seal says that one of its images "
               "was changed behind the back of those that stand on it."
               "\v"
               "Examples:\n"
               "  vhdctl job resume 7",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.resume",
                .operands = job_operands,
                .takes_force = true,
                .changes = true,
                .show = show_job},
};

const struct command command_job_cancel = {
        .name = "job cancel",
        .operands = "JOB",
        .summary = "stop a job until it is asked for again",
        .doc = "Stop a job. A merge is not undone: what was moved stays moved, the disk reads the same, and "
               "the hidden image stays until `vhdctl job resume'."
               "\v"
               "Examples:\n"
               "  vhdctl job cancel 7",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.cancel",
                .operands = job_operands,
                .changes = true,
                .show = show_job},
};

const struct command command_job_limit = {
        .name = "job limit",
        .operands = "JOB RATE",
        .summary = "how fast a job may be",
        .doc = "Let a job move at most RATE bytes a second (K, M, G: powers of 1024); 0: as many as it can."
               "\v"
               "Examples:\n"
               "  vhdctl job limit 7 50M\n"
               "  vhdctl job limit 7 0",
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.limit",
                .operands = (const struct param[]){{"id", PARAM_NUMBER, NULL, NULL, NULL},
                        {"rate", PARAM_SIZE, NULL, NULL, NULL}, {0}},
                .changes = true,
                .show = show_job},
};
