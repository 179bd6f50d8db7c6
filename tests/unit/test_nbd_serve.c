/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong once a client has an export: bytes that are not the disk's, a reply to the wrong
 * request, a command that a read-only export lets through, an offset or length that wraps, a payload
 * that is taken for the next request, a flush that answers before the disk did, an error that the
 * client never hears of. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define DISK_SIZE ((8u << 20) + 512)
#define BIG       (3u << 20)

static struct nbd_server *server;
static struct chain *chain;
static struct fake_switches *switches;
static uint8_t *disk;
static uint8_t buffer[BIG], buffer2[BIG];

static uint32_t seed = 1;

static uint32_t random32(void)
{
        seed = seed * 1664525 + 1013904223;
        return seed >> 8 | seed << 24;
}

static void fill(uint8_t *data, size_t length)
{
        for (size_t i = 0; i < length; i++)
                data[i] = (uint8_t)random32();
}

static void start_with(const struct nbd_server_options *options)
{
        struct nbd_export_options export = {
                .name = "disk",
                .chain = chain = fake_chain_new(DISK_SIZE, 3, true),
        };
        struct nbd_export_options look = {.name = "look", .chain = chain, .read_only = true};
        struct error err = ERROR_INIT;

        switches = fake_chain_switches(chain);
        disk = fake_chain_bytes(chain);
        cr_assert(eq(int, nbd_server_new(options, &server, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &export, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &look, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
}

static void start(void)
{
        start_with(NULL);
}

static void stop(void)
{
        struct error err = ERROR_INIT;

        cr_assert(eq(int, nbd_server_stop(server, 5000, &err), 0), "%s", err.message);
        server = nbd_server_free(server);
        chain = chain_abandon(chain);
}

TestSuite(nbd_serve, .init = start, .fini = stop, .timeout = 60);
TestSuite(nbd_serve_own, .timeout = 60);

static int go(const char *name, bool structured, const char *const *contexts)
{
        int fd = client_connect(server);

        client_go(fd, name, structured, contexts, NULL);
        return fd;
}

/* The disk is the model: what it holds is what must come, by every path. */
static void check_reads(int fd)
{
        static const uint32_t lengths[] = {1, 511, 512, 4096, 8191, 65536, 100001, 1u << 20, BIG};

        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
                uint64_t offsets[] = {0, 1, 4095, DISK_SIZE - lengths[i], 123457};

                for (size_t j = 0; j < 5; j++) {
                        memset(buffer, 0xaa, lengths[i]);
                        cr_assert(eq(int, client_read(fd, buffer, lengths[i], offsets[j]), 0));
                        cr_assert(memcmp(buffer, disk + offsets[j], lengths[i]) == 0,
                                "%u bytes at %lu", lengths[i], offsets[j]);
                }
        }
}

/* Data, zeros and nothing in runs of all lengths. */
static void mix_disk(void)
{
        for (uint64_t at = 0; at < DISK_SIZE;) {
                uint64_t length = FAKE_BLOCK * (1 + random32() % 40);
                enum extent_kind kind = (enum extent_kind)(random32() % 3);

                length = MIN_OF(length, DISK_SIZE - at);
                fill(disk + at, length);
                fake_chain_set(chain, at, length, kind, random32() % 3);
                at += length;
        }
}

Test(nbd_serve, reads_give_the_disk_s_bytes_by_every_path)
{
        struct nbd_server_counters counters;

        for (int structured = 0; structured < 2; structured++) {
                for (int cold = 0; cold < 2; cold++) {
                        int fd = go("disk", structured, NULL);

                        atomic_store(&switches->cold_reads, cold);
                        fill(disk, DISK_SIZE);
                        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
                        check_reads(fd);
                        mix_disk();
                        check_reads(fd);
                        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_ABSENT, 0);
                        check_reads(fd);
                        close(fd);
                }
        }
        nbd_server_counters_get(server, &counters);
        cr_expect(gt(u64, counters.inline_reads, 0));
        cr_expect(gt(u64, counters.sendfile_reads, 0));
        cr_expect(gt(u64, counters.pool_reads, 0));
}

Test(nbd_serve, zeros_come_as_holes_and_df_as_one_chunk)
{
        struct nbd_answer answer;
        int fd = go("disk", true, NULL);

        fill(disk, 1u << 20);
        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 0);
        fake_chain_set(chain, 256u << 10, 64u << 10, EXTENT_ZERO, 0);
        fake_chain_set(chain, 320u << 10, 64u << 10, EXTENT_ABSENT, 0);
        for (int cold = 0; cold < 2; cold++) {
                atomic_store(&switches->cold_reads, cold);
                client_request(fd, NBD_CMD_READ, 0, 7, 0, 1u << 20);
                client_answer_get(fd, &answer, buffer, 0, 1u << 20);
                cr_expect(eq(u32, answer.hole_bytes, 128u << 10));
                cr_expect(memcmp(buffer, disk, 1u << 20) == 0);

                client_request(fd, NBD_CMD_READ, NBD_CMD_FLAG_DF, 8, 0, 1u << 20);
                client_answer_get(fd, &answer, buffer, 0, 1u << 20);
                cr_expect(eq(u32, answer.hole_bytes, 0));
                /* One chunk of data; another may say that it is over. */
                cr_expect(eq(u32, answer.data_bytes, 1u << 20));
                cr_expect(le(uint, answer.chunks, 2));
                cr_expect(memcmp(buffer, disk, 1u << 20) == 0);
        }
        client_request(fd, NBD_CMD_READ, 0, 9, 300u << 10, 4096);
        client_answer_get(fd, &answer, buffer, 300u << 10, 4096);
        cr_expect(eq(u32, answer.hole_bytes, 4096));
        close(fd);
}

