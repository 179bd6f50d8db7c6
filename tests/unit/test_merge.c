/* SPDX-License-Identifier: Apache-2.0 */
/* Merges of small chains, in every direction and between images of every type, against a model in
 * memory. What could go wrong in the world: the disk reads otherwise afterwards, a merge moves more
 * than it must, ends half way for good, takes the user's root away, or leaves a child that nobody finds
 * again. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "chain/push.h"
#include "chain/seal.h"
#include "formats/intent.h"
#include "formats/vhd/create.h"
#include "formats/vhd/metadata.h"
#include "merge/merge.h"
#include "merge/resize.h"

#define MAX_FILES 8
#define BLOCK     4096u
#define N_BLOCKS  64u
#define SIZE      (N_BLOCKS * BLOCK)

enum root { ROOT_DYNAMIC, ROOT_LARGE_BLOCKS, ROOT_FIXED, ROOT_RAW };

struct world {
        char directory[64];
        char paths[MAX_FILES][96];
        unsigned n; /* files of the chain, the root first */
        enum root root;
        struct fs *fs;
        struct chain *chain;
        uint8_t *model, *buffer;
        uint64_t random;
        /* of the merge that runs */
        struct merge_progress progress;
        unsigned stop_after; /* calls of go_on; 0: never */
};

static const uint8_t any_id[16];

#define OK(call) cr_assert((call) == 0, "%s", err.message)

static uint64_t below(struct world *w, uint64_t n)
{
        w->random = w->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        return (w->random >> 33) % n;
}

static void make_root(struct world *w)
{
        struct vhd_create_params params = {
                .type = w->root == ROOT_FIXED ? VHD_TYPE_FIXED : VHD_TYPE_DYNAMIC,
                .size = SIZE,
                .block_size = w->root == ROOT_FIXED ? 0
                        : w->root == ROOT_DYNAMIC   ? BLOCK
                                                    : 4 * BLOCK,
                .sparse = true,
        };
        struct error err = ERROR_INIT;
        struct file *file;

        OK(file_open(w->fs, w->paths[0], FILE_WRITE | FILE_CREATE, &file, &err));
        if (w->root == ROOT_RAW)
                OK(file_truncate(file, SIZE));
        else
                OK(vhd_create(file, &params, &err));
        file_close(file);
}

static int try_open(
        struct world *w, unsigned tip, bool writable, struct chain **ret, struct error *err)
{
        const char *parents[MAX_FILES];
        struct chain_options options = {
                .fs = w->fs, .writable = writable, .parents = parents, .n_parents = tip};

        for (unsigned i = 0; i < tip; i++) /* a raw one has to be named */
                parents[i] = w->paths[tip - 1 - i];
        if (tip == 0 && w->root == ROOT_RAW)
                options.format = "raw";
        return chain_open(w->paths[tip], &options, ret, err);
}

static void open_tip(struct world *w)
{
        struct error err = ERROR_INIT;

        OK(try_open(w, w->n - 1, true, &w->chain, &err));
        cr_assert(chain_is_writable(w->chain));
}

static void close_tip(struct world *w)
{
        struct error err = ERROR_INIT;

        OK(chain_close(w->chain, &err));
        w->chain = NULL;
}

static void begin(struct world *w, enum root root)
{
        *w = (struct world){.directory = "/tmp/vhdd-test-XXXXXX",
                .n = 1,
                .random = 7,
                .root = root,
                .fs = w->fs ? w->fs : host_fs()};
        cr_assert(mkdtemp(w->directory) != NULL);
        for (unsigned i = 0; i < MAX_FILES; i++)
                snprintf(w->paths[i], sizeof(w->paths[i]), "%.40s/%u.vhd", w->directory, i);
        if (root == ROOT_RAW)
                snprintf(w->paths[0], sizeof(w->paths[0]), "%.40s/0.raw", w->directory);
        w->model = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        cr_assert(w->model != MAP_FAILED);
        w->buffer = calloc(1, SIZE);
        make_root(w);
        open_tip(w);
}

static void end(struct world *w)
{
        if (w->chain)
                close_tip(w);
        for (unsigned i = 0; i < MAX_FILES; i++)
                unlink(w->paths[i]);
        cr_assert(rmdir(w->directory) == 0, "something was left in %s", w->directory);
        munmap(w->model, SIZE);
        free(w->buffer);
}

static void check_reads(struct world *w, struct chain *chain)
{
        cr_assert_eq(chain_read(chain, w->buffer, SIZE, 0, 0), 0);
        for (unsigned i = 0; i < SIZE; i++)
                cr_assert(w->buffer[i] == w->model[i], "byte %u is %02x, not %02x", i, w->buffer[i],
                        w->model[i]);
}

/* The chain as whoever comes next opens it. */
static void check_anew(struct world *w, unsigned tip)
{
        struct error err = ERROR_INIT;
        struct chain *chain;

        OK(try_open(w, tip, false, &chain, &err));
        check_reads(w, chain);
        OK(chain_close(chain, &err));
}

static void write_at(struct world *w, uint64_t offset, uint64_t length, uint8_t byte)
{
        memset(w->model + offset, byte, length);
        cr_assert_eq(chain_write(w->chain, w->model + offset, length, offset, 0), 0);
}

