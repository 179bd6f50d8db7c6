#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A guest deleted a GiB, and its image stays as large as it was; or it is made small by freeing what a file
# system still uses, or something stays mounted on the host. On an ext4 in a partition, in a chain too.
# Needs root, loop devices and nbdfuse; else skipped.
source "$(dirname "$0")/lib.sh"
need nbdfuse mkfs.ext4 e2fsck sfdisk losetup
[ "$(id -u)" = 0 ] || skip "needs root"
[ -r /dev/fuse ] && [ -r /dev/loop-control ] || skip "no /dev/fuse or no loop devices here"
cd "$tmp"

start=$((1 << 20))
loop=
mounted=
# shellcheck disable=SC2317 # called by the trap
undo()
{
        [ -z "$mounted" ] || umount "$mounted" 2>/dev/null || true
        [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
        cleanup
}
trap undo EXIT

# inside FILE [OPTION...]: the partition of a raw file, mounted on $tmp/mnt; outside gives it back.
inside()
{
        loop=$(losetup -f --show -o $start "$1") || skip "no loop device can be had"
        mkdir -p mnt
        mount "${@:2}" "$loop" mnt || skip "ext4 cannot be mounted here"
        mounted=$tmp/mnt
}
outside()
{
        umount mnt
        mounted=
        losetup -d "$loop"
        loop=
}

# sound FILE: its ext4 is clean, and the files that are left read as they did.
sound()
{
        rm -f look.raw
        expect 0 "$vhdctl" convert "$1" look.raw --image-root "$tmp"
        loop=$(losetup -f --show -o $start look.raw)
        check "e2fsck" e2fsck -fn "$loop"
        losetup -d "$loop"
        inside look.raw -o ro
        (cd mnt && sha256sum -c --quiet "$tmp/sums") || fail "a file of $1 reads otherwise"
        outside
}

truncate -s 3G disk.raw
echo "$((start / 512)),,L" | sfdisk --quiet disk.raw
loop=$(losetup -f --show -o $start disk.raw)
mkfs.ext4 -q "$loop"
losetup -d "$loop"
inside disk.raw
mkdir mnt/kept
head -c 20M /dev/urandom >mnt/kept/one
head -c 1G <(yes 'what the guest deleted later') >mnt/big
head -c 30M /dev/urandom >mnt/kept/two
(cd mnt && sha256sum kept/*) >sums
outside
expect 0 "$vhdctl" convert --type dynamic disk.raw disk.vhd
inside disk.raw
rm mnt/big
outside
expect 0 "$vhdctl" convert --type dynamic disk.raw after.vhd
[ "$(stat -c %s after.vhd)" -gt $((1 << 30)) ] || fail "deleting wrote zeros?"

expect 0 "$vhdctl" compact after.vhd
[ "$(stat -c %s after.vhd)" -gt $((1 << 30)) ] || fail "the GiB went without --guest-free"
expect 0 "$vhdctl" compact --guest-free --json after.vhd
json '."file-systems-trimmed"' 1
size=$(stat -c %s after.vhd)
[ "$size" -lt $((200 << 20)) ] || fail "it still has $size bytes"
[ $(($(stat -c %b after.vhd) * 512)) -lt $((200 << 20)) ] || fail "it still takes its space"
expect 0 "$vhdctl" check after.vhd
sound after.vhd
echo "summary: an ext4 with a deleted GiB: $(stat -c %s disk.vhd) bytes, then $size"

# A child in which the file was deleted: only its own blocks can go, and the parent's stay.
expect 0 "$vhdctl" create child.avhd --parent disk.vhd
cp disk.vhd parent-before.vhd
serve child.avhd --socket nbd.sock
mkdir -p fuse
nbdfuse fuse/disk 'nbd+unix:///?socket=nbd.sock' &
fuse=$!
for _ in $(seq 500); do [ ! -s fuse/disk ] || break; sleep 0.02; done
inside fuse/disk
rm mnt/big
head -c 200M <(yes another) >mnt/other
sync -f mnt/other
rm mnt/other
outside
umount fuse
wait "$fuse"
stop_server
before=$(stat -c %s child.avhd)
expect 0 "$vhdctl" compact --guest-free child.avhd
[ "$(stat -c %s child.avhd)" -lt "$before" ] || fail "the child did not become smaller"
cmp disk.vhd parent-before.vhd || fail "the parent was changed"
sound child.avhd

# Nothing stays behind, also after a kill; what is no file system is told, and nothing is done.
expect 0 "$vhdctl" create empty.vhd --size 8M
cp empty.vhd same.vhd
expect 3 "$vhdctl" compact --guest-free empty.vhd
said "nothing inside"
expect 2 "$vhdctl" compact --guest-free --dry-run disk.vhd
for pause in 0.1 ${VHDD_LONG:+0.02 0.2 0.3 0.5}; do
        cp parent-before.vhd killed.vhd
        "$vhdctl" compact --quiet --guest-free killed.vhd &
        pid=$!
        sleep $pause
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        for _ in $(seq 500); do
                "$vhdctl" hash killed.vhd >/dev/null 2>&1 && break
                sleep 0.02
        done
        expect 0 "$vhdctl" compact --guest-free killed.vhd
        sound killed.vhd
done
# A guest that sleeps goes on from what it knows of its file systems.
truncate -s 96M asleep.raw
printf '%s\n' "$((start / 512)),64M,L" ",,S" | sfdisk --quiet asleep.raw
inner=$((start + (64 << 20)))
loop=$(losetup -f --show -o $start --sizelimit $((64 << 20)) asleep.raw)
mkfs.ext4 -q "$loop"
losetup -d "$loop"
loop=$(losetup -f --show -o $inner asleep.raw)
mkswap "$loop" >/dev/null
losetup -d "$loop"
loop=
printf S1SUSPEND | dd of=asleep.raw bs=1 seek=$((inner + 4086)) conv=notrunc status=none
expect 0 "$vhdctl" convert asleep.raw asleep.vhd
cp asleep.vhd as-before.vhd
expect 3 "$vhdctl" compact --guest-free asleep.vhd
said "is hibernated"
cmp asleep.vhd as-before.vhd || fail "the image of a guest that sleeps was changed"

! grep -q vhdctl-inside /proc/mounts || fail "something is still mounted"
losetup -l | grep vhdctl-inside && fail "a loop device is left"
rm -rf /run/vhdctl-inside-*
