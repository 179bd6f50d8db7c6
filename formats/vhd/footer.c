/* SPDX-License-Identifier: Apache-2.0 */
/* The footer: 512 bytes at the end of every VHD, and a copy at the head of those with a BAT. */
#include <string.h>

#include "base/arith.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/metadata.h"

#define FOOTER_VERSION_MAJOR 1u

/* The ones' complement of the sum of all bytes but those of the checksum itself. */
static uint32_t checksum_of(const uint8_t *bytes, size_t size, size_t checksum_at)
{
        uint32_t sum = 0;

        for (size_t i = 0; i < size; i++)
                if (i < checksum_at || i >= checksum_at + sizeof(be32))
                        sum += bytes[i];
        return ~sum;
}

uint32_t vhd_footer_checksum(const struct vhd_raw_footer *raw)
{
        return checksum_of(
                (const uint8_t *)raw, sizeof(*raw), offsetof(struct vhd_raw_footer, checksum));
}

uint32_t vhd_header_checksum(const struct vhd_raw_header *raw)
{
        return checksum_of(
                (const uint8_t *)raw, sizeof(*raw), offsetof(struct vhd_raw_header, checksum));
}

const char *vhd_type_to_string(enum vhd_type type)
{
        switch (type) {
        case VHD_TYPE_NONE: return "none";
        case VHD_TYPE_FIXED: return "fixed";
        case VHD_TYPE_DYNAMIC: return "dynamic";
        case VHD_TYPE_DIFFERENCING: return "differencing";
        }
        return "unknown";
}

/* The stored sum fits the bytes, or fits them with tapdisk's hidden flag taken as unset: its first
 * versions set the flag and forgot the sum. */
static int check_checksum(
        const struct vhd_raw_footer *raw, unsigned flags, uint32_t *problems, struct error *err)
{
        uint32_t stored = be32_get(raw->checksum);
        uint32_t computed = vhd_footer_checksum(raw);
        int r;

        if (stored == computed)
                return 0;
        if (raw->hidden != 0 && stored == computed + raw->hidden) {
                *problems |= VHD_PROBLEM_HIDDEN_CHECKSUM;
                return 0;
        }
        if (flags & VHD_READ_FORCE) {
                *problems |= VHD_PROBLEM_FOOTER_CHECKSUM;
                return 0;
        }
        r = fail(err, EUCLEAN, "footer checksum is %08x, its bytes give %08x", stored, computed);
        error_set_hyperv(err, HYPERV_FOOTER_CHECKSUM);
        return r;
}

static int check_fields(const struct vhd_footer *footer, struct error *err)
{
        int r;

        if (footer->format_version >> 16 != FOOTER_VERSION_MAJOR) {
                r = fail(err, ENOTSUP, "footer has format version %u.%u, only 1.x is known",
                        footer->format_version >> 16, footer->format_version & 0xffff);
                error_set_hyperv(err, HYPERV_FORMAT_VERSION);
                return r;
        }
        switch (footer->type) {
        case VHD_TYPE_FIXED:
        case VHD_TYPE_DYNAMIC:
        case VHD_TYPE_DIFFERENCING: break;
        default:
                r = fail(err, ENOTSUP,
                        "footer has disk type %u, only 2 (fixed), 3 (dynamic) and 4 "
                        "(differencing) are in use",
                        (unsigned)footer->type);
                error_set_hyperv(err, HYPERV_FOOTER_CORRUPT);
                return r;
        }
        if (footer->current_size == 0 || footer->current_size % SECTOR_SIZE != 0 ||
                footer->current_size > (uint64_t)INT64_MAX) {
                r = fail(err, EUCLEAN,
                        "footer gives the disk a size of %llu bytes, which is no number of whole "
                        "sectors",
                        (unsigned long long)footer->current_size);
                error_set_hyperv(err, HYPERV_INVALID_SIZE);
                return r;
        }
        return 0;
}

