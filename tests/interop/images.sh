#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Images that nobody here wrote: Hyper-V's, XenServer's, QEMU's. A reader that only understands its own
# images is worth nothing, so each of these must give the size, the type and, by every way out that
# there is (convert, serve, the nbdkit plugin), the bytes that independent readers agree on.
source "$(dirname "$0")/lib.sh"
need nbdcopy nbdinfo nbdkit python3
images
cd "$images"
plugin=$VHDD_BUILD/nbd/plugin/nbdkit-vhd-plugin.so
ways='three ways'
if [ ! -f "$plugin" ]; then
        # nbdkit cannot load a plugin that a sanitizer was built into.
        echo "$name: no plugin in '$VHDD_BUILD', so two ways out only"
        ways='two ways'
fi

# name, type, size, sha256 of the content: as the README beside the images lists them.
table='
nodevhd-win10-dynamic.vhd dynamic 536870912 c461afded0b54cc1cfb5441e08f4d7f9d699d2eff7d9526d1cf6ad227da26683
dissect-win10-fixed.vhd fixed 10485760 459325ab1fcd1d5ec9854cba790ee26378317cda177ffc1072008a1df88e6463
dfvfs-win10-child/fat-differential.vhd differencing 4194304 e1135af39c8362c771e0dd03457568095b511d48db0dcade48f549abb03bb869
dfvfs-win10-child/fat-parent.vhd fixed 4194304 3c28c32fb14f7c27f8641c2e678ed773bf3592ec1f28cdd11712924bf4ee1029
dfvfs-qemu-ext2.vhd dynamic 4212736 870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99
plaso-qemu-nulluuid.vhd dynamic 104448 c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25
origsize-mismatch.vhd dynamic 2123776 100f317b5a397b22cd57cb01a71d4f3f66928fb6df6c83ac409e32480006cb94
xs-chain/xs-base.vhd dynamic 25165824 9c3a46a2e84f5822566ca1322536bb8cdb1aa2c259338230d96f29c669a611fa
xs-chain/xs-snap1.vhd differencing 25165824 e4c04761ae570f0bc5d4b89a48b495d30cd704d0dd49b3e7818274ece4a60b80
xs-chain/xs-snap2.vhd differencing 25165824 d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485
'
find . -type f -exec sha256sum {} + | sort >"$tmp/before"

expect_info()
{
        expect 0 "$vhdctl" info --json "$1"
        json .format '"vhd"'
        json .type "\"$2\""
        json '."virtual-size"' "$3"
}

# by_convert IMAGE SHA256, by_serve, by_plugin: the content by each way out.
by_convert()
{
        expect 0 "$vhdctl" convert "$1" "$tmp/copy.raw" --force
        [ "$(content "$tmp/copy.raw")" = "$2" ] || fail "$1 converted reads otherwise"
        expect 0 "$vhdctl" convert "$1" "$tmp/copy.vhd" --force
        expect 0 "$vhdctl" hash --algorithm sha256 "$tmp/copy.vhd"
        [ "${out%% *}" = "$2" ] || fail "$1 converted to a dynamic VHD reads otherwise"
}

by_serve()
{
        serve --read-only "$1" "${@:3}"
        nbdcopy "$uri" "$tmp/served.raw"
        stop_server
        [ "$(content "$tmp/served.raw")" = "$2" ] || fail "$1 served reads otherwise"
        rm "$tmp/served.raw"
}

by_plugin()
{
        [ -f "$plugin" ] || return 0
        # shellcheck disable=SC2016
        check "the plugin serves $1" nbdkit -U - -r "$plugin" "file=$PWD/$1" \
                --run "nbdcopy \"\$uri\" '$tmp/plugin.raw'"
        [ "$(content "$tmp/plugin.raw")" = "$2" ] || fail "$1 through nbdkit reads otherwise"
        rm "$tmp/plugin.raw"
}

n=0
while read -r image type size sum; do
        [ -n "$image" ] || continue
        expect_info "$image" "$type" "$size"
        by_convert "$image" "$sum"
        by_serve "$image" "$sum"
        by_plugin "$image" "$sum"
        n=$((n + 1))
