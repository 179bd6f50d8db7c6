/* SPDX-License-Identifier: Apache-2.0 */
/* Which format a file is in, and opening it. The order is that of docs/formats.md. */
#include "formats/format.h"

#include <string.h>
#include <strings.h>

#include "base/grace.h"
#include "base/quote.h"
#include "formats/intent.h"
#include "formats/vhd/metadata.h"

#define HEAD_SIZE 512u

/* What others' files begin with. */
static const struct magic {
        const char *what;   /* for people */
        const char *driver; /* QEMU's name for it, or NULL: no disk */
        size_t offset, length;
        const char *bytes;
} magics[] = {
        {"VHDX", "vhdx", 0, 8, "vhdxfile"},
        {"qcow2", "qcow2", 0, 4, "QFI\xfb"},
        {"VMDK", "vmdk", 0, 4, "KDMV"},
        {"VMDK", "vmdk", 0, 4, "COWD"},
        {"VMDK", "vmdk", 0, 21, "# Disk DescriptorFile"},
        {"VDI", "vdi", 64, 4, "\x7f\x10\xda\xbe"},
        {"a binary configuration (.vmcx) of Hyper-V 2016 and later", NULL, 0, 4,
                "\x14\x20\x28\x01"},
        {"an XML file, as Hyper-V's configurations are", NULL, 0, 12, "\xff\xfe<\0?\0x\0m\0l\0"},
        {"an XML file, as Hyper-V's configurations are", NULL, 0, 8, "\xef\xbb\xbf<?xml"},
        {"an XML file, as Hyper-V's configurations are", NULL, 0, 5, "<?xml"},
};

static const struct format *const formats[] = {&vhd_format, &raw_format};

static bool has_ending(const char *path, const char *const *endings, size_t n)
{
        size_t length = strlen(path);

        for (size_t i = 0; i < n; i++) {
                size_t end = strlen(endings[i]);

                if (length > end && strcasecmp(path + length - end, endings[i]) == 0)
                        return true;
        }
        return false;
}

static bool is_named_vhd(const char *path)
{
        static const char *const endings[] = {".vhd", ".avhd", ".vud"};

        return has_ending(path, endings, sizeof(endings) / sizeof(endings[0]));
}

static bool is_named_raw(const char *path)
{
        static const char *const endings[] = {".raw", ".img", ".dd", ".iso", ".bin"};

        return has_ending(path, endings, sizeof(endings) / sizeof(endings[0]));
}

static const struct magic *magic_of(struct file *file)
{
        char head[HEAD_SIZE] = {0};
        ssize_t n = file_read(file, head, sizeof(head), 0, 0);

        for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++)
                if (n >= (ssize_t)(magics[i].offset + magics[i].length) &&
                        memcmp(head + magics[i].offset, magics[i].bytes, magics[i].length) == 0)
                        return &magics[i];
        return NULL;
}

static int refuse_magic(struct file *file, const struct magic *magic, struct error *err)
{
        char quoted[QUOTE_TEXT_MAX];

        if (!magic->driver)
                return fail(err, ENOTSUP, "'%s' is no disk: it is %s", file->path, magic->what);
        fail(err, ENOTSUP, "'%s' is a %s image, which is not read directly", file->path,
                magic->what);
        error_set_hint(err,
                "qemu-nbd --fork --read-only --format=%s --socket=\"$PWD/import.sock\" %s  serves "
                "it; then  vhdctl convert \"nbd+unix:///?socket=$PWD/import.sock\" DISK.vhd",
                magic->driver, shell_quote(file->path, quoted, sizeof(quoted)));
        return -ENOTSUP;
}

/* A device's every byte is its guest's, the last ones too. A footer there makes a VHD only where
 * the guest gains nothing by having written it: its own bytes, read-only. */
static int find_on_device(struct file *file, unsigned flags, const struct vhd_footer_copy *tail,
        const struct format **ret, struct error *err)
{
        if (tail->result < 0) {
                *ret = &raw_format;
                return 0;
        }
        if (tail->footer.type == VHD_TYPE_DIFFERENCING || (flags & IMAGE_WRITABLE)) {
                fail(err, EINVAL,
                        "block device '%s' ends in a VHD footer, which its guest may have written",
                        file->path);
                error_set_hint(err,
                        "say --format raw if it is a disk that is passed through, "
                        "--format vhd if it holds an image");
                return -EINVAL;
        }
        *ret = &vhd_format;
        return 0;
}

