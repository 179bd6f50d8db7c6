#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A resized disk reads otherwise than before, others see another size or cannot open it; one becomes
# larger than Hyper-V takes, or smaller than its data.
source "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3
cd "$tmp"

# is FILE SIZE WAS: it has SIZE, reads as the raw file WAS, zeros behind; also for QEMU and 7-Zip.
is()
{
        expect 0 "$vhdctl" info --json "$1"
        json '."virtual-size"' "$2"
        expect 0 "$vhdctl" compare "$1" "$3"
        expect 0 "$vhdctl" check "$1"
        [ -z "$(find . -name '*.vhdd-intent')" ] || fail "an intent is left"
        [ "$(qemu-img info -f vpc --output=json "$1" | jq '."virtual-size"')" = "$2" ] ||
                fail "QEMU sees another size of $1"
        [ "$2" -le $((4 << 30)) ] || return 0
        check "qemu-img compares" qemu-img compare -f vpc -F raw "$1" "$3"
        command -v 7zz >/dev/null || return 0
        7zz x -tVHD -so "$1" >seven.raw 2>/dev/null || fail "7zz cannot read $1"
        [ "$(stat -c %s seven.raw)" = "$2" ] || fail "7zz sees another size of $1"
        check "7zz" qemu-img compare -f raw -F raw seven.raw "$3"
        rm -f seven.raw
}

G=$((1 << 30))
truncate -s 64M disk.raw
random_pieces disk.raw 1 3000

# ---- dynamic: within the BAT's sector, over it, and to the most there is: blocks move out of the way
expect 0 "$vhdctl" convert disk.raw disk.vhd
expect 0 "$vhdctl" resize --json disk.vhd +3M
json '[."virtual-size-before", ."virtual-size", ."blocks-moved"]' '[67108864,70254592,0]'
is disk.vhd $((67 << 20)) disk.raw
cp disk.vhd same.vhd
expect 0 "$vhdctl" resize --dry-run --json disk.vhd 2G
json '."virtual-size"' $((2 * G))
cmp disk.vhd same.vhd || fail "a dry run changed the file"
expect 0 "$vhdctl" resize disk.vhd 2G
is disk.vhd $((2 * G)) disk.raw
expect 0 "$vhdctl" resize --json disk.vhd 2040G
[ "$(jq '."blocks-moved"' <<<"$out")" -ge 1 ] || fail "no block was in the way"
is disk.vhd $((2040 * G)) disk.raw
expect 3 "$vhdctl" resize disk.vhd +512
said "2040 GiB"
expect 0 "$vhdctl" convert disk.raw small.vhd --block-size 512K
expect 3 "$vhdctl" resize small.vhd $((2032 * G + 512))
said "2032 GiB"
expect 0 "$vhdctl" resize small.vhd 2032G
is small.vhd $((2032 * G)) disk.raw

# Whole sectors, and the new end can be written to.
expect 0 "$vhdctl" convert disk.raw odd.vhd
expect 0 "$vhdctl" resize odd.vhd 100000001
is odd.vhd 100000256 disk.raw
serve odd.vhd --socket nbd.sock
check "writing at the end" qemu-io -f raw -c 'write -P 7 99999744 512' -c 'read -P 7 99999744 512' \
        'nbd+unix:///?socket=nbd.sock'
expect 3 "$vhdctl" resize odd.vhd +1M
stop_server

