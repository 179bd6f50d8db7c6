/* SPDX-License-Identifier: Apache-2.0 */
/* One program, several processes: which one, the first option says. */
#include <string.h>

#include "vhdd/worker/resolver.h"
#include "vhdd/worker/worker.h"

int main(int argc, char **argv)
{
        if (argc > 1 && !strcmp(argv[1], "--resolver"))
                return resolver_main(argc, argv);
        return worker_main(argc, argv);
}
