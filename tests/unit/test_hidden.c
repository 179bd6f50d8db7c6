/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a merge takes an image with it that is still a point in time, or that another vm
 * stands on; the user's first file loses its name; neighbours are merged one after the other, and their
 * blocks moved twice; or something waits for ever that could go on.
 *
 * A catalog holds a forest of images in a few letters: "a<b<c" is c on b on a. Capitals are hidden. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/images.h"

static char folder[64];
static struct catalog *catalog;
static struct merge_jobs jobs;

#define VM    "11111111-1111-1111-1111-111111111111"
#define OTHER "22222222-2222-2222-2222-222222222222"

static void open_catalog(void)
{
        char path[96];

        strcpy(folder, "/tmp/vhdd-hidden-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(path, sizeof(path), "%s/catalog", folder);
        cr_assert(eq(int, catalog_open(path, &catalog, NULL), 0));
        for (unsigned i = 0; i < 2; i++) {
                struct vm_row vm = {.name = (char *)(i ? "other" : "vm"), .settings = (char *)"{}"};

                strcpy(vm.id, i ? OTHER : VM);
                cr_assert(eq(int, catalog_vm_insert(catalog, &vm, NULL), 0));
        }
}

static void close_catalog(void)
{
        static const char *const endings[] = {"", "-wal", "-shm"};
        char path[96];

        merge_jobs_done(&jobs);
        catalog_close(catalog);
        for (unsigned i = 0; i < 3; i++) {
                snprintf(path, sizeof(path), "%s/catalog%s", folder, endings[i]);
                unlink(path);
        }
        rmdir(folder);
}

TestSuite(hidden, .init = open_catalog, .fini = close_catalog);

static const char *path_of(char letter, char ret[8])
{
        snprintf(ret, 8, "/%c", tolower(letter));
        return ret;
}

static void put_image(char letter, char parent, bool ours)
{
        char path[8], below[8];
        struct image_row row = {.path = (char *)path_of(letter, path),
                .parent = parent ? (char *)path_of(parent, below) : NULL,
                .format = "vhd",
                .made_by_us = ours};

        strcpy(row.state, isupper(letter) ? IMAGE_HIDDEN : IMAGE_IN_USE);
        cr_assert(eq(int, catalog_image_put(catalog, &row, NULL), 0));
}

/* "a<B<c a<d": the root of each is the user's. */
static void put_forest(const char *text)
{
        for (const char *p = text; *p; p++) {
                if (!isalpha(*p))
                        continue;
                if (p > text && p[-1] == '<')
                        put_image(*p, p[-2], true);
                else if (p[1] == '<') {
                        char path[8];
                        struct image_row row = {0};

                        if (catalog_image_find(catalog, path_of(*p, path), &row, NULL) < 0)
                                put_image(*p, 0, false);
                        image_row_done(&row);
                }
        }
}

static void put_job(char letter, const char *merge, const char *state, bool push)
{
        char path[8], payload[128];
        struct job_row row = {.kind = (char *)JOB_MERGE, .payload = payload};

        strcpy(row.vm, VM);
        snprintf(row.state, sizeof(row.state), "%s", state);
        snprintf(payload, sizeof(payload), "{\"image\":\"%s\",\"merge\":\"%s\",\"push\":%s}",
                path_of(letter, path), merge, push ? "true" : "false");
        cr_assert(eq(int, catalog_job_insert(catalog, &row, &(int64_t){0}, NULL), 0));
}

static void put_jobs(const char *letters)
{
        for (; *letters; letters++)
                put_job(*letters, "live", JOB_WAITING, false);
}

static void put_disk(const char *vm, char letter)
{
        char path[8], name[2] = {letter, 0};
        struct disk_row row = {
                .name = name, .file = (char *)path_of(letter, path), .controller = 1};

        snprintf(row.id, sizeof(row.id), "disk-%c", letter);
        strcpy(row.vm, vm);
        strcpy(row.kind, "vhd");
        row.unit = letter - 'a';
        cr_assert(eq(int, catalog_disk_insert(catalog, &row, NULL), 0));
}

static void set_state(char letter, const char *state)
{
        struct image_row row = {0};
        char path[8];

        cr_assert(eq(int, catalog_image_find(catalog, path_of(letter, path), &row, NULL), 0));
        strcpy(row.state, state);
        cr_assert(eq(int, catalog_image_update(catalog, &row, NULL), 0));
        image_row_done(&row);
}

/* What the n-th job would do, as "BC>d down", or "wait: REASON". */
static char *plan(size_t n, bool off)
{
        struct hidden_run run = {0};
        struct error err = ERROR_INIT;
        json_t *path;
        size_t i, size;
        char *text;
        FILE *out = open_memstream(&text, &size);

        merge_jobs_done(&jobs);
        cr_assert(eq(int, merge_jobs_load(catalog, VM, &jobs, NULL), 0));
        cr_assert(eq(int, hidden_run_find(catalog, &jobs, &jobs.items[n], off, &run, &err), 0),
                "%s", err.message);
        json_array_foreach(run.hidden, i, path) fprintf(out, "%s", json_string_value(path) + 1);
        if (run.top)
                fprintf(out, ">%s%s%s", run.top + 1, run.direction[0] ? " " : "", run.direction);
        else
                fprintf(out, " waits%s: %s", run.stuck ? " stuck" : "", run.reason);
        if (run.shared)
                fputs(" copy", out);
        fclose(out);
        hidden_run_done(&run);
        return text;
}

static void expect_plan(size_t n, bool off, const char *wanted)
{
        _cleanup_free_ char *text = plan(n, off);

        cr_expect(strcmp(text, wanted) == 0, "'%s' instead of '%s'", text, wanted);
}

Test(hidden, the_first_file_keeps_its_name)
{
        put_forest("A<b");
        put_disk(VM, 'b');
        put_jobs("A");
        expect_plan(0, false, "a>b down");
}

Test(hidden, between_others_the_bytes_decide)
{
        put_forest("a<B<c");
        put_disk(VM, 'c');
        put_jobs("B");
        expect_plan(0, false, "b>c");
}

Test(hidden, neighbours_go_in_one_pass)
{
        put_forest("a<B<C<D<e<f");
        put_disk(VM, 'f');
        put_jobs("CBD");
        expect_plan(0, false, "bcd>e");
        expect_plan(2, false, "bcd>e");
}

Test(hidden, what_is_not_ours_can_only_be_the_lowest)
{
        put_forest("a<B<C<d");
        put_image('C', 'B', false);
        put_image('d', 'C', true);
        put_disk(VM, 'd');
        put_jobs("BC");
        expect_plan(0, false, "b>c");
        expect_plan(1, false, "c>d down");
}

Test(hidden, one_with_two_children_waits_and_ends_the_run_below)
{
        put_forest("a<B<C<d C<e");
        put_disk(VM, 'e');
        put_jobs("BC");
        expect_plan(0, false, "b>c");
        expect_plan(1, false, "c waits stuck: 2 images stand on it");
}

Test(hidden, a_push_goes_to_the_branch_that_does_not_run_first)
{
        put_forest("a<B<c B<d");
        put_disk(VM, 'c');
        put_job('B', "live", JOB_WAITING, true);
        expect_plan(0, false, "b>d up copy");
}

Test(hidden, deferred_waits_for_the_vm_to_be_off_and_does_not_go_along)
{
        put_forest("a<B<C<d");
        put_disk(VM, 'd');
        put_job('B', "deferred", JOB_WAITING, false);
        put_job('C', "live", JOB_WAITING, false);
        expect_plan(0, false, "b waits: the vm is on");
        expect_plan(1, false, "c>d");
        expect_plan(0, true, "bc>d");
}

Test(hidden, another_vm_that_stands_on_it_is_waited_for)
{
        put_forest("a<B<c<d c<e");
        put_disk(VM, 'd');
        put_disk(OTHER, 'e');
        put_jobs("B");
        expect_plan(0, false, "b waits stuck: disk 'e' of vm 'other' stands on it, too");
}

Test(hidden, a_disk_that_was_detached_is_left_alone)
{
        put_forest("a<B<c");
        set_state('c', IMAGE_DETACHED);
        put_jobs("B");
        expect_plan(0, false, "b waits stuck: the disk that stands on it was detached");
}

/* It may be anywhere by now: its head cannot be changed. */
Test(hidden, a_detached_child_of_the_top_keeps_the_tops_file)
{
        put_forest("a<B<c<d c<e");
        put_disk(VM, 'd');
        set_state('e', IMAGE_DETACHED);
        put_jobs("B");
        expect_plan(0, false, "b>c up");
}

/* Its owner was told that it stays. */
Test(hidden, the_file_of_a_disk_that_was_taken_away_keeps_its_name)
{
        put_forest("a<B<c D<e");
        put_image('c', 'B', false);
        put_image('e', 'D', false);
        put_jobs("BD");
        expect_plan(0, false, "b>c up");
        expect_plan(1, false, "d waits stuck: it goes with the file of a disk that was taken away");
        put_disk(VM, 'c');
        put_disk(VM, 'e');
        expect_plan(0, false, "b>c");
        expect_plan(1, false, "d>e down");
}

Test(hidden, what_another_merge_has_in_hand_comes_after_it)
{
        struct merge_jobs all = {0};

        put_forest("a<B<C<d");
        put_disk(VM, 'd');
        put_jobs("BC");
        cr_assert(eq(int, merge_jobs_load(catalog, VM, &all, NULL), 0));
        json_object_set_new(all.items[0].payload, "run",
                json_pack("{s:[s], s:s, s:[s], s:s, s:s, s:b}", "hidden", "/b", "top", "/c",
                        "images", "/b", "destination", "/c", "direction", "up", "shared", 0));
        merge_job_set(&all.items[0], JOB_CANCELLED);
        cr_assert(eq(int, merge_job_save(catalog, &all.items[0], NULL), 0));
        expect_plan(1, false, "c waits: it comes after job 1");
        /* And if that one waits for what does not come by itself? */
        merge_job_set(&all.items[0], JOB_WAITING);
        json_object_set_new(all.items[0].payload, "stuck", json_true());
        cr_assert(eq(int, merge_job_save(catalog, &all.items[0], NULL), 0));
        merge_jobs_done(&all);
        expect_plan(1, false, "c waits stuck: it comes after job 1");
}