/* Writes, zeros, trims and reads in random order and of random sizes, against a copy. */
static void run_model(int fd, unsigned n)
{
        static uint8_t model[DISK_SIZE];

        memcpy(model, disk, DISK_SIZE);
        for (unsigned i = 0; i < n; i++) {
                uint32_t limit = random32() % 8 ? 20000 : BIG;
                uint32_t length = 1 + random32() % limit;
                uint64_t offset = random32() % (DISK_SIZE - length);
                uint16_t fua = random32() % 4 ? 0 : NBD_CMD_FLAG_FUA;

                atomic_store(&switches->cold_reads, random32() % 4 == 0);
                atomic_store(&switches->cold_writes, random32() % 4 == 0);
                switch (random32() % 5) {
                case 0:
                case 1:
                        fill(buffer, length);
                        memcpy(model + offset, buffer, length);
                        cr_assert(eq(u32, client_write(fd, buffer, length, offset, fua), 0));
                        break;
                case 2:
                        memset(model + offset, 0, length);
                        cr_assert(eq(
                                u32, client_do(fd, NBD_CMD_WRITE_ZEROES, fua, offset, length), 0));
                        break;
                case 3:
                        /* The fake clears what it trims. */
                        memset(model + offset, 0, length);
                        cr_assert(eq(u32, client_do(fd, NBD_CMD_TRIM, fua, offset, length), 0));
                        break;
                default:
                        cr_assert(eq(u32, client_read(fd, buffer2, length, offset), 0));
                        cr_assert(memcmp(buffer2, model + offset, length) == 0);
                }
        }
        cr_assert(memcmp(model, disk, DISK_SIZE) == 0);
}

Test(nbd_serve, random_commands_agree_with_a_model)
{
        for (int structured = 0; structured < 2; structured++) {
                int fd = go("disk", structured, NULL);

                run_model(fd, 400);
                close(fd);
        }
        cr_expect(gt(u64, fake_chain_fua_writes(chain), 0));
}

