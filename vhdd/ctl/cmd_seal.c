/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl seal - record what an image is now, so that a later change is noticed. */
#include <inttypes.h>

#include "base/size.h"
#include "chain/seal.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"

struct showing {
        struct progress *progress;
        uint64_t done;
};

static void show_progress(void *opaque, uint64_t done, uint64_t total)
{
        struct showing *showing = opaque;

        (void)total;
        progress_add(showing->progress, done - showing->done);
        showing->done = done;
}

static int open_image(const struct ctl *ctl, struct image **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(host_fs(), ctl->operands[0], FILE_READ, &file, err);

        if (r == 0)
                r = image_open(file, ctl->format, ctl->force ? IMAGE_FORCE : 0, ret, err);
        if (r < 0)
                return r;
        file = NULL; /* the image has it */
        if ((*ret)->warning[0])
                ctl_warn(ctl, "%s", (*ret)->warning);
        return 0;
}

static void print_seal(
        const struct ctl *ctl, const struct image *image, const struct seal_facts *facts)
{
        char size[SIZE_TEXT_MAX], block[SIZE_TEXT_MAX];
        _cleanup_free_ char *path = NULL;

        if (ctl->json) {
                json_t *object = json_object();
                char sum[17];

                json_object_set_new(object, "filename", json_text(image->file->path));
                json_object_set_new(object, "seal", json_text(facts->path));
                json_object_set_new(object, "uuid", json_uuid(image->id));
                json_object_set_new(object, "virtual-size", json_size(image->size));
                json_object_set_new(object, "file-size", json_size(facts->file_size));
                json_object_set_new(object, "changed", json_text(facts->changed));
                json_object_set_new(object, "block-size", json_size(facts->block_size));
                json_object_set_new(object, "blocks", json_size(facts->n_blocks));
                snprintf(sum, sizeof(sum), "%016" PRIx64, facts->metadata);
                json_object_set_new(object, "metadata-xxh3", json_text(sum));
                snprintf(sum, sizeof(sum), "%016" PRIx64, facts->contents);
                json_object_set_new(object, "blocks-xxh3", json_text(sum));
                json_print(object);
                return;
        }
        if (ctl->quiet)
                return;
        path = text_safe(facts->path);
        printf("%s: %s, %" PRIu64 " blocks of %s with data\n", path,
                size_to_text(image->size, size), facts->n_blocks,
                size_to_text(facts->block_size, block));
}

static int seal_image(struct ctl *ctl, struct image *image, struct error *err)
{
        struct showing showing = {.progress = progress_new(ctl, "sealing", image->size)};
        struct seal_watcher watcher = {.opaque = &showing, .progress = show_progress};
        struct seal_facts facts;
        int r = seal_make(image, ctl->force, &watcher, &facts, err);

        progress_end(showing.progress, r == 0);
        if (r < 0)
                return r;
        print_seal(ctl, image, &facts);
        return CTL_DONE;
}

static int run(struct ctl *ctl, struct error *err)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        int r = open_image(ctl, &image, err);

        if (r < 0)
                return r;
        if (ctl->dry_run) {
                _cleanup_free_ char *path = text_safe(image->file->path);

                if (!ctl->quiet)
                        printf("would read '%s' whole and write '%s" SEAL_ENDING "'%s\n", path,
                                path, seal_exists(image) ? ", which is there already" : "");
                return CTL_DONE;
        }
        return seal_image(ctl, image, err);
}

const struct command command_seal = {
        .name = "seal",
        .operands = "FILE",
        .summary = "record what an image is now, to notice changes",
        .doc = "Read the image FILE whole (not its parents) and write FILE.vhdd-seal: its size and time "
               "of change, checksums of its metadata and of each block that holds data. From then on "
               "opening a chain over it warns if it was changed, and a deep check says where. --force "
               "replaces a seal."
               "\v"
               "Examples:\n"
               "  vhdctl seal base.vhd\n"
               "  vhdctl seal --force base.vhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run,
};
