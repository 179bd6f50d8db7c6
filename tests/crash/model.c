/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/model.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "tests/crash/random.h"

static uint64_t bit(uint32_t op)
{
        return UINT64_C(1) << op;
}

void model_init(struct model *model, uint64_t seed, uint32_t n_cells)
{
        assert(n_cells <= MODEL_MAX_CELLS);
        memset(model, 0, sizeof(*model));
        model->seed = seed;
        model->n_cells = n_cells;
}

uint32_t model_add(struct model *model, const struct op *op)
{
        uint32_t i = model->n_ops++;

        assert(i < MODEL_MAX_OPS);
        model->ops[i] = *op;
        if (op->kind == OP_READ || op->kind == OP_FLUSH)
                return i;
        assert(op->offset % MODEL_CELL == 0);
        assert(op->length % MODEL_CELL == 0);
        for (uint32_t c = op->offset / MODEL_CELL; c < (op->offset + op->length) / MODEL_CELL; c++)
                model->touched[c] |= bit(i);
        if (op->kind != OP_TRIM)
                model->hiding |= bit(i);
        if (op->kind != OP_WRITE)
                model->zeroing |= bit(i);
        return i;
}

void model_restart(struct model *model, const uint8_t values[])
{
        memcpy(model->initial, values, model->n_cells);
        for (uint32_t c = 0; c < model->n_cells; c++)
                model->touched[c] &= ~model->now.begun;
}

void model_begin(struct model *model, uint32_t op)
{
        model->before[op] = model->now.ended;
        model->now.begun |= bit(op);
}

void model_end(struct model *model, uint32_t op, bool success, uint64_t answered_at_start)
{
        model->now.ended |= bit(op);
        if (!success)
                return;
        model->now.answered |= bit(op);
        if (model->ops[op].kind == OP_FLUSH)
                model->now.covered |= answered_at_start;
        if (model->ops[op].fua)
                model->now.covered |= bit(op);
}

void model_fill(const struct model *model, uint32_t cell, uint8_t value, uint8_t ret[MODEL_CELL])
{
        struct random random = {
                .state = random_mix(model->seed) ^ random_mix((uint64_t)value << 32 | cell)};

        memset(ret, 0, MODEL_CELL);
        if (value == VALUE_ZERO)
                return;
        ret[0] = value;
        for (uint32_t i = 8; i < MODEL_CELL; i += 8) {
                uint64_t word = random_next(&random);

                memcpy(ret + i, &word, sizeof(word));
        }
}

uint8_t model_value(const struct model *model, uint32_t cell, const uint8_t bytes[MODEL_CELL])
{
        uint8_t want[MODEL_CELL];

        if (bytes[0] == 0)
                return bytes_are_zero(bytes, MODEL_CELL) ? VALUE_ZERO : VALUE_UNKNOWN;
        model_fill(model, cell, bytes[0], want);
        return memcmp(want, bytes, MODEL_CELL) == 0 ? bytes[0] : VALUE_UNKNOWN;
}

/* Is there a required operation after the one in @value's set (0: the initial value)? */
static bool is_hidden(const struct model *model, uint64_t value, uint64_t required)
{
        for (uint64_t left = required & ~value; left; left &= left - 1) {
                uint32_t op = (uint32_t)__builtin_ctzll(left);

                if (value == 0 || (model->before[op] & value))
                        return true;
        }
        return false;
}

bool model_allows(
        const struct model *model, uint32_t cell, uint8_t value, uint64_t begun, uint64_t required)
{
        uint64_t candidates = model->touched[cell] & begun;

        required &= model->touched[cell] & model->hiding;
        if (value == model->initial[cell] && !is_hidden(model, 0, required))
                return true;
        if (value == VALUE_ZERO) {
                for (uint64_t left = candidates & model->zeroing; left; left &= left - 1)
                        if (!is_hidden(model, left & -left, required))
                                return true;
                return false;
        }
        if (value < VALUE_OP || value >= VALUE_OP + model->n_ops)
                return false;
        candidates &= bit(value - VALUE_OP) & ~model->zeroing;
        return candidates && !is_hidden(model, candidates, required);
}

const char *model_value_name(uint8_t value, char text[32])
{
        if (value == VALUE_ZERO)
                return "zeros";
        if (value == VALUE_UNKNOWN)
                return "garbage";
        if (value >= VALUE_LAYER)
                snprintf(text, 32, "layer %u's own", value - VALUE_LAYER);
        else
                snprintf(text, 32, "operation %u", value - VALUE_OP);
        return text;
}

const char *model_op_name(const struct op *op, char text[96])
{
        static const char *const kinds[] = {"write", "zero", "trim", "read", "flush"};

        if (op->kind == OP_FLUSH)
                return "flush";
        snprintf(text, 96, "%s %u+%u%s%s%s", kinds[op->kind], op->offset, op->length,
                op->fua ? " fua" : "", op->no_hole ? " no-hole" : "", op->nowait ? " nowait" : "");
        return text;
}
