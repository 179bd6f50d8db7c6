/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/guest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/crash/driver.h"
#include "tests/crash/schedule.h"

static int do_read(const struct guest *guest, uint32_t i, unsigned flags)
{
        const struct model *model = guest->model;
        const struct op *op = &model->ops[i];
        uint64_t required = model->now.answered; /* what is answered meanwhile may be missed */
        uint8_t *bytes = malloc(op->length);
        int r = chain_read(guest->chain, bytes, op->length, op->offset, flags);

        for (uint32_t at = 0; at < op->length && r == 0; at += MODEL_CELL) {
                uint32_t cell = (op->offset + at) / MODEL_CELL;
                uint8_t value = model_value(model, cell, bytes + at);
                char text[32];

                if (!model_allows(model, cell, value, model->now.begun, required))
                        driver_violation("operation %u reads cell %u as %s", i, cell,
                                model_value_name(value, text));
        }
        free(bytes);
        return r;
}

static int do_write(const struct guest *guest, uint32_t i, unsigned flags)
{
        const struct op *op = &guest->model->ops[i];
        uint8_t *bytes = malloc(op->length);
        int r;

        for (uint32_t at = 0; at < op->length; at += MODEL_CELL)
                model_fill(guest->model, (op->offset + at) / MODEL_CELL, (uint8_t)(VALUE_OP + i),
                        bytes + at);
        r = chain_write(guest->chain, bytes, op->length, op->offset, flags);
        free(bytes);
        return r;
}

static int do_op(const struct guest *guest, uint32_t i, unsigned flags)
{
        const struct op *op = &guest->model->ops[i];

        if (op->fua)
                flags |= CHAIN_FUA;
        if (op->no_hole)
                flags |= CHAIN_NO_HOLE;
        switch (op->kind) {
        case OP_WRITE: return do_write(guest, i, flags);
        case OP_ZERO: return chain_zero(guest->chain, op->length, op->offset, flags);
        case OP_TRIM: return chain_trim(guest->chain, op->length, op->offset, flags);
        case OP_READ: return do_read(guest, i, flags);
        case OP_FLUSH: return chain_flush(guest->chain);
        }
        return -EINVAL;
}

void guest_perform(const struct guest *guest, uint32_t i)
{
        struct model *model = guest->model;
        const struct op *op = &model->ops[i];
        uint64_t answered = model->now.answered;
        char text[96];
        int r = -EAGAIN;

        if (driver_options.trace)
                fprintf(stderr, "  [%u] operation %u begins: %s\n", schedule_self(), i,
                        model_op_name(op, text));
        model_begin(model, i);
        if (op->nowait && op->kind != OP_FLUSH)
                r = do_op(guest, i, CHAIN_NOWAIT);
        if (r == -EAGAIN)
                r = do_op(guest, i, 0);
        if (r < 0 && !instants_may_fail(guest->instants) && chain_is_writable(guest->chain))
                driver_violation(
                        "operation %u (%s) fails: %s", i, model_op_name(op, text), strerror(-r));
        model_end(model, i, r == 0, answered);
        if (driver_options.trace)
                fprintf(stderr, "  [%u] operation %u: %s\n", schedule_self(), i,
                        r == 0 ? "answered" : strerror(-r));
        instants_take(guest->instants);
}

void *guest_main(void *opaque)
{
        const struct guest *guest = opaque;

        for (uint32_t i = 0; i < guest->model->n_ops; i++)
                if (guest->model->ops[i].thread == guest->thread &&
                        guest->model->ops[i].life == guest->life)
                        guest_perform(guest, i);
        return NULL;
}
