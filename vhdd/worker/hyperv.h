/* SPDX-License-Identifier: Apache-2.0 */
/* hyperv.h - what Hyper-V says of a vm: its configuration (.xml) and its export (.exp), as a few words.
 *
 * Two layouts are read, told by the root element and never by the file's name:
 *
 *   configuration   <configuration> with an element a device, named _GUID_, beside properties, settings,
 *                   manifest: what lies under "Virtual Machines" and "Snapshots" of Hyper-V up to 2012 R2
 *   cim             <INSTANCE CLASSNAME="Msvm_..."> with PROPERTY and PROPERTY.ARRAY, however deep: the
 *                   objects of root\virtualization as WMI writes them (CIM DTD 2.0, DMTF DSP0201)
 *
 * The answer (docs/hyperv-import.md says where each comes from):
 *
 *   {"layout", "id"?, "name"?, "notes"?, "version"?, "snapshot": bool, "cpus"?, "created"?: as it stands there,
 *    "memory": {"startup"?, "max"?, "reservation"?: bytes, "buffer"?: %, "priority"?: 0 to 10000,
 *               "dynamic"?: bool},
 *    "disks": [{"controller": 0 ide | 1 scsi, "bus", "unit", "kind": "VHD", ..., "path"}],
 *    "networks": [{"name"?, "kind": "synthetic"|"emulated", "switch", "mac", "static": bool, "vlan"?}],
 *    "saved": [PATH],  "boot": [WORD],  "unknown": [ELEMENT]: what means nothing to us}
 *
 * It was written by a stranger: no DTD, no entity but XML's own five, and bounds for everything.
 *
 * Units      bytes; percent.
 * Ownership  the answer is the caller's.
 * Errors     -EUCLEAN it is no such file, or damaged, with the line; -E2BIG beyond a bound.
 * Threads    a pure function.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/error.h"

#define HYPERV_MAX_SIZE    (16u << 20) /* bytes of a file */
#define HYPERV_MAX_NODES   200000u
#define HYPERV_MAX_DEPTH   64u
#define HYPERV_MAX_UNKNOWN 200u
#define HYPERV_MAX_DISKS   1024u
#define HYPERV_MAX_CARDS   256u

int hyperv_parse(const void *data, size_t size, json_t **ret, struct error *err);
