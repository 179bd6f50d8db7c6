/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/vms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/discarded.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/metrics.h"
#include "vhdd/daemon/recover.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/transfers.h"
#include "vhdd/daemon/worker_link.h"

#define START_THREADS 16u

/* ---- time ---- */

int64_t now_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

const char *time_to_text(int64_t us, char ret[TIME_TEXT_MAX])
{
        time_t seconds = (time_t)(us / 1000000);
        struct tm tm;

        if (!gmtime_r(&seconds, &tm) ||
                strftime(ret, TIME_TEXT_MAX, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
                strcpy(ret, "1970-01-01T00:00:00Z");
        return ret;
}

static struct timespec deadline(clockid_t clock, unsigned ms)
{
        struct timespec at;

        clock_gettime(clock, &at);
        at.tv_sec += ms / 1000;
        at.tv_nsec += (long)(ms % 1000) * 1000000;
        if (at.tv_nsec >= 1000000000) {
                at.tv_sec++;
                at.tv_nsec -= 1000000000;
        }
        return at;
}

/* ---- the table ---- */

static struct vm *vm_new(struct vms *vms, const char *id)
{
        struct vm *vm = calloc(1, sizeof(*vm));

        if (!vm)
                return NULL;
        vm->vms = vms;
        vm->broker = vms->broker;
        snprintf(vm->id, sizeof(vm->id), "%s", id);
        vm->refs = 1;
        vm->has_merges = true; /* until somebody has looked */
        pthread_mutex_init(&vm->lock, NULL);
        pthread_rwlock_init(&vm->link_lock, NULL);
        pthread_cond_init(&vm->changed, NULL);
        return vm;
}

static void vm_free(struct vm *vm)
{
        seals_forget(vm);
        worker_forget(vm);
        free(vm->chains);
        free(vm->trouble);
        merges_forget(vm, NULL);
        json_decref(vm->merge_paths);
        json_decref(vm->rolling);
        operation_abandon(vm->rolling_operation);
        link_free(vm->link);
        pthread_cond_destroy(&vm->changed);
        pthread_rwlock_destroy(&vm->link_lock);
        pthread_mutex_destroy(&vm->lock);
        free(vm);
}

struct vm *vm_unref(struct vm *vm)
{
        bool last;

        if (!vm)
                return NULL;
        pthread_mutex_lock(&vm->vms->lock);
        last = --vm->refs == 0;
        pthread_mutex_unlock(&vm->vms->lock);
        if (last)
                vm_free(vm);
        return NULL;
}

struct vm *vm_release(struct vm *vm)
{
        if (!vm)
                return NULL;
        pthread_mutex_unlock(&vm->lock);
        return vm_unref(vm);
}

static struct vm *find_locked(struct vms *vms, const char *id)
{
        for (size_t i = 0; i < vms->n_items; i++)
                if (strcmp(vms->items[i]->id, id) == 0)
                        return vms->items[i];
        return NULL;
}

int vm_add(struct broker *broker, const char *id, struct vm **ret, struct error *err)
{
        struct vms *vms = broker->vms;
        struct vm **larger, *vm;

        MUTEX_GUARD(&vms->lock);
        vm = find_locked(vms, id);
        if (!vm) {
                larger = realloc(vms->items, (vms->n_items + 1) * sizeof(*larger));
                if (larger)
                        vms->items = larger;
                vm = larger ? vm_new(vms, id) : NULL;
                if (!vm)
                        return fail(err, ENOMEM, "no memory for one more vm");
                vms->items[vms->n_items++] = vm;
        }
        vm->refs++;
        *ret = vm;
        return 0;
}

void vm_drop(struct vm *vm)
{
        struct vms *vms = vm->vms;
        bool was = false;

        vm->removed = true;
        pthread_mutex_lock(&vms->lock);
        for (size_t i = 0; i < vms->n_items; i++)
                if (vms->items[i] == vm) {
                        vms->items[i] = vms->items[--vms->n_items];
                        was = true;
                        break;
                }
        pthread_mutex_unlock(&vms->lock);
        if (was)
                vm_unref(vm);
}

int vm_peek(struct broker *broker, const char *name_or_id, struct vm **ret, struct vm_row *row,
        struct error *err)
{
        struct vm_row found = {0};
        int r = catalog_vm_find(broker->catalog, name_or_id, &found, err);

        if (r == -ENOENT) {
                error_clear(err);
                fail(err, ENOENT, "there is no vm '%.160s'", name_or_id);
                error_set_hint(err, "vhdctl vm list");
        }
        if (r == 0)
                r = vm_add(broker, found.id, ret, err);
        if (r < 0 || !row)
                vm_row_done(&found);
        else
                *row = found;
        return r;
}

int vm_get_within(struct broker *broker, const char *name_or_id, unsigned timeout_ms,
        struct vm **ret, struct vm_row *row, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        struct vm_row found = {0};
        struct timespec until = deadline(CLOCK_REALTIME, timeout_ms);
        int r;

        if (broker->stopping)
                return fail(err, ESHUTDOWN, "the daemon is about to end");
        r = vm_peek(broker, name_or_id, &vm, &found, err);
        if (r < 0)
                return r;
        r = transfer_refuse_held(vm, err); /* it may be for hours */
        if (r < 0)
                fail_prefix(err, r, "vm '%s' cannot be used", found.name);
        else if (timeout_ms == 0)
                pthread_mutex_lock(&vm->lock);
        else if (pthread_mutex_timedlock(&vm->lock, &until) != 0)
                r = fail(err, EBUSY, "vm '%s' is busy with something else", found.name);
        if (r < 0) {
                vm_row_done(&found);
                return r;
        }
        /* Whoever had the lock before may have renamed or removed it. */
        vm_row_done(&found);
        r = catalog_vm_find(broker->catalog, vm->id, &found, err);
        if (r < 0 || vm->removed) {
                pthread_mutex_unlock(&vm->lock);
                vm_row_done(&found);
                return r < 0 && r != -ENOENT
                        ? r
                        : fail(err, ENOENT, "there is no vm '%.160s'", name_or_id);
        }
        *ret = TAKE_PTR(vm);
        if (row)
                *row = found;
        else
                vm_row_done(&found);
        return 0;
}

void vm_unlock(struct vm *vm)
{
        pthread_mutex_unlock(&vm->lock);
}

int vm_lock_again(struct vm *vm, struct error *err)
{
        pthread_mutex_lock(&vm->lock);
        return vm->removed ? fail(err, ENOENT, "the vm was removed meanwhile") : 0;
}

int vm_row_again(struct vm *vm, struct vm_row *row, struct error *err)
{
        struct vm_row now = {0};
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &now, err);

        if (r < 0)
                return r;
        vm_row_done(row);
        *row = now;
        return 0;
}

int vm_get(struct broker *broker, const char *name_or_id, struct vm **ret, struct vm_row *row,
        struct error *err)
{
        return vm_get_within(broker, name_or_id, 0, ret, row, err);
}

/* ---- threads ---- */

struct task {
        struct vms *vms;
        void (*run)(void *opaque);
        void *opaque;
};

static void *task_main(void *opaque)
{
        struct task task = *(struct task *)opaque;

        free(opaque);
        task.run(task.opaque);
        pthread_mutex_lock(&task.vms->lock);
        if (--task.vms->n_threads == 0)
                pthread_cond_broadcast(&task.vms->idle);
        pthread_mutex_unlock(&task.vms->lock);
        return NULL;
}

int vms_spawn(struct vms *vms, void (*run)(void *opaque), void *opaque, struct error *err)
{
        struct task *task = malloc(sizeof(*task));
        pthread_attr_t attr;
        pthread_t thread;
        int r = ENOMEM;

        if (task) {
                *task = (struct task){vms, run, opaque};
                pthread_mutex_lock(&vms->lock);
                vms->n_threads++;
                pthread_mutex_unlock(&vms->lock);
                pthread_attr_init(&attr);
                pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
                pthread_attr_setstacksize(&attr, 512u << 10);
                r = pthread_create(&thread, &attr, task_main, task);
                pthread_attr_destroy(&attr);
        }
        if (r == 0)
                return 0;
        if (task) {
                pthread_mutex_lock(&vms->lock);
                if (--vms->n_threads == 0)
                        pthread_cond_broadcast(&vms->idle);
                pthread_mutex_unlock(&vms->lock);
        }
        free(task);
        return fail_os(err, r, "cannot start a thread");
}

bool vms_sleep(struct vms *vms, unsigned ms)
{
        struct timespec until = deadline(CLOCK_REALTIME, ms);
        bool going;

        pthread_mutex_lock(&vms->lock);
        while (!vms->stopping)
                if (pthread_cond_timedwait(&vms->wakeup, &vms->lock, &until) == ETIMEDOUT)
                        break;
        going = !vms->stopping;
        pthread_mutex_unlock(&vms->lock);
        return going;
}

/* ---- up and down ---- */

static void set_state(struct vm *vm, bool up, const char *why)
{
        pthread_rwlock_wrlock(&vm->link_lock);
        vm->up = up;
        free(vm->trouble);
        vm->trouble = why ? strdup(why) : NULL;
        pthread_rwlock_unlock(&vm->link_lock);
        pthread_mutex_lock(&vm->vms->lock);
        pthread_cond_broadcast(&vm->changed);
        pthread_mutex_unlock(&vm->vms->lock);
}

void vm_may_merge(struct vm *vm)
{
        if (vm->has_merges)
                merges_kick(vm);
}

void vm_set_up(struct vm *vm)
{
        set_state(vm, true, NULL);
        merges_kick(vm); /* also for what is to be sealed */
}

static void revive(void *opaque)
{
        struct vm *vm = opaque;
        struct error err = ERROR_INIT;
        unsigned wait_ms = 100;
        bool done = false;

        while (!done) {
                bool asked;

                pthread_mutex_lock(&vm->lock);
                pthread_mutex_lock(&vm->vms->lock);
                vm->revive_again = false;
                pthread_mutex_unlock(&vm->vms->lock);
                error_clear(&err);
                done = vm->removed || vm->vms->stopping || worker_up(vm, &err) == 0;
                pthread_mutex_lock(&vm->vms->lock);
                /* It went down again just now; or while we tried, which its state tells. */
                asked = done && vm->revive_again && !vm->removed && !vm->vms->stopping;
                done &= !asked;
                vm->reviving = !done;
                pthread_mutex_unlock(&vm->vms->lock);
                pthread_mutex_unlock(&vm->lock);
                if (done)
                        break;
                if (asked)
                        continue;
                broker_log_error(vm->broker, vm->id, &err);
                if (!vms_sleep(vm->vms, wait_ms))
                        break; /* the end of all */
                wait_ms = wait_ms < 15000 ? wait_ms * 2 : 30000;
                if (wait_ms >= 15000) {
                        /* Slow enough by now to begin counting anew. */
                        pthread_mutex_lock(&vm->lock);
                        if (vm->link)
                                link_forgive(vm->link);
                        pthread_mutex_unlock(&vm->lock);
                }
        }
        vm_unref(vm);
}

/* Sends one thread, unless one is on its way. */
static void send_reviver(struct vm *vm)
{
        struct error err = ERROR_INIT;
        bool mine;

        pthread_mutex_lock(&vm->vms->lock);
        mine = !vm->reviving && !vm->vms->stopping;
        vm->revive_again = !mine;
        if (mine) {
                vm->reviving = true;
                vm->refs++;
        }
        pthread_mutex_unlock(&vm->vms->lock);
        if (!mine || vms_spawn(vm->vms, revive, vm, &err) == 0)
                return;
        broker_log_error(vm->broker, vm->id, &err);
        pthread_mutex_lock(&vm->vms->lock);
        vm->reviving = false;
        pthread_mutex_unlock(&vm->vms->lock);
        vm_unref(vm);
}

void vm_set_down(struct vm *vm, const char *why)
{
        set_state(vm, false, why);
        if (!vm->removed)
                send_reviver(vm);
}

void vm_publish(struct vm *vm, const char *event, json_t *details)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};

        if (!details)
                details = json_object();
        if (!details)
                return;
        if (catalog_vm_find(vm->broker->catalog, vm->id, &row, NULL) == 0)
                json_object_set_new(details, "vm", json_string(row.name));
        json_object_set_new(details, "vm-id", json_string(vm->id));
        broker_publish(vm->broker, event, details);
}

