/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/names.h"

#include <ctype.h>
#include <stdint.h>
#include <string.h>

#include "base/utf16.h"

static bool is_control(uint32_t c)
{
        return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

int control_name_check(const char *name, struct error *err)
{
        size_t length = strlen(name);
        uint32_t c = 0;

        if (length == 0)
                return fail(err, EINVAL, "a name has at least one character");
        if (length > NAME_MAX_BYTES)
                return fail(err, EINVAL, "a name of %zu bytes is too long: %u are allowed", length,
                        NAME_MAX_BYTES);
        for (size_t i = 0, n; i < length; i += n) {
                n = utf8_get((const uint8_t *)name + i, length - i, &c);

                if (n == 0)
                        return fail(err, EINVAL, "a name is UTF-8, and this one is not");
                if (is_control(c))
                        return fail(err, EINVAL,
                                "a name has no control characters, and this one has U+%04X",
                                (unsigned)c);
        }
        if (strpbrk(name, "/@"))
                return fail(err, EINVAL, "a name has no '/' and no '@', unlike '%s'", name);
        if (strcmp(name, "now") == 0)
                return fail(err, EINVAL, "the name 'now' is reserved: it means the live disk");
        return 0;
}

/* One or two digits, no leading zero; goes behind them. */
static bool take_number(const char **text, unsigned *ret)
{
        unsigned n = 0, digits = 0;

        while (isdigit((unsigned char)**text) && digits < 3) {
                n = n * 10 + (unsigned)(*(*text)++ - '0');
                digits++;
        }
        *ret = n;
        return digits == 1 || (digits == 2 && n >= 10);
}

int control_place_parse(const char *text, struct control_place *ret, struct error *err)
{
        struct control_place place = {.scsi = strncmp(text, "scsi", 4) == 0};
        const char *p = place.scsi ? text + 4 : strncmp(text, "ide", 3) == 0 ? text + 3 : "";
        bool good = take_number(&p, &place.controller) && *p++ == ':' &&
                take_number(&p, &place.unit) && *p == '\0';

        if (!good || place.controller > (place.scsi ? 3u : 1u) ||
                place.unit > (place.scsi ? 63u : 1u))
                return fail(err, EINVAL,
                        "'%.40s' is no place for a disk: these are ide0:0 to ide1:1 and scsi0:0 to "
                        "scsi3:63",
                        text);
        *ret = place;
        return 0;
}

int control_mac_check(const char *text, struct error *err)
{
        bool good = strlen(text) == 17;

        for (unsigned i = 0; good && i < 17; i++)
                good = i % 3 == 2 ? text[i] == ':' : isxdigit((unsigned char)text[i]) != 0;
        if (!good)
                return fail(
                        err, EINVAL, "'%.40s' is no MAC address such as 52:54:00:12:34:56", text);
        return 0;
}
