/* SPDX-License-Identifier: Apache-2.0 */
/* options.h - vhdfuse's command line.
 *
 * Units      none.
 * Ownership  texts live as long as the process.
 * Errors     wrong usage ends the process with exit code 2.
 * Threads    the main one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct options {
        const char *program; /* in whose name we speak: "vhdfuse", or "vhdctl" that started us */
        const char *file, *directory; /* file NULL: the daemon's vms (live) */
        const char *report;           /* where a bad end is told; NULL: the system's log alone */
        const char *control;          /* the daemon's socket; NULL: look for it */
        char *mount_options;          /* of all -o, joined; NULL: none */
        bool writable, scratch, live, foreground, force, quiet, json, dry_run;
        const char *format;
        const char **image_roots, **parents;
        size_t n_image_roots, n_parents;
};

void options_read(int argc, char **argv, struct options *ret);