static void zero_at(struct world *w, uint64_t offset, uint64_t length)
{
        memset(w->model + offset, 0, length);
        cr_assert_eq(chain_zero(w->chain, length, offset, 0), 0);
}

static void change_some(struct world *w, unsigned n)
{
        for (unsigned i = 0; i < n; i++) {
                uint64_t offset = below(w, SIZE), length = 1 + below(w, below(w, 3) ? 2000 : 9000);

                if (below(w, 3) == 0) {
                        offset = round_down_to(offset, BLOCK);
                        length = BLOCK;
                }
                length = MIN_OF(length, SIZE - offset);
                if (below(w, 6) == 0)
                        zero_at(w, offset, length);
                else
                        write_at(w, offset, length, (uint8_t)(1 + below(w, 255)));
        }
}

/* A new leaf over what there is. */
static void push(struct world *w)
{
        struct error err = ERROR_INIT;
        struct image *child;

        OK(chain_child_create(w->chain, w->paths[w->n], any_id, &err));
        OK(chain_child_open(w->chain, w->paths[w->n], &child, &err));
        chain_hold(w->chain);
        chain_push(w->chain, child);
        chain_release(w->chain);
        OK(chain_flush_frozen(w->chain, &err));
        w->n++;
}

/* @depth layers in all, each with something of everything. */
static void begin_chain(struct world *w, enum root root, unsigned depth)
{
        begin(w, root);
        change_some(w, 40);
        while (w->n < depth) {
                push(w);
                change_some(w, 30);
        }
        cr_assert_eq(chain_depth(w->chain), depth);
        check_reads(w, w->chain);
}

static bool may_go_on(void *opaque)
{
        struct world *w = opaque;

        return w->stop_after == 0 || --w->stop_after > 0;
}

static void note_progress(void *opaque, const struct merge_progress *progress)
{
        struct world *w = opaque;

        cr_assert(progress->bytes_done >= w->progress.bytes_done, "progress goes back");
        cr_assert(progress->bytes_done <= progress->bytes_total);
        cr_assert(progress->units_done <= progress->units_total);
        w->progress = *progress;
}

static int run(struct world *w, struct merge *merge, struct error *err)
{
        const struct merge_controls controls = {
                .opaque = w, .go_on = may_go_on, .progress = note_progress};

        w->progress = (struct merge_progress){0};
        return merge_run(merge, &controls, err);
}

static struct merge *begin_merge(struct world *w, const struct merge_plan *plan)
{
        const struct merge_params params = {0};
        struct error err = ERROR_INIT;
        struct merge *merge = NULL;

        OK(merge_begin(w->chain, plan, &params, &merge, &err));
        return merge;
}

static struct merge_plan plan_of(
        struct world *w, unsigned first, unsigned last, enum merge_direction wanted)
{
        struct error err = ERROR_INIT;
        struct merge_plan plan;

        OK(merge_plan(w->chain, first, last, wanted, false, &plan, &err));
        return plan;
}

/* The files of the chain are those that are left: in w->paths as they lie, one behind the other. */
static void forget_layers(struct world *w, unsigned first, unsigned last)
{
        char gone[MAX_FILES][96];
        unsigned n = last - first + 1;

        for (unsigned i = 0; i < n; i++) {
                memcpy(gone[i], w->paths[first + i], sizeof(gone[i]));
                cr_assert(unlink(gone[i]) == 0);
        }
        for (unsigned i = last + 1; i < MAX_FILES; i++)
                memcpy(w->paths[i - n], w->paths[i], sizeof(w->paths[i]));
        for (unsigned i = 0; i < n; i++)
                memcpy(w->paths[MAX_FILES - n + i], gone[i], sizeof(gone[i]));
        w->n -= n;
}

/* Down or up, all of it; the chain goes on with what is left. */
static void merge_all(struct world *w, unsigned first, unsigned last, enum merge_direction wanted)
{
        struct merge_plan plan = plan_of(w, first, last, wanted);
        struct merge *merge = begin_merge(w, &plan);
        struct error err = ERROR_INIT;
        unsigned depth = chain_depth(w->chain);

        cr_assert_eq(plan.direction, wanted);
        cr_assert_eq(plan.destination, wanted == MERGE_DOWN ? first - 1 : last + 1);
        check_reads(w, w->chain);
        OK(run(w, merge, &err));
        cr_assert_leq(w->progress.bytes_done, plan.bytes);
        check_reads(w, w->chain);
        OK(merge_finish(merge, NULL, 0, &err));
        cr_assert_eq(chain_depth(w->chain), depth - (last - first + 1));
        check_reads(w, w->chain);
}

static uint64_t allocated_blocks(struct world *w, unsigned layer)
{
        const struct image *image = chain_layer(w->chain, layer);
        uint64_t n = 0;

        for (uint64_t at = 0; at < image->size; at += image->block_size)
                n += image->format->holds(image, at);
        return n;
}

/* --- the plan */

