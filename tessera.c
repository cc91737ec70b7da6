// SPDX-License-Identifier: Apache-2.0
// The program: a table of subcommands.
#include <stdio.h>

int main(void) {
    puts("tessera");
    return 0;
}
