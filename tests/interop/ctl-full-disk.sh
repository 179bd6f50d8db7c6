#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The disk is full, which is why somebody compacts an image: it must work with what it frees itself. Where
# not even one block can move, and where a fixed disk or a long BAT finds no room, it says so, and the image
# is as before. Needs root, for a small file system.
source "$(dirname "$0")/lib.sh"
need mkfs.ext4 qemu-io python3
[ "$(id -u)" -eq 0 ] || skip "only root can mount a small file system"
cd "$tmp"

mounted=
# shellcheck disable=SC2317 # called by the trap
undo()
{
        [ -z "$mounted" ] || umount "$tmp/small" 2>/dev/null || true
        cleanup
}
trap undo EXIT
truncate -s 100M small.img
mkfs.ext4 -q -F -m 0 small.img
mkdir small
mount -o loop small.img small 2>/dev/null || skip "no loop device to be had"
mounted=yes

fill()
{
        dd if=/dev/zero of=small/ballast bs=1M status=none 2>/dev/null || true
        dd if=/dev/zero of=small/ballast2 bs=4K status=none 2>/dev/null || true
        sync -f small/ballast
}
hash_of() { "$vhdctl" hash "$1" | cut -d' ' -f1; }

# Zeros in the first half, on a full disk.
truncate -s 64M disk.raw
python3 -c '
import random
random.seed(4)
with open("disk.raw", "r+b") as disk:
    for i in range(32):
        disk.write(random.randbytes(2 << 20))'
expect 0 "$vhdctl" convert disk.raw small/disk.vhd --type dynamic
serve small/disk.vhd --socket nbd.sock
check "zeros" qemu-io -f raw -c 'write -P 0 0 30M' 'nbd+unix:///?socket=nbd.sock'
stop_server
sum=$(hash_of small/disk.vhd)
fill
expect 0 "$vhdctl" compact --json small/disk.vhd
json '[."blocks-freed", ."blocks-moved"]' '[15,15]'
[ "$(hash_of small/disk.vhd)" = "$sum" ] || fail "it reads otherwise"
[ "$(stat -c %s small/disk.vhd)" -lt $((36 << 20)) ] || fail "it is no smaller"

# Only holes to move into, and no room for a block: the sentence, and nothing lost.
rm -f small/ballast* small/disk.vhd
expect 0 "$vhdctl" convert disk.raw small/disk.vhd --type dynamic
serve small/disk.vhd --socket nbd.sock
check "trims" qemu-io -f raw -c 'discard 0 30M' 'nbd+unix:///?socket=nbd.sock'
stop_server
sum=$(hash_of small/disk.vhd)
before=$(stat -c %s small/disk.vhd)
fill
expect 3 "$vhdctl" compact small/disk.vhd
said "No space left on device"
[ "$(hash_of small/disk.vhd)" = "$sum" ] || fail "it reads otherwise after a failure"
expect 0 "$vhdctl" check small/disk.vhd
rm small/ballast2
truncate -s -3M small/ballast
sync -f small/ballast
expect 0 "$vhdctl" compact small/disk.vhd
[ "$(hash_of small/disk.vhd)" = "$sum" ] || fail "it reads otherwise at last"
[ "$(stat -c %s small/disk.vhd)" -lt $((before - (25 << 20))) ] || fail "it is no smaller"

# A fixed disk grows into no room: as before. So does a BAT.
rm -f small/*.vhd small/ballast*
expect 0 "$vhdctl" create small/fixed.vhd --size 20M --type fixed
size=$(stat -c %s small/fixed.vhd)
expect 3 "$vhdctl" resize small/fixed.vhd 200M
said "No space left on device"
[ "$(stat -c %s small/fixed.vhd)" = "$size" ] || fail "the fixed disk's file stayed longer"
expect 0 "$vhdctl" check small/fixed.vhd
expect 0 "$vhdctl" convert disk.raw small/disk.vhd --type dynamic
sum=$(hash_of small/disk.vhd)
fill
expect 3 "$vhdctl" resize small/disk.vhd 2040G
said "No space left on device"
[ "$(hash_of small/disk.vhd)" = "$sum" ] || fail "it reads otherwise after a failed resize"
[ ! -e small/disk.vhd.vhdd-intent ] || fail "an intent is left"
rm -f small/ballast* small/fixed.vhd
expect 0 "$vhdctl" resize small/disk.vhd 2040G
expect 0 "$vhdctl" compare small/disk.vhd disk.raw
