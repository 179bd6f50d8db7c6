#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A disk is made a little smaller than asked, too large for others, over a file that was needed, or
# half; a child points to nowhere. Everything that create promises.
source "$(dirname "$0")/lib.sh"
need qemu-img
cd "$tmp"

virtual_size()
{
        "$vhdctl" info --json "$1" | jq '."virtual-size"'
}

# Sizes are rounded up to whole MiB; 2040 GiB is the most (2032 with 512K blocks).
expect 0 "$vhdctl" create a.vhd --size 1
[ "$(virtual_size a.vhd)" = 1048576 ] || fail "1 byte is not rounded up to a MiB"
expect 0 "$vhdctl" create b.vhd --size 10485761
[ "$(virtual_size b.vhd)" = 11534336 ] || fail "10 MiB and a byte are not 11 MiB"
expect 0 "$vhdctl" create c.vhd --size 2040G
[ "$(virtual_size c.vhd)" = 2190433320960 ] || fail "2040 GiB cannot be made"
expect 3 "$vhdctl" create d.vhd --size 2190433321472
said 2190433321472
said 2190433320960
[ ! -e d.vhd ] || fail "a disk that is too large left a file"
expect 0 "$vhdctl" create e.vhd --size 2032G --block-size 512K
expect 3 "$vhdctl" create d.vhd --size 2033G --block-size 512K
expect 3 "$vhdctl" create d.vhd --size 0
expect 2 "$vhdctl" create d.vhd --size 1M --block-size 1M
expect 2 "$vhdctl" create d.vhd
expect 2 "$vhdctl" create d.vhd --size 1M --type raw

# What others see of it.
expect 0 "$vhdctl" create f.vhd --size 20M --block-size 512K --json
json .type '"dynamic"'
json '."block-size"' 524288
json '.uuid | length' 36
[ "$(qemu-img info -f vpc --output json f.vhd | jq '."virtual-size"')" = 20971520 ] ||
        fail "QEMU sees another size"

# Fixed: all the space at once, or with --sparse none of it.
expect 0 "$vhdctl" create fixed.vhd --size 8M --type fixed
[ "$(stat -c %s fixed.vhd)" = $((8 * 1024 * 1024 + 512)) ] || fail "a fixed disk has another size"
[ "$(du -k fixed.vhd | cut -f1)" -ge 8192 ] || fail "a fixed disk did not take its space"
expect 0 "$vhdctl" create sparse.vhd --size 8M --type fixed --sparse
[ "$(du -k sparse.vhd | cut -f1)" -lt 1024 ] || fail "--sparse took the space"
[ "$("$vhdctl" info --json sparse.vhd | jq -r .type)" = fixed ] || fail "not fixed"
expect 2 "$vhdctl" create x.vhd --size 8M --sparse
expect 2 "$vhdctl" create x.vhd --size 8M --type fixed --block-size 2M

# Children: the parent's size and block size, its id, where it lies; the chain opens.
expect 0 "$vhdctl" create child.avhd --parent f.vhd --json
json .type '"differencing"'
json '."virtual-size"' 20971520
json '."block-size"' 524288
expect 0 "$vhdctl" info child.avhd --json
json .parent.uuid "$("$vhdctl" info --json f.vhd | jq .uuid)"
json '.parent.locators[0].text' '".\\f.vhd"'
json '.parent.filename' "\"$tmp/f.vhd\""
expect 0 "$vhdctl" info --chain --json child.avhd
json '.chain | length' 2
json '[.chain[].depth]' '[0,1]'
expect 0 "$vhdctl" compare --strict child.avhd f.vhd
expect 2 "$vhdctl" create x.avhd --parent f.vhd --size 20M
expect 2 "$vhdctl" create x.avhd --parent f.vhd --type fixed
expect 3 "$vhdctl" create x.avhd --parent absent.vhd
said absent.vhd
truncate -s 1M raw.img
expect 3 "$vhdctl" create x.avhd --parent raw.img --format raw
said 'no VHD'
[ ! -e x.avhd ] || fail "a child of nothing was made"

# A child elsewhere needs an --image-root, and that is said when it is made.
mkdir sub
expect 0 "$vhdctl" create sub/child.avhd --parent f.vhd
said --image-root
expect 3 "$vhdctl" hash sub/child.avhd
said --image-root
expect 0 "$vhdctl" hash sub/child.avhd --image-root "$tmp"

# A parent is not replaced, with --force neither; nor what is no file.
expect 3 "$vhdctl" create f.vhd --size 1M --force
said 'stand'
mkdir folder
expect 3 "$vhdctl" create folder --size 1M --force
expect 3 "$vhdctl" create nowhere/x.vhd --size 1M
said nowhere
expect 3 "$vhdctl" create /dev/null --size 1M --force

# A file that somebody has open is not replaced.
if command -v qemu-io >/dev/null; then
        mkfifo hold
        qemu-io -f vpc a.vhd <hold >qemu.log 2>&1 &
        qemu=$!
        exec 9>hold
        for ((i = 0; i < 200; i++)); do
                ! grep -q "$(stat -c %i a.vhd)" /proc/locks || break
                sleep 0.02
        done
        expect 3 "$vhdctl" create a.vhd --size 5M --force
        said "a.vhd"
        exec 9>&-
        wait "$qemu" || true
fi

# Nothing is left behind by all of this.
[ -z "$(find . -name '*.part')" ] || fail "temporary files are left"
echo "$name: all well"
