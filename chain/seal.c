/* SPDX-License-Identifier: Apache-2.0 */
/* The file: one JSON object a line. The first says everything but the blocks, so that opening a chain
 * reads that line alone; the others hold the sums of runs of blocks, and their XXH3 stands in the
 * first, so that a seal that was cut off or edited is known. */
#include "chain/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "chain/paths.h"
#include "formats/intent.h"
#include "formats/redo.h"
#include "formats/vhd/image.h"
#include "formats/vhd/metadata.h"

#define SEAL_VERSION       1
#define SEAL_HEAD_MAX      (64 * KIB)
#define SEAL_MAX_SIZE      (256 * MIB) /* 64 GiB of sums would be no seal of ours */
#define SEAL_BLOCKS_A_LINE 512u
#define FLAT_BLOCK_SIZE    ((uint32_t)(2 * MIB)) /* flat images have no blocks of their own */
#define MAX_DIFFERENCES    100u                  /* told one by one */

/* The sum of each block; 0: it holds nothing. */
struct sums {
        uint64_t *sums;
        uint64_t n;
};

static void sums_done(struct sums *sums)
{
        free(sums->sums);
}

struct seal {
        json_t *head;
        struct sums blocks; /* only when read deep */
};

static void seal_done(struct seal *seal)
{
        json_decref(seal->head);
        sums_done(&seal->blocks);
}

static uint32_t block_size_of(const struct image *image)
{
        return image->block_size ? image->block_size : FLAT_BLOCK_SIZE;
}

static int seal_path(const struct image *image, char *ret, size_t ret_size)
{
        char path[PATH_TEXT_MAX];
        int n;

        /* Beside the file itself, by whichever link it was opened. */
        if (image->file->fs != host_fs() ||
                path_absolute(image->file->path, path, sizeof(path)) < 0)
                snprintf(path, sizeof(path), "%s", image->file->path);
        n = snprintf(ret, ret_size, "%s" SEAL_ENDING, path);
        return n < 0 || (size_t)n >= ret_size ? -ENAMETOOLONG : 0;
}

static void format_time(int64_t seconds, uint32_t nanoseconds, char *ret, size_t ret_size)
{
        time_t t = (time_t)seconds;
        struct tm tm;
        size_t n;

        gmtime_r(&t, &tm);
        n = strftime(ret, ret_size, "%Y-%m-%dT%H:%M:%S", &tm);
        snprintf(ret + n, ret_size - n, ".%09" PRIu32 "Z", nanoseconds);
}

/* --- summing --- */

struct summing {
        struct image *image;
        XXH3_state_t *state;
        uint8_t *buffer;
        uint32_t block_size;
        uint64_t bytes; /* read since the watcher was told */
        bool beside;
};

/* The whole of an image would push out of the page cache what others work with: so what is there stays,
 * and what we brought goes. */