void vm_worker_died(struct vm *vm, int status)
{
        broker_log(vm->broker, BROKER_LOG_WARNING, vm->id,
                "the vm's worker died (status %d); another one is started", status);
        /* vm->up belongs to the lock's holder, who finds the link dead by itself. */
        send_reviver(vm);
        broker_publish(
                vm->broker, "worker-died", json_pack("{s:s, s:i}", "id", vm->id, "status", status));
}

static void tidy(void *opaque)
{
        struct vm *vm = opaque;

        /* Clients that come and go quickly find the chain still open. */
        vms_sleep(vm->vms, 500);
        pthread_mutex_lock(&vm->vms->lock);
        vm->tidying = false;
        pthread_mutex_unlock(&vm->vms->lock);
        pthread_mutex_lock(&vm->lock);
        if (!vm->removed && !vm->vms->stopping && vm->link && vm->up) {
                worker_snapshots_close(vm, NULL, false);
                discarded_sweep(vm);
        }
        pthread_mutex_unlock(&vm->lock);
        vm_unref(vm);
}

void vm_worker_event(struct vm *vm, const json_t *event)
{
        const char *kind = json_string_value(json_object_get(event, "event"));
        const char *what = json_string_value(json_object_get(event, "what"));
        const char *name = json_string_value(json_object_get(event, "export"));
        json_t *copy;
        bool mine;

        if (!kind)
                return;
        if (strcmp(kind, "log") == 0) {
                const char *text = json_string_value(json_object_get(event, "message"));

                broker_log(vm->broker, BROKER_LOG_INFO, vm->id, "%s", text ? text : "");
                return;
        }
        if (strcmp(kind, "merge") == 0) {
                merges_event(vm, event);
                return;
        }
        if (strcmp(kind, "seal") == 0) {
                seals_event(vm, event);
                return;
        }
        copy = json_deep_copy(event);
        vm_publish(vm, kind, copy);
        if (strcmp(kind, "client") != 0 || !what || strcmp(what, "gone") != 0 || !name)
                return;
        vm_may_merge(vm); /* it may be off now */
        if (!strchr(name, '@'))
                return;
        pthread_mutex_lock(&vm->vms->lock);
        mine = !vm->tidying && !vm->vms->stopping;
        if (mine) {
                vm->tidying = true;
                vm->refs++;
        }
        pthread_mutex_unlock(&vm->vms->lock);
        if (mine && vms_spawn(vm->vms, tidy, vm, NULL) < 0)
                vm_unref(vm);
}

