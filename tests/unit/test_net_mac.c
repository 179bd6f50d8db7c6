/* SPDX-License-Identifier: Apache-2.0 */
/* Two cards with one address take each other's frames; an address that is a group's is nobody's. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "vmm-glue/net/mac.h"

Test(mac_parse, brings_every_spelling_to_one_form)
{
        static const char *const good[] = {
                "5a:0B:0c:0D:0e:0f", "5A-0B-0C-0D-0E-0F", "5a-0b:0c-0d:0e-0f"};

        for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
                char mac[MAC_TEXT_SIZE];

                cr_assert(eq(int, mac_parse(good[i], mac, NULL), 0), "%s", good[i]);
                cr_expect(strcmp(mac, "5a:0b:0c:0d:0e:0f") == 0, "%s", mac);
        }
}

Test(mac_parse, refuses_all_others)
{
        static const char *const bad[] = {"", "5", "5a", "5a:", "5a:0b:0c:0d:0e",
                "5a:0b:0c:0d:0e:0", "5a:0b:0c:0d:0e:0f:", "5a:0b:0c:0d:0e:0f:00",
                "5a:0b:0c:0d:0e:0g", "5a.0b.0c.0d.0e.0f", "5a0b0c0d0e0f", " 5a:0b:0c:0d:0e:0f",
                "01:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"};

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                char mac[MAC_TEXT_SIZE] = "as it was";
                struct error err = ERROR_INIT;

                cr_expect(eq(int, mac_parse(bad[i], mac, &err), -EINVAL), "'%s'", bad[i]);
                cr_expect(strcmp(mac, "as it was") == 0);
                cr_expect(err.message[0] != '\0');
        }
}

Test(mac_pick, takes_none_twice_and_stays_in_its_owners_pool)
{
        json_t *taken = json_object();
        char first[MAC_TEXT_SIZE] = "";

        for (int i = 0; i < 2000; i++) {
                char mac[MAC_TEXT_SIZE], again[MAC_TEXT_SIZE];

                cr_assert(eq(int, mac_pick("/var/lib/vhdd", taken, mac, NULL), 0));
                cr_assert(json_object_get(taken, mac) == NULL, "%s twice", mac);
                json_object_set_new(taken, mac, json_true());
                cr_assert(eq(int, mac_parse(mac, again, NULL), 0), "%s is none", mac);
                cr_assert(strncmp(mac, "5a:", 3) == 0);
                if (!first[0])
                        memcpy(first, mac, sizeof(first));
                cr_assert(strncmp(mac, first, strlen("5a:00:00")) == 0, "%s, %s", mac, first);
        }
        json_decref(taken);
}

Test(mac_pick, differs_from_daemon_to_daemon)
{
        char one[MAC_TEXT_SIZE], other[MAC_TEXT_SIZE];

        cr_assert(eq(int, mac_pick("/var/lib/vhdd", NULL, one, NULL), 0));
        cr_assert(eq(int, mac_pick("/srv/vhdd", NULL, other, NULL), 0));
        cr_expect(strncmp(one, other, strlen("5a:00:00")) != 0, "%s, %s", one, other);
}
