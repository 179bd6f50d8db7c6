/* SPDX-License-Identifier: Apache-2.0 */
/* conversion.h - a disk into one new file, whole or not at all: `convert`, and `merge --output`.
 *
 * Units      bytes.
 * Ownership  a struct conversion is the caller's; its names live as long as it.
 * Errors     0 or -errno with one sentence. After a signal the process ends in here.
 * Threads    the main thread only; it starts its own.
 */
#pragma once

#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/source.h"

enum target { TARGET_UNKNOWN, TARGET_DYNAMIC, TARGET_FIXED, TARGET_RAW };
const char *target_to_string(enum target target); /* "dynamic", "fixed", "raw" */
/* By the name's ending: .vhd is dynamic, .raw and .img are raw. */
enum target target_of_name(const char *path);

struct conversion {
        const char *from, *to;
        enum target target;
        uint32_t block_size; /* of a dynamic one; 0: 2 MiB */
        uint64_t unit;       /* a VHD's size is rounded up to whole units */
        uint64_t size;       /* that the guest will see: conversion_run() decides */
};

/* Checks, copies, gives the new file its name. With ctl->dry_run it only checks. @source: opened
 * from @conversion->from. */
int conversion_run(const struct ctl *ctl, struct source *source, struct conversion *conversion,
        struct error *err);
/* What was made, as text or JSON. 0 or -errno. */
int conversion_report(
        const struct ctl *ctl, const struct conversion *conversion, struct error *err);

/* Reading and writing overlap, and two threads keep both going; an NBD server gets as many
 * connections, if it takes more than one. */
#define CONVERSION_LANES 2u