# ---- a smaller one only when asked, and only of an empty tail
expect 3 "$vhdctl" resize disk.vhd 64M
said "--shrink"
expect 0 "$vhdctl" resize --shrink disk.vhd 64M
is disk.vhd $((64 << 20)) disk.raw
expect 3 "$vhdctl" resize --shrink disk.vhd 1M --json
first=$(python3 -c '
data = open("disk.raw", "rb").read()
print(next(i for i in range(1 << 20, len(data)) if data[i]))')
[ "$(jq .offset <<<"$out")" = "$first" ] || said "$first"
is disk.vhd $((64 << 20)) disk.raw

# ---- fixed: the space is taken; the old footer does not show
expect 0 "$vhdctl" convert disk.raw fixed.vhd --type fixed
expect 0 "$vhdctl" resize fixed.vhd +512
is fixed.vhd $(((64 << 20) + 512)) disk.raw
expect 0 "$vhdctl" resize fixed.vhd 200M
is fixed.vhd $((200 << 20)) disk.raw
[ "$(stat -c %s fixed.vhd)" = $(((200 << 20) + 512)) ] || fail "the fixed disk's file is odd"
[ $(($(stat -c %b fixed.vhd) * 512)) -ge $((136 << 20)) ] || fail "the space was not taken"
expect 0 "$vhdctl" resize --shrink fixed.vhd 64M
is fixed.vhd $((64 << 20)) disk.raw
[ "$(stat -c %s fixed.vhd)" = $(((64 << 20) + 512)) ] || fail "the fixed disk's file stayed long"
expect 3 "$vhdctl" resize fixed.vhd 2041G
said "2040 GiB"

# ---- raw
cp disk.raw raw.raw
expect 0 "$vhdctl" resize --format raw raw.raw +1M
expect 0 "$vhdctl" compare --format raw raw.raw disk.raw
[ "$(stat -c %s raw.raw)" = $((65 << 20)) ] || fail "the raw disk has another size"
expect 3 "$vhdctl" resize --format raw raw.raw 1M
expect 0 "$vhdctl" resize --format raw --shrink raw.raw 64M
cmp raw.raw disk.raw || fail "the raw disk changed"

# ---- children: not an image with children, nor beyond the parent unless asked
expect 0 "$vhdctl" create child.avhd --parent disk.vhd
expect 3 "$vhdctl" resize disk.vhd 1G
said "refused: 1 image stands on"
expect 3 "$vhdctl" resize child.avhd 1G
said "larger than its parent"
expect 0 "$vhdctl" resize --force child.avhd 300G
expect 0 "$vhdctl" compare child.avhd disk.raw
expect 0 "$vhdctl" check --chain child.avhd
expect 0 "$vhdctl" info --json child.avhd
json '."virtual-size"' $((300 * G))

# What its parent has behind a child that was made smaller is not shown by the way.
expect 0 "$vhdctl" create large.vhd --size 64M
expect 0 "$vhdctl" create small.avhd --parent large.vhd
expect 0 "$vhdctl" resize --shrink small.avhd 32M
expect 3 "$vhdctl" resize small.avhd 48M
said "which is larger"
expect 0 "$vhdctl" resize --force small.avhd 48M

expect 2 "$vhdctl" resize fixed.vhd
expect 2 "$vhdctl" resize fixed.vhd 12x
expect 2 "$vhdctl" resize fixed.vhd +0
expect 3 "$vhdctl" resize fixed.vhd 0

# ---- images that nobody here wrote
if [ -d "${VHDD_SHARED:-$VHDD_SOURCE/../shared}/images" ]; then
        images
        cd "$images"
        for image in nodevhd-win10-dynamic.vhd dissect-win10-fixed.vhd dfvfs-qemu-ext2.vhd \
                plaso-qemu-nulluuid.vhd origsize-mismatch.vhd xs-chain/xs-snap2.vhd \
                dfvfs-win10-child/fat-differential.vhd; do
                expect 0 "$vhdctl" convert "$image" "$tmp/was.raw" --force
                size=$(stat -c %s "$tmp/was.raw")
                expect 0 "$vhdctl" resize --force "$image" +10G
                expect 0 "$vhdctl" info --json "$image"
                json '."virtual-size"' $((size + 10 * G))
                expect 0 "$vhdctl" compare "$image" "$tmp/was.raw"
                expect 0 "$vhdctl" check "$image"
                expect 0 "$vhdctl" resize --shrink "$image" "$size"
                expect 0 "$vhdctl" compare --strict "$image" "$tmp/was.raw"
                if command -v 7zz >/dev/null; then
                        (cd "$(dirname "$image")" &&
                                7zz x -tVHD -so "$(basename "$image")" 2>/dev/null) >"$tmp/seven.raw" ||
                                fail "7zz cannot read $image"
                        cmp "$tmp/seven.raw" "$tmp/was.raw" || fail "7zz reads $image otherwise"
                fi
        done
fi
