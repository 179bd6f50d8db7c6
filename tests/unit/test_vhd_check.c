/* SPDX-License-Identifier: Apache-2.0 */
/* A check that overlooks damage lets a merge write it into the parent; a repair that guesses makes it
 * worse. So: every class of damage is found by its name, what is promised is mended, what is not
 * promised stays as it was, and the old bytes can be put back. */
#include "tests/unit/vhd_make.h"

#include <dirent.h>
#include <stdio.h>

#include "base/uuid.h"
#include "formats/format.h"
#include "formats/intent.h"
#include "formats/vhd/check.h"

static char directory[64];
static char path[128];

static void make_directory(void)
{
        strcpy(directory, "/tmp/vhdd-check-XXXXXX");
        cr_assert(mkdtemp(directory) != NULL);
        snprintf(path, sizeof(path), "%s/it's.vhd", directory);
}

static void remove_directory(void)
{
        char command[128];

        snprintf(command, sizeof(command), "rm -rf %s", directory);
        cr_assert(system(command) == 0);
}

TestSuite(vhd_check, .init = make_directory, .fini = remove_directory, .timeout = 30);

static struct file *file_of(const struct make *make)
{
        struct file *file = NULL;

        cr_assert(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &file,
                          NULL) == 0);
        cr_assert(make->size == 0 || file_write(file, make->bytes, make->size, 0, 0) == 0);
        return file;
}

/* All findings as a text: " id" each, "!id" for damage, "+" behind what can be mended. */
struct log {
        char text[4096];
        char sentences[16384];
};

static void take(void *opaque, const struct vhd_finding *finding)
{
        struct log *log = opaque;

        strcat(log->text, finding->severity == VHD_DAMAGE ? " !" : " ");
        strcat(log->text, finding->id);
        strcat(log->text, finding->repairable ? "+" : "");
        if (strlen(log->sentences) < 12000)
                strcat(strcat(log->sentences, finding->sentence), "\n");
        cr_expect(finding->sentence[0] != '\0');
        cr_expect(finding->hyperv == 0 || finding->hyperv >> 16 == 0xC03A);
}

static const char *checked(struct file *file, unsigned flags, struct vhd_check_result *result)
{
        static struct log log;
        struct vhd_check_result unused;
        struct error err = ERROR_INIT;

        log.text[0] = log.sentences[0] = '\0';
        if (vhd_check(file, flags, take, &log, result ? result : &unused, &err) < 0)
                snprintf(log.text, sizeof(log.text), "error: %s", err.message);
        return log.text;
}

static unsigned n_backups(char *ret)
{
        DIR *dir = opendir(directory);
        struct dirent *entry;
        unsigned n = 0;

        while ((entry = readdir(dir)))
                if (strstr(entry->d_name, ".vhdd-repair-")) {
                        n++;
                        if (ret)
                                sprintf(ret, "%s/%s", directory, entry->d_name);
                } else {
                        cr_expect(!strstr(entry->d_name, INTENT_ENDING), "%s", entry->d_name);
                }
        closedir(dir);
        return n;
}

/* Puts the old bytes back as the backup's head says. */
static void put_back(const char *backup)
{
        char command[1024], line[1024], found[1024] = "";
        FILE *f = fopen(backup, "r");

        while (fgets(line, sizeof(line), f))
                if (strstr(line, "xxd -r"))
                        strcpy(found, line + 1);
        fclose(f);
        snprintf(command, sizeof(command), "%s", found);
        cr_assert(found[0] && system(command) == 0, "%s", command);
}

static void expect_bytes(struct file *file, const struct make *make)
{
        _cleanup_free_ uint8_t *bytes = malloc(MAKE_MAX);

        cr_assert(file_read(file, bytes, MAKE_MAX, 0, 0) == (ssize_t)make->size);
        cr_expect(memcmp(bytes, make->bytes, make->size) == 0);
}

/* What check says, what it says under @flags, and what is left after a repair under @flags; then the
 * old bytes go back and everything is as it was. */
