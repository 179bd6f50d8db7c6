#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A disk as a file: what `vhdctl mount` shows has every byte, every hole and no more; whatever goes wrong
# is said, and whatever dies leaves the image whole.
source "$(dirname "$0")/fuselib.sh"
need sfdisk fdisk qemu-img cp cmp losetup
images
cd "$images"

# name, size, sha256 of the content: as the README beside the images lists them.
table='
nodevhd-win10-dynamic.vhd 536870912 c461afded0b54cc1cfb5441e08f4d7f9d699d2eff7d9526d1cf6ad227da26683
dissect-win10-fixed.vhd 10485760 459325ab1fcd1d5ec9854cba790ee26378317cda177ffc1072008a1df88e6463
dfvfs-win10-child/fat-differential.vhd 4194304 e1135af39c8362c771e0dd03457568095b511d48db0dcade48f549abb03bb869
dfvfs-win10-child/fat-parent.vhd 4194304 3c28c32fb14f7c27f8641c2e678ed773bf3592ec1f28cdd11712924bf4ee1029
dfvfs-qemu-ext2.vhd 4212736 870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99
plaso-qemu-nulluuid.vhd 104448 c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25
origsize-mismatch.vhd 2123776 100f317b5a397b22cd57cb01a71d4f3f66928fb6df6c83ac409e32480006cb94
xs-chain/xs-base.vhd 25165824 9c3a46a2e84f5822566ca1322536bb8cdb1aa2c259338230d96f29c669a611fa
xs-chain/xs-snap1.vhd 25165824 e4c04761ae570f0bc5d4b89a48b495d30cd704d0dd49b3e7818274ece4a60b80
xs-chain/xs-snap2.vhd 25165824 d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485
'
find . -type f -exec sha256sum {} + | sort >"$tmp/before"
mnt=$tmp/mnt

# same_map FILE IMAGE: the holes of FILE are those that vhdctl map tells of, to the byte.
same_map()
{
        python3 - "$1" <(
                "$vhdctl" map --json "$2"
        ) <<'PYTHON' || fail "$2: holes are not where vhdctl map has them"
import json, os, sys
wanted = []
for run in json.load(open(sys.argv[2])):
    data = not run["zero"]
    if wanted and wanted[-1][2] == data:
        wanted[-1][1] = run["start"] + run["length"]
    else:
        wanted.append([run["start"], run["start"] + run["length"], data])
fd = os.open(sys.argv[1], os.O_RDONLY)
size, at, have = os.fstat(fd).st_size, 0, []
while at < size:
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        data = size
    if data > at:
        have.append([at, data, False])
    if data == size:
        break
    at = os.lseek(fd, data, os.SEEK_HOLE)
    have.append([data, at, True])
assert have == wanted, (have, wanted)
PYTHON
}

n=0
while read -r image size sum; do
        [ -n "$image" ] || continue
        mount_image "$mnt" "$image"
        [ "$(stat -c %s "$mnt/disk")" = "$size" ] || fail "$image: the size is another"
        [ "$(stat -c %Y "$mnt/disk")" = "$(stat -c %Y "$image")" ] || fail "$image: the time is another"
        [ "$(content "$mnt/disk")" = "$sum" ] || fail "$image mounted reads otherwise"
        expect 0 "$vhdctl" info --chain --json "$image"
        [ "$out" = "$(cat "$mnt/info.json")" ] || fail "$image: info.json says other things"
        same_map "$mnt/disk" "$image"
        end_mount "$mnt"
        n=$((n + 1))
done <<<"$table"
[ "$n" -eq 10 ] || fail "looked at $n images instead of 10"
find . -type f -exec sha256sum {} + | sort | cmp - "$tmp/before" || fail "an image was changed"
echo "$n images by others, each byte and hole of them"

