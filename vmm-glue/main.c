/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - vmm-host: the one for all vms, or with --supervise the one of a vm. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/host.h"
#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/relay.h"
#include "vmm-glue/supervisor/supervisor.h"

static int run_host(const struct glue_options *options, struct error *err)
{
        _cleanup_(host_freep) struct host *host = NULL;
        int r = host_new(options, &host, err);

        return r < 0 ? r : host_run(host, err);
}

static int run_supervisor(const struct glue_options *options, struct error *err)
{
        _cleanup_(supervisor_freep) struct supervisor *supervisor = NULL;
        int r = supervisor_new(options, &supervisor, err);

        return r < 0 ? r : supervisor_run(supervisor, err);
}

int main(int argc, char **argv)
{
        struct glue_options options;
        struct error err = ERROR_INIT;
        int r;

        signal(SIGPIPE, SIG_IGN);
        if (argc == 2 && strcmp(argv[1], RELAY_OPTION) == 0)
                return relay_run();
        options_read(argc, argv, &options);
        r = options.supervise ? run_supervisor(&options, &err) : run_host(&options, &err);
        if (r < 0)
                log_error(&err);
        options_done(&options);
        return r < 0 ? 3 : EXIT_SUCCESS;
}