/* Many requests at once: each reply finds its request, whatever the order. */
Test(nbd_serve, a_hundred_requests_in_flight_are_all_answered)
{
        static uint8_t data[128][4096];
        bool seen[128] = {false};
        int fd = go("disk", true, NULL);

        fill(disk, DISK_SIZE);
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        for (int round = 0; round < 20; round++) {
                memset(seen, 0, sizeof(seen));
                for (unsigned i = 0; i < 128; i++) {
                        atomic_store(&switches->cold_reads, random32() % 2);
                        client_request(fd, NBD_CMD_READ, 0, i, i * 4096, 4096);
                }
                for (unsigned i = 0; i < 128; i++) {
                        struct nbd_answer answer;
                        uint8_t one[4096];

                        /* The offset that came tells which it was. */
                        struct nbd_wire_data_chunk chunk;
                        client_receive(fd, &chunk, sizeof(chunk));
                        memcpy(&answer.cookie, chunk.chunk.cookie, 8);
                        cr_assert(lt(u64, answer.cookie, 128));
                        cr_assert(not(seen[answer.cookie]));
                        cr_assert(eq(u64, be64_get(chunk.offset), answer.cookie * 4096));
                        client_receive(fd, one, sizeof(one));
                        memcpy(data[answer.cookie], one, sizeof(one));
                        seen[answer.cookie] = true;
                }
                cr_assert(memcmp(data, disk, sizeof(data)) == 0);
        }
        close(fd);
}

Test(nbd_serve, requests_that_make_no_sense_are_told_so_and_the_next_is_served)
{
        static const struct {
                uint16_t type, flags;
                uint64_t offset;
                uint32_t length, error;
        } bad[] = {
                {NBD_CMD_READ, 0, 0, 0, NBD_EINVAL},
                {NBD_CMD_READ, 0, DISK_SIZE, 1, NBD_EINVAL},
                {NBD_CMD_READ, 0, DISK_SIZE - 1, 2, NBD_EINVAL},
                {NBD_CMD_READ, 0, UINT64_MAX, 1, NBD_EINVAL},
                {NBD_CMD_READ, 0, UINT64_MAX - 511, 512, NBD_EINVAL},
                {NBD_CMD_READ, 0, 1ull << 63, 512, NBD_EINVAL},
                {NBD_CMD_READ, 0, 0, UINT32_MAX, NBD_EINVAL},
                {NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL},
                {NBD_CMD_READ, 0x8000, 0, 512, NBD_EINVAL},
                {NBD_CMD_TRIM, 0, DISK_SIZE - 1, 2, NBD_EINVAL},
                {NBD_CMD_TRIM, 0, 1, UINT32_MAX, NBD_EINVAL},
                {NBD_CMD_TRIM, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL},
                {NBD_CMD_WRITE_ZEROES, 0, DISK_SIZE, 1, NBD_ENOSPC},
                {NBD_CMD_WRITE_ZEROES, 0, 0, 0, NBD_EINVAL},
                {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL},
                {NBD_CMD_FLUSH, 0, 1, 0, NBD_EINVAL},
                {NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL},
                {NBD_CMD_CACHE, 0, DISK_SIZE, 4096, NBD_EINVAL},
                {NBD_CMD_BLOCK_STATUS, 0, 0, 512, NBD_EINVAL}, /* no context was agreed on */
                {8, 0, 0, 512, NBD_EINVAL},
                {0xffff, 0, 0, 512, NBD_EINVAL},
        };

        for (int structured = 0; structured < 2; structured++) {
                int fd = go("disk", structured, NULL);

                for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                        cr_expect(eq(u32,
                                          client_do(fd, bad[i].type, bad[i].flags, bad[i].offset,
                                                  bad[i].length),
                                          bad[i].error),
                                "case %zu", i);
                if (!structured)
                        cr_expect(eq(u32, client_do(fd, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512),
                                NBD_EINVAL));
                cr_assert(eq(u32, client_read(fd, buffer, 512, 0), 0));
                close(fd);
        }
}

