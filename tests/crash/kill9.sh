#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A server dies in the middle of its writes: what it had answered must be there when the next one
# serves the image (rule E4). Twenty times over on a dynamic image and on a chain of three, with
# io_uring and where it is forbidden.
source "$VHDD_SOURCE/tests/interop/lib.sh"
kill9=$VHDD_BUILD/tests/crash/kill9
[ -x "$kill9" ] || skip "no kill9 in '$VHDD_BUILD'"
rounds=${VHDD_LONG:+200}
rounds=${rounds:-20}
cd "$tmp"

# sum FILE: of its bytes.
sum()
{
        sha256sum "$1" | cut -d' ' -f1
}

"$vhdctl" create --quiet one.vhd --size 24M --block-size 512K
"$kill9" "$vhdctl" one.vhd "$tmp" "$rounds" || fail "a dynamic image lost an answered write"
"$kill9" "$vhdctl" one.vhd "$tmp" 5 --no-io-uring || fail "without io_uring an answered write is lost"

head -c 16M /dev/urandom >disk.raw
"$vhdctl" convert --quiet disk.raw root.vhd
"$vhdctl" create --quiet middle.avhd --parent root.vhd
"$vhdctl" create --quiet leaf.avhd --parent middle.avhd
before=$(sum root.vhd)$(sum middle.avhd)
"$kill9" "$vhdctl" leaf.avhd "$tmp" "$rounds" --no-io-uring || fail "a chain lost an answered write"
"$kill9" "$vhdctl" leaf.avhd "$tmp" 5 || fail "a chain lost an answered write, with io_uring"
[ "$before" = "$(sum root.vhd)$(sum middle.avhd)" ] || fail "a parent was changed"

# Nothing is left behind, and every image is sound.
for file in one.vhd leaf.avhd; do
        [ ! -e "$file.vhdd-redo" ] || fail "a redo file is left beside $file"
        expect 0 "$vhdctl" info --quiet "$file"
done
