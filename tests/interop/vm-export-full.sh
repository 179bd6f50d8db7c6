#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The stick is smaller than the vm: an export, a snapshot's export and an import that run out of space say
# so, leave nothing behind, and the vm goes on as it was.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/daemonlib.sh"

[ "$(id -u)" -eq 0 ] || skip "only root can mount a small file system"
need mkfs.ext4 mount umount

mounted=
mkdir "$tmp/img" "$tmp/small"
cleanup_all()
{
        end_daemon
        [ -z "$mounted" ] || umount "$tmp/small"
        cleanup
}
trap cleanup_all EXIT
truncate -s 6M "$tmp/small.img"
mkfs.ext4 -q -F "$tmp/small.img"
mount -o loop "$tmp/small.img" "$tmp/small" 2>/dev/null || skip "no loop device to be had"
mounted=yes
start_daemon

head -c 12M /dev/urandom >"$tmp/a.raw"
expect 0 "$vhdctl" convert "$tmp/a.raw" "$tmp/img/a.vhd" --type dynamic
expect 0 "$vhdctl" vm create web
expect 0 "$vhdctl" disk attach web "$tmp/img/a.vhd" --name a
expect 0 "$vhdctl" snapshot take web one
expect 0 "$vhdctl" vm export web "$tmp/exp"

nothing_left()
{
        [ "$(ls "$tmp/small")" = lost+found ] || fail "there stays $(find "$tmp/small")"
        expect 0 "$vhdctl" doctor --json
        json '[.findings[] | select(.id != "low-space")]' '[]'
}

expect 3 "$vhdctl" vm export web "$tmp/small/web"
said 'No space left'
nothing_left
expect 3 "$vhdctl" snapshot export web one "$tmp/small/deep/one"
said 'No space left'
nothing_left
expect 3 "$vhdctl" vm import "$tmp/exp" --copy --to "$tmp/small/web" --name copy
said 'No space left'
expect 3 "$vhdctl" vm show copy
nothing_left
# And the vm is what it was.
expect 0 "$vhdctl" disk list web --json
json '[.[].state]' '["serving"]'
expect 0 "$vhdctl" snapshot take web two
expect 0 "$vhdctl" vm export web "$tmp/exp2"
echo "vm-export-full: all right"
