/* SPDX-License-Identifier: Apache-2.0 */
/* config.h - a vm as QEMU is to have it: the devices, from the daemon's words; and QEMU's command line.
 *
 * A config is a JSON object. It is made from vm.show and disk.list when a vm starts, kept beside the
 * running QEMU, and kept with the memory that is saved: saved memory can be loaded only by a QEMU that has
 * the same devices at the same places.
 *
 *      {"format": 1, "vm": ID, "machine": "pc-i440fx-7.2", "accel": "kvm" | "tcg", "cpus": N,
 *       "startup": BYTES, "max": BYTES, "display": "vnc" | "spice" | "none", "hyperv": BOOL, "vmbus": BOOL,
 *       "kernel", "initrd", "append": TEXT,
 *       "networks": [{"mac": TEXT, "queues": N, ...}],
 *       "disks": [{"name", "id", "at", "export", "socket", "size", "read-only",
 *                  "serial": what the guest knows it by, if that is not the id}]}
 *
 * Units      bytes.
 * Ownership  new references where a function hands out.
 * Errors     0 or -errno with one sentence for people.
 * Threads    pure functions.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

#define CONFIG_FORMAT       1
#define CONFIG_IDE_DISKS    4u
#define CONFIG_CONTROLLERS  4u
#define CONFIG_SCSI_TARGETS 64u
/* virtio-mem's unit: what is above startup RAM is a multiple of it. */
#define CONFIG_MEMORY_UNIT  (UINT64_C(4) << 20)
#define CONFIG_MEMORY_LEAST (UINT64_C(8) << 20)

/* @shown and @disks as vm.show and disk.list answer. "accel" is what was asked for: "auto" may still be
 * there.   -EINVAL what was asked for cannot be, the sentence says why and what to do */
int config_from_daemon(const json_t *shown, const json_t *disks, json_t **ret, struct error *err);
/* One member of disk.list's answer into one of config's "disks". */
int config_disk(const json_t *listed, json_t **ret, struct error *err);

/* Saved memory's config, and today's: the one to start with. Disks of the saved one must be there, at
 * their places; their exports are taken from today's. What today's has beyond (SCSI) goes to @ret_more, to
 * be added when the memory is loaded. @known: [{"id", "at"}], the daemon's word on which disks these are in
 * a vm that was copied, where they have other ids; to the guest they keep the serial that it knows. NULL:
 * the ids must be the same.   -ESTALE they do not fit */
int config_for_memory(const json_t *saved, const json_t *today, const json_t *known, json_t **ret,
        json_t **ret_more, struct error *err);

/* The node's and the device's name in QEMU, from the disk's id. */
#define CONFIG_NODE_MAX 32
void config_node(const json_t *disk, char ret[CONFIG_NODE_MAX]);
bool config_is_ide(const json_t *disk);
const json_t *config_find_disk(const json_t *config, const char *name_or_id);

/* Arguments of blockdev-add, and of device_add, for a disk. @open_timeout_s: how long QEMU tries to
 * connect, and answers nothing else meanwhile. */
json_t *config_blockdev(const json_t *disk, unsigned open_timeout_s);
json_t *config_device(const json_t *disk);

/* --- the command line --- */

struct command_options {
        const char *program;
        bool incoming;  /* saved memory will come */
        bool has_spice; /* this QEMU has it */
        const int *fds; /* of networks: taps, then vhost, of each in order; open in QEMU */
        size_t n_fds;
};

/* QEMU's argv, ended by NULL: command_free() ends it. Sockets have relative names: QEMU runs in the
 * vm's folder. */
int config_command(const json_t *config, const struct command_options *options, char ***ret,
        struct error *err);
char **command_free(char **argv); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(char **, command_free)
