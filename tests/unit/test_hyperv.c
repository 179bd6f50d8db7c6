/* SPDX-License-Identifier: Apache-2.0 */
/* A vm that comes from Hyper-V with less memory, on other controllers or in another network than it had does
 * not start, or starts where it must not; and the file that says all this may be anybody's: one that
 * unfolds to terabytes, or that asks for a file of ours, must be a sentence and nothing else. */
#include "vhdd/worker/hyperv.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA "tests/data/hyperv/"
#define VM   "7B1E6E0C-52A4-4F9B-9D3E-0A1B2C3D4E5F"

static struct error err;

static char *read_file(const char *path, size_t *ret_size)
{
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        char *text = malloc(1 << 20);
        ssize_t n;

        if (fd < 0) {
                free(text);
                return NULL;
        }
        n = read(fd, text, 1 << 20);
        close(fd);
        cr_assert(n > 0);
        *ret_size = (size_t)n;
        return text;
}

static char *own_file(const char *name, size_t *ret_size)
{
        const char *source = getenv("VHDD_SOURCE");
        char path[4096], *text;

        snprintf(path, sizeof(path), "%s/" DATA "%s", source ? source : ".", name);
        text = read_file(path, ret_size);
        cr_assert(text != NULL, "'%s' is not there", path);
        return text;
}

static json_t *parse(const char *text, size_t size)
{
        json_t *answer = NULL;

        error_clear(&err);
        cr_assert_eq(hyperv_parse(text, size, &answer, &err), 0, "%s", err.message);
        return answer;
}

static json_t *parse_own(const char *name)
{
        size_t size;
        char *text = own_file(name, &size);
        json_t *answer = parse(text, size);

        free(text);
        return answer;
}

/* The member as compact JSON with its keys sorted. */
static void expect(const json_t *answer, const char *member, const char *wanted)
{
        const json_t *value = json_object_get(answer, member);
        char *have = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS)
                           : strdup("nothing");

        cr_expect_str_eq(have, wanted, "%s is %s instead of %s", member, have, wanted);
        free(have);
}

static int refuse(const char *text, size_t size)
{
        json_t *answer = NULL;
        int r;

        error_clear(&err);
        r = hyperv_parse(text, size, &answer, &err);
        cr_expect(answer == NULL);
        return r;
}

/* ---- what a real one says ---- */

/* Hyper-V of Windows Server 2012 R2 wrote it: generation 1, one disk, one card that is plugged in nowhere. */
Test(hyperv, reads_a_configuration_of_2012_r2_value_by_value)
{
        const char *shared = getenv("VHDD_SHARED"), *source = getenv("VHDD_SOURCE");
        char path[4096], *text;
        json_t *answer;
        size_t size;

        snprintf(path, sizeof(path),
                "%s%s/images/hyperv-config/B90AC31B-C6F8-479F-9B91-07B894A6A3F6.xml",
                shared         ? shared
                        : source ? source
                                 : ".",
                shared ? "" : "/../shared");
        text = read_file(path, &size);
        if (!text)
                cr_skip_test("skipped: '%s' is not there", path);
        answer = parse(text, size);
        free(text);
        expect(answer, "layout", "\"configuration\"");
        expect(answer, "id", "\"B90AC31B-C6F8-479F-9B91-07B894A6A3F6\"");
        expect(answer, "name", "\"Default Generation 1\"");
        expect(answer, "notes", "nothing");
        expect(answer, "version", "1280");
        expect(answer, "snapshot", "false");
        expect(answer, "cpus", "1");
        expect(answer, "memory",
                "{\"buffer\":20,\"dynamic\":false,\"max\":1099511627776,\"priority\":5000,"
                "\"reservation\":536870912,\"startup\":536870912}");
        expect(answer, "disks",
                "[{\"bus\":0,\"controller\":0,\"kind\":\"VHD\",\"path\":"
                "\"C:\\\\Disks\\\\Default Generation 1.vhdx\",\"unit\":0}]");
        expect(answer, "networks",
                "[{\"kind\":\"synthetic\",\"mac\":\"00-00-00-00-00-00\",\"name\":\"Network "
                "Adapter\",\"static\":false,\"switch\":\"\"}]");
        expect(answer, "saved", "[]");
        expect(answer, "boot", "[\"Optical\",\"HardDrive\",\"Network\",\"Floppy\"]");
        expect(answer, "unknown",
                "[\"_655bc5c5-a784-46b7-81bc-e26328f7eb0e_\","
                "\"_7d80d3db-61ee-4879-8879-5609f1100ad0_\","
                "\"_b5996220-9ab5-4a2d-a79d-cbe9c4bc06d6_/Connection/"
                "Feature_C885BFD1-ABB7-418F-8163-9F379C9F7166\","
                "\"_b5996220-9ab5-4a2d-a79d-cbe9c4bc06d6_/Connection/Features\","
                "\"_de6cdc86-e1fb-4940-801b-c3c1a26c4da4_\"]");
        json_decref(answer);
}

