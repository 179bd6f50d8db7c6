#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A disk fills up under a guest that writes: it is told so (ENOSPC), loses nothing that was answered,
# and goes on once there is room; the image is whole all along.
. "$(dirname "$0")/lib.sh"
need mkfs.ext4 mount umount python3
[ "$(id -u)" -eq 0 ] || skip "only root can mount a small file system"
python3 -c 'import nbd' 2>/dev/null || skip "python3 has no libnbd"

mounted=
end()
{
        [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
        [ -z "$mounted" ] || umount "$tmp/small"
        rm -rf "$tmp"
}
trap end EXIT

truncate -s 24M "$tmp/small.img"
mkfs.ext4 -q -F "$tmp/small.img"
mkdir "$tmp/small"
mount -o loop "$tmp/small.img" "$tmp/small" 2>/dev/null || skip "no loop device to be had"
mounted=yes
dd if=/dev/zero of="$tmp/small/ballast" bs=1M count=3 status=none

cat >"$tmp/guest.py" <<'GUEST'
import os, sys, errno, nbd

MIB = 1 << 20
h = nbd.NBD()
h.connect_uri(sys.argv[1])
answered = []
for i in range(100):
    try:
        h.pwrite(bytes([i + 1]) * MIB, i * MIB)
        answered.append(i)
    except nbd.Error as e:
        assert e.errno in ("ENOSPC", errno.ENOSPC), e
        break
assert 5 < len(answered) < 24, "%d MiB fitted" % len(answered)
for i in answered:
    assert h.pread(MIB, i * MIB) == bytes([i + 1]) * MIB, "MiB %d differs" % i
h.flush()
os.unlink(sys.argv[2])  # somebody makes room
h.pwrite(b"z" * MIB, 90 * MIB)
h.flush()
assert h.pread(MIB, 90 * MIB) == b"z" * MIB
print(len(answered))
GUEST

for kind in dynamic child; do
        image=$tmp/small/$kind.vhd
        if [ $kind = dynamic ]; then
                expect 0 "$vhdctl" create "$image" --size 100M
        else
                expect 0 "$vhdctl" create "$tmp/base.vhd" --size 100M
                expect 0 "$vhdctl" create "$image" --parent "$tmp/base.vhd"
        fi
        serve --image-root "$tmp" "$image"
        n=$(python3 "$tmp/guest.py" "$uri" "$tmp/small/ballast") || fail "$kind: the guest is not content"
        stop_server
        expect 0 "$vhdctl" check "$image"
        # What was answered is there for the next opener, too.
        expect 0 "$vhdctl" convert --image-root "$tmp" "$image" "$tmp/$kind.raw"
        for i in 0 $((n - 1)); do
                byte=$(od -An -tu1 -N1 -j $((i * 1048576 + 4096)) "$tmp/$kind.raw" | tr -d ' ')
                [ "$byte" -eq $((i + 1)) ] || fail "$kind: MiB $i holds $byte"
        done
        rm "$image"
        dd if=/dev/zero of="$tmp/small/ballast" bs=1M count=3 status=none
done
echo "$name: ENOSPC reached the client, and nothing was lost"
