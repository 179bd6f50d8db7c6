/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl status, events, metrics, doctor, restart, shutdown - the daemon itself. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

/* The daemon ends within 30 s; then something is wrong. */
#define SHUTDOWN_MS 40000
#define RESTART_MS  20000
#define PAUSE_MS    20

/* --- status --- */

static int show_status(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const counts[] = {
                "vms", "disks", "snapshots", "clients", "workers", "jobs"};
        char time[SHOW_TIME_MAX];
        json_t *uri;
        size_t i;

        show_line(0, "version", "%s", show_text(result, "version"));
        show_line(0, "pid", "%" PRId64, show_number(result, "pid"));
        show_line(0, "started", "%s", show_time(result, "started", time));
        show_line(0, "state dir", "%s", show_text(result, "state-dir"));
        if (show_text(result, "control")[0])
                show_line(0, "control", "%s", show_text(result, "control"));
        json_array_foreach(json_object_get(result, "nbd"), i, uri)
                show_line(0, "nbd", "%s", json_is_string(uri) ? json_string_value(uri) : "");
        for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
                if (json_object_get(result, counts[i]))
                        show_line(0, counts[i], "%" PRId64, show_number(result, counts[i]));
        return CTL_DONE;
}

/* --- events --- */

static int take_type(json_t *params, const char *value, struct error *err)
{
        json_t *types = json_object_get(params, "types");

        if (!types) {
                types = json_array();
                json_object_set_new(params, "types", types);
        }
        json_array_append_new(types, json_text(value));
        return 0;
}

/* "15:47:01 snapshot web name=monday" */
static void show_event(const json_t *event)
{
        const char *time = show_text(event, "time"), *key;
        const char *clock = strchr(time, 'T');
        _cleanup_free_ char *type = text_safe(show_text(event, "type"));
        _cleanup_free_ char *vm = text_safe(show_text(event, "vm"));
        json_t *value;

        printf("%.8s %s", clock ? clock + 1 : "", type);
        if (vm[0])
                printf(" %s", vm);
        json_object_foreach((json_t *)event, key, value)
        {
                _cleanup_free_ char *text = NULL, *safe = NULL;

                if (strcmp(key, "type") == 0 || strcmp(key, "vm") == 0 || strcmp(key, "time") == 0)
                        continue;
                text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
                safe = text_safe(json_is_string(value) ? json_string_value(value)
                                : text                 ? text
                                                       : "");
                printf(" %s=%s", key, safe);
        }
        printf("\n");
}

static int watch(struct ctl *ctl, struct control *control, struct error *err)
{
        while (fflush(stdout) == 0) {
                _cleanup_json_ json_t *message = NULL;
                const json_t *event;
                int r = control_next(control, -1, &message, NULL, NULL, err);

                if (r < 0)
                        return r;
                event = json_object_get(message, "params");
                if (ctl->json) {
                        json_dumpf(event, stdout, JSON_COMPACT);
                        fputc('\n', stdout);
                } else {
                        show_event(event);
                }
        }
        return CTL_DONE; /* whoever read them left; the frame looks at stdout */
}

static int run_events(struct ctl *ctl, struct error *err)
{
        _cleanup_json_ json_t *result = NULL;
        struct control *control;
        int r = daemon_connect(ctl, &control, err);

        if (r == 0 && ctl->n_operands == 1)
                json_object_set_new(ctl->params, "vm", json_text(ctl->operands[0]));
        if (r == 0)
                r = control_call(
                        control, "events.subscribe", json_incref(ctl->params), &result, err);
        return r < 0 ? r : watch(ctl, control, err);
}

/* --- metrics --- */

static int show_metrics(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        fputs(show_text(result, "text"), stdout);
        return CTL_DONE;
}

/* The labels of NAME{a="b",c="d"}: from behind the brace to behind the closing one. */
static const char *read_labels(const char *p, json_t *labels)
{
        while (*p && *p != '}') {
                size_t name = strcspn(p, "=}");
                char key[128], value[512];
                size_t used = 0;

                snprintf(key, sizeof(key), "%.*s", (int)name, p);
                p += name;
                if (strncmp(p, "=\"", 2) != 0)
                        break;
                for (p += 2; *p && *p != '"'; p++) {
                        bool escaped = *p == '\\' && p[1];

                        p += escaped;
                        if (used < sizeof(value) - 1)
                                value[used++] = escaped && *p == 'n' ? '\n' : *p;
                }
                value[used] = '\0';
                json_object_set_new(labels, key, json_text(value));
                p += *p == '"';
                p += *p == ',';
        }
        return *p == '}' ? p + 1 : p;
}

