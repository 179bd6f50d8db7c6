/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/schema.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/uuid.h"
#include "vhdd/control/names.h"

/* Deeper than any value of ours; a schema that refers to itself stops here. */
#define MAX_DEPTH 32u
#define WHERE_MAX 256u
/* A path that the kernel takes. */
#define PATH_MAX_BYTES 4095u

extern const char control_schema_text[];

struct control_schema {
        json_t *root, *types, *methods;
};

/* What a check knows on its way down. */
struct check {
        const struct control_schema *schema;
        char where[WHERE_MAX]; /* "settings.memory.max", or "" at the top */
        unsigned depth;
        struct error *err;
};

static int check_value(struct check *check, const json_t *schema, const json_t *value);

/* --- formats of strings --- */

static int check_name_or_now(const char *text, struct error *err)
{
        return strcmp(text, "now") == 0 ? 0 : control_name_check(text, err);
}

static int check_path(const char *text, struct error *err)
{
        if (text[0] != '/')
                return fail(err, EINVAL, "'%.200s' is no absolute path", text);
        if (strlen(text) > PATH_MAX_BYTES)
                return fail(err, EINVAL, "a path of %zu bytes is too long", strlen(text));
        return 0;
}

static int check_uuid(const char *text, struct error *err)
{
        uint8_t id[16];

        return uuid_parse(text, id) ? 0 : fail(err, EINVAL, "'%.60s' is no id", text);
}

static int check_place(const char *text, struct error *err)
{
        struct control_place place;

        return control_place_parse(text, &place, err);
}

/* "2026-01-31T12:00:00Z", with a fraction of a second or without. */
static int check_time(const char *text, struct error *err)
{
        static const char form[] = "0000-00-00T00:00:00";
        bool good = strlen(text) >= sizeof(form);

        for (size_t i = 0; good && i < sizeof(form) - 1; i++)
                good = form[i] == '0' ? text[i] >= '0' && text[i] <= '9' : text[i] == form[i];
        if (good) {
                const char *rest = text + sizeof(form) - 1;

                rest += *rest == '.' ? 1 + strspn(rest + 1, "0123456789") : 0;
                good = strcmp(rest, "Z") == 0;
        }
        return good ? 0 : fail(err, EINVAL, "'%.60s' is no time", text);
}

static const struct format {
        const char *name;
        int (*check)(const char *text, struct error *err);
} formats[] = {
        {"name", control_name_check},
        {"name-or-now", check_name_or_now},
        {"path", check_path},
        {"uuid", check_uuid},
        {"place", check_place},
        {"time", check_time},
        {"mac", control_mac_check},
};

static const struct format *format_find(const char *name)
{
        for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
                if (strcmp(formats[i].name, name) == 0)
                        return &formats[i];
        return NULL;
}

/* --- checking a value --- */

static int refuse(struct check *check, const char *format, ...)
        __attribute__((format(printf, 2, 3)));

static int refuse(struct check *check, const char *format, ...)
{
        char sentence[ERROR_MESSAGE_MAX / 2];
        va_list ap;

        va_start(ap, format);
        vsnprintf(sentence, sizeof(sentence), format, ap);
        va_end(ap);
        if (check->where[0])
                return fail(check->err, EINVAL, "'%s': %s", check->where, sentence);
        return fail(check->err, EINVAL, "%s", sentence);
}

static const char *type_name(const json_t *value)
{
        switch (json_typeof(value)) {
        case JSON_OBJECT: return "object";
        case JSON_ARRAY: return "array";
        case JSON_STRING: return "string";
        case JSON_INTEGER: return "integer";
        case JSON_REAL: return "number";
        case JSON_TRUE:
        case JSON_FALSE: return "boolean";
        case JSON_NULL: return "null";
        }
        return "nothing";
}

static bool is_type(const json_t *value, const char *type)
{
        return strcmp(type_name(value), type) == 0 ||
                (strcmp(type, "number") == 0 && json_is_integer(value));
}

