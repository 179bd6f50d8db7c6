/* SPDX-License-Identifier: Apache-2.0 */
/* The one table from our errors to the protocol's. What is not in it is EIO: something failed that
 * the client can do nothing about. */
#include <errno.h>

#include "nbd/server/private.h"

static const struct {
        int code;
        enum nbd_error error;
} table[] = {
        {0, NBD_SUCCESS},
        {EPERM, NBD_EPERM},
        {EACCES, NBD_EPERM},
        {EROFS, NBD_EPERM},
        {EIO, NBD_EIO},
        {EUCLEAN, NBD_EIO},
        {ENOMEM, NBD_ENOMEM},
        {EINVAL, NBD_EINVAL},
        {ENOSPC, NBD_ENOSPC},
        {EDQUOT, NBD_ENOSPC},
        {EFBIG, NBD_ENOSPC},
        {EOVERFLOW, NBD_EOVERFLOW},
        {EOPNOTSUPP, NBD_ENOTSUP},
        {ESHUTDOWN, NBD_ESHUTDOWN},
};

enum nbd_error nbd_error_from(int r)
{
        for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
                if (table[i].code == -r)
                        return table[i].error;
        return NBD_EIO;
}

const char *nbd_error_sentence(enum nbd_error error)
{
        switch (error) {
        case NBD_SUCCESS: return "success";
        case NBD_EPERM: return "the export is read-only";
        case NBD_EIO: return "the disk failed";
        case NBD_ENOMEM: return "the server has no memory left";
        case NBD_EINVAL: return "the request makes no sense here";
        case NBD_ENOSPC: return "no space is left, or the request ends beyond the disk";
        case NBD_EOVERFLOW: return "the reply would be too long";
        case NBD_ENOTSUP: return "not possible, or not quickly";
        case NBD_ESHUTDOWN: return "the server ends";
        }
        return "the disk failed";
}
