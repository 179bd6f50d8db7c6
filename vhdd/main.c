/* SPDX-License-Identifier: Apache-2.0 */
/* One program, several processes: which one, the first option says. */
#include "vhdd/worker/worker.h"

int main(int argc, char **argv)
{
        return worker_main(argc, argv);
}
