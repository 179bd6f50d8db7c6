#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A compacted image reads otherwise than before, for us or for others; it is no smaller; or one is
# compacted that must not be: somebody stands on it, has it open, or it has nothing to free.
source "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3
cd "$tmp"

# sha FILE [OPTION...]: of the disk's content, as we read it.
sha()
{
        expect 0 "$vhdctl" hash --algorithm sha256 "$@"
        sum=${out%% *}
}

# others FILE: what QEMU and 7-Zip (where it is) read is still $sum.
others()
{
        check "qemu-img reads $1" qemu-img convert -f vpc -O raw "$1" qemu.raw
        truncate -s "$2" qemu.raw # QEMU may size by the geometry
        [ "$(content qemu.raw)" = "$sum" ] || fail "qemu-img reads $1 otherwise"
        command -v 7zz >/dev/null || return 0
        7zz x -tVHD -so "$1" 2>/dev/null >seven.raw || fail "7zz cannot read $1"
        [ "$(content seven.raw)" = "$sum" ] || fail "7zz reads $1 otherwise"
}

# write FILE PATTERN OFFSET LENGTH...: through a server of ours, zeros as data.
write()
{
        local file=$1 commands=()
        shift
        while [ $# -gt 0 ]; do
                commands+=(-c "write -P $1 $2 $3")
                shift 3
        done
        serve "$file" --socket nbd.sock
        check "writing to $file" qemu-io -f raw "${commands[@]}" 'nbd+unix:///?socket=nbd.sock'
        stop_server
}

size() { stat -c %s "$1"; }

# ---- zeros in a disk of ours: three of four quarters become zeros
truncate -s 128M disk.raw
random_pieces disk.raw 1 4000
expect 0 "$vhdctl" convert disk.raw disk.vhd
write disk.vhd 0 0 32M 0 64M 32M 0 96M 31M
sha disk.vhd
before=$(size disk.vhd)
cp disk.vhd same.vhd
expect 0 "$vhdctl" compact --dry-run --json disk.vhd
json '."dry-run"' true
[ "$(jq '."blocks-freed"' <<<"$out")" -ge 40 ] || fail "a dry run finds too little"
cmp disk.vhd same.vhd || fail "a dry run changed the file"
expect 0 "$vhdctl" compact --json disk.vhd
freed=$(jq '."blocks-freed"' <<<"$out")
[ "$freed" -ge 40 ] || fail "only $freed blocks were freed"
[ "$(jq '."file-size"' <<<"$out")" = "$(size disk.vhd)" ] || fail "another size is told"
[ "$(size disk.vhd)" -lt $((before / 2)) ] || fail "$before bytes became $(size disk.vhd)"
now=$sum
sha disk.vhd
[ "$now" = "$sum" ] || fail "it reads otherwise"
others disk.vhd 128M
expect 0 "$vhdctl" check disk.vhd
expect 0 "$vhdctl" compact --json disk.vhd
json '[."blocks-freed", ."blocks-moved"]' '[0,0]'

# ---- a child that was written what its parent holds
expect 0 "$vhdctl" create base.vhd --size 64M
write base.vhd 17 0 16M 18 32M 8M
expect 0 "$vhdctl" create child.avhd --parent base.vhd
write child.avhd 17 0 16M 19 20M 1M 18 32M 8M 0 48M 4M 18 60M 512
sha child.avhd
now=$sum
expect 3 "$vhdctl" compact base.vhd
said "refused: 1 image stands on"
expect 0 "$vhdctl" compact --json child.avhd
json '[.blocks, ."blocks-freed"]' '[16,14]'
sha child.avhd
[ "$now" = "$sum" ] || fail "the child reads otherwise"
[ "$(size child.avhd)" -lt $((5 << 20)) ] || fail "the child has $(size child.avhd) bytes"
expect 0 "$vhdctl" check --chain child.avhd

# ---- an image as QEMU packs it: blocks on no 4 KiB
qemu-img convert -f raw -O vpc -o force_size=on disk.raw qemu.vhd
check "zeros by QEMU" qemu-io -f vpc -c 'write -P 0 0 20M' -c 'write -P 0 60M 50M' qemu.vhd
sha qemu.vhd
now=$sum
before=$(size qemu.vhd)
expect 0 "$vhdctl" compact qemu.vhd
printed "blocks were freed"
sha qemu.vhd
[ "$now" = "$sum" ] || fail "QEMU's image reads otherwise"
[ "$(size qemu.vhd)" -le $((before - (60 << 20))) ] || fail "$before became $(size qemu.vhd)"
others qemu.vhd "$(stat -c %s disk.raw)"

# ---- refused: fixed, raw, in use, damaged
expect 0 "$vhdctl" create fixed.vhd --size 4M --type fixed
expect 3 "$vhdctl" compact fixed.vhd
said "no blocks that could be freed"
expect 3 "$vhdctl" compact --format raw disk.raw
said "no blocks that could be freed"
serve disk.vhd --socket nbd.sock
expect 3 "$vhdctl" compact disk.vhd
stop_server
expect 2 "$vhdctl" compact
expect 2 "$vhdctl" compact disk.vhd child.avhd

# ---- killed again and again, it reads the same, and ends
cp same.vhd killed.vhd
sha killed.vhd
now=$sum
for i in 1 2 3 4 5 6 7 8; do
        "$vhdctl" compact --quiet killed.vhd &
        pid=$!
        sleep "0.0$((i * 11 % 9))"
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        sha killed.vhd
        [ "$now" = "$sum" ] || fail "after a kill it reads otherwise"
done
expect 0 "$vhdctl" compact killed.vhd
sha killed.vhd
[ "$now" = "$sum" ] || fail "at the end it reads otherwise"
[ "$(size killed.vhd)" = "$(size disk.vhd)" ] || fail "it did not become as small"
expect 0 "$vhdctl" check killed.vhd

# ---- images that nobody here wrote
if [ -d "${VHDD_SHARED:-$VHDD_SOURCE/../shared}/images" ]; then
        images
        cd "$images"
        for image in nodevhd-win10-dynamic.vhd dfvfs-qemu-ext2.vhd plaso-qemu-nulluuid.vhd \
                origsize-mismatch.vhd xs-chain/xs-snap2.vhd dfvfs-win10-child/fat-differential.vhd; do
                sha "$image"
                now=$sum before=$(size "$image")
                expect 0 "$vhdctl" compact "$image"
                sha "$image"
                [ "$now" = "$sum" ] || fail "$image reads otherwise"
                [ "$(size "$image")" -le "$before" ] || fail "$image became larger"
                expect 0 "$vhdctl" check "$image"
                if command -v 7zz >/dev/null; then
                        (cd "$(dirname "$image")" &&
                                7zz x -tVHD -so "$(basename "$image")" 2>/dev/null) >"$tmp/seven.raw" ||
                                fail "7zz cannot read $image"
                        [ "$(content "$tmp/seven.raw")" = "$sum" ] || fail "7zz reads $image otherwise"
                fi
                echo "$name: $image: $before bytes, then $(size "$image")"
        done
        expect 3 "$vhdctl" compact xs-chain/xs-base.vhd
        said "refused: 1 image stands on"
fi
