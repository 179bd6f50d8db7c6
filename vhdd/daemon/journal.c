/* SPDX-License-Identifier: Apache-2.0 */
/* The payload of an operation's row: {"make": [paths], "remove": [paths], "data": any, "folders": [paths]}.
 *
 *   begun ---operation_commit--> committed ---operation_end--> over
 *     \---operation_undo-------------------------------------> over
 */
#include "vhdd/daemon/journal.h"

#include <assert.h>
#include <string.h>

#include "chain/seal.h"
#include "formats/intent.h"
#include "vhdd/daemon/catalog.h"

#define FINISH_STATE "finish"

struct operation {
        /* immutable after begin */
        struct catalog *catalog;
        struct fs *fs;
        int64_t id;
        char *kind;
        char vm[UUID_TEXT_SIZE];

        json_t *payload, *make, *remove; /* the arrays are the payload's */
        bool made;                       /* every name in make is durable */
        bool committed;                  /* whatever became of it since */
        enum { BEGUN, COMMITTED, OVER } state;
};

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for an operation of the journal");
}

static const char *path_at(const json_t *array, size_t i)
{
        return json_string_value(json_array_get(array, i));
}

/* ---- making one ---- */

static int new_operation(struct catalog *catalog, struct fs *fs, const char *kind, const char *vm,
        struct operation **ret, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = calloc(1, sizeof(*operation));

        if (!operation)
                return no_memory(err);
        operation->state = OVER; /* no row yet */
        operation->catalog = catalog;
        operation->fs = fs;
        operation->kind = strdup(kind);
        if (vm)
                snprintf(operation->vm, sizeof(operation->vm), "%s", vm);
        if (!operation->kind)
                return no_memory(err);
        *ret = TAKE_PTR(operation);
        return 0;
}

static int append_path(json_t *array, const char *path, struct error *err)
{
        json_t *text = json_string(path);

        assert(path[0] == '/');
        if (!text)
                return fail(
                        err, EINVAL, "'%s' is no UTF-8, and the catalog holds nothing else", path);
        return json_array_append_new(array, text) == 0 ? 0 : no_memory(err);
}

/* Undoing an operation removes what it was to make: nothing of somebody else's may be there. */
static int append_new(struct operation *operation, const char *path, struct error *err)
{
        struct file *file = NULL;
        int r = file_open(operation->fs, path, FILE_READ | FILE_NOFOLLOW, &file, NULL);

        file_close(file);
        if (r != -ENOENT) {
                fail(err, EEXIST, "'%s' is there already", path);
                error_set_file(err, path);
                return -EEXIST;
        }
        return append_path(operation->make, path, err);
}

static int build_payload(struct operation *operation, const char *const *make, size_t n_make,
        const json_t *data, struct error *err)
{
        operation->payload = json_object();
        operation->make = json_array();
        operation->remove = json_array();
        if (!operation->payload ||
                json_object_set_new(operation->payload, "make", operation->make) < 0 ||
                json_object_set_new(operation->payload, "remove", operation->remove) < 0)
                return no_memory(err);
        for (size_t i = 0; i < n_make; i++) {
                int r = append_new(operation, make[i], err);

                if (r < 0)
                        return r;
        }
        if (data && json_object_set_new(operation->payload, "data", json_deep_copy(data)) < 0)
                return no_memory(err);
        return 0;
}

static int payload_text(const struct operation *operation, char **ret, struct error *err)
{
        *ret = json_dumps(operation->payload, JSON_COMPACT);
        return *ret ? 0 : no_memory(err);
}

int operation_begin(struct catalog *catalog, struct fs *fs, const char *kind, const char *vm,
        const char *const *make, size_t n_make, const json_t *data, struct operation **ret,
        struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        _cleanup_free_ char *text = NULL;
        int r;

        assert(!catalog_in_transaction(catalog));
        r = new_operation(catalog, fs, kind, vm, &operation, err);
        if (r == 0)
                r = build_payload(operation, make, n_make, data, err);
        if (r == 0)
                r = payload_text(operation, &text, err);
        if (r == 0)
                r = catalog_operation_begin(catalog, kind, vm, text, &operation->id, err);
        if (r < 0)
                return r;
        operation->state = BEGUN;
        operation->made = n_make == 0;
        *ret = TAKE_PTR(operation);
        return 0;
}

static int store_payload(struct operation *operation, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        int r = payload_text(operation, &text, err);

        return r == 0 ? catalog_operation_payload(operation->catalog, operation->id, text, err) : r;
}

int operation_will_make(struct operation *operation, const char *path, struct error *err)
{
        int r;

        assert(operation->state == BEGUN);
        assert(!catalog_in_transaction(operation->catalog));
        r = append_new(operation, path, err);
        if (r < 0)
                return r;
        operation->made = false;
        return store_payload(operation, err);
}

/* Of older rows, and of most, there are none. */
static json_t *folders_of(const struct operation *operation)
{
        return json_object_get(operation->payload, "folders");
}

