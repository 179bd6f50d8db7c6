/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the XXH3 (64 bits, hexadecimal) of stdin, for intents with a right sum and a wrong heart. */
#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

int main(void)
{
        static char bytes[1 << 20];
        size_t n = fread(bytes, 1, sizeof(bytes), stdin);

        printf("%016" PRIx64 "\n", XXH3_64bits(bytes, n));
        return 0;
}