static int find_by_name(
        struct file *file, const char *name, const struct format **ret, struct error *err)
{
        for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
                if (strcmp(formats[i]->name, name) == 0) {
                        *ret = formats[i];
                        return 0;
                }
        return fail(err, EINVAL, "'%s' is no format; 'vhd' and 'raw' are", name);
}

static int find_by_looking(
        struct file *file, unsigned flags, const struct format **ret, struct error *err)
{
        struct vhd_footer_copy head, tail;
        const struct magic *magic;
        struct file_stat st;
        int r;

        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        r = vhd_footers_read(file, &head, &tail, err);
        if (r < 0)
                return r;
        if (st.is_block)
                return find_on_device(file, flags, &tail, ret, err);
        if (tail.has_cookie || tail.has_tapdisk_mark) {
                *ret = &vhd_format; /* valid, or damaged: then opening it says how */
                return 0;
        }
        magic = magic_of(file);
        if (magic)
                return refuse_magic(file, magic, err);
        if (is_named_vhd(file->path)) {
                *ret = &vhd_format; /* opening it says what is missing */
                return 0;
        }
        if (head.has_cookie) {
                fail(err, EINVAL,
                        "'%s' begins like a VHD, and has no VHD footer at its end; a guest can "
                        "write such a head into its disk",
                        file->path);
                error_set_hint(err,
                        "say --format raw if it is a raw disk; if it is a damaged VHD, "
                        "vhdctl check FILE tells what can be done");
                return -EINVAL;
        }
        if (!is_named_raw(file->path)) {
                fail(err, EINVAL, "cannot tell what '%s' is: it has no VHD footer", file->path);
                error_set_hint(err, "say --format raw if it is a raw disk");
                return -EINVAL;
        }
        *ret = &raw_format;
        return 0;
}

static int find_format(struct file *file, const char *name, unsigned flags,
        const struct format **ret, struct error *err)
{
        int r = name ? find_by_name(file, name, ret, err) : find_by_looking(file, flags, ret, err);

        if (r < 0)
                error_set_file(err, file->path);
        return r;
}

int format_find(struct file *file, const char *name, const struct format **ret, struct error *err)
{
        return find_format(file, name, 0, ret, err);
}

static enum file_lock lock_for(unsigned flags)
{
        if (flags & IMAGE_WRITABLE)
                return FILE_LOCK_WRITE;
        return flags & IMAGE_LOOSE_LOCK ? FILE_LOCK_READ_LOOSE : FILE_LOCK_READ;
}

int image_open(
        struct file *file, const char *name, unsigned flags, struct image **ret, struct error *err)
{
        const struct format *format;
        struct file *view = NULL;
        int r;

        if (!(flags & IMAGE_NO_LOCK)) {
                r = file_lock_set(file, lock_for(flags), err);
                if (r < 0) {
                        error_set_file(err, file->path);
                        return r;
                }
        }
        /* E13: a change that was cut off is completed before anything is read. */
        r = intent_recover(file, flags & IMAGE_WRITABLE, NULL, &view, err);
        if (r == 0)
                r = find_format(view ? view : file, name, flags, &format, err);
        if (r == 0)
                r = format->open(view ? view : file, flags, ret, err);
        if (r == 0)
                return 0;
        intent_view_dismiss(view);
        error_set_file(err, file->path);
        if (r == -ENOMEDIUM)
                error_set_hint(err, "say --format raw if it is a raw disk");
        if (!(flags & IMAGE_NO_LOCK))
                file_lock_set(file, FILE_LOCK_NONE, NULL);
        return r;
}

void image_lend_places(struct image *image, struct grace *places)
{
        if (!image->places)
                return;
        grace_free(image->places);
        image->places = places;
        image->places_are_lent = true;
}

void image_leave_places(struct image *image)
{
        while (image->places && image->places_are_lent && image->format->n_waiting_places &&
                image->format->n_waiting_places(image) > 0)
                grace_wait(image->places);
}

int image_settle(struct image *image, struct error *err)
{
        int r = image->format->settle(image, err);

        if (r == 0)
                r = file_lock_set(image->file, FILE_LOCK_READ, err);
        if (r < 0)
                error_set_file(err, image->file->path);
        return r;
}

int image_close(struct image *image, struct error *err)
{
        /* What could not be removed when it had served: whoever hands out names may be back. */
        if (image->writable)
                intent_tidy(image->file);
        return image->format->close(image, true, err);
}

struct image *image_abandon(struct image *image)
{
        if (image)
                image->format->close(image, false, NULL);
        return NULL;
}
