#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fio's own checksums over four connections, random writes from 512 bytes to 1 MiB: a lost, torn or
# misplaced write shows. On a dynamic image, and on a chain of 64 images with writes in every one.
source "$(dirname "$0")/lib.sh"
need fio qemu-io
# Its list of engines is no proof: Debian builds nbd in, others may not.
fio --enghelp=nbd >/dev/null 2>&1 || skip "fio has no nbd engine"
cd "$tmp"

# verify SEED: four jobs, each on its quarter of the disk.
verify()
{
        expect 0 fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite \
                --bssplit=512/20:4k/40:13k/15:64k/15:1m/10 --blockalign=512 \
                --iodepth=16 --numjobs=4 --size=24m --offset_increment=24m --io_size=24m \
                --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=256 \
                --randseed="$1" --fsync=64 --group_reporting --output-format=terse
        if grep -qi 'verify: bad\|error=' <<<"$errors$out"; then
                fail "fio found wrong data"
        fi
}

"$vhdctl" create --quiet dynamic.vhd --size 96M
serve --socket "$tmp/s" dynamic.vhd
verify 1
verify 2
stop_server
expect 0 "$vhdctl" check dynamic.vhd

# 64 layers, each with writes of its own.
"$vhdctl" create --quiet layer0.vhd --size 96M
for i in $(seq 1 63); do
        serve --socket "$tmp/s" layer$((i - 1)).vhd
        qemu-io -f raw -c "write -P $i $((i * 1500 * 1024 / 512 * 512)) 300k" \
                -c "write -P $i $((i * 7919 * 512 % 90000000 / 512 * 512)) 4k" "$uri" >/dev/null
        stop_server
        "$vhdctl" create --quiet layer"$i".vhd --parent layer$((i - 1)).vhd
done
sums=$(sha256sum layer62.vhd layer0.vhd)
serve --socket "$tmp/s" layer63.vhd
verify 3
stop_server
expect 0 "$vhdctl" check --chain layer63.vhd
[ "$sums" = "$(sha256sum layer62.vhd layer0.vhd)" ] || fail "a parent was written to"
