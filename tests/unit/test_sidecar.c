/* SPDX-License-Identifier: Apache-2.0 */
/* The day the catalog is gone the sidecar is all there is: so a vm must come back from it as it was,
 * also when its folder has moved; and what anybody may have written into it must not make a path of
 * it that leads elsewhere. */
#include "vhdd/daemon/sidecar.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VM   "11111111-1111-4111-8111-111111111111"
#define DISK "aaaaaaaa-0000-4000-8000-000000000001"
#define SNAP "bbbbbbbb-0000-4000-8000-000000000001"

static char folder[64], database[128], base[128], leaf[128];
static struct catalog *catalog;
static struct error err;

static void setup(void)
{
        strcpy(folder, "/tmp/vhdd-sidecar-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(database, sizeof(database), "%s/catalog.sqlite", folder);
        snprintf(base, sizeof(base), "%s/base.vhd", folder);
        snprintf(leaf, sizeof(leaf), "%s/leaf.avhd", folder);
        cr_assert_eq(catalog_open(database, &catalog, &err), 0, "%s", err.message);
}

static void teardown(void)
{
        static const char *const names[] = {
                "catalog.sqlite", "catalog.sqlite-wal", "web.vhdd.json"};
        char path[160];

        catalog = catalog_close(catalog);
        for (size_t i = 0; i < 3; i++) {
                snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
                unlink(path);
        }
        cr_expect_eq(rmdir(folder), 0, "something is left in '%s'", folder);
}

TestSuite(sidecar, .init = setup, .fini = teardown);

static void fill_catalog(void)
{
        struct vm_row vm = {.id = VM,
                .name = (char *)"web",
                .created_us = 5,
                .directory = folder,
                .settings = (char *)"{\"cpus\":2}",
                .current = SNAP};
        struct image_row image = {.path = base,
                .uuid = {1, 2, 3},
                .format = "vhd",
                .state = "in-use",
                .sealed_size = 512,
                .sealed_mtime_ns = 77};
        struct disk_row disk = {.id = DISK,
                .vm = VM,
                .name = (char *)"d",
                .file = leaf,
                .controller = 1,
                .bus = 3,
                .unit = 63,
                .kind = "vhd",
                .size = 1 << 20};
        struct snapshot_row snapshot = {.id = SNAP,
                .vm = VM,
                .name = (char *)"s",
                .created_us = 9,
                .note = (char *)"before \"the\" change",
                .settings = (char *)"{}",
                .state = "committed"};
        struct snapshot_disk_row held = {.snapshot = SNAP,
                .disk = DISK,
                .name = (char *)"d",
                .file = base,
                .controller = 1,
                .kind = "vhd",
                .size = 1 << 20};

        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_assert_eq(catalog_vm_insert(catalog, &vm, &err), 0);
        cr_assert_eq(catalog_image_insert(catalog, &image, &err), 0);
        image = (struct image_row){.path = leaf,
                .parent = base,
                .uuid = {4},
                .format = "vhd",
                .state = "in-use",
                .made_by_us = true};
        cr_assert_eq(catalog_image_insert(catalog, &image, &err), 0);
        cr_assert_eq(catalog_disk_insert(catalog, &disk, &err), 0);
        cr_assert_eq(catalog_snapshot_insert(catalog, &snapshot, &err), 0);
        cr_assert_eq(catalog_snapshot_disk_insert(catalog, &held, &err), 0);
        cr_assert_eq(catalog_commit(catalog, &err), 0, "%s", err.message);
}

static json_t *json_of_vm(const char *directory)
{
        struct sidecar sidecar;
        json_t *json = NULL;

        cr_assert_eq(sidecar_collect(catalog, VM, &sidecar, &err), 0, "%s", err.message);
        cr_assert_eq(sidecar_to_json(&sidecar, directory, &json, &err), 0, "%s", err.message);
        sidecar_done(&sidecar);
        return json;
}

Test(sidecar, brings_a_vm_back_as_it_was)
{
        struct sidecar sidecar;
        json_t *before, *after;
        char path[160];

        fill_catalog();
        before = json_of_vm(NULL);
        cr_assert_eq(sidecar_write(catalog, host_fs(), VM, &err), 0, "%s", err.message);
        catalog = catalog_close(catalog);
        unlink(database);
        cr_assert_eq(catalog_open(database, &catalog, &err), 0, "%s", err.message);

        snprintf(path, sizeof(path), "%s/web.vhdd.json", folder);
        cr_assert_eq(sidecar_read(host_fs(), path, &sidecar, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_assert_eq(sidecar_insert(catalog, &sidecar, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_commit(catalog, &err), 0, "%s", err.message);
        sidecar_done(&sidecar);
        after = json_of_vm(NULL);
        cr_expect(json_equal(before, after));
        json_decref(before);
        json_decref(after);
}

Test(sidecar, names_files_by_their_place_in_a_folder_that_moves)
{
        struct sidecar sidecar;
        json_t *json;

        fill_catalog();
        json = json_of_vm(folder);
        cr_assert_eq(sidecar_from_json(json, "/elsewhere", &sidecar, &err), 0, "%s", err.message);
        cr_expect_str_eq(sidecar.disks[0].file, "/elsewhere/leaf.avhd");
        cr_expect_str_eq(sidecar.vm.directory, "/elsewhere");
        cr_expect_str_eq(sidecar.held[0].file, "/elsewhere/base.vhd");
        cr_expect_eq(sidecar.n_images, 2);
        json_decref(json);
        sidecar_done(&sidecar);
}

Test(sidecar, goes_with_its_vm)
{
        char path[160];

        fill_catalog();
        snprintf(path, sizeof(path), "%s/web.vhdd.json", folder);
        cr_assert_eq(sidecar_write(catalog, host_fs(), VM, &err), 0);
        cr_expect_eq(access(path, F_OK), 0);
        cr_assert_eq(sidecar_remove(catalog, host_fs(), VM, &err), 0);
        cr_expect_neq(access(path, F_OK), 0);
        cr_expect_eq(sidecar_remove(catalog, host_fs(), VM, &err), 0);
}

/* Whoever owns the folder may have put a link where the daemon, as root, writes. */
Test(sidecar, writes_through_no_link_that_lies_in_its_way)
{
        char path[160], victim[160];
        struct stat st;
        int fd;

        fill_catalog();
        snprintf(victim, sizeof(victim), "%s/victim", folder);
        fd = open(victim, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        cr_assert(fd >= 0);
        close(fd);
        snprintf(path, sizeof(path), "%s/web.vhdd.json.new", folder);
        cr_assert_eq(link(victim, path), 0);
        snprintf(path, sizeof(path), "%s/web.vhdd.json", folder);
        cr_assert_eq(symlink(victim, path), 0);
        cr_assert_eq(sidecar_write(catalog, host_fs(), VM, &err), 0, "%s", err.message);
        cr_assert_eq(stat(victim, &st), 0);
        cr_expect_eq(st.st_size, 0);
        cr_assert_eq(lstat(path, &st), 0);
        cr_expect(S_ISREG(st.st_mode));
        unlink(victim);
}

/* Each member of a good one made bad in turn. */
Test(sidecar, refuses_what_it_cannot_believe)
{
        static const struct {
                const char *list, *member, *value;
        } bads[] = {
                {"disks", "file", "\"../../etc/shadow\""},
                {"disks", "file", "\"x/../../y\""},
                {"disks", "file", "7"},
                {"disks", "file", "\"\""},
                {"disks", "name", "\"a/b\""},
                {"disks", "name", "\"now\""},
                {"disks", "name", "\"a\\u0007b\""},
                {"disks", "kind", "\"hd\""},
                {"disks", "kind", "\"\""},
                {"images", "state", "\"use\""},
                {"images", "format", "\"qcow2\""},
                {"disks", "id", "\"no id\""},
                {"disks", "unit", "64"},
                {"disks", "size", "-1"},
                {"disks", "kind", "\"longer than any kind there is\""},
                {"snapshots", "parent", "\"x\""},
                {"snapshots", "settings", "\"text\""},
                {"images", "uuid", "\"\""},
                {"images", "uuid", "null"},
                {"images", "path", "\"a\\u0000b\""},
                {"images", "parent", "\"..\""},
        };

        fill_catalog();
        for (size_t i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
                json_t *json = json_of_vm(folder);
                json_t *row = json_array_get(json_object_get(json, bads[i].list), 0);
                struct sidecar sidecar = {0};

                json_object_set_new(row, bads[i].member,
                        json_loads(bads[i].value, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL));
                cr_expect_eq(sidecar_from_json(json, folder, &sidecar, &err), -EUCLEAN,
                        "%s.%s = %s", bads[i].list, bads[i].member, bads[i].value);
                cr_expect(strstr(err.message, bads[i].member) != NULL, "%s", err.message);
                json_decref(json);
        }
}
