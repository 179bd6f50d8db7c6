/* SPDX-License-Identifier: Apache-2.0 */
/* A method trusts that its params are what the schema says. So whatever a client sends that is not
 * must be refused with a sentence that names the member; and a schema that we cannot check by must not
 * load. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>

#include "vhdd/control/names.h"
#include "vhdd/control/schema.h"

static struct control_schema *load(const char *text)
{
        struct control_schema *schema = NULL;
        struct error err = ERROR_INIT;

        cr_assert(control_schema_load(text, &schema, &err) == 0, "%s", err.message);
        return schema;
}

/* What is said about @params (JSON with ' for "), or "" if they are taken. */
static const char *verdict(const char *method, const char *params)
{
        static struct error err;
        _cleanup_(control_schema_freep) struct control_schema *schema = load(NULL);
        char text[2048];
        json_t *value;
        int r;

        snprintf(text, sizeof(text), "%s", params);
        for (char *p = text; *p; p++)
                if (*p == '\'')
                        *p = '"';
        value = json_loads(text, 0, NULL);
        cr_assert(value != NULL, "the test's own JSON: %s", text);
        err = ERROR_INIT;
        r = control_schema_check_params(schema, method, value, &err);
        json_decref(value);
        cr_expect(eq(int, r < 0, err.code != 0));
        return r < 0 ? err.message : "";
}

static void expect_refused(const char *method, const char *params, const char *because)
{
        const char *said = verdict(method, params);

        cr_expect(strstr(said, because) != NULL, "%s %s: '%s' does not say '%s'", method, params,
                said, because);
}

static void expect_taken(const char *method, const char *params)
{
        cr_expect(verdict(method, params)[0] == '\0', "%s %s: %s", method, params,
                verdict(method, params));
}

Test(control_schema, takes_what_it_describes)
{
        expect_taken("status", "{}");
        expect_taken("vm.create", "{'vm':'web 07'}");
        expect_taken("vm.create",
                "{'vm':'web', 'dry-run':true, 'settings':{'memory':{'startup':1073741824},"
                "'cpus':4,'networks':[{'switch':'lan','vlan':7,'mac':'52:54:00:12:34:56'}]}}");
        expect_taken("disk.attach", "{'vm':'web','file':'/a b/c.vhd','at':'scsi3:63'}");
        expect_taken("disk.uri", "{'vm':'web','disk':'d','snapshot':'now'}");
        expect_taken("snapshot.take", "{'vm':'w\xc3\xa4sche','name':'before 1.2.3'}");
}

Test(control_schema, names_the_member_that_is_wrong)
{
        expect_refused("vm.create", "{}", "'vm' is missing");
        expect_refused("vm.create", "[]", "must be an object, not array");
        expect_refused("vm.create", "{'vm':7}", "'vm': it must be a string, not integer");
        expect_refused("vm.create", "{'vm':'a','colour':'red'}", "there is no 'colour' here");
        expect_refused("vm.list", "{'dry-run':true}", "there is no 'dry-run' here");
        expect_refused("vm.create", "{'vm':'a','settings':{'memory':{'max':-1}}}",
                "'settings.memory.max': it is at least 0");
        expect_refused("vm.create", "{'vm':'a','settings':{'networks':[{'switch':'s'},{}]}}",
                "'settings.networks[1]': 'switch' is missing");
        expect_refused("vm.create", "{'vm':'a','settings':{'display':'crt'}}",
                "it is one of vnc, spice, none, not 'crt'");
        expect_refused("disk.attach", "{'vm':'a','file':'b.vhd'}", "'b.vhd' is no absolute path");
        expect_refused("disk.attach", "{'vm':'a','file':'/b','at':'scsi4:0'}", "is no place");
        expect_refused("events.subscribe", "{'types':'job'}", "must be an array, not string");
        expect_refused("job.show", "{'id':1.5}", "must be an integer, not number");
}

Test(control_schema, knows_no_other_method)
{
        _cleanup_(control_schema_freep) struct control_schema *schema = load(NULL);
        struct error err = ERROR_INIT;
        json_t *params = json_object();

        cr_expect(control_schema_check_params(schema, "vm.explode", params, &err) == -ENOSYS);
        cr_expect(control_schema_changes(schema, "vm.explode") == -ENOSYS);
        cr_expect(control_schema_changes(schema, "vm.create") == 1);
        cr_expect(control_schema_changes(schema, "vm.list") == 0);
        json_decref(params);
}

