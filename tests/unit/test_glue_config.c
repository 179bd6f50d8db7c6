/* SPDX-License-Identifier: Apache-2.0 */
/* A vm's devices become QEMU's command line. A disk at the wrong place, a controller that is missing, a name
 * with a comma in it: the guest does not start, or starts from another disk. And saved memory that is loaded
 * into other devices ends the guest; its head is a file that may come from anywhere. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/supervisor/config.h"
#include "vmm-glue/supervisor/memory_image.h"

#define ID0 "00000000-0000-4000-8000-000000000000"
#define ID1 "11111111-1111-4111-8111-111111111111"
#define GIB (INT64_C(1) << 30)

static json_t *vm(const char *settings)
{
        json_t *loaded = json_loads(settings, 0, NULL);

        cr_assert(loaded != NULL, "%s", settings);
        return json_pack("{s:s, s:s, s:o}", "name", "web", "id", ID0, "settings", loaded);
}

static json_t *disk(const char *id, const char *name, const char *at)
{
        return json_pack("{s:s, s:s, s:s, s:s, s:I, s:b}", "id", id, "name", name, "at", at, "uri",
                "nbd+unix:///web/a%2C%20b?socket=/run/x%20y.sock", "size", (json_int_t)GIB,
                "read-only", 0);
}

static json_t *make(const char *settings, json_t *disks)
{
        json_auto_t *shown = vm(settings), *list = disks;
        struct error err = ERROR_INIT;
        json_t *config = NULL;
        int r = config_from_daemon(shown, list, &config, &err);

        cr_assert(eq(int, r, 0), "%s", err.message);
        return config;
}

static void refuses(const char *settings, json_t *disks, const char *words)
{
        json_auto_t *shown = vm(settings), *list = disks;
        struct error err = ERROR_INIT;
        json_t *config = NULL;

        cr_assert(eq(int, config_from_daemon(shown, list, &config, &err), -EINVAL));
        cr_assert(eq(ptr, config, NULL));
        cr_assert(strstr(err.message, words) != NULL, "%s", err.message);
}

static bool has(char **argv, const char *option, const char *words)
{
        for (size_t i = 0; argv[i]; i++)
                if (strcmp(argv[i], option) == 0 && argv[i + 1] && strstr(argv[i + 1], words))
                        return true;
        return false;
}

static char **command(const json_t *config, const struct command_options *options)
{
        struct error err = ERROR_INIT;
        char **argv = NULL;

        cr_assert(eq(int, config_command(config, options, &argv, &err), 0), "%s", err.message);
        return argv;
}

static const struct command_options plain = {.program = "/usr/bin/qemu"};

Test(glue_config, places_disks_where_the_vm_has_them)
{
        json_auto_t *config = make("{\"memory\":{\"startup\":268435456},\"accel\":\"tcg\"}",
                json_pack("[o, o]", disk(ID0, "root", "ide0:0"), disk(ID1, "data", "scsi2:63")));
        _cleanup_(command_freep) char **argv = command(config, &plain);

        cr_expect(has(argv, "-device", "\"bus\":\"ide.0\",\"unit\":0") ||
                has(argv, "-device", "\"bus\": \"ide.0\""));
        cr_expect(has(argv, "-device", "\"bootindex\":0"));
        cr_expect(has(argv, "-device", "\"bus\":\"scsi2.0\",\"scsi-id\":63"));
        /* All four, whether there is a disk on them or not: none can be added later. */
        cr_expect(has(argv, "-device", "virtio-scsi-pci,id=scsi0,"));
        cr_expect(has(argv, "-device", "virtio-scsi-pci,id=scsi3,"));
        cr_expect(has(argv, "-blockdev", "\"export\":\"web/a, b\""));
        cr_expect(has(argv, "-blockdev", "\"path\":\"/run/x y.sock\""));
        cr_expect(has(argv, "-device", "\"werror\":\"stop\",\"rerror\":\"stop\""));
        cr_expect(not(has(argv, "-device", "virtio-mem")));
        cr_expect(has(argv, "-m", "size=256M"));
        cr_expect(not(has(argv, "-incoming", "defer")));
}

Test(glue_config, makes_room_for_memory_above_startup)
{
        json_auto_t *config = make("{\"memory\":{\"startup\":268435456,\"max\":540000000},"
                                   "\"kernel\":\"/k\",\"append\":\"a b\",\"accel\":\"tcg\"}",
                json_array());
        struct command_options options = plain;
        _cleanup_(command_freep) char **argv = NULL;

        options.incoming = true;
        argv = command(config, &options);
        /* The most is a whole number of virtio-mem's units above startup. */
        cr_expect(has(argv, "-m", "size=256M,maxmem=512M"));
        cr_expect(has(argv, "-object", "id=more,size=256M"));
        cr_expect(has(argv, "-append", "a b"));
        cr_expect(has(argv, "-incoming", "defer"));
}