/* The payload of a write that fails must not be taken for requests. */
Test(nbd_serve, payloads_of_failing_writes_are_consumed)
{
        static const uint32_t lengths[] = {1, 512, 65536, 200000, BIG};
        int fd = go("disk", true, NULL);
        int look = go("look", false, NULL);

        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
                memset(buffer, 0x25, lengths[i]);
                cr_expect(
                        eq(u32, client_write(fd, buffer, lengths[i], DISK_SIZE - lengths[i] + 1, 0),
                                NBD_ENOSPC));
                cr_expect(eq(
                        u32, client_write(fd, buffer, lengths[i], UINT64_MAX - 5, 0), NBD_ENOSPC));
                cr_expect(eq(u32, client_write(look, buffer, lengths[i], 0, 0), NBD_EPERM));
                atomic_store(&switches->write_error, -ENOSPC);
                cr_expect(eq(u32, client_write(fd, buffer, lengths[i], 0, 0), NBD_ENOSPC));
                atomic_store(&switches->write_error, -EIO);
                cr_expect(eq(
                        u32, client_write(fd, buffer, lengths[i], 0, NBD_CMD_FLAG_FUA), NBD_EIO));
                atomic_store(&switches->write_error, 0);
                cr_expect(eq(u32, client_read(fd, buffer2, 100, 0), 0));
        }
        cr_expect(bytes_are_zero(disk, DISK_SIZE));
        cr_expect(eq(u32, client_write(fd, buffer, 0, 0, 0), NBD_EINVAL));
        close(fd);
        close(look);
}

Test(nbd_serve, a_read_only_export_takes_no_change)
{
        int fd = go("look", true, NULL);

        cr_expect(eq(u32, client_write(fd, "x", 1, 0, 0), NBD_EPERM));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_TRIM, 0, 0, 4096), NBD_EPERM));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, 0, 0, 4096), NBD_EPERM));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));
        close(fd);
}

Test(nbd_serve, a_write_longer_than_offered_ends_the_connection)
{
        int fd = go("disk", true, NULL);

        client_request(fd, NBD_CMD_WRITE, 0, 1, 0, NBD_REQUEST_MAX + 1);
        cr_assert(client_sees_silent_end(fd));
        close(fd);

        fd = go("disk", true, NULL);
        client_request(fd, NBD_CMD_WRITE, 0, 1, 0, UINT32_MAX);
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

Test(nbd_serve, a_request_without_magic_ends_the_connection)
{
        uint8_t junk[28] = {1, 2, 3};
        int fd = go("disk", true, NULL);

        client_send(fd, junk, sizeof(junk));
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

Test(nbd_serve, disc_ends_after_what_came_before_it)
{
        uint8_t data[4096];
        struct nbd_answer answer;
        int fd = go("disk", false, NULL);

        atomic_store(&switches->cold_reads, true);
        client_request(fd, NBD_CMD_READ, 0, 5, 0, 4096);
        client_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
        client_request(fd, NBD_CMD_READ, 0, 6, 0, 4096);
        client_answer_get(fd, &answer, data, 0, 4096);
        cr_assert(eq(u64, answer.cookie, 5));
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

/* A client that has said all it has to say still gets every reply. */
Test(nbd_serve, a_half_closed_connection_gets_its_replies)
{
        struct nbd_answer answer;
        int fd = go("disk", false, NULL);

        atomic_store(&switches->cold_reads, true);
        for (uint64_t i = 0; i < 50; i++)
                client_request(fd, NBD_CMD_READ, 0, i, 0, 4096);
        shutdown(fd, SHUT_WR);
        for (uint64_t i = 0; i < 50; i++)
                client_answer_get(fd, &answer, buffer, 0, 4096);
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

Test(nbd_serve, errors_of_the_disk_reach_the_client)
{
        static const struct {
                int code;
                uint32_t error;
        } table[] = {
                {-EIO, NBD_EIO},
                {-ENOSPC, NBD_ENOSPC},
                {-EDQUOT, NBD_ENOSPC},
                {-EROFS, NBD_EPERM},
                {-ENOMEM, NBD_ENOMEM},
                {-EUCLEAN, NBD_EIO},
                {-EINVAL, NBD_EINVAL},
                {-ESTALE, NBD_EIO},
        };

        for (int structured = 0; structured < 2; structured++) {
                int fd = go("disk", structured, NULL);

                for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
                        atomic_store(&switches->read_error, table[i].code);
                        atomic_store(&switches->write_error, table[i].code);
                        atomic_store(&switches->flush_error, table[i].code);
                        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), table[i].error));
                        cr_expect(eq(u32, client_write(fd, buffer, 512, 0, 0), table[i].error));
                        cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), table[i].error));
                }
                atomic_store(&switches->read_error, 0);
                atomic_store(&switches->write_error, 0);
                atomic_store(&switches->flush_error, 0);
                close(fd);
        }
}

