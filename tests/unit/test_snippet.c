/* SPDX-License-Identifier: Apache-2.0 */
/* People paste these lines. A name with a quote in it must not end an argument or an attribute early. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "vhdd/daemon/snippet.h"

static struct snippet scsi = {
        .export = "web's/disk & <1>",
        .uri = "nbd+unix:///web%27s/disk%20%26%20%3C1%3E?socket=/run/nbd.sock",
        .socket = "/run/nbd.sock",
        .id = "5fa21a55-f394-aa4d-9958-1951a67d5540",
        .place = {CONTROLLER_SCSI, 1, 7},
};

static void expect_part(struct snippet snippet, const char *kind, const char *part)
{
        char *text;

        snippet.kind = kind;
        text = snippet_text(&snippet);
        cr_assert(text != NULL);
        cr_expect(strstr(text, part) != NULL, "no '%s' in:\n%s", part, text);
        free(text);
}

Test(snippet_text, puts_a_disk_at_its_place_in_qemu)
{
        struct snippet ide = scsi;

        expect_part(scsi, "qemu", "bus=scsi1.0,scsi-id=7,lun=0,serial=5fa21a55f394aa4d9958");
        expect_part(scsi, "qemu", "\"reconnect-delay\":25");
        /* One word of a shell: the quote inside is closed, escaped and opened again. */
        expect_part(scsi, "qemu", "web'\\''s/disk & <1>");
        ide.place = (struct place){CONTROLLER_IDE, 1, 0};
        expect_part(ide, "qemu", "-device ide-hd,drive=d5fa21a55f394aa4d9958,bus=ide.1,unit=0");
}

Test(snippet_text, escapes_names_for_libvirt)
{
        struct snippet snippet = scsi;

        expect_part(scsi, "libvirt", "name='web&apos;s/disk &amp; &lt;1&gt;'");
        expect_part(scsi, "libvirt",
                "<address type='drive' controller='1' bus='0' target='7' unit='0'/>");
        expect_part(scsi, "libvirt", "<host transport='unix' socket='/run/nbd.sock'/>");
        snippet.socket = NULL;
        snippet.address = "[::1]:10809";
        snippet.read_only = true;
        expect_part(snippet, "libvirt", "<host name='::1' port='10809'/>");
        expect_part(snippet, "libvirt", "<readonly/>");
}

Test(snippet_text, gives_virt_v2v_the_uri_as_one_word)
{
        expect_part(scsi, "virt-v2v",
                "'nbd+unix:///web%27s/disk%20%26%20%3C1%3E?socket=/run/nbd.sock'");
}
