/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/memory_image.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"

struct raw_head {
        char magic[8];
        be32 length;
};
static_assert(sizeof(struct raw_head) == 12, "the head is 12 bytes");

static const char magic[8] = {'V', 'H', 'D', 'D', 'M', 'E', 'M', '1'};

static int write_all(int fd, const void *data, size_t length, struct error *err)
{
        const char *from = data;

        while (length > 0) {
                ssize_t n = write(fd, from, length);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return fail_os(err, errno, "cannot write the saved memory's head");
                from += n;
                length -= (size_t)n;
        }
        return 0;
}

static int read_all(int fd, void *data, size_t length, struct error *err)
{
        char *to = data;

        while (length > 0) {
                ssize_t n = read(fd, to, length);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return fail_os(err, errno, "cannot read the saved memory's head");
                if (n == 0)
                        return fail(err, EUCLEAN, "the saved memory ends in its head");
                to += n;
                length -= (size_t)n;
        }
        return 0;
}

int memory_image_write(int fd, const json_t *config, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(config, JSON_COMPACT);
        struct raw_head head;
        size_t length = text ? strlen(text) : 0;
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory for the saved memory's head");
        if (length > MEMORY_IMAGE_CONFIG_MAX)
                return fail(err, EMSGSIZE, "the vm has too many devices to save its memory");
        memcpy(head.magic, magic, sizeof(magic));
        head.length = be32_make((uint32_t)length);
        r = write_all(fd, &head, sizeof(head), err);
        return r < 0 ? r : write_all(fd, text, length, err);
}

int memory_image_read(int fd, json_t **ret_config, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        struct raw_head head;
        json_t *config;
        uint32_t length;
        int r = read_all(fd, &head, sizeof(head), err);

        if (r < 0)
                return r;
        length = be32_get(head.length);
        if (memcmp(head.magic, magic, sizeof(magic)) != 0)
                return fail(err, EUCLEAN, "this is no memory that was saved by vmm-host");
        if (length == 0 || length > MEMORY_IMAGE_CONFIG_MAX)
                return fail(err, EUCLEAN, "the saved memory's head claims %u bytes", length);
        text = malloc(length);
        if (!text)
                return fail(err, ENOMEM, "no memory for the saved memory's head");
        r = read_all(fd, text, length, err);
        if (r < 0)
                return r;
        config = json_loadb(text, length, 0, NULL);
        if (!json_is_object(config)) {
                json_decref(config);
                return fail(err, EUCLEAN, "the saved memory's head is damaged");
        }
        *ret_config = config;
        return 0;
}
