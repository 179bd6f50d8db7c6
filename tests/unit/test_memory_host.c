/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: the host is left with nothing for itself; memory that guests occupy is taken for gone,
 * so that each new guest makes the others poorer; targets follow every page that the host gives or takes. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <unistd.h>

#include "vmm-glue/memory/host_memory.h"

#define MiB (UINT64_C(1) << 20)

Test(host_memory, reads_what_the_kernel_says)
{
        struct host_memory host = {0};
        struct error err = ERROR_INIT;

        cr_assert(eq(int,
                host_memory_parse(
                        "MemTotal:       24683520 kB\nMemFree:  1 kB\nMemAvailable: 2048 kB\n",
                        &host, &err),
                0));
        cr_expect(eq(u64, host.total, UINT64_C(24683520) * 1024));
        cr_expect(eq(u64, host.available, 2 * MiB));
        cr_expect(eq(int, host_memory_parse("MemTotal: 1 kB\n", &host, &err), -EBADMSG));
        cr_expect(eq(int, host_memory_parse("", &host, &err), -EBADMSG));
        cr_expect(eq(int, host_memory_parse("MemTotal: many\nMemAvailable: 2 kB\n", &host, &err),
                -EBADMSG));
        cr_assert(eq(int, host_memory_read(&host, &err), 0), "%s", err.message);
        cr_expect(ge(u64, host.total, host.available));
}

Test(host_memory, keeps_a_reserve_and_counts_what_guests_have)
{
        const struct host_memory small = {4096 * MiB, 3000 * MiB};
        const struct host_memory large = {65536 * MiB, 60000 * MiB}, full = {4096 * MiB, 100 * MiB};

        cr_expect(eq(u64, host_memory_budget(&small, 0), 2488 * MiB));
        cr_expect(eq(u64, host_memory_budget(&small, 500 * MiB), 2988 * MiB));
        cr_expect(eq(u64, host_memory_budget(&large, 0), (60000 - 4096) * MiB));
        cr_expect(eq(u64, host_memory_budget(&full, 200 * MiB), 0));
}

Test(host_memory, lets_small_changes_pass)
{
        cr_expect(eq(u64, host_memory_settle(0, 1000 * MiB), 1000 * MiB));
        cr_expect(eq(u64, host_memory_settle(1000 * MiB, 1100 * MiB), 1000 * MiB));
        cr_expect(eq(u64, host_memory_settle(1000 * MiB, 1128 * MiB), 1128 * MiB));
        cr_expect(eq(u64, host_memory_settle(1000 * MiB, 970 * MiB), 1000 * MiB));
        cr_expect(eq(u64, host_memory_settle(1000 * MiB, 968 * MiB), 968 * MiB));
}

Test(host_memory, tells_what_a_process_occupies)
{
        struct error err = ERROR_INIT;
        uint64_t before = 0, after = 0;
        size_t size = 64 * MiB;
        char *block;

        cr_assert(eq(int, host_memory_of(getpid(), &before, &err), 0), "%s", err.message);
        block = malloc(size);
        cr_assert(ne(ptr, block, NULL));
        for (size_t i = 0; i < size; i += 4096)
                ((volatile char *)block)[i] = 1;
        cr_assert(eq(int, host_memory_of(getpid(), &after, &err), 0));
        cr_expect(ge(u64, after, before + 60 * MiB));
        free(block);
        cr_expect(lt(int, host_memory_of(0, &after, &err), 0));
}
