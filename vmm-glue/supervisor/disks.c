/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/disks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

/* A guest that has a driver looks at a new disk within some 70 ms. */
#define TAKE_MS   5000
#define REMOVE_MS 10000

/* A new disk and its time. */
struct hot {
        json_t *disk;
        int64_t end_ms;
};

static void hot_free(void *data)
{
        struct hot *hot = data;

        json_decref(hot->disk);
        free(hot);
}

static const char *name_of(const json_t *disk)
{
        const char *name = json_string_value(json_object_get(disk, "name"));

        return name ? name : "?";
}

/* {"disk": as disk.list shows it, "export", "socket"} */
static int hot_begin(struct supervisor *supervisor, struct operation *operation, struct hot **ret,
        struct error *err)
{
        const json_t *listed = json_object_get(operation->params, "disk");
        json_t *export = json_object_get(operation->params, "export");
        json_t *socket = json_object_get(operation->params, "socket");
        struct hot *hot;
        int r = machine_must(supervisor, err);

        if (r < 0)
                return r;
        hot = calloc(1, sizeof(*hot));
        if (!hot)
                return fail(err, ENOMEM, "no memory for a disk");
        operation->data = hot;
        operation->free_data = hot_free;
        r = config_disk(listed, &hot->disk, err);
        if (r < 0)
                return r;
        if (json_is_string(export) && json_is_string(socket)) {
                json_object_set(hot->disk, "export", export);
                json_object_set(hot->disk, "socket", socket);
        }
        *ret = hot;
        return 0;
}

static int refuse_ide(const json_t *disk, const char *what, struct error *err)
{
        if (!config_is_ide(disk))
                return 0;
        fail(err, ENOTSUP,
                "disk '%s' is at %s: an IDE disk cannot be %s while the vm runs, and controllers never "
                "change then",
                name_of(disk), json_string_value(json_object_get(disk, "at")), what);
        error_set_hint(err, "use a SCSI place (--at scsi0:0), or switch the vm off first");
        return -ENOTSUP;
}

/* --- config's list --- */

static void list_add(struct supervisor *supervisor, const json_t *disk)
{
        struct error err = ERROR_INIT;

        json_array_append(json_object_get(supervisor->config, "disks"), (json_t *)disk);
        if (process_note_config(supervisor, &err) < 0)
                log_error(&err);
}

static void list_remove(struct supervisor *supervisor, const json_t *disk)
{
        json_t *list = json_object_get(supervisor->config, "disks"), *item;
        struct error err = ERROR_INIT;
        size_t i;

        json_array_foreach(list, i, item)
        {
                if (json_equal(json_object_get(item, "id"), json_object_get(disk, "id"))) {
                        json_array_remove(list, i);
                        break;
                }
        }
        if (process_note_config(supervisor, &err) < 0)
                log_error(&err);
}

static const json_t *listed_as(struct supervisor *supervisor, const json_t *disk)
{
        return config_find_disk(supervisor->config, json_string_value(json_object_get(disk, "id")));
}

/* --- adding --- */

static void remove_node(struct supervisor *supervisor, const json_t *disk)
{
        char node[CONFIG_NODE_MAX];

        config_node(disk, node);
        qmp_call(
                supervisor->qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), NULL, NULL);
}

/* QEMU's words for a socket that is not there, or does not answer: a daemon that is being restarted. */
static bool is_outage(const struct error *err)
{
        return strstr(err->message, "Failed to connect") || strstr(err->message, "refused") ||
                strstr(err->message, "Connection reset") ||
                strstr(err->message, "Unexpected end-of-file");
}

int disk_plug(struct supervisor *supervisor, const json_t *disk, struct error *err)
{
        struct error why = ERROR_INIT;
        int r = machine_must(supervisor, err);

        if (r < 0)
                return r;
        /* No waiting inside QEMU, which would hold up the guest's monitor. */
        r = qmp_call(supervisor->qmp, "blockdev-add", config_blockdev(disk, 0), NULL, &why);
        if (r < 0) {
                if (err)
                        *err = why;
                return is_outage(&why)
                        ? -EAGAIN
                        : fail_prefix(err, r, "disk '%s' cannot be opened", name_of(disk));
        }
        r = qmp_call(supervisor->qmp, "device_add", config_device(disk), NULL, err);
        if (r < 0) {
                remove_node(supervisor, disk);
                return fail_prefix(err, r, "disk '%s' cannot be added", name_of(disk));
        }
        list_add(supervisor, disk);
        return 0;
}

/* A guest that has seen the disk has read from it. */
static bool was_read(struct supervisor *supervisor, const json_t *disk)
{
        json_auto_t *answer = NULL;
        char node[CONFIG_NODE_MAX];
        json_t *item;
        size_t i;

        config_node(disk, node);
        if (qmp_call(supervisor->qmp, "query-blockstats", NULL, &answer, NULL) < 0)
                return false;
        json_array_foreach(answer, i, item)
        {
                const char *qdev = json_string_value(json_object_get(item, "qdev"));
                const json_t *stats = json_object_get(item, "stats");

                if (qdev && strstr(qdev, node) &&
                        (json_integer_value(json_object_get(stats, "rd_operations")) > 0 ||
                                json_integer_value(json_object_get(stats, "wr_operations")) > 0))
                        return true;
        }
        return false;
}

