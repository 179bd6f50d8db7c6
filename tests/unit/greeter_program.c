/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/greeter/greeter.h"

int main(int argc, char **argv)
{
        return greeter_main(argc, argv);
}