static int check_type(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *types = json_object_get(schema, "type"), *type;
        size_t i;

        if (json_is_string(types))
                return is_type(value, json_string_value(types))
                        ? 0
                        : refuse(check, "it must be %s %s, not %s",
                                  strchr("aeiou", json_string_value(types)[0]) ? "an" : "a",
                                  json_string_value(types), type_name(value));
        json_array_foreach(
                (json_t *)types, i, type) if (is_type(value, json_string_value(type))) return 0;
        return types ? refuse(check, "it may not be %s", type_name(value)) : 0;
}

static int check_enum(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *words = json_object_get(schema, "enum"), *word;
        char list[200] = "";
        size_t i;

        if (!words)
                return 0;
        json_array_foreach((json_t *)words, i, word)
        {
                size_t used = strlen(list);

                if (json_equal(word, value))
                        return 0;
                snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "",
                        json_string_value(word));
        }
        return refuse(check, "it is one of %s, not '%.60s'", list, json_string_value(value));
}

static int check_string(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *max = json_object_get(schema, "maxBytes");
        const char *name = json_string_value(json_object_get(schema, "format"));
        struct error why = ERROR_INIT;

        if (max && json_string_length(value) > (size_t)json_integer_value(max))
                return refuse(check, "%zu bytes are too many: %" JSON_INTEGER_FORMAT " are allowed",
                        json_string_length(value), json_integer_value(max));
        if (name && format_find(name)->check(json_string_value(value), &why) < 0)
                return refuse(check, "%.*s", (int)(ERROR_MESSAGE_MAX / 2), why.message);
        return 0;
}

static int check_number(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *min = json_object_get(schema, "minimum");
        const json_t *max = json_object_get(schema, "maximum");

        if (min && json_number_value(value) < json_number_value(min))
                return refuse(check, "it is at least %.0f", json_number_value(min));
        if (max && json_number_value(value) > json_number_value(max))
                return refuse(check, "it is at most %.0f", json_number_value(max));
        return 0;
}

/* The same check one level further down, where the sentence names the member. */
static int check_inside(
        struct check *check, const json_t *schema, const json_t *value, const char *member)
{
        size_t used = strlen(check->where);
        int r;

        snprintf(check->where + used, WHERE_MAX - used, "%s%s", used && member[0] != '[' ? "." : "",
                member);
        r = check_value(check, schema, value);
        check->where[used] = '\0';
        return r;
}