int operation_will_make_folder(struct operation *operation, const char *path, struct error *err)
{
        json_t *folders = folders_of(operation);
        int r;

        assert(operation->state == BEGUN);
        assert(!catalog_in_transaction(operation->catalog));
        if (!folders) {
                folders = json_array();
                if (json_object_set_new(operation->payload, "folders", folders) < 0)
                        return no_memory(err);
        }
        r = append_path(folders, path, err);
        return r < 0 ? r : store_payload(operation, err);
}

int operation_not_made(struct operation *operation, const char *path, struct error *err)
{
        assert(operation->state == BEGUN);
        assert(!catalog_in_transaction(operation->catalog));
        for (size_t i = json_array_size(operation->make); i-- > 0;)
                if (strcmp(path_at(operation->make, i), path) == 0)
                        json_array_remove(operation->make, i);
        return store_payload(operation, err);
}

int operation_will_remove(struct operation *operation, const char *path, struct error *err)
{
        assert(operation->state == BEGUN);
        return append_path(operation->remove, path, err);
}

/* ---- files ---- */

static size_t directory_length(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? (size_t)(slash - path) : 0;
}

static bool same_directory(const char *a, const char *b)
{
        size_t n = directory_length(a);

        return n == directory_length(b) && memcmp(a, b, n) == 0;
}

/* Each directory once. One that is not there has no names to keep. */
static int sync_directories(struct operation *operation, const json_t *paths, struct error *err)
{
        for (size_t i = 0; i < json_array_size(paths); i++) {
                const char *path = path_at(paths, i);
                bool synced = false;
                int r;

                for (size_t j = 0; j < i && !synced; j++)
                        synced = same_directory(path_at(paths, j), path);
                r = synced ? 0 : fs_sync_directory(operation->fs, path);
                if (r < 0 && r != -ENOENT) {
                        fail_os(err, -r, "cannot sync the folder of '%s'", path);
                        error_set_file(err, path);
                        return r;
                }
        }
        return 0;
}

static int unlink_one(struct operation *operation, const char *path, struct error *err)
{
        int r = fs_unlink(operation->fs, path);

        if (r == 0 || r == -ENOENT || r == -ENOTDIR)
                return 0;
        fail_os(err, -r, "cannot remove '%s'", path);
        error_set_file(err, path);
        return r;
}

