/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h - what the fuzzers share. Each is one file with LLVMFuzzerTestOneInput(), and a folder of
 * inputs beside it, corpus/NAME: seeds that scripts made, and every input that once found a bug.
 *
 * Built with -Dfuzz=true (clang) the engine is libFuzzer's; else replay.c runs the inputs of the
 * corpus once, so that a bug that was found stays found, with any compiler.
 *
 * Threads    one input at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef VHDD_FUZZ_ENGINE
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
#endif

/* A property that holds for every input, or the input is a finding. */
#define HOLDS(condition)                                                                           \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__,          \
                                #condition);                                                       \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

/* Makes the checksums of the footer at either end and of the dynamic header right, wherever there
 * is one by its cookie: random bytes would get no further than the first checksum. */
void fuzz_mend_checksums(uint8_t *data, size_t size);

/* Numbers out of an input's bytes; zeros when they are used up. */
struct fuzz_bytes {
        const uint8_t *data;
        size_t size;
};
uint8_t fuzz_u8(struct fuzz_bytes *bytes);
uint32_t fuzz_u32(struct fuzz_bytes *bytes);