static void expect(const struct make *make, unsigned flags, const char *plain,
        const char *with_flags, const char *after)
{
        _cleanup_(file_closep) struct file *file = file_of(make);
        struct vhd_repair_result repaired;
        struct error err = ERROR_INIT;
        char backup[512];
        const char *found;
        int r;

        found = checked(file, 0, NULL);
        cr_expect(strcmp(found, plain) == 0, "plain: '%s', not '%s'", found, plain);
        found = checked(file, flags, NULL);
        cr_expect(strcmp(found, with_flags) == 0, "flags: '%s', not '%s'", found, with_flags);
        expect_bytes(file, make);

        r = vhd_repair(file, flags | VHD_CHECK_DRY_RUN, NULL, NULL, &repaired, &err);
        cr_assert(r == 0, "%s", err.message);
        expect_bytes(file, make);
        cr_expect(n_backups(NULL) == 0);

        r = vhd_repair(file, flags, NULL, NULL, &repaired, &err);
        cr_assert(r == 0, "%s", err.message);
        found = checked(file, 0, NULL);
        cr_expect(strcmp(found, after) == 0, "after: '%s', not '%s'", found, after);
        if (!repaired.backup[0]) {
                expect_bytes(file, make);
                cr_expect(n_backups(NULL) == 0);
                cr_expect(strchr(with_flags, '+') == NULL);
                return;
        }
        cr_expect(repaired.n_repaired > 0);
        cr_expect(repaired.bytes_changed > 0);
        cr_assert(n_backups(backup) == 1);
        cr_expect(strcmp(backup, repaired.backup) == 0);
        if (system("command -v xxd >/dev/null") == 0) {
                put_back(backup);
                expect_bytes(file, make);
        }
        unlink(backup);
}

#define STEP(setup, flags, plain, with_flags, after)                                               \
        do {                                                                                       \
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);                      \
                setup;                                                                             \
                expect(&make, flags, plain, with_flags, after);                                    \
        } while (0)

Test(vhd_check, finds_nothing_in_whole_images)
{
        _cleanup_make_ struct make fixed = make_fixed(65536);
        _cleanup_make_ struct make child = make_sparse(4, 8, 4096, 2);
        struct vhd_check_result result;
        struct file *file;

        expect(&fixed, 0, "", "", "");
        expect(&child, VHD_CHECK_FORCE | VHD_CHECK_DEEP, "", "", "");
        file = file_of(&child);
        checked(file, 0, &result);
        cr_expect(result.n_damages == 0 && result.n_warnings == 0 && result.n_infos == 0);
        cr_expect(result.n_allocated == 2);
        file_close(file);
}

Test(vhd_check, tells_what_is_no_vhd)
{
        _cleanup_make_ struct make make = {calloc(1, MAKE_MAX), 8192};
        _cleanup_(file_closep) struct file *file = file_of(&make);
        struct vhd_check_result result;
        struct error err = ERROR_INIT;

        cr_expect(vhd_check(file, 0, NULL, NULL, &result, &err) == -ENOMEDIUM);
        cr_expect(strstr(err.message, "no VHD footer") != NULL, "%s", err.message);
        cr_expect(strcmp(err.file, path) == 0);
}

Test(vhd_check, a_lost_tail_is_written_only_when_told)
{
        STEP(make.size -= 512, 0, " !footer-missing", " !footer-missing", " !footer-missing");
        STEP(make.size -= 512, VHD_CHECK_USE_TAIL, " !footer-missing", " !footer-missing",
                " !footer-missing");
        STEP(make.size -= 512, VHD_CHECK_USE_HEAD, " !footer-missing", " !footer-missing+", "");
        STEP(memset(make.bytes + make_tail(&make), 0xc7, 512), VHD_CHECK_USE_HEAD,
                " !footer-tapdisk-mark", " !footer-tapdisk-mark+", "");
}

/* A tail that is the head's but for some bytes proves that the head is no guest's invention. */
Test(vhd_check, a_torn_tail_is_mended_from_the_head)
{
        STEP(make.bytes[make_tail(&make) + 300] ^= 1, 0, " !footer-checksum+", " !footer-checksum+",
                "");
        STEP(make.bytes[make_tail(&make) + 70] ^= 1, 0, " !footer-checksum", " !footer-checksum",
                " !footer-checksum");
        STEP(make.bytes[make_tail(&make) + 70] ^= 1, VHD_CHECK_USE_HEAD, " !footer-checksum",
                " !footer-checksum+", "");
}

Test(vhd_check, the_copy_at_the_head_is_mended_from_the_tail)
{
        STEP(memset(make.bytes, 0, 512), 0, " !footer-copy-missing+", " !footer-copy-missing+", "");
        STEP(make.bytes[100] ^= 1, 0, " !footer-copy-checksum+", " !footer-copy-checksum+", "");
}

