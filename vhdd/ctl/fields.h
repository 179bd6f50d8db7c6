/* SPDX-License-Identifier: Apache-2.0 */
/* fields.h - every field of a VHD's footers, header, locators and batmap, as it lies in the file.
 *
 * Units      bytes.
 * Ownership  the caller's table or JSON list.
 * Errors     0 or -errno with one sentence. Damaged structures are shown as they are.
 * Threads    one thread at a time.
 */
#pragma once

#include "base/file.h"
#include "formats/vhd/metadata.h"
#include "vhdd/ctl/output.h"

/* One structure's fields go to @table (offset, size, field, value) or to @list ({structure, offset,
 * size, field, value}); the other one is NULL. @metadata: NULL if the file has none that is valid. */
int fields_show(struct file *file, const struct vhd_metadata *metadata, struct table *table,
        json_t *list, struct error *err);
extern const char *const fields_columns[];
