/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>

#include "base/cleanup.h"

#define TUN_PATH   "/dev/net/tun"
#define VHOST_PATH "/dev/vhost-net"
#define MAX_TRIES  16u

static void close_all(int *fds, size_t n)
{
        for (size_t i = 0; i < n; i++)
                close(fds[i]);
}

/* A random name: one that was used a moment ago may still stand in the database, with another's VLAN. */
static int make_name(char ret[IF_NAMESIZE], struct error *err)
{
        uint32_t number;

        if (getrandom(&number, sizeof(number), 0) != sizeof(number))
                return fail_os(err, errno, "cannot get random bytes");
        snprintf(ret, IF_NAMESIZE, "vhdd%08x", number);
        return 0;
}

static int open_queue(struct ifreq *request, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = open(TUN_PATH, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        int code;

        if (fd < 0) {
                code = errno;
                fail_os(err, code, "cannot open '" TUN_PATH "', which network cards of vms need");
                if (code == ENOENT || code == ENODEV || code == ENXIO)
                        error_set_hint(err, "modprobe tun");
                return -code;
        }
        if (ioctl(fd, TUNSETIFF, request) < 0)
                return fail_os(err, errno, "cannot make the tap device '%s'", request->ifr_name);
        *ret = TAKE_FD(fd);
        return 0;
}

static int open_first(struct ifreq *request, short flags, int *ret, struct error *err)
{
        int r = 0;

        for (unsigned i = 0; i < MAX_TRIES; i++) {
                r = make_name(request->ifr_name, err);
                if (r < 0)
                        return r;
                /* EXCL: a device that is there already is somebody's. */
                request->ifr_flags = (short)(flags | IFF_TUN_EXCL);
                r = open_queue(request, ret, err);
                if (r != -EBUSY && r != -EEXIST)
                        break;
        }
        return r;
}

int tap_open(size_t n_queues, bool with_header, char ret_device[IF_NAMESIZE], int *ret,
        struct error *err)
{
        /* QEMU opens one queue only of a device that has but one. */
        short flags = (short)(IFF_TAP | IFF_NO_PI | (n_queues > 1 ? IFF_MULTI_QUEUE : 0) |
                (with_header ? IFF_VNET_HDR : 0));
        int fds[TAP_MAX_QUEUES];
        struct ifreq request = {0};
        size_t n = 0;
        int r;

        if (n_queues == 0 || n_queues > TAP_MAX_QUEUES)
                return fail(err, EINVAL, "a network card has 1 to %u queues, not %zu",
                        TAP_MAX_QUEUES, n_queues);
        r = open_first(&request, flags, &fds[n], err);
        for (n = r == 0; r == 0 && n < n_queues; n += r == 0) {
                request.ifr_flags = flags;
                r = open_queue(&request, &fds[n], err);
        }
        if (r < 0) {
                close_all(fds, n);
                return r;
        }
        memcpy(ret, fds, n_queues * sizeof(*fds));
        memcpy(ret_device, request.ifr_name, IF_NAMESIZE);
        return 0;
}

int vhost_open(size_t n, int *ret, size_t *ret_n, struct error *err)
{
        for (size_t i = 0; i < n; i++) {
                int code;

                ret[i] = open(VHOST_PATH, O_RDWR | O_CLOEXEC);
                if (ret[i] >= 0)
                        continue;
                code = errno;
                close_all(ret, i);
                *ret_n = 0;
                if (code == ENOENT || code == ENODEV || code == ENXIO)
                        return 0;
                return fail_os(err, code, "cannot open '" VHOST_PATH "'");
        }
        *ret_n = n;
        return 0;
}
