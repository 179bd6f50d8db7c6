/* SPDX-License-Identifier: Apache-2.0 */
/* Open vSwitch may be missing, fail, hang, or leave a daemon behind that keeps what it was given open. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm-glue/net/program.h"

#define RUN(...) ((const char *const[]){__VA_ARGS__, NULL})

Test(program_run, says_how_to_get_what_is_missing)
{
        struct error err = ERROR_INIT;

        cr_assert(eq(int, program_run(RUN("ovs-nosuch"), NULL, NULL, 1000, NULL, &err), -ENOENT));
        cr_expect(strstr(err.message, "'ovs-nosuch'") != NULL, "%s", err.message);
        cr_expect(strcmp(err.hint, PROGRAM_PACKAGE_HINT) == 0, "%s", err.hint);
}

Test(program_run, reads_and_says_what_it_is_given)
{
        struct error err = ERROR_INIT;
        char *output = NULL;

        cr_assert(eq(int, program_run(RUN("cat"), NULL, "two\nlines\n", 20000, &output, &err), 0),
                "%s", err.message);
        cr_expect(strcmp(output, "two\nlines\n") == 0, "%s", output);
        free(output);
}

Test(program_run, has_the_place_of_its_sockets_once)
{
        struct error err = ERROR_INIT;
        char *output = NULL;
        const char *first;

        setenv("OVS_RUNDIR", "/elsewhere", 1);
        cr_assert(eq(int, program_run(RUN("env"), "/here", NULL, 20000, &output, &err), 0), "%s",
                err.message);
        first = strstr(output, "OVS_RUNDIR=");
        cr_assert(first != NULL);
        cr_expect(strncmp(first, "OVS_RUNDIR=/here\n", 17) == 0);
        cr_expect(strstr(first + 1, "OVS_RUNDIR=") == NULL);
        free(output);
}

Test(program_run, hands_on_its_last_words_and_its_status)
{
        struct error err = ERROR_INIT;
        int r = program_run(RUN("sh", "-c", "echo first >&2; echo last words >&2; exit 7"), NULL,
                NULL, 20000, NULL, &err);

        cr_assert(eq(int, r, -EREMOTEIO));
        cr_expect(strstr(err.message, "7: last words") != NULL, "%s", err.message);
        cr_expect(strchr(err.message, '\n') == NULL);
}

Test(program_run, ends_one_that_hangs)
{
        struct error err = ERROR_INIT;

        cr_assert(
                eq(int, program_run(RUN("sleep", "1000"), NULL, NULL, 50, NULL, &err), -ETIMEDOUT));
}

/* As ovs-vswitchd --detach: what stays has its descriptors open, and is not waited for. */
Test(program_run, does_not_wait_for_a_daemon_that_stays)
{
        struct error err = ERROR_INIT;
        time_t begun = time(NULL);
        char *output = NULL;
        int r = program_run(
                RUN("sh", "-c", "sleep 60 & echo $!"), NULL, NULL, 50000, &output, &err);

        cr_assert(eq(int, r, 0), "%s", err.message);
        cr_expect(time(NULL) - begun < 50);
        kill((pid_t)atoi(output), 9);
        free(output);
}
