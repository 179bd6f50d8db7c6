/* SPDX-License-Identifier: Apache-2.0 */
/* A configuration that claims to be Hyper-V's. Whatever it says, there is an answer in the form that the
 * broker expects, or none; and every number in it is one that it may have. */
#include <assert.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vhdd/worker/hyperv.h"

static void check_range(const json_t *object, const char *key, json_int_t most)
{
        const json_t *value = json_object_get(object, key);

        assert(!value || json_is_integer(value));
        assert(json_integer_value(value) >= 0 && json_integer_value(value) <= most);
}

static void check_disks(const json_t *disks)
{
        json_t *disk;
        size_t i;

        assert(json_array_size(disks) <= HYPERV_MAX_DISKS);
        json_array_foreach((json_t *)disks, i, disk)
        {
                check_range(disk, "controller", 1);
                check_range(disk, "bus", 4095);
                check_range(disk, "unit", 4095);
                assert(json_is_string(json_object_get(disk, "path")));
                assert(json_is_string(json_object_get(disk, "kind")));
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct error err = ERROR_INIT;
        json_t *answer = NULL, *memory;
        int r = hyperv_parse(data, size, &answer, &err);

        assert(r == 0 || (!answer && err.message[0]));
        if (r < 0)
                return 0;
        memory = json_object_get(answer, "memory");
        assert(json_is_object(memory));
        check_range(memory, "startup", INT64_MAX);
        check_range(memory, "buffer", 2000);
        check_range(memory, "priority", 10000);
        check_range(answer, "cpus", 1024);
        check_disks(json_object_get(answer, "disks"));
        assert(json_array_size(json_object_get(answer, "networks")) <= HYPERV_MAX_CARDS);
        assert(json_array_size(json_object_get(answer, "unknown")) <= HYPERV_MAX_UNKNOWN);
        json_decref(answer);
        return 0;
}
