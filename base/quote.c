/* SPDX-License-Identifier: Apache-2.0 */
#include "base/quote.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

static bool is_plain(const char *text)
{
        static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_./:@%+,=-";

        return text[0] != '\0' && text[0] != '-' && strspn(text, safe) == strlen(text);
}

char *shell_quote(const char *text, char *ret, size_t size)
{
        size_t used = 0;

        assert(size >= 3);
        if (is_plain(text) && strlen(text) < size)
                return strcpy(ret, text);
        ret[used++] = '\'';
        for (; *text; text++) {
                unsigned char c = (unsigned char)*text;

                /* A quote takes four characters; the closing one and the NUL want two. */
                if (used + 4 + 2 > size)
                        break;
                if (c == '\'') {
                        memcpy(ret + used, "'\\''", 4);
                        used += 4;
                } else {
                        ret[used++] = c < 0x20 || c == 0x7f ? '?' : (char)c;
                }
        }
        ret[used++] = '\'';
        ret[used] = '\0';
        return ret;
}

void proc_unescape(char *text)
{
        char *out = text;

        for (char *p = text; *p; p++) {
                if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' &&
                        p[3] >= '0' && p[3] <= '7') {
                        *out++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
                        p += 3;
                } else {
                        *out++ = *p;
                }
        }
        *out = '\0';
}