# --- partitions
mount_image "$mnt" nodevhd-win10-dynamic.vhd
fdisk -l "$mnt/disk" >"$tmp/fdisk" 2>&1 || fail "fdisk reads no table"
grep -q 'gpt' "$tmp/fdisk" || fail "fdisk finds no GPT"
while read -r number start size; do
        cmp <(dd if="$mnt/disk" bs=512 skip="$start" count="$size" status=none) \
                "$mnt/partitions/$number" || fail "partition $number reads otherwise"
        n=$((n + 1))
done < <(sfdisk -J "$mnt/disk" 2>/dev/null |
        jq -r '.partitiontable.partitions | to_entries[] | "\(.key + 1) \(.value.start) \(.value.size)"')
[ "$n" -eq 14 ] || fail "compared $((n - 10)) partitions instead of 4"
out=$(cat "$mnt/partitions/info.json")
json .type '"gpt"'
json '.partitions[0]."type-name"' '"Microsoft reserved"'
json '[.partitions[].filename]' '["1","2","3","4"]'
end_mount "$mnt"

# An MBR with logical partitions, and an entry that points beyond the disk.
truncate -s 200M "$tmp/mbr.raw"
sfdisk -q "$tmp/mbr.raw" <<'TABLE'
label: dos
start=2048, size=20480, type=83
start=40960, size=204800, type=5
start=43008, size=40960, type=7
start=90112, size=40960, type=82
start=300000, size=100000, type=c
TABLE
sfdisk -d "$tmp/mbr.raw" | grep -oE 'start= *[0-9]+, size= *[0-9]+' >"$tmp/mbr.parts"
mount_image "$mnt" --format raw "$tmp/mbr.raw"
[ "$(cd "$mnt/partitions" && ls)" = $'1\n3\n5\n6\ninfo.json' ] || fail "the files of an MBR are others"
[ "$(stat -c %s "$mnt/partitions/6")" = $((40960 * 512)) ] || fail "a logical partition has another size"
out=$(cat "$mnt/partitions/info.json")
json '[.partitions[] | select(.kind == "logical").start]' "[$((43008 * 512)),$((90112 * 512))]"
json '[.partitions[] | select(.kind == "extended").filename]' '[null]'
end_mount "$mnt"
truncate -s 150M "$tmp/mbr.raw"
mount_image "$mnt" --format raw "$tmp/mbr.raw"
[ ! -e "$mnt/partitions/3" ] || fail "a partition beyond the disk has a file"
end_mount "$mnt"
dd if=/dev/urandom of="$tmp/mbr.raw" bs=1M count=2 conv=notrunc status=none
mount_image "$mnt" --format raw "$tmp/mbr.raw"
[ "$(ls "$mnt/partitions")" = info.json ] || fail "noise has partitions"
end_mount "$mnt"
echo "partitions: GPT, MBR with logical ones, cut short, noise"

# --- layers: what a child alone has, and holes for the rest
cd xs-chain
mount_image "$mnt" xs-snap2.vhd
[ "$(cd "$mnt/layers" && ls)" = $'0\n1\n2' ] || fail "three images, and other layers"
[ "$(content "$mnt/layers/2")" = 9c3a46a2e84f5822566ca1322536bb8cdb1aa2c259338230d96f29c669a611fa ] ||
        fail "the root as a layer reads otherwise"
python3 - "$mnt" <(
        "$vhdctl" map --json xs-snap2.vhd
) <<'PYTHON' || fail "the layers do not add up to the disk"
import json, os, sys
mnt = sys.argv[1]
disk = open(mnt + "/disk", "rb").read()
layers = [open("%s/layers/%d" % (mnt, i), "rb").read() for i in range(3)]
for run in json.load(open(sys.argv[2])):
    a, b = run["start"], run["start"] + run["length"]
    if run["present"]:
        assert layers[run["depth"]][a:b] == disk[a:b], run
        if not run["zero"]:
            fd = os.open("%s/layers/%d" % (mnt, run["depth"]), os.O_RDONLY)
            assert os.lseek(fd, a, os.SEEK_DATA) == a, run
            os.close(fd)
        for above in range(run["depth"]):
            assert not any(layers[above][a:b]), "an upper layer has what it has not"