Test(merge_plan, counts_what_moves_both_ways)
{
        struct merge_plan plan;
        struct world w = {0};

        begin(&w, ROOT_DYNAMIC);
        write_at(&w, 0, 10 * BLOCK, 1);
        push(&w);
        write_at(&w, 5 * BLOCK, 2 * BLOCK, 2);
        write_at(&w, 20 * BLOCK, SECTOR_SIZE, 3);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        cr_assert_eq(plan.direction, MERGE_DOWN);
        cr_assert_eq(plan.first, 1);
        cr_assert_eq(plan.last, 1);
        cr_assert_eq(plan.destination, 0);
        cr_assert(!plan.keeps_sources);
        cr_assert_geq(plan.bytes, 2 * BLOCK + SECTOR_SIZE);
        cr_assert_leq(plan.bytes, 3 * BLOCK);
        /* The other way the root's eight blocks that the leaf has not would go up. */
        plan = plan_of(&w, 0, 0, MERGE_UP);
        cr_assert_eq(plan.direction, MERGE_UP);
        cr_assert_eq(plan.destination, 1);
        cr_assert(plan.keeps_sources, "a root is never emptied by a pull");
        cr_assert_geq(plan.bytes, 8 * BLOCK);
        cr_assert_leq(plan.bytes, 10 * BLOCK);
        end(&w);
}

Test(merge_plan, takes_the_cheaper_way)
{
        struct merge_plan plan;
        struct world w = {0};

        begin(&w, ROOT_DYNAMIC);
        push(&w);
        write_at(&w, 0, BLOCK, 1); /* little in the middle */
        push(&w);
        write_at(&w, 0, 30 * BLOCK, 2);
        push(&w);
        plan = plan_of(&w, 1, 1, MERGE_CHEAPER);
        cr_assert(plan.bytes <= plan.bytes_other_way);
        /* What goes moves down whole, or up where the one above lacks it: nothing. */
        cr_assert_eq(plan.direction, MERGE_UP);
        cr_assert_eq(plan.bytes, 0);
        plan = plan_of(&w, 2, 2, MERGE_CHEAPER);
        cr_assert(plan.bytes <= plan.bytes_other_way);
        end(&w);
}

Test(merge_plan, refuses_what_is_not_there)
{
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct world w = {0};

        begin_chain(&w, ROOT_DYNAMIC, 2);
        cr_assert_eq(merge_plan(w.chain, 0, 0, MERGE_DOWN, false, &plan, &err), -EINVAL);
        cr_assert(err.message[0] != '\0');
        cr_assert_eq(merge_plan(w.chain, 1, 1, MERGE_UP, false, &plan, &err), -EINVAL);
        cr_assert_eq(merge_plan(w.chain, 1, 5, MERGE_DOWN, false, &plan, &err), -EINVAL);
        cr_assert_eq(merge_plan(w.chain, 0, 1, MERGE_CHEAPER, false, &plan, &err), -EINVAL);
        end(&w);
}

Test(merge_plan, a_push_goes_up_and_keeps_what_others_stand_on)
{
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct world w = {0};

        begin_chain(&w, ROOT_DYNAMIC, 3);
        OK(merge_plan(w.chain, 1, 1, MERGE_CHEAPER, true, &plan, &err));
        cr_assert_eq(plan.direction, MERGE_UP);
        cr_assert(plan.keeps_sources);
        end(&w);
}

/* --- down */

static void run_down(enum root root, unsigned depth, unsigned first, unsigned last)
{
        struct world w = {0};

        begin_chain(&w, root, depth);
        merge_all(&w, first, last, MERGE_DOWN);
        change_some(&w, 20);
        check_reads(&w, w.chain);
        close_tip(&w);
        forget_layers(&w, first, last);
        if (root != ROOT_RAW || w.n > 1)
                check_anew(&w, w.n - 1);
        open_tip(&w);
        check_reads(&w, w.chain);
        end(&w);
}

Test(merge, the_leaf_goes_down_into_each_type_of_parent)
{
        run_down(ROOT_DYNAMIC, 2, 1, 1);
        run_down(ROOT_LARGE_BLOCKS, 2, 1, 1);
        run_down(ROOT_FIXED, 2, 1, 1);
        run_down(ROOT_RAW, 2, 1, 1);
}

Test(merge, many_layers_go_down_in_one_pass)
{
        run_down(ROOT_DYNAMIC, 6, 1, 5);
        run_down(ROOT_LARGE_BLOCKS, 6, 2, 5);
        run_down(ROOT_FIXED, 5, 1, 4);
}

Test(merge, the_middle_of_a_chain_goes_down)
{
        run_down(ROOT_DYNAMIC, 5, 2, 3);
        run_down(ROOT_LARGE_BLOCKS, 5, 1, 2);
        run_down(ROOT_FIXED, 4, 1, 1);
}

/* --- up */

static void run_up(enum root root, unsigned depth, unsigned first, unsigned last)
{
        struct world w = {0};
        char base[96];

        begin_chain(&w, root, depth);
        memcpy(base, w.paths[first], sizeof(base));
        merge_all(&w, first, last, MERGE_UP);
        change_some(&w, 20);
        check_reads(&w, w.chain);
        close_tip(&w);
        if (first == 0) {
                struct stat st;

                cr_assert(stat(base, &st) == 0, "a root went away");
                w.root = ROOT_DYNAMIC; /* the new root is what the leaf was */
        }
        forget_layers(&w, first, last);
        check_anew(&w, w.n - 1);
        open_tip(&w);
        check_reads(&w, w.chain);
        end(&w);
}

