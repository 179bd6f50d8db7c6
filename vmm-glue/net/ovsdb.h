/* SPDX-License-Identifier: Apache-2.0 */
/* ovsdb.h - transactions on Open vSwitch's database, and the values in its rows.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  json_t values that a function answers are new references; NULL when there is no memory,
 *            which a transaction made of it tells. Texts live as long as their row.
 * Errors     0 or -errno with one sentence. -EEXIST: a name is there already.
 * Threads    one thread at a time.
 * Spec       RFC 7047, sections 4.1.3, 5.1 and 5.2; ovs-vswitchd.conf.db(5) for the columns.
 */
#pragma once

#include "vmm-glue/net/rpc.h"

#define OVSDB_TIMEOUT_MS 10000u

/* --- values --- */

json_t *ovsdb_uuid(const char *uuid);
json_t *ovsdb_new(const char *name); /* the row that this transaction inserts under that name */
/* A map out of an object, whose reference is taken over. */
json_t *ovsdb_map(json_t *object);
/* A set out of a list, whose reference is taken over. */
json_t *ovsdb_set(json_t *list);

const char *ovsdb_text(const json_t *row, const char *column); /* "" if there is none */
int64_t ovsdb_number(const json_t *row, const char *column, int64_t otherwise);
const char *ovsdb_row_uuid(const json_t *row);
/* The value behind @key of a map; "" if there is none. */
const char *ovsdb_entry(const json_t *row, const char *column, const char *key);
/* Whether a set of references (or a single one) has @uuid. */
bool ovsdb_refers(const json_t *row, const char *column, const char *uuid);

/* --- operations: each goes to the end of @operations --- */

/* @columns: NULL-ended. All rows of the table. */
void ovsdb_select(json_t *operations, const char *table, const char *const *columns);
/* @row: an object, taken over. @name: how this transaction calls the new row; NULL: not at all. */
void ovsdb_insert(json_t *operations, const char *table, const char *name, json_t *row);
void ovsdb_update(json_t *operations, const char *table, const char *uuid, json_t *row);
/* @uuid NULL: every row. @mutator: "insert", "delete", "+=". @value is taken over. */
void ovsdb_mutate(json_t *operations, const char *table, const char *uuid, const char *column,
        const char *mutator, json_t *value);
/* @table has a row of that uuid, or nothing of the transaction is done (-ESTALE). */
void ovsdb_demand(json_t *operations, const char *table, const char *uuid);

/* The transaction survives a power cut when it has been answered. */
void ovsdb_make_durable(json_t *operations);

/* Carries out @operations (taken over), all of them or none. @ret (may be NULL) is the list of their
 * results. */
int ovsdb_transact(struct ovs_rpc *rpc, json_t *operations, json_t **ret, struct error *err);

/* A new database gets the one row that all bridges hang on. */
int ovsdb_init(struct ovs_rpc *rpc, struct error *err);

/* As ovsdb_transact(), and waits until ovs-vswitchd has made it so. -ETIMEDOUT: it is in the database, and not yet
 * so; *ret_committed tells that from a transaction that was refused. */
int ovsdb_carry_out(
        struct ovs_rpc *rpc, json_t *operations, bool *ret_committed, struct error *err);
