#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The nbdkit plugin: what could go wrong is that nbdkit's rules are not ours. It forks after the images
# were looked at, goes to "/", tells of -r late, stacks filters on top that rely on extents, flush and
# zero being true, and calls from many threads.
source "$(dirname "$0")/lib.sh"
need nbdkit nbdinfo nbdcopy qemu-io qemu-img sfdisk
plugin=$VHDD_BUILD/nbd/plugin/nbdkit-vhd-plugin.so
[ -f "$plugin" ] || skip "no plugin in '$VHDD_BUILD'"
! ldd "$plugin" | grep -q 'lib[at]san' || skip "nbdkit cannot load a plugin that is built with a sanitizer"
cd "$tmp"

# kit ARG... -- COMMAND: COMMAND has $uri of an nbdkit of ours.
kit()
{
        local args=()
        while [ "$1" != -- ]; do
                args+=("$1")
                shift
        done
        shift
        # One that fails leaves its socket, and with "-U -" a folder in /tmp.
        rm -f "$tmp/kit.sock"
        out=$(nbdkit -U "$tmp/kit.sock" "${args[@]}" --run "$*" 2>"$tmp/.errors") || {
                errors=$(cat "$tmp/.errors")
                return 1
        }
        errors=$(cat "$tmp/.errors")
}
# shellcheck disable=SC2016
must()
{
        kit "$@" || fail "failed: $*"
}

truncate -s 32M plain.raw
random_pieces plain.raw 5 900
"$vhdctl" convert --quiet plain.raw base.vhd
"$vhdctl" create --quiet child.vhd --parent base.vhd
mkdir elsewhere
cp base.vhd elsewhere/lone.vhd

# --- what it says of itself
expect 0 nbdkit --dump-plugin "$plugin"
for line in name=vhd thread_model=parallel magic_config_key=file 'vhd_formats=vhd raw' \
        has_extents=1 has_zero=1 has_trim=1 has_flush=1 has_cache=1 has_can_fua=1; do
        grep -qx "$line" <<<"$out" || fail "--dump-plugin does not say $line"
done
must "$plugin" elsewhere/lone.vhd -- 'nbdinfo --json "$uri"'
json '.exports[0]."export-size"' 33554432
for can in can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero; do
        json ".exports[0].$can" true
done
json '.exports[0].is_read_only' false
must -r "$plugin" file=base.vhd -- 'nbdinfo --json "$uri"'
json '.exports[0].is_read_only' true
json '.exports[0].can_zero' false

# --- contents, also of a chain, also after it went to the background and to "/"
must -r "$plugin" base.vhd -- 'nbdcopy "$uri" copy.raw'
cmp plain.raw copy.raw
must "$plugin" child.vhd -- 'nbdcopy plain.raw "$uri" && nbdcopy "$uri" copy2.raw'
cmp plain.raw copy2.raw
nbdkit -r -U "$tmp/socket" -P "$tmp/pid" "$plugin" child.vhd
check "a plugin in the background serves" nbdcopy "nbd+unix:///?socket=$tmp/socket" copy3.raw
cmp plain.raw copy3.raw
server=$(cat pid)
kill "$server"
for _ in $(seq 500); do
        [ -d "/proc/$server" ] || break
        sleep 0.01
done
server=

# --- what is wrong is said before the fork, and the exit status shows it
for bad in "$tmp/none.vhd" "$tmp/plain.raw.vhd"; do
        cp plain.raw plain.raw.vhd
        if nbdkit -U "$tmp/x" -P "$tmp/xpid" "$plugin" "$bad" 2>"$tmp/.errors"; then
                fail "nbdkit started with $bad"
        fi
        grep -q "$(basename "$bad")" "$tmp/.errors" || fail "no word about $bad"
done
mkdir away
"$vhdctl" create --quiet child2.vhd --parent elsewhere/lone.vhd
mv elsewhere/lone.vhd away/
if kit "$plugin" child2.vhd -- 'nbdinfo "$uri"'; then
        fail "a chain without its parent is served"
fi
said lone.vhd
must "$plugin" child2.vhd parent=away/lone.vhd -- 'nbdinfo --size "$uri"'
mv away/lone.vhd elsewhere/
for bad in cache=x format=qcow2 nonsense=1; do
        if kit "$plugin" base.vhd "$bad" -- true; then
                fail "$bad was taken"
        fi