Test(merge, layers_go_up_into_the_one_above)
{
        run_up(ROOT_DYNAMIC, 4, 1, 1);
        run_up(ROOT_LARGE_BLOCKS, 4, 2, 2);
        run_up(ROOT_FIXED, 5, 1, 3);
        run_up(ROOT_DYNAMIC, 4, 1, 2);
}

Test(merge, over_a_root_the_upper_one_becomes_a_disk_of_its_own)
{
        run_up(ROOT_DYNAMIC, 2, 0, 0);
        run_up(ROOT_LARGE_BLOCKS, 2, 0, 0);
        run_up(ROOT_FIXED, 3, 0, 1);
        run_up(ROOT_RAW, 2, 0, 0);
}

/* The root belongs to the user: it is as it was, byte for byte of what a guest sees. */
Test(merge, a_pull_leaves_the_root_as_it_was)
{
        uint8_t *before = malloc(SIZE);
        struct error err = ERROR_INIT;
        struct world w = {0};
        struct chain *chain;

        begin(&w, ROOT_DYNAMIC);
        change_some(&w, 40);
        memcpy(before, w.model, SIZE);
        push(&w);
        change_some(&w, 40);
        merge_all(&w, 0, 0, MERGE_UP);
        memcpy(w.model, before, SIZE);
        OK(try_open(&w, 0, false, &chain, &err));
        check_reads(&w, chain);
        OK(chain_close(chain, &err));
        free(before);
        end(&w);
}

/* --- what is not moved */

Test(merge, zeros_over_nothing_take_no_block)
{
        struct world w = {0};

        begin(&w, ROOT_DYNAMIC);
        write_at(&w, 0, 4 * BLOCK, 1);
        push(&w);
        write_at(&w, 10 * BLOCK, 2 * BLOCK, 0); /* written, and zeros all the same */
        zero_at(&w, BLOCK, BLOCK);              /* over data: has to be told to the parent */
        merge_all(&w, 1, 1, MERGE_DOWN);
        cr_assert_leq(allocated_blocks(&w, 0), 4, "zeros over nothing were copied");
        end(&w);
}

/* A zero in a destination that is a child itself must be stored: beneath it there is data. */
Test(merge, zeros_over_a_grandparents_data_are_stored)
{
        struct world w = {0};

        begin(&w, ROOT_DYNAMIC);
        write_at(&w, 0, 8 * BLOCK, 1);
        push(&w);
        push(&w);
        zero_at(&w, BLOCK, BLOCK);
        zero_at(&w, 4 * BLOCK + 1024, 1024);
        merge_all(&w, 2, 2, MERGE_DOWN);
        cr_assert(allocated_blocks(&w, 1) > 0);
        end(&w);
}

static uint64_t space_of(const char *path)
{
        struct stat st;

        cr_assert(stat(path, &st) == 0);
        return (uint64_t)st.st_blocks * 512;
}

Test(merge, holes_of_a_flat_parent_stay_holes)
{
        struct world w = {0};
        uint64_t before;

        begin(&w, ROOT_FIXED);
        before = space_of(w.paths[0]);
        push(&w);
        write_at(&w, 8 * BLOCK, BLOCK, 1);
        write_at(&w, 20 * BLOCK, 4 * BLOCK, 0);
        merge_all(&w, 1, 1, MERGE_DOWN);
        close_tip(&w);
        cr_assert_leq(space_of(w.paths[0]), before + 3 * BLOCK, "holes were filled with zeros");
        forget_layers(&w, 1, 1);
        open_tip(&w);
        check_reads(&w, w.chain);
        end(&w);
}

/* --- stopped, killed, gone on with */

static void check_mark(struct world *w, unsigned layer, bool wanted)
{
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        struct error err = ERROR_INIT;
        struct file *file;

        OK(file_open(host_fs(), w->paths[layer], FILE_READ, &file, &err));
        OK(vhd_metadata_read(file, 0, metadata, &err));
        file_close(file);
        cr_assert_eq(metadata->footer.hidden, wanted);
}

Test(merge, one_that_is_told_to_stop_goes_on_later)
{
        uint8_t id[16], again[16];
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct merge *merge;
        struct world w = {0};

        begin_chain(&w, ROOT_DYNAMIC, 4);
        for (unsigned i = 0; i < 3; i++) {
                plan = plan_of(&w, 2, 3, MERGE_DOWN);
                merge = begin_merge(&w, &plan);
                merge_new_id(merge, i == 0 ? id : again);
                if (i > 0)
                        cr_assert(uuid_equal(id, again), "going on gave it another id");
                w.stop_after = 1;
                cr_assert_eq(run(&w, merge, &err), -ECANCELED);
                check_reads(&w, w.chain);
                change_some(&w, 10);
                merge_free(merge);
                change_some(&w, 10);
                check_reads(&w, w.chain);
                close_tip(&w);
                check_mark(&w, 1, true);
                check_anew(&w, 3);
                open_tip(&w);
        }
        w.stop_after = 0;
        merge_all(&w, 2, 3, MERGE_DOWN);
        close_tip(&w);
        check_mark(&w, 1, false);
        forget_layers(&w, 2, 3);
        check_anew(&w, 1);
        end(&w);
}

