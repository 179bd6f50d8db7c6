/* SPDX-License-Identifier: Apache-2.0 */
/* A format guessed from bytes that a guest can write lets the guest choose which of the host's files
 * it reads. So the tail decides, and what could be two things is asked for. */
#include "tests/unit/vhd_make.h"

#include <stdio.h>
#include <sys/stat.h>

#include "formats/format.h"

static char directory[64];
static char path[128];

static void make_directory(void)
{
        strcpy(directory, "/tmp/vhdd-format-XXXXXX");
        cr_assert(mkdtemp(directory) != NULL);
}

static void remove_directory(void)
{
        unlink(path);
        rmdir(directory);
}

TestSuite(format, .init = make_directory, .fini = remove_directory, .timeout = 20);

/* The bytes as a file of that name, open for reading and writing. */
static struct file *file_named(const char *name, const void *bytes, size_t size)
{
        struct file *file = NULL;

        if (path[0])
                unlink(path);
        snprintf(path, sizeof(path), "%s/%s", directory, name);
        cr_assert(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, &file,
                          NULL) == 0);
        cr_assert(file_write(file, bytes, size, 0, 0) == 0);
        return file;
}

/* The name of the format that is found, or the sentence. */
static const char *found(const char *name, const void *bytes, size_t size, const char *format)
{
        _cleanup_(file_closep) struct file *file = file_named(name, bytes, size);
        static struct error err;
        const struct format *ret = NULL;

        err = ERROR_INIT;
        if (format_find(file, format, &ret, &err) < 0) {
                cr_expect(strcmp(err.file, path) == 0);
                strcat(strcat(err.message, "; hint: "), err.hint);
                return err.message;
        }
        return ret->name;
}

#define EXPECT_FOUND(answer, words) cr_expect(strstr(answer, words) != NULL, "%s", answer)

Test(format, a_valid_tail_is_a_vhd_whatever_its_name)
{
        _cleanup_make_ struct make fixed = make_fixed(8192);
        _cleanup_make_ struct make child = make_sparse(4, 8, 4096, 1);

        EXPECT_FOUND(found("a.vhd", fixed.bytes, fixed.size, NULL), "vhd");
        EXPECT_FOUND(found("a.img", fixed.bytes, fixed.size, NULL), "vhd");
        EXPECT_FOUND(found("a", child.bytes, child.size, NULL), "vhd");
        EXPECT_FOUND(found("a.vhd", fixed.bytes, fixed.size, "raw"), "raw");
}

/* What a guest writes at the head of a fixed disk changes nothing. */
Test(format, the_head_of_a_fixed_disk_does_not_count)
{
        static const char *const heads[] = {"vhdxfile", "QFI\xfb", "KDMV", "<?xml"};
        _cleanup_make_ struct make fixed = make_fixed(8192);

        for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
                memcpy(fixed.bytes, heads[i], strlen(heads[i]));
                EXPECT_FOUND(found("a.vhd", fixed.bytes, fixed.size, NULL), "vhd");
        }
}

Test(format, a_vhd_by_name_is_never_raw)
{
        uint8_t zeros[8192] = {0};

        EXPECT_FOUND(found("a.vhd", zeros, sizeof(zeros), NULL), "vhd");
        EXPECT_FOUND(found("a.AVHD", zeros, sizeof(zeros), NULL), "vhd");
        EXPECT_FOUND(found("a.vud", zeros, sizeof(zeros), NULL), "vhd");
        EXPECT_FOUND(found("a.raw", zeros, sizeof(zeros), NULL), "raw");
        EXPECT_FOUND(found("a.img", zeros, sizeof(zeros), NULL), "raw");
        EXPECT_FOUND(found("backup", zeros, sizeof(zeros), NULL), "cannot tell what");
        EXPECT_FOUND(found("backup", zeros, sizeof(zeros), NULL), "say --format raw");
        EXPECT_FOUND(found(".vhd", zeros, sizeof(zeros), NULL), "vhd");
}