static int check_cookie(const struct vhd_raw_footer *raw, struct error *err)
{
        int r;

        if (memcmp(raw->cookie, VHD_POISON_COOKIE, sizeof(raw->cookie)) == 0) {
                r = fail(err, EUCLEAN,
                        "footer is marked 'v_poison': a resize by XenServer's vhd-util was cut "
                        "off, or is still running");
                error_set_hint(err,
                        "vhd-util revert -n FILE -j JOURNAL, with the journal of that "
                        "resize");
                error_set_hyperv(err, HYPERV_FOOTER_CORRUPT);
                return r;
        }
        if (memcmp(raw->cookie, VHD_COOKIE, sizeof(raw->cookie)) != 0) {
                r = fail(err, ENOMEDIUM, "there is no VHD footer");
                error_set_hyperv(err, HYPERV_FOOTER_MISSING);
                return r;
        }
        return 0;
}

int vhd_footer_decode(const struct vhd_raw_footer *raw, unsigned flags, struct vhd_footer *ret,
        uint32_t *problems, struct error *err)
{
        struct vhd_footer footer = {.raw = *raw};
        uint32_t found = 0;
        int r;

        r = check_cookie(raw, err);
        if (r < 0)
                return r;
        r = check_checksum(raw, flags, &found, err);
        if (r < 0)
                return r;

        footer.features = be32_get(raw->features);
        footer.format_version = be32_get(raw->format_version);
        footer.data_offset = be64_get(raw->data_offset);
        footer.timestamp = be32_get(raw->timestamp);
        memcpy(footer.creator_app, raw->creator_app, sizeof(raw->creator_app));
        footer.creator_version = be32_get(raw->creator_version);
        memcpy(footer.creator_os, raw->creator_os, sizeof(raw->creator_os));
        footer.original_size = be64_get(raw->original_size);
        footer.current_size = be64_get(raw->current_size);
        footer.cylinders = be16_get(raw->cylinders);
        footer.heads = raw->heads;
        footer.sectors_per_track = raw->sectors_per_track;
        footer.type = (enum vhd_type)be32_get(raw->type);
        footer.checksum = be32_get(raw->checksum);
        memcpy(footer.unique_id, raw->unique_id, sizeof(raw->unique_id));
        footer.saved_state = raw->saved_state != 0;
        footer.hidden = raw->hidden != 0;
        footer.merging = raw->hidden == VHD_HIDDEN_MERGE;
        r = check_fields(&footer, err);
        if (r < 0)
                return r;

        if (footer.saved_state)
                found |= VHD_PROBLEM_SAVED_STATE;
        *problems |= found;
        *ret = footer;
        return 0;
}

void vhd_footer_encode(const struct vhd_footer *footer, struct vhd_raw_footer *ret)
{
        struct vhd_raw_footer raw = footer->raw;

        memcpy(raw.cookie, VHD_COOKIE, sizeof(raw.cookie));
        raw.features = be32_make(footer->features);
        raw.format_version = be32_make(footer->format_version);
        raw.data_offset = be64_make(footer->data_offset);
        raw.timestamp = be32_make(footer->timestamp);
        memcpy(raw.creator_app, footer->creator_app, sizeof(raw.creator_app));
        raw.creator_version = be32_make(footer->creator_version);
        memcpy(raw.creator_os, footer->creator_os, sizeof(raw.creator_os));
        raw.original_size = be64_make(footer->original_size);
        raw.current_size = be64_make(footer->current_size);
        raw.cylinders = be16_make((uint16_t)footer->cylinders);
        raw.heads = (uint8_t)footer->heads;
        raw.sectors_per_track = (uint8_t)footer->sectors_per_track;
        raw.type = be32_make((uint32_t)footer->type);
        memcpy(raw.unique_id, footer->unique_id, sizeof(raw.unique_id));
        /* Flags that are set may hold another value than one; it stays as it came. */
        if (footer->saved_state != (raw.saved_state != 0))
                raw.saved_state = footer->saved_state;
        if (footer->hidden != (raw.hidden != 0) ||
                footer->merging != (raw.hidden == VHD_HIDDEN_MERGE))
                raw.hidden = footer->merging ? VHD_HIDDEN_MERGE : footer->hidden;
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        *ret = raw;
}