Test(hyperv, reads_a_configuration_in_utf_16)
{
        json_t *answer = parse_own(VM ".xml");

        expect(answer, "layout", "\"configuration\"");
        expect(answer, "id", "\"" VM "\"");
        expect(answer, "name", "\"web/01 \xc3\xa4lter\"");
        expect(answer, "notes", "\"made by hand, as Hyper-V lays it out\"");
        expect(answer, "version", "513");
        expect(answer, "cpus", "2");
        expect(answer, "memory",
                "{\"buffer\":35,\"dynamic\":true,\"max\":4294967296,\"priority\":7500,"
                "\"reservation\":536870912,\"startup\":1073741824}");
        expect(answer, "disks",
                "[{\"bus\":0,\"controller\":1,\"kind\":\"VHD\",\"path\":\"D:\\\\VMs\\\\web\\\\Virtual "
                "Hard Disks\\\\data & more.vhd\",\"unit\":0},"
                "{\"bus\":0,\"controller\":0,\"kind\":\"VHD\",\"path\":\"D:\\\\VMs\\\\web\\\\Virtual "
                "Hard Disks\\\\system_11111111-2222-3333-4444-555555555555.avhd\",\"unit\":0},"
                "{\"bus\":1,\"controller\":0,\"kind\":\"ISO\",\"path\":"
                "\"C:\\\\Windows\\\\system32\\\\vmguest.iso\",\"unit\":0}]");
        expect(answer, "networks",
                "[{\"kind\":\"synthetic\",\"mac\":\"00-15-5D-0A-0B-0C\",\"name\":\"Local Area "
                "Connection\",\"static\":true,\"switch\":\"b\xc3\xbcro\"},"
                "{\"kind\":\"emulated\",\"mac\":\"00-15-5D-0A-0B-0D\",\"name\":\"Legacy\","
                "\"static\":false,\"switch\":\"\"}]");
        expect(answer, "saved",
                "[\"D:\\\\VMs\\\\web\\\\Virtual Machines\\\\" VM "\\\\" VM ".bin\","
                "\"D:\\\\VMs\\\\web\\\\Virtual Machines\\\\" VM "\\\\" VM ".vsv\"]");
        expect(answer, "unknown", "[\"_cccccccc-0000-4000-8000-000000000001_\"]");
        json_decref(answer);
}

Test(hyperv, reads_an_export)
{
        json_t *answer = parse_own(VM ".exp");

        expect(answer, "layout", "\"cim\"");
        expect(answer, "id", "\"" VM "\"");
        expect(answer, "name", "\"web\"");
        expect(answer, "snapshot", "false");
        expect(answer, "cpus", "4");
        expect(answer, "memory",
                "{\"buffer\":20,\"dynamic\":true,\"max\":2147483648,\"priority\":5000,"
                "\"reservation\":805306368,\"startup\":805306368}");
        expect(answer, "disks",
                "[{\"bus\":0,\"controller\":0,\"kind\":\"VHD\",\"path\":\"D:\\\\VMs\\\\web\\\\Virtual "
                "Hard Disks\\\\system_11111111-2222-3333-4444-555555555555.avhd\",\"unit\":0},"
                "{\"bus\":1,\"controller\":1,\"kind\":\"VHD\",\"path\":\"D:\\\\VMs\\\\web\\\\Virtual "
                "Hard Disks\\\\data & more.vhd\",\"unit\":7}]");
        expect(answer, "networks",
                "[{\"kind\":\"synthetic\",\"mac\":\"00155D0A0B0E\",\"name\":\"Network Adapter\","
                "\"static\":true,\"switch\":\"lan\",\"vlan\":12},"
                "{\"kind\":\"emulated\",\"mac\":\"000000000000\",\"name\":\"Legacy\","
                "\"static\":false,\"switch\":\"\"}]");
        expect(answer, "unknown",
                "[\"Msvm_Fibrillator\",\"a resource of the type 'Microsoft Flux Capacitor'\"]");
        json_decref(answer);
}

Test(hyperv, tells_a_snapshot_from_its_vm)
{
        json_t *answer = parse_own("5E000000-0000-4000-8000-00000000000A.exp");

        expect(answer, "snapshot", "true");
        expect(answer, "id", "\"5E000000-0000-4000-8000-00000000000A\"");
        expect(answer, "name", "\"before the update\"");
        json_decref(answer);
}