/* A process that merges for a while, and dies as by kill -9: what it wrote is in the model, which both
 * of us see. */
static void merge_and_die(
        struct world *w, unsigned steps, unsigned first, unsigned last, enum merge_direction wanted)
{
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct merge *merge;
        int status;
        pid_t pid = fork();

        cr_assert(pid >= 0);
        if (pid > 0) {
                cr_assert(waitpid(pid, &status, 0) == pid);
                cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 7, "it did not come so far");
                return;
        }
        open_tip(w);
        check_reads(w, w->chain);
        plan = plan_of(w, first, last, wanted);
        merge = begin_merge(w, &plan);
        if (steps > 0) {
                w->stop_after = steps;
                run(w, merge, &err);
        }
        change_some(w, 5);
        check_reads(w, w->chain);
        _exit(7);
}

/* The process dies at each place where one can ask; who comes next goes on. */
static void run_deaths(enum root root, unsigned first, unsigned last, enum merge_direction wanted)
{
        struct world w = {0};

        begin_chain(&w, root, 4);
        close_tip(&w);
        for (unsigned n = 0; n < 12; n++) {
                merge_and_die(&w, n % 3, first, last, wanted);
                w.random += n; /* its own went with it */
        }
        open_tip(&w);
        check_reads(&w, w.chain);
        change_some(&w, 5);
        merge_all(&w, first, last, wanted);
        close_tip(&w);
        forget_layers(&w, first, last);
        check_anew(&w, w.n - 1);
        end(&w);
}

Test(merge, a_death_on_the_way_loses_nothing)
{
        run_deaths(ROOT_DYNAMIC, 1, 1, MERGE_DOWN);
        run_deaths(ROOT_DYNAMIC, 2, 3, MERGE_DOWN);
        run_deaths(ROOT_LARGE_BLOCKS, 1, 3, MERGE_DOWN);
        run_deaths(ROOT_FIXED, 1, 2, MERGE_DOWN);
        run_deaths(ROOT_DYNAMIC, 1, 2, MERGE_UP);
}

/* --- who stands on what is gone */

Test(merge, known_children_are_relinked_to_what_is_left)
{
        struct error err = ERROR_INIT;
        struct chain_options options = {0};
        struct merge_child children[2];
        char branches[2][96];
        struct merge_plan plan;
        struct merge *merge;
        struct world w = {0};
        struct chain *chain;

        begin_chain(&w, ROOT_DYNAMIC, 3);
        for (unsigned i = 0; i < 2; i++) {
                snprintf(branches[i], sizeof(branches[i]), "%.40s/branch%u.avhd", w.directory, i);
                OK(chain_child_create(w.chain, branches[i], any_id, &err));
                children[i].path = branches[i];
        }
        plan = plan_of(&w, 1, 2, MERGE_DOWN);
        merge = begin_merge(&w, &plan);
        OK(run(&w, merge, &err));
        OK(merge_finish(merge, children, 2, &err));
        cr_assert_eq(chain_depth(w.chain), 1);
        close_tip(&w);
        forget_layers(&w, 1, 2);
        for (unsigned i = 0; i < 2; i++) {
                OK(chain_open(branches[i], &options, &chain, &err));
                cr_assert_eq(chain_depth(chain), 2);
                check_reads(&w, chain);
                OK(chain_close(chain, &err));
                unlink(branches[i]);
        }
        end(&w);
}

/* Others make children that are larger than their parents. The root grows in a step of its own, behind which
 * the disk reads the same, and then it is as any other merge. */
Test(merge, a_root_that_is_smaller_grows_first)
{
        struct resize_params larger = {.size = SIZE + 5 * BLOCK + 512, .force = true};
        struct chain_options options = {0};
        struct resize_report report;
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct world w = {0};
        struct chain *chain;
        uint8_t tail[512];
        uint64_t size = 1;

        begin_chain(&w, ROOT_DYNAMIC, 3);
        OK(merge_plan_grown(w.chain, 1, 2, &plan, &size, &err));
        cr_expect_eq(size, 0, "it is large enough");
        close_tip(&w);
        OK(resize(w.paths[2], &options, &larger, &report, &err));
        open_tip(&w);
        memset(tail, 0x5a, sizeof(tail));
        cr_assert_eq(chain_write(w.chain, tail, 512, larger.size - 512, CHAIN_FUA), 0);
        cr_expect_eq(merge_plan(w.chain, 1, 2, MERGE_DOWN, false, &plan, &err), -EINVAL);
        cr_expect_eq(merge_plan_grown(w.chain, 2, 2, &plan, &size, &err), -EINVAL,
                "what is a child itself does not grow");
        OK(merge_plan_grown(w.chain, 1, 2, &plan, &size, &err));
        cr_expect_eq(size, larger.size);
        cr_expect_gt(plan.bytes, 512);
        close_tip(&w);

        larger.force = false;
        OK(resize(w.paths[0], &options, &larger, &report, &err));
        check_anew(&w, 2);
        open_tip(&w);
        merge_all(&w, 1, 2, MERGE_DOWN);
        close_tip(&w);
        forget_layers(&w, 1, 2);
        check_anew(&w, 0);
        OK(chain_open(w.paths[0], &options, &chain, &err));
        cr_expect_eq(chain_size(chain), larger.size);
        cr_assert_eq(chain_read(chain, tail, 512, larger.size - 512, 0), 0);
        cr_expect_eq(tail[0], 0x5a);
        cr_assert_eq(chain_read(chain, tail, 512, larger.size - 1024, 0), 0);
        cr_expect_eq(tail[0], 0);
        OK(chain_close(chain, &err));
        end(&w);
}