/* With what may lie beside it on its account. */
static int unlink_with_company(struct operation *operation, const char *path, struct error *err)
{
        static const char *const endings[] = {INTENT_ENDING, SEAL_NEW_ENDING, SEAL_ENDING, ""};

        for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
                _cleanup_free_ char *beside = NULL;
                int r;

                if (asprintf(&beside, "%s%s", path, endings[i]) < 0)
                        return no_memory(err);
                r = unlink_one(operation, beside, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The last that was made first. In one that is not empty something is somebody's: it stays, and with it
 * those around it. */
static int remove_folders(struct operation *operation, struct error *err)
{
        const json_t *folders = folders_of(operation);

        for (size_t i = json_array_size(folders); i-- > 0;) {
                const char *path = path_at(folders, i);
                int r = fs_remove_directory(operation->fs, path);

                if (r == 0)
                        r = fs_sync_directory(operation->fs, path);
                if (r == 0 || r == -ENOENT || r == -ENOTEMPTY || r == -EEXIST || r == -ENOTDIR ||
                        r == -ENOSYS)
                        continue;
                fail_os(err, -r, "cannot remove the folder '%s'", path);
                error_set_file(err, path);
                return r;
        }
        return 0;
}

/* Keeps J3 and J4. */
static int remove_unnamed(struct operation *operation, const json_t *paths, struct error *err)
{
        int r;

        for (size_t i = 0; i < json_array_size(paths); i++) {
                const char *path = path_at(paths, i);
                bool named = true;

                r = catalog_names_path(operation->catalog, path, &named, err);
                if (r == 0 && !named)
                        r = unlink_with_company(operation, path, err);
                if (r < 0)
                        return r;
        }
        r = sync_directories(operation, paths, err);
        if (r == 0 && paths == operation->make)
                r = remove_folders(operation, err);
        if (r == 0)
                r = catalog_operation_end(operation->catalog, operation->id, err);
        if (r == 0)
                operation->state = OVER;
        return r;
}

/* ---- the way of one ---- */

int operation_made(struct operation *operation, struct error *err)
{
        int r;

        assert(operation->state == BEGUN);
        r = sync_directories(operation, operation->make, err);
        if (r == 0)
                operation->made = true;
        return r;
}

/* With nothing to remove there is nothing left to finish: the row goes in the same commit. */
static int write_commit(struct operation *operation, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        int r;

        if (json_array_size(operation->remove) == 0)
                return catalog_operation_end(operation->catalog, operation->id, err);
        r = payload_text(operation, &text, err);
        if (r < 0)
                return r;
        return catalog_operation_finish_state(operation->catalog, operation->id, text, err);
}

int operation_commit(struct operation *operation, struct error *err)
{
        _cleanup_(catalog_rollbackp) struct catalog *transaction = operation->catalog;
        int r;

        assert(operation->state == BEGUN);
        assert(operation->made);
        assert(catalog_in_transaction(transaction));
        r = write_commit(operation, err);
        if (r == 0)
                r = catalog_commit(transaction, err);
        if (r < 0)
                return r;
        operation->state = json_array_size(operation->remove) == 0 ? OVER : COMMITTED;
        operation->committed = true;
        return 0;
}

int operation_end(struct operation *operation, struct error *err)
{
        assert(operation->state != BEGUN);
        if (operation->state == OVER)
                return 0;
        return remove_unnamed(operation, operation->remove, err);
}

int operation_undo(struct operation *operation, struct error *err)
{
        assert(operation->state == BEGUN);
        return remove_unnamed(operation, operation->make, err);
}

bool operation_is_committed(const struct operation *operation)
{
        return operation->committed;
}

struct operation *operation_abandon(struct operation *operation)
{
        if (!operation)
                return NULL;
        json_decref(operation->payload);
        free(operation->kind);
        free(operation);
        return NULL;
}

struct operation *operation_free(struct operation *operation)
{
        if (!operation)
                return NULL;
        /* What cannot be done now is the next start's: the row is there. */
        if (operation->state == BEGUN)
                (void)operation_undo(operation, NULL);
        else if (operation->state == COMMITTED)
                (void)operation_end(operation, NULL);
        return operation_abandon(operation);
}

int64_t operation_id(const struct operation *operation)
{
        return operation->id;
}

const char *operation_kind(const struct operation *operation)
{
        return operation->kind;
}

const char *operation_vm(const struct operation *operation)
{
        return operation->vm;
}

const json_t *operation_data(const struct operation *operation)
{
        return json_object_get(operation->payload, "data");
}

/* ---- after a start ---- */

static bool are_absolute_paths(const json_t *array)
{
        for (size_t i = 0; i < json_array_size(array); i++) {
                const char *path = path_at(array, i);

                if (!path || path[0] != '/')
                        return false;
        }
        return json_is_array(array);
}

static int from_row(struct catalog *catalog, struct fs *fs, const struct operation_row *row,
        struct operation **ret, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r = new_operation(catalog, fs, row->kind, row->vm, &operation, err);

        if (r < 0)
                return r;
        operation->id = row->id;
        operation->payload = json_loads(row->payload, 0, NULL);
        operation->make = json_object_get(operation->payload, "make");
        operation->remove = json_object_get(operation->payload, "remove");
        if (!are_absolute_paths(operation->make) || !are_absolute_paths(operation->remove) ||
                (folders_of(operation) && !are_absolute_paths(folders_of(operation))))
                return fail(err, EUCLEAN, "the journal's row %lld ('%s') is damaged",
                        (long long)row->id, row->kind);
        operation->committed = strcmp(row->state, FINISH_STATE) == 0;
        operation->state = operation->committed ? COMMITTED : BEGUN;
        *ret = TAKE_PTR(operation);
        return 0;
}

int operation_load(struct catalog *catalog, struct fs *fs, int64_t id, struct operation **ret,
        struct error *err)
{
        struct operation_row *rows = NULL;
        size_t n = 0;
        int r = catalog_operation_list(catalog, &rows, &n, err);

        if (r < 0)
                return r;
        r = -ENOENT;
        for (size_t i = 0; i < n; i++)
                if (rows[i].id == id)
                        r = from_row(catalog, fs, &rows[i], ret, err);
        operation_rows_free(rows, n);
        if (r == -ENOENT)
                return fail(err, ENOENT, "there is no operation %lld", (long long)id);
        return r;
}

static bool is_among(const char *kind, const char *const *kinds)
{
        for (; kinds && *kinds; kinds++)
                if (strcmp(*kinds, kind) == 0)
                        return true;
        return false;
}

static void recover_one(struct catalog *catalog, struct fs *fs, const struct operation_row *row,
        struct journal_report *report)
{
        struct operation *operation = NULL;
        struct error err = ERROR_INIT;
        int r = from_row(catalog, fs, row, &operation, &err);
        bool committed = r == 0 && operation->state == COMMITTED;

        if (r == 0)
                r = committed ? operation_end(operation, &err) : operation_undo(operation, &err);
        if (r == 0 && committed)
                report->n_finished++;
        else if (r == 0)
                report->n_undone++;
        else if (report->n_left++ == 0)
                report->first = err;
        operation_abandon(operation);
}

int journal_recover(struct catalog *catalog, struct fs *fs, const char *const *but,
        struct journal_report *ret, struct error *err)
{
        struct operation_row *rows = NULL;
        size_t n = 0;
        int r;

        *ret = (struct journal_report){.first = ERROR_INIT};
        r = catalog_operation_list(catalog, &rows, &n, err);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (strcmp(rows[i].state, FINISH_STATE) == 0 || !is_among(rows[i].kind, but))
                        recover_one(catalog, fs, &rows[i], ret);
        operation_rows_free(rows, n);
        return 0;
}
