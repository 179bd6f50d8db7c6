/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c - the guest's memory: what it has and needs, told each second; and moved where vmm-host wants.
 *
 * Above startup RAM there is virtio-mem: it is plugged up to what is wanted. Taken back is what the guest
 * lets go of; what it keeps plugged, and what is to be below startup RAM, the balloon takes (balloon.h).
 */
#include <string.h>
#include <time.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define BALLOON "/machine/peripheral/balloon"
#define MORE    "/machine/peripheral/vmem"
#define FRESH_S 3

static uint64_t config_number(struct supervisor *supervisor, const char *name)
{
        return (uint64_t)json_integer_value(json_object_get(supervisor->config, name));
}

static bool has_more(struct supervisor *supervisor)
{
        return config_number(supervisor, "max") > config_number(supervisor, "startup");
}

static int get(struct supervisor *supervisor, const char *path, const char *property, json_t **ret,
        struct error *err)
{
        return qmp_call(supervisor->qmp, "qom-get",
                json_pack("{s:s, s:s}", "path", path, "property", property), ret, err);
}

static int set(struct supervisor *supervisor, const char *path, const char *property,
        uint64_t value, struct error *err)
{
        return qmp_call(supervisor->qmp, "qom-set",
                json_pack("{s:s, s:s, s:I}", "path", path, "property", property, "value",
                        (json_int_t)value),
                NULL, err);
}

static uint64_t plugged(struct supervisor *supervisor)
{
        json_auto_t *size = NULL;

        if (!has_more(supervisor) || get(supervisor, MORE, "size", &size, NULL) < 0)
                return 0;
        return (uint64_t)json_integer_value(size);
}

/* What the guest has of its startup RAM, and of what is plugged. */
static uint64_t balloon_actual(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;

        if (qmp_call(supervisor->qmp, "query-balloon", NULL, &answer, NULL) < 0)
                return config_number(supervisor, "startup");
        return (uint64_t)json_integer_value(json_object_get(answer, "actual"));
}

/* --- moving --- */

static uint64_t wanted_more(struct supervisor *supervisor)
{
        uint64_t startup = config_number(supervisor, "startup"),
                 max = config_number(supervisor, "max");
        uint64_t target = supervisor->memory_target;

        if (target > max)
                target = max;
        if (target <= startup)
                return 0;
        return (target - startup) / CONFIG_MEMORY_UNIT * CONFIG_MEMORY_UNIT;
}

/* Just now: the guest is asked each second, and a busy host may make it two. */
static bool is_fresh(const json_t *stats)
{
        json_int_t told = json_integer_value(json_object_get(stats, "last-update"));
        time_t now = time(NULL);

        return told > 0 && told + FRESH_S >= now && told <= now + FRESH_S;
}

/* Never below 0, which is how QEMU says that it does not know. */
static uint64_t stat(const json_t *answer, const char *name)
{
        json_int_t value =
                json_integer_value(json_object_get(json_object_get(answer, "stats"), name));

        return value > 0 ? (uint64_t)value : 0;
}

/* What was asked for last may be an earlier supervisor's, or come with saved memory. */
static int plug(struct supervisor *supervisor, uint64_t size, struct error *err)
{
        json_auto_t *asked = NULL;
        int r = get(supervisor, MORE, "requested-size", &asked, err);

        return r < 0 || (uint64_t)json_integer_value(asked) == size
                ? r
                : set(supervisor, MORE, "requested-size", size, err);
}

/* @stats: QEMU's "guest-stats", or NULL: then the guest is only given. */
static int move(struct supervisor *supervisor, const json_t *stats, uint64_t has_plugged,
        uint64_t elapsed_ms, struct error *err)
{
        const struct balloon_view view = {
                .startup = config_number(supervisor, "startup"),
                .target = supervisor->memory_target,
                .has = balloon_actual(supervisor),
                .plugged = has_plugged,
                .most_plugged = wanted_more(supervisor),
                .has_told = !stats || json_integer_value(json_object_get(stats, "last-update")) > 0,
                .is_fresh = stats && is_fresh(stats),
                .total = stat(stats, "stat-total-memory"),
                .available = stat(stats, "stat-available-memory"),
        };
        uint64_t next = balloon_next(&supervisor->balloon, &view, elapsed_ms);
        int r = 0;

        if (has_more(supervisor))
                r = plug(supervisor, balloon_plug(&view), err);
        if (r < 0 || next == supervisor->balloon_asked)
                return r;
        r = qmp_call(supervisor->qmp, "balloon", json_pack("{s:I}", "value", (json_int_t)next),
                NULL, err);
        if (r == 0)
                supervisor->balloon_asked = next;
        return r;
}

