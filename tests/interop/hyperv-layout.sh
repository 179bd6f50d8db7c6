#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A virtual machine as Hyper-V lays it out, `Virtual Hard Disks/` beside `Snapshots/GUID/`, with its own
# paths of another machine in it, copied to a Linux host: it must be served with one --image-root, and the
# sentence without it must say which.
source "$(dirname "$0")/lib.sh"
need python3 nbdcopy nbdinfo qemu-io
cd "$tmp"

# make FOLDER: the machine; disk.raw is what its disk holds.
make_machine()
{
        PYTHONPATH=$VHDD_SOURCE/tests/hostile python3 - "$1" <<'PYTHON'
import os
import sys

from vhdmake import BLOCK_SIZE, Vhd

root = sys.argv[1]
guid = "7D3A1F0C-5E6B-4C11-9A55-0C0FFEE00001"
disks = os.path.join(root, "Virtual Hard Disks")
snapshot = os.path.join(root, "Snapshots", guid)
os.makedirs(disks)
os.makedirs(snapshot)
windows = "D:\\Hyper-V\\web 07\\"
Vhd(ident=1, size=8 * BLOCK_SIZE, blocks={0: 0x10, 1: 0x11, 5: 0x15}).write(
    os.path.join(disks, "web 07.vhd"))
# Windows does not care for upper and lower case, and people rename files there.
Vhd(ident=2, parent=1, size=8 * BLOCK_SIZE, blocks={1: 0x21, 2: 0x22},
    name=windows + "Virtual Hard Disks\\Web 07.vhd",
    locators=[("W2ku", windows + "Virtual Hard Disks\\Web 07.vhd"), ("W2ru", ".\\Web 07.vhd")]).write(
        os.path.join(disks, "web 07_A.avhd"))
Vhd(ident=3, parent=2, size=8 * BLOCK_SIZE, blocks={2: 0x32, 7: 0x37},
    name=windows + "Virtual Hard Disks\\web 07_A.avhd",
    locators=[("W2ku", windows + "Virtual Hard Disks\\web 07_A.avhd"),
              ("W2ru", "..\\..\\Virtual Hard Disks\\web 07_A.avhd")]).write(
                  os.path.join(snapshot, "web 07_B.avhd"))
with open("disk.raw", "wb") as out:
    for fill in (0x10, 0x21, 0x32, 0, 0, 0x15, 0, 0x37):
        out.write(bytes([fill]) * BLOCK_SIZE)
PYTHON
}

make_machine machine
leaf=$(echo machine/Snapshots/*/*.avhd)
sum=$(content disk.raw)

# What it prints can be pasted.
vhdctl()
{
        "${VHDD_BUILD}/vhdd/ctl/vhdctl" "$@"
}

# Without a root it is refused, and the hint is the same command with the root that it wants.
root=$(realpath machine)
expect 3 "$vhdctl" hash "$leaf" --algorithm sha256
said "lies outside"
said "vhdctl hash --image-root $root "
cure=$(sed -n 's/^ *\(vhdctl hash .*\)$/\1/p' <<<"$errors")
out=$(eval "$cure") || fail "the command that was printed does not work: $cure"
[ "${out%% *}" = "$sum" ] || fail "the chain reads otherwise"

# What tree says a tip needs is what opening it needs.
expect 0 "$vhdctl" tree --json machine
json '.roots' '["machine/Virtual Hard Disks/web 07.vhd"]'
json '[.images[] | select(.tip) | {depth, "image-root"}]' "[{\"depth\":3,\"image-root\":\"$root\"}]"
expect 0 "$vhdctl" info --json --chain --image-root "$root" "$leaf"

# Served, read whole, written to; its parents stay as they were.
before=$(cat machine/Virtual*/* | sha256sum)
serve --image-root "$root" "$leaf"
check "nbdinfo" nbdinfo --size "$uri"
check "nbdcopy" nbdcopy "$uri" copy.raw
[ "$(content copy.raw)" = "$sum" ] || fail "nbdcopy read other bytes"
check "qemu-io" qemu-io -f raw -c 'write -P 0x44 300000 12345' -c flush "$uri"
printf '\x44%.0s' {1..12345} | dd of=disk.raw bs=1 seek=300000 conv=notrunc status=none
check "nbdcopy" nbdcopy "$uri" copy.raw
stop_server
[ "$(content copy.raw)" = "$(content disk.raw)" ] || fail "what was written is not what is read"
[ "$(cat machine/Virtual*/* | sha256sum)" = "$before" ] || fail "a parent was changed"

# Moved as a whole it is the same machine.
mkdir elsewhere
mv machine elsewhere/
leaf=elsewhere/$leaf
expect 0 "$vhdctl" hash --algorithm sha256 --image-root elsewhere/machine "$leaf"
[ "${out%% *}" = "$(content disk.raw)" ] || fail "after a move it reads otherwise"

# All files in one folder, as people copy them out: the bare names are enough, no root is needed.
mkdir flat
cp elsewhere/machine/Virtual*/* "$leaf" flat/
expect 0 "$vhdctl" hash --algorithm sha256 flat/*_B.avhd
[ "${out%% *}" = "$(content disk.raw)" ] || fail "in one folder it reads otherwise"

# The base renamed: the sentence names the file that has the right id, and its command works.
mv "flat/web 07.vhd" "flat/golden image.vhd"
expect 3 "$vhdctl" hash flat/*_B.avhd
said "vhdctl relink"
cure=$(sed -n 's/^ *\(vhdctl relink .*\)$/\1/p' <<<"$errors" | head -n 1)
eval "$cure" >/dev/null || fail "the command that was printed does not work: $cure"
expect 0 "$vhdctl" hash --algorithm sha256 flat/*_B.avhd
[ "${out%% *}" = "$(content disk.raw)" ] || fail "after the relink it reads otherwise"

# A copy that cannot be mended: nothing is made up for a missing parent.
rm "flat/golden image.vhd"
expect 3 "$vhdctl" hash flat/*_B.avhd
expect 1 "$vhdctl" tree flat
printed "bring back the image with id 01010101-0101-0101-0101-010101010101"
echo "hyperv-layout: served with one --image-root, moved, flattened, relinked"