Test(vhd_check, footers_that_differ_are_for_people)
{
#define DIFFER MAKE_CHANGE_FOOTER(&make, true, false, footer.current_size = be64_make(4096 * 7))
        STEP(DIFFER, 0, " !footers-differ", " !footers-differ", " !footers-differ");
        STEP(DIFFER, VHD_CHECK_USE_TAIL, " !footers-differ", " !footers-differ+", "");
        STEP(DIFFER, VHD_CHECK_USE_HEAD, " !footers-differ", " !footers-differ+ resized bat-long",
                " resized bat-long");
}

Test(vhd_check, both_sums_wrong_is_for_force)
{
#define BOTH make.bytes[300] ^= 1, make.bytes[make_tail(&make) + 300] ^= 1
        STEP(BOTH, 0, " !footer-checksum !footer-copy-checksum footer-reserved",
                " !footer-checksum !footer-copy-checksum footer-reserved",
                " !footer-checksum !footer-copy-checksum footer-reserved");
        STEP(BOTH, VHD_CHECK_FORCE, " !footer-checksum !footer-copy-checksum footer-reserved",
                " !footer-checksum+ !footer-copy-checksum+ footer-reserved", " footer-reserved");
        STEP(BOTH, VHD_CHECK_FORCE | VHD_CHECK_USE_HEAD,
                " !footer-checksum !footer-copy-checksum footer-reserved",
                " !footer-checksum+ !footer-copy-checksum+ footer-reserved", " footer-reserved");
}

/* Its guest wrote a VHD head into a fixed disk; the tail is damaged and still says "fixed". */
Test(vhd_check, never_makes_a_fixed_disk_what_its_guest_wrote)
{
        _cleanup_make_ struct make make = make_fixed(65536);
        _cleanup_make_ struct make fake = make_sparse(4, 8, 4096, 2);

        make_put(&make, 0, fake.bytes, 8192);
        expect(&make, VHD_CHECK_USE_HEAD | VHD_CHECK_FORCE, "", "", "");
        make.bytes[65536 + 300] ^= 1;
        expect(&make, VHD_CHECK_USE_HEAD, " !footer-checksum footer-reserved",
                " !footer-checksum footer-reserved", " !footer-checksum footer-reserved");
        expect(&make, VHD_CHECK_FORCE, " !footer-checksum footer-reserved",
                " !footer-checksum+ footer-reserved", " footer-reserved");
}

Test(vhd_check, poison_is_left_to_its_journal)
{
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, memcpy(footer.cookie, "v_poison", 8)),
                VHD_CHECK_FORCE | VHD_CHECK_USE_TAIL, " !footer-poisoned !footer-poisoned",
                " !footer-poisoned !footer-poisoned", " !footer-poisoned !footer-poisoned");
}

Test(vhd_check, small_things_of_the_footer)
{
        _cleanup_make_ struct make fixed = make_fixed(65536);

        STEP(make.size -= 1, 0, " footer-old+", " footer-old+", "");
        fixed.size--;
        expect(&fixed, 0, " footer-old+", " footer-old+", "");
        STEP(make.bytes[85] = make.bytes[make_tail(&make) + 85] = 1, 0,
                " !footer-hidden-checksum+ hidden", " !footer-hidden-checksum+ hidden", " hidden");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, memset(footer.unique_id, 0, 16)), 0, " id-zero+",
                " id-zero+", "");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.cylinders = be16_make(200)), 0,
                " !geometry+", " !geometry+", "");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true,
                     {
                             footer.heads = 16;
                             footer.sectors_per_track = 255;
                             footer.cylinders = be16_make(65535);
                     }),
                0, "", "", "");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.saved_state = 1), 0, " saved-state",
                " saved-state", " saved-state");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.timestamp = be32_make(0xf0000000)), 0,
                " timestamp", " timestamp", " timestamp");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.features = be32_make(0)), 0, " features",
                " features", " features");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.original_size = be64_make(512)), 0,
                " resized", " resized", " resized");
}