done <<<"$table"
[ "$n" -eq 10 ] || fail "looked at $n images instead of 10"

# The 127 GiB one: nothing in it. Its hash takes minutes.
large=qemu-hyperv2012r2-dynamic.vhd
expect_info $large dynamic 136365211648
json '."allocated-blocks"' 0
all_zeros()
{
        expect 0 nbdinfo --size "$1"
        [ "$out" = 136365211648 ] || fail "$large has size $out"
        expect 0 nbdinfo --map --json "$1"
        json 'map(.length) | add' 136365211648
        json '[.[].type] | unique' '[3]'
        check "random reads of $large are zeros" python3 - "$1" <<'PYTHON'
import random
import sys
try:
    import nbd
except ImportError:
    sys.exit(0)
random.seed(6)
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
for _ in range(300):
    length = random.randrange(1, 1 << 20)
    offset = random.randrange(136365211648 - length)
    assert not any(handle.pread(length, offset))
PYTHON
}
serve --read-only $large
all_zeros "$uri"
stop_server
if [ -f "$plugin" ]; then
        # shellcheck disable=SC2016
        expect 0 nbdkit -U - -r "$plugin" "file=$PWD/$large" --run 'nbdinfo --map --json "$uri"'
        json 'map(.length) | add' 136365211648
        json '[.[].type] | unique' '[3]'
fi
expect 0 "$vhdctl" convert $large "$tmp/large.vhd"
[ "$(du -k "$tmp/large.vhd" | cut -f1)" -lt 1024 ] || fail "$large converted takes space"
expect 0 "$vhdctl" compare --strict $large "$tmp/large.vhd"
if [ -n "${VHDD_LONG:-}" ]; then
        expect 0 "$vhdctl" hash --algorithm sha256 $large
        [ "${out%% *}" = dcb4f171cbcedb416d5da34e48d5a17ecc2828a0f14c416de3669b8463cb1d8e ] ||
                fail "$large reads otherwise"
fi

# Without its parent, Windows' child is refused, and the sentence names what it wants.
mkdir alone
cp dfvfs-win10-child/fat-differential.vhd alone/
expect 3 "$vhdctl" convert alone/fat-differential.vhd "$tmp/x.raw"
said fat-parent.vhd
[ ! -e "$tmp/x.raw" ] || fail "a child without its parent was converted"
rm -r alone

# Checksums that are wrong: refused with both sums, read with --force.
for image in image image-differential; do
        file=dfvfs-edited-pair/$image.vhd
        expect 3 "$vhdctl" convert "$file" "$tmp/x.raw"
        said fffff683
        said "$image.vhd"
        expect 0 "$vhdctl" convert "$file" "$tmp/x.raw" --force
        [ "$(content "$tmp/x.raw")" = c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25 ] ||
                fail "$file reads otherwise"
        rm "$tmp/x.raw"
        expect 3 "$vhdctl" serve --read-only "$file"
        by_serve "$file" c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25 --force
        expect 0 "$vhdctl" info --json "$file"
        json '."virtual-size"' 104448
        json '.problems | length > 0' true
done
expect 3 "$vhdctl" hash dfvfs-edited-pair/image.vhd
said ffffef25

# Hyper-V's configuration files are recognised, and refused politely.
for file in hyperv-config/*; do
        for verb in info hash "convert --type raw" "serve --read-only"; do
                # shellcheck disable=SC2086
                if [ "${verb%% *}" = convert ]; then
                        expect 3 "$vhdctl" $verb "$file" "$tmp/x.raw"
                else
                        expect 3 "$vhdctl" $verb "$file"
                fi
                said "$(basename "$file")"
                grep -qE 'configuration|XML' <<<"$errors" || fail "what $file is, is not said"
        done
done

# Looking changed nothing.
find . -type f -exec sha256sum {} + | sort >"$tmp/after"
cmp "$tmp/before" "$tmp/after" || fail "an image was changed"
echo "$name: $n images $ways, and the odd ones"
