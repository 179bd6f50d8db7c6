#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# compare says "the same" of disks that differ in one byte, or hash sums something else than what the
# guest reads.
source "$(dirname "$0")/lib.sh"
need python3 qemu-img
cd "$tmp"

truncate -s 20M a.raw
random_pieces a.raw 4 40
cp --sparse=always a.raw b.raw
expect 0 "$vhdctl" compare a.raw b.raw
printed 'the same'

# One byte, wherever it is: first, last, at the seam of two reads, inside a hole.
for offset in 0 511 1048575 1048576 9999999 20971519; do
        cp --sparse=always a.raw b.raw
        python3 - $offset <<'PYTHON'
import sys
with open("b.raw", "r+b") as disk:
    disk.seek(int(sys.argv[1]))
    byte = disk.read(1)[0]
    disk.seek(int(sys.argv[1]))
    disk.write(bytes([byte ^ 1]))
PYTHON
        expect 1 "$vhdctl" compare a.raw b.raw
        printed "offset $offset."
        expect 1 "$vhdctl" compare a.raw b.raw --json
        json .equal false
        json '."first-difference"' $offset
done
# Of two differences the first is told, whichever thread finds its own sooner.
for offset in 15000000 3000000; do
        printf X | dd of=b.raw bs=1 seek=$offset conv=notrunc status=none
done
expect 1 "$vhdctl" compare a.raw b.raw --json
json '."first-difference"' 3000000
expect 1 "$vhdctl" compare --quiet a.raw b.raw
[ -z "$out" ] || fail "--quiet says something"

# A longer tail of zeros is equal, unless --strict; one that is not zero differs where it begins to.
cp --sparse=always a.raw longer.raw
truncate -s 30M longer.raw
expect 0 "$vhdctl" compare a.raw longer.raw
expect 0 "$vhdctl" compare longer.raw a.raw
expect 1 "$vhdctl" compare --strict a.raw longer.raw
printf X | dd of=longer.raw bs=1 seek=25000000 conv=notrunc status=none
expect 1 "$vhdctl" compare a.raw longer.raw --json
json '."first-difference"' 25000000

# Across formats and chains; the same layers are not even read.
"$vhdctl" convert --quiet a.raw a.vhd
"$vhdctl" create --quiet child.avhd --parent a.vhd
expect 0 "$vhdctl" compare --strict child.avhd a.raw
expect 0 "$vhdctl" compare --strict child.avhd a.vhd
expect 3 "$vhdctl" compare a.raw absent.raw
said absent.raw
expect 2 "$vhdctl" compare a.raw

# hash: what a flat copy gives; zeros that nobody stored are summed all the same.
sum=$(content a.raw)
for disk in a.raw a.vhd child.avhd; do
        expect 0 "$vhdctl" hash --algorithm sha256 $disk
        [ "$out" = "$sum  $disk" ] || fail "hash of $disk"
done
expect 0 "$vhdctl" hash a.vhd --json
json .algorithm '"xxh3"'
json '.hash | length' 16
json '."virtual-size"' 20971520
xxh3=$(jq -r .hash <<<"$out")
expect 0 "$vhdctl" hash a.raw
[ "$out" = "$xxh3  a.raw" ] || fail "xxh3 depends on the format"
# The published checksum of nothing, and of zeros as other programs sum them.
: >empty.raw
"$vhdctl" create --quiet zeros.vhd --size 1G
expect 0 "$vhdctl" hash --algorithm sha256 zeros.vhd
printed "$(head -c 1G /dev/zero | sha256sum | cut -d' ' -f1)"
expect 2 "$vhdctl" hash --algorithm md5 a.raw
expect 3 "$vhdctl" hash absent.raw
echo "$name: all well"
