#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A disk as a file that is written to: by fio while others read, by the kernel's file systems through a
# loop device, on a store that is full or whose syncs fail. What was answered is in the image, which is
# whole whatever dies.
source "$(dirname "$0")/fuselib.sh"
need sfdisk mkfs.ext4 losetup mount e2fsck qemu-io
[ "$(id -u)" -eq 0 ] || skip "only root can mount a disk's file systems"
cd "$tmp"
mnt=$tmp/mnt
mkdir fs

"$vhdctl" create --quiet base.vhd --size 256M
mount_image "$mnt" --writable base.vhd

# --- nobody else
expect 3 "$vhdctl" mount --writable base.vhd fs
said "in use by vhdfuse (pid $served)"
expect 3 "$vhdctl" mount base.vhd fs
said "in use by vhdfuse (pid $served)"
expect 3 "$vhdctl" serve base.vhd
said "in use by vhdfuse (pid $served)"

# --- its size is its size
expect 0 truncate -s 256M "$mnt/disk"
expect 1 truncate -s 1M "$mnt/disk"
expect 1 truncate -s 257M "$mnt/disk"
expect 1 dd if=/dev/zero of="$mnt/disk" bs=1M seek=255 count=2 conv=notrunc status=none
said 'No space left'
[ "$(stat -c %s "$mnt/disk")" = $((256 << 20)) ] || fail "the size changed"

# --- partitions come, change and go with the table
sfdisk -q "$mnt/disk" <<<$'label: gpt\nsize=100M, name="one"\nsize=50M, name="two"'
[ "$(cd "$mnt/partitions" && ls)" = $'1\n2\ninfo.json' ] || fail "no files of new partitions"
mkfs.ext4 -q "$mnt/partitions/1"
sfdisk -q --delete "$mnt/disk" 2
[ "$(cd "$mnt/partitions" && ls)" = $'1\ninfo.json' ] || fail "a partition that was deleted has a file"
out=$(cat "$mnt/partitions/info.json")
json '[.partitions[].name]' '["one"]'

# --- the kernel's file system, over a loop device over a partition, and the disk tells the same
check "mount -o loop" mount -o loop "$mnt/partitions/1" fs
cp -r "$VHDD_SOURCE/docs" fs/
sync fs/docs
umount fs
cmp <(dd if="$mnt/disk" bs=1M skip=1 count=100 status=none) "$mnt/partitions/1" ||
        fail "the disk and its partition differ"
# The other way: through the disk, and read from the partition that was open all along.
exec 7<"$mnt/partitions/1"
loop=$(losetup --show -f -o 1M --sizelimit 100M "$mnt/disk")
check "mount of a loop device over the disk" mount "$loop" fs
diff -r "$VHDD_SOURCE/docs" fs/docs || fail "other files"
cp "$vhdctl" fs/program
fs/program --version >/dev/null || fail "a program in there does not run"
umount fs
losetup -d "$loop"
check "e2fsck" e2fsck -fn /dev/fd/7
exec 7<&-
[ "$(content "$mnt/partitions/1")" = "$(dd if="$mnt/disk" bs=1M skip=1 count=100 status=none | sha256sum | cut -d' ' -f1)" ] ||
        fail "the disk and its partition differ"

# --- space goes, and the zeros stay
before=$(stat -c %b base.vhd)
dd if=/dev/urandom of="$mnt/disk" bs=1M seek=200 count=20 conv=notrunc,fsync status=none
fallocate -p -o 200M -l 20M "$mnt/disk"
cmp <(dd if="$mnt/disk" bs=1M skip=200 count=20 status=none) <(head -c 20M /dev/zero) ||
        fail "a hole does not read as zeros"
[ "$(stat -c %b base.vhd)" -lt $((before + 8192)) ] || fail "a hole takes space"
fallocate -z -n -o 200M -l 4M "$mnt/disk"
cmp <(dd if="$mnt/disk" bs=1M skip=200 count=4 status=none) <(head -c 4M /dev/zero) ||
        fail "a zeroed range does not read as zeros"
out=$(cat "$mnt/info.json")
json '.filename' '"base.vhd"'
expect 0 "$vhdctl" info --chain --json base.vhd
[ "$out" = "$(cat "$mnt/info.json")" ] || fail "info.json says other things"
end_mount "$mnt"
expect 0 "$vhdctl" check base.vhd
echo "partitions, file systems through loop devices, holes"

# --- an image that others stand on
"$vhdctl" create --quiet child.avhd --parent base.vhd
expect 3 "$vhdctl" mount --writable base.vhd "$mnt"
said 'child.avhd'
said 'without --writable'