/* A bad block in the middle of a long read: the error says where. */
Test(nbd_serve, a_structured_error_names_its_offset)
{
        struct nbd_answer answer;
        int fd = go("disk", true, NULL);

        fill(disk, 1u << 20);
        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 0);
        fake_chain_set(chain, 128u << 10, 64u << 10, EXTENT_ZERO, 0);
        atomic_store(&switches->cold_reads, true);
        atomic_store(&switches->bad_offset, 200u << 10);
        atomic_store(&switches->read_error, -EIO);
        client_request(fd, NBD_CMD_READ, 0, 1, 0, 1u << 20);
        client_answer_get(fd, &answer, buffer, 0, 1u << 20);
        cr_expect(eq(u32, answer.error, NBD_EIO));
        cr_expect(answer.has_error_offset);
        cr_expect(eq(u64, answer.error_offset, 192u << 10));
        close(fd);
}

Test(nbd_serve, fast_zero_and_cache_and_no_hole)
{
        struct chain_extent extent;
        int fd = go("disk", true, NULL);

        cr_expect(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 8192), 0));
        atomic_store(&switches->no_fast_zero, true);
        cr_expect(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 8192),
                NBD_ENOTSUP));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 8192), 0));
        chain_map(chain, 0, 8192, 0, &extent);
        cr_expect(eq(int, extent.kind, EXTENT_DATA));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_CACHE, 0, 0, DISK_SIZE), 0));
        cr_expect(eq(u64, fake_chain_caches(chain), 1));
        close(fd);
}

/* ---- block status ---- */

static const char *const all_contexts[] = {
        "base:allocation", "vhdd:depth", "qemu:allocation-depth", NULL};

static void ask_status(
        int fd, struct nbd_answer *ret, uint16_t flags, uint64_t offset, uint32_t length)
{
        client_request(fd, NBD_CMD_BLOCK_STATUS, flags, 3, offset, length);
        client_answer_get(fd, ret, NULL, 0, 0);
}

Test(nbd_serve, block_status_tells_allocation_and_depth)
{
        static const uint32_t lengths[] = {8192, 4096, 4096, 16384};
        static const uint32_t depths[] = {1, 2, 3, 0};
        struct nbd_answer answer;
        int fd = go("disk", true, all_contexts);

        fake_chain_set(chain, 0, 8192, EXTENT_DATA, 0);
        fake_chain_set(chain, 8192, 4096, EXTENT_DATA, 1);
        fake_chain_set(chain, 12288, 4096, EXTENT_ZERO, 2);
        for (int cold = 0; cold < 2; cold++) {
                atomic_store(&switches->cold_reads, cold);
                ask_status(fd, &answer, 0, 0, 32768);
                cr_assert(eq(u32, answer.error, 0));
                cr_assert(eq(uint, answer.n_contexts, 3));
                cr_expect(eq(u32, answer.contexts[0].id, 1));
                cr_assert(eq(uint, answer.contexts[0].n, 2));
                cr_expect(eq(u32, answer.contexts[0].length[0], 12288));
                cr_expect(eq(u32, answer.contexts[0].flags[0], 0));
                cr_expect(eq(u32, answer.contexts[0].length[1], 20480));
                cr_expect(eq(u32, answer.contexts[0].flags[1], NBD_STATE_HOLE | NBD_STATE_ZERO));
                for (unsigned c = 1; c < 3; c++) {
                        cr_assert(eq(uint, answer.contexts[c].n, 4));
                        for (unsigned i = 0; i < 4; i++) {
                                cr_expect(eq(u32, answer.contexts[c].length[i], lengths[i]));
                                cr_expect(eq(u32, answer.contexts[c].flags[i], depths[i]));
                        }
                }
        }
        ask_status(fd, &answer, NBD_CMD_FLAG_REQ_ONE, 4096, 28672);
        cr_assert(eq(uint, answer.n_contexts, 3));
        cr_assert(eq(uint, answer.contexts[0].n, 1));
        cr_expect(eq(u32, answer.contexts[0].length[0], 8192));
        cr_assert(eq(uint, answer.contexts[1].n, 1));
        cr_expect(eq(u32, answer.contexts[1].length[0], 4096));
        close(fd);
}

