/* SPDX-License-Identifier: Apache-2.0 */
/* snippet.h - what a user pastes into another program so that it uses a disk of ours.
 *
 * Ownership  the answered text is the caller's. NULL: no memory.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>

#include "vhdd/daemon/places.h"

struct snippet {
        const char *kind;   /* "libvirt", "qemu", "virt-v2v" */
        const char *export; /* as the NBD server calls it */
        const char *uri;
        const char *socket;  /* path, or NULL: then */
        const char *address; /* HOST:PORT */
        const char *id;      /* the disk's: its serial number for the guest is made of it */
        struct place place;
        bool read_only;
};

char *snippet_text(const struct snippet *snippet);
