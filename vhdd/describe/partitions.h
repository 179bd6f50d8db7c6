/* SPDX-License-Identifier: Apache-2.0 */
/* partitions.h - a partition table in JSON, with names for the types that are common.
 *
 * Units      bytes.
 * Ownership  a new reference.
 * Errors     as values.h.
 * Threads    any.
 */
#pragma once

#include "fuse/partition_table.h"
#include "vhdd/describe/values.h"

/* {type, id, partitions: [{number, start, size, type, type-name, name, uuid, flags, kind}]} */
json_t *partitions_to_json(const struct partition_table *table);
