/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>

#include "base/arith.h"
#include "formats/vhd/metadata.h"

/* Old systems, and QEMU for some creators, size the disk by this: it must be the spec's numbers. */
Test(vhd_geometry, gives_the_numbers_of_the_specification)
{
        static const struct {
                uint64_t size;
                uint32_t c, h, s;
        } vectors[] = {
                {2 * MIB, 60, 4, 17},
                {3 * MIB, 90, 4, 17},
                {64 * MIB, 963, 8, 17},
                {100 * MIB, 1003, 12, 17},
                {136 * MIB, 561, 16, 31},
                {248 * MIB, 503, 16, 63},
                {504 * MIB, 1024, 16, 63},
                {1 * GIB, 2080, 16, 63},
                {10 * GIB, 20805, 16, 63},
                {UINT64_C(66059279) * 512, 65534, 16, 63},
                {UINT64_C(66059280) * 512, 16191, 16, 255},
                {40 * GIB, 20560, 16, 255},
                {127 * GIB, 65278, 16, 255},
                {128 * GIB, 65535, 16, 255},
                {2040 * GIB, 65535, 16, 255},
        };

        for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
                struct vhd_geometry g = vhd_geometry_of(vectors[i].size);

                cr_expect(g.cylinders == vectors[i].c && g.heads == vectors[i].h &&
                                g.sectors_per_track == vectors[i].s,
                        "%llu bytes: %u/%u/%u", (unsigned long long)vectors[i].size, g.cylinders,
                        g.heads, g.sectors_per_track);
        }
}

/* A geometry that promises more than the disk has makes readers run past its end. */
Test(vhd_geometry, never_promises_more_than_the_size)
{
        for (uint64_t size = 512; size < 3000 * GIB; size += size / 7 / 512 * 512 + 512) {
                struct vhd_geometry g = vhd_geometry_of(size);
                uint64_t product = (uint64_t)g.cylinders * g.heads * g.sectors_per_track * 512;

                cr_assert(product <= size, "%llu bytes", (unsigned long long)size);
                cr_assert(g.cylinders <= 65535);
                cr_assert(g.heads <= 16);
                cr_assert(g.sectors_per_track <= 255);
        }
}

Test(vhd_time, counts_from_2000_and_stays_in_its_range)
{
        cr_expect(vhd_time_from_unix(946684800) == 0);
        cr_expect(vhd_time_from_unix(946684801) == 1);
        cr_expect(vhd_time_from_unix(0) == 0);
        cr_expect(vhd_time_from_unix(-5) == 0);
        cr_expect(vhd_time_from_unix(INT64_MAX) == UINT32_MAX);
        cr_expect(vhd_time_to_unix(0) == 946684800);
        cr_expect(vhd_time_to_unix(UINT32_MAX) == INT64_C(946684800) + UINT32_MAX);
}