Test(vhd_check, header_and_its_sum)
{
        STEP(make.bytes[MAKE_HEADER + 900] ^= 1, 0, " !header-checksum header-reserved",
                " !header-checksum header-reserved", " !header-checksum header-reserved");
        STEP(make.bytes[MAKE_HEADER + 900] ^= 1, VHD_CHECK_FORCE,
                " !header-checksum header-reserved", " !header-checksum+ header-reserved",
                " header-reserved");
        STEP(MAKE_CHANGE_HEADER(&make, header.cookie[0] = 'C'), VHD_CHECK_FORCE, " !header-corrupt",
                " !header-corrupt", " !header-corrupt");
        STEP(MAKE_CHANGE_HEADER(&make, header.block_size = be32_make(0)), VHD_CHECK_FORCE,
                " !block-size", " !block-size", " !block-size");
        STEP(MAKE_CHANGE_HEADER(&make, header.table_offset = be64_make(512)), VHD_CHECK_FORCE,
                " !bat-misplaced", " !bat-misplaced", " !bat-misplaced");
        STEP(MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(4)), 0, " !bat-short",
                " !bat-short", " !bat-short");
        STEP(MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(9)), 0, " bat-long",
                " bat-long", " bat-long");
        STEP(MAKE_CHANGE_FOOTER(&make, true, true, footer.data_offset = be64_make(1 << 30)), 0,
                " !unreadable", " !unreadable", " !unreadable");
        STEP(MAKE_CHANGE_FOOTER(
                     &make, true, true, footer.current_size = be64_make(UINT64_C(1) << 40)),
                0, " !size", " !size", " !size");
}

static void set_entry(struct make *make, uint32_t block, uint32_t place)
{
        be32 entry = be32_make(place);

        make_put(make, MAKE_BAT + block * 4, &entry, 4);
}

/* Blocks whose entries lie are given up only by force, and never another's with them. */
Test(vhd_check, bat_entries_that_cannot_be_right)
{
        STEP(set_entry(&make, 5, 900000), 0, " !bat-entry-outside", " !bat-entry-outside",
                " !bat-entry-outside");
        STEP(set_entry(&make, 5, 900000), VHD_CHECK_FORCE, " !bat-entry-outside",
                " !bat-entry-outside+", "");
        STEP(set_entry(&make, 5, 0xfffffffe), VHD_CHECK_FORCE, " !bat-entry-outside",
                " !bat-entry-outside+", "");
        STEP(set_entry(&make, 5, 0), VHD_CHECK_FORCE, " !bat-entry-in-metadata",
                " !bat-entry-in-metadata+", "");
        STEP(set_entry(&make, 5, 3), VHD_CHECK_FORCE, " !bat-entry-in-metadata",
                " !bat-entry-in-metadata+", "");
        STEP(set_entry(&make, 5, MAKE_FIRST / 512), VHD_CHECK_FORCE, " !bat-entries-overlap",
                " !bat-entries-overlap+", "");
        STEP(set_entry(&make, 5, MAKE_FIRST / 512 + 2), VHD_CHECK_FORCE, " !bat-entries-overlap",
                " !bat-entries-overlap+", "");
        STEP(set_entry(&make, 5, 900000), VHD_CHECK_FORCE | VHD_CHECK_USE_TAIL,
                " !bat-entry-outside", " !bat-entry-outside+", "");
}

/* Two blocks that overlap: the one in its right stays. */
Test(vhd_check, force_clears_only_the_entry_that_is_told)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_repair_result repaired;
        be32 entries[8];

        set_entry(&make, 5, MAKE_FIRST / 512);
        set_entry(&make, 7, 0);
        file = file_of(&make);
        cr_assert(vhd_repair(file, VHD_CHECK_FORCE, NULL, NULL, &repaired, NULL) == 0);
        cr_expect(repaired.n_repaired == 2);
        cr_expect(repaired.bytes_changed == 4 + 4);
        cr_assert(file_read_exact(file, entries, sizeof(entries), MAKE_BAT) == 0);
        cr_expect(be32_get(entries[0]) == MAKE_FIRST / 512);
        cr_expect(be32_get(entries[1]) == MAKE_FIRST / 512 + 16);
        cr_expect(be32_get(entries[5]) == UINT32_MAX);
        cr_expect(be32_get(entries[7]) == UINT32_MAX);
}

/* Making the file longer would turn the entry of a block that is lost into a block of zeros. */
Test(vhd_check, a_file_that_lost_blocks_is_not_made_longer)
{
#define LOST make.size = MAKE_FIRST + 8192 - 700
        STEP(LOST, VHD_CHECK_USE_HEAD, " !footer-missing !bat-entry-outside",
                " !footer-missing !bat-entry-outside", " !footer-missing !bat-entry-outside");
        STEP(LOST, VHD_CHECK_USE_HEAD | VHD_CHECK_FORCE, " !footer-missing !bat-entry-outside",
                " !footer-missing+ !bat-entry-outside+", "");
}