/* One line of OpenMetrics, NAME[{LABELS}] VALUE, as {name, labels, value}; NULL for a comment. */
static json_t *sample_to_json(const char *line)
{
        size_t length = strcspn(line, "{ ");
        json_t *labels, *sample;
        const char *rest;
        double value;
        char *end;

        if (line[0] == '#' || length == 0)
                return NULL;
        labels = json_object();
        rest = line[length] == '{' ? read_labels(line + length + 1, labels) : line + length;
        value = strtod(rest, &end);
        sample = json_object();
        json_object_set_new(sample, "name", json_stringn(line, length));
        json_object_set_new(sample, "labels", labels);
        json_object_set_new(sample, "value",
                value == (double)(json_int_t)value ? json_integer((json_int_t)value)
                                                   : json_real(value));
        return sample;
}

static json_t *metrics_to_json(const json_t *result)
{
        _cleanup_free_ char *text = strdup(show_text(result, "text"));
        json_t *list = json_array();
        char *rest = text, *line;

        while (rest && (line = strsep(&rest, "\n"))) {
                json_t *sample = sample_to_json(line);

                if (sample)
                        json_array_append_new(list, sample);
        }
        return list;
}

/* --- doctor --- */

static int show_findings(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *findings = json_object_get(result, "findings");
        const json_t *rebuilt = json_object_get(result, "rebuilt");
        json_t *finding;
        size_t i;

        if (rebuilt)
                printf("%s out of the files: %" PRId64 " vms, %" PRId64 " disks, %" PRId64
                       " snapshots\n",
                        ctl->dry_run ? "would be rebuilt" : "rebuilt", show_number(rebuilt, "vms"),
                        show_number(rebuilt, "disks"), show_number(rebuilt, "snapshots"));
        json_array_foreach((json_t *)findings, i, finding)
        {
                _cleanup_free_ char *message = text_safe(show_text(finding, "message"));
                _cleanup_free_ char *hint = text_safe(show_text(finding, "hint"));

                printf("%-8s %s: %s\n", show_text(finding, "severity"), show_text(finding, "id"),
                        message);
                if (hint[0])
                        printf("         %s\n", hint);
        }
        if (json_array_size(findings) == 0 && !ctl->quiet)
                printf("nothing is wrong\n");
        return CTL_DONE;
}

/* Damage remains: the answer is no. */
static int judge_findings(const json_t *result)
{
        json_t *finding;
        size_t i;

        json_array_foreach(json_object_get(result, "findings"), i,
                finding) if (strcmp(show_text(finding, "severity"), "damage") == 0) return CTL_NO;
        return CTL_DONE;
}

/* --- restart, shutdown --- */

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

/* Answers when the daemon has closed this connection, which it does on its way out. */
static int wait_until_closed(struct control *control, int64_t end_ms, struct error *err)
{
        while (now_ms() < end_ms) {
                _cleanup_json_ json_t *message = NULL;
                struct error ignored = ERROR_INIT;
                int r = control_next(
                        control, (int)(end_ms - now_ms()), &message, NULL, NULL, &ignored);

                if (r < 0 && r != -ETIMEDOUT)
                        return 0;
        }
        return fail(err, ETIMEDOUT, "the daemon took the request, and goes on after %d s",
                SHUTDOWN_MS / 1000);
}

/* Waits for the process itself, where it can be seen: workers may end after the connection has. */
static int wait_until_dead(int pidfd, int64_t end_ms, struct error *err)
{
        struct pollfd fd = {.fd = pidfd, .events = POLLIN};
        int64_t left = end_ms - now_ms();

        if (pidfd < 0 || poll(&fd, 1, left > 0 ? (int)left : 0) == 1)
                return 0;
        return fail(err, ETIMEDOUT, "the daemon has not ended within %d s", SHUTDOWN_MS / 1000);
}

static int run_shutdown(struct ctl *ctl, struct error *err)
{
        _cleanup_json_ json_t *status = NULL, *result = NULL;
        _cleanup_fd_ int pidfd = -1;
        struct control *control;
        int64_t end_ms = now_ms() + SHUTDOWN_MS;
        int r = daemon_connect(ctl, &control, err);

        if (r == 0)
                r = control_call(control, "status", NULL, &status, err);
        if (r < 0)
                return r;
        if (control_peer_pid(control) == show_number(status, "pid"))
                pidfd = (int)syscall(SYS_pidfd_open, (pid_t)show_number(status, "pid"), 0);
        if (ctl->dry_run)
                json_object_set_new(ctl->params, "dry-run", json_true());
        r = control_call(control, "shutdown", json_incref(ctl->params), &result, err);
        if (r == 0 && !ctl->dry_run)
                r = wait_until_closed(control, end_ms, err);
        if (r == 0 && !ctl->dry_run)
                r = wait_until_dead(pidfd, end_ms, err);
        if (r < 0)
                return r;
        if (ctl->json)
                json_print(json_incref(result));
        else if (!ctl->quiet)
                printf(ctl->dry_run ? "the daemon would end\n" : "the daemon has ended\n");
        return CTL_DONE;
}

