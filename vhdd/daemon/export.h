/* SPDX-License-Identifier: Apache-2.0 */
/* export.h - vm.export: a vm's files and its sidecar in a folder of their own, for vm.import.
 *
 * Ownership, Errors, Threads  as vhdd/control/method.h says of a method.
 */
#pragma once

#include "vhdd/control/method.h"

int vm_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