/* A copy that ran out of space: the tail is lost, and a part of the last block with it. */
Test(vhd_check, a_block_that_is_cut_off_is_completed)
{
        STEP(make.size = MAKE_FIRST + 8192 + 512 + 2048, VHD_CHECK_USE_HEAD,
                " !footer-missing !block-cut-off", " !footer-missing+ !block-cut-off+", "");
        /* The footer stands where the last block's end should be. */
        {
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
                uint8_t footer[512];

                make_get(&make, make_tail(&make), footer, 512);
                make.size = MAKE_FIRST + 8192 + 512 + 2048;
                make_put(&make, make.size, footer, 512);
                expect(&make, 0, " !block-cut-off+", " !block-cut-off+", "");
        }
}

Test(vhd_check, ten_thousand_bad_entries_are_not_ten_thousand_sentences)
{
        _cleanup_make_ struct make make = make_sparse(3, 128, 4096, 0);
        struct vhd_check_result result;
        _cleanup_(file_closep) struct file *file = NULL;
        const char *found;

        for (uint32_t i = 0; i < 128; i++)
                set_entry(&make, i, 800000 + i);
        file = file_of(&make);
        found = checked(file, 0, &result);
        cr_expect(result.n_damages == 128);
        cr_expect(
                strlen(found) == 100 * strlen(" !bat-entry-outside") + strlen(" bat-entry-outside"),
                "%s", found);
}

static void make_tapdisk(struct make *make)
{
        struct vhd_raw_batmap batmap = {.key_flag = 0};
        uint8_t map[512] = {0x40}; /* block 1 is full */

        MAKE_CHANGE_FOOTER(make, true, true, {
                memcpy(footer.creator_app, "tap\0", 4);
                footer.creator_version = be32_make(0x10003);
        });
        memcpy(batmap.cookie, "tdbatmap", 8);
        batmap.map_offset = be64_make(MAKE_BAT + 1024);
        batmap.map_sectors = be32_make(1);
        batmap.version = be32_make(0x10002);
        batmap.checksum = be32_make(~UINT32_C(0x40));
        make_put(make, MAKE_BAT + 512, &batmap, sizeof(batmap));
        make_put(make, MAKE_BAT + 1024, map, sizeof(map));
}

/* tapdisk reads stale bytes where its map says that a block is full and it is not. */
Test(vhd_check, tapdisks_batmap)
{
        STEP(make_tapdisk(&make), VHD_CHECK_DEEP, "", "", "");
        STEP((make_tapdisk(&make), make.bytes[MAKE_BAT + 1024 + 9] = 1), 0, " batmap-checksum+",
                " batmap-checksum+", "");
        STEP((make_tapdisk(&make), make.bytes[MAKE_BAT + 512] = 'x'), 0, " !batmap-missing",
                " !batmap-missing", " !batmap-missing");
        STEP((make_tapdisk(&make), make.bytes[MAKE_BAT + 512 + 29] = 1), 0, " encrypted",
                " encrypted", " encrypted");
        STEP((make_tapdisk(&make), make.bytes[MAKE_FIRST + 8192] = 0x7f), VHD_CHECK_DEEP, "",
                " !batmap-wrong+ data-under-clear-bits", "");
}

Test(vhd_check, deep_looks_under_clear_bits)
{
        STEP(make.bytes[MAKE_FIRST] = 0xfe, VHD_CHECK_DEEP, "", " data-under-clear-bits", "");
        STEP((make.bytes[MAKE_FIRST] = 0xfe,
                     memset(make.bytes + MAKE_FIRST + 512 + 7 * 512, 0, 512)),
                VHD_CHECK_DEEP, "", "", "");
}

Test(vhd_check, parents)
{
#define CHILD(setup, plain)                                                                        \
        do {                                                                                       \
                _cleanup_make_ struct make make = make_sparse(4, 8, 4096, 2);                      \
                MAKE_CHANGE_HEADER(&make, setup);                                                  \
                expect(&make, VHD_CHECK_FORCE, plain, plain, plain);                               \
        } while (0)
        CHILD(header.locators[0].data_offset = be64_make(1 << 30), " !locator-misplaced");
        CHILD(header.locators[0].data_length = be32_make(70000), " !locator-misplaced");
        CHILD(header.locators[0].data_length = be32_make(3), " locator-text");
        CHILD(memset(header.locators, 0, sizeof(header.locators)), " locators-none");
        CHILD(memset(header.parent_id, 0, 16), " parent-id-zero");
        CHILD(memset(header.parent_name, 0xd8, 512), " parent-name");
}

