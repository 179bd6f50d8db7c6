/* SPDX-License-Identifier: Apache-2.0 */
/* One program, several processes: which one, the first option says. */
#include <string.h>

#include "vhdd/daemon/main.h"
#include "vhdd/greeter/greeter.h"
#include "vhdd/worker/resolver.h"
#include "vhdd/worker/worker.h"

int main(int argc, char **argv)
{
        const char *what = argc > 1 ? argv[1] : "";

        if (strcmp(what, "--worker") == 0)
                return worker_main(argc, argv);
        if (strcmp(what, "--greeter") == 0)
                return greeter_main(argc, argv);
        if (strcmp(what, "--resolver") == 0)
                return resolver_main(argc, argv);
        return daemon_main(argc, argv);
}