int vm_wait_up(struct vm *vm, unsigned timeout_ms, struct error *err)
{
        struct timespec until = deadline(CLOCK_REALTIME, timeout_ms);
        _cleanup_free_ char *trouble = NULL;

        for (;;) {
                bool up;
                int r;

                pthread_rwlock_rdlock(&vm->link_lock);
                up = vm->up && vm->link && link_is_alive(vm->link);
                free(trouble);
                trouble = vm->trouble ? strdup(vm->trouble) : NULL;
                pthread_rwlock_unlock(&vm->link_lock);
                if (up)
                        return 0;
                pthread_mutex_lock(&vm->vms->lock);
                r = vm->vms->stopping
                        ? ETIMEDOUT
                        : pthread_cond_timedwait(&vm->changed, &vm->vms->lock, &until);
                pthread_mutex_unlock(&vm->vms->lock);
                if (r == ETIMEDOUT)
                        return fail(err, ETIMEDOUT, "the vm's worker is not ready: %s",
                                trouble ? trouble : "it is being started");
        }
}

/* ---- the beginning and the end ---- */

struct starter {
        struct vms *vms;
        atomic_size_t next;
        struct vm **items;
        size_t n;
};

static void *starter_main(void *opaque)
{
        struct starter *starter = opaque;

        for (;;) {
                size_t i = atomic_fetch_add(&starter->next, 1);
                struct error err = ERROR_INIT;

                if (i >= starter->n)
                        return NULL;
                pthread_mutex_lock(&starter->items[i]->lock);
                if (worker_up(starter->items[i], &err) < 0)
                        broker_log_error(starter->vms->broker, starter->items[i]->id, &err);
                pthread_mutex_unlock(&starter->items[i]->lock);
        }
}

