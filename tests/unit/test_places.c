/* SPDX-License-Identifier: Apache-2.0 */
/* A disk in the wrong place is another disk to the guest: it boots from it, or writes to it. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "vhdd/daemon/places.h"

Test(place_parse, knows_each_place_and_writes_it_the_same)
{
        static const char *const good[] = {"ide0:0", "ide0:1", "ide1:0", "ide1:1", "scsi0:0",
                "scsi0:63", "scsi3:0", "scsi3:63"};

        for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
                char text[PLACE_TEXT_MAX];
                struct place place;

                cr_assert(eq(int, place_parse(good[i], &place, NULL), 0), "%s", good[i]);
                cr_expect(strcmp(place_format(place, text), good[i]) == 0, "%s", text);
        }
}

Test(place_parse, refuses_all_others)
{
        static const char *const bad[] = {"", "ide", "ide2:0", "ide0:2", "scsi4:0", "scsi0:64",
                "scsi0:00", "scsi00:0", "SCSI0:0", "scsi0", "scsi0:", "scsi0:0 ", " scsi0:0",
                "scsi-1:0", "sata0:0", "scsi0:0:0", "scsi0:4294967296"};

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                struct place place = {CONTROLLER_SCSI, 7, 7};
                struct error err = ERROR_INIT;

                cr_expect(eq(int, place_parse(bad[i], &place, &err), -EINVAL), "'%s'", bad[i]);
                cr_expect(eq(int, place.bus, 7));
                cr_expect(strstr(err.hint, "scsi3:63") != NULL);
        }
}

Test(place_first_free, goes_upward_through_scsi_and_never_to_ide)
{
        struct place taken[PLACE_MAX], place;
        struct error err = ERROR_INIT;
        size_t n = 0;

        taken[n++] = (struct place){CONTROLLER_IDE, 0, 0};
        taken[n++] = (struct place){CONTROLLER_SCSI, 0, 1};
        cr_assert(eq(int, place_first_free(taken, n, &place, NULL), 0));
        cr_expect(place_equal(place, (struct place){CONTROLLER_SCSI, 0, 0}));
        taken[n++] = place;
        cr_assert(eq(int, place_first_free(taken, n, &place, NULL), 0));
        cr_expect(place_equal(place, (struct place){CONTROLLER_SCSI, 0, 2}));
        for (n = 0; n < PLACE_SCSI_BUSES * PLACE_SCSI_UNITS; n++)
                cr_assert(eq(int, place_first_free(taken, n, &taken[n], NULL), 0));
        cr_expect(place_equal(taken[n - 1], (struct place){CONTROLLER_SCSI, 3, 63}));
        cr_expect(eq(int, place_first_free(taken, n, &place, &err), -ENOSPC));
}
