/* SPDX-License-Identifier: Apache-2.0 */
/* An import that takes the wrong tip for the running state, or loses a branch, loses somebody's work.
 * The headers are a table here: CHILD on PARENT. */
#include "vhdd/daemon/forest.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GUID_1 "5fa21a55-f394-4a4d-9958-1951a67d5540"
#define GUID_2 "6fa21a55-f394-4a4d-9958-1951a67d5540"

static char folder[64];
static struct error err;
static json_t *notes;

/* There is no daemon around it: nobody has subscribed. */
void broker_publish(struct broker *broker, const char *name, json_t *event)
{
        json_decref(event);
}

/* {file, its parent or NULL} beneath the folder. */
static const char *links[16][2];
static size_t n_links;

static char *path_of(const char *name)
{
        char *path;

        cr_assert(asprintf(&path, "%s/%s", folder, name) > 0);
        return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static void setup(void)
{
        strcpy(folder, "/tmp/vhdd-forest-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        notes = json_array();
        n_links = 0;
}

static void teardown(void)
{
        json_decref(notes);
        nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(forest, .init = setup, .fini = teardown);

/* @day: when it was written last. */
static void image(const char *name, const char *parent, int day)
{
        char *path = path_of(name);
        const struct timespec times[2] = {{.tv_sec = day * 86400}, {.tv_sec = day * 86400}};

        for (char *slash = strchr(path + strlen(folder) + 1, '/'); slash;
                slash = strchr(slash + 1, '/')) {
                *slash = '\0';
                mkdir(path, 0700);
                *slash = '/';
        }
        close(open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
        cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
        links[n_links][0] = name;
        links[n_links++][1] = parent;
        free(path);
}

static int resolve(void *opaque, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *e)
{
        const char *name = path + strlen(folder) + 1;

        *ret = calloc(16, sizeof(**ret));
        for (*ret_n = 0; name; (*ret_n)++) {
                struct resolved_layer *layer = &(*ret)[*ret_n];
                const char *next = NULL;

                if (strcmp(name, "broken.vhd") == 0) {
                        resolved_layers_free(*ret, *ret_n);
                        return fail(e, EUCLEAN, "its footer is gone");
                }
                layer->path = path_of(name);
                layer->size = 1 << 20;
                strcpy(layer->format, "vhd");
                for (size_t i = 0; i < n_links; i++)
                        if (strcmp(links[i][0], name) == 0)
                                next = links[i][1];
                name = next;
        }
        return 0;
}

static struct forest scan(void)
{
        struct doctor reader = {.resolve = resolve};
        struct forest forest;

        cr_assert_eq(forest_scan(&reader, folder, &forest, notes, &err), 0, "%s", err.message);
        return forest;
}

static struct sidecar rows_of(const struct forest *forest, const char *only)
{
        struct sidecar rows;
        size_t root;

        cr_assert_eq(forest_choose(forest, only, &root, &err), 0, "%s", err.message);
        cr_assert_eq(forest_to_rows(forest, root, "vm", &rows, notes, &err), 0, "%s", err.message);
        return rows;
}

static const struct snapshot_row *snapshot(const struct sidecar *rows, const char *name)
{
        for (size_t i = 0; i < rows->n_snapshots; i++)
                if (strcmp(rows->snapshots[i].name, name) == 0)
                        return &rows->snapshots[i];
        cr_assert_fail("there is no snapshot '%s'", name);
        return NULL;
}

/* Hyper-V's own layout, with a branch: base <- s1 <- old tip, base <- s1 <- running. */
Test(forest, makes_disk_and_snapshot_tree_of_hyper_vs_folders)
{
        struct forest forest;
        struct sidecar rows;
        const struct snapshot_row *base, *s1, *tip;

        image("Virtual Hard Disks/web.vhd", NULL, 100);
        image("Snapshots/A/web_" GUID_1 ".avhd", "Virtual Hard Disks/web.vhd", 101);
        image("Snapshots/A/old.avhd", "Snapshots/A/web_" GUID_1 ".avhd", 102);
        image("Snapshots/B/web_" GUID_2 ".avhd", "Snapshots/A/web_" GUID_1 ".avhd", 103);
        forest = scan();
        cr_assert_eq(forest.n, 4);
        rows = rows_of(&forest, NULL);
        cr_assert_eq(rows.n_disks, 1);
        cr_expect_str_eq(rows.disks[0].name, "web");
        cr_expect(strstr(rows.disks[0].file, "/Snapshots/B/") != NULL, "%s", rows.disks[0].file);
        cr_assert_eq(rows.n_snapshots, 3);
        cr_expect_eq(rows.n_images, 4);
        base = snapshot(&rows, "web");
        s1 = snapshot(&rows, "web 1970-04-12 00:00");
        tip = snapshot(&rows, "old");
        cr_expect_str_eq(base->parent, "");
        cr_expect_str_eq(s1->parent, base->id);
        cr_expect_str_eq(tip->parent, s1->id);
        cr_expect_str_eq(rows.vm.current, s1->id);
        cr_expect_eq(json_array_size(notes), 1); /* there is another tip */
        sidecar_done(&rows);
        forest_done(&forest);
}

Test(forest, takes_a_lone_image_as_a_disk_without_snapshots)
{
        struct forest forest;
        struct sidecar rows;

        image("data.VHD", NULL, 5);
        forest = scan();
        rows = rows_of(&forest, NULL);
        cr_expect_eq(rows.n_snapshots, 0);
        cr_expect_str_eq(rows.vm.current, "");
        cr_expect_eq(rows.disks[0].size, 1 << 20);
        cr_expect_eq(json_array_size(notes), 0);
        sidecar_done(&rows);
        forest_done(&forest);
}

Test(forest, lists_several_trees_and_takes_the_one_that_is_named)
{
        static const char *const names[] = {"2", "b.vhd", "b1.avhd"};
        struct forest forest;
        struct sidecar rows;
        size_t root;
        json_t *trees;

        image("a.vhd", NULL, 1);
        image("b.vhd", NULL, 2);
        image("b1.avhd", "b.vhd", 3);
        forest = scan();
        cr_assert_eq(forest_choose(&forest, NULL, &root, &err), -EINVAL);
        cr_expect(strstr(err.message, "2 trees") && strstr(err.message, "2: 'b.vhd'"), "%s",
                err.message);
        cr_assert_eq(forest_choose(&forest, "c.vhd", &root, &err), -ENOENT);
        for (size_t i = 0; i < 3; i++) {
                rows = rows_of(&forest, names[i]);
                cr_expect_str_eq(rows.disks[0].name, "b");
                cr_expect_eq(rows.n_images, 2);
                sidecar_done(&rows);
        }
        trees = forest_to_json(&forest);
        cr_expect_eq(json_array_size(trees), 2);
        cr_expect_eq(json_integer_value(json_object_get(json_array_get(trees, 1), "images")), 2);
        json_decref(trees);
        forest_done(&forest);
}

Test(forest, leaves_out_what_it_cannot_read_and_says_so)
{
        struct forest forest;
        struct sidecar rows;
        char *link = path_of("link.vhd");

        image("good.vhd", NULL, 1);
        image("broken.vhd", NULL, 1);
        image("notes.txt", NULL, 1);
        cr_assert_eq(symlink("/etc/passwd", link), 0);
        forest = scan();
        cr_expect_eq(forest.n, 1);
        cr_expect_eq(json_array_size(notes), 1);
        cr_expect(
                strstr(json_string_value(json_array_get(notes, 0)), "its footer is gone") != NULL);
        rows = rows_of(&forest, NULL);
        sidecar_done(&rows);
        forest_done(&forest);
        free(link);
}

Test(forest, names_snapshots_apart)
{
        struct forest forest;
        struct sidecar rows;

        image("x/same.vhd", NULL, 1);
        image("y/same.vhd", "x/same.vhd", 2);
        image("z/leaf.vhd", "y/same.vhd", 3);
        forest = scan();
        rows = rows_of(&forest, NULL);
        cr_expect_str_eq(snapshot(&rows, "same (2)")->parent, snapshot(&rows, "same")->id);
        sidecar_done(&rows);
        forest_done(&forest);
}

Test(forest, says_that_there_is_nothing)
{
        struct forest forest = scan();
        size_t root;

        cr_expect_eq(forest_choose(&forest, NULL, &root, &err), -ENOENT);
        cr_expect(strstr(err.message, "no image was found") != NULL);
        forest_done(&forest);
}