/* CVE-2025-47711, 47712: ends of disks and lengths of 2^32 - 1; and single bytes. */
Test(nbd_serve, block_status_stays_inside_the_request)
{
        static const char *const one[] = {"vhdd:depth", NULL};
        struct nbd_answer answer;
        int fd = go("disk", true, one);

        ask_status(fd, &answer, 0, DISK_SIZE - 1, 1);
        cr_assert(eq(u32, answer.contexts[0].length[0], 1));
        ask_status(fd, &answer, 0, 5, 3);
        cr_assert(eq(u32, answer.contexts[0].length[0], 3));
        cr_assert(eq(u32, answer.contexts[0].id, 2));
        ask_status(fd, &answer, 0, DISK_SIZE - 1, 2);
        cr_assert(eq(u32, answer.error, NBD_EINVAL));
        ask_status(fd, &answer, 0, 0, UINT32_MAX);
        cr_assert(eq(u32, answer.error, NBD_EINVAL));
        ask_status(fd, &answer, 0, 0, 0);
        cr_assert(eq(u32, answer.error, NBD_EINVAL));
        atomic_store(&switches->map_error, -EIO);
        ask_status(fd, &answer, 0, 0, 512);
        cr_assert(eq(u32, answer.error, NBD_EIO));
        atomic_store(&switches->map_error, 0);
        close(fd);
}

/* More runs than one reply takes: it ends early, and the client asks on. */
Test(nbd_serve, block_status_of_a_chequered_disk_comes_in_parts)
{
        static const char *const one[] = {"base:allocation", NULL};
        struct nbd_answer answer;
        int fd = go("disk", true, one);

        for (uint64_t at = 0; at < DISK_SIZE - 512; at += 2 * FAKE_BLOCK)
                fake_chain_set(chain, at, FAKE_BLOCK, EXTENT_DATA, 0);
        ask_status(fd, &answer, 0, 0, DISK_SIZE);
        cr_assert(eq(u32, answer.error, 0));
        for (unsigned i = 0; i < answer.contexts[0].n; i++) {
                cr_assert(eq(u32, answer.contexts[0].length[i], FAKE_BLOCK));
                cr_assert(eq(u32, answer.contexts[0].flags[i], i % 2 ? 3 : 0));
        }
        close(fd);
}

/* ---- flushes ---- */

/* The reply comes after the disk's, and those who came meanwhile share the next one. */
Test(nbd_serve, flushes_are_grouped_and_never_answered_early)
{
        struct nbd_server_counters counters;
        struct nbd_answer answer;
        uint8_t byte;
        int fd = go("disk", true, NULL);

        atomic_store(&switches->hold_flushes, true);
        client_request(fd, NBD_CMD_FLUSH, 0, 0, 0, 0);
        while (atomic_load(&switches->flushes_held) < 1)
                usleep(500);
        for (uint64_t i = 1; i <= 20; i++)
                client_request(fd, NBD_CMD_FLUSH, 0, i, 0, 0);
        /* A read that is answered shows that the flushes were taken, and hold nobody up. */
        cr_assert(eq(u32, client_read(fd, buffer, 512, 0), 0));
        cr_assert(lt(int, recv(fd, &byte, 1, MSG_DONTWAIT), 0));
        atomic_store(&switches->hold_flushes, false);
        for (int i = 0; i <= 20; i++) {
                client_answer_get(fd, &answer, NULL, 0, 0);
                cr_assert(eq(u32, answer.error, 0));
        }
        nbd_server_counters_get(server, &counters);
        cr_expect(eq(u64, counters.flushes_asked, 21));
        cr_expect(eq(u64, counters.flushes_done, 2));
        close(fd);
}

/* While a snapshot waits for its commit FUA is answered with the flushes, and takes no thread each:
 * more of them than there are threads hold nobody up. */