PYTHON
end_mount "$mnt"
cd ..
echo "layers: each has what the map says"

# --- copies keep their holes, and other programs read it
mount_image "$mnt" nodevhd-win10-dynamic.vhd
cp --sparse=always "$mnt/disk" "$tmp/copy.raw"
cmp "$mnt/disk" "$tmp/copy.raw" || fail "cp --sparse=always copies other bytes"
[ "$(du -k "$tmp/copy.raw" | cut -f1)" -lt 30000 ] || fail "a copy lost its holes"
dd if="$mnt/disk" of="$tmp/copy.raw" bs=64k iflag=direct status=none
cmp "$mnt/disk" "$tmp/copy.raw" || fail "dd copies other bytes"
expect 0 qemu-img compare -f vpc -F raw nodevhd-win10-dynamic.vhd "$mnt/disk"
rm "$tmp/copy.raw"
[ "$(stat -f -c %b "$mnt")" = "$(stat -f -c %b .)" ] || fail "statfs is of another file system"

# --- read-only is read-only
for try in 'touch mnt/x' 'rm mnt/disk' 'mkdir mnt/x' 'mv mnt/disk mnt/x' 'ln -s a mnt/x' \
        'truncate -s 1 mnt/disk' 'dd if=/dev/zero of=mnt/disk count=1 conv=notrunc status=none'; do
        # shellcheck disable=SC2086
        if (cd "$tmp" && eval $try) 2>"$tmp/.check"; then fail "went on a read-only mount: $try"; fi
        grep -qE 'Read-only file system|not permitted' "$tmp/.check" || fail "$try: $(cat "$tmp/.check")"
done

# --- two mounts read, a writer is kept out and told by whom
mkdir "$tmp/mnt2"
first=$served
mount_image "$tmp/mnt2" nodevhd-win10-dynamic.vhd
second=$served
cmp "$mnt/disk" "$tmp/mnt2/disk" || fail "two mounts read otherwise"
mkdir "$tmp/mnt3"
expect 3 "$vhdctl" mount --writable nodevhd-win10-dynamic.vhd "$tmp/mnt3"
grep -qE "in use by vhdfuse \(pid ($first|$second)\)" <<<"$errors" || fail "the holder is not named"
expect 3 "$vhdctl" mount nodevhd-win10-dynamic.vhd "$mnt"
said 'already'
served=$second
end_mount "$tmp/mnt2"
served=$first

# --- in use
exec 7<"$mnt/disk"
if umount "$mnt" 2>/dev/null; then fail "unmounted under who reads it"; fi
head -c 1000 <&7 | cmp - <(head -c 1000 "$mnt/disk") || fail "a reader is disturbed by an umount that failed"
kill -TERM "$served"
head -c 1000 <&7 >/dev/null || fail "SIGTERM cuts a reader off at once"
exec 7<&-
gone "$served"
served=
expect 0 ls "$mnt"
[ -z "$out" ] || fail "still mounted after SIGTERM"

# --- a reader that does not leave is cut off, and no file is lost by it
"$vhdctl" mount --foreground nodevhd-win10-dynamic.vhd "$mnt" 2>"$tmp/.serve-errors" &
server=$!
until grep -q mounted "$tmp/.serve-errors"; do sleep 0.01; done
exec 7<"$mnt/disk"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ "$code" -eq 0 ] || fail "vhdfuse ended with $code"
grep -q 'still in use' "$tmp/.serve-errors" || fail "nobody is told that it is in use"
if head -c 1 <&7 2>/dev/null; then fail "read from a mount that has ended"; fi
exec 7<&-
echo "in use: umount waits, SIGTERM waits a little"

