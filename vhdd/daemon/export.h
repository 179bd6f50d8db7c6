/* SPDX-License-Identifier: Apache-2.0 */
/* export.h - vm.export: a vm's files and its sidecar in a folder of their own, for vm.import;
 * snapshot.export, which gives what a vm was then; and what both do in the same way.
 *
 * Ownership, Errors, Threads  as vhdd/control/method.h says of a method.
 */
#pragma once

#include "vhdd/control/method.h"
#include "vhdd/daemon/transfers.h"

/* Behind a folder's name as long as it is being filled: what bears it is no export. */
#define EXPORT_PARTIAL_ENDING ".vhdd-partial"

struct operation;
struct sidecar;

int vm_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);

int snapshot_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);

/* The folder that is asked for, absolute, and the one to fill; the caller frees them.
 *   -EEXIST  one of them is there */
int export_directories(
        const char *text, char **ret_directory, char **ret_partial, struct error *err);
/* Its row.   -ENOENT  it was removed meanwhile */
int export_find_vm(struct vm *vm, const char *vm_name, struct vm_row *ret, struct error *err);
/* Begins the job, and puts it beside the answer in *ret; if it fails there is no answer any more. */
int export_begin(
        struct broker *broker, const struct transfer_work *work, json_t **ret, struct error *err);
/* The rows speak of the folder by the name that it will have; but the file is made where the folder is. */
int export_write_sidecar(struct operation *operation, const struct sidecar *rows,
        const char *vm_name, const char *partial, const char *directory, struct error *err);
/* -EBUSY: a merge of the vm's images was begun. With the vm's lock. */
int export_refuse_merging(struct vm *vm, const char *vm_name, struct error *err);
/* All is made: the folder gets its name, and then the operation and the job (may be NULL) are over. */
int export_commit(struct broker *broker, struct operation *operation, struct transfer *transfer,
        const char *partial, const char *directory, struct error *err);
