/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon may die between any two of its steps: before and after each thing that it asks of a worker,
 * each commit of the catalog, each file that it removes. After any such cut, and a new start, there must
 * be the state before the operation or the state after it; no file without a name, no name without a
 * file; and the worker has open what the catalog says.
 *
 * Here the worker is not a process: it is a few files in the test's folder, so that it outlives the
 * broker (a child of the test's, ended at the chosen step) or does not, as the case wants. An image's
 * bytes are its content: one letter for each write. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/uuid.h"
#include "chain/chain.h"
#include "vhdd/daemon/catalog_internal.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"

/* clang tells of its sanitizers in another way than gcc. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif

#define CUT_STATUS 77
#define MARK       "\x01guest wrote " /* before each letter of its; no id has it by chance */

static char folder[64];
static char last_disk = 'b';
static unsigned steps_left; /* 0: no cut */

/* One more thing that cannot be taken back is about to happen, or has happened. */
static void step(void)
{
        if (steps_left > 0 && --steps_left == 0)
                _exit(CUT_STATUS);
}

static int on_commit(void *opaque)
{
        step();
        return 0;
}

/* The journal's and everybody's unlink comes here. */
int unlink(const char *path)
{
        bool counts = strstr(path, ".vhd") || strstr(path, ".avhd");
        int r;

        if (counts)
                step();
        r = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
        if (counts)
                step();
        return r;
}

/* ---- the worker ---- */

static char *in_folder(const char *name)
{
        char *path;

        return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

/* What it has open, what it switched, what it merges, and which images a merge emptied for good:
 * {"chains": {NAME: [PATHS]}, "exports": [..], "switched", "merges": {JOB: {..}}, "gone": [PATHS],
 * "pushed": {CHILD: what it stood on and has a copy of} */
static json_t *worker_load(void)
{
        _cleanup_free_ char *path = in_folder("worker");
        json_t *state = json_load_file(path, 0, NULL);

        return state ? state
                     : json_pack("{s:{}, s:{}, s:n, s:{}, s:[], s:{}}", "chains", "exports",
                               "switched", "merges", "gone", "pushed");
}

static void worker_store(json_t *state)
{
        _cleanup_free_ char *path = in_folder("worker"), *new = in_folder("worker.new");

        /* At once: a life may end while another thread of it is here. */
        json_dump_file(state, new, 0);
        rename(new, path);
        json_decref(state);
}

static bool make_file(const char *path)
{
        int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);

        if (fd >= 0)
                close(fd);
        return fd >= 0;
}

static int answer_hello(json_t *state, json_t **ret)
{
        json_t *chains = json_array(), *exports = json_array(), *merges = json_array(), *value;
        const char *name;

        json_object_foreach(json_object_get(state, "chains"), name, value) json_array_append_new(
                chains, json_pack("{s:s, s:O}", "chain", name, "paths", value));
        json_object_foreach(json_object_get(state, "exports"), name, value) json_array_append_new(
                exports, json_pack("{s:s, s:O}", "name", name, "chain", value));
        json_object_foreach(json_object_get(state, "merges"), name, value)
                json_array_append(merges, value);
        *ret = json_pack("{s:o, s:o, s:O, s:o}", "chains", chains, "exports", exports, "switched",
                json_object_get(state, "switched"), "merges", merges);
        return 0;
}

/* ---- its merges: all of a merge's bytes move when it is finished, at once ---- */

static bool has_text(const json_t *list, const char *text)
{
        json_t *item;
        size_t i;

        json_array_foreach((json_t *)list, i, item)
        {
                if (strcmp(json_string_value(item), text) == 0)
                        return true;
        }
        return false;
}

static const char *job_key(const json_t *params, char ret[24])
{
        snprintf(ret, 24, "%d", (int)param_int(params, "job", 0));
        return ret;
}

/* Up, unless it has to be down. */
static int plan_merge(const json_t *state, const json_t *params, json_t **ret, struct error *err)
{
        const json_t *chain =
                json_object_get(json_object_get(state, "chains"), param_text(params, "chain"));
        json_t *images = json_copy(json_object_get(params, "hidden"));
        const char *lowest = json_string_value(json_array_get(images, 0));
        const char *highest =
                json_string_value(json_array_get(images, json_array_size(images) - 1));
        bool down = strcmp(param_text(params, "direction"), "down") == 0;
        json_t *path, *top = NULL;
        size_t i;

        json_array_foreach((json_t *)chain, i, path)
        {
                if (strcmp(json_string_value(path), highest) == 0)
                        top = i > 0 ? json_array_get(chain, i - 1) : NULL;
        }
        if (!top) {
                json_decref(images);
                return fail(err, ESTALE, "nothing stands on '%s'", highest);
        }
        *ret = json_pack("{s:s, s:O, s:i}", "direction", down ? "down" : "up", "destination",
                down ? json_array_get(images, 0) : top, "bytes", 1000);
        if (down) {
                cr_assert(strcmp(lowest, param_text(*ret, "destination")) == 0);
                json_array_remove(images, 0);
                json_array_append(images, top);
        }
        json_object_set_new(*ret, "images", images);
        return 0;
}

static void begin_merge(json_t *state, const json_t *params, json_t **ret)
{
        json_t *merge = json_pack("{s:O, s:O, s:O, s:O, s:O, s:s, s:s, s:s}", "job",
                json_object_get(params, "job"), "chain", json_object_get(params, "chain"), "images",
                json_object_get(params, "images"), "direction",
                json_object_get(params, "direction"), "shared", json_object_get(params, "shared"),
                "state", "done", "event", "merge", "what", "done");
        char key[24];

        json_object_set_new(json_object_get(state, "merges"), job_key(params, key), merge);
        *ret = json_pack("{s:i}", "bytes-total", 1000);
}

static json_t *merge_destination(const json_t *chain, const json_t *images, bool down)
{
        const char *end =
                json_string_value(json_array_get(images, down ? 0 : json_array_size(images) - 1));
        json_t *path;
        size_t i;

        json_array_foreach((json_t *)chain, i, path)
        {
                if (strcmp(json_string_value(path), end) == 0)
                        return json_array_get(chain, down ? i + 1 : i - 1);
        }
        return NULL;
}

/* Appends what @from holds to @to. */
static void append_content(const char *from, FILE *to)
{
        FILE *in = fopen(from, "r");
        int c;

        cr_assert(in != NULL, "'%s' is gone before its merge", from);
        while ((c = fgetc(in)) != EOF)
                fputc(c, to);
        fclose(in);
}

static void empty_file(const char *path)
{
        cr_assert(eq(int, truncate(path, 0), 0));
}

static void move_content(const json_t *images, const char *destination, bool down, bool shared)
{
        _cleanup_free_ char *text = NULL;
        size_t size, i;
        FILE *out = open_memstream(&text, &size);
        json_t *path;

        if (down)
                append_content(destination, out);
        json_array_foreach((json_t *)images, i, path) append_content(json_string_value(path), out);
        if (!down)
                append_content(destination, out);
        fclose(out);
        out = fopen(destination, "w");
        fwrite(text, 1, size, out);
        fclose(out);
        json_array_foreach((json_t *)images, i, path)
        {
                if (!shared)
                        empty_file(json_string_value(path));
        }
}

static int finish_merge(json_t *state, const json_t *params, json_t **ret, struct error *err)
{
        char key[24];
        json_t *merge = json_object_get(json_object_get(state, "merges"), job_key(params, key));
        json_t *chain =
                json_object_get(json_object_get(state, "chains"), param_text(merge, "chain"));
        json_t *images = json_object_get(merge, "images"), *path, *destination;
        bool shared = param_bool(merge, "shared"), down;
        size_t i;

        if (!merge || strcmp(param_text(merge, "state"), "done") != 0)
                return fail(err, EBUSY, "the merge %s is not done", key);
        down = strcmp(param_text(merge, "direction"), "down") == 0;
        destination = json_incref(merge_destination(chain, images, down));
        move_content(images, json_string_value(destination), down, shared);
        if (shared)
                json_object_set(json_object_get(state, "pushed"), json_string_value(destination),
                        json_array_get(images, 0));
        json_decref(destination);
        json_object_set_new(merge, "state", json_string("finished"));
        for (i = json_array_size(chain); !shared && i-- > 0;)
                if (has_text(images, json_string_value(json_array_get(chain, i))))
                        json_array_remove(chain, i);
        json_array_foreach(images, i, path)
        {
                if (!shared)
                        json_array_append(json_object_get(state, "gone"), path);
        }
        *ret = json_object();
        return 0;
}

static int do_switch(json_t *state, const json_t *params, json_t **ret)
{
        json_t *one;
        size_t i;

        json_array_foreach(json_object_get(params, "chains"), i, one) json_array_insert(
                json_object_get(json_object_get(state, "chains"), param_text(one, "chain")), 0,
                json_object_get(one, "path"));
        json_object_set(state, "switched", json_object_get(params, "snapshot"));
        *ret = json_pack("{s:i}", "stall-us", 1);
        return 0;
}

static int serve(
        json_t *state, const char *method, const json_t *params, json_t **ret, struct error *err)
{
        json_t *chains = json_object_get(state, "chains"),
               *exports = json_object_get(state, "exports");
        char key[24];

        if (strcmp(method, "hello") == 0)
                return answer_hello(state, ret);
        if (strcmp(method, "merge.plan") == 0)
                return plan_merge(state, params, ret, err);
        if (strcmp(method, "merge.finish") == 0)
                return finish_merge(state, params, ret, err);
        if (strcmp(method, "merge.begin") == 0)
                begin_merge(state, params, ret);
        else if (strcmp(method, "merge.free") == 0)
                json_object_del(json_object_get(state, "merges"), job_key(params, key));
        else if (strcmp(method, "clients") == 0)
                *ret = json_pack("{s:[]}", "clients");
        else if (strcmp(method, "chain.open") == 0)
                json_object_set(
                        chains, param_text(params, "chain"), json_object_get(params, "paths"));
        else if (strcmp(method, "chain.close") == 0)
                json_object_del(chains, param_text(params, "chain"));
        else if (strcmp(method, "export.add") == 0)
                json_object_set(
                        exports, param_text(params, "name"), json_object_get(params, "chain"));
        else if (strcmp(method, "export.remove") == 0)
                json_object_del(exports, param_text(params, "name"));
        else if (strcmp(method, "chain.create-child") == 0 ||
                strcmp(method, "image.create-child") == 0)
                return make_file(param_text(params, "path")) ? 0 : fail(err, EEXIST, "it is there");
        else if (strcmp(method, "snapshot.switch") == 0)
                return do_switch(state, params, ret);
        else if (strcmp(method, "snapshot.switched") == 0)
                *ret = json_pack("{s:O}", "snapshot", json_object_get(state, "switched"));
        else if (strcmp(method, "snapshot.commit") == 0)
                json_object_set_new(state, "switched", json_null());
        return 0;
}

/* ---- what link.c and resolver.c are in the daemon ---- */

struct link {
        struct link_events events;
};

/* As it comes from the worker by itself. */
static void tell_done(struct link *link, const json_t *params)
{
        json_t *state = worker_load();
        char key[24];
        const json_t *merge =
                json_object_get(json_object_get(state, "merges"), job_key(params, key));

        if (merge)
                link->events.event(link->events.opaque, merge);
        json_decref(state);
}

int link_call(struct link *link, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err)
{
        bool looks = strcmp(method, "hello") == 0 || strcmp(method, "clients") == 0;
        json_t *state = worker_load(), *answer = NULL;
        int r;

        if (!looks)
                step();
        r = serve(state, method, params, &answer, err);
        worker_store(state);
        if (r == 0 && strcmp(method, "merge.begin") == 0)
                tell_done(link, params);
        if (!looks)
                step();
        json_decref(params);
        if (r == 0 && ret)
                *ret = answer ? answer : json_object();
        else
                json_decref(answer);
        return r;
}

int link_start(struct broker *broker, const char *vm_id, const struct link_events *events,
        bool *ret_adopted, json_t **ret_hello, struct link **ret, struct error *err)
{
        *ret = calloc(1, sizeof(**ret));
        (*ret)->events = *events;
        return link_call(*ret, "hello", json_object(), 0, ret_hello, err);
}

int link_restart(struct link *link, json_t **ret_hello, struct error *err)
{
        return link_call(link, "hello", json_object(), 0, ret_hello, err);
}

int link_send_client(
        struct link *link, const struct nbd_handoff *handoff, int fd, struct error *err)
{
        return fail(err, ENOSYS, "no clients here");
}

int link_grant(struct link *link, const char *path, unsigned access, uint64_t device,
        uint64_t inode, struct error *err)
{
        return 0;
}

void link_revoke(struct link *link, const char *path)
{
}

void link_revoke_others(
        struct link *link, bool (*keep)(void *opaque, const char *path), void *opaque)
{
}

void link_forgive(struct link *link)
{
}

void link_adopted(struct link *link)
{
}

bool link_is_left(struct broker *broker, const char *vm_id)
{
        return false;
}

bool link_is_alive(struct link *link)
{
        return true;
}

pid_t link_pid(const struct link *link)
{
        return 1;
}

struct link *link_free(struct link *link)
{
        free(link);
        return NULL;
}

int link_quit(struct link *link, unsigned timeout_ms, struct error *err)
{
        return 0;
}

void link_kill(struct link *link)
{
}

void broker_publish(struct broker *broker, const char *name, json_t *event)
{
        json_decref(event);
}

static void put_layer(struct resolved_layer *layer, const char *path, const struct stat *st)
{
        *layer = (struct resolved_layer){.path = strdup(path),
                .device = st->st_dev,
                .inode = st->st_ino,
                .type = "dynamic",
                .format = "vhd",
                .size = 1 << 20};
}

/* The headers say what the catalog says, but that an image which a merge emptied is not there any more,
 * nor one that was copied into the one above. */
static bool is_gone(const json_t *state, const struct image_chain *chain, size_t i)
{
        const char *copied = i > 0
                ? param_text(json_object_get(state, "pushed"), chain->rows[i - 1].path)
                : NULL;

        return has_text(json_object_get(state, "gone"), chain->rows[i].path) ||
                (copied && strcmp(copied, chain->rows[i].path) == 0);
}

/* Nobody but the vms has images here. */
int resolve_parents(struct broker *broker, const char *directory, const json_t *paths, json_t **ret,
        struct error *err)
{
        *ret = json_array();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a list");
}

int resolve_chain(struct broker *broker, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        struct resolved_layer *layers = calloc(CHAIN_MAX_DEPTH, sizeof(*layers));
        struct image_chain chain = {0};
        json_t *state = worker_load();
        struct stat st;
        size_t n = 0;

        if (stat(path, &st) < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
        if (image_chain_get(broker->catalog, path, &chain, NULL) < 0)
                put_layer(&layers[n++], path, &st);
        for (size_t i = 0; i < chain.n; i++)
                if (!is_gone(state, &chain, i))
                        put_layer(&layers[n++], chain.rows[i].path, &st);
        image_chain_done(&chain);
        json_decref(state);
        *ret = layers;
        *ret_n = n;
        return 0;
}

void resolved_layers_free(struct resolved_layer *layers, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(layers[i].path);
        free(layers);
}

/* ---- a life of the broker ---- */

static struct broker broker;

static void begin_life(void)
{
        static char nbd_path[] = "/nbd.sock", *nbd_paths[] = {nbd_path};
        _cleanup_free_ char *path = in_folder("catalog.sqlite");
        struct error err = ERROR_INIT;

        broker = (struct broker){.options = {.nbd_paths = nbd_paths, .n_nbd_paths = 1}};
        cr_assert(eq(int, catalog_open(path, &broker.catalog, &err), 0), "%s", err.message);
        cr_assert(eq(int, vms_start(&broker, &err), 0), "%s", err.message);
}

static void end_life(void)
{
        vms_stop(&broker, true, 0);
        broker.catalog = catalog_close(broker.catalog);
}

/* Nothing is left to merge that does not wait for somebody. */
static void settle_merges(void)
{
        const struct timespec moment = {.tv_nsec = 1000000};
        size_t n_open = 1;
        struct vm *vm;

        for (unsigned i = 0; i < 20000 && n_open > 0; i++) {
                struct job_row *jobs = NULL;
                size_t n = 0;

                n_open = 0;
                cr_assert(eq(int, catalog_job_list(broker.catalog, NULL, &jobs, &n, NULL), 0));
                for (size_t k = 0; k < n; k++)
                        n_open += strcmp(jobs[k].state, "done") != 0 &&
                                strcmp(jobs[k].kind, "merge") == 0 && /* no worker seals here */
                                !strstr(jobs[k].payload, "\"stuck\":true");
                job_rows_free(jobs, n);
                nanosleep(&moment, NULL);
        }
        cr_assert(eq(sz, n_open, 0), "a merge does not end");
        /* Whoever ended the last one has the lock until all of it is done. */
        if (vm_get(&broker, "v", &vm, NULL, NULL) == 0)
                vm_release(vm);
}

static int call(const struct method *table, const char *name, json_t *params, struct error *err)
{
        json_t *answer = NULL;
        int r = -ENOSYS;

        for (; table->name; table++)
                if (strcmp(table->name, name) == 0)
                        r = table->run(&broker, NULL, params, &answer, err);
        json_decref(params);
        json_decref(answer);
        return r;
}

static void must(const struct method *table, const char *name, json_t *params)
{
        struct error err = ERROR_INIT;
        int r = call(table, name, params, &err);

        cr_assert(eq(int, r, 0), "%s: %s", name, err.message);
}

/* The guest writes a letter: it goes to the disk's leaf. */
static void write_letter(const char *disk, char letter)
{
        struct disk_row row = {0};
        struct vm_row vm = {0};
        FILE *file;

        if (disk[0] > last_disk)
                return;
        cr_assert(eq(int, catalog_vm_find(broker.catalog, "v", &vm, NULL), 0));
        cr_assert(eq(int, catalog_disk_find(broker.catalog, vm.id, disk, &row, NULL), 0));
        file = fopen(row.file, "a");
        fprintf(file, "%s%c", MARK, letter);
        fclose(file);
        disk_row_done(&row);
        vm_row_done(&vm);
}

/* ---- the whole state as one text ---- */

static void put_content(FILE *out, const char *leaf)
{
        struct image_chain chain = {0};

        cr_assert(eq(int, image_chain_get(broker.catalog, leaf, &chain, NULL), 0), "%s", leaf);
        for (size_t i = chain.n; i-- > 0;) {
                FILE *file = fopen(chain.rows[i].path, "r");
                char last[sizeof(MARK)] = "";
                int c;

                cr_assert(file != NULL, "the catalog names '%s', and it is not there",
                        chain.rows[i].path);
                while ((c = fgetc(file)) != EOF) {
                        if (memcmp(last, MARK, sizeof(MARK) - 1) == 0)
                                fputc(c, out);
                        memmove(last, last + 1, sizeof(MARK) - 2);
                        last[sizeof(MARK) - 2] = (char)c;
                }
                fclose(file);
        }
        fprintf(out, "(%zu%s)", chain.n, strstr(leaf, ".avhd") ? "" : ", first name");
        image_chain_done(&chain);
}

static void put_snapshots(FILE *out, const struct vm_row *vm)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;

        cr_assert(eq(int, catalog_snapshot_list(broker.catalog, vm->id, &rows, &n, NULL), 0));
        for (size_t i = 0; i < n; i++) {
                struct snapshot_disk_row *disks = NULL;
                size_t n_disks = 0;

                fprintf(out, "%s%s:", rows[i].name, strcmp(rows[i].id, vm->current) ? "" : "*");
                catalog_snapshot_disk_list(broker.catalog, rows[i].id, &disks, &n_disks, NULL);
                for (size_t k = 0; k < n_disks; k++) {
                        fprintf(out, " %s=", disks[k].name);
                        put_content(out, disks[k].file);
                }
                fputs("; ", out);
                snapshot_disk_rows_free(disks, n_disks);
        }
        snapshot_rows_free(rows, n);
}

static char *state_text(void)
{
        struct disk_row *disks = NULL;
        struct vm_row vm = {0};
        size_t n = 0, size;
        char *text = NULL;
        FILE *out = open_memstream(&text, &size);

        if (catalog_vm_find(broker.catalog, "v", &vm, NULL) == 0) {
                catalog_disk_list(broker.catalog, vm.id, &disks, &n, NULL);
                for (size_t i = 0; i < n; i++) {
                        fprintf(out, "%s@%d:%d=", disks[i].name, disks[i].bus, disks[i].unit);
                        put_content(out, disks[i].file);
                        fputs("; ", out);
                }
                disk_rows_free(disks, n);
                put_snapshots(out, &vm);
                fputs(vm.undo ? "undo" : "", out);
                vm_row_done(&vm);
        } else {
                fputs("no vm", out);
        }
        fclose(out);
        return text;
}

/* But for what is open to be sealed in the background. */
static size_t count_chains(const json_t *worker)
{
        json_t *chains = json_object_get(worker, "chains"), *chain;
        const char *name;
        size_t n = 0;

        json_object_foreach(chains, name, chain) n += strncmp(name, "seal:", 5) != 0;
        return n;
}

/* No file without a name, and the worker has what the catalog says, with no flush held. */
static void check_whole(unsigned cut)
{
        struct disk_row *disks = NULL;
        json_t *worker = worker_load();
        struct dirent *entry;
        DIR *d = opendir(folder);
        size_t n = 0;

        while ((entry = readdir(d))) {
                _cleanup_free_ char *path = in_folder(entry->d_name);
                size_t length = strlen(entry->d_name);
                struct image_row row = {0};

                if (length < 4 || strcmp(entry->d_name + length - 3, "vhd") != 0)
                        continue;
                cr_expect(eq(int, catalog_image_find(broker.catalog, path, &row, NULL), 0),
                        "cut %u: nobody names '%s'", cut, path);
                image_row_done(&row);
        }
        closedir(d);
        cr_expect(eq(ptr, json_object_get(worker, "switched"), json_null()),
                "cut %u: a record stays", cut);
        catalog_disk_list(broker.catalog, NULL, &disks, &n, NULL);
        cr_expect(eq(sz, count_chains(worker), n), "cut %u", cut);
        for (size_t i = 0; i < n; i++) {
                json_t *paths = json_object_get(json_object_get(worker, "chains"), disks[i].id);
                const char *leaf = json_string_value(json_array_get(paths, 0));
                bool same = leaf && strcmp(leaf, disks[i].file) == 0;

                cr_expect(eq(int, same, true),
                        "cut %u: the worker writes to '%s', the catalog says '%s'", cut,
                        leaf ? leaf : "nothing", disks[i].file);
        }
        disk_rows_free(disks, n);
        json_decref(worker);
}

/* ---- the cases ---- */

struct scenario {
        void (*prepare)(void);
        const struct method *table;
        const char *method;
        const char *params; /* JSON; FOLDER is the folder */
};

static void prepare_two_disks(void)
{
        char path[128];

        must(vm_methods, "vm.create", json_pack("{s:s}", "vm", "v"));
        for (char name[] = "a"; name[0] <= last_disk; name[0]++) {
                snprintf(path, sizeof(path), "%s/%s.vhd", folder, name);
                must(disk_methods, "disk.attach",
                        json_pack("{s:s, s:s, s:s, s:i}", "vm", "v", "file", path, "name", name,
                                "create", 1 << 20));
        }
}

static void take(const char *name)
{
        must(snapshot_methods, "snapshot.take", json_pack("{s:s, s:s}", "vm", "v", "name", name));
}

static void prepare_tree(void)
{
        prepare_two_disks();
        write_letter("a", 'p');
        take("one");
        write_letter("a", 'q');
        write_letter("b", 'r');
        take("two");
        write_letter("b", 's');
}

/* Two branches over "one"; on the other one than the running, "two" and "three". */
static void prepare_branches(void)
{
        prepare_tree();
        take("three");
        write_letter("a", 'u');
        must(snapshot_methods, "snapshot.apply", json_pack("{s:s, s:s}", "vm", "v", "name", "one"));
        write_letter("a", 'v');
}

static void prepare_undo(void)
{
        prepare_tree();
        must(snapshot_methods, "snapshot.apply",
                json_pack("{s:s, s:s, s:i}", "vm", "v", "name", "one", "keep-discarded", 3600));
        write_letter("a", 't');
}

static void new_folder(void)
{
        /* In memory where there is such a place: syncs are not what is looked at here. */
        snprintf(folder, sizeof(folder), "%s/vhdd-cuts-XXXXXX",
                access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        cr_assert(mkdtemp(folder) != NULL);
}

static void remove_folder(void)
{
        struct dirent *entry;
        DIR *d = opendir(folder);

        while ((entry = readdir(d))) {
                _cleanup_free_ char *path = in_folder(entry->d_name);

                syscall(SYS_unlinkat, AT_FDCWD, path, 0);
        }
        closedir(d);
        rmdir(folder);
}

/* The operation, in a process that ends at step @cut (0: not). Answers whether it was cut. */
static bool run_cut(const struct scenario *scenario, unsigned cut)
{
        pid_t pid = fork();
        int status = 0;
        bool good;

        if (pid == 0) {
                char params[512] = "", *out = params;
                struct error err = ERROR_INIT;
                const char *in = scenario->params;

                for (; *in; in++)
                        if (strncmp(in, "FOLDER", 6) == 0) {
                                out += sprintf(out, "%s", folder);
                                in += 5;
                        } else {
                                *out++ = *in;
                        }
                begin_life();
                sqlite3_commit_hook(broker.catalog->db, on_commit, NULL);
                steps_left = cut;
                if (call(scenario->table, scenario->method, json_loads(params, 0, NULL), &err) <
                        0) {
                        fprintf(stderr, "%s: %s\n", scenario->method, err.message);
                        _exit(1);
                }
                settle_merges();
                steps_left = 0;
                _exit(0);
        }
        waitpid(pid, &status, 0);
        good = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CUT_STATUS);
        cr_assert(
                eq(int, good, true), "%s with cut %u ended with %d", scenario->method, cut, status);
        return WEXITSTATUS(status) == CUT_STATUS;
}

static void forget_worker_chains(void)
{
        json_t *state = worker_load();

        json_object_clear(json_object_get(state, "chains"));
        json_object_clear(json_object_get(state, "exports"));
        json_object_clear(json_object_get(state, "merges"));
        worker_store(state);
}

/* Answers whether there was a cut @cut at all. */
static bool one_cut(const struct scenario *scenario, unsigned cut, bool worker_dies)
{
        _cleanup_free_ char *before = NULL, *now = NULL, *after = NULL;
        bool was_cut;

        new_folder();
        begin_life();
        scenario->prepare();
        settle_merges();
        before = state_text();
        end_life();
        was_cut = run_cut(scenario, cut);
        if (worker_dies)
                forget_worker_chains();
        begin_life();
        settle_merges();
        now = state_text();
        check_whole(cut);
        if (was_cut && strcmp(before, now) == 0) {
                /* Undone: so it can be done now. */
                end_life();
                cr_assert(eq(int, run_cut(scenario, 0), false));
                begin_life();
                settle_merges();
                after = state_text();
                check_whole(cut);
                cr_expect(strcmp(after, before) != 0, "%s changes nothing", scenario->method);
        } else {
                after = strdup(now);
        }
        end_life();
        remove_folder();
        /* One answer for all: the whole operation's. */
        if (cut == 0) {
                setenv("VHDD_TEST_AFTER", after, 1);
        } else {
                cr_expect(strcmp(after, getenv("VHDD_TEST_AFTER")) == 0,
                        "%s cut at %u: '%s' is neither\n'%s' nor\n'%s'", scenario->method, cut,
                        after, before, getenv("VHDD_TEST_AFTER"));
        }
        return was_cut;
}

static void every_cut(const struct scenario *scenario)
{
        unsigned cut = 1;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
        __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
        /* A child of a process that had threads does not get on under these; the daemon itself runs
         * under them in tests/daemon. */
        cr_skip_test("not under a sanitizer");
#endif
        one_cut(scenario, 0, false);
        while (one_cut(scenario, cut, cut % 2))
                cut++;
        cr_expect(gt(uint, cut, 4), "%s has only %u steps: the test sees too little",
                scenario->method, cut);
}

Test(core_cuts, take_is_whole_or_not_there)
{
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.take",
                "{\"vm\": \"v\", \"name\": \"three\"}"});
}

