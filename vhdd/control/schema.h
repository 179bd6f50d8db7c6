/* SPDX-License-Identifier: Apache-2.0 */
/* schema.h - the one description of the control API (schema.json), and values held against it.
 *
 * The file is JSON Schema's words in a shorter form: a method's params are the object's properties,
 * "$ref" names one of its types, strings have a limit in bytes ("maxBytes") and a "format" of ours.
 * Loading writes it out: params become a schema that allows nothing else, and where the method
 * changes something, dry-run.
 *
 * Units      as the schema says.
 * Ownership  control_schema_load hands out, control_schema_free ends. What control_schema_json answers
 *            belongs to the schema.
 * Errors     -EINVAL with a sentence that names the member; -ENOSYS: no such method.
 * Threads    a loaded schema does not change: all functions from all threads.
 * Spec       a subset of JSON Schema: type, enum, properties, required, additionalProperties, items,
 *            minItems, maxItems, minimum, maximum.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "base/error.h"

struct control_schema;

/* @text: NULL is the one that was compiled in. A $ref to nowhere and a word that we do not know are
 * errors here, so that a check never meets them. */
int control_schema_load(const char *text, struct control_schema **ret, struct error *err);
struct control_schema *control_schema_free(struct control_schema *schema); /* NULL is fine */
DEFINE_CLEANUP(struct control_schema *, control_schema_free)

const json_t *control_schema_json(const struct control_schema *schema);

/* -ENOSYS, or whether it changes something. */
int control_schema_changes(const struct control_schema *schema, const char *method);

int control_schema_check_params(const struct control_schema *schema, const char *method,
        const json_t *params, struct error *err);
int control_schema_check_result(const struct control_schema *schema, const char *method,
        const json_t *result, struct error *err);
