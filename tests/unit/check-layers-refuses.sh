#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A check that has gone blind lets every include pass. So it is shown one tree that is right, and
# trees with one wrong include each, which it must name by file and line.
set -euo pipefail

check=$VHDD_SOURCE/scripts/check-layers
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# tree FILE LINE: a fresh tree in which FILE includes LINE, beside an innocent file.
tree()
{
        rm -rf "$tmp/tree"
        mkdir -p "$tmp/tree/base" "$tmp/tree/$(dirname "$1")"
        printf '#include <stdio.h>\n#include "base/a.h"\n' >"$tmp/tree/base/a.c"
        : >"$tmp/tree/base/a.h"
        printf '\n#include %s\n' "$2" >"$tmp/tree/$1"
}

passes()
{
        tree "$1" "$2"
        "$check" "$tmp/tree" >"$tmp/log" 2>&1 || { echo "refused: $2 in $1" && exit 1; }
}

refuses()
{
        tree "$1" "$2"
        if "$check" "$tmp/tree" >"$tmp/log" 2>&1; then
                echo "passed: $2 in $1"
                exit 1
        fi
        grep -q "^$1:2: " "$tmp/log" || { cat "$tmp/log" && exit 1; }
}

passes chain/x.c '"base/a.h"'
passes nbd/server/x.c '"chain/x.h"'
passes vhdd/ctl/x.c '"nbd/server/server.h"'
passes vhdd/daemon/x.c '"fuse/x.h"'
refuses base/x.c '"formats/format.h"'
refuses formats/vhd/x.h '"chain/chain.h"'
refuses chain/x.c '"nbd/server/server.h"'
refuses nbd/x.c '"merge/x.h"'
refuses merge/x.c '"fuse/x.h"'
refuses vmm-glue/x.c '"chain/chain.h"'
refuses vhdd/control/x.c '"vhdd/ctl/ctl.h"'
refuses base/x.c '"x.h"'
refuses base/x.c '<base/a.h>'