Test(vhd_check, sees_an_unfinished_change_as_finished)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_(intent_freep) struct intent *intent = intent_new();
        struct vhd_repair_result repaired;
        struct vhd_raw_footer footer;
        const uint8_t id[16] = {0};

        make_get(&make, 0, &footer, 512);
        footer.unique_id[0] = 0x55;
        footer.checksum = be32_make(vhd_footer_checksum(&footer));
        file = file_of(&make);
        cr_assert(intent_add_image(intent, file, id, id, NULL) == 0);
        cr_assert(intent_add(intent, 0, 0, &footer, 512, NULL) == 0);
        cr_assert(intent_add(intent, 0, make_tail(&make), &footer, 512, NULL) == 0);
        cr_assert(intent_write(intent, NULL) == 0);
        cr_assert(file_write(file, &footer, 512, 0, 0) == 0);
        cr_expect(strcmp(checked(file, 0, NULL), " intent+") == 0, "%s", checked(file, 0, NULL));
        cr_assert(vhd_repair(file, 0, NULL, NULL, &repaired, NULL) == 0);
        cr_expect(strcmp(checked(file, 0, NULL), "") == 0);
        cr_expect(n_backups(NULL) == 0);
}

static int failing_sync(struct file *file)
{
        return -EIO;
}

static void fail_a_sync(struct file *file)
{
        struct error err = ERROR_INIT;
        struct file_ops ops = *file->ops;
        struct image *image = NULL;

        cr_assert(image_open(file, NULL, IMAGE_WRITABLE, &image, &err) == 0, "%s", err.message);
        {
                uint64_t at;
                bool zero, changed;

                cr_assert(image->format->prepare(image, 3 * 4096, 4096, 0, &at, &zero) == 0);
                cr_assert(image->format->complete(image, 3 * 4096, 4096, &changed) == 0);
        }
        ops.sync = failing_sync;
        file->ops = &ops;
        cr_expect(image->format->flush(image) < 0);
        image_abandon(image);
}

/* E5: after a failed sync the image is read-only until somebody looked at it. */
Test(vhd_check, lifts_the_poison_of_a_failed_sync)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct file *file = file_of(&make);
        struct vhd_repair_result repaired;
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        fail_a_sync(file);
        cr_assert(file_open(host_fs(), path, FILE_WRITE, &file, NULL) == 0);
        cr_expect(strstr(checked(file, 0, NULL), "!sync-failed+") != NULL);
        cr_assert(vhd_repair(file, 0, NULL, NULL, &repaired, &err) == 0, "%s", err.message);
        cr_expect(strstr(checked(file, 0, NULL), "sync-failed") == NULL);
        cr_assert(image_open(file, NULL, IMAGE_WRITABLE, &image, &err) == 0);
        cr_expect(image->writable, "%s", image->warning);
        cr_assert(image_close(image, &err) == 0);
}

/* E5, E11: what was merged into it and lost is given up in a redo file of an image above, which would be
 * replayed from then on. */
Test(vhd_check, keeps_the_poison_in_the_middle_of_a_merge)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct file *file;
        struct vhd_repair_result repaired;

        MAKE_CHANGE_FOOTER(&make, true, true, footer.hidden = VHD_HIDDEN_MERGE);
        file = file_of(&make);
        fail_a_sync(file);
        cr_assert(file_open(host_fs(), path, FILE_WRITE, &file, NULL) == 0);
        cr_assert(vhd_repair(file, 0, NULL, NULL, &repaired, NULL) == 0);
        cr_expect(strstr(checked(file, 0, NULL), "!sync-failed") != NULL);
        cr_expect(strstr(checked(file, 0, NULL), "!sync-failed+") == NULL);
        cr_assert(vhd_repair(file, VHD_CHECK_FORCE, NULL, NULL, &repaired, NULL) == 0);
        cr_expect(strstr(checked(file, 0, NULL), "sync-failed") == NULL);
        file_close(file);
}