static bool is_sealed(struct world *w, unsigned file)
{
        char seal[128];

        snprintf(seal, sizeof(seal), "%s" SEAL_ENDING, w->paths[file]);
        return access(seal, F_OK) == 0;
}

static void seal_parents(struct world *w)
{
        struct error err = ERROR_INIT;

        for (unsigned i = 0; i + 1 < chain_depth(w->chain); i++) {
                struct image *image = (struct image *)(uintptr_t)chain_layer(w->chain, i);

                OK(seal_make(image, true, NULL, NULL, &err));
                cr_assert(is_sealed(w, i));
        }
}

/* Whoever is written to on the way is not what somebody vouched for any more; the others are. */
Test(merge, seals_of_all_that_change_are_gone)
{
        struct error err = ERROR_INIT;
        struct world w = {0};

        begin_chain(&w, ROOT_DYNAMIC, 5);
        seal_parents(&w);
        merge_all(&w, 1, 1, MERGE_DOWN);
        cr_expect(!is_sealed(&w, 0) && !is_sealed(&w, 1));
        cr_expect_not(is_sealed(&w, 2), "it was told of another parent");
        cr_expect(is_sealed(&w, 3));
        forget_layers(&w, 1, 1);
        seal_parents(&w);
        merge_all(&w, 1, 1, MERGE_UP);
        cr_expect(is_sealed(&w, 0));
        cr_expect(!is_sealed(&w, 1) && !is_sealed(&w, 2));
        forget_layers(&w, 1, 1);
        close_tip(&w);
        check_anew(&w, w.n - 1);
        OK(seal_remove(w.fs, w.paths[0], &err));
        end(&w);
}

/* A child that nobody told of fails by the id, instead of reading a mixture (E12). */
Test(merge, an_unknown_child_of_the_destination_fails_by_its_id)
{
        struct error err = ERROR_INIT;
        struct chain_options options = {0};
        struct merge_plan plan;
        struct merge *merge;
        struct world w = {0};
        struct chain *chain;
        char other[96];

        begin_chain(&w, ROOT_DYNAMIC, 1);
        snprintf(other, sizeof(other), "%.40s/other.avhd", w.directory);
        OK(chain_child_create(w.chain, other, any_id, &err));
        push(&w);
        change_some(&w, 20);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        merge = begin_merge(&w, &plan);
        merge_free(merge);
        close_tip(&w);
        cr_assert_eq(chain_open(other, &options, &chain, &err), -ESTALE);
        check_anew(&w, 1);
        unlink(other);
        end(&w);
}

/* --- a disk that fails */

static struct fs_ops faulty_fs_ops;
static struct file_ops faulty_file_ops;
static const struct file_ops *true_file_ops;
static const struct fs_ops *true_fs_ops;
static const char *faulty_path; /* NULL: none */
static uint64_t faulty_from, faulty_to;
static bool faulty_reads, faulty_writes, faulty_syncs;
static _Atomic unsigned n_faults;

static bool is_faulty(const struct file *file, const struct iovec *iov, int n_iov, uint64_t offset)
{
        uint64_t length = 0;

        for (int i = 0; i < n_iov; i++)
                length += iov[i].iov_len;
        if (!faulty_path || strcmp(file->path, faulty_path) != 0 || offset >= faulty_to ||
                offset + length <= faulty_from)
                return false;
        n_faults++;
        return true;
}

static ssize_t faulty_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        if (faulty_reads && is_faulty(file, iov, n_iov, offset))
                return -EIO;
        return true_file_ops->readv(file, iov, n_iov, offset, flags);
}

static ssize_t faulty_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        if (faulty_writes && is_faulty(file, iov, n_iov, offset))
                return -EIO;
        return true_file_ops->writev(file, iov, n_iov, offset, flags);
}

static int faulty_sync(struct file *file)
{
        if (faulty_syncs && faulty_path && strcmp(file->path, faulty_path) == 0) {
                n_faults++;
                return -EIO;
        }
        return true_file_ops->sync(file);
}

static void make_faulty(struct file *file)
{
        true_file_ops = file->ops;
        faulty_file_ops = *true_file_ops;
        faulty_file_ops.readv = faulty_readv;
        faulty_file_ops.writev = faulty_writev;
        faulty_file_ops.sync = faulty_sync;
        file->ops = &faulty_file_ops;
}

static int faulty_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        int r = true_fs_ops->open(fs, path, flags, mode, ret);

        if (r == 0)
                make_faulty(*ret);
        return r;
}