/* @weight as each of the two layouts has it; what comes of it is the same. */
static void expect_weight(const char *weight, const char *memory, const char *unknown)
{
        static const char *const layouts[][2] = {
                {"<configuration><settings><memory><bank><priority>",
                        "</priority></bank></memory></settings></configuration>"},
                {"<INSTANCE CLASSNAME=\"Msvm_MemorySettingData\"><PROPERTY NAME=\"Weight\" "
                 "TYPE=\"uint32\"><VALUE>",
                        "</VALUE></PROPERTY></INSTANCE>"},
        };

        for (size_t i = 0; i < 2; i++) {
                char text[512];
                json_t *answer;

                snprintf(text, sizeof(text), "%s%s%s", layouts[i][0], weight, layouts[i][1]);
                answer = parse(text, strlen(text));
                expect(answer, "memory", memory);
                expect(answer, "unknown", unknown);
                json_decref(answer);
        }
}

Test(hyperv, reads_a_weight_to_its_ends)
{
        expect_weight("0", "{\"priority\":0}", "[]");
        expect_weight("5000", "{\"priority\":5000}", "[]");
        expect_weight("10000", "{\"priority\":10000}", "[]");
        expect_weight("10001", "{}", "[\"priority: '10001' is no number that it can have\"]");
        expect_weight("-1", "{}", "[\"priority: '-1' is no number that it can have\"]");
}

/* ---- what nobody should write ---- */

Test(hyperv, says_no_to_every_beginning_of_a_file)
{
        size_t size;
        char *text = own_file(VM ".xml", &size);

        for (size_t i = 0; i + 4 < size; i += i < 600 || i + 600 > size ? 1 : 97)
                cr_expect_eq(refuse(text, i), -EUCLEAN, "%zu bytes of %zu", i, size);
        free(text);
}

Test(hyperv, expands_no_entities)
{
        static const char laughs[] =
                "<!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">"
                "<!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\">]>"
                "<configuration><properties><name>&c;</name></properties></configuration>";
        static const char outside[] =
                "<!DOCTYPE l [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>"
                "<configuration><properties><name>&f;</name></properties></configuration>";
        static const char undeclared[] =
                "<configuration><properties><name>&f;</name></properties></configuration>";
        static const char by_reference[] =
                "<!DOCTYPE configuration SYSTEM \"file:///etc/passwd\">"
                "<configuration><properties><name>x</name></properties></configuration>";
        json_t *answer;

        cr_expect_eq(refuse(laughs, sizeof(laughs) - 1), -EUCLEAN);
        cr_expect(strstr(err.message, "declares entities") != NULL, "%s", err.message);
        cr_expect_eq(refuse(outside, sizeof(outside) - 1), -EUCLEAN);
        cr_expect_eq(refuse(undeclared, sizeof(undeclared) - 1), -EUCLEAN);
        /* A DTD that is only named is not read. */
        answer = parse(by_reference, sizeof(by_reference) - 1);
        expect(answer, "name", "\"x\"");
        json_decref(answer);
}

Test(hyperv, bounds_depth_elements_and_size)
{
        size_t size = HYPERV_MAX_SIZE + 1;
        char *text = malloc(size);

        for (size_t i = 0; i < 100; i++)
                memcpy(text + 3 * i, "<a>", 3);
        cr_expect_eq(refuse(text, 300), -E2BIG);
        strcpy(text, "<a>");
        for (size_t i = 0; i < HYPERV_MAX_NODES; i++)
                memcpy(text + 3 + 4 * i, "<b/>", 4);
        cr_expect_eq(refuse(text, 3 + 4 * HYPERV_MAX_NODES), -E2BIG);
        memset(text, ' ', size);
        cr_expect_eq(refuse(text, size), -E2BIG);
        free(text);
}

Test(hyperv, leaves_out_numbers_that_are_none_and_says_so)
{
        static const char text[] =
                "<configuration><properties><name>n</name></properties><settings>"
                "<processors><count>many</count></processors>"
                "<memory><bank><size>99999999999999999999</size><limit>-1</limit>"
                "<target_memory_buffer>2001</target_memory_buffer></bank></memory>"
                "</settings></configuration>";
        json_t *answer = parse(text, sizeof(text) - 1);

        expect(answer, "memory", "{}");
        expect(answer, "cpus", "nothing");
        cr_expect_eq(json_array_size(json_object_get(answer, "unknown")), 4);
        json_decref(answer);
}

Test(hyperv, refuses_what_is_neither)
{
        static const char *const texts[] = {
                "", "hello", "<html/>", "<configuration>", "\xff\xfe", "{\"vm\": 1}"};

        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
                cr_expect_eq(refuse(texts[i], strlen(texts[i])), -EUCLEAN, "'%s'", texts[i]);
}