/* A whole VHD head in a raw disk: the guest's wish, not ours. */
Test(format, a_head_without_a_tail_is_asked_for)
{
        _cleanup_make_ struct make child = make_sparse(4, 8, 4096, 1);

        EXPECT_FOUND(found("a.img", child.bytes, child.size - 512, NULL), "begins like a VHD");
        EXPECT_FOUND(found("a.img", child.bytes, child.size - 512, "raw"), "raw");
        EXPECT_FOUND(found("a.vhd", child.bytes, child.size - 512, NULL), "vhd");
        memset(child.bytes + make_tail(&child), 0xc7, 512);
        EXPECT_FOUND(found("a.img", child.bytes, child.size, NULL), "vhd");
}

Test(format, others_are_told_by_their_magic_and_refused_politely)
{
        static const struct {
                const char *bytes;
                size_t offset, length;
                const char *words, *hint;
        } cases[] = {
                {"vhdxfile", 0, 8, "a VHDX image", "--format=vhdx"},
                {"QFI\xfb", 0, 4, "a qcow2 image", "--format=qcow2"},
                {"KDMV", 0, 4, "a VMDK image", "--format=vmdk"},
                {"COWD", 0, 4, "a VMDK image", "--format=vmdk"},
                {"# Disk DescriptorFile\n", 0, 22, "a VMDK image", "--format=vmdk"},
                {"\x7f\x10\xda\xbe", 64, 4, "a VDI image", "--format=vdi"},
                {"\x14\x20\x28\x01", 0, 4, "is no disk: it is a binary configuration", ""},
                {"\xff\xfe<\0?\0x\0m\0l\0", 0, 12, "is no disk: it is an XML file", ""},
                {"<?xml version", 0, 13, "is no disk: it is an XML file", ""},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                char bytes[4096] = {0};
                const char *answer;

                memcpy(bytes + cases[i].offset, cases[i].bytes, cases[i].length);
                answer = found("a.vhd", bytes, sizeof(bytes), NULL);
                EXPECT_FOUND(answer, cases[i].words);
                EXPECT_FOUND(answer, cases[i].hint);
                if (cases[i].hint[0]) {
                        EXPECT_FOUND(answer, "qemu-nbd --fork --read-only");
                        EXPECT_FOUND(answer, "nbd+unix:///?socket=");
                }
                EXPECT_FOUND(found("a.img", bytes, sizeof(bytes), "raw"), "raw");
        }
        EXPECT_FOUND(found("a.img", "", 0, "qcow2"), "is no format");
        EXPECT_FOUND(found("a.vhd", "", 0, NULL), "vhd");
}

/* The sentence for what is called a VHD and is none says what to do. */
Test(format, image_open_refuses_and_gives_the_lock_back)
{
        uint8_t zeros[8192] = {0};
        _cleanup_(file_closep) struct file *file = file_named("a.vhd", zeros, sizeof(zeros));
        _cleanup_(file_closep) struct file *other = NULL;
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        cr_assert(image_open(file, NULL, IMAGE_WRITABLE, &image, &err) == -ENOMEDIUM);
        cr_expect(strstr(err.message, "no VHD footer") != NULL, "%s", err.message);
        cr_expect(strstr(err.hint, "--format raw") != NULL, "%s", err.hint);
        cr_expect(image == NULL);
        cr_assert(file_open(host_fs(), path, FILE_WRITE, &other, NULL) == 0);
        cr_expect(file_lock_set(other, FILE_LOCK_WRITE, NULL) == 0);
}

Test(format, image_open_reads_what_it_found)
{
        _cleanup_make_ struct make child = make_sparse(3, 8, 4096, 2);
        _cleanup_(image_abandonp) struct image *image = NULL;
        _cleanup_(file_closep) struct file *other = NULL;
        struct file *file = file_named("a.vhd", child.bytes, child.size);
        struct error err = ERROR_INIT;
        struct extent extent;

        cr_assert(image_open(file, NULL, 0, &image, &err) == 0, "%s", err.message);
        cr_expect(image->size == 32768);
        cr_expect(image->type == IMAGE_DYNAMIC);
        cr_assert(image->format->map(image, 4096, 4096, 0, &extent) == 0);
        cr_expect(extent.kind == EXTENT_DATA && extent.length == 4096);
        cr_expect(extent.file_offset == MAKE_FIRST + 512 + 8192);
        /* Nobody may write to what we read. */
        cr_assert(file_open(host_fs(), path, FILE_WRITE, &other, NULL) == 0);
        cr_expect(file_lock_set(other, FILE_LOCK_WRITE, &err) == -EBUSY);
}