static struct fs *faulty_fs(void)
{
        static struct fs fs;

        fs = *host_fs();
        true_fs_ops = fs.ops;
        faulty_fs_ops = *true_fs_ops;
        faulty_fs_ops.open = faulty_open;
        fs.ops = &faulty_fs_ops;
        faulty_path = NULL;
        n_faults = 0;
        return &fs;
}

/* --- names that are not to be had any more */

static bool names_die;
static bool voids_die;           /* and intents cannot be made void either */
static _Atomic int n_names_left; /* calls until they do */

static bool names_are_gone(void)
{
        return names_die && atomic_fetch_sub(&n_names_left, 1) <= 0;
}

static ssize_t mortal_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        if (voids_die && strstr(file->path, INTENT_ENDING) && iov[0].iov_len == 8)
                return -EIO;
        return true_file_ops->writev(file, iov, n_iov, offset, flags);
}

static int mortal_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        int r = names_are_gone() ? -EHOSTDOWN : true_fs_ops->open(fs, path, flags, mode, ret);

        if (r == 0) {
                true_file_ops = (*ret)->ops;
                faulty_file_ops = *true_file_ops;
                faulty_file_ops.writev = mortal_writev;
                (*ret)->ops = &faulty_file_ops;
        }
        return r;
}

static int mortal_unlink(struct fs *fs, const char *path)
{
        return names_are_gone() ? -EHOSTDOWN : true_fs_ops->unlink(fs, path);
}

static int mortal_sync_directory(struct fs *fs, const char *path)
{
        return names_are_gone() ? -EHOSTDOWN : true_fs_ops->sync_directory(fs, path);
}

static struct fs *mortal_fs(void)
{
        static struct fs_ops ops;
        static struct fs fs;

        fs = *host_fs();
        true_fs_ops = fs.ops;
        ops = *true_fs_ops;
        ops.open = mortal_open;
        ops.unlink = mortal_unlink;
        ops.sync_directory = mortal_sync_directory;
        fs.ops = &ops;
        names_die = voids_die = false;
        return &fs;
}

/* Whoever could not remove an intent went on to write: then it must not count any more (E13). */
static void check_no_intent(const char *path)
{
        _cleanup_(file_closep) struct file *file = NULL;

        if (access(path, F_OK) != 0)
                return;
        cr_assert(file_open(host_fs(), path, 0, &file, NULL) == 0);
        cr_assert(intent_look(file, NULL) != 1, "an intent is left beside '%s'", path);
}

/* What is on the disk: the layer in the middle is there yet, or is not. */
static bool middle_is_gone(struct world *w)
{
        struct chain *chain;

        if (try_open(w, 2, false, &chain, NULL) < 0)
                return true;
        cr_assert(chain_close(chain, NULL) == 0);
        return false;
}

/* As a daemon's worker does whose broker dies: nothing can be opened, removed or made any more after the
 * call number @at, of the merge's beginning or its end. The guest goes on; end footers move. Whoever opens
 * the chain next finds it as the guest left it, and in the end there is nothing beside it. Were there so many
 * calls? */
static bool run_death(enum root root, bool at_the_end, int at)
{
        const struct merge_params params = {0};
        struct error err = ERROR_INIT;
        struct world w = {.fs = mortal_fs()};
        struct merge_plan plan;
        struct merge *merge = NULL;
        bool died;
        int r;

        begin_chain(&w, root, 3);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        n_names_left = at;
        names_die = !at_the_end;
        r = merge_begin(w.chain, &plan, &params, &merge, &err);
        died = n_names_left < 0;
        if (r == 0)
                r = run(&w, merge, &err);
        names_die = true;
        if (r == 0)
                r = merge_finish(merge, NULL, 0, &err);
        else
                merge_free(merge);
        if (at_the_end)
                died = n_names_left < 0;
        cr_assert(died || !at_the_end || r == 0, "%s", err.message);
        change_some(&w, 40);
        check_reads(&w, w.chain);
        close_tip(&w);
        names_die = false;
        for (unsigned i = 0; i < 3; i++)
                check_no_intent(w.paths[i]);
        if (middle_is_gone(&w))
                forget_layers(&w, 1, 1);
        check_anew(&w, w.n - 1);
        open_tip(&w);
        check_reads(&w, w.chain);
        end(&w);
        return died;
}

static void run_mortal(enum root root, bool at_the_end)
{
        int at = 0;

        while (run_death(root, at_the_end, at))
                at++;
        cr_expect(at > 5, "%d calls", at);
}

Test(merge, goes_on_or_stops_when_names_are_gone)
{
        run_mortal(ROOT_DYNAMIC, false);
        run_mortal(ROOT_DYNAMIC, true);
        run_mortal(ROOT_FIXED, true);
}

/* Nor can it be made void, on a disk that fails: then nobody changes its bytes any more (E13), and whoever comes
 * next completes it. Was the call number @at one of the merge's end? *ret_left: an intent was left. */
