/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/daemon.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "vhdd/ctl/output.h"

static struct control *connection; /* of the process: one verb, one connection */

/* --- words to members --- */

static size_t n_params(const struct param *params)
{
        size_t n = 0;

        while (params && params[n].name)
                n++;
        return n;
}

struct argp_option *daemon_options(const struct daemon_verb *verb)
{
        size_t n = n_params(verb->options);
        struct argp_option *options = n ? calloc(n + 1, sizeof(*options)) : NULL;

        for (size_t i = 0; options && i < n; i++)
                options[i] = (struct argp_option){
                        .name = verb->options[i].name,
                        .key = CTL_KEY_FIRST + (int)i,
                        .arg = verb->options[i].value,
                        .doc = verb->options[i].help,
                };
        return options;
}

int seconds_parse(const char *text, int64_t *ret, struct error *err)
{
        static const struct {
                char letter;
                int64_t seconds;
        } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
        int64_t unit = 1;
        char *end;
        long long n = strtoll(text, &end, 10);

        for (size_t i = 0; *end && i < sizeof(units) / sizeof(units[0]); i++)
                if (end[0] == units[i].letter && end[1] == '\0') {
                        unit = units[i].seconds;
                        end++;
                }
        if (!isdigit((unsigned char)text[0]) || *end || n > INT32_MAX)
                return fail(err, EINVAL,
                        "'%s' is no time: seconds, or a number with s, m, h or d behind it", text);
        *ret = n * unit;
        return 0;
}

int pairs_parse(const char *text, json_t *object,
        int (*take)(json_t *object, const char *name, const char *value, struct error *err),
        struct error *err)
{
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy, *pair;

        if (!copy)
                return fail(err, ENOMEM, "no memory for '%s'", text);
        while ((pair = strsep(&rest, ","))) {
                char *value = strchr(pair, '=');
                int r;

                if (!value || value == pair || !value[1])
                        return fail(err, EINVAL, "'%s' is not of the form NAME=VALUE", pair);
                *value++ = '\0';
                r = take(object, pair, value, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Against our own working directory. The folder's links are followed, because ".." means what it means
 * to the kernel; the file's own name stays: it may be a link that is meant to be one. */
static int absolute_path(const char *path, char **ret, struct error *err)
{
        _cleanup_free_ char *for_folder = strdup(path), *for_name = strdup(path), *folder = NULL;
        const char *name;

        if (path[0] == '/') {
                *ret = TAKE_PTR(for_name);
                return 0;
        }
        if (!path[0])
                return fail(err, EINVAL, "an empty name is no file");
        if (!for_folder || !for_name)
                return fail(err, ENOMEM, "no memory for '%s'", path);
        name = basename(for_name);
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
                *ret = realpath(path, NULL);
                return *ret ? 0 : fail_os(err, errno, "cannot find '%s'", path);
        }
        folder = realpath(dirname(for_folder), NULL);
        if (!folder)
                return fail_os(err, errno, "cannot find the folder of '%s'", path);
        if (asprintf(ret, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name) < 0)
                return fail(err, ENOMEM, "no memory for '%s'", path);
        return 0;
}

static int take_path(const char *value, json_t **ret, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = absolute_path(value, &path, err);

        if (r < 0)
                return r;
        *ret = json_string(path);
        return *ret ? 0 : fail(err, EINVAL, "the path of '%s' is no UTF-8", value);
}

static int take_number(
        const struct param *param, const char *value, json_t **ret, struct error *err)
{
        uint64_t size;
        int64_t seconds;
        char *end;
        long long n;
        int r;

        if (param->kind == PARAM_SIZE) {
                r = size_parse(value, &size, err);
                if (r < 0)
                        return r;
                *ret = json_size(size);
                return 0;
        }
        if (param->kind == PARAM_SECONDS) {
                r = seconds_parse(value, &seconds, err);
                if (r < 0)
                        return r;
                *ret = json_integer(seconds);
                return 0;
        }
        errno = 0;
        n = strtoll(value, &end, 10);
        if (!isdigit((unsigned char)value[0]) || *end || errno)
                return fail(err, EINVAL, "'%s' is no number", value);
        *ret = json_integer(n);
        return 0;
}

int daemon_take(json_t *params, const struct param *param, const char *value, struct error *err)
{
        json_t *member = NULL;
        int r = 0;

        switch (param->kind) {
        case PARAM_OWN: return param->take(params, value, err);
        case PARAM_FLAG: member = json_true(); break;
        case PARAM_TEXT:
                member = json_string(value);
                if (!member)
                        return fail(err, EINVAL, "this is no UTF-8: '%s'", value);
                break;
        case PARAM_PATH: r = take_path(value, &member, err); break;
        case PARAM_SIZE:
        case PARAM_NUMBER:
        case PARAM_SECONDS: r = take_number(param, value, &member, err); break;
        }
        if (r < 0)
                return r;
        return json_object_set_new(params, param->name, member) < 0
                ? fail(err, ENOMEM, "no memory for the request")
                : 0;
}

int daemon_take_option(const struct daemon_verb *verb, json_t *params, int key, const char *value,
        struct error *err)
{
        size_t i = (size_t)(key - CTL_KEY_FIRST);
        int r;

        if (key < CTL_KEY_FIRST || i >= n_params(verb->options))
                return -EINVAL;
        r = daemon_take(params, &verb->options[i], value, err);
        return r < 0 ? fail_prefix(err, r, "--%s", verb->options[i].name) : 0;
}

/* --- requests --- */

int daemon_connect(const struct ctl *ctl, struct control **ret, struct error *err)
{
        int r = connection ? 0 : control_connect(ctl->control, &connection, err);

        if (r < 0)
                return r;
        *ret = connection;
        return 0;
}

void daemon_disconnect(void)
{
        connection = control_close(connection);
}

int daemon_call(
        const struct ctl *ctl, const char *method, json_t *params, json_t **ret, struct error *err)
{
        struct control *control;
        int r = daemon_connect(ctl, &control, err);

        if (r < 0) {
                json_decref(params);
                return r;
        }
        return control_call(control, method, params, ret, err);
}

static int take_operands(const struct ctl *ctl, json_t *params, struct error *err)
{
        const struct daemon_verb *verb = ctl->command->daemon;

        for (size_t i = 0; i < ctl->n_operands; i++) {
                int r = daemon_take(params, &verb->operands[i], ctl->operands[i], err);

                if (r < 0)
                        return r;
        }
        if (ctl->force && verb->takes_force)
                json_object_set_new(params, "force", json_true());
        if (ctl->dry_run && verb->changes)
                json_object_set_new(params, "dry-run", json_true());
        return verb->prepare ? verb->prepare(ctl, params, err) : 0;
}

int daemon_run(struct ctl *ctl, struct error *err)
{
        const struct daemon_verb *verb = ctl->command->daemon;
        _cleanup_json_ json_t *result = NULL;
        json_t *params = ctl->params;
        int r = take_operands(ctl, params, err);

        if (r == 0)
                r = daemon_call(ctl, verb->method, json_incref(params), &result, err);
        if (r == 0 && verb->follow && !ctl->dry_run)
                r = verb->follow(ctl, result, err);
        if (r < 0)
                return r;
        if (ctl->json)
                json_print(verb->to_json ? verb->to_json(result) : json_incref(result));
        else if (verb->show && !(ctl->quiet && verb->changes))
                r = verb->show(ctl, params, result);
        if (r == 0 && verb->after)
                r = verb->after(ctl, result, err);
        return r == 0 && verb->judge ? verb->judge(result) : r;
}
