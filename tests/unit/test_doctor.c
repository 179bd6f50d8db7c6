/* SPDX-License-Identifier: Apache-2.0 */
/* A doctor that misses something is believed, and one that cries wolf is not asked again: so each
 * kind of trouble is made once and must be found, by its id, with the file it is about; and a healthy
 * vm has no finding at all. The resolver is a table here. */
#include "vhdd/daemon/doctor.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/daemon/sidecar.h"

#define VM   "11111111-1111-4111-8111-111111111111"
#define DISK "aaaaaaaa-0000-4000-8000-000000000001"
#define GUID "5fa21a55-f394-4a4d-9958-1951a67d5540"

static char folder[64], images[80], database[96], base[128], leaf[128];
static struct catalog *catalog;
static struct error err;
static char *roots[] = {images};

/* ---- what the headers say ---- */

static uint8_t base_id = 1, leaf_id = 2;
static int resolve_error;

void resolved_layers_free(struct resolved_layer *layers, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(layers[i].path);
        free(layers);
}

static void set_layer(struct resolved_layer *layer, const char *path, uint8_t id)
{
        struct stat st;

        cr_assert_eq(stat(path, &st), 0);
        *layer = (struct resolved_layer){
                .path = strdup(path), .device = st.st_dev, .inode = st.st_ino};
        memset(layer->uuid, id, 16);
}

static int resolve(void *opaque, const char *path, const char *format, char *const *where,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *e)
{
        if (resolve_error)
                return fail(e, resolve_error, "no parent for '%s'", path);
        *ret = calloc(2, sizeof(**ret));
        *ret_n = strcmp(path, leaf) == 0 ? 2 : 1;
        set_layer(&(*ret)[0], path, strcmp(path, leaf) == 0 ? leaf_id : base_id);
        if (*ret_n == 2)
                set_layer(&(*ret)[1], base, base_id);
        return 0;
}

/* ---- a healthy vm ---- */

static void make_file(const char *path)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

        cr_assert(fd >= 0);
        cr_assert_eq(write(fd, "bytes", 5), 5);
        close(fd);
}

