/* SPDX-License-Identifier: Apache-2.0 */
/* model.h - what a disk may read as after a crash, told from the operations alone.
 *
 * The disk is cut in cells of 256 bytes (half a sector, so that writes that are not whole sectors
 * can be seen). Each operation that writes fills its cells with bytes that name it, so what is read
 * back says which operation it came from. An operation has begun, has ended, was answered without
 * an error, and may be covered: a flush that began after its answer was answered too, or it was
 * itself FUA. What may be read is then (rules E3 and E4):
 *   after a power cut         the required set are the covered operations,
 *   after a process's death   the answered ones;
 *   a cell may hold the value of any operation that has begun, or its value from before, unless a
 *   required operation wrote the cell and began after that value's operation had ended. A trim
 *   never hides what was there before it.
 *
 * Units      bytes, cells, and operations as bits of a 64-bit set.
 * Threads    one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_CELL      256u
#define MODEL_MAX_CELLS 512u
#define MODEL_MAX_OPS   64u

/* What a cell holds. */
#define VALUE_ZERO    0u   /* zeros */
#define VALUE_OP      1u   /* VALUE_OP + i: operation i wrote it */
#define VALUE_LAYER   100u /* VALUE_LAYER + l: image l of the chain had it from the start */
#define VALUE_UNKNOWN 255u /* anything else: garbage, or two values mixed */

enum op_kind { OP_WRITE, OP_ZERO, OP_TRIM, OP_READ, OP_FLUSH };

struct op {
        enum op_kind kind;
        uint32_t offset, length; /* bytes, whole cells */
        bool fua, no_hole, nowait;
        uint8_t thread; /* which of the run's threads does it */
        uint8_t life;   /* before or after the first crash */
};

/* How far the operations were at one instant. */
struct moment {
        uint64_t begun, ended, answered, covered;
};

struct model {
        uint64_t seed;
        uint32_t n_cells;
        uint32_t n_ops;
        struct op ops[MODEL_MAX_OPS];
        uint8_t initial[MODEL_MAX_CELLS];  /* values before the first operation */
        uint64_t touched[MODEL_MAX_CELLS]; /* operations that write, zero or trim the cell */
        uint64_t hiding;                   /* all that hide what was there: writes and zeros */
        uint64_t zeroing;                  /* all whose value is zeros: zeros and trims */
        uint64_t before[MODEL_MAX_OPS];    /* what had ended when it began */
        struct moment now;
};

void model_init(struct model *model, uint64_t seed, uint32_t n_cells);
uint32_t model_add(struct model *model, const struct op *op); /* answers its number */
/* Forgets all operations so far: this is what the cells hold. */
void model_restart(struct model *model, const uint8_t values[]);

void model_begin(struct model *model, uint32_t op);
/* @answered_at_start: of a flush, model->now.answered when it began. */
void model_end(struct model *model, uint32_t op, bool success, uint64_t answered_at_start);

/* The bytes of a cell that holds @value. */
void model_fill(const struct model *model, uint32_t cell, uint8_t value, uint8_t ret[MODEL_CELL]);
/* The value that these bytes stand for. */
uint8_t model_value(const struct model *model, uint32_t cell, const uint8_t bytes[MODEL_CELL]);

/* May the cell read as @value, with @begun under way and @required not to be lost? */
bool model_allows(const struct model *model, uint32_t cell, uint8_t value, uint64_t begun,
                  uint64_t required);
/* "zeros", "write 3", "layer 1's own", "garbage" */
const char *model_value_name(uint8_t value, char text[32]);
const char *model_op_name(const struct op *op, char text[96]);
