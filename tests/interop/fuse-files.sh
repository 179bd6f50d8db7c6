#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A file inside an image reads otherwise than the guest wrote it, or looking at it changes the image: its journal
# is replayed into it, a mount is left behind, a lock. ext and NTFS, in partitions and without, out of a chain; a
# journal that needs replaying; busy, killed, half made; as root and as another user.
# Needs root, /dev/fuse and loop devices; else skipped. What a program is missing for is left out, and told.
source "$(dirname "$0")/lib.sh"
need mkfs.ext4 sfdisk losetup setpriv unshare qemu-img
[ "$(id -u)" = 0 ] || skip "needs root"
if [ ! -r /dev/fuse ] || [ ! -r /dev/loop-control ]; then skip "no /dev/fuse or no loop devices here"; fi
grep -qw ext4 /proc/filesystems || skip "this kernel has no ext4"
cd "$tmp"
dir=$tmp/at
mkdir "$dir" mnt
loop= # that is ours now
holder=

# shellcheck disable=SC2317 # called by the trap
undo()
{
        [ -z "$holder" ] || kill "$holder" 2>/dev/null || true
        "$vhdctl" umount --force "$dir" 2>/dev/null || true
        "$vhdctl" umount --force mnt 2>/dev/null || true
        umount mnt 2>/dev/null || true
        [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
        cleanup
}
trap undo EXIT

# part FILE OFFSET SIZE: a loop device of a part of it, in $loop; whole gives it back.
part()
{
        loop=$(losetup -f --show -o "$2" --sizelimit "$3" "$1") || skip "no loop device can be had"
}
whole()
{
        losetup -d "$loop"
        loop=
}

# Named after the folder that was mounted on, as mount_note.c does it.
notes=/run/vhdd/mounts/$(python3 - "$dir" <<'PYTHON'
import ctypes
import os
import sys

library = ctypes.CDLL("libxxhash.so.0")
library.XXH3_64bits.restype = ctypes.c_uint64
text = os.fsencode(sys.argv[1])
print(f"{library.XXH3_64bits(text, ctypes.c_size_t(len(text))):016x}")
PYTHON
)

# nothing_left WHAT: of what belongs to this test among processes, loop devices, mounts and notes.
nothing_left()
{
        # A process that has ended may be seen for a moment longer.
        python3 - "$tmp" "$notes" "$dir" >left <<'PYTHON' || fail "after $1 there is left: $(cat left)"
import glob
import os
import sys
import time

tmp, notes, folder = sys.argv[1:]


def text_of(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def left():
    for path in glob.glob("/proc/[0-9]*"):
        words = text_of(path + "/cmdline").split("\0")
        if words[0] in ("vhdfuse", "fuse2fs", "fusefat", "ntfs-3g") and any(tmp in w or notes in w for w in words):
            yield " ".join(words)
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        if text_of(path).startswith((tmp, notes, "/disk", "/partitions")):
            yield path + " " + text_of(path)
    yield from (line for line in text_of("/proc/self/mounts").splitlines() if tmp in line)
    yield from glob.glob(notes + "*")
    yield from os.listdir(folder)


end = time.monotonic() + 5
while list(left()):
    if time.monotonic() > end:
        print("; ".join(left()))
        sys.exit(1)
    time.sleep(0.02)
PYTHON
}

# --- the images: four partitions, of which two have files; a child that changed one; one without partitions

mib=$((1 << 20))
truncate -s 300M disk.raw
printf '2048,102400,L\n,102400,7\n,102400,82\n,204800,8e\n' | sfdisk --quiet disk.raw
part disk.raw $mib $((50 * mib))
mkfs.ext4 -q -L guest "$loop"
mount "$loop" mnt
head -c 5M /dev/urandom >mnt/data
echo 'from the parent' >mnt/hello
printf '#!/bin/sh\necho run\n' >mnt/script
chmod 755 mnt/script
mkdir mnt/deep
sha256sum mnt/data | cut -d' ' -f1 >data.sum
umount mnt
whole
ntfs=no
if command -v mkfs.ntfs ntfs-3g >/dev/null; then
        part disk.raw $((51 * mib)) $((50 * mib))
        mkfs.ntfs -q -Q -F "$loop" >/dev/null 2>&1
        if ntfs-3g "$loop" mnt 2>/dev/null; then
                echo 'from windows' >mnt/hello.txt
                umount mnt
                ntfs=yes
        fi
        whole
fi
[ $ntfs = yes ] || echo "$name: without ntfs-3g NTFS is left out"
part disk.raw $((101 * mib)) $((50 * mib))
mkswap -q "$loop"
whole
printf 'LUKS\xba\xbe\0\1' | dd of=disk.raw bs=$mib seek=151 conv=notrunc status=none
expect 0 "$vhdctl" convert disk.raw disk.vhd
expect 0 "$vhdctl" create --parent disk.vhd child.vhd

# --- a chain, written and read

expect 0 "$vhdctl" mount --files --writable --partition 1 child.vhd "$dir"
printed 'partition 1, ext4'
[ "$(content "$dir/data")" = "$(cat data.sum)" ] || fail "a file inside reads otherwise"
echo 'from the child' >"$dir/hello"
cp "$dir/data" "$dir/deep/copy"
expect 0 "$vhdctl" umount "$dir"
nothing_left 'a writable mount'
expect 0 "$vhdctl" check child.vhd
before=$(content child.vhd)

expect 0 "$vhdctl" mount --files --dry-run child.vhd "$dir"
printed 'partition 1, ext4'
nothing_left 'a trial'
expect 0 "$vhdctl" mount --files child.vhd "$dir"
said "partition 3 of 'child.vhd' is left out: it is Linux swap"
said "partition 4 of 'child.vhd' is left out: it is encrypted by LUKS"
inside=$dir
if [ $ntfs = yes ]; then
        [ "$(ls "$dir")" = $'1\n2' ] || fail "the folders are $(ls "$dir")"
        inside=$dir/1
        [ "$(cat "$dir/2/hello.txt")" = 'from windows' ] || fail "a file in NTFS reads otherwise"
        ! touch "$dir/2/new" 2>/dev/null || fail "NTFS takes writes without --writable"
fi
[ "$(cat "$inside/hello")" = 'from the child' ] || fail "the child's file is not seen"
[ "$(content "$inside/deep/copy")" = "$(cat data.sum)" ] || fail "a copy inside reads otherwise"
! touch "$inside/new" 2>/dev/null || fail "it takes writes without --writable"
! "$inside/script" >/dev/null 2>&1 || fail "what an image holds can be run"
options=$(awk -v at="$inside" '$2 == at { print $4 }' /proc/self/mounts)
for option in ro nosuid nodev noexec; do
        [[ ",$options," == *",$option,"* ]] || fail "it is mounted with $options: no $option"
done
# Another one at the same folder, and what has it in use.
expect 3 "$vhdctl" mount --files disk.vhd "$dir"
said 'is taken'
(cd "$inside" && exec sleep 600) &
holder=$!
until [ "$(readlink /proc/$holder/cwd)" = "$inside" ]; do sleep 0.01; done
expect 3 "$vhdctl" umount "$dir"
said "sleep (pid $holder) uses it"
kill $holder
wait $holder 2>/dev/null || true
holder=
expect 0 "$vhdctl" umount --dry-run "$dir"
expect 0 "$vhdctl" umount "$dir"
nothing_left umount
[ "$(content child.vhd)" = "$before" ] || fail "looking at it changed the image"

# The parent has what it had; JSON says all that the text says.
expect 0 "$vhdctl" mount --files --partition 1 --json disk.vhd "$dir"
json '[.mounts[0].type, .mounts[0].label, .mounts[0].partition, .mounts[0]["read-only"]]' \
        '["ext4","guest",1,true]'
[ "$(cat "$dir/hello")" = 'from the parent' ] || fail "the parent has the child's file"
expect 0 "$vhdctl" mount --files --partition 1 -o exec child.vhd mnt
[ "$(mnt/script)" = run ] || fail "-o exec does not let it run"
expect 0 "$vhdctl" umount mnt "$dir"
nothing_left 'two mounts'
expect 3 "$vhdctl" mount --files --partition 9 disk.vhd "$dir"
said 'has no partition 9'
expect 3 "$vhdctl" mount --files --partition 3 disk.vhd "$dir"
said 'Linux swap'
expect 3 "$vhdctl" mount --files -o suid disk.vhd "$dir"
said 'not to be trusted'
nothing_left 'mounts that failed'

# --- what is no mount of ours, and mounts of other kinds

expect 3 "$vhdctl" umount "$dir"
said 'nothing is mounted'
expect 3 "$vhdctl" umount --dry-run "$dir"
said 'nothing is mounted'
mount -t tmpfs none mnt
expect 3 "$vhdctl" umount mnt
said 'no mount of vhdctl'
umount mnt
expect 0 "$vhdctl" mount disk.vhd "$dir"
tail -f /dev/null 7<"$dir/disk" &
holder=$!
until [ "$(readlink /proc/$holder/exe)" = "$(realpath "$(command -v tail)")" ]; do sleep 0.01; done
expect 3 "$vhdctl" umount "$dir"
said "tail (pid $holder) uses it"
kill $holder
wait $holder 2>/dev/null || true
holder=
expect 0 "$vhdctl" umount "$dir"
nothing_left 'a plain mount'

# --- a journal that needs replaying goes into a scratch child, or with --writable into the image

truncate -s 64M whole.raw
mkfs.ext4 -q whole.raw
part whole.raw 0 $((64 * mib))
mount "$loop" mnt
echo early >mnt/early
sync -f mnt
echo late >mnt/late
sync mnt/late
cp --sparse=always whole.raw dirty.raw
umount mnt
whole
dumpe2fs -h dirty.raw 2>/dev/null | grep -q needs_recovery || fail "the journal is clean: the test tests nothing"
expect 0 "$vhdctl" convert dirty.raw dirty.vhd
before=$(content dirty.vhd)
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
[ "$(cat "$dir/late")" = late ] || fail "what is in the journal is not seen"
expect 0 "$vhdctl" umount "$dir"
[ "$(content dirty.vhd)" = "$before" ] || fail "a journal was replayed into a read-only image"
nothing_left 'a dirty journal'

# --- vhdfuse killed under it; vhdctl killed in its middle; umount(8) alone

# A process that was killed is there for some milliseconds more, and until then its mount is one in use.
kill_server()
{
        local pid
        pid=$(jq -r .server.pid "$notes/note")
        kill -KILL "$pid"
        while grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$pid/status"; do sleep 0.01; done
}
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
kill_server
expect 0 "$vhdctl" umount "$dir"
nothing_left 'a death of vhdfuse'
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
kill_server
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
[ "$(cat "$dir/late")" = late ] || fail "a mount over a dead one shows nothing"
umount "$dir"
expect 0 "$vhdctl" umount "$dir"
nothing_left 'umount(8)'
for ms in 0 5 10 20 30 40 60 70 100 160; do
        "$vhdctl" mount --files dirty.vhd "$dir" >/dev/null 2>&1 &
        maker=$!
        sleep "$(printf '0.%03d' $ms)"
        kill -KILL $maker 2>/dev/null || true
        wait $maker 2>/dev/null || true
        if [ $((ms % 20)) = 0 ]; then
                # What it started may still be on its way.
                sleep 0.3
                "$vhdctl" umount "$dir" 2>/dev/null || true
                nothing_left "vhdctl killed after $ms ms"
        fi
done
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
expect 0 "$vhdctl" umount "$dir"
nothing_left 'all that'
# Nothing has a lock of it any more.
expect 0 "$vhdctl" mount --files --writable dirty.vhd "$dir"
echo 'written to' >"$dir/new"
(cd "$dir" && exec sleep 600) &
holder=$!
until [ "$(readlink /proc/$holder/cwd)" = "$dir" ]; do sleep 0.01; done
expect 0 "$vhdctl" umount --force "$dir"
said 'until its last user is gone'
kill $holder
wait $holder 2>/dev/null || true
holder=
nothing_left '--force'
expect 0 "$vhdctl" mount --files dirty.vhd "$dir"
[ "$(cat "$dir/new")" = 'written to' ] || fail "what was written is not there"
expect 0 "$vhdctl" umount "$dir"
expect 0 "$vhdctl" convert dirty.vhd look.raw
check 'e2fsck' e2fsck -fn look.raw

# --- a sync that fails while it is closed is told by umount

library=$VHDD_BUILD/tests/interop/libfailsync.so
if [ -f "$library" ] && LD_PRELOAD=$library "$vhdctl" --version >/dev/null 2>&1; then
        cp dirty.vhd failing.vhd
        export FAILSYNC=$tmp/fail-now
        expect 0 env LD_PRELOAD="$library" "$vhdctl" mount --files --writable failing.vhd "$dir"
        echo lost >"$dir/lost"
        touch "$FAILSYNC"
        expect 3 "$vhdctl" umount "$dir"
        said 'did not end well'
        nothing_left 'a bad end'
        unset FAILSYNC
else
        echo "$name: this build takes no preloaded library: failing syncs are left out"
fi

# --- FAT, as on the partition that a machine boots from

if command -v mkfs.vfat mcopy >/dev/null && { grep -qw vfat /proc/filesystems || command -v fusefat >/dev/null; }; then
        truncate -s 40M fat.raw
        check 'mkfs.vfat' mkfs.vfat fat.raw
        echo 'from the loader' >HELLO.TXT
        check 'mcopy' mcopy -i fat.raw HELLO.TXT ::HELLO.TXT
        expect 0 "$vhdctl" convert fat.raw fat.vhd
        before=$(content fat.vhd)
        expect 0 "$vhdctl" mount --files fat.vhd "$dir"
        [ "$(cat "$dir"/[Hh]*)" = 'from the loader' ] || fail "a file in FAT reads otherwise"
        ! touch "$dir/new" 2>/dev/null || fail "FAT takes writes without --writable"
        expect 0 "$vhdctl" umount "$dir"
        nothing_left FAT
        [ "$(content fat.vhd)" = "$before" ] || fail "looking at FAT changed the image"
else
        echo "$name: without a FAT that can be mounted, FAT is left out"
fi

# --- an image by another writer

images
expect 0 "$vhdctl" mount --files "$images/dfvfs-qemu-ext2.vhd" "$dir"
[ -n "$(ls "$dir")" ] || fail "there is no file in an ext2 of another writer"
expect 0 "$vhdctl" umount "$dir"
nothing_left 'an ext2 of another writer'

# --- as another user, who may mount nothing but FUSE

if ! command -v fuse2fs fusermount3 >/dev/null; then
        echo "$name: without fuse2fs another user's mounts are left out"
        exit 0
fi
cat >as-user.sh <<'SCRIPT'
set -eu
cd "$1"
"$2" mount --files user.vhd at 2>messages
[ "$(cat at/late)" = late ]
! touch at/new 2>/dev/null
(cd at && exec sleep 600) &
holder=$!
until [ "$(readlink /proc/$holder/cwd)" = "$1/at" ]; do sleep 0.01; done
! "$2" umount at 2>messages
grep -qF "sleep (pid $holder) uses it" messages
kill $holder
wait $holder 2>/dev/null || true
"$2" umount at
! grep -F "$1" /proc/self/mounts
"$2" mount --files --writable user.vhd at
echo mine >at/mine
"$2" umount at
"$2" mount --files user.vhd at
[ "$(cat at/mine)" = mine ]
"$2" umount at
! grep -F "$1" /proc/self/mounts
[ -z "$(ls -A run)" ]
SCRIPT
chmod 755 "$tmp"
mkdir user
mkdir user/at user/run
chmod 700 user/run
cp as-user.sh user/
expect 0 "$vhdctl" convert dirty.raw user/user.vhd
chown -R nobody user
# On some machines only root may open /dev/fuse: then a node that everybody may.
mknod fuse c 10 229
chmod 666 fuse
unshare -m sh -c "mount --bind '$tmp/fuse' /dev/fuse && exec setpriv --reuid=nobody --clear-groups \
        env XDG_RUNTIME_DIR='$tmp/user/run' HOME=/ TMPDIR='$tmp/user' bash -x user/as-user.sh '$tmp/user' '$vhdctl'" \
        >user.log 2>&1 || {
        cat user.log user/messages >&2
        fail "it does not go as another user"
}
nothing_left 'another user'
