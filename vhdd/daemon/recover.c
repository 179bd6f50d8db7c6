/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/recover.h"

#include <string.h>

#include "base/file.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

/* The id of the vm's snapshot operation that stands in the journal, or 0. A journal that cannot be
 * read does not say that there is none. */
static int find_operation(struct vm *vm, int64_t *ret, struct error *err)
{
        struct operation_row *rows = NULL;
        size_t n = 0;
        int r = catalog_operation_list(vm->broker->catalog, &rows, &n, err);

        *ret = 0;
        for (size_t i = 0; r == 0 && i < n; i++)
                if (strcmp(rows[i].vm, vm->id) == 0 && strcmp(rows[i].kind, OPERATION_TAKE) == 0)
                        *ret = rows[i].id;
        operation_rows_free(rows, n);
        return r;
}

bool recover_wants_worker(struct vm *vm)
{
        int64_t id;

        return find_operation(vm, &id, NULL) < 0 || id != 0;
}

/* The first frozen image: the record lies in a place of which this is one. */
static const char *record_beside(const json_t *data)
{
        json_t *disk = json_array_get(json_object_get(data, "disks"), 0);

        return json_string_value(json_object_get(disk, "frozen"));
}

/* Does the switch record tell of the snapshot @id? */
static int was_switched(struct vm *vm, const json_t *hello, const json_t *data, const char *id,
        bool *ret, struct error *err)
{
        const char *said = json_string_value(json_object_get(hello, "switched"));
        const char *beside = record_beside(data);
        json_auto_t *answer = NULL;
        int r;

        *ret = said && strcmp(said, id) == 0;
        if (*ret || !beside)
                return 0;
        r = worker_grant(vm, beside, LINK_READ, err);
        if (r == 0)
                r = worker_call(vm, "snapshot.switched", json_pack("{s:s}", "beside", beside),
                        WORKER_CALL_MS, &answer, err);
        if (r < 0)
                return r;
        said = json_string_value(json_object_get(answer, "snapshot"));
        *ret = said && strcmp(said, id) == 0;
        return 0;
}

static void begin_rolling(struct vm *vm, struct operation *operation)
{
        json_decref(vm->rolling);
        vm->rolling = json_deep_copy(operation_data(operation));
        vm->rolling_operation = operation;
}

static void end_rolling(struct vm *vm)
{
        json_decref(vm->rolling);
        vm->rolling = NULL;
        vm->rolling_operation = operation_free(vm->rolling_operation);
}

static int settle(struct vm *vm, int64_t operation_row, const json_t *hello, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        const char *snapshot;
        bool switched = false;
        int r = operation_load(vm->broker->catalog, host_fs(), operation_row, &operation, err);

        if (r < 0)
                return r;
        if (operation_is_committed(operation))
                return operation_end(operation, err);
        snapshot = json_string_value(json_object_get(operation_data(operation), "snapshot"));
        if (!snapshot) {
                operation = operation_abandon(operation);
                return fail(err, EUCLEAN, "the journal's row of a snapshot does not say which");
        }
        r = was_switched(vm, hello, operation_data(operation), snapshot, &switched, err);
        if (r < 0) {
                /* Nobody knows: so nothing is touched. */
                operation = operation_abandon(operation);
                return r;
        }
        if (!switched) {
                broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                        "undoing snapshot %s, which was cut off before its switch", snapshot);
                return operation_undo(operation, err);
        }
        broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                "finishing snapshot %s, which was cut off after its switch", snapshot);
        begin_rolling(vm, TAKE_PTR(operation));
        return 0;
}

/* A record whose snapshot is in the catalog already has done its work. */
static int drop_record(struct vm *vm, const json_t *hello, struct error *err)
{
        const char *said = json_string_value(json_object_get(hello, "switched"));
        struct snapshot_row row = {0};
        int r;

        if (!said || vm->rolling)
                return 0;
        r = catalog_snapshot_find(vm->broker->catalog, vm->id, said, &row, err);
        snapshot_row_done(&row);
        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        if (r < 0)
                return r;
        return worker_call(vm, "snapshot.commit", json_pack("{s:s}", "snapshot", said),
                WORKER_CALL_MS, NULL, err);
}

int recover_before(struct vm *vm, const json_t *hello, struct error *err)
{
        int64_t id;
        int r;

        if (vm->rolling) {
                /* The worker died once more on the way: the row tells it all again. */
                vm->rolling_operation = operation_abandon(vm->rolling_operation);
                end_rolling(vm);
        }
        r = find_operation(vm, &id, err);
        if (r == 0 && id)
                r = settle(vm, id, hello, err);
        return r < 0 || !hello ? r : drop_record(vm, hello, err);
}

int recover_drop_record(struct vm *vm, struct error *err)
{
        json_auto_t *answer = NULL;
        const char *said;
        int r = worker_call(vm, "snapshot.switched", json_object(), WORKER_CALL_MS, &answer, err);

        said = json_string_value(json_object_get(answer, "snapshot"));
        if (r < 0 || !said)
                return r;
        return worker_call(vm, "snapshot.commit", json_pack("{s:s}", "snapshot", said),
                WORKER_CALL_MS, NULL, err);
}

int recover_roll_forward(struct vm *vm, struct error *err)
{
        int r = snapshot_finish(vm, vm->rolling_operation, err);

        if (r < 0) {
                vm->rolling_operation = operation_abandon(vm->rolling_operation);
                return r;
        }
        end_rolling(vm);
        return worker_grants_renew(vm, err);
}
