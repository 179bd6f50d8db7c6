/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LOOP_TRIES 20

static int configure(int loop, int file, const struct loop_part *part)
{
        struct loop_config config = {
                .fd = (uint32_t)file,
                .block_size = 512,
                .info = {.lo_offset = part->offset,
                        .lo_sizelimit = part->size,
                        .lo_flags = LO_FLAGS_AUTOCLEAR |
                                (part->read_only ? (uint32_t)LO_FLAGS_READ_ONLY : 0u)},
        };

        snprintf((char *)config.info.lo_file_name, sizeof(config.info.lo_file_name), "%.63s",
                part->path);
        return ioctl(loop, LOOP_CONFIGURE, &config) < 0 ? -errno : 0;
}

int loop_attach(const struct loop_part *part, char ret_name[LOOP_NAME_SIZE])
{
        int mode = (part->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC, r = -EBUSY;
        _cleanup_fd_ int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), file = -1;

        if (control < 0)
                return -errno;
        file = open(part->path, mode);
        if (file < 0)
                return -errno;
        /* Another may take the free one before we do. */
        for (int i = 0; i < LOOP_TRIES && r == -EBUSY; i++) {
                int number = ioctl(control, LOOP_CTL_GET_FREE), loop;

                if (number < 0)
                        return -errno;
                snprintf(ret_name, LOOP_NAME_SIZE, "/dev/loop%d", number);
                loop = open(ret_name, mode);
                if (loop < 0)
                        return -errno;
                r = configure(loop, file, part);
                if (r == 0)
                        return loop;
                close(loop);
        }
        return r;
}