# --- fio verifies what it writes, while another reads all the time; then a death
mount_image "$mnt" --writable child.avhd
if command -v fio >/dev/null; then
        touch reading
        while [ -e reading ]; do cat "$mnt/disk" "$mnt/layers/0" "$mnt/partitions/1" | sha256sum; done >sums 2>&1 &
        reader=$!
        for how in '--rw=randwrite --bs=4k-64k --direct=1 --iodepth=16 --ioengine=libaio' \
                '--rw=randrw --bs=4k --direct=0 --ioengine=psync' \
                '--rw=write --bs=1M --io_size=64M --direct=1 --iodepth=4 --ioengine=libaio'; do
                # shellcheck disable=SC2086
                check "fio $how" fio --name=verify --filename="$mnt/disk" --offset=160M --size=64M \
                        --io_size=32M --verify=crc32c --verify_fatal=1 --minimal $how
        done
        check "fio reads it again" fio --name=verify --filename="$mnt/disk" --offset=160M --size=64M \
                --rw=write --bs=1M --verify=crc32c --verify_only --minimal
        rm reading
        wait "$reader"
        [ -s sums ] || fail "nobody read"
fi
python3 - "$mnt/disk" >written.sum <<'PYTHON'
import hashlib, os, random, sys
random.seed(1)
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(300):  # answered, and never synced
    os.pwrite(fd, random.randbytes(8192), random.randrange(120 << 20, 250 << 20) // 512 * 512)
data = os.pread(fd, 256 << 20, 0)
while len(data) < 256 << 20:
    data += os.pread(fd, 256 << 20, len(data))
print(hashlib.sha256(data).hexdigest())
PYTHON
kill -KILL "$served"
gone "$served"
mount_image "$mnt" --writable child.avhd
[ "$(content "$mnt/disk")" = "$(cat written.sum)" ] || fail "what was answered is lost with the process"
end_mount "$mnt"
expect 0 "$vhdctl" check child.avhd
expect 0 "$vhdctl" hash --algorithm sha256 child.avhd
[ "${out%% *}" = "$(cat written.sum)" ] || fail "the image does not hold what was written"
echo "fio, readers meanwhile, and a death"

# --- the store is full
truncate -s 24M small.img
mkfs.ext4 -q -F small.img
mkdir small
if mount -o loop small.img small 2>/dev/null; then
        "$vhdctl" create --quiet small/full.vhd --size 100M
        mount_image "$mnt" --writable small/full.vhd
        expect 1 dd if=/dev/urandom of="$mnt/disk" bs=1M count=60 conv=notrunc status=none
        said 'No space left'
        fitted=$(dd if="$mnt/disk" bs=1M status=none | tr -d '\0' | wc -c)
        [ "$fitted" -gt $((5 << 20)) ] || fail "only $fitted bytes fitted"
        sum=$(content "$mnt/disk")
        expect 0 sync "$mnt/disk"
        end_mount "$mnt"
        mount_image "$mnt" small/full.vhd
        [ "$(content "$mnt/disk")" = "$sum" ] || fail "a full store lost what was answered"
        end_mount "$mnt"
        expect 0 "$vhdctl" check small/full.vhd
        umount small
        echo "a full store"
fi

# --- a sync fails once: no later one succeeds
library=$VHDD_BUILD/tests/interop/libfailsync.so
if [ -f "$library" ] && LD_PRELOAD=$library "$vhdctl" --version >/dev/null 2>&1; then
        export FAILSYNC=$tmp/now
        "$vhdctl" create --quiet poor.vhd --size 16M
        export LD_PRELOAD=$library
        mount_image "$mnt" --writable poor.vhd
        unset LD_PRELOAD
        expect 0 dd if=/dev/urandom of="$mnt/disk" bs=64k count=1 conv=notrunc,fsync status=none
        touch "$FAILSYNC"
        expect 1 dd if=/dev/urandom of="$mnt/disk" bs=64k count=1 seek=100 conv=notrunc,fsync status=none
        said 'Input/output error'
        expect 1 sync "$mnt/disk"
        expect 1 sync "$mnt/disk"
        kill -KILL "$served"
        gone "$served"
        expect 0 "$vhdctl" mount --json --writable poor.vhd "$mnt"
        served=$(jq .pid <<<"$out")
        json '."read-only"' true
        said 'check'
        end_mount "$mnt"
        expect 1 "$vhdctl" check poor.vhd
        echo "a sync that failed"
fi