# --- killed: what is left over is recognised, and taken away by the next
mount_image "$mnt" nodevhd-win10-dynamic.vhd
kill -KILL "$served"
gone "$served"
if ls "$mnt" 2>/dev/null; then fail "a dead mount answers"; fi
expect 0 "$vhdctl" mount --json nodevhd-win10-dynamic.vhd "$mnt"
said 'left over'
served=$(jq .pid <<<"$out")
[ "$(content "$mnt/disk")" = c461afded0b54cc1cfb5441e08f4d7f9d699d2eff7d9526d1cf6ad227da26683 ] ||
        fail "the second mount reads otherwise"
end_mount "$mnt"
[ "$(grep -c "$mnt" /proc/self/mounts)" = 0 ] || fail "something is still mounted"

# --- bad input
expect 3 "$vhdctl" mount nodevhd-win10-dynamic.vhd "$tmp/none"
said 'mkdir'
expect 3 "$vhdctl" mount nodevhd-win10-dynamic.vhd "$tmp/before"
said 'no directory'
expect 3 "$vhdctl" mount none.vhd "$mnt"
said 'none.vhd'
expect 2 "$vhdctl" mount none.vhd
expect 3 "$vhdctl" mount -o nonsense nodevhd-win10-dynamic.vhd "$mnt"
said 'nonsense'
expect 3 "$vhdctl" mount dfvfs-edited-pair/image-differential.vhd "$mnt"
expect 3 "$vhdctl" mount --json "$tmp/before" "$mnt"
mkdir alone
cp xs-chain/xs-snap2.vhd alone/
expect 3 "$vhdctl" mount alone/xs-snap2.vhd "$mnt"
said 'xs-snap1.vhd'
expect 0 "$vhdctl" mount --dry-run xs-chain/xs-snap2.vhd "$mnt"
said 'can be mounted'
mount_image "$mnt" --parent xs-chain/xs-snap1.vhd alone/xs-snap2.vhd --image-root xs-chain
[ "$(content "$mnt/disk")" = d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485 ] ||
        fail "with --parent it reads otherwise"
# A parent that vanishes under it is read on: it is open.
mv xs-chain/xs-snap1.vhd xs-chain/xs-base.vhd "$tmp/"
echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true
[ "$(dd if="$mnt/disk" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1)" = \
        d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485 ] || fail "a parent that was moved away"
end_mount "$mnt"
expect 3 "$vhdctl" mount alone/xs-snap2.vhd "$mnt"
# One that is cut short is an error for who reads there, and never zeros.
mv "$tmp/xs-snap1.vhd" "$tmp/xs-base.vhd" xs-chain/
mount_image "$mnt" xs-chain/xs-snap2.vhd
truncate -s 600k xs-chain/xs-base.vhd
if cat "$mnt/disk" >/dev/null 2>"$tmp/.check"; then fail "a parent that was cut short reads well"; fi
grep -q 'Input/output error' "$tmp/.check" || fail "$(cat "$tmp/.check")"
end_mount "$mnt"

# --- others: as the image's own permissions say
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
        chmod 755 "$tmp"
        nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
        mount_image "$mnt" dissect-win10-fixed.vhd
        if "${nobody[@]}" cat "$mnt/disk" >/dev/null 2>&1; then fail "anybody reads a mount without allow_other"; fi
        end_mount "$mnt"
        chmod 600 dissect-win10-fixed.vhd
        mount_image "$mnt" -o allow_other dissect-win10-fixed.vhd
        if "${nobody[@]}" cat "$mnt/disk" >/dev/null 2>&1; then fail "anybody reads what is for its owner"; fi
        end_mount "$mnt"
        chmod 644 dissect-win10-fixed.vhd
        mount_image "$mnt" -o allow_other dissect-win10-fixed.vhd
        check "allow_other" "${nobody[@]}" cmp "$mnt/disk" "$mnt/disk"
        end_mount "$mnt"
fi
[ -z "$(losetup -n -O BACK-FILE | grep -F "$tmp" || true)" ] || fail "a loop device is left over"