Test(glue_config, hands_descriptors_to_their_network_card)
{
        json_auto_t *config =
                make("{\"memory\":{\"startup\":268435456},\"kernel\":\"/k\"}", json_array());
        const int fds[] = {11, 12, 13, 14};
        struct command_options options = {.program = "/q", .fds = fds, .n_fds = 4};
        _cleanup_(command_freep) char **argv = NULL;
        struct error err = ERROR_INIT;
        char **none = NULL;

        json_object_set_new(config, "networks",
                json_pack("[{s:s, s:i}, {s:s, s:i, s:i}]", "mac", "52:54:00:00:00:01",
                        "descriptors", 2, "mac", "52:54:00:00:00:02", "descriptors", 1, "vhost",
                        1));
        json_object_set_new(config, "accel", json_string("tcg"));
        argv = command(config, &options);
        cr_expect(has(argv, "-netdev", "id=net0,fds=11:12"));
        cr_expect(has(argv, "-device", "mac=52:54:00:00:00:01,mq=on"));
        cr_expect(has(argv, "-netdev", "id=net1,fd=13,vhost=on,vhostfd=14"));
        options.n_fds = 3;
        cr_assert(eq(int, config_command(config, &options, &none, &err), -EPROTO));
}

Test(glue_config, refuses_what_cannot_start)
{
        refuses("{\"memory\":{}}", json_array(), "no disk to start from");
        refuses("{\"memory\":{}}", json_pack("[o]", disk(ID0, "d", "scsi0:0")),
                "never from a SCSI disk");
        refuses("{\"memory\":{\"startup\":4096},\"kernel\":\"/k\"}", json_array(), "too little");
        refuses("{\"memory\":{\"startup\":1073741824,\"max\":536870912},\"kernel\":\"/k\"}",
                json_array(), "less than at startup");
        refuses("{\"memory\":{},\"initrd\":\"/i\"}", json_array(), "no --kernel");
}

Test(glue_config, refuses_a_read_only_disk_on_ide)
{
        json_t *one = disk(ID0, "cd", "ide0:0");

        json_object_set_new(one, "read-only", json_true());
        refuses("{\"memory\":{}}", json_pack("[o]", one), "read-only, which no IDE disk can be");
}

/* --- saved memory --- */

static int fit_known(
        json_t *saved, json_t *today, json_t *known, json_t **ret, json_t **more, struct error *err)
{
        json_auto_t *a = saved, *b = today, *c = known;

        *ret = *more = NULL;
        return config_for_memory(a, b, c, ret, more, err);
}

static int fit(json_t *saved, json_t *today, json_t **ret, json_t **more, struct error *err)
{
        return fit_known(saved, today, NULL, ret, more, err);
}

#define SETTINGS "{\"memory\":{\"startup\":268435456},\"kernel\":\"/k\",\"accel\":\"tcg\"}"

Test(glue_config, loads_memory_into_the_devices_that_it_was_saved_with)
{
        json_auto_t *config = NULL, *more = NULL;
        struct error err = ERROR_INIT;
        json_t *saved = make(SETTINGS, json_pack("[o]", disk(ID0, "old name", "scsi0:0")));
        json_t *today = make(
                "{\"memory\":{\"startup\":536870912},\"kernel\":\"/new\",\"accel\":\"auto\"}",
                json_pack("[o, o]", disk(ID0, "root", "scsi0:0"), disk(ID1, "more", "scsi0:1")));
        int r;

        json_object_set_new(saved, "machine", json_string("pc-i440fx-7.2"));
        json_object_set_new(saved, "kernel", json_string("/etc/shadow"));
        r = fit(saved, today, &config, &more, &err);
        cr_assert(eq(int, r, 0), "%s", err.message);
        cr_expect(eq(int, (int)json_integer_value(json_object_get(config, "startup")), 268435456));
        cr_expect(eq(str, (char *)json_string_value(json_object_get(config, "machine")),
                (char *)"pc-i440fx-7.2"));
        /* No file that the saved memory names is opened. */
        cr_expect(eq(
                str, (char *)json_string_value(json_object_get(config, "kernel")), (char *)"/new"));
        cr_expect(eq(sz, json_array_size(json_object_get(config, "disks")), 1u));
        cr_expect(eq(sz, json_array_size(more), 1u));
}

Test(glue_config, refuses_memory_whose_disk_is_gone_or_moved)
{
        json_t *config, *more;
        struct error err = ERROR_INIT;

        cr_expect(eq(int,
                fit(make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:0"))),
                        make(SETTINGS, json_array()), &config, &more, &err),
                -ESTALE));
        cr_expect(eq(int,
                fit(make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:0"))),
                        make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:1"))), &config, &more,
                        &err),
                -ESTALE));
        cr_expect(eq(int,
                fit(make(SETTINGS, json_array()),
                        make(SETTINGS, json_pack("[o]", disk(ID0, "a", "ide1:1"))), &config, &more,
                        &err),
                -ESTALE));
}

