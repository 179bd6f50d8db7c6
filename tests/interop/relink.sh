#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Children by other writers (Windows, XenServer) whose parents were moved and renamed: after a relink
# they read as before, others read them too, and every block is where it was.
source "$(dirname "$0")/lib.sh"
need 7zz
images
cd "$tmp"

snap1=e4c04761ae570f0bc5d4b89a48b495d30cd704d0dd49b3e7818274ece4a60b80
snap2=d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485
child=e1135af39c8362c771e0dd03457568095b511d48db0dcade48f549abb03bb869

reads()
{
        expect 0 "$vhdctl" hash --algorithm sha256 "${@:2}"
        [ "${out%% *}" = "$1" ] || fail "${*:2} reads otherwise"
}

# others WANTED FILE: what 7-Zip reads, which follows parents by itself.
others()
{
        (cd "$(dirname "$2")" && 7zz x -tVHD -so "$(basename "$2")" 2>/dev/null) >seven.raw ||
                fail "7zz cannot read $2"
        [ "$(content seven.raw)" = "$1" ] || fail "7zz reads $2 otherwise"
}

# XenServer's chain, whose locators MacX, W2ku and W2ru are all relative: base and first child renamed.
cp -r "$images/xs-chain" chain
mv chain/xs-base.vhd 'chain/golden image.vhd'
mv chain/xs-snap1.vhd chain/middle.vhd
expect 3 "$vhdctl" hash chain/xs-snap2.vhd
said "vhdctl relink"
expect 0 "$vhdctl" relink --dry-run chain/middle.vhd --parent 'chain/golden image.vhd'
expect 3 "$vhdctl" hash chain/middle.vhd
expect 0 "$vhdctl" relink chain/middle.vhd --parent 'chain/golden image.vhd'
expect 0 "$vhdctl" relink chain/xs-snap2.vhd --parent chain/middle.vhd --json
json '.parent.relative' '"./middle.vhd"'
json '."image-root"' 'null'
reads $snap1 chain/middle.vhd
reads $snap2 chain/xs-snap2.vhd
others $snap2 chain/xs-snap2.vhd
expect 0 "$vhdctl" info --json chain/middle.vhd
json '[.parent.locators[] | select(.source == "MacX").text]' '["./golden image.vhd"]'
expect 0 "$vhdctl" tree chain
[ -z "$(find chain -name '*.vhdd-*')" ] || fail "something was left beside the images"

# In another folder: the locators say so, and an --image-root is needed.
mkdir bases
mv 'chain/golden image.vhd' bases/
expect 0 "$vhdctl" relink chain/middle.vhd --parent 'bases/golden image.vhd'
printed "--image-root $(realpath bases)"
expect 3 "$vhdctl" hash chain/xs-snap2.vhd
said "--image-root"
reads $snap2 --image-root bases chain/xs-snap2.vhd # 7-Zip looks in the child's folder only

# A parent of another id is refused; only --force writes its id.
cp bases/'golden image.vhd' copy.vhd
expect 3 "$vhdctl" relink chain/xs-snap2.vhd --parent bases/'golden image.vhd'
said "has the id"
reads $snap2 --image-root bases chain/xs-snap2.vhd

# The child that Windows made, with its slots of 4 KiB and 64 KiB.
cp -r "$images/dfvfs-win10-child" windows
mv windows/fat-parent.vhd "windows/$(printf 'x%.0s' {1..200}).vhd"
expect 0 "$vhdctl" relink windows/fat-differential.vhd --parent windows/x*.vhd
reads $child windows/fat-differential.vhd
others $child windows/fat-differential.vhd
mv windows/x*.vhd windows/p.vhd
expect 0 "$vhdctl" relink windows/fat-differential.vhd --parent windows/p.vhd
reads $child windows/fat-differential.vhd
others $child windows/fat-differential.vhd
echo "relink: XenServer's chain and Windows' child, by us and by 7-Zip"
