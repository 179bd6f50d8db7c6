/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl map - which range of a disk comes from which file. */
#include <inttypes.h>
#include <string.h>

#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"

/* Runs of the disk as they are printed: neighbours that go on in the same place are one. */
struct run_of_disk {
        uint64_t start;
        struct chain_extent extent;
};

struct printer {
        const struct ctl *ctl;
        struct chain *chain;
        struct table *table; /* NULL: JSON, a line a run, because there may be millions */
        uint64_t n_runs;
};

static bool goes_on(const struct run_of_disk *run, const struct chain_extent *next)
{
        if (run->extent.kind != next->kind || run->extent.depth != next->depth)
                return false;
        return next->kind != EXTENT_DATA ||
                (run->extent.file == next->file &&
                        run->extent.file_offset + run->extent.length == next->file_offset);
}

static const char *layer_path(const struct printer *printer, unsigned depth)
{
        unsigned n = chain_depth(printer->chain);

        return depth == 0 ? printer->ctl->operands[0]
                          : chain_layer_path(printer->chain, n - 1 - depth);
}

static void print_json(struct printer *printer, const struct run_of_disk *run)
{
        bool known = run->extent.kind != EXTENT_ABSENT, data = run->extent.kind == EXTENT_DATA;
        json_t *object = json_object();

        json_object_set_new(object, "start", json_size(run->start));
        json_object_set_new(object, "length", json_size(run->extent.length));
        json_object_set_new(object, "depth", known ? json_size(run->extent.depth) : json_null());
        json_object_set_new(object, "present", json_boolean(known));
        json_object_set_new(object, "zero", json_boolean(!data));
        json_object_set_new(
                object, "offset", data ? json_size(run->extent.file_offset) : json_null());
        json_object_set_new(object, "filename",
                known ? json_text(layer_path(printer, run->extent.depth)) : json_null());
        printf("%s  ", printer->n_runs ? ",\n" : "");
        json_dumpf(object, stdout, JSON_COMPACT);
        json_decref(object);
}

static void print_row(struct printer *printer, const struct run_of_disk *run)
{
        struct table *table = printer->table;

        table_cell(table, "%" PRIu64, run->start);
        table_cell(table, "%" PRIu64, run->extent.length);
        if (run->extent.kind == EXTENT_ABSENT)
                table_cell(table, "-");
        else
                table_cell(table, "%u", run->extent.depth);
        table_cell(table, "%s", run->extent.kind == EXTENT_DATA ? "data" : "zero");
        if (run->extent.kind == EXTENT_DATA)
                table_cell(table, "%" PRIu64, run->extent.file_offset);
        else
                table_cell(table, "-");
        table_cell(table, "%s",
                run->extent.kind == EXTENT_ABSENT ? "-" : layer_path(printer, run->extent.depth));
}

static void print_run(struct printer *printer, const struct run_of_disk *run)
{
        if (printer->table)
                print_row(printer, run);
        else
                print_json(printer, run);
        printer->n_runs++;
}

static int walk(struct printer *printer, struct error *err)
{
        uint64_t size = chain_size(printer->chain), offset = 0;
        struct run_of_disk run = {0};

        while (offset < size) {
                struct chain_extent next;
                int r = chain_map(printer->chain, offset, size - offset, CHAIN_HOLES, &next);

                if (r < 0) {
                        r = fail_os(err, -r, "cannot tell what lies at offset %" PRIu64 " of '%s'",
                                offset, printer->ctl->operands[0]);
                        error_set_file(err, printer->ctl->operands[0]);
                        return r;
                }
                if (run.extent.length > 0 && goes_on(&run, &next)) {
                        run.extent.length += next.length;
                } else {
                        if (run.extent.length > 0)
                                print_run(printer, &run);
                        run = (struct run_of_disk){offset, next};
                }
                offset += next.length;
        }
        if (run.extent.length > 0)
                print_run(printer, &run);
        return 0;
}

static int run(struct ctl *ctl, struct error *err)
{
        static const char *const columns[] = {
                ">start", ">length", ">depth", "kind", ">offset", "file", NULL};
        _cleanup_(ctl_chain_closep) struct chain *chain = NULL;
        _cleanup_(table_freep) struct table *table = NULL;
        struct printer printer = {.ctl = ctl};
        int r = ctl_chain_open(ctl, ctl->operands[0], &chain, err);

        if (r < 0)
                return r;
        printer.chain = chain;
        if (ctl->json)
                printf("[\n");
        else
                printer.table = table = table_new(columns);
        r = walk(&printer, err);
        if (ctl->json)
                printf("%s]\n", printer.n_runs ? "\n" : "");
        else if (r == 0)
                table_print(table, stdout);
        return r;
}

const struct command command_map = {
        .name = "map",
        .operands = "FILE",
        .summary = "say which range of a disk comes from which file",
        .doc = "Print each run of the disk that FILE and its parents are: where it starts, how deep in "
               "the chain it comes from (0: FILE itself; -: nobody has it) and where it lies there."
               "\v"
               "Examples:\n"
               "  vhdctl map disk.vhd\n"
               "  vhdctl map --json child.avhd | jq '[.[] | select(.depth == 0).length] | add'",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run,
};