static void put_image(const char *path, const char *parent, uint8_t id, bool sealed)
{
        struct image_row row = {
                .path = (char *)path, .parent = (char *)parent, .format = "vhd", .state = "in-use"};
        struct stat st;

        cr_assert_eq(stat(path, &st), 0);
        row.device = st.st_dev;
        row.inode = st.st_ino;
        row.sealed_size = sealed ? (uint64_t)st.st_size : 0;
        row.sealed_mtime_ns =
                sealed ? (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec : 0;
        memset(row.uuid, id, 16);
        cr_assert_eq(catalog_image_put(catalog, &row, &err), 0, "%s", err.message);
}

static void setup(void)
{
        struct vm_row vm = {
                .id = VM, .name = (char *)"web", .settings = (char *)"{}", .directory = images};
        struct disk_row disk = {.id = DISK,
                .vm = VM,
                .name = (char *)"d",
                .file = leaf,
                .controller = 1,
                .kind = "vhd",
                .read_only = true /* whatever space there is */};

        strcpy(folder, "/tmp/vhdd-doctor-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(images, sizeof(images), "%s/images", folder);
        snprintf(database, sizeof(database), "%s/catalog.sqlite", folder);
        snprintf(base, sizeof(base), "%s/base.vhd", images);
        snprintf(leaf, sizeof(leaf), "%s/base_%s.avhd", images, GUID);
        cr_assert_eq(mkdir(images, 0700), 0);
        make_file(base);
        make_file(leaf);
        cr_assert_eq(catalog_open(database, &catalog, &err), 0, "%s", err.message);
        put_image(base, NULL, 1, true);
        put_image(leaf, base, 2, false);
        cr_assert_eq(catalog_vm_insert(catalog, &vm, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_disk_insert(catalog, &disk, &err), 0, "%s", err.message);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static void teardown(void)
{
        catalog = catalog_close(catalog);
        nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(doctor, .init = setup, .fini = teardown);

static struct doctor a_doctor(void)
{
        return (struct doctor){
                .catalog = catalog, .roots = roots, .n_roots = 1, .resolve = resolve};
}

static json_t *examine(void)
{
        struct doctor doctor = a_doctor();
        json_t *findings = json_array();

        cr_assert_eq(doctor_examine(&doctor, findings, &err), 0, "%s", err.message);
        return findings;
}

static bool has(const json_t *findings, const char *id, const char *file)
{
        json_t *finding;
        size_t i;

        json_array_foreach(findings, i, finding)
        {
                const char *about = json_string_value(json_object_get(finding, "file"));

                if (strcmp(json_string_value(json_object_get(finding, "id")), id) == 0 &&
                        (!file || (about && strcmp(about, file) == 0)))
                        return true;
        }
        return false;
}

static void expect_only(const char *id, const char *file)
{
        json_t *findings = examine();
        char *text = json_dumps(findings, 0);

        cr_expect_eq(json_array_size(findings), id ? 1 : 0, "%s", text);
        if (id)
                cr_expect(has(findings, id, file), "%s", text);
        free(text);
        json_decref(findings);
}

/* ---- trouble ---- */

Test(doctor, says_nothing_of_a_healthy_vm)
{
        expect_only(NULL, NULL);
}

Test(doctor, finds_a_file_that_is_gone)
{
        unlink(leaf);
        expect_only("missing-file", leaf);
}

Test(doctor, finds_another_file_under_the_name)
{
        char other[160];

        snprintf(other, sizeof(other), "%s/other", images);
        make_file(other);
        cr_assert_eq(rename(other, leaf), 0);
        expect_only("replaced-file", leaf);
}

Test(doctor, finds_a_parent_that_was_changed_since_it_was_frozen)
{
        const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};

        cr_assert_eq(utimensat(AT_FDCWD, base, times, 0), 0);
        expect_only("parent-changed", base);
}

Test(doctor, finds_a_wrong_id_at_any_depth)
{
        base_id = 9;
        expect_only("wrong-id", base);
}

Test(doctor, finds_a_chain_that_does_not_open)
{
        resolve_error = ENOENT;
        expect_only("broken-chain", leaf);
}

Test(doctor, finds_a_link_that_the_catalog_does_not_know_of)
{
        json_t *findings;

        put_image(leaf, NULL, 2, false);
        findings = examine();
        cr_expect(has(findings, "broken-chain", leaf));
        json_decref(findings);
}

/* A child was told of its new parent, and everybody died: the catalog follows later. */
Test(doctor, knows_of_a_merge_that_was_cut_off_in_its_end)
{
        _cleanup_free_ char *middle = NULL, *payload = NULL;
        struct job_row job = {.kind = (char *)"merge", .vm = VM, .state = "running"};
        json_t *findings;

        cr_assert(asprintf(&middle, "%s/middle.avhd", images) > 0);
        cr_assert(
                asprintf(&payload,
                        "{\"image\": \"%s\", \"run\": {\"hidden\": [\"%s\"], \"top\": \"%s\", "
                        "\"images\": [\"%s\"], \"destination\": \"%s\", \"direction\": \"down\"}}",
                        base, base, middle, middle, base) > 0);
        make_file(middle);
        put_image(middle, base, 3, false);
        put_image(leaf, middle, 2, false);
        findings = examine();
        cr_expect(has(findings, "broken-chain", leaf), "nothing explains it");
        json_decref(findings);
        job.payload = payload;
        cr_assert_eq(catalog_job_insert(catalog, &job, &job.id, &err), 0);
        findings = examine();
        cr_expect(!has(findings, "broken-chain", leaf));
        json_decref(findings);
}

Test(doctor, finds_files_that_nobody_names_but_not_those_of_the_journal)
{
        char orphan[160], made[160], payload[256];
        json_t *findings;
        int64_t id;

        snprintf(orphan, sizeof(orphan), "%s/x_%s.AVHD", images, GUID);
        snprintf(made, sizeof(made), "%s/y_%s.avhd", images, GUID);
        snprintf(payload, sizeof(payload), "{\"make\":[\"%s\"],\"remove\":[]}", made);
        make_file(orphan);
        expect_only("orphan-file", orphan);
        make_file(made);
        cr_assert_eq(catalog_operation_begin(catalog, "take", VM, payload, &id, &err), 0);
        findings = examine();
        cr_expect(has(findings, "orphan-file", orphan));
        cr_expect_not(has(findings, "orphan-file", made));
        cr_expect(has(findings, "unfinished-operation", NULL));
        json_decref(findings);
}

Test(doctor, tells_of_a_file_whose_name_is_no_utf_8)
{
        char orphan[160], shown[160];

        snprintf(orphan, sizeof(orphan), "%s/\xff\xfe.avhd", images);
        snprintf(shown, sizeof(shown), "%s/??.avhd", images);
        make_file(orphan);
        expect_only("orphan-file", shown);
}

Test(doctor, finds_saved_memory_that_no_snapshot_has)
{
        char path[256];
        struct snapshot_row row = {.id = GUID,
                .vm = VM,
                .name = (char *)"s",
                .memory = path,
                .settings = (char *)"{}",
                .state = "committed"};

        snprintf(path, sizeof(path), "%s/Snapshots", images);
        cr_assert_eq(mkdir(path, 0700), 0);
        snprintf(path, sizeof(path), "%s/Snapshots/" GUID, images);
        cr_assert_eq(mkdir(path, 0700), 0);
        snprintf(path, sizeof(path), "%s/Snapshots/" GUID "/memory", images);
        make_file(path);
        expect_only("orphan-file", path);
        cr_assert_eq(catalog_snapshot_insert(catalog, &row, &err), 0, "%s", err.message);
        expect_only(NULL, NULL);
}

Test(doctor, finds_jobs_that_wait_and_tells_the_worst_first)
{
        struct job_row job = {
                .kind = (char *)"merge", .vm = VM, .payload = (char *)"{}", .state = "waiting"};
        json_t *findings;
        int64_t id;

        cr_assert_eq(catalog_job_insert(catalog, &job, &id, &err), 0);
        expect_only("job-waiting", NULL);
        unlink(leaf);
        findings = examine();
        cr_expect_str_eq(json_string_value(json_object_get(json_array_get(findings, 0), "id")),
                "missing-file");
        json_decref(findings);
}

Test(doctor, counts_the_images_of_a_long_chain)
{
        char path[160], parent[160];

        strcpy(parent, base);
        for (int i = 0; i < 101; i++) {
                snprintf(path, sizeof(path), "%s/l%03d.vhd", images, i);
                make_file(path);
                put_image(path, parent, 1, false);
                strcpy(parent, path);
        }
        json_t *findings = examine();

        cr_expect(has(findings, "long-chain", path));
        cr_expect_not(has(findings, "long-chain", leaf));
        json_decref(findings);
}

/* ---- rebuild ---- */

static json_t *rebuild(struct doctor_rebuilt *ret, bool dry_run)
{
        struct doctor doctor = a_doctor();
        json_t *findings = json_array();

        cr_assert_eq(doctor_rebuild(&doctor, dry_run, findings, ret, &err), 0, "%s", err.message);
        return findings;
}

static void lose_catalog(void)
{
        cr_assert_eq(sidecar_write(catalog, host_fs(), VM, &err), 0, "%s", err.message);
        catalog = catalog_close(catalog);
        unlink(database);
        cr_assert_eq(catalog_open(database, &catalog, &err), 0, "%s", err.message);
}

Test(doctor, makes_the_catalog_anew_out_of_sidecars_once)
{
        struct doctor_rebuilt rebuilt;

        lose_catalog();
        json_decref(rebuild(&rebuilt, true));
        cr_expect_eq(rebuilt.n_vms, 1);
        json_decref(rebuilt.ids);
        json_decref(rebuild(&rebuilt, false));
        cr_expect_eq(rebuilt.n_vms, 1);
        cr_expect_eq(rebuilt.n_disks, 1);
        json_decref(rebuilt.ids);
        expect_only(NULL, NULL);
        json_decref(rebuild(&rebuilt, false));
        cr_expect_eq(rebuilt.n_vms, 0);
        json_decref(rebuilt.ids);
}

Test(doctor, believes_no_sidecar_that_the_images_contradict)
{
        struct doctor_rebuilt rebuilt;
        struct vm_row row;
        json_t *findings;

        lose_catalog();
        leaf_id = 7;
        findings = rebuild(&rebuilt, false);
        cr_expect_eq(rebuilt.n_vms, 0);
        cr_expect(has(findings, "sidecar-unusable", NULL));
        cr_expect_eq(catalog_vm_find(catalog, VM, &row, &err), -ENOENT);
        json_decref(findings);
        json_decref(rebuilt.ids);
}

/* The first disk of the sidecar that was left becomes what @change says. */
static void forge(const char *list, const char *change)
{
        json_error_t why;
        json_t *with = json_loads(change, 0, &why), *json;
        char path[160];

        cr_assert(with != NULL, "%s", why.text);
        snprintf(path, sizeof(path), "%s/web.vhdd.json", images);
        json = json_load_file(path, 0, &why);
        cr_assert(json != NULL, "%s", why.text);
        if (strcmp(list, "vm") == 0)
                json_object_update(json_object_get(json, "vm"), with);
        else
                json_object_update(json_array_get(json_object_get(json, list), 0), with);
        cr_assert_eq(sidecar_store(host_fs(), path, json, &err), 0);
        json_decref(with);
        json_decref(json);
}

static void expect_not_rebuilt(void)
{
        struct doctor_rebuilt rebuilt;
        json_t *findings = rebuild(&rebuilt, false);

        cr_expect_eq(rebuilt.n_vms, 0);
        cr_expect(has(findings, "sidecar-unusable", NULL));
        json_decref(findings);
        json_decref(rebuilt.ids);
}

/* A folder that somebody else wrote, imported by an administrator, must not make the daemon serve, write
 * to or remove any other file. */
Test(doctor, takes_no_image_from_outside_of_the_roots)
{
        char outside[128], change[300];

        snprintf(outside, sizeof(outside), "%s/outside.vhd", folder);
        make_file(outside);
        lose_catalog();
        snprintf(change, sizeof(change), "{\"path\": \"%s\", \"parent\": null}", outside);
        forge("images", change);
        expect_not_rebuilt();
}

Test(doctor, takes_no_image_behind_a_link)
{
        char link[128];

        lose_catalog();
        snprintf(link, sizeof(link), "%s/x", images);
        cr_assert_eq(symlink(folder, link), 0);
        forge("images", "{\"path\": \"x/images/base.vhd\", \"parent\": null}");
        expect_not_rebuilt();
}

Test(doctor, takes_no_images_that_stand_on_one_another_in_a_ring)
{
        lose_catalog();
        forge("disks", "{\"file\": \"base.vhd\"}");
        forge("images", "{\"path\": \"base.vhd\", \"parent\": \"base.vhd\"}");
        expect_not_rebuilt();
}

Test(doctor, leaves_out_a_device_that_a_sidecar_names)
{
        struct doctor_rebuilt rebuilt;
        json_t *findings;

        lose_catalog();
        forge("disks", "{\"kind\": \"pass-through\", \"file\": \"/dev/sda\"}");
        forge("vm", "{\"snapshot-dir\": \"/etc\"}");
        findings = rebuild(&rebuilt, false);
        cr_expect_eq(rebuilt.n_vms, 1);
        cr_expect_eq(rebuilt.n_disks, 0);
        cr_expect(has(findings, "sidecar-incomplete", NULL));
        json_decref(findings);
        json_decref(rebuilt.ids);
}

/* A folder that was copied with everything in it: nobody knows which of the two ran. */
Test(doctor, takes_neither_of_two_folders_that_say_they_are_the_same_vm)
{
        struct doctor_rebuilt rebuilt;
        struct sidecar sidecar;
        char path[160], copy[160];
        json_t *findings, *json;

        lose_catalog();
        snprintf(path, sizeof(path), "%s/web.vhdd.json", images);
        snprintf(copy, sizeof(copy), "%s/web copy.vhdd.json", images);
        cr_assert_eq(sidecar_read(host_fs(), path, &sidecar, &err), 0, "%s", err.message);
        cr_assert_eq(sidecar_to_json(&sidecar, NULL, &json, &err), 0);
        cr_assert_eq(sidecar_store(host_fs(), copy, json, &err), 0);
        findings = rebuild(&rebuilt, false);
        cr_expect_eq(rebuilt.n_vms, 0);
        cr_expect(has(findings, "sidecar-unusable", path));
        cr_expect(has(findings, "sidecar-unusable", copy));
        json_decref(findings);
        json_decref(rebuilt.ids);

        /* One that an export made is no claim. */
        json_object_set_new(json, "exported", json_true());
        cr_assert_eq(sidecar_store(host_fs(), copy, json, &err), 0);
        json_decref(rebuild(&rebuilt, false));
        cr_expect_eq(rebuilt.n_vms, 1);
        json_decref(rebuilt.ids);
        json_decref(json);
        sidecar_done(&sidecar);
}
