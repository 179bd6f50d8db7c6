/* SPDX-License-Identifier: Apache-2.0 */
/* resolver.h - reads the headers of a chain in a process that is thrown away.
 *
 * What an image says about its parents is a stranger's word: a sandboxed process reads it, and the
 * broker opens for it only what lies beneath the roots (chain/beneath.h), read-only.
 *
 * Units      bytes; nanoseconds since 1970 for birth.
 * Ownership  the layers are the caller's: resolved_layers_free().
 * Errors     0 or -errno with one sentence, as chain_open() gives them.
 * Threads    any; each call has a process of its own.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vhdd/daemon/broker.h"

struct resolved_layer {
        char *path; /* absolute */
        uint64_t device, inode;
        int64_t birth_ns;
        uint8_t uuid[16]; /* of a VHD; zeros of raw */
        char type[16];    /* "fixed", "dynamic", "differencing", "raw" */
        char format[8];   /* "vhd", "raw" */
        uint64_t size;    /* that the guest sees */
};

/* Leaf first. @format as chain_options. The leaf's own directory is a root, too. */
int resolve_chain(struct broker *broker, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err);
/* What a configuration of Hyper-V's says, in the words of vhdd/worker/hyperv.h. Nothing of it is to be
 * believed.   -EUCLEAN it is none, or damaged */
int resolve_configuration(struct broker *broker, const char *path, json_t **ret, struct error *err);
/* The differencing VHDs among @paths (which lie in @folder) and the parents' ids that they name:
 * [{"path", "parent": ID}]. What cannot be read is not among them. */
int resolve_parents(struct broker *broker, const char *folder, const json_t *paths, json_t **ret,
        struct error *err);
struct image_chain;

struct flatten_watch {
        /* Required. After each few MiB of the guest's disk, on a thread of its own; may block. What it
         * answers but 0 ends it. */
        int (*step)(void *opaque, uint64_t bytes);
        void *opaque;
};
/* The chain @images, which nobody writes to, as one dynamic VHD with that id in the new, empty file @fd
 * (the caller's), which is called @output; synced. */
int flatten_chain(struct broker *broker, const struct image_chain *images, int fd,
        const char *output, const char *uuid, const struct flatten_watch *watch,
        struct error *err);
void resolved_layers_free(struct resolved_layer *layers, size_t n); /* NULL, 0 is fine */