/* Every vm's worker, several at once. Those that fail are tried again by their own threads. */
static void start_all(struct vms *vms, struct vm **items, size_t n)
{
        struct starter starter = {.vms = vms, .items = items, .n = n};
        pthread_t threads[START_THREADS];
        unsigned n_threads = 0;

        while (n_threads < START_THREADS && n_threads + 1 < n)
                if (pthread_create(&threads[n_threads], NULL, starter_main, &starter) != 0)
                        break;
                else
                        n_threads++;
        starter_main(&starter);
        while (n_threads > 0)
                pthread_join(threads[--n_threads], NULL);
}

static int recover_journal(struct broker *broker, struct error *err)
{
        static const char *const but[] = {OPERATION_TAKE, NULL};
        struct journal_report report = {.first = ERROR_INIT};
        int r = journal_recover(broker->catalog, host_fs(), but, &report, err);

        if (r < 0)
                return r;
        if (report.n_undone + report.n_finished > 0)
                broker_log(broker, BROKER_LOG_INFO, NULL,
                        "of what was cut off, %u operations were undone and %u finished",
                        report.n_undone, report.n_finished);
        if (report.n_left > 0)
                broker_log_error(broker, "journal", &report.first);
        return 0;
}

int vms_start(struct broker *broker, struct error *err)
{
        struct vms *vms = calloc(1, sizeof(*vms));
        struct vm_row *rows = NULL;
        struct vm **items = NULL;
        size_t n = 0, n_items = 0;
        int r;

        if (!vms)
                return fail(err, ENOMEM, "no memory for the vms");
        vms->broker = broker;
        pthread_mutex_init(&vms->lock, NULL);
        pthread_cond_init(&vms->idle, NULL);
        pthread_cond_init(&vms->wakeup, NULL);
        broker->vms = vms;
        r = recover_journal(broker, err);
        if (r == 0)
                r = catalog_vm_list(broker->catalog, &rows, &n, err);
        items = calloc(n + 1, sizeof(*items));
        if (r == 0 && !items)
                r = fail(err, ENOMEM, "no memory for the vms");
        for (; r == 0 && n_items < n; n_items++)
                r = vm_add(broker, rows[n_items].id, &items[n_items], err);
        vm_rows_free(rows, n);
        if (r == 0)
                r = metrics_start(broker, &vms->metrics, err);
        if (r == 0) {
                start_all(vms, items, n_items);
                transfers_recover(broker);
                discarded_start(broker);
        }
        for (size_t i = 0; items && i < n_items && items[i]; i++)
                vm_unref(items[i]);
        free(items);
        return r;
}