done
if kit "$plugin" -- true; then
        fail "it starts without a file"
fi

# --- -r leaves the file alone, to the byte and the time stamp
before=$(stat -c '%y %s' base.vhd; sha256sum base.vhd)
must -r "$plugin" base.vhd -- 'qemu-io -r -f raw -c "read 0 1M" "$uri"'
if kit -r "$plugin" base.vhd -- 'qemu-io -f raw -c "write 0 1M" "$uri"'; then
        fail "-r lets writes through"
fi
[ "$before" = "$(stat -c '%y %s' base.vhd; sha256sum base.vhd)" ] || fail "-r changed the image"

# --- an image that another stands on takes no writes, and the sentence says what does
if kit "$plugin" base.vhd -- 'nbdinfo --size "$uri"'; then
        fail "a parent is served for writing"
fi
said child.vhd
said --filter=cow

# --- two of them on one image: the second is told who has it
mkdir mine
cp base.vhd mine/mine.vhd
must "$plugin" mine/mine.vhd -- "nbdinfo --size \"\$uri\" && ! nbdkit -U second.sock '$plugin' mine/mine.vhd --run 'nbdinfo --size \"\$uri\"' 2>second"
grep -q 'in use' second || fail "no word about who has the image: $(cat second)"

# --- writes of every kind, seen again after a clean end
rm child.vhd
"$vhdctl" create --quiet child.vhd --parent base.vhd
cp plain.raw model.raw
# shellcheck disable=SC2054
io=(-c "write -P 17 100 1" -c "write -P 33 65535 70000" -c "write -f -P 34 8M 1M"
        -c "write -z 1M 3M" -c "write -z -u 5000 12345" -c flush)
qemu-io -f raw "${io[@]}" model.raw >/dev/null
must "$plugin" child.vhd -- "qemu-io -f raw $(printf '%q ' "${io[@]}") \"\$uri\""
must -r "$plugin" child.vhd -- 'nbdcopy "$uri" written.raw'
cmp model.raw written.raw
check "the image is whole" "$vhdctl" compare model.raw child.vhd
must -r "$plugin" base.vhd -- 'nbdcopy "$uri" copy4.raw'
cmp plain.raw copy4.raw

# --- extents: clamped to the request, and where nothing is, nothing is told
"$vhdctl" create --quiet sparse.vhd --size 64M
must "$plugin" sparse.vhd -- 'qemu-io -f raw -c "write -P 1 20M 64k" "$uri" >/dev/null; nbdinfo --map --json "$uri"'
json '[.[] | select(.type == 0)] | map([.offset, .length])' '[[20971520,65536]]'
json 'map(.length) | add' 67108864

# --- filters on top
must --filter=cow "$plugin" base.vhd -- 'nbdcopy copy.raw "$uri" && qemu-io -f raw -c "write -P 9 0 2M" "$uri"'
must -r "$plugin" base.vhd -- 'nbdcopy "$uri" copy5.raw'
cmp plain.raw copy5.raw
"$vhdctl" create --quiet parted.vhd --size 64M
must "$plugin" parted.vhd -- 'truncate -s 64M table.raw && echo "2048,32768" | sfdisk -q table.raw && nbdcopy table.raw "$uri"'
must --filter=partition "$plugin" parted.vhd partition=1 -- 'nbdinfo --size "$uri"; qemu-io -f raw -c "write -P 7 0 64k" "$uri"'
[ "$(head -n 1 <<<"$out")" = 16777216 ] || fail "the partition has $out bytes"
must -r "$plugin" parted.vhd -- 'qemu-io -r -f raw -c "read -P 7 1M 64k" "$uri"'
must --filter=stats "$plugin" parted.vhd statsfile="$tmp/stats" -- 'nbdcopy "$uri" null:'
grep -q '^read:' stats || fail "the stats filter saw no reads"
must --filter=blocksize "$plugin" elsewhere/lone.vhd minblock=4096 maxdata=65536 -- 'nbdcopy "$uri" copy6.raw'
cmp plain.raw copy6.raw

# --- many connections at once share one chain
cp plain.raw plain64.raw
truncate -s 64M plain64.raw
must "$plugin" sparse.vhd -- 'nbdcopy --connections=4 --requests=16 plain64.raw "$uri" && nbdcopy --connections=4 "$uri" back.raw'
cmp plain64.raw back.raw
