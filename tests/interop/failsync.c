/* SPDX-License-Identifier: Apache-2.0 */
/* failsync - preloaded: once the file $FAILSYNC is there, the next fdatasync fails with EIO and removes
 * it. So it fails once and then "succeeds", as Linux' own does after a lost writeback. */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd)
{
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
        const char *path = getenv("FAILSYNC");

        if (path && unlink(path) == 0) {
                errno = EIO;
                return -1;
        }
        return real(fd);
}