Test(control_schema, holds_results_too_but_lets_them_grow)
{
        _cleanup_(control_schema_freep) struct control_schema *schema = load(NULL);
        struct error err = ERROR_INIT;
        json_t *good = json_pack("[i,i]", 1, 2), *result;

        result = json_pack("{s:s, s:i, s:s, s:s, s:s}", "version", "1", "pid", 1, "started",
                "2026-01-31T00:00:00.5Z", "state-dir", "/", "new", "x");
        cr_expect(control_schema_check_result(schema, "status", result, &err) == 0, "%s",
                err.message);
        json_object_set_new(result, "started", json_string("yesterday"));
        cr_expect(control_schema_check_result(schema, "status", result, &err) == -EINVAL);
        cr_expect(strstr(err.message, "'started': 'yesterday' is no time") != NULL);
        json_decref(result);
        json_decref(good);
}

Test(control_schema, refuses_a_schema_that_it_could_not_check_by)
{
        static const char *const bad[] = {
                "{",
                "{}",
                "{\"types\":{},\"methods\":{\"a\":{\"params\":{}}}}",
                ("{\"types\":{},\"methods\":{\"a\":{\"params\":{\"b\":{\"$ref\":\"c\"}},"
                 "\"result\":{}}}}"),
                "{\"types\":{\"t\":{\"type\":\"colour\"}},\"methods\":{}}",
                "{\"types\":{\"t\":{\"pattern\":\".*\"}},\"methods\":{}}",
                "{\"types\":{\"t\":{\"format\":\"colour\"}},\"methods\":{}}",
                "{\"types\":{\"t\":{\"type\":\"array\",\"items\":{\"enum\":[1]}}},\"methods\":{}}",
        };

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                struct control_schema *schema = NULL;
                struct error err = ERROR_INIT;

                cr_expect(control_schema_load(bad[i], &schema, &err) == -EINVAL, "%s", bad[i]);
                cr_expect(schema == NULL && err.message[0]);
        }
}

Test(control_schema, ends_where_a_type_contains_itself)
{
        _cleanup_(control_schema_freep) struct control_schema *schema =
                load("{\"types\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"t\"}}},"
                     "\"methods\":{\"m\":{\"params\":{\"p\":{\"$ref\":\"t\"}},\"result\":{}}}}");
        struct error err = ERROR_INIT;
        json_t *value = json_array(), *params;

        for (int i = 0; i < 200; i++) {
                json_t *outer = json_array();

                json_array_append_new(outer, value);
                value = outer;
        }
        params = json_pack("{s:o}", "p", value);
        cr_expect(control_schema_check_params(schema, "m", params, &err) == -EINVAL);
        cr_expect(strstr(err.message, "nested too deep") != NULL, "%s", err.message);
        json_decref(params);
}

static bool is_name(const char *name)
{
        struct error err = ERROR_INIT;
        int r = control_name_check(name, &err);

        cr_expect(eq(int, r < 0, err.message[0] != 0));
        return r == 0;
}

Test(names, are_what_the_design_says)
{
        char longest[NAME_MAX_BYTES + 2];

        memset(longest, 'x', sizeof(longest));
        longest[NAME_MAX_BYTES + 1] = '\0';
        cr_expect(not(is_name(longest)));
        longest[NAME_MAX_BYTES] = '\0';
        cr_expect(is_name(longest));
        cr_expect(is_name("a"));
        cr_expect(is_name(".."));
        cr_expect(is_name("with blanks, and \xe2\x82\xac"));
        cr_expect(not(is_name("")));
        cr_expect(not(is_name("a/b")));
        cr_expect(not(is_name("a@b")));
        cr_expect(not(is_name("now")));
        cr_expect(is_name("Now"));
        cr_expect(not(is_name("a\nb")));
        cr_expect(not(is_name("a\x7f")));
        cr_expect(not(is_name("a\xc2\x85"))); /* C1: NEL */
        cr_expect(not(is_name("\xff")));
        cr_expect(not(is_name("\xc0\xaf"))); /* a '/' in too many bytes */
        cr_expect(not(is_name("cut \xe2\x82")));
}

static bool is_place(const char *text)
{
        struct control_place place;

        return control_place_parse(text, &place, NULL) == 0;
}

Test(places, are_two_ide_and_four_scsi_controllers)
{
        struct control_place place;

        cr_expect(control_place_parse("scsi2:41", &place, NULL) == 0);
        cr_expect(place.scsi && place.controller == 2 && place.unit == 41);
        cr_expect(is_place("ide0:0"));
        cr_expect(is_place("ide1:1"));
        cr_expect(is_place("scsi3:63"));
        static const char *const bad[] = {"", "ide", "ide0", "ide0:", "ide0:2", "ide2:0", "scsi4:0",
                "scsi0:64", "scsi0:01", "scsi00:1", "scsi0:1 ", "scsi0:+1", "sata0:0", "SCSI0:0",
                "scsi0:1111111111111"};
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                cr_expect(not(is_place(bad[i])), "%s", bad[i]);
}
