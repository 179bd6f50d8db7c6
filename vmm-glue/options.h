/* SPDX-License-Identifier: Apache-2.0 */
/* options.h - vmm-host's command line, and the paths that follow from it.
 *
 * Units      bytes.
 * Ownership  options_read fills, options_done ends. Paths from vm_path are the caller's.
 * Errors     wrong usage is told on standard error, and ends the process with 2.
 * Threads    the main thread.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

struct glue_options {
        char *control;        /* the daemon's socket */
        char *run_dir;        /* the daemon's run/: absolute */
        char *state_dir;      /* absolute */
        uint64_t host_memory; /* that all vms together may have; 0: not said */
        char *supervise;      /* a vm's id: this process is its supervisor; NULL: vmm-host */
        char *program;        /* to start supervisors with */
};

/* What is not said is in $VHDD_CONTROL, $VHDD_RUN_DIR, $VHDD_STATE_DIR, $VHDD_HOST_MEMORY. */
void options_read(int argc, char **argv, struct glue_options *ret);
void options_done(struct glue_options *options);

/* RUN/vmm/ID, with /NAME behind it unless that is NULL. */
int vm_path(const struct glue_options *options, const char *id, const char *name, char **ret,
        struct error *err);
/* RUN/vmm and RUN/vmm/ID (NULL: not this): made, for the owner alone. */
int vm_folder_make(const struct glue_options *options, const char *id, struct error *err);

/* The lock of @path, which is made: held until the descriptor is closed. For @wait_ms it is tried again: one
 * that died can be outlived for a moment by a child that is about to become another program.
 * -EBUSY somebody has it */
#define LOCK_WAIT_MS 2000u
int lock_take(const char *path, unsigned wait_ms, int *ret, struct error *err);
/* The same for one whose holder is asked for (F_GETLK): it is this process's alone, and no child's. */
int lock_take_own(const char *path, unsigned wait_ms, int *ret, struct error *err);
