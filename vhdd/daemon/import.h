/* SPDX-License-Identifier: Apache-2.0 */
/* import.h - vm.import and vm.export: a vm out of a folder of images, and back.
 *
 * Both are all or nothing: every file they make is named in the journal before it exists. A folder
 * that vm.export made holds a sidecar, and comes back with all disks, snapshots and names; of any
 * other the images' headers say what the trees are (vhdd/daemon/forest.h).
 *
 * Ownership, Errors, Threads  as vhdd/control/method.h says of a method.
 */
#pragma once

#include "vhdd/control/method.h"

extern const struct method import_methods[]; /* vm.import, vm.export */