static int check_array(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *items = json_object_get(schema, "items"), *item;
        const json_t *min = json_object_get(schema, "minItems");
        const json_t *max = json_object_get(schema, "maxItems");
        size_t i, n = json_array_size(value);
        char member[24];
        int r;

        if ((min && n < (size_t)json_integer_value(min)) ||
                (max && n > (size_t)json_integer_value(max)))
                return refuse(check, "%zu entries are too %s", n,
                        min && n < (size_t)json_integer_value(min) ? "few" : "many");
        json_array_foreach((json_t *)value, i, item)
        {
                if (!items)
                        break;
                snprintf(member, sizeof(member), "[%zu]", i);
                r = check_inside(check, items, item, member);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int check_required(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *required = json_object_get(schema, "required"), *name;
        size_t i;

        json_array_foreach((json_t *)required, i,
                name) if (!json_object_get(value, json_string_value(name))) return refuse(check,
                "'%s' is missing", json_string_value(name));
        return 0;
}

static int check_object(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *properties = json_object_get(schema, "properties");
        const json_t *more = json_object_get(schema, "additionalProperties");
        const char *name;
        json_t *member;
        int r;

        json_object_foreach((json_t *)value, name, member)
        {
                const json_t *inner = json_object_get(properties, name);

                if (!inner && json_is_false(more))
                        return refuse(check, "there is no '%.60s' here", name);
                r = inner ? check_inside(check, inner, member, name) : 0;
                if (r < 0)
                        return r;
        }
        return check_required(check, schema, value);
}

static int check_known(struct check *check, const json_t *schema, const json_t *value)
{
        const json_t *ref = json_object_get(schema, "$ref");
        int r;

        if (ref)
                return check_value(check,
                        json_object_get(check->schema->types, json_string_value(ref)), value);
        r = check_type(check, schema, value);
        if (r == 0)
                r = check_enum(check, schema, value);
        if (r < 0)
                return r;
        switch (json_typeof(value)) {
        case JSON_STRING: return check_string(check, schema, value);
        case JSON_INTEGER:
        case JSON_REAL: return check_number(check, schema, value);
        case JSON_ARRAY: return check_array(check, schema, value);
        case JSON_OBJECT: return check_object(check, schema, value);
        default: return 0;
        }
}

static int check_value(struct check *check, const json_t *schema, const json_t *value)
{
        int r;

        if (check->depth == MAX_DEPTH)
                return refuse(check, "it is nested too deep");
        check->depth++;
        r = check_known(check, schema, value);
        check->depth--;
        return r;
}

static int check_part(const struct control_schema *schema, const char *method, const char *part,
        const json_t *value, struct error *err)
{
        const json_t *described = json_object_get(schema->methods, method);
        struct check check = {.schema = schema, .err = err};

        if (!described)
                return fail(err, ENOSYS, "there is no method '%.60s'", method);
        return check_value(&check, json_object_get(described, part), value);
}

int control_schema_check_params(const struct control_schema *schema, const char *method,
        const json_t *params, struct error *err)
{
        return check_part(schema, method, "params", params, err);
}

int control_schema_check_result(const struct control_schema *schema, const char *method,
        const json_t *result, struct error *err)
{
        return check_part(schema, method, "result", result, err);
}

int control_schema_changes(const struct control_schema *schema, const char *method)
{
        const json_t *described = json_object_get(schema->methods, method);

        return described ? json_is_true(json_object_get(described, "changes")) : -ENOSYS;
}

/* --- loading: every word is known, every $ref leads somewhere --- */

static bool is_known_type(const json_t *type)
{
        static const char *const names[] = {
                "object", "array", "string", "integer", "number", "boolean", "null"};

        for (size_t i = 0; json_is_string(type) && i < sizeof(names) / sizeof(names[0]); i++)
                if (strcmp(json_string_value(type), names[i]) == 0)
                        return true;
        return false;
}

static bool are_known_types(const json_t *types)
{
        const json_t *type;
        size_t i;

        if (!json_is_array(types))
                return is_known_type(types);
        json_array_foreach((json_t *)types, i, type) if (!is_known_type(type)) return false;
        return true;
}

static bool is_list_of_strings(const json_t *list)
{
        const json_t *word;
        size_t i;

        json_array_foreach((json_t *)list, i, word) if (!json_is_string(word)) return false;
        return json_is_array(list);
}

static int survey(const struct control_schema *schema, const json_t *part, const char *name,
        struct error *err);

/* Whether we know the word @key, and its value is what it should be. */
static bool is_sound(const struct control_schema *schema, const char *key, const json_t *value)
{
        if (strcmp(key, "$ref") == 0)
                return json_is_string(value) &&
                        json_object_get(schema->types, json_string_value(value)) != NULL;
        if (strcmp(key, "type") == 0)
                return are_known_types(value);
        if (strcmp(key, "format") == 0)
                return json_is_string(value) && format_find(json_string_value(value));
        if (strcmp(key, "enum") == 0 || strcmp(key, "required") == 0)
                return is_list_of_strings(value);
        if (strcmp(key, "maxBytes") == 0 || strcmp(key, "minItems") == 0 ||
                strcmp(key, "maxItems") == 0)
                return json_is_integer(value) && json_integer_value(value) >= 0;
        if (strcmp(key, "minimum") == 0 || strcmp(key, "maximum") == 0)
                return json_is_number(value);
        if (strcmp(key, "additionalProperties") == 0)
                return json_is_boolean(value);
        if (strcmp(key, "items") == 0 || strcmp(key, "properties") == 0)
                return json_is_object(value);
        return strcmp(key, "description") == 0 && json_is_string(value);
}

static int survey_inside(const struct control_schema *schema, const json_t *part, const char *name,
        struct error *err)
{
        const json_t *items = json_object_get(part, "items");
        const char *member;
        json_t *inner;
        int r = items ? survey(schema, items, name, err) : 0;

        json_object_foreach(json_object_get(part, "properties"), member, inner)
        {
                if (r < 0)
                        break;
                r = survey(schema, inner, member, err);
        }
        return r;
}

static int survey(const struct control_schema *schema, const json_t *part, const char *name,
        struct error *err)
{
        const char *key;
        json_t *value;

        if (!json_is_object(part))
                return fail(err, EINVAL, "the schema of '%s' is no object", name);
        json_object_foreach(
                (json_t *)part, key, value) if (!is_sound(schema, key, value)) return fail(err,
                EINVAL, "the schema of '%s' has a '%s' that means nothing", name, key);
        return survey_inside(schema, part, name, err);
}

/* A method's params as a whole schema: an object of these, and of no others. */
static int write_out(json_t *method)
{
        json_t *params = json_object_get(method, "params"), *required, *whole;

        if (json_is_true(json_object_get(method, "changes")) &&
                json_object_set_new(params, "dry-run",
                        json_pack("{s:s, s:s}", "type", "boolean", "description",
                                "say what would be done, and change nothing")) < 0)
                return -ENOMEM;
        required = json_object_get(method, "required");
        whole = json_pack("{s:s, s:O, s:b}", "type", "object", "properties", params,
                "additionalProperties", 0);
        if (!whole || (required && json_object_set(whole, "required", required) < 0)) {
                json_decref(whole);
                return -ENOMEM;
        }
        json_object_del(method, "required");
        return json_object_set_new(method, "params", whole) < 0 ? -ENOMEM : 0;
}

static int load_method(
        struct control_schema *schema, const char *name, json_t *method, struct error *err)
{
        int r;

        if (!json_is_object(json_object_get(method, "params")) ||
                !json_is_object(json_object_get(method, "result")))
                return fail(err, EINVAL, "the method '%s' has no params or no result", name);
        if (write_out(method) < 0)
                return fail(err, ENOMEM, "no memory for the schema");
        r = survey(schema, json_object_get(method, "params"), name, err);
        return r < 0 ? r : survey(schema, json_object_get(method, "result"), name, err);
}

static int load_parts(struct control_schema *schema, struct error *err)
{
        const char *name;
        json_t *part;
        int r = 0;

        schema->types = json_object_get(schema->root, "types");
        schema->methods = json_object_get(schema->root, "methods");
        if (!schema->types || !schema->methods)
                return fail(err, EINVAL, "the schema has no types or no methods");
        json_object_foreach(schema->types, name, part)
        {
                r = survey(schema, part, name, err);
                if (r < 0)
                        return r;
        }
        json_object_foreach(schema->methods, name, part)
        {
                r = load_method(schema, name, part, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

int control_schema_load(const char *text, struct control_schema **ret, struct error *err)
{
        _cleanup_(control_schema_freep) struct control_schema *schema = NULL;
        json_error_t where;
        int r;

        schema = calloc(1, sizeof(*schema));
        if (!schema)
                return fail(err, ENOMEM, "no memory for the schema");
        schema->root =
                json_loads(text ? text : control_schema_text, JSON_REJECT_DUPLICATES, &where);
        if (!schema->root)
                return fail(
                        err, EINVAL, "the schema is no JSON: line %d: %s", where.line, where.text);
        r = load_parts(schema, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(schema);
        return 0;
}

struct control_schema *control_schema_free(struct control_schema *schema)
{
        if (!schema)
                return NULL;
        json_decref(schema->root);
        free(schema);
        return NULL;
}

const json_t *control_schema_json(const struct control_schema *schema)
{
        return schema->root;
}