static int answer_taken(struct supervisor *supervisor, struct hot *hot, json_t **ret)
{
        bool taken = was_read(supervisor, hot->disk);

        if (!taken && monotonic_ms() < hot->end_ms && machine_is_running(supervisor))
                return 0;
        *ret = json_pack("{s:s}", "guest", taken ? "taken" : "unseen");
        if (!taken)
                log_warning("the guest has not taken disk '%s'%s", name_of(hot->disk),
                        machine_is_running(supervisor) ? " within 5 s" : ": it does not run");
        return 1;
}

int step_disk_add(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct hot *hot = operation->data;
        int r;

        if (!hot) {
                r = hot_begin(supervisor, operation, &hot, err);
                if (r == 0)
                        r = refuse_ide(hot->disk, "added", err);
                if (r < 0)
                        return r;
                /* Asked twice, by a daemon that did not hear the answer. */
                if (listed_as(supervisor, hot->disk))
                        operation->phase = 1;
                hot->end_ms = monotonic_ms() + TAKE_MS;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        if (operation->phase == 0) {
                r = disk_plug(supervisor, hot->disk, err);
                if (r == -EAGAIN)
                        return 0;
                if (r < 0)
                        return r;
                operation->phase = 1;
                hot->end_ms = monotonic_ms() + TAKE_MS;
        }
        return answer_taken(supervisor, hot, ret);
}

/* --- removing --- */

int step_disk_remove(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct hot *hot = operation->data;
        char node[CONFIG_NODE_MAX];
        int r;

        if (!hot) {
                r = hot_begin(supervisor, operation, &hot, err);
                if (r == 0)
                        r = refuse_ide(hot->disk, "taken away", err);
                if (r < 0)
                        return r;
                if (!listed_as(supervisor, hot->disk)) {
                        *ret = json_pack("{s:s}", "guest", "taken");
                        return 1;
                }
                config_node(hot->disk, node);
                json_object_del(supervisor->deleted, node);
                r = qmp_call(
                        supervisor->qmp, "device_del", json_pack("{s:s}", "id", node), NULL, err);
                if (r < 0)
                        return fail_prefix(
                                err, r, "disk '%s' cannot be taken away", name_of(hot->disk));
                hot->end_ms = monotonic_ms() + REMOVE_MS;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        config_node(hot->disk, node);
        if (!json_object_get(supervisor->deleted, node)) {
                if (monotonic_ms() < hot->end_ms)
                        return 0;
                return fail(err, ETIMEDOUT, "the guest does not let go of disk '%s'",
                        name_of(hot->disk));
        }
        /* From here on the daemon may free the image. */
        r = qmp_call(
                supervisor->qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), NULL, err);
        if (r < 0)
                return fail_prefix(err, r, "disk '%s' cannot be closed", name_of(hot->disk));
        list_remove(supervisor, hot->disk);
        *ret = json_pack("{s:s}", "guest", "taken");
        return 1;
}

/* --- another size --- */

/* QEMU connects again at the next request only, and an idle guest makes none. */
static void touch(struct supervisor *supervisor, const char *node)
{
        char command[CONFIG_NODE_MAX + 64];

        snprintf(command, sizeof(command), "qemu-io %s \"read 0 512\"", node);
        qmp_call(supervisor->qmp, "human-monitor-command",
                json_pack("{s:s}", "command-line", command), NULL, NULL);
}

int step_disk_resize(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct error why = ERROR_INIT;
        struct hot *hot = operation->data;
        char node[CONFIG_NODE_MAX];
        json_t *size;
        int r;

        if (!hot) {
                r = hot_begin(supervisor, operation, &hot, err);
                if (r < 0)
                        return r;
                if (config_is_ide(hot->disk)) {
                        /* The machine's firmware and drivers read an ATA disk's size once. */
                        *ret = json_pack("{s:s}", "guest", "unseen");
                        return 1;
                }
                hot->end_ms = monotonic_ms() + REMOVE_MS;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        size = json_object_get(operation->params, "size");
        if (!json_is_integer(size))
                size = json_object_get(hot->disk, "size");
        config_node(hot->disk, node);
        touch(supervisor, node);
        r = qmp_call(supervisor->qmp, "block_resize",
                json_pack("{s:s, s:O}", "node-name", node, "size", size), NULL, &why);
        if (r < 0 && monotonic_ms() < hot->end_ms)
                return 0;
        if (r < 0) {
                if (err)
                        *err = why;
                return fail_prefix(err, r, "the guest was not told the new size of disk '%s'",
                        name_of(hot->disk));
        }
        list_remove(supervisor, hot->disk);
        list_add(supervisor, hot->disk);
        *ret = json_pack("{s:s}", "guest", "taken");
        return 1;
}
