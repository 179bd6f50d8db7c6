#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A sync fails once, and the next one "succeeds" (Linux tells of a lost writeback once): whoever is
# answered 0 after that believes data to be safe that is gone. So no flush succeeds again, also after the
# death of the server, until somebody has checked the image (rule E5).
source "$(dirname "$0")/lib.sh"
need qemu-io nbdinfo
library=$VHDD_BUILD/tests/interop/libfailsync.so
[ -f "$library" ] || skip "no libfailsync.so in '$VHDD_BUILD'"
cd "$tmp"
export FAILSYNC=$tmp/now

# The sanitizers' library wants to be the first one: there is no preloading before it.
LD_PRELOAD=$library "$vhdctl" --version >/dev/null 2>&1 || skip "this build takes no preloaded library"

io()
{
        qemu-io -f raw "${@:2}" "$1"
}

# one_image FILE [OPTION...]
one_image()
{
        local image=$1

        LD_PRELOAD=$library serve "$@"
        check "$image: a flush" io "$uri" -c "write -P 1 1M 64k" -c flush
        touch "$FAILSYNC"
        expect 1 io "$uri" -c "write -P 2 2M 64k" -c flush
        [ ! -e "$FAILSYNC" ] || fail "$image: nothing was synced"
        expect 1 io "$uri" -c flush
        expect 1 io "$uri" -c "write -f -P 3 3M 64k"
        kill -KILL "$server"
        wait "$server" 2>/dev/null || true

        # The next server may only read, and says why; the data that was flushed is there.
        serve "$@"
        expect 0 nbdinfo --json "$uri"
        json '.exports[0].is_read_only' true
        check "$image: what was flushed" qemu-io -r -f raw -c "read -P 1 1M 64k" "$uri"
        stop_server
        said 'check'
        expect 1 "$vhdctl" check "$@" --json
        json '[.[0].findings[] | select(.id == "sync-failed")] | length' 1
        expect 0 "$vhdctl" check --repair "$@"
        expect 0 "$vhdctl" check "$@"
        serve "$@"
        check "$image: after the check" io "$uri" -c "write -P 4 1M 64k" -c flush
        stop_server
        echo "$image: poisoned, checked, written again"
}

truncate -s 16M disk.raw
"$vhdctl" create --quiet fixed.vhd --size 16M --type fixed
"$vhdctl" create --quiet dynamic.vhd --size 16M
"$vhdctl" create --quiet base.vhd --size 16M
"$vhdctl" create --quiet child.avhd --parent base.vhd
one_image disk.raw --format raw
one_image fixed.vhd
one_image dynamic.vhd
one_image child.avhd