struct stopper {
        struct vm *vm;
        unsigned timeout_ms;
};

static void *stopper_main(void *opaque)
{
        struct stopper *stopper = opaque;
        struct error err = ERROR_INIT;

        pthread_mutex_lock(&stopper->vm->lock);
        if (worker_down(stopper->vm, stopper->timeout_ms, &err) < 0)
                broker_log_error(stopper->vm->broker, stopper->vm->id, &err);
        pthread_mutex_unlock(&stopper->vm->lock);
        return NULL;
}

static void stop_workers(struct vms *vms, unsigned timeout_ms)
{
        struct stopper *stoppers = calloc(vms->n_items + 1, sizeof(*stoppers));
        pthread_t *threads = calloc(vms->n_items + 1, sizeof(*threads));
        bool *started = calloc(vms->n_items + 1, sizeof(*started));

        for (size_t i = 0; stoppers && threads && started && i < vms->n_items; i++) {
                stoppers[i] = (struct stopper){vms->items[i], timeout_ms};
                started[i] = pthread_create(&threads[i], NULL, stopper_main, &stoppers[i]) == 0;
                if (!started[i])
                        stopper_main(&stoppers[i]);
        }
        for (size_t i = 0; threads && started && i < vms->n_items; i++)
                if (started[i])
                        pthread_join(threads[i], NULL);
        free(started);
        free(threads);
        free(stoppers);
}

void vms_stop(struct broker *broker, bool leave_workers, unsigned timeout_ms)
{
        struct vms *vms = broker->vms;

        if (!vms)
                return;
        vms->metrics = metrics_stop(vms->metrics);
        pthread_mutex_lock(&vms->lock);
        vms->stopping = true;
        pthread_cond_broadcast(&vms->wakeup);
        for (size_t i = 0; i < vms->n_items; i++)
                pthread_cond_broadcast(&vms->items[i]->changed);
        while (vms->n_threads > 0)
                pthread_cond_wait(&vms->idle, &vms->lock);
        pthread_mutex_unlock(&vms->lock);
        if (!leave_workers)
                stop_workers(vms, timeout_ms);
        while (vms->n_items > 0) {
                struct vm *vm = vms->items[0];

                /* The link's thread ends here, and with it its callbacks. */
                pthread_mutex_lock(&vm->lock);
                pthread_rwlock_wrlock(&vm->link_lock);
                vm->link = link_free(vm->link);
                pthread_rwlock_unlock(&vm->link_lock);
                pthread_mutex_unlock(&vm->lock);
                vm_drop(vm);
        }
        free(vms->items);
        pthread_cond_destroy(&vms->idle);
        pthread_cond_destroy(&vms->wakeup);
        pthread_mutex_destroy(&vms->lock);
        free(vms);
        broker->vms = NULL;
}