/* The daemon that answers now, whichever it is; tries until @end_ms. */
static int ask_again(struct ctl *ctl, int64_t end_ms, json_t **ret, struct error *err)
{
        for (;;) {
                const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000000};
                int r;

                daemon_disconnect();
                r = daemon_call(ctl, "status", NULL, ret, err);
                if (r == 0 || now_ms() > end_ms)
                        return r;
                error_clear(err);
                nanosleep(&pause, NULL);
        }
}

static int run_restart(struct ctl *ctl, struct error *err)
{
        _cleanup_json_ json_t *result = NULL, *status = NULL;
        struct control *control;
        int64_t end_ms = now_ms() + RESTART_MS;
        int r = daemon_connect(ctl, &control, err);

        if (r == 0 && ctl->dry_run)
                json_object_set_new(ctl->params, "dry-run", json_true());
        if (r == 0)
                r = control_call(control, "restart", json_incref(ctl->params), &result, err);
        if (r == 0 && !ctl->dry_run)
                r = wait_until_closed(control, end_ms, err);
        if (r == 0 && !ctl->dry_run)
                r = ask_again(ctl, end_ms, &status, err);
        if (r < 0)
                return r;
        if (ctl->json)
                json_print(json_incref(status ? status : result));
        else if (!ctl->quiet)
                printf(ctl->dry_run ? "the daemon would be restarted\n"
                                    : "the daemon is running anew\n");
        return CTL_DONE;
}

/* --- the verbs --- */

const struct command command_status = {
        .name = "status",
        .operands = "",
        .summary = "what the daemon is and does",
        .doc = "Show the daemon's version, where it listens, and how much it has to do."
               "\v"
               "Examples:\n"
               "  vhdctl status\n"
               "  vhdctl status --control /srv/vhdd/control.sock",
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "status", .show = show_status},
};

const struct command command_events = {
        .name = "events",
        .operands = "[VM]",
        .summary = "print what happens, as it happens",
        .doc = "Print events as they come: snapshots, clients, workers, jobs, full disks. With --json "
               "each is one object on a line of its own. Ends with the daemon."
               "\v"
               "Examples:\n"
               "  vhdctl events\n"
               "  vhdctl events web --type snapshot --json",
        .n_operands_max = 1,
        .run = run_events,
        .daemon = &(const struct daemon_verb){.method = "events.subscribe",
                .options =
                        (const struct param[]){
                                {"type", PARAM_OWN, "TYPE",
                                        "Only events of this type (again for more)", take_type},
                                {0}}},
};

const struct command command_metrics = {
        .name = "metrics",
        .operands = "",
        .summary = "counters and histograms, as OpenMetrics",
        .doc = "Print the daemon's metrics in the text form that Prometheus reads; with --json as a list "
               "of samples."
               "\v"
               "Examples:\n"
               "  vhdctl metrics | grep stall",
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "metrics", .show = show_metrics, .to_json = metrics_to_json},
};

const struct command command_doctor = {
        .name = "doctor",
        .operands = "",
        .summary = "find what is wrong between catalog and files",
        .doc = "Look for orphans, missing files, wrong ids, changed parents, long chains, low space. "
               "Each finding has an id, a severity, and the command that mends it. With --rebuild the "
               "catalog is made anew out of the files that stand beside the images."
               "\v"
               "Examples:\n"
               "  vhdctl doctor\n"
               "  vhdctl doctor --rebuild --dry-run",
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "doctor",
                .options =
                        (const struct param[]){
                                {"rebuild", PARAM_FLAG, NULL, "Make the catalog anew", NULL}, {0}},
                .changes = true,
                .show = show_findings,
                .judge = judge_findings},
};

const struct command command_restart = {
        .name = "restart",
        .operands = "",
        .summary = "execute the daemon anew; clients go on",
        .doc = "Let the daemon execute itself anew, for instance after an upgrade. Workers, and the "
               "guests that use them, go on. Returns when the new one answers."
               "\v"
               "Examples:\n"
               "  vhdctl restart",
        .run = run_restart,
        .daemon = &(const struct daemon_verb){.method = "restart", .changes = true},
};

const struct command command_shutdown = {
        .name = "shutdown",
        .operands = "",
        .summary = "stop the daemon and everything that it serves",
        .doc = "Stop everything: what is under way is finished, images are flushed and closed, workers "
               "end. Returns when the daemon is gone."
               "\v"
               "Examples:\n"
               "  vhdctl shutdown",
        .run = run_shutdown,
        .daemon = &(const struct daemon_verb){.method = "shutdown", .changes = true},
};
