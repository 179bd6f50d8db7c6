/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl job ... - long work of the daemon. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/show.h"

#define PAUSE_MS 200

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

static bool is_over(const json_t *job)
{
        const char *state = show_text(job, "state");

        return strcmp(state, "done") == 0 || strcmp(state, "failed") == 0 ||
                strcmp(state, "cancelled") == 0;
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
        uint64_t shown = 0;
        json_t *job = NULL;
        int r;

        for (;;) {
                r = daemon_call(ctl, "job.show", json_pack("{s:I}", "id", id), &job, err);
                if (r < 0 || is_over(job))
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

const struct command command_job_list = {
        .name = "job list",
        .operands = "[VM]",
        .summary = "long work, and what waits to be done",
        .doc = "List the daemon's jobs, of one vm or of all."
               "\v"
               "Examples:\n"
               "  vhdctl job list",
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "job.list",
                .operands = (const struct param[]){{"vm", PARAM_TEXT, NULL, NULL, NULL}, {0}},
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
