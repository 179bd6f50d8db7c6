/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h - what the fuzzers share: an input as an image, and sums that are right again.
 *
 * An input is: one byte of flags, one byte that says how much longer the file is than the input, and
 * the file's bytes; where it is longer, the last 512 of them are its end. A changed byte would nearly
 * always die at a checksum, so a flag has the sums of footers, header and batmap made right first.
 *
 * Threads    one input at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/memfs.h"

#define FUZZ_PATH     "/d/image.vhd"
#define FUZZ_MAX_SIZE (1u << 20)

enum fuzz_flags {
        FUZZ_MEND_SUMS = 1u << 0,
        FUZZ_FORCE = 1u << 1,
        FUZZ_USE_HEAD = 1u << 2,
        FUZZ_USE_TAIL = 1u << 3,
        FUZZ_DEEP = 1u << 4,
        FUZZ_OLD_FOOTER = 1u << 5, /* the file ends one byte earlier */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input as FUZZ_PATH, open for writing; NULL: too short or too long. *ret_flags: its flags. */
struct file *fuzz_image(struct memfs *memfs, const uint8_t *data, size_t size, unsigned *ret_flags);
/* The second copy, for a fuzzer that compares: closes nothing. */
struct file *fuzz_reopen(struct memfs *memfs);