Test(core_cuts, apply_is_whole_or_not_there)
{
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.apply",
                "{\"vm\": \"v\", \"name\": \"one\"}"});
}

Test(core_cuts, apply_that_saves_what_was_is_whole_or_not_there)
{
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.apply",
                "{\"vm\": \"v\", \"name\": \"one\", \"save-current\": \"saved\"}"});
}

Test(core_cuts, undo_is_whole_or_not_there)
{
        every_cut(&(struct scenario){
                prepare_undo, snapshot_methods, "snapshot.undo", "{\"vm\": \"v\"}"});
}

Test(core_cuts, delete_is_whole_or_not_there)
{
        every_cut(&(struct scenario){prepare_undo, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"two\"}"});
}

Test(core_cuts, attach_of_a_new_disk_is_whole_or_not_there)
{
        every_cut(&(struct scenario){prepare_two_disks, disk_methods, "disk.attach",
                "{\"vm\": \"v\", \"file\": \"FOLDER/c.vhd\", \"create\": 1048576}"});
}

Test(core_cuts, detach_is_whole_or_not_there)
{
        every_cut(&(struct scenario){
                prepare_tree, disk_methods, "disk.detach", "{\"vm\": \"v\", \"disk\": \"b\"}"});
}

Test(core_cuts, delete_merges_down_into_the_first_file)
{
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"one\"}"});
}

Test(core_cuts, delete_merges_up_into_the_running_leaf)
{
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"two\"}"});
}

Test(core_cuts, delete_of_all_leaves_one_file)
{
        last_disk = 'a';
        every_cut(&(struct scenario){prepare_tree, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"one\", \"subtree\": true}"});
        cr_expect(strstr(getenv("VHDD_TEST_AFTER"), "a@0:0=pq(1, first name)") != NULL, "%s",
                getenv("VHDD_TEST_AFTER"));
}

Test(core_cuts, delete_merges_on_another_branch)
{
        last_disk = 'a';
        every_cut(&(struct scenario){prepare_branches, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"two\"}"});
}

Test(core_cuts, delete_pushes_into_each_branch)
{
        last_disk = 'a';
        every_cut(&(struct scenario){prepare_branches, snapshot_methods, "snapshot.delete",
                "{\"vm\": \"v\", \"name\": \"one\", \"push\": true}"});
}
