/* SPDX-License-Identifier: Apache-2.0 */
/* Cylinders, heads and sectors as the spec's appendix computes them, and VHD time. */
#include "base/arith.h"
#include "formats/vhd/metadata.h"

struct vhd_geometry vhd_geometry_of(uint64_t size)
{
        const uint64_t most = UINT64_C(65535) * 16 * 255;
        uint64_t sectors = MIN_OF(size / SECTOR_SIZE, most);
        uint32_t per_track, heads;
        uint64_t cylinders_by_heads;

        if (sectors >= UINT64_C(65535) * 16 * 63) {
                per_track = 255;
                heads = 16;
                cylinders_by_heads = sectors / per_track;
        } else {
                per_track = 17;
                cylinders_by_heads = sectors / per_track;
                heads = MAX_OF((uint32_t)div_round_up(cylinders_by_heads, 1024), UINT32_C(4));
                if (cylinders_by_heads >= (uint64_t)heads * 1024 || heads > 16) {
                        per_track = 31;
                        heads = 16;
                        cylinders_by_heads = sectors / per_track;
                        if (cylinders_by_heads >= (uint64_t)heads * 1024) {
                                per_track = 63;
                                cylinders_by_heads = sectors / per_track;
                        }
                }
        }
        return (struct vhd_geometry){
                .cylinders = (uint32_t)(cylinders_by_heads / heads),
                .heads = heads,
                .sectors_per_track = per_track,
        };
}

uint32_t vhd_time_from_unix(int64_t seconds)
{
        if (seconds <= VHD_EPOCH)
                return 0;
        return (uint32_t)MIN_OF(seconds - VHD_EPOCH, (int64_t)UINT32_MAX);
}

int64_t vhd_time_to_unix(uint32_t timestamp)
{
        return VHD_EPOCH + (int64_t)timestamp;
}