static bool run_left(int at, bool *ret_left)
{
        const struct merge_params params = {0};
        struct error err = ERROR_INIT;
        struct world w = {.fs = mortal_fs()};
        struct merge_plan plan;
        struct merge *merge = NULL;
        bool died;
        int r;

        begin_chain(&w, ROOT_DYNAMIC, 3);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        OK(merge_begin(w.chain, &plan, &params, &merge, &err));
        OK(run(&w, merge, &err));
        OK(-chain_flush(w.chain));
        n_names_left = at;
        names_die = voids_die = true;
        r = merge_finish(merge, NULL, 0, &err);
        died = n_names_left < 0;
        /* One whose name went, but not durably, is left as well. */
        *ret_left = chain_flush(w.chain) == -EIO;
        cr_assert(r < 0 || !*ret_left, "an intent is left, and nobody was told");
        for (unsigned i = 0; i < 3; i++) {
                char name[128];

                snprintf(name, sizeof(name), "%s" INTENT_ENDING, w.paths[i]);
                cr_assert(*ret_left || access(name, F_OK) != 0, "'%s' is left", name);
        }
        check_reads(&w, w.chain);
        r = chain_close(w.chain, &err);
        cr_assert(*ret_left ? r < 0 : r == 0);
        w.chain = NULL;
        names_die = voids_die = false;
        for (unsigned i = 0; *ret_left && i < 3; i++)
                OK(chain_forget_image(w.fs, w.paths[i], &err));
        if (middle_is_gone(&w))
                forget_layers(&w, 1, 1);
        open_tip(&w);
        check_reads(&w, w.chain);
        end(&w);
        return died;
}

Test(merge, stops_where_an_intent_cannot_even_be_made_void)
{
        unsigned n_left = 0;
        bool left;

        for (int at = 0; run_left(at, &left); at++)
                n_left += left;
        cr_expect(n_left > 3, "%u times", n_left);
}

/* One block of the source, or of the destination, cannot be read or written: the merge says so, the disk
 * reads as before but for that, and when the disk is well again it ends. */
static void run_fault(enum root root, unsigned layer, bool reads)
{
        struct error err = ERROR_INIT;
        struct world w = {.fs = faulty_fs()};
        struct merge_plan plan;
        struct merge *merge;
        struct chain_extent extent;

        begin_chain(&w, root, 2);
        write_at(&w, 30 * BLOCK, BLOCK, 0x5a);
        cr_assert_eq(chain_flush(w.chain), 0);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        if (layer == 1) {
                cr_assert_eq(chain_map(w.chain, 30 * BLOCK, BLOCK, 0, &extent), 0);
                faulty_from = extent.file_offset;
                faulty_to = faulty_from + BLOCK;
        } else {
                /* Where a fixed disk has that block. */
                faulty_from = 30 * BLOCK;
                faulty_to = faulty_from + BLOCK;
        }
        merge = begin_merge(&w, &plan);
        faulty_reads = reads;
        faulty_writes = !reads;
        faulty_path = w.paths[layer];
        cr_assert_eq(run(&w, merge, &err), -EIO);
        cr_assert_gt(n_faults, 0);
        cr_assert(strstr(err.message, ".vhd") != NULL || err.file[0], "'%s' names no file",
                err.message);
        merge_free(merge);
        faulty_path = NULL;
        check_reads(&w, w.chain);
        close_tip(&w);
        check_anew(&w, 1);
        open_tip(&w);
        merge_all(&w, 1, 1, MERGE_DOWN);
        close_tip(&w);
        forget_layers(&w, 1, 1);
        check_anew(&w, 0);
        end(&w);
}

Test(merge, a_source_block_that_cannot_be_read_stays_where_it_is)
{
        run_fault(ROOT_DYNAMIC, 1, true);
        run_fault(ROOT_FIXED, 1, true);
}

Test(merge, a_destination_block_that_cannot_be_written_stays_in_the_source)
{
        run_fault(ROOT_FIXED, 0, false);
}

/* What a failed sync has lost is not forgotten over a new head, and where the file ends is not known either: the
 * merge is not finished, and leaves no intent that the next opener would complete. */
Test(merge, changes_no_head_of_an_image_whose_sync_failed)
{
        struct error err = ERROR_INIT;
        struct world w = {.fs = faulty_fs()};
        struct merge_plan plan;
        struct merge *merge;
        char intent[128];

        begin_chain(&w, ROOT_DYNAMIC, 2);
        plan = plan_of(&w, 1, 1, MERGE_DOWN);
        merge = begin_merge(&w, &plan);
        OK(run(&w, merge, &err));
        write_at(&w, 30 * BLOCK, BLOCK, 0x5a);
        faulty_path = w.paths[0];
        faulty_syncs = true;
        cr_assert_eq(chain_flush(w.chain), -EIO);
        cr_assert_gt(n_faults, 0);
        faulty_syncs = false;
        faulty_path = NULL;
        cr_expect_eq(merge_finish(merge, NULL, 0, &err), -EIO);
        cr_expect(strstr(err.message, "sync") != NULL, "'%s' does not say why", err.message);
        snprintf(intent, sizeof(intent), "%s" INTENT_ENDING, w.paths[0]);
        cr_expect_neq(access(intent, F_OK), 0, "'%s' is left", intent);
        check_reads(&w, w.chain);
        chain_abandon(w.chain);
        w.chain = NULL;
        end(&w);
}
