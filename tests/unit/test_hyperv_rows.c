/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a vm comes with another weight among its fellows than it had, or with one that no vm of
 * ours can have; a number that no process of ours should have let through becomes a setting. */
#include <criterion/criterion.h>

#include "vhdd/daemon/hyperv_rows.h"

/* The settings' weight; -1: there is none. */
static json_int_t weight_of(json_int_t priority)
{
        json_t *theirs =
                json_pack("{s:I, s:I}", "startup", (json_int_t)512 << 20, "priority", priority);
        json_t *ours = hyperv_memory(theirs), *weight = json_object_get(ours, "weight");
        json_int_t ret = weight ? json_integer_value(weight) : -1;

        cr_expect_eq(json_integer_value(json_object_get(ours, "startup")), (json_int_t)512 << 20);
        json_decref(theirs);
        json_decref(ours);
        return ret;
}

Test(hyperv_rows, weights_end_where_ours_end)
{
        cr_expect_eq(weight_of(0), 1);
        cr_expect_eq(weight_of(1), 1);
        cr_expect_eq(weight_of(149), 1);
        cr_expect_eq(weight_of(150), 2);
        cr_expect_eq(weight_of(9949), 99);
        cr_expect_eq(weight_of(9950), 100);
        cr_expect_eq(weight_of(10000), 100);
}

Test(hyperv_rows, the_default_is_the_default)
{
        json_t *nothing = json_object(), *ours = hyperv_memory(nothing);

        cr_expect_eq(weight_of(5000), 50);
        cr_expect_eq(json_object_size(ours), 0);
        json_decref(ours);
        json_decref(nothing);
}

Test(hyperv_rows, what_is_out_of_range_is_left_out)
{
        static const json_int_t strange[] = {-1, 10001, INT64_MAX, INT64_MIN};

        for (size_t i = 0; i < sizeof(strange) / sizeof(strange[0]); i++) {
                json_t *theirs = json_pack("{s:I}", "buffer", strange[i]);
                json_t *ours = hyperv_memory(theirs);

                cr_expect_eq(weight_of(strange[i]), -1);
                cr_expect_eq(json_object_size(ours), 0);
                json_decref(ours);
                json_decref(theirs);
        }
}

Test(hyperv_rows, only_dynamic_memory_has_a_most)
{
        json_t *theirs = json_pack("{s:I, s:I, s:I, s:b}", "startup", (json_int_t)512 << 20, "max",
                (json_int_t)1 << 40, "buffer", (json_int_t)2000, "dynamic", 0);
        json_t *fixed = hyperv_memory(theirs), *dynamic;

        json_object_set_new(theirs, "dynamic", json_true());
        dynamic = hyperv_memory(theirs);
        cr_expect(json_object_get(fixed, "max") == NULL);
        cr_expect_eq(json_integer_value(json_object_get(dynamic, "max")), (json_int_t)1 << 40);
        cr_expect_eq(json_integer_value(json_object_get(dynamic, "buffer")), 2000);
        json_decref(theirs);
        json_decref(fixed);
        json_decref(dynamic);
}
