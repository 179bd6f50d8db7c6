/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong between the process that greets and the one that serves: fields that do not fit
 * together, names without an end, an older or newer neighbour, and text that is no handoff at all. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "nbd/proto/nbd.h"
#include "nbd/server/handoff.h"

static const struct nbd_handoff good = {
        .version = NBD_HANDOFF_VERSION,
        .option = NBD_OPT_GO,
        .client_flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES,
        .structured = 1,
        .contexts = 5,
        .infos = 1u << NBD_INFO_NAME,
        .n_changed = 2,
        .changed = {"before the update", "z\xc3\xbcrich"},
        .export_name = "web/system",
        .peer = "unix:uid=0,pid=7",
};

Test(nbd_handoff, travels_as_text)
{
        char text[NBD_HANDOFF_TEXT_SIZE];
        struct nbd_handoff back;
        struct error err = ERROR_INIT;

        nbd_handoff_to_text(&good, text);
        cr_expect(eq(sz, strlen(text), sizeof(text) - 1));
        cr_assert(eq(int, nbd_handoff_from_text(text, &back, &err), 0), "%s", err.message);
        cr_expect(memcmp(&back, &good, sizeof(good)) == 0);
}

Test(nbd_handoff, refuses_text_that_is_none)
{
        char text[NBD_HANDOFF_TEXT_SIZE];
        struct nbd_handoff back = {.version = 77};
        struct error err = ERROR_INIT;

        cr_expect(eq(int, nbd_handoff_from_text("", &back, &err), -EINVAL));
        nbd_handoff_to_text(&good, text);
        text[100] = 'g';
        cr_expect(eq(int, nbd_handoff_from_text(text, &back, &err), -EINVAL));
        nbd_handoff_to_text(&good, text);
        text[sizeof(text) - 2] = '\0';
        cr_expect(eq(int, nbd_handoff_from_text(text, &back, &err), -EINVAL));
        cr_expect(eq(u32, back.version, 77));
}

#define REFUSED(change)                                                                            \
        do {                                                                                       \
                struct nbd_handoff h = good;                                                       \
                char text_[NBD_HANDOFF_TEXT_SIZE];                                                 \
                struct nbd_handoff back_;                                                          \
                struct error err_ = ERROR_INIT;                                                    \
                                                                                                   \
                change;                                                                            \
                cr_expect(eq(int, nbd_handoff_check(&h, &err_), -EINVAL), "%s", #change);          \
                cr_expect(err_.message[0] != '\0', "%s", #change);                                 \
                nbd_handoff_to_text(&h, text_);                                                    \
                cr_expect(eq(int, nbd_handoff_from_text(text_, &back_, &err_), -EINVAL));          \
        } while (0)

Test(nbd_handoff, refuses_every_field_that_no_greeter_sends)
{
        struct error err = ERROR_INIT;

        cr_assert(eq(int, nbd_handoff_check(&good, &err), 0), "%s", err.message);
        REFUSED(h.version++);
        REFUSED(h.option = NBD_OPT_LIST);
        REFUSED(h.client_flags |= 4);
        REFUSED(h.client_flags = NBD_FLAG_NO_ZEROES);
        REFUSED(h.structured = 2);
        REFUSED(h.structured = 0);
        REFUSED(h.contexts = 8);
        REFUSED(h.infos = 1u << NBD_INFO_EXPORT);
        REFUSED(h.infos = 1u << 31);
        REFUSED(h.option = NBD_OPT_EXPORT_NAME);
        REFUSED(h.n_changed = NBD_CHANGED_MAX + 1);
        REFUSED(h.n_changed = 3);
        REFUSED(memcpy(h.changed[1], h.changed[0], sizeof(h.changed[0])));
        REFUSED(memset(h.changed[0], 'a', sizeof(h.changed[0])));
        REFUSED(memset(h.changed[0], 'a', NBD_CHANGED_NAME_MAX + 1));
        REFUSED(memset(h.export_name, 'a', sizeof(h.export_name)));
        REFUSED(memset(h.peer, 'a', sizeof(h.peer)));
        REFUSED(h.export_name[0] = 0xff);
        REFUSED(h.export_name[0] = '\n');
        REFUSED(h.changed[1][0] = 0x1b);
        REFUSED(h.peer[0] = 0x7f);
}

/* An old client: EXPORT_NAME is the only word it knows. */
Test(nbd_handoff, takes_a_client_of_the_oldest_kind)
{
        struct nbd_handoff h = {
                .version = NBD_HANDOFF_VERSION,
                .option = NBD_OPT_EXPORT_NAME,
                .export_name = "web/system",
        };
        struct error err = ERROR_INIT;

        cr_expect(eq(int, nbd_handoff_check(&h, &err), 0), "%s", err.message);
}
