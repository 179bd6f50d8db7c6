/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/ovsdb.h"

#include <string.h>

#define DATABASE "Open_vSwitch"

/* --- values --- */

json_t *ovsdb_uuid(const char *uuid)
{
        return json_pack("[s,s]", "uuid", uuid);
}

json_t *ovsdb_new(const char *name)
{
        return json_pack("[s,s]", "named-uuid", name);
}

json_t *ovsdb_map(json_t *object)
{
        json_t *pairs = json_array(), *value;
        const char *key;

        json_object_foreach(object, key, value)
                json_array_append_new(pairs, json_pack("[s,O]", key, value));
        json_decref(object);
        return json_pack("[s,o]", "map", pairs);
}

json_t *ovsdb_set(json_t *list)
{
        return json_pack("[s,o]", "set", list);
}

/* A set of one element is written as that element; an optional value that is not there as an empty
 * set. */
const char *ovsdb_text(const json_t *row, const char *column)
{
        const char *text = json_string_value(json_object_get(row, column));

        return text ? text : "";
}

int64_t ovsdb_number(const json_t *row, const char *column, int64_t otherwise)
{
        const json_t *value = json_object_get(row, column);

        return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static const char *uuid_in(const json_t *reference)
{
        const char *kind = json_string_value(json_array_get(reference, 0));
        const char *uuid = json_string_value(json_array_get(reference, 1));

        return kind && uuid && strcmp(kind, "uuid") == 0 ? uuid : "";
}

const char *ovsdb_row_uuid(const json_t *row)
{
        return uuid_in(json_object_get(row, "_uuid"));
}

const char *ovsdb_entry(const json_t *row, const char *column, const char *key)
{
        const json_t *pairs = json_array_get(json_object_get(row, column), 1);
        json_t *pair;
        size_t i;

        json_array_foreach((json_t *)pairs, i, pair)
        {
                const char *name = json_string_value(json_array_get(pair, 0));
                const char *value = json_string_value(json_array_get(pair, 1));

                if (name && value && strcmp(name, key) == 0)
                        return value;
        }
        return "";
}

bool ovsdb_refers(const json_t *row, const char *column, const char *uuid)
{
        const json_t *value = json_object_get(row, column), *list = json_array_get(value, 1);
        json_t *reference;
        size_t i;

        if (!json_is_array(list))
                return strcmp(uuid_in(value), uuid) == 0;
        json_array_foreach((json_t *)list, i,
                reference) if (strcmp(uuid_in(reference), uuid) == 0) return true;
        return false;
}

/* --- operations --- */

static json_t *with_uuid(const char *uuid)
{
        return uuid ? json_pack("[[s,s,[s,s]]]", "_uuid", "==", "uuid", uuid) : json_array();
}

void ovsdb_select(json_t *operations, const char *table, const char *const *columns)
{
        json_t *list = json_array();

        for (; *columns; columns++)
                json_array_append_new(list, json_string(*columns));
        json_array_append_new(operations,
                json_pack("{s:s,s:s,s:[],s:o}", "op", "select", "table", table, "where", "columns",
                        list));
}

void ovsdb_insert(json_t *operations, const char *table, const char *name, json_t *row)
{
        json_array_append_new(operations,
                json_pack("{s:s,s:s,s:o,s:s*}", "op", "insert", "table", table, "row", row,
                        "uuid-name", name));
}

void ovsdb_update(json_t *operations, const char *table, const char *uuid, json_t *row)
{
        json_array_append_new(operations,
                json_pack("{s:s,s:s,s:o,s:o}", "op", "update", "table", table, "where",
                        with_uuid(uuid), "row", row));
}

void ovsdb_mutate(json_t *operations, const char *table, const char *uuid, const char *column,
        const char *mutator, json_t *value)
{
        json_array_append_new(operations,
                json_pack("{s:s,s:s,s:o,s:[[s,s,o]]}", "op", "mutate", "table", table, "where",
                        with_uuid(uuid), "mutations", column, mutator, value));
}

void ovsdb_demand(json_t *operations, const char *table, const char *uuid)
{
        json_array_append_new(operations,
                json_pack("{s:s,s:i,s:s,s:o,s:[s],s:s,s:[{s:[s,s]}]}", "op", "wait", "timeout", 0,
                        "table", table, "where", with_uuid(uuid), "columns", "_uuid", "until",
                        "==", "rows", "_uuid", "uuid", uuid));
}

void ovsdb_make_durable(json_t *operations)
{
        json_array_append_new(operations, json_pack("{s:s,s:b}", "op", "commit", "durable", 1));
}

/* The results' first error (RFC 7047, 4.1.3): the one that made the database drop everything. */
static int first_error(const json_t *results, struct error *err)
{
        json_t *result;
        size_t i;

        json_array_foreach((json_t *)results, i, result)
        {
                const char *error = json_string_value(json_object_get(result, "error"));
                const char *details = json_string_value(json_object_get(result, "details"));

                if (!error)
                        continue;
                if (!details)
                        details = error;
                if (strcmp(error, "constraint violation") == 0)
                        return fail(err, EEXIST, "Open vSwitch's database refuses it: %s", details);
                if (strcmp(error, "timed out") == 0)
                        return fail(err, ESTALE, "somebody else has changed it meanwhile");
                return fail(err, EREMOTEIO, "Open vSwitch's database refuses it: %s: %s", error,
                        details);
        }
        return 0;
}

int ovsdb_transact(struct ovs_rpc *rpc, json_t *operations, json_t **ret, struct error *err)
{
        json_auto_t *results = NULL;
        json_t *params = operations;
        int r;

        if (!params || json_array_insert_new(params, 0, json_string(DATABASE)) < 0) {
                json_decref(params);
                return fail(err, ENOMEM, "no memory for a transaction");
        }
        r = ovs_rpc_call(rpc, "transact", params, OVSDB_TIMEOUT_MS, &results, err);
        if (r == 0)
                r = first_error(results, err);
        if (r < 0)
                return r;
        if (ret)
                *ret = TAKE_PTR(results);
        return 0;
}

/* Only into an empty table: it is the database that looks. */
int ovsdb_init(struct ovs_rpc *rpc, struct error *err)
{
        json_t *operations =
                json_pack("[{s:s,s:i,s:s,s:[],s:[s],s:s,s:[]}]", "op", "wait", "timeout", 0,
                        "table", DATABASE, "where", "columns", "_uuid", "until", "==", "rows");
        int r;

        ovsdb_insert(operations, DATABASE, NULL, json_object());
        r = ovsdb_transact(rpc, operations, NULL, err);
        if (r != -ESTALE)
                return r;
        error_clear(err);
        return 0;
}

/* --- until it is so --- */

/* What ovs-vswitchd has to reach: the number that the transaction gave. */
static int64_t wanted_number(const json_t *results)
{
        const json_t *rows =
                json_object_get(json_array_get(results, json_array_size(results) - 1), "rows");

        return ovsdb_number(json_array_get(rows, 0), "next_cfg", -1);
}

/* The database itself waits: until some row has reached it. */
static int wait_for_number(struct ovs_rpc *rpc, int64_t number, struct error *err)
{
        json_t *wait = json_pack("[s,{s:s,s:i,s:s,s:[[s,s,I]],s:[s],s:s,s:[]}]", DATABASE, "op",
                "wait", "timeout", (int)(OVSDB_TIMEOUT_MS - 1000), "table", DATABASE, "where",
                "cur_cfg", ">=", (json_int_t)number, "columns", "cur_cfg", "until", "!=", "rows");
        json_auto_t *results = NULL;
        int r = ovs_rpc_call(rpc, "transact", wait, OVSDB_TIMEOUT_MS, &results, err);

        if (r == 0 && first_error(results, err) < 0)
                r = fail(err, ETIMEDOUT, "ovs-vswitchd has not carried it out in %u seconds",
                        OVSDB_TIMEOUT_MS / 1000 - 1);
        return r;
}

int ovsdb_carry_out(struct ovs_rpc *rpc, json_t *operations, bool *ret_committed, struct error *err)
{
        static const char *const columns[] = {"next_cfg", NULL};
        json_auto_t *results = NULL;
        int r;

        *ret_committed = false;
        ovsdb_mutate(operations, DATABASE, NULL, "next_cfg", "+=", json_integer(1));
        ovsdb_select(operations, DATABASE, columns);
        r = ovsdb_transact(rpc, operations, &results, err);
        if (r < 0)
                return r;
        *ret_committed = true;
        return wait_for_number(rpc, wanted_number(results), err);
}
