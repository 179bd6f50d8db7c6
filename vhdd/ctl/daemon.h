/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.h - verbs that the daemon carries out: most are a row of a table and a way to show the answer.
 *
 * Operands and options go into the params of one request under their own names, as schema.json
 * spells them; the daemon checks them. So a verb says which words it takes, and what its answer looks
 * like for people; with --json the answer is printed as it came.
 *
 * Units      bytes; seconds.
 * Ownership  json_t values are new references where a function says so.
 * Errors     0 or -errno with err filled, a verb's result otherwise. -EINVAL: wrong usage, exit code 2.
 * Threads    the main thread only.
 */
#pragma once

#include <jansson.h>

#include "vhdd/control/client.h"
#include "vhdd/ctl/ctl.h"

enum param_kind {
        PARAM_FLAG, /* no value: true */
        PARAM_TEXT,
        PARAM_PATH, /* made absolute here: the daemon has another working directory */
        PARAM_SIZE, /* 64K, 10G */
        PARAM_NUMBER,
        PARAM_SECONDS, /* 90, 30m, 24h, 7d */
        PARAM_OWN,     /* take() reads it */
};

struct param {
        const char *name; /* of the option, and of the member unless take() does otherwise */
        enum param_kind kind;
        const char *value; /* "NAME" in the help; NULL for a flag */
        const char *help;
        int (*take)(json_t *params, const char *value, struct error *err);
};

/* What a command of the daemon has beside its struct command. */
struct daemon_verb {
        const char *method;
        const struct param *operands; /* ended by {0}: the member that each goes to */
        const struct param *options;  /* ended by {0}; NULL: none */
        bool takes_force;             /* --force is a member too */
        bool changes;                 /* --dry-run is */
        /* Optional: what tables cannot say, before the request. */
        int (*prepare)(const struct ctl *ctl, json_t *params, struct error *err);
        /* Optional: what is waited for before the answer is shown, and what it adds to it. Not in a dry
         * run: 0, or its failure. */
        int (*follow)(struct ctl *ctl, json_t *result, struct error *err);
        /* Shows the answer to people: a result. Not called with --json. */
        int (*show)(const struct ctl *ctl, const json_t *params, const json_t *result);
        /* Optional: what --json prints instead of the answer (a new reference). */
        json_t *(*to_json)(const json_t *result);
        /* Optional: what is still to be done after the answer was shown: 0, or its failure. */
        int (*after)(struct ctl *ctl, const json_t *result, struct error *err);
        /* Optional: the result of a verb that said yes; CTL_DONE without. */
        int (*judge)(const json_t *result);
};

/* The verb's options in argp's form, ended by {0}; NULL when it has none. The caller frees it. */
struct argp_option *daemon_options(const struct daemon_verb *verb);

/* One option or operand into @params. -EINVAL with a sentence. */
int daemon_take(json_t *params, const struct param *param, const char *value, struct error *err);
/* The option with that key (CTL_KEY_FIRST and its number). */
int daemon_take_option(const struct daemon_verb *verb, json_t *params, int key, const char *value,
        struct error *err);

/* A verb's whole run, for those that a table describes: operands, request, answer. */
int daemon_run(struct ctl *ctl, struct error *err);

/* For those that it does not: the connection (made at the first call), and a request. @params is
 * taken over. */
int daemon_connect(const struct ctl *ctl, struct control **ret, struct error *err);
int daemon_call(
        const struct ctl *ctl, const char *method, json_t *params, json_t **ret, struct error *err);
/* Drops the connection; the next call makes one. */
void daemon_disconnect(void);

/* Seconds, with a unit of s, m, h or d behind the number, or none. */
int seconds_parse(const char *text, int64_t *ret, struct error *err);
/* "NAME=VALUE,NAME=VALUE": calls @take for each; an empty list is an error. */
int pairs_parse(const char *text, json_t *object,
        int (*take)(json_t *object, const char *name, const char *value, struct error *err),
        struct error *err);
