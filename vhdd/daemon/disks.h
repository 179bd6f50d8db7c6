/* SPDX-License-Identifier: Apache-2.0 */
/* disks.h - attach, detach, list, show: what a vm's disks are, for the API and for other parts.
 *
 * Units      bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    any; what takes a struct vm says whether its lock is held.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/places.h"
#include "vhdd/daemon/vms.h"

/* The disk as the API shows it. Without the vm's lock. @clients: as worker_clients answers, or NULL.
 * @full: with layers and clients. */
int disk_to_json(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        const json_t *clients, bool full, json_t **ret, struct error *err);

/* A disk's row as it is kept in a snapshot's settings, and back (into @ret, for disk_row_done). */
json_t *disk_row_to_json(const struct disk_row *disk);
int disk_row_from_json(const json_t *json, const char *vm, struct disk_row *ret, struct error *err);

struct place disk_place(const struct disk_row *disk);
/* The disk of that name or id. */
int disk_find(struct vm *vm, const struct vm_row *row, const char *name, struct disk_row *ret,
        struct error *err);
bool disk_is_pass_through(const struct disk_row *disk);

/* disk.attach, disk.detach (disks_attach.c) */
struct caller;
int disk_attach(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int disk_detach(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
/* disk.resize (disks_resize.c) */
int disk_resize(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
