/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/server/handoff.h"

#include <string.h>

#include "base/utf16.h"
#include "nbd/server/private.h"

static bool is_terminated(const uint8_t *text, size_t size)
{
        return memchr(text, '\0', size) != NULL;
}

/* What people see must not move their cursor. */
static bool is_plain(const char *text)
{
        for (const uint8_t *p = (const uint8_t *)text; *p; p++)
                if (*p < 0x20 || *p == 0x7f)
                        return false;
        return utf8_is_valid(text, strlen(text));
}

static int check_texts(const struct nbd_handoff *h, struct error *err)
{
        if (!is_terminated(h->export_name, sizeof(h->export_name)) ||
                !is_plain((const char *)h->export_name))
                return fail(err, EINVAL, "the name of the export in a handoff is no text");
        if (!is_terminated(h->peer, sizeof(h->peer)) || !is_plain((const char *)h->peer))
                return fail(err, EINVAL, "the name of the client in a handoff is no text");
        for (uint32_t i = 0; i < h->n_changed; i++) {
                const char *name = (const char *)h->changed[i];

                if (!is_terminated(h->changed[i], NBD_CHANGED_NAME_MAX + 1) || name[0] == '\0' ||
                        !is_plain(name))
                        return fail(err, EINVAL,
                                "the name of snapshot %u in a handoff is no text of 1 to %u bytes",
                                i, NBD_CHANGED_NAME_MAX);
                for (uint32_t j = 0; j < i; j++)
                        if (strcmp(name, (const char *)h->changed[j]) == 0)
                                return fail(err, EINVAL, "a handoff names the snapshot '%s' twice",
                                        name);
        }
        return 0;
}

int nbd_handoff_check(const struct nbd_handoff *h, struct error *err)
{
        if (h->version != NBD_HANDOFF_VERSION)
                return fail(err, EINVAL, "a handoff of version %u, we know version %u", h->version,
                        NBD_HANDOFF_VERSION);
        if (h->option != NBD_OPT_GO && h->option != NBD_OPT_EXPORT_NAME)
                return fail(
                        err, EINVAL, "a handoff at option %u, which chooses no export", h->option);
        if (h->client_flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
                return fail(err, EINVAL, "client flags %08x in a handoff", h->client_flags);
        if (!(h->client_flags & NBD_FLAG_FIXED_NEWSTYLE) &&
                (h->option != NBD_OPT_EXPORT_NAME || h->structured))
                return fail(err, EINVAL,
                        "a handoff of a client without fixed newstyle at option %u", h->option);
        if (h->structured > 1 || h->contexts >> N_CONTEXTS || h->n_changed > NBD_CHANGED_MAX)
                return fail(err, EINVAL,
                        "a handoff with structured %u, contexts %x and %u snapshots", h->structured,
                        h->contexts, h->n_changed);
        if (!h->structured && (h->contexts || h->n_changed))
                return fail(
                        err, EINVAL, "a handoff with meta contexts and without structured replies");
        if (h->infos & ~(uint32_t)INFO_BITS || (h->option != NBD_OPT_GO && h->infos))
                return fail(err, EINVAL, "a handoff that asks for information %x at option %u",
                        h->infos, h->option);
        return check_texts(h, err);
}

void nbd_handoff_to_text(const struct nbd_handoff *handoff, char ret[NBD_HANDOFF_TEXT_SIZE])
{
        static const char digits[] = "0123456789abcdef";
        const uint8_t *bytes = (const uint8_t *)handoff;

        for (size_t i = 0; i < sizeof(*handoff); i++) {
                ret[2 * i] = digits[bytes[i] >> 4];
                ret[2 * i + 1] = digits[bytes[i] & 15];
        }
        ret[NBD_HANDOFF_TEXT_SIZE - 1] = '\0';
}

static int digit(char c)
{
        if (c >= '0' && c <= '9')
                return c - '0';
        return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int nbd_handoff_from_text(const char *text, struct nbd_handoff *ret, struct error *err)
{
        struct nbd_handoff handoff;
        uint8_t *bytes = (uint8_t *)&handoff;
        int r;

        if (strlen(text) != NBD_HANDOFF_TEXT_SIZE - 1)
                return fail(err, EINVAL, "a handoff of %zu digits, we know %zu", strlen(text),
                        NBD_HANDOFF_TEXT_SIZE - 1);
        for (size_t i = 0; i < sizeof(handoff); i++) {
                int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);

                if (high < 0 || low < 0)
                        return fail(err, EINVAL, "a handoff with something that is no digit");
                bytes[i] = (uint8_t)(high << 4 | low);
        }
        r = nbd_handoff_check(&handoff, err);
        if (r == 0)
                *ret = handoff;
        return r;
}
