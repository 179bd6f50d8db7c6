#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The first thing that anybody tries is ./scripts/run. What it makes must be served, hold the files of
# all three layers, take a write, end with 0 on SIGTERM, and leave nothing behind.
set -euo pipefail

skip()
{
        echo "skipped: $*"
        exit 77
}

[ -x "$VHDD_BUILD/vhdd/ctl/vhdctl" ] || skip "no vhdctl in '$VHDD_BUILD'"
for tool in nbdcopy nbdinfo debugfs mke2fs; do
        command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
                skip "$tool is not installed"
done
PATH=$PATH:/usr/sbin:/sbin
# A test installs nothing, and run would.
mapfile -t packages < <("$VHDD_SOURCE/scripts/setup" --demo --list)
dpkg-query -W "${packages[@]}" >/dev/null 2>&1 || skip "some of ${packages[*]} are not installed"

tmp=$(mktemp -d)
server=
end()
{
        [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
        rm -rf "$tmp"
}
trap end EXIT
mkdir "$tmp/run"

TMPDIR=$tmp/run "$VHDD_SOURCE/scripts/run" >"$tmp/log" 2>&1 &
server=$!
tries=0
until grep -q '^  qemu-system' "$tmp/log"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then
                cat "$tmp/log"
                echo "not ok: run did not come to the lines to try"
                exit 1
        fi
        sleep 0.1
done
uri=$(sed -nE "s/^  nbdinfo '(.*)'$/\1/p" "$tmp/log")
[ "$(nbdinfo --size "$uri")" -eq 67108864 ]
nbdcopy "$uri" "$tmp/disk.raw"
for layer in 'hello This file came with base.vhd.' 'monday Monday wrote this.' \
        'tuesday Tuesday wrote this.'; do
        said=$(debugfs -R "cat ${layer%% *}.txt" "$tmp/disk.raw" 2>/dev/null)
        if [ "$said" != "${layer#* }" ]; then
                echo "not ok: ${layer%% *}.txt says '$said'"
                exit 1
        fi
done

# Writing the disk back as it is changes nothing and is taken.
nbdcopy --flush "$tmp/disk.raw" "$uri"
nbdcopy "$uri" "$tmp/again.raw"
cmp "$tmp/disk.raw" "$tmp/again.raw"

status=0
kill -TERM "$server"
wait "$server" || status=$?
server=
[ "$status" -eq 0 ] || { cat "$tmp/log" && echo "not ok: it ended with $status" && exit 1; }
left=$(ls -A "$tmp/run")
[ -z "$left" ] || { echo "not ok: left behind: $left" && exit 1; }
