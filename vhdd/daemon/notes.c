/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/notes.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/error.h"

void note_add(json_t *notes, const char *format, ...)
{
        char text[ERROR_MESSAGE_MAX];
        va_list ap;

        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        json_array_append_new(notes, json_string(text));
}
