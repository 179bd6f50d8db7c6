/* SPDX-License-Identifier: Apache-2.0 */
/* params.h - a method's parameters, which were checked against the schema before.
 *
 * Ownership  texts live as long as the parameters.
 * Errors     none: what is absent is NULL, false or the default.
 * Threads    pure functions.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <string.h>

static inline const char *param_text(const json_t *params, const char *name)
{
        return json_string_value(json_object_get(params, name));
}

static inline bool param_bool(const json_t *params, const char *name)
{
        return json_is_true(json_object_get(params, name));
}

static inline json_int_t param_int(const json_t *params, const char *name, json_int_t otherwise)
{
        const json_t *value = json_object_get(params, name);

        return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

/* Is @text among the array's texts? */
static inline bool json_has_text(const json_t *array, const char *text)
{
        json_t *item;
        size_t i;

        json_array_foreach((json_t *)array, i, item)
        {
                const char *value = json_string_value(item);

                if (value && strcmp(value, text) == 0)
                        return true;
        }
        return false;
}
