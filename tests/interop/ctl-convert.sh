#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# convert loses bytes, makes a half file that looks whole, fills the disk with zeros, or replaces what
# it reads from. Every source into every type, and what must not work.
source "$(dirname "$0")/lib.sh"
need python3 qemu-img
cd "$tmp"

truncate -s 40M disk.raw
random_pieces disk.raw 2 60
# A size that is no whole block, and no whole MiB.
truncate -s $((40 * 1024 * 1024 + 7 * 512)) disk.raw
printf end | dd of=disk.raw bs=1 seek=$((40 * 1024 * 1024 + 7 * 512 - 3)) conv=notrunc status=none
size=$((40 * 1024 * 1024 + 7 * 512))
sum=$(content disk.raw)

hash_of()
{
        "$vhdctl" hash --algorithm sha256 "$@" | cut -d' ' -f1
}

# raw -> each type -> each type: the same bytes, the size to the 512 bytes, holes kept.
for type in dynamic fixed raw; do
        expect 0 "$vhdctl" convert disk.raw "$type.out" --type $type --json
        json .type "\"$type\""
        json '."virtual-size"' $size
        [ "$(hash_of --format "$([ $type = raw ] && echo raw || echo vhd)" "$type.out")" = "$sum" ] ||
                fail "$type reads otherwise"
        [ "$(du -k "$type.out" | cut -f1)" -lt 8192 ] || fail "$type is not sparse"
done
mv dynamic.out dynamic.vhd
mv fixed.out fixed.vhd
for from in dynamic.vhd fixed.vhd; do
        for type in dynamic fixed; do
                expect 0 "$vhdctl" convert "$from" again.vhd --type $type
                expect 0 "$vhdctl" compare --strict "$from" again.vhd
                rm again.vhd
        done
        expect 0 "$vhdctl" convert "$from" again.raw
        [ "$(content again.raw)" = "$sum" ] || fail "$from to raw changed the bytes"
        rm again.raw
done
expect 0 "$vhdctl" convert disk.raw small.vhd --block-size 512K --json
expect 0 "$vhdctl" info small.vhd --json
json '."block-size"' 524288
[ "$(hash_of small.vhd)" = "$sum" ] || fail "512K blocks read otherwise"

# A raw file that is no whole number of sectors: a VHD ends in zeros, a raw copy is exact.
head -c 1000001 disk.raw >odd.raw
expect 0 "$vhdctl" convert odd.raw odd.vhd --json
json '."virtual-size"' 1000448
expect 0 "$vhdctl" compare odd.raw odd.vhd
expect 0 "$vhdctl" convert odd.raw copy.raw
cmp odd.raw copy.raw || fail "an odd raw file is not copied exactly"

# A chain becomes one image.
"$vhdctl" create --quiet child.avhd --parent dynamic.vhd
expect 0 "$vhdctl" convert child.avhd flat.vhd
expect 0 "$vhdctl" compare --strict flat.vhd disk.raw

# Azure: fixed, a whole MiB and the footer.
expect 0 "$vhdctl" convert dynamic.vhd azure.vhd --for azure --json
json .type '"fixed"'
json '."virtual-size"' $((41 * 1024 * 1024))
json '."file-size"' $((41 * 1024 * 1024 + 512))
expect 0 "$vhdctl" compare azure.vhd disk.raw
expect 1 "$vhdctl" compare --strict azure.vhd disk.raw
expect 2 "$vhdctl" convert dynamic.vhd x.vhd --for azure --type dynamic

# A name that tells nothing needs --type; nothing else is guessed.
expect 2 "$vhdctl" convert disk.raw x
expect 2 "$vhdctl" convert disk.raw x.qcow2
expect 2 "$vhdctl" convert disk.raw nbd://localhost/
expect 2 "$vhdctl" convert disk.raw x.raw --block-size 2M
[ ! -e x.raw ] || fail "wrong usage made a file"

# Over a file that is there: not without --force, then in one step; never over its own source.
expect 3 "$vhdctl" convert disk.raw fixed.vhd
said --force
expect 0 "$vhdctl" convert disk.raw fixed.vhd --force
expect 3 "$vhdctl" convert dynamic.vhd dynamic.vhd --force
said 'dynamic.vhd'
ln dynamic.vhd hardlink.vhd
expect 3 "$vhdctl" convert child.avhd hardlink.vhd --force
expect 3 "$vhdctl" convert disk.raw dynamic.vhd --force # child.avhd stands on it
said 'stand'
expect 0 "$vhdctl" compare --strict child.avhd disk.raw