int step_set_memory(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        json_int_t target = json_integer_value(json_object_get(operation->params, "target"));
        uint64_t startup, max;
        int r = machine_must(supervisor, err);

        if (r < 0)
                return r;
        startup = config_number(supervisor, "startup");
        max = config_number(supervisor, "max");
        if (target < (json_int_t)CONFIG_MEMORY_LEAST || target > (json_int_t)1 << 46)
                return fail(err, EINVAL, "a vm cannot have %" JSON_INTEGER_FORMAT " bytes", target);
        supervisor->memory_target = (uint64_t)target > max ? max : (uint64_t)target;
        r = move(supervisor, NULL, plugged(supervisor), 0, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:I, s:I, s:I}", "target", (json_int_t)supervisor->memory_target,
                "startup", (json_int_t)startup, "requested", (json_int_t)wanted_more(supervisor));
        return 1;
}

/* --- telling --- */

static int set_up(struct supervisor *supervisor, struct error *err)
{
        int r = set(supervisor, BALLOON, "guest-stats-polling-interval", 1, err);

        supervisor->memory_is_set_up = r == 0;
        return r;
}

static void put(json_t *note, const char *name, const json_t *stats, const char *stat)
{
        json_t *value = json_object_get(stats, stat);

        /* -1 and its like: the guest does not say. */
        if (json_is_integer(value) && json_integer_value(value) >= 0)
                json_object_set(note, name, value);
}

static json_t *take_note(struct supervisor *supervisor, const json_t *answer, uint64_t has_plugged)
{
        static const char *const names[][2] = {
                {"total", "stat-total-memory"},
                {"free", "stat-free-memory"},
                {"available", "stat-available-memory"},
                {"disk-caches", "stat-disk-caches"},
                {"swap-in", "stat-swap-in"},
                {"swap-out", "stat-swap-out"},
                {"major-faults", "stat-major-faults"},
                {"minor-faults", "stat-minor-faults"},
        };
        const json_t *stats = json_object_get(answer, "stats");
        uint64_t startup = config_number(supervisor, "startup");
        json_t *note = json_pack("{s:I, s:I, s:I, s:I, s:I, s:O?}", "startup", (json_int_t)startup,
                "max", (json_int_t)config_number(supervisor, "max"), "plugged",
                (json_int_t)has_plugged, "actual",
                (json_int_t)(balloon_actual(supervisor) + has_plugged), "target",
                (json_int_t)supervisor->memory_target, "updated",
                json_object_get(answer, "last-update"));

        /* Before the guest's driver has said anything they are all zero. */
        if (json_integer_value(json_object_get(answer, "last-update")) > 0)
                for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
                        put(note, names[i][0], stats, names[i][1]);
        return note;
}

void memory_tick(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;
        struct error err = ERROR_INIT;
        int64_t now = monotonic_ms(), before = supervisor->memory_looked_ms;
        uint64_t has_plugged;
        int r = 0;

        supervisor->memory_looked_ms = now;
        if (!supervisor->qmp || supervisor->saw_end || !machine_is_running(supervisor))
                return;
        if (!supervisor->memory_is_set_up)
                r = set_up(supervisor, &err);
        if (r == 0)
                r = get(supervisor, BALLOON, "guest-stats", &answer, &err);
        if (r < 0)
                return; /* it is ending, or just loads its memory */
        has_plugged = plugged(supervisor);
        if (supervisor->memory_target > 0)
                move(supervisor, answer, has_plugged, (uint64_t)(now - before), &err);
        if (supervisor->link)
                link_note(supervisor->link, "memory", take_note(supervisor, answer, has_plugged));
}
