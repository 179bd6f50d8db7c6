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
#include "vhdd/daemon/catalog_internal.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"

#define CUT_STATUS 77
#define MARK       "\x01guest wrote " /* before each letter of its; no id has it by chance */

static char folder[64];
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

/* What it has open, and what it switched: {"chains": {NAME: [PATHS]}, "exports": [..], "switched"} */
static json_t *worker_load(void)
{
        _cleanup_free_ char *path = in_folder("worker");
        json_t *state = json_load_file(path, 0, NULL);

        return state ? state : json_pack("{s:{}, s:{}, s:n}", "chains", "exports", "switched");
}

static void worker_store(json_t *state)
{
        _cleanup_free_ char *path = in_folder("worker");

        json_dump_file(state, path, 0);
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
        json_t *chains = json_array(), *exports = json_array(), *value;
        const char *name;

        json_object_foreach(json_object_get(state, "chains"), name, value) json_array_append_new(
                chains, json_pack("{s:s, s:O}", "chain", name, "paths", value));
        json_object_foreach(json_object_get(state, "exports"), name, value) json_array_append_new(
                exports, json_pack("{s:s, s:O}", "name", name, "chain", value));
        *ret = json_pack("{s:o, s:o, s:O}", "chains", chains, "exports", exports, "switched",
                json_object_get(state, "switched"));
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

        if (strcmp(method, "hello") == 0)
                return answer_hello(state, ret);
        if (strcmp(method, "clients") == 0)
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
        int unused;
};

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

int resolve_chain(struct broker *broker, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        struct resolved_layer *layer = calloc(1, sizeof(*layer));
        struct stat st;

        if (stat(path, &st) < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
        *layer = (struct resolved_layer){.path = strdup(path),
                .device = st.st_dev,
                .inode = st.st_ino,
                .type = "dynamic",
                .format = "vhd",
                .size = 1 << 20};
        *ret = layer;
        *ret_n = 1;
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
        cr_expect(eq(sz, json_object_size(json_object_get(worker, "chains")), n), "cut %u", cut);
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
        for (char name[] = "a"; name[0] <= 'b'; name[0]++) {
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
        before = state_text();
        end_life();
        was_cut = run_cut(scenario, cut);
        if (worker_dies)
                forget_worker_chains();
        begin_life();
        now = state_text();
        check_whole(cut);
        if (was_cut && strcmp(before, now) == 0) {
                /* Undone: so it can be done now. */
                end_life();
                cr_assert(eq(int, run_cut(scenario, 0), false));
                begin_life();
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
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