static int read_beside(struct file *file, uint8_t *buffer, uint64_t length, uint64_t offset)
{
        ssize_t n = file_read(file, buffer, length, offset, FILE_NOWAIT);
        int r;

        if (n >= 0 && (uint64_t)n == length)
                return 0;
        r = file_read_exact(file, buffer, length, offset);
        if (r == 0 && file->fd >= 0 && n != -EOPNOTSUPP)
                posix_fadvise(file->fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
        return r;
}

static int read_data(struct summing *summing, uint64_t length, uint64_t offset)
{
        struct file *file = summing->image->file;

        summing->bytes += length;
        return summing->beside ? read_beside(file, summing->buffer, length, offset)
                               : file_read_exact(file, summing->buffer, length, offset);
}

/* Flat images: the block's bytes, whole. Zeros count as nothing, so that a copy with other holes is
 * the same. */
static int sum_flat(
        struct summing *summing, uint64_t offset, uint32_t length, uint64_t *ret, struct error *err)
{
        struct image *image = summing->image;
        struct extent extent;
        int r = image->format->map(image, offset, length, MAP_HOLES, &extent);

        *ret = 0;
        if (r == 0 && extent.kind != EXTENT_DATA && extent.length >= length)
                return 0;
        if (r == 0)
                r = image->format->map(image, offset, length, 0, &extent);
        if (r == 0)
                r = read_data(summing, length, extent.file_offset);
        if (r < 0)
                return fail_os(
                        err, -r, "cannot read '%s' at offset %" PRIu64, image->file->path, offset);
        if (!bytes_are_zero(summing->buffer, length))
                *ret = XXH3_64bits(summing->buffer, length);
        return 0;
}

/* The sectors that are present, and where they are: each run's place, bytes and length. The driver may
 * answer a run in several pieces. */
static int sum_runs(
        struct summing *summing, uint64_t offset, uint32_t length, bool *ret_any, struct error *err)
{
        struct image *image = summing->image;
        XXH3_state_t *state = summing->state;
        uint64_t run = UINT64_MAX; /* where the run began, in the block */
        be64 mark;

        *ret_any = false;
        for (uint64_t at = 0; at < length;) {
                struct extent extent;
                int r = image->format->map(image, offset + at, length - at, 0, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = read_data(summing, extent.length, extent.file_offset);
                if (r < 0)
                        return fail_os(err, -r,
                                "cannot read '%s' at offset %" PRIu64 " of the disk",
                                image->file->path, offset + at);
                if (extent.kind == EXTENT_DATA && run == UINT64_MAX) {
                        run = at;
                        mark = be64_make(run);
                        XXH3_64bits_update(state, &mark, sizeof(mark));
                        *ret_any = true;
                } else if (extent.kind != EXTENT_DATA && run != UINT64_MAX) {
                        mark = be64_make(at - run);
                        XXH3_64bits_update(state, &mark, sizeof(mark));
                        run = UINT64_MAX;
                }
                if (extent.kind == EXTENT_DATA)
                        XXH3_64bits_update(state, summing->buffer, extent.length);
                at += extent.length;
        }
        return 0;
}

static void summing_done(struct summing *summing)
{
        XXH3_freeState(summing->state);
        free(summing->buffer);
}

static int summing_init(struct summing *summing, struct image *image, struct error *err)
{
        summing->image = image;
        summing->block_size = block_size_of(image);
        summing->state = XXH3_createState();
        summing->buffer = malloc(summing->block_size);
        if (!summing->state || !summing->buffer)
                return fail(
                        err, ENOMEM, "no memory to sum blocks of %u bytes", summing->block_size);
        return 0;
}

static int sum_block(struct summing *summing, uint64_t block, uint64_t *ret, struct error *err)
{
        struct image *image = summing->image;
        uint64_t offset = block * summing->block_size;
        uint32_t length = (uint32_t)MIN_OF(summing->block_size, image->size - offset);
        bool any;
        int r;

        if (!image->block_size) {
                r = sum_flat(summing, offset, length, ret, err);
        } else {
                XXH3_64bits_reset(summing->state);
                r = sum_runs(summing, offset, length, &any, err);
                if (r == 0)
                        *ret = any ? XXH3_64bits_digest(summing->state) : 0;
                if (r == 0 && any && *ret == 0)
                        *ret = 1; /* 0 means that there is nothing */
        }
        return r;
}

static int tell(struct summing *summing, const struct seal_watcher *watcher, uint64_t done,
        struct error *err)
{
        uint64_t bytes = summing->bytes;

        summing->bytes = 0;
        if (watcher && watcher->progress)
                watcher->progress(watcher->opaque, done, summing->image->size);
        return watcher && watcher->pace ? watcher->pace(watcher->opaque, bytes, err) : 0;
}

static int sum_all(struct image *image, const struct seal_watcher *watcher, struct sums *ret,
        struct error *err)
{
        _cleanup_(summing_done) struct summing summing = {0};
        int r = summing_init(&summing, image, err);

        if (r < 0)
                return r;
        summing.beside = watcher && watcher->beside;
        ret->n = div_round_up(image->size, summing.block_size);
        ret->sums = calloc(ret->n + 1, sizeof(*ret->sums));
        if (!ret->sums)
                return fail(err, ENOMEM, "no memory for the sums of %" PRIu64 " blocks", ret->n);
        for (uint64_t i = 0; i < ret->n; i++) {
                r = sum_block(&summing, i, &ret->sums[i], err);
                if (r == 0)
                        r = tell(&summing, watcher,
                                MIN_OF((i + 1) * summing.block_size, image->size), err);
                if (r != 0)
                        return r;
        }
        return 0;
}

/* Adds @length bytes of the file. */
static int sum_range(struct file *file, XXH3_state_t *state, uint64_t offset, uint64_t length)
{
        uint8_t buffer[16 * KIB];
        int r = 0;

        while (r == 0 && length > 0) {
                size_t part = (size_t)MIN_OF(length, sizeof(buffer));

                r = file_read_exact(file, buffer, part, offset);
                if (r == 0)
                        XXH3_64bits_update(state, buffer, part);
                offset += part;
                length -= part;
        }
        return r;
}

/* Footer, header, locators, BAT: whatever decides what the disk is. */
static int sum_metadata(struct image *image, uint64_t *ret, struct error *err)
{
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        XXH3_state_t *state;
        int r;

        *ret = 0;
        if (image->format != &vhd_format)
                return 0;
        state = XXH3_createState();
        if (!metadata || !state) {
                XXH3_freeState(state);
                return fail(err, ENOMEM, "no memory to sum metadata");
        }
        r = vhd_metadata_read(image->file, VHD_READ_FORCE, metadata, err);
        if (r == 0) {
                const struct vhd_header *header = &metadata->header;

                XXH3_64bits_reset(state);
                XXH3_64bits_update(state, &metadata->footer.raw, sizeof(metadata->footer.raw));
                if (image->type != IMAGE_FIXED) {
                        XXH3_64bits_update(state, &header->raw, sizeof(header->raw));
                        for (unsigned i = 0; r == 0 && i < VHD_N_LOCATORS; i++)
                                r = sum_range(image->file, state, header->locators[i].data_offset,
                                        header->locators[i].data_length);
                        if (r == 0)
                                r = sum_range(image->file, state, header->table_offset,
                                        (uint64_t)MIN_OF(
                                                header->max_table_entries, metadata->n_blocks) *
                                                4);
                }
                if (r < 0)
                        fail_os(err, -r, "cannot read the metadata of '%s'", image->file->path);
                *ret = XXH3_64bits_digest(state);
        }
        XXH3_freeState(state);
        return r;
}

static int gather_facts(struct image *image, struct seal_facts *ret, struct error *err)
{
        struct file_stat st;
        int r = file_stat_get(image->file, &st);

        *ret = (struct seal_facts){.block_size = block_size_of(image)};
        if (r == 0)
                r = seal_path(image, ret->path, sizeof(ret->path));
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", image->file->path);
        if (!st.is_regular)
                return fail(err, ENOTSUP,
                        "a seal lies beside the image, and '%s' is a device: there is no place",
                        image->file->path);
        ret->file_size = st.size;
        ret->changed_ns = st.mtime_s * INT64_C(1000000000) + st.mtime_ns;
        format_time(st.mtime_s, st.mtime_ns, ret->changed, sizeof(ret->changed));
        return sum_metadata(image, &ret->metadata, err);
}

/* --- writing --- */

static void hex_of(uint64_t n, char ret[17])
{
        snprintf(ret, 17, "%016" PRIx64, n);
}

/* The lines behind the first. The caller frees *ret. */
static int body_make(const struct sums *sums, char **ret, size_t *ret_size, uint64_t *ret_n)
{
        FILE *out = open_memstream(ret, ret_size);

        if (!out)
                return -ENOMEM;
        *ret_n = 0;
        for (uint64_t i = 0; i < sums->n;) {
                uint64_t first = i;

                if (sums->sums[i] == 0) {
                        i++;
                        continue;
                }
                fprintf(out, "{\"first\":%" PRIu64 ",\"xxh3\":\"", first);
                for (; i < sums->n && sums->sums[i] && i - first < SEAL_BLOCKS_A_LINE; i++)
                        fprintf(out, "%016" PRIx64, sums->sums[i]);
                fprintf(out, "\"}\n");
                *ret_n += i - first;
        }
        if (ferror(out)) {
                fclose(out);
                free(*ret);
                *ret = NULL;
                return -ENOMEM;
        }
        return fclose(out) == 0 ? 0 : -ENOMEM;
}

static char *head_make(const struct image *image, const struct seal_facts *facts)
{
        char uuid[UUID_TEXT_SIZE], metadata[17], contents[17];
        const char *name = strrchr(image->file->path, '/');
        json_t *head;
        char *text;

        hex_of(facts->metadata, metadata);
        hex_of(facts->contents, contents);
        head = json_pack("{s:i, s:s%, s:s, s:I, s:I, s:s, s:s, s:I, s:I, s:s, s:s}", "vhdd-seal",
                SEAL_VERSION, "filename", "", (size_t)0, "uuid", uuid_format(image->id, uuid),
                "virtual-size", (json_int_t)image->size, "file-size", (json_int_t)facts->file_size,
                "changed", facts->changed, "metadata-xxh3", metadata, "block-size",
                (json_int_t)facts->block_size, "blocks", (json_int_t)facts->n_blocks, "blocks-xxh3",
                contents, "sealed", facts->sealed);
        if (!head)
                return NULL;
        /* A name that is no UTF-8 cannot stand in JSON, and is for people only. */
        json_object_set_new(head, "filename", json_string(name ? name + 1 : image->file->path));
        text = json_dumps(head, JSON_COMPACT);
        json_decref(head);
        return text;
}

static int write_whole(struct fs *fs, const char *path, const char *head, const char *body,
        size_t body_size, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        size_t n = strlen(head);
        int r = file_open(
                fs, path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE | FILE_NOFOLLOW, &file, err);

        if (r < 0)
                return r;
        r = file_write(file, head, n, 0, 0);
        if (r == 0)
                r = file_write(file, "\n", 1, n, 0);
        if (r == 0 && body_size > 0)
                r = file_write(file, body, body_size, n + 1, 0);
        if (r == 0)
                r = file_sync(file);
        return r < 0 ? fail_os(err, -r, "cannot write the seal '%s'", path) : 0;
}

struct names {
        char seal[PATH_TEXT_MAX + 16], new[PATH_TEXT_MAX + 16];
};

static int names_of(const char *image_path, struct names *ret, struct error *err)
{
        if (strlen(image_path) + sizeof(SEAL_NEW_ENDING) > PATH_TEXT_MAX)
                return fail(err, ENAMETOOLONG, "no seal has room beside '%s'", image_path);
        snprintf(ret->seal, sizeof(ret->seal), "%s" SEAL_ENDING, image_path);
        snprintf(ret->new, sizeof(ret->new), "%s" SEAL_NEW_ENDING, image_path);
        return 0;
}

int seal_put(struct fs *fs, const char *image_path, bool replace, struct error *err)
{
        struct names names;
        int r = names_of(image_path, &names, err);

        if (r < 0)
                return r;
        r = fs_rename(fs, names.new, names.seal, replace);
        if (r == 0)
                r = fs_sync_directory(fs, names.seal);
        if (r == -EEXIST)
                fail(err, EEXIST, "there is a seal already: '%s'", names.seal);
        else if (r < 0)
                fail_os(err, -r, "cannot put the seal '%s' in place", names.seal);
        if (r < 0)
                fs_unlink(fs, names.new);
        return r;
}

int seal_remove(struct fs *fs, const char *image_path, struct error *err)
{
        bool any = false;
        struct names names;
        int r = names_of(image_path, &names, NULL);

        if (r < 0)
                return 0; /* then it has none */
        for (unsigned i = 0; i < 2; i++) {
                r = fs_unlink(fs, i == 0 ? names.seal : names.new);
                if (r < 0 && r != -ENOENT)
                        return fail_os(err, -r, "cannot remove the seal '%s'", names.seal);
                any = any || r == 0;
        }
        r = any ? fs_sync_directory(fs, names.seal) : 0;
        return r < 0 ? fail_os(err, -r, "cannot remove the seal '%s'", names.seal) : 0;
}

/* What a dead process or a cut-off change left is seen through the image and is not in the file yet: the
 * next opener for writing would put it there, and the seal would be wrong. */
static int check_settled(struct image *image, struct error *err)
{
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        enum redo_found found = REDO_NONE;
        struct redo_ident ident;
        struct redo *redo = NULL;
        int r;

        if (image->format != &vhd_format || image->type == IMAGE_FIXED)
                return 0;
        if (!metadata)
                return fail(err, ENOMEM, "no memory for a seal");
        r = vhd_metadata_read(image->file, VHD_READ_FORCE, metadata, err);
        if (r == 0) {
                ident = vhd_redo_ident(metadata);
                r = redo_open(image->file, &ident, false, &redo, &found, err);
                redo_close(redo, false);
        }
        if (r == 0)
                r = intent_look(image->file, err);
        if (r < 0)
                return r;
        if (found == REDO_NONE && r != 1) /* a torn intent was never begun */
                return 0;
        fail(err, EBUSY,
                "'%s' cannot be sealed: a writer of it died, and what it left is not in the file yet",
                image->file->path);
        error_set_file(err, image->file->path);
        error_set_hint(err, "vhdctl serve it once for writing, or see what vhdctl check says");
        return -EBUSY;
}

/* It is vouched for as it was when it was read: all the time the same. */
static int check_unchanged(struct image *image, const struct seal_facts *before, struct error *err)
{
        struct file_stat st;
        int r = file_stat_get(image->file, &st);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", image->file->path);
        if (st.size == before->file_size &&
                st.mtime_s * INT64_C(1000000000) + st.mtime_ns == before->changed_ns)
                return 0;
        fail(err, ESTALE, "'%s' was changed while it was sealed", image->file->path);
        error_set_file(err, image->file->path);
        error_set_hint(err, "seal it when nobody writes to it");
        return -ESTALE;
}

int seal_write(struct image *image, const struct seal_watcher *watcher, struct seal_facts *ret,
        struct error *err)
{
        _cleanup_(sums_done) struct sums sums = {0};
        _cleanup_free_ char *head = NULL;
        _cleanup_free_ char *body = NULL;
        char temporary[PATH_TEXT_MAX + 32];
        struct seal_facts facts;
        size_t body_size = 0;
        int r = check_settled(image, err);

        if (r == 0)
                r = gather_facts(image, &facts, err);
        if (r == 0)
                r = sum_all(image, watcher, &sums, err);
        if (r == 0)
                r = check_unchanged(image, &facts, err);
        if (r != 0)
                return r;
        format_time(fs_now(image->file->fs), 0, facts.sealed, sizeof(facts.sealed));
        if (body_make(&sums, &body, &body_size, &facts.n_blocks) < 0)
                return fail(err, ENOMEM, "no memory for a seal of %" PRIu64 " blocks", sums.n);
        facts.contents = XXH3_64bits(body, body_size);
        head = head_make(image, &facts);
        if (!head)
                return fail(err, ENOMEM, "no memory for a seal");
        snprintf(temporary, sizeof(temporary), "%s.new", facts.path);
        r = write_whole(image->file->fs, temporary, head, body, body_size, err);
        if (r < 0)
                fs_unlink(image->file->fs, temporary);
        else
                *ret = facts;
        return r;
}

int seal_make(struct image *image, bool replace, const struct seal_watcher *watcher,
        struct seal_facts *ret, struct error *err)
{
        struct seal_facts facts;
        char path[PATH_TEXT_MAX];
        int r;

        if (!replace && seal_exists(image)) {
                fail(err, EEXIST, "'%s' has a seal already", image->file->path);
                error_set_file(err, image->file->path);
                error_set_hint(err, "vhdctl check --deep compares; --force seals it anew");
                return -EEXIST;
        }
        r = seal_write(image, watcher, &facts, err);
        if (r != 0)
                return r;
        /* As seal_path() formed it. */
        snprintf(path, sizeof(path), "%.*s", (int)(strlen(facts.path) - strlen(SEAL_ENDING)),
                facts.path);
        r = seal_put(image->file->fs, path, replace, err);
        if (r == 0 && ret)
                *ret = facts;
        return r;
}

/* --- reading --- */

bool seal_exists(struct image *image)
{
        char path[PATH_TEXT_MAX];
        struct file *file;

        if (seal_path(image, path, sizeof(path)) < 0 ||
                file_open(image->file->fs, path, FILE_READ | FILE_NOFOLLOW, &file, NULL) < 0)
                return false;
        file_close(file);
        return true;
}

static int fail_damaged(struct error *err, const char *path, const char *what)
{
        fail(err, EUCLEAN, "the seal '%s' is damaged: %s", path, what);
        error_set_file(err, path);
        error_set_hint(err, "vhdctl seal --force makes a new one, of the image as it is now");
        return -EUCLEAN;
}

static const char *head_string(const struct seal *seal, const char *key)
{
        const char *text = json_string_value(json_object_get(seal->head, key));

        return text ? text : "";
}

static uint64_t head_number(const struct seal *seal, const char *key)
{
        return (uint64_t)json_integer_value(json_object_get(seal->head, key));
}

static int head_parse(const char *path, const char *text, size_t size, struct seal *ret,
        size_t *ret_used, struct error *err)
{
        const char *end = memchr(text, '\n', MIN_OF(size, SEAL_HEAD_MAX));

        if (!end)
                return fail_damaged(err, path, "its first line has no end");
        ret->head = json_loadb(text, (size_t)(end - text), JSON_REJECT_DUPLICATES, NULL);
        if (!json_is_object(ret->head))
                return fail_damaged(err, path, "its first line is no JSON object");
        if (head_number(ret, "vhdd-seal") != SEAL_VERSION) {
                fail(err, ENOTSUP,
                        "the seal '%s' is of version %" PRIu64 ", and this program knows %d", path,
                        head_number(ret, "vhdd-seal"), SEAL_VERSION);
                return -ENOTSUP;
        }
        *ret_used = (size_t)(end - text) + 1;
        return 0;
}

/* One line's sums into @sums; false if they cannot be. */
static bool take_line(struct sums *sums, json_t *line)
{
        json_t *first = json_object_get(line, "first");
        const char *hex = json_string_value(json_object_get(line, "xxh3"));
        uint64_t block = (uint64_t)json_integer_value(first);

        if (!json_is_integer(first) || !hex || strlen(hex) % 16)
                return false;
        for (; *hex; hex += 16, block++) {
                char digits[17], *end;

                if (block >= sums->n)
                        return false;
                memcpy(digits, hex, 16);
                digits[16] = '\0';
                if (strspn(digits, "0123456789abcdef") != 16)
                        return false;
                sums->sums[block] = strtoull(digits, &end, 16);
        }
        return true;
}

static int body_parse(const char *path, const char *text, size_t size, struct seal *seal,
        uint64_t n_blocks, struct error *err)
{
        char sum[17];

        hex_of(XXH3_64bits(text, size), sum);
        if (strcmp(sum, head_string(seal, "blocks-xxh3")) != 0)
                return fail_damaged(err, path, "the sums of its blocks are not those that it had");
        seal->blocks.n = n_blocks;
        seal->blocks.sums = calloc(n_blocks + 1, sizeof(uint64_t));
        if (!seal->blocks.sums)
                return fail(err, ENOMEM, "no memory for the sums of %" PRIu64 " blocks", n_blocks);
        while (size > 0) {
                const char *end = memchr(text, '\n', size);
                size_t n = end ? (size_t)(end - text) : size;
                json_t *line = json_loadb(text, n, 0, NULL);
                bool good = line && take_line(&seal->blocks, line);

                json_decref(line);
                if (!good)
                        return fail_damaged(err, path, "a line of sums makes no sense");
                n += end ? 1 : 0;
                text += n;
                size -= n;
        }
        return 0;
}

static int seal_read(struct image *image, bool deep, struct seal *ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ char *text = NULL;
        char path[PATH_TEXT_MAX];
        uint64_t size;
        size_t used;
        int r;

        r = seal_path(image, path, sizeof(path));
        if (r == 0)
                r = file_open(image->file->fs, path, FILE_READ | FILE_NOFOLLOW, &file, NULL);
        if (r == -ENOENT) {
                fail(err, ENOENT, "no seal: nobody has sealed '%s'", image->file->path);
                error_set_file(err, image->file->path);
                error_set_hint(err, "vhdctl seal FILE, while you know that it is as it should be");
                return r;
        }
        if (r == 0)
                r = file_size_get(file, &size);
        if (r < 0)
                return fail_os(err, -r, "cannot open the seal '%s'", path);
        if (size > SEAL_MAX_SIZE)
                return fail_damaged(err, path, "it is far too long");
        if (!deep)
                size = MIN_OF(size, SEAL_HEAD_MAX);
        text = malloc(size + 1);
        if (!text)
                return fail(err, ENOMEM, "no memory for a seal of %" PRIu64 " bytes", size);
        r = file_read_exact(file, text, size, 0);
        if (r < 0)
                return fail_os(err, -r, "cannot read the seal '%s'", path);
        r = head_parse(path, text, size, ret, &used, err);
        if (r == 0 && deep && head_number(ret, "block-size") == block_size_of(image))
                r = body_parse(path, text + used, size - used, ret,
                        div_round_up(image->size, block_size_of(image)), err);
        return r;
}

/* --- comparing --- */

struct comparing {
        const struct seal_watcher *watcher;
        uint64_t n;
        char first[ERROR_MESSAGE_MAX]; /* the first sentence */
};

static void differ(struct comparing *comparing, const char *format, ...)
        __attribute__((format(printf, 2, 3)));

static void differ(struct comparing *comparing, const char *format, ...)
{
        char sentence[ERROR_MESSAGE_MAX];
        va_list ap;

        va_start(ap, format);
        vsnprintf(sentence, sizeof(sentence), format, ap);
        va_end(ap);
        if (comparing->n++ == 0)
                memcpy(comparing->first, sentence, sizeof(sentence));
        if (comparing->watcher && comparing->watcher->differs && comparing->n <= MAX_DIFFERENCES)
                comparing->watcher->differs(comparing->watcher->opaque, sentence);
}

static void compare_number(struct comparing *comparing, const struct seal *seal, const char *key,
        uint64_t now, const char *what)
{
        uint64_t then = head_number(seal, key);

        if (then != now)
                differ(comparing, "its %s is %" PRIu64 ", and was %" PRIu64, what, now, then);
}

static int compare_facts(struct image *image, const struct seal *seal, struct comparing *comparing,
        struct error *err)
{
        char uuid[UUID_TEXT_SIZE], metadata[17];
        struct seal_facts facts;
        int r = gather_facts(image, &facts, err);

        if (r < 0)
                return r;
        uuid_format(image->id, uuid);
        hex_of(facts.metadata, metadata);
        if (strcmp(uuid, head_string(seal, "uuid")) != 0)
                differ(comparing, "its id is %s, and was %s", uuid, head_string(seal, "uuid"));
        compare_number(comparing, seal, "virtual-size", image->size, "virtual size");
        compare_number(comparing, seal, "file-size", facts.file_size, "file size");
        compare_number(comparing, seal, "block-size", facts.block_size, "block size");
        if (strcmp(facts.changed, head_string(seal, "changed")) != 0)
                differ(comparing, "it was changed at %s, and before sealing at %s", facts.changed,
                        head_string(seal, "changed"));
        if (strcmp(metadata, head_string(seal, "metadata-xxh3")) != 0)
                differ(comparing,
                        "its metadata (footer, header, locators, BAT) is not what it was");
        return 0;
}

static int compare_blocks(struct image *image, const struct seal *seal, struct comparing *comparing,
        struct error *err)
{
        _cleanup_(sums_done) struct sums now = {0};
        int r = sum_all(image, comparing->watcher, &now, err);

        if (r < 0)
                return r;
        for (uint64_t i = 0; i < now.n && i < seal->blocks.n; i++)
                if (now.sums[i] != seal->blocks.sums[i])
                        differ(comparing, "block %" PRIu64 " (offset %" PRIu64 " of the disk) %s",
                                i, i * block_size_of(image),
                                now.sums[i] == 0                    ? "held data and holds none"
                                        : seal->blocks.sums[i] == 0 ? "held no data and holds some"
                                                                    : "holds other data");
        return 0;
}

int seal_compare(struct image *image, bool deep, const struct seal_watcher *watcher,
        uint64_t *ret_n, struct error *err)
{
        _cleanup_(seal_done) struct seal seal = {0};
        struct comparing comparing = {.watcher = watcher};
        int r = seal_read(image, deep, &seal, err);

        if (r == 0)
                r = compare_facts(image, &seal, &comparing, err);
        if (r == 0 && seal.blocks.sums)
                r = compare_blocks(image, &seal, &comparing, err);
        if (r == 0)
                *ret_n = comparing.n;
        return r;
}

void seal_warning(struct image *image, char *ret, size_t ret_size)
{
        _cleanup_(seal_done) struct seal seal = {0};
        struct comparing comparing = {0};
        struct error err = ERROR_INIT;
        int r = seal_read(image, false, &seal, &err);

        ret[0] = '\0';
        if (r == -ENOENT)
                return;
        if (r == 0)
                r = compare_facts(image, &seal, &comparing, &err);
        if (r < 0)
                snprintf(ret, ret_size, "%s", err.message);
        else if (comparing.n > 0)
                snprintf(ret, ret_size,
                        "'%s' is not what its seal says: %s; vhdctl check --deep compares its data",
                        image->file->path, comparing.first);
}