static json_t *known(const char *id, const char *at)
{
        return json_pack("[{s:s, s:s}]", "id", id, "at", at);
}

/* In a copy of a vm all ids are new. Which disk is which the daemon knows, and the guest goes on with the
 * serial that it knows: after a second save, too. */
Test(glue_config, loads_memory_over_the_disks_of_a_copy)
{
        json_t *saved = make(SETTINGS, json_pack("[o]", disk(ID0, "root", "scsi0:0")));
        json_t *config = NULL, *again = NULL, *more = NULL;
        json_auto_t *device = NULL;
        struct error err = ERROR_INIT;
        const json_t *one;

        cr_assert(eq(int,
                          fit_known(saved,
                                  make(SETTINGS, json_pack("[o]", disk(ID1, "root", "scsi0:0"))),
                                  known(ID1, "scsi0:0"), &config, &more, &err),
                          0),
                "%s", err.message);
        cr_expect(eq(sz, json_array_size(more), 0u));
        json_decref(more);
        cr_assert(eq(int,
                          fit_known(config,
                                  make(SETTINGS, json_pack("[o]", disk(ID1, "root", "scsi0:0"))),
                                  known(ID1, "scsi0:0"), &again, &more, &err),
                          0),
                "%s", err.message);
        one = json_array_get(json_object_get(again, "disks"), 0);
        cr_expect(eq(str, (char *)json_string_value(json_object_get(one, "id")), (char *)ID1));
        device = config_device(one);
        cr_expect(eq(str, (char *)json_string_value(json_object_get(device, "serial")),
                (char *)"00000000000040008000000000000000"));
        json_decref(again);
        json_decref(more);
}

Test(glue_config, refuses_disks_of_a_copy_that_are_not_where_the_memory_has_them)
{
        json_t *config, *more;
        struct error err = ERROR_INIT;

        /* Another disk has taken the place since. */
        cr_expect(eq(int,
                fit_known(make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:0"))),
                        make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:0"))),
                        known(ID1, "scsi0:0"), &config, &more, &err),
                -ESTALE));
        cr_expect(eq(int,
                fit_known(make(SETTINGS, json_pack("[o]", disk(ID0, "a", "scsi0:0"))),
                        make(SETTINGS, json_pack("[o]", disk(ID1, "a", "scsi0:1"))),
                        known(ID1, "scsi0:1"), &config, &more, &err),
                -ESTALE));
}

/* A comma would be an option of its own. */
Test(glue_config, refuses_a_head_that_could_say_more_to_qemu)
{
        static const char *const lies[][2] = {
                {"machine", "pc,accel=kvm"},
                {"machine", "none"},
                {"accel", "tcg,thread=single"},
                {"display", "gtk"},
        };

        for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
                json_t *saved = make(SETTINGS, json_array()), *config, *more;
                struct error err = ERROR_INIT;

                json_object_set_new(saved, lies[i][0], json_string(lies[i][1]));
                cr_expect(eq(int, fit(saved, make(SETTINGS, json_array()), &config, &more, &err),
                        -EUCLEAN));
        }
}

Test(glue_memory_image, comes_back_and_leaves_the_stream)
{
        json_auto_t *config = make(SETTINGS, json_array()), *again = NULL;
        FILE *file = tmpfile();
        struct error err = ERROR_INIT;
        char rest[8] = "";
        int fd = fileno(file);

        cr_assert(eq(int, memory_image_write(fd, config, &err), 0), "%s", err.message);
        cr_assert(eq(int, (int)write(fd, "stream", 6), 6));
        lseek(fd, 0, SEEK_SET);
        cr_assert(eq(int, memory_image_read(fd, &again, &err), 0), "%s", err.message);
        cr_expect(json_equal(config, again));
        cr_expect(eq(int, (int)read(fd, rest, 7), 6));
        cr_expect(eq(str, (char *)rest, (char *)"stream"));
        fclose(file);
}

Test(glue_memory_image, refuses_other_files)
{
        static const char *const files[] = {"", "QEVM", "VHDDMEM1", "VHDDMEM1\xff\xff\xff\xff{}",
                "VHDDMEM1\x01\x01\x01\x01{}", "NOTOURS1\x01\x01\x01\x01{}"};

        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
                FILE *file = tmpfile();
                struct error err = ERROR_INIT;
                json_t *config = NULL;

                cr_assert(eq(int, (int)write(fileno(file), files[i], strlen(files[i])),
                        (int)strlen(files[i])));
                lseek(fileno(file), 0, SEEK_SET);
                cr_expect(eq(int, memory_image_read(fileno(file), &config, &err), -EUCLEAN));
                cr_expect(eq(ptr, config, NULL));
                fclose(file);
        }
}
