/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/mac.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define POOL_FIRST_BYTE 0x5a /* locally administered, and no multicast */
#define MULTICAST_BIT   0x01
#define MAX_TRIES       10000u

static int hex_value(char c)
{
        if (c >= '0' && c <= '9')
                return c - '0';
        c = (char)tolower((unsigned char)c);
        return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void mac_format(const uint8_t bytes[6], char ret[MAC_TEXT_SIZE])
{
        snprintf(ret, MAC_TEXT_SIZE, "%02x:%02x:%02x:%02x:%02x:%02x", bytes[0], bytes[1], bytes[2],
                bytes[3], bytes[4], bytes[5]);
}

static bool read_bytes(const char *text, uint8_t ret[6])
{
        for (size_t i = 0; i < 6; i++) {
                int high = hex_value(text[0]), low = high < 0 ? -1 : hex_value(text[1]);
                char behind;

                if (low < 0)
                        return false;
                ret[i] = (uint8_t)(high << 4 | low);
                behind = text[2];
                if (i == 5)
                        return behind == '\0';
                if (behind != ':' && behind != '-')
                        return false;
                text += 3;
        }
        return false;
}

int mac_parse(const char *text, char ret[MAC_TEXT_SIZE], struct error *err)
{
        uint8_t bytes[6];

        if (!read_bytes(text, bytes))
                return fail(err, EINVAL, "'%.64s' is no MAC address", text);
        if (bytes[0] & MULTICAST_BIT)
                return fail(err, EINVAL, "the MAC address '%s' is a group's, not a network card's",
                        text);
        if (!(bytes[0] | bytes[1] | bytes[2] | bytes[3] | bytes[4] | bytes[5]))
                return fail(err, EINVAL, "a MAC address of zeros is no network card's");
        mac_format(bytes, ret);
        return 0;
}

/* FNV-1a: spreads, and need not do more. */
static uint32_t hash_of(const char *text)
{
        uint32_t hash = 2166136261u;

        for (; *text; text++)
                hash = (hash ^ (uint8_t)*text) * 16777619u;
        return hash ^ hash >> 16;
}

int mac_pick(const char *owner, const json_t *taken, char ret[MAC_TEXT_SIZE], struct error *err)
{
        uint32_t hash = hash_of(owner);
        uint8_t bytes[6] = {POOL_FIRST_BYTE, (uint8_t)(hash >> 8), (uint8_t)hash};

        for (unsigned i = 0; i < MAX_TRIES; i++) {
                char text[MAC_TEXT_SIZE];

                if (getrandom(bytes + 3, 3, 0) != 3)
                        return fail_os(err, errno, "cannot get random bytes");
                mac_format(bytes, text);
                if (json_object_get(taken, text))
                        continue;
                mac_format(bytes, ret);
                return 0;
        }
        return fail(err, ENOSPC, "the pool of MAC addresses is used up");
}
