/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/places.h"

#include <stdio.h>
#include <string.h>

static const char *const controller_names[] = {"ide", "scsi"};
static const int n_buses[] = {PLACE_IDE_BUSES, PLACE_SCSI_BUSES};
static const int n_units[] = {PLACE_IDE_UNITS, PLACE_SCSI_UNITS};

int place_parse(const char *text, struct place *ret, struct error *err)
{
        int r;

        /* Few enough to compare with each, which lets nothing but the one spelling through. */
        for (enum controller c = CONTROLLER_IDE; c <= CONTROLLER_SCSI; c++)
                for (int bus = 0; bus < n_buses[c]; bus++)
                        for (int unit = 0; unit < n_units[c]; unit++) {
                                struct place place = {c, bus, unit};
                                char name[PLACE_TEXT_MAX];

                                if (strcmp(place_format(place, name), text) != 0)
                                        continue;
                                *ret = place;
                                return 0;
                        }
        r = fail(err, EINVAL, "there is no place '%.32s' in a vm", text);
        error_set_hint(err, "ide0:0, ide0:1, ide1:0, ide1:1, or scsi0:0 to scsi3:63");
        return r;
}

const char *place_format(struct place place, char ret[PLACE_TEXT_MAX])
{
        snprintf(ret, PLACE_TEXT_MAX, "%s%d:%d", controller_names[place.controller],
                place.bus % 100, place.unit % 100);
        return ret;
}

bool place_equal(struct place a, struct place b)
{
        return a.controller == b.controller && a.bus == b.bus && a.unit == b.unit;
}

static bool is_taken(struct place place, const struct place *taken, size_t n_taken)
{
        for (size_t i = 0; i < n_taken; i++)
                if (place_equal(place, taken[i]))
                        return true;
        return false;
}

int place_first_free(
        const struct place *taken, size_t n_taken, struct place *ret, struct error *err)
{
        for (int bus = 0; bus < PLACE_SCSI_BUSES; bus++)
                for (int unit = 0; unit < PLACE_SCSI_UNITS; unit++) {
                        struct place place = {CONTROLLER_SCSI, bus, unit};

                        if (is_taken(place, taken, n_taken))
                                continue;
                        *ret = place;
                        return 0;
                }
        return fail(err, ENOSPC, "all %d SCSI places of the vm are taken",
                PLACE_SCSI_BUSES * PLACE_SCSI_UNITS);
}