Test(nbd_serve, fua_waits_for_a_commit_among_the_flushes)
{
        static const unsigned types[] = {NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM};
        struct nbd_answer answer;
        uint8_t byte;
        int fd = go("disk", true, NULL);

        atomic_store(&switches->uncommitted, true);
        atomic_store(&switches->cold_reads, true);
        atomic_store(&switches->hold_flushes, true);
        for (uint64_t i = 0; i < 60; i++) {
                unsigned type = types[i % 3];

                client_request(fd, (uint16_t)type, NBD_CMD_FLAG_FUA, i, i * 4096, 4096);
                if (type == NBD_CMD_WRITE)
                        client_send(fd, buffer, 4096);
        }
        while (atomic_load(&switches->flushes_held) < 1)
                usleep(500);
        cr_assert(eq(u32, client_read(fd, buffer, 512, 0), 0));
        cr_assert(lt(int, recv(fd, &byte, 1, MSG_DONTWAIT), 0));
        atomic_store(&switches->hold_flushes, false);
        for (int i = 0; i < 60; i++) {
                client_answer_get(fd, &answer, NULL, 0, 0);
                cr_assert(eq(u32, answer.error, 0));
        }
        close(fd);
}

Test(nbd_serve_own, a_bound_on_unsynced_bytes_begins_a_flush)
{
        struct nbd_server_options options = {.max_unsynced_bytes = 1u << 20};
        struct nbd_server_counters counters;
        int fd;

        start_with(&options);
        fd = go("disk", true, NULL);
        for (int i = 0; i < 64; i++)
                cr_assert(eq(u32, client_write(fd, buffer, 65536, 0, 0), 0));
        close(fd);
        nbd_server_stop(server, 5000, NULL);
        nbd_server_counters_get(server, &counters);
        cr_expect(ge(u64, counters.flushes_done, 3));
        nbd_server_free(server);
        chain_abandon(chain);
}

/* Cold pages, with the map at hand: the ring's work, or the pool's. */
Test(nbd_serve_own, cold_reads_through_io_uring_and_without)
{
        for (int without = 0; without < 2; without++) {
                struct nbd_server_options options = {.no_io_uring = without, .no_sendfile = true};
                struct nbd_server_counters counters;

                start_with(&options);
                atomic_store(&switches->cold_pages, true);
                fill(disk, DISK_SIZE);
                fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
                for (int structured = 0; structured < 2; structured++) {
                        int fd = go("disk", structured, NULL);

                        check_reads(fd);
                        close(fd);
                }
                nbd_server_counters_get(server, &counters);
                cr_expect(eq(u64, counters.inline_reads, 0));
                cr_expect(gt(u64, counters.ring_reads + counters.pool_reads, 0));
                if (without || !counters.io_uring)
                        cr_expect(eq(u64, counters.ring_reads, 0));
                else
                        cr_expect(eq(u64, counters.pool_reads, 0));
                mix_disk();
                for (int structured = 0; structured < 2; structured++) {
                        int fd = go("disk", structured, NULL);

                        check_reads(fd);
                        run_model(fd, 100);
                        close(fd);
                }
                stop();
        }
}

/* More at once than the ring takes, and an image that was cut short under it. */
Test(nbd_serve_own, the_ring_s_bound_and_its_failures_go_to_the_pool)
{
        struct nbd_server_options options = {.no_sendfile = true};
        struct nbd_answer answer;
        int fds[4];

        start_with(&options);
        atomic_store(&switches->cold_pages, true);
        fill(disk, DISK_SIZE);
        for (uint64_t at = 0; at < DISK_SIZE - 512; at += FAKE_BLOCK)
                fake_chain_set(chain, at, FAKE_BLOCK, EXTENT_DATA, (unsigned)(at / FAKE_BLOCK) % 2);
        for (int i = 0; i < 4; i++)
                fds[i] = go("disk", false, NULL);
        for (int i = 0; i < 4; i++)
                for (uint64_t k = 0; k < 100; k++)
                        client_request(fds[i], NBD_CMD_READ, 0, k, k * 8192, 7 * FAKE_BLOCK);
        for (int i = 0; i < 4; i++) {
                for (int k = 0; k < 100; k++) {
                        client_answer_get(fds[i], &answer, buffer, 0, 7 * FAKE_BLOCK);
                        cr_assert(eq(u32, answer.error, 0));
                        cr_assert(memcmp(buffer, disk + answer.cookie * 8192, 7 * FAKE_BLOCK) == 0);
                }
                close(fds[i]);
        }
        /* This file ends before the place that the map tells of. */
        atomic_store(&switches->other_file, true);
        fds[0] = go("disk", false, NULL);
        cr_expect(eq(u32, client_read(fds[0], buffer, 4096, 8192), 0));
        cr_expect(memcmp(buffer, disk + 8192, 4096) == 0);
        close(fds[0]);
        stop();
}

