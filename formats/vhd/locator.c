/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of the parent locators: where a child says that its parent lies. */
#include <inttypes.h>
#include <string.h>

#include "base/utf16.h"
#include "formats/vhd/metadata.h"

enum text_kind { TEXT_NONE, TEXT_UTF16_LITTLE, TEXT_UTF8, TEXT_ASCII };

static enum text_kind kind_of(const char *code)
{
        static const struct {
                const char *code;
                enum text_kind kind;
        } known[] = {
                {"W2ru", TEXT_UTF16_LITTLE}, /* relative */
                {"W2ku", TEXT_UTF16_LITTLE}, /* absolute */
                {"MacX", TEXT_UTF8},         /* file:// URL */
                {"Wi2r", TEXT_ASCII},        /* deprecated, in some code page: only ASCII is sure */
                {"Wi2k", TEXT_ASCII},
        };

        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
                if (strcmp(code, known[i].code) == 0)
                        return known[i].kind;
        return TEXT_NONE;
}

static ssize_t text_from_bytes(
        const char *bytes, size_t size, enum text_kind kind, char *text, size_t text_size)
{
        size_t unit = kind == TEXT_UTF16_LITTLE ? 2 : 1;

        /* Some count a terminator, some the rest of the slot. */
        while (size >= unit && bytes[size - 1] == '\0' && bytes[size - unit] == '\0')
                size -= unit;
        if (kind == TEXT_UTF16_LITTLE)
                return utf16_to_utf8(bytes, size, UTF16_LITTLE, text, text_size);
        if (!utf8_is_valid(bytes, size))
                return -EILSEQ;
        for (size_t i = 0; kind == TEXT_ASCII && i < size; i++)
                if ((unsigned char)bytes[i] >= 0x80)
                        return -EILSEQ;
        if (size >= text_size)
                return -ENOSPC;
        memcpy(text, bytes, size);
        text[size] = '\0';
        return (ssize_t)size;
}

int vhd_locator_read(struct file *file, const struct vhd_header *header, unsigned index, char *text,
        size_t text_size, struct error *err)
{
        const struct vhd_locator *locator = &header->locators[index];
        _cleanup_free_ char *bytes = NULL;
        enum text_kind kind = kind_of(locator->code);
        ssize_t n;
        int r;

        assert(index < VHD_N_LOCATORS);
        if (kind == TEXT_NONE || locator->data_length == 0)
                return fail(err, ENOENT, "parent locator %u holds no path", index);
        if (locator->data_length > VHD_MAX_LOCATOR_LENGTH)
                return fail(err, EUCLEAN,
                        "parent locator %u is %u bytes long, at most %u are accepted", index,
                        locator->data_length, VHD_MAX_LOCATOR_LENGTH);
        bytes = malloc(locator->data_length);
        if (!bytes)
                return fail(err, ENOMEM, "no memory for parent locator %u", index);
        r = file_read_exact(file, bytes, locator->data_length, locator->data_offset);
        if (r == -ENODATA || r == -EINVAL)
                return fail(err, EUCLEAN,
                        "parent locator %u lies at offset %" PRIu64 ", outside the file", index,
                        locator->data_offset);
        if (r < 0)
                return fail_os(err, -r, "cannot read parent locator %u at offset %" PRIu64, index,
                        locator->data_offset);

        n = text_from_bytes(bytes, locator->data_length, kind, text, text_size);
        if (n == -ENOSPC)
                return fail(err, EUCLEAN, "parent locator %u is longer than any path", index);
        if (n < 0 || memchr(text, '\0', (size_t)n))
                return fail(err, EUCLEAN, "parent locator %u (%s) at offset %" PRIu64 " is no text",
                        index, locator->code, locator->data_offset);
        return 0;
}