/* ---- on and off ---- */

int vm_is_on(struct vm *vm, const struct vm_row *row, bool *ret, struct error *err)
{
        json_auto_t *clients = NULL;
        int r;

        if (agent_is_there(vm)) {
                *ret = row->is_on_by_agent;
                return 0;
        }
        r = worker_clients(vm, WORKER_CALL_MS, &clients, err);
        if (r < 0 && r != -EHOSTDOWN)
                return r;
        /* A worker that is dead has no clients. */
        *ret = r == 0 && clients_count(clients, NULL) > 0;
        if (r < 0)
                error_clear(err);
        return 0;
}

bool vm_looks_on(struct vm *vm, const struct vm_row *row, const json_t *clients)
{
        return agent_is_there(vm) ? row->is_on_by_agent : clients_count(clients, NULL) > 0;
}

void vm_changed(struct vm *vm, const char *event, json_t *details)
{
        struct error err = ERROR_INIT;

        if (sidecar_write(vm->broker->catalog, host_fs(), vm->id, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
        vm_publish(vm, event, details);
        vm_may_merge(vm);
}

int vm_try_again(method_fn run, struct broker *broker, const struct caller *caller,
        const json_t *params, json_t **ret, struct error *err)
{
        int r = -EHOSTDOWN;

        for (unsigned tries = 0; tries < 3 && r == -EHOSTDOWN; tries++) {
                error_clear(err);
                r = run(broker, caller, params, ret, err);
        }
        return r;
}

/* ---- as JSON ---- */

/* The name of the vm's snapshot with @id, or null. */
static json_t *name_of(struct vm *vm, const struct vm_row *row, const char *id)
{
        struct snapshot_row snapshot = {0};
        json_t *ret = NULL;

        if (id[0] &&
                catalog_snapshot_find(vm->broker->catalog, row->id, id, &snapshot, NULL) == 0 &&
                strcmp(snapshot.state, "pending") != 0)
                ret = json_string(snapshot.name);
        snapshot_row_done(&snapshot);
        return ret ? ret : json_null();
}

static int counts(struct vm *vm, size_t *ret_disks, size_t *ret_snapshots, struct error *err)
{
        struct snapshot_row *snapshots = NULL;
        struct disk_row *disks = NULL;
        size_t n = 0;
        int r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, ret_disks, err);

        if (r < 0)
                return r;
        disk_rows_free(disks, *ret_disks);
        r = catalog_snapshot_list(vm->broker->catalog, vm->id, &snapshots, &n, err);
        if (r < 0)
                return r;
        *ret_snapshots = 0;
        for (size_t i = 0; i < n; i++)
                *ret_snapshots += strcmp(snapshots[i].state, "committed") == 0;
        snapshot_rows_free(snapshots, n);
        return 0;
}

int vm_to_json(struct vm *vm, const struct vm_row *row, bool full, json_t **ret, struct error *err)
{
        json_auto_t *clients = NULL, *object = NULL;
        size_t n_disks = 0, n_snapshots = 0;
        char time[TIME_TEXT_MAX], agent[160];
        int r = counts(vm, &n_disks, &n_snapshots, err);

        if (r < 0)
                return r;
        if (n_disks == 0 || worker_clients(vm, 2000, &clients, NULL) < 0)
                clients = json_array();
        object = json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:o, s:I, s:s?}", "name", row->name,
                "id", row->id, "created", time_to_text(row->created_us, time), "on",
                vm_looks_on(vm, row, clients), "disks", (json_int_t)n_disks, "snapshots",
                (json_int_t)n_snapshots, "current", name_of(vm, row, row->current), "clients",
                (json_int_t)json_array_size(clients), "directory", row->directory);
        if (!object)
                return fail(err, ENOMEM, "no memory for the answer");
        if (full) {
                json_t *settings = json_loads(row->settings, 0, NULL);

                json_object_set_new(object, "settings", settings ? settings : json_object());
                json_object_set_new(object, "snapshot-dir",
                        row->snapshot_dir ? json_string(row->snapshot_dir) : json_null());
                json_object_set_new(object, "resumes-from", name_of(vm, row, row->resume));
                json_object_set_new(object, "agent",
                        agent_name(vm, agent, sizeof(agent)) ? json_string(agent) : json_null());
        }
        *ret = object;
        object = NULL;
        return 0;
}