# Too large for a VHD: the number is said, and nothing is made.
truncate -s $((2040 * 1024 * 1024 * 1024 + 512)) huge.raw
expect 3 "$vhdctl" convert huge.raw huge.vhd
said 2190433321472
[ ! -e huge.vhd ] || fail "a disk that is too large left a file"
rm huge.raw

# Damage in the source is an error, and no zeros in the destination.
cp dynamic.vhd damaged.vhd
python3 - <<'PYTHON'
import struct
with open("damaged.vhd", "r+b") as image:
    image.seek(1536)
    bat = struct.unpack(">20I", image.read(80))
    used = next(i for i, entry in enumerate(bat) if entry != 0xffffffff)
    image.seek(1536 + 4 * used)
    image.write(struct.pack(">I", 0x00ffffff))
PYTHON
expect 3 "$vhdctl" convert damaged.vhd x.raw
said damaged.vhd
expect 3 "$vhdctl" convert damaged.vhd x.raw --force
said damaged.vhd
[ ! -e x.raw ] || fail "a damaged source left a destination"

# No room: refused before the work begins; nothing is left. (In a mount namespace of its own.)
mkdir small
if unshare -m mount -t tmpfs none small 2>/dev/null; then
        expect 3 unshare -m bash -c \
                'mount -t tmpfs -o size=64K none small; "$1" convert disk.raw small/x.raw; code=$?
                ls -A small; exit $code' bash "$vhdctl"
        said small/x.raw
        said '64 KiB left'
        [ -z "$out" ] || fail "a full disk left '$out'"
fi
# No room in the middle of it, which nobody could foresee: an error like any other.
for to in limit.raw limit.vhd; do
        expect 3 bash -c 'ulimit -f 2000; exec "$1" convert disk.raw "$2"' bash "$vhdctl" $to
        said $to
        [ ! -e $to ] || fail "a file that was cut off has got its name"
done

# A signal in the middle leaves nothing, and is what ended the process.
truncate -s 3G long.raw
random_pieces long.raw 3 20000
"$vhdctl" convert --quiet long.raw signal.vhd &
pid=$!
for ((i = 0; i < 1000; i++)); do
        [ -z "$(find . -name 'signal.vhd.*.part' -size +64k)" ] || break
        sleep 0.005
done
kill -TERM $pid
code=0
wait $pid || code=$?
[ $code = 143 ] || [ $code = 0 ] || fail "SIGTERM ended convert with $code"
[ $code = 0 ] || [ ! -e signal.vhd ] || fail "half a file has got its name"
rm long.raw

# From an NBD server: many requests under way, block status, sizes of any kind.
if command -v qemu-nbd >/dev/null; then
        qemu-nbd -r -f raw -k "$tmp/sock" -t -e 4 disk.raw 2>/dev/null &
        qemu=$!
        for ((i = 0; i < 500; i++)); do [ ! -S sock ] || break; sleep 0.01; done
        expect 0 "$vhdctl" convert "nbd+unix:///?socket=$tmp/sock" nbd.vhd
        expect 0 "$vhdctl" compare --strict "nbd+unix:///?socket=$tmp/sock" nbd.vhd
        expect 0 "$vhdctl" hash --algorithm sha256 "nbd+unix:///?socket=$tmp/sock"
        printed "$sum"
        kill "$qemu"
        wait "$qemu" || true
        expect 0 "$vhdctl" compare --strict nbd.vhd disk.raw
        [ "$(du -k nbd.vhd | cut -f1)" -lt 8192 ] || fail "from NBD it is not sparse"
fi
expect 3 "$vhdctl" convert "nbd+unix:///?socket=$tmp/nobody" x.raw
said nobody
[ ! -e x.raw ] || fail "a server that is not there left a file"

# Progress, for programs: the last line says all of it.
expect 0 "$vhdctl" convert disk.raw progress.raw --progress json
[ "$(tail -n 1 <<<"$errors" | jq -c '.progress | [.percent, .done == .total]')" = '[100,true]' ] ||
        fail "the last line of progress says something else"

# What is to be replaced is nobody else's until it is.
expect 0 "$vhdctl" create replaced.vhd --size 8M
head -c 200M /dev/urandom >large.raw
"$vhdctl" convert --quiet --force --type fixed large.raw replaced.vhd &
pid=$!
until compgen -G 'replaced.vhd.*.part' >/dev/null || ! kill -0 "$pid" 2>/dev/null; do :; done
kill -STOP "$pid"
if compgen -G 'replaced.vhd.*.part' >/dev/null; then
        expect 3 "$vhdctl" resize replaced.vhd +8M
        said "in use"
fi
kill -CONT "$pid"
wait "$pid"
expect 0 "$vhdctl" compare replaced.vhd large.raw
rm large.raw

[ -z "$(find . -name '*.part')" ] || fail "temporary files are left"
echo "$name: all well"
