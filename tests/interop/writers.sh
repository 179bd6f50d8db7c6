#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What we write is worth nothing if nobody else reads it: QEMU (whose size may come from the geometry),
# libvhdi, and 7-Zip, which is the one that knows chains.
source "$(dirname "$0")/lib.sh"
need qemu-img python3
cd "$tmp"

sevenzip=$(command -v 7zz || command -v 7z || true)

# Disks whose geometry covers less than they hold, exactly as much, and the largest geometry.
for size in 3M 10M 64M 100M 504M 1G 40G; do
        bytes=$(numfmt --from=iec "$size")
        rm -f disk.raw
        truncate -s "$size" disk.raw
        random_pieces disk.raw 7 30
        printf END | dd of=disk.raw bs=1 seek=$((bytes - 3)) conv=notrunc status=none
        for type in dynamic fixed; do
                rm -f "$type.vhd"
                "$vhdctl" convert --quiet disk.raw "$type.vhd" --type $type
                have=$(qemu-img info -f vpc --output json $type.vhd | jq '."virtual-size"')
                [ "$have" = "$bytes" ] || fail "QEMU sees $have bytes of a $type disk of $size"
                check "QEMU reads a $type disk of $size" qemu-img compare -f vpc -F raw $type.vhd disk.raw
                if command -v vhdiinfo >/dev/null; then
                        expect 0 vhdiinfo $type.vhd
                        grep -q "($bytes bytes)" <<<"$out" || fail "vhdiinfo sees another size of $type $size"
                        grep -qi "Disk type.*$type" <<<"$out" || fail "vhdiinfo sees another type"
                fi
        done
done

# By geometry alone: what QEMU does to creators that it does not know. The geometry never promises
# more than the disk holds.
geometry=$("$vhdctl" info --json dynamic.vhd | jq '.geometry | .cylinders * .heads * ."sectors-per-track" * 512')
[ "$geometry" -le "$bytes" ] || fail "the geometry is larger than the disk"

# Created empty ones, too.
"$vhdctl" create --quiet created.vhd --size 127G
[ "$(qemu-img info -f vpc --output json created.vhd | jq '."virtual-size"')" = 136365211648 ] ||
        fail "QEMU sees another size of a created disk"
"$vhdctl" create --quiet created-fixed.vhd --size 20M --type fixed
[ "$(qemu-img info -f vpc --output json created-fixed.vhd | jq '."virtual-size"')" = 20971520 ] ||
        fail "QEMU sees another size of a created fixed disk"

# Chains, judged by 7-Zip: written through NBD, so that blocks are mixed down to the sector.
if [ -n "$sevenzip" ] && python3 -c 'import nbd' 2>/dev/null; then
        rm -f disk.raw
        truncate -s 20M disk.raw
        random_pieces disk.raw 8 80
        "$vhdctl" convert --quiet disk.raw base.vhd
        parent=base.vhd
        for n in 1 2 3; do
                "$vhdctl" create --quiet "child$n.avhd" --parent "$parent"
                parent=child$n.avhd
                serve "$parent"
                python3 - "$uri" disk.raw $n <<'PYTHON'
import random
import sys
import nbd
uri, path, seed = sys.argv[1:]
random.seed(int(seed))
handle = nbd.NBD()
handle.connect_uri(uri)
with open(path, "r+b") as disk:
    for _ in range(200):
        sectors = random.randrange(1, 40)
        offset = random.randrange(20 * 2048 - sectors) * 512
        data = random.randbytes(sectors * 512)
        handle.pwrite(data, offset)
        disk.seek(offset)
        disk.write(data)
handle.flush()
handle.shutdown()
PYTHON
                stop_server
                expect 0 "$vhdctl" compare --strict "$parent" disk.raw
                rm -rf extracted
                check "7-Zip reads a chain of $((n + 1))" "$sevenzip" x -tVHD -y -oextracted "$parent"
                extracted=$(find extracted -type f)
                [ "$(content "$extracted")" = "$(content disk.raw)" ] ||
                        fail "7-Zip reads a chain of $((n + 1)) otherwise"
        done
else
        echo "$name: no 7-Zip or no python3-libnbd, so no chains"
fi
echo "$name: all well"
