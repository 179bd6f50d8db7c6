/* SPDX-License-Identifier: Apache-2.0 */
/* partition_table.h - the partitions of a chain's disk, as libblkid reads them.
 *
 * libblkid wants a file. It gets one in memory that holds only what tables are made of: the ends of
 * the disk, where a GPT says that its entries are, and each link of the list of logical partitions. So
 * nothing need be mounted, and what a guest wrote there can mislead nobody but the reader of the names.
 *
 * Units      bytes.
 * Ownership  partition_table_read fills in a plain value.
 * Errors     0 or -errno with one sentence. A disk without a table is no error.
 * Threads    any.
 */
#pragma once

#include "chain/chain.h"

#define PARTITION_TABLE_MAX 256u /* partitions */
#define PARTITION_AREAS_MAX 640u
#define PARTITION_TEXT_MAX  128u
#define PARTITION_ID_MAX    40u

struct partition_entry {
        uint32_t number; /* as the kernel has it: logical ones begin at 5 */
        uint64_t start, size;
        bool extended, logical; /* of an MBR */
        bool inside;            /* lies on the disk whole */
        uint64_t flags;
        char type[PARTITION_ID_MAX];   /* "0x83", or a GUID */
        char uuid[PARTITION_ID_MAX];   /* "" if there is none */
        char name[PARTITION_TEXT_MAX]; /* of a GPT: UTF-8, as somebody wrote it there; or "" */
};

struct partition_table {
        char type[16];             /* "gpt", "dos", ...; "" if there is no table */
        char id[PARTITION_ID_MAX]; /* of the disk; "" if there is none */
        uint32_t n;
        struct partition_entry entries[PARTITION_TABLE_MAX];
        /* Where it was read from: a change elsewhere is none of the table. */
        uint32_t n_areas;
        struct {
                uint64_t offset, length;
        } areas[PARTITION_AREAS_MAX];
};

int partition_table_read(struct chain *chain, struct partition_table *ret, struct error *err);
bool partition_table_touches(const struct partition_table *table, uint64_t offset, uint64_t length);