static atomic_bool stop_cutting;

static void *cut_main(void *arg)
{
        struct file *file = arg;

        while (!atomic_load(&stop_cutting)) {
                cr_assert(eq(int, file_truncate(file, 1u << 20), 0));
                usleep(30);
                cr_assert(eq(int, file_truncate(file, 300000), 0));
                usleep(30);
        }
        return NULL;
}

/* A file that somebody cuts while it is sent: the reply that was begun ends in an error, or the
 * connection does; never in bytes that are not there, nor in a stream out of step. */
Test(nbd_serve, a_file_that_is_cut_while_it_is_sent)
{
        struct nbd_server_counters counters;
        pthread_t cutter;

        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 0);
        atomic_store(&switches->other_file, true);
        cr_assert(
                eq(int, pthread_create(&cutter, NULL, cut_main, fake_chain_other_file(chain)), 0));
        for (int i = 0; i < 300; i++) {
                struct nbd_answer answer;
                int fd = go("disk", true, NULL);

                client_request(fd, NBD_CMD_READ, i % 2 ? NBD_CMD_FLAG_DF : 0, 77, 0, 1u << 20);
                client_answer_get(fd, &answer, buffer, 0, 1u << 20);
                cr_assert(eq(u64, answer.cookie, 77));
                if (answer.error)
                        cr_assert(eq(u32, answer.error, NBD_EIO));
                cr_assert(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
                close(fd);
        }
        atomic_store(&stop_cutting, true);
        pthread_join(cutter, NULL);
        nbd_server_counters_get(server, &counters);
        cr_expect(gt(u64, counters.requests, 300));
}

/* With a path of its own for each, whether or not the system lets us have it. */
Test(nbd_serve_own, all_works_without_io_uring_and_sendfile)
{
        struct nbd_server_options options = {
                .no_io_uring = true, .no_sendfile = true, .threads = 1};
        struct nbd_server_counters counters;

        start_with(&options);
        for (int structured = 0; structured < 2; structured++) {
                int fd = go("disk", structured, NULL);

                mix_disk();
                check_reads(fd);
                run_model(fd, 100);
                close(fd);
        }
        nbd_server_counters_get(server, &counters);
        cr_expect(eq(u64, counters.sendfile_reads, 0));
        cr_expect(not(counters.io_uring));
        stop();
}

/* E8: a place in a file that a reply is still to be sent from is held until the client has it. */
Test(nbd_serve, tickets_are_kept_until_the_client_took_its_bytes)
{
        struct nbd_answer answer;
        int fd = go("disk", false, NULL);

        fill(disk, 1u << 20);
        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 0);
        client_request(fd, NBD_CMD_READ, 0, 1, 0, 256u << 10);
        for (int tries = 0; tries < 1000 && fake_chain_tickets(chain) == 0; tries++)
                usleep(1000);
        usleep(60000);
        cr_assert(eq(uint, fake_chain_tickets(chain), 1));
        client_answer_get(fd, &answer, buffer, 0, 256u << 10);
        cr_assert(memcmp(buffer, disk, 256u << 10) == 0);
        for (int tries = 0; tries < 1000 && fake_chain_tickets(chain) > 0; tries++)
                usleep(1000);
        cr_assert(eq(uint, fake_chain_tickets(chain), 0));

        /* And given back when the client goes without taking them. */
        client_request(fd, NBD_CMD_READ, 0, 1, 0, 256u << 10);
        usleep(20000);
        close(fd);
        for (int tries = 0; tries < 1000 && fake_chain_tickets(chain) > 0; tries++)
                usleep(1000);
        cr_assert(eq(uint, fake_chain_tickets(chain), 0));
}
