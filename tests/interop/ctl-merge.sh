#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A merge loses a sector, lets a sibling read something else, leaves two files that both look right, or
# cannot go on after it was cut off. Parents of every type, images by others, every refusal, kill -9,
# full and read-only disks: what is left reads as the child read, to us and to others.
source "$(dirname "$0")/lib.sh"
need python3 qemu-img strace
python3 -c 'import nbd' 2>/dev/null || skip "python3 has no libnbd"
sevenzip=$(command -v 7zz || command -v 7z || true)
cd "$tmp"

mounted=
end()
{
        [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
        [ -z "$mounted" ] || umount "$mounted"
        rm -rf "$tmp"
}
trap end EXIT

# guest FILE SEED COUNT [OPTION...]: so many writes, zeros and trims, at places that SEED decides, of
# sizes from one sector to some blocks.
guest()
{
        serve "${@:4}" "$1"
        python3 - "$uri" "$2" "$3" <<'PYTHON'
import random
import sys
import nbd

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
random.seed(int(sys.argv[2]))
size = handle.get_size()
for _ in range(int(sys.argv[3])):
    length = random.choice([512, 4096, 4096, 65536, 1 << 20, 3 << 20])
    length = min(length, size)
    offset = random.randrange((size - length) // 512 + 1) * 512
    kind = random.randrange(8)
    if kind == 0:
        handle.zero(length, offset)
    elif kind == 1:
        handle.trim(length, offset)
    else:
        handle.pwrite(random.randbytes(length), offset)
handle.flush()
PYTHON
        stop_server
}

hash_of()
{
        "$vhdctl" hash --algorithm sha256 "$@" 2>>"$tmp/.hash-errors" | cut -d' ' -f1
}

reads()
{
        [ "$(hash_of "${@:2}")" = "$1" ] || fail "${*:2} reads otherwise"
}

# agreed WANTED FILE: check finds nothing, and every reader that there is reads the same.
agreed()
{
        expect 0 "$vhdctl" check --chain "${@:2}"
        reads "$@"
        if [ -n "$sevenzip" ]; then
                (cd "$(dirname "$2")" && "$sevenzip" x -tVHD -so "$(basename "$2")" 2>/dev/null) >.seven ||
                        fail "7-Zip cannot read $2"
                [ "$(content .seven)" = "$1" ] || fail "7-Zip reads $2 otherwise"
        fi
        [ "$("$vhdctl" info --json "$2" | jq -r .type)" = differencing ] ||
                [ "$(qemu-img convert -f vpc -O raw "$2" .qemu && content .qemu)" = "$1" ] ||
                fail "QEMU reads $2 otherwise"
        rm -f .seven .qemu
}

nothing_left_beside()
{
        [ -z "$(find . -name '*.vhdd-intent' -o -name '*.part')" ] || fail "something is left beside the images"
}

# --- parents of every type, with a grandchild, one after the other until one file is left

truncate -s 20M disk.raw
random_pieces disk.raw 2 200
for kind in dynamic small fixed; do
        mkdir $kind
        case $kind in
        dynamic) "$vhdctl" convert --quiet disk.raw $kind/base.vhd ;;
        small) "$vhdctl" convert --quiet disk.raw $kind/base.vhd --block-size 512K ;;
        fixed) "$vhdctl" convert --quiet disk.raw $kind/base.vhd --type fixed ;;
        esac
        for n in 1 2 3; do
                parent=$kind/child$((n - 1)).avhd
                [ $n -gt 1 ] || parent=$kind/base.vhd
                # Blocks of another size than the parent's, too.
                block=2M
                [ $n -ne 2 ] || block=512K
                "$vhdctl" create --quiet $kind/child$n.avhd --parent $parent --block-size $block
                guest $kind/child$n.avhd $n 25
                sums[n]=$(hash_of $kind/child$n.avhd)
        done
        id=$("$vhdctl" info --json $kind/base.vhd | jq -r .uuid)

        # Only told.
        find $kind -type f -exec sha256sum {} + | sort >before
        expect 0 "$vhdctl" merge --dry-run --json $kind/child1.avhd
        json '."dry-run"' true
        json '.children | length' 1
        find $kind -type f -exec sha256sum {} + | sort >after
        cmp before after || fail "--dry-run changed something"

        # The middle of the chain: who stood on it stands on the parent.
        expect 0 "$vhdctl" merge $kind/child1.avhd --json
        json '."bytes-moved" <= ."bytes-planned"' true
        json '."bytes-moved" > 0' true
        json '.kept' false
        [ ! -e $kind/child1.avhd ] || fail "the merged child is still there"
        agreed "${sums[1]}" $kind/base.vhd
        agreed "${sums[2]}" $kind/child2.avhd
        agreed "${sums[3]}" $kind/child3.avhd
        [ "$("$vhdctl" info --json $kind/base.vhd | jq -r .uuid)" != "$id" ] || fail "the parent's id is the old one"

        # Its end, with the child kept: empty, and a disk as before.
        expect 0 "$vhdctl" merge $kind/child3.avhd --keep --json
        json .kept true
        expect 0 "$vhdctl" info --json $kind/child3.avhd
        json '."allocated-blocks"' 0
        agreed "${sums[3]}" $kind/child2.avhd
        agreed "${sums[3]}" $kind/child3.avhd
        # Once more there is nothing to do, and now it goes.
        expect 0 "$vhdctl" merge $kind/child3.avhd
        [ ! -e $kind/child3.avhd ] || fail "an empty child was not removed"
        expect 0 "$vhdctl" merge $kind/child2.avhd
        agreed "${sums[3]}" $kind/base.vhd
        [ "$(ls $kind)" = base.vhd ] || fail "more is left than one file: $(ls $kind)"
        expect 0 "$vhdctl" tree $kind
        nothing_left_beside
done

# A raw parent, and children larger than their parents: made by hand, for create makes neither.
mkdir made
PYTHONPATH=$VHDD_SOURCE/tests/hostile python3 - <<'PYTHON'
from vhdmake import Vhd

with open("made/base.raw", "wb") as f:
    f.write(bytes([7]) * 262144)
Vhd(ident=3, parent=0, blocks={1: 11, 3: 13}).write("made/on-raw.vhd")
Vhd(ident=5, blocks={0: 1, 2: 3}).write("made/base.vhd")
Vhd(ident=6, parent=5, size=6 * 65536, blocks={2: 21, 5: 25}, locators=[("W2ru", ".\\base.vhd")]).write(
    "made/larger.vhd")
PYTHON
sum=$(hash_of --parent made/base.raw made/on-raw.vhd)
[ -n "$sum" ] || fail "a child of a raw file cannot be read"
expect 0 "$vhdctl" merge --parent made/base.raw made/on-raw.vhd
[ "$(content made/base.raw)" = "$sum" ] || fail "a raw parent holds something else"
[ ! -e made/on-raw.vhd ] || fail "a raw file's child is still there"

# A root that is smaller than its child grows first, whatever it is; one with another child is refused as it
# is; and so is one that is no root.
size_of()
{
        "$vhdctl" info --json "$1" | jq '."virtual-size"'
}
"$vhdctl" convert --quiet made/base.vhd made/fixed.vhd --type fixed
"$vhdctl" create --quiet made/on-fixed.avhd --parent made/fixed.vhd
"$vhdctl" resize --quiet --force made/on-fixed.avhd 9M
guest made/on-fixed.avhd 61 20
for pair in base.vhd:larger.vhd fixed.vhd:on-fixed.avhd; do
        root=made/${pair%:*} child=made/${pair#*:}
        sum=$(hash_of "$child") before=$(size_of "$root") after=$(size_of "$child")
        [ "$after" -gt "$before" ] || fail "$child is not larger than $root"
        expect 0 "$vhdctl" seal "$root"
        expect 0 "$vhdctl" merge --dry-run --json "$child"
        json '.parent."grows-from"' "$before"
        expect 0 "$vhdctl" merge --dry-run "$child"
        printed "would become"
        [ "$(size_of "$root")" = "$before" ] || fail "a dry run has made $root larger"
        # One that lies elsewhere counts as well, before anything grows.
        "$vhdctl" create --quiet made/second.avhd --parent "$root"
        second=$(hash_of made/second.avhd)
        expect 3 "$vhdctl" merge "$child"
        said "second.avhd"
        [ "$(size_of "$root")" = "$before" ] || fail "$root with two children has grown"
        reads "$second" made/second.avhd
        rm made/second.avhd
        # A cut between the two steps: the root is larger, and that is all.
        cp -r made cut
        mv "cut/${child#made/}" hidden
        expect 0 "$vhdctl" resize "cut/${root#made/}" "$after"
        mv hidden "cut/${child#made/}"
        reads "$sum" "cut/${child#made/}"
        rm -r cut
        expect 0 "$vhdctl" merge "$child"
        printed ", before "
        [ "$(size_of "$root")" = "$after" ] || fail "$root has not grown"
        [ ! -e "$child" ] && [ ! -e "$root.vhdd-seal" ] || fail "a child or a seal is left"
        agreed "$sum" "$root"
done
"$vhdctl" create --quiet made/first.avhd --parent made/base.vhd
"$vhdctl" create --quiet made/top.avhd --parent made/first.avhd
"$vhdctl" resize --quiet --force made/top.avhd 8M
guest made/top.avhd 71 20
sum=$(hash_of made/top.avhd)
expect 3 "$vhdctl" merge made/top.avhd
said "cannot become one disk"
expect 0 "$vhdctl" merge made/top.avhd --into made/base.vhd
agreed "$sum" made/base.vhd

# --- many layers in one pass

mkdir deep
"$vhdctl" convert --quiet disk.raw deep/base.vhd
parent=deep/base.vhd
for n in 1 2 3 4 5; do
        "$vhdctl" create --quiet deep/$n.avhd --parent $parent
        guest deep/$n.avhd 5$n 12
        parent=deep/$n.avhd
done
"$vhdctl" create --quiet deep/tip.avhd --parent deep/5.avhd
guest deep/tip.avhd 99 5
sum=$(hash_of deep/5.avhd)
tip=$(hash_of deep/tip.avhd)
one=$(hash_of deep/1.avhd)
expect 0 "$vhdctl" merge deep/5.avhd --into deep/1.avhd --json
json '.merged | length' 4
[ "$(echo deep/*)" = 'deep/1.avhd deep/base.vhd deep/tip.avhd' ] || fail "left are $(echo deep/*)"
[ "$one" != "$sum" ] || fail "the chain is no test"
agreed "$sum" deep/1.avhd
agreed "$tip" deep/tip.avhd
expect 3 "$vhdctl" merge deep/1.avhd --into deep/tip.avhd
expect 3 "$vhdctl" merge deep/tip.avhd --into disk.raw
said 'does not stand on'
expect 0 "$vhdctl" merge deep/tip.avhd --into deep/base.vhd
agreed "$tip" deep/base.vhd

# --- one new file of a chain

mkdir new
"$vhdctl" convert --quiet disk.raw new/base.vhd --type fixed
"$vhdctl" create --quiet new/child.avhd --parent new/base.vhd
guest new/child.avhd 7 20
sum=$(hash_of new/child.avhd)
sha256sum new/* >before
expect 0 "$vhdctl" merge new/child.avhd --output flat.vhd --json
json .type '"fixed"'
agreed "$sum" flat.vhd
expect 0 "$vhdctl" merge new/child.avhd --output flat.raw
[ "$(content flat.raw)" = "$sum" ] || fail "--output x.raw reads otherwise"
expect 3 "$vhdctl" merge new/child.avhd --output flat.vhd
said --force
expect 0 "$vhdctl" merge new/child.avhd --output flat.vhd --force
expect 3 "$vhdctl" merge new/child.avhd --output new/base.vhd --force
expect 2 "$vhdctl" merge new/child.avhd --output flat
expect 2 "$vhdctl" merge new/child.avhd --output other.vhd --keep
sha256sum --quiet -c before || fail "--output changed what it read"
nothing_left_beside
rm flat.vhd flat.raw

# --- images by others

if [ -d "${VHDD_SHARED:-$VHDD_SOURCE/../shared}/images" ]; then
        images
        snap1=e4c04761ae570f0bc5d4b89a48b495d30cd704d0dd49b3e7818274ece4a60b80
        snap2=d884f851b0855814b79ca1f33ae985e98e047ac40bf5ab3df727b3396b3a5485
        child=e1135af39c8362c771e0dd03457568095b511d48db0dcade48f549abb03bb869

        cp -r "$images/xs-chain" xs
        expect 0 "$vhdctl" merge xs/xs-snap1.vhd
        agreed $snap1 xs/xs-base.vhd
        agreed $snap2 xs/xs-snap2.vhd
        expect 0 "$vhdctl" merge xs/xs-snap2.vhd
        agreed $snap2 xs/xs-base.vhd
        rm -r xs
        cp -r "$images/xs-chain" xs
        expect 0 "$vhdctl" merge xs/xs-snap2.vhd --into xs/xs-base.vhd
        agreed $snap2 xs/xs-base.vhd
        cp -r "$images/dfvfs-win10-child" win
        expect 0 "$vhdctl" merge win/fat-differential.vhd
        agreed $child win/fat-parent.vhd
        # Its footer's checksum is wrong: nobody merges what is damaged, --force or not.
        cp -r "$images/dfvfs-edited-pair" edited
        sha256sum edited/* >before
        expect 3 "$vhdctl" merge edited/image-differential.vhd
        expect 3 "$vhdctl" merge edited/image-differential.vhd --force
        sha256sum --quiet -c before || fail "a refused merge changed something"
fi

# --- what must not be done

mkdir no
"$vhdctl" convert --quiet disk.raw no/base.vhd
for n in 1 2; do
        "$vhdctl" create --quiet no/child$n.avhd --parent no/base.vhd
        guest no/child$n.avhd 3$n 10
        sums[n]=$(hash_of no/child$n.avhd)
done
# refused TEXT COMMAND...: exit code 3, the reason, and no byte changed.
refused()
{
        sha256sum no/* >.refused
        expect 3 "${@:2}"
        said "$1"
        [ "$(wc -l <<<"$errors")" -le 3 ] || fail "more than a sentence and a hint"
        sha256sum --quiet -c .refused || fail "a refused merge changed something"
        [ "$(find no -type f | wc -l)" -eq "$(wc -l <.refused)" ] || fail "a refused merge left something"
}

refused 'nothing to merge' "$vhdctl" merge no/base.vhd
refused 'no/nobody.avhd' "$vhdctl" merge no/nobody.avhd
refused '1 image stands on' "$vhdctl" merge no/child1.avhd
said 'no/child2.avhd'
# Also where the other one lies elsewhere, if one says where.
mkdir away
cp no/child2.avhd away/
"$vhdctl" relink --quiet away/child2.avhd --parent no/base.vhd
rm no/child2.avhd
refused 'away/child2.avhd' "$vhdctl" merge no/child1.avhd --image-root away
rm away/child2.avhd

# Somebody uses it: as the leaf, or through a child of its own.
serve no/child1.avhd
expect 3 "$vhdctl" merge no/child1.avhd
said 'no/child1.avhd'
stop_server
"$vhdctl" create --quiet no/grandchild.avhd --parent no/child1.avhd
guest no/grandchild.avhd 77 5
grand=$(hash_of no/grandchild.avhd)
serve no/grandchild.avhd
expect 3 "$vhdctl" merge no/child1.avhd
said 'no/child1.avhd'
stop_server
reads "$grand" no/grandchild.avhd
reads "${sums[1]}" no/child1.avhd

# The parent was changed behind its child's back.
expect 0 "$vhdctl" seal no/base.vhd
touch -d '2020-01-01' no/base.vhd
refused 'no/base.vhd' "$vhdctl" merge no/child1.avhd
refused 'no/base.vhd' "$vhdctl" merge no/child1.avhd --output no/new.vhd
refused 'no/base.vhd' "$vhdctl" merge no/child1.avhd --dry-run

# A directory that cannot be written: as a stranger, and on a read-only mount.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
        chmod 755 "$tmp"
        chmod 666 no/*
        chmod 555 no
        refused 'no' setpriv --reuid 65534 --regid 65534 --clear-groups env XDG_RUNTIME_DIR= \
                "$vhdctl" merge no/child1.avhd --force
        chmod 755 no
fi
if unshare -m true 2>/dev/null; then
        # shellcheck disable=SC2016
        refused 'no/' unshare -m bash -c 'mount --bind no no && mount -o remount,bind,ro no &&
                exec "$1" merge no/child1.avhd --force' bash "$vhdctl"
fi

# --force: only the user can know.
expect 0 "$vhdctl" merge no/child1.avhd --force
agreed "${sums[1]}" no/base.vhd
agreed "$grand" no/grandchild.avhd
[ ! -e no/base.vhd.vhdd-seal ] || fail "a seal of what the parent was is left"

# Damage: a BAT entry of the child outside the file, a child that is cut off.
cp no/grandchild.avhd whole
python3 - <<'PYTHON'
import struct
with open("no/grandchild.avhd", "r+b") as image:
    image.seek(512 + 16)
    table = struct.unpack(">Q", image.read(8))[0]
    image.seek(table)
    bat = struct.unpack(">10I", image.read(40))
    used = next(i for i, entry in enumerate(bat) if entry != 0xffffffff)
    image.seek(table + 4 * used)
    image.write(struct.pack(">I", 0x00ffffff))
PYTHON
refused 'no/grandchild.avhd' "$vhdctl" merge no/grandchild.avhd
head -c -70000 whole >no/grandchild.avhd
refused 'no/grandchild.avhd' "$vhdctl" merge no/grandchild.avhd
mv whole no/grandchild.avhd
reads "$grand" no/grandchild.avhd

# --- the mark of a merge that was cut off

# mark FILE: as a merge leaves it that was cut off.
mark()
{
        python3 - "$1" <<'PYTHON'
import struct
import sys
with open(sys.argv[1], "r+b") as image:
    image.seek(0, 2)
    for place in 0, image.tell() - 512:
        image.seek(place)
        footer = bytearray(image.read(512))
        footer[85] = 2
        footer[64:68] = bytes(4)
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xffffffff)
        image.seek(place)
        image.write(footer)
PYTHON
}
cp -r no marked
mark marked/base.vhd
expect 0 "$vhdctl" tree marked
printed 'merge unfinished'
printed 'vhdctl merge marked/grandchild.avhd'
expect 0 "$vhdctl" check marked/base.vhd
printed 'a merge was cut off'
expect 0 "$vhdctl" info marked/base.vhd
printed 'cut off'
expect 3 "$vhdctl" serve marked/base.vhd --force
expect 0 "$vhdctl" hash marked/base.vhd
said 'was cut off'
expect 3 "$vhdctl" create marked/new.avhd --parent marked/base.vhd
said 'goes on'
rm marked/grandchild.avhd # nobody stands on it, so far as one can see
expect 3 "$vhdctl" serve marked/base.vhd
said 'was cut off'
rm -r marked

# --- cut off, and gone on with

mkdir cut
truncate -s 240M cut.raw
random_pieces cut.raw 5 2000
"$vhdctl" convert --quiet cut.raw cut/base.vhd
"$vhdctl" create --quiet cut/child.avhd --parent cut/base.vhd
serve cut/child.avhd
python3 - "$uri" <<'PYTHON'
import random
import sys
import nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
random.seed(8)
for block in range(0, 120, 2):
    handle.pwrite(random.randbytes(1 << 20), block << 21)
for _ in range(2000):
    handle.pwrite(random.randbytes(4096), random.randrange(61440) * 4096)
handle.flush()
PYTHON
stop_server
"$vhdctl" create --quiet cut/tip.avhd --parent cut/child.avhd
guest cut/tip.avhd 4 10
sum=$(hash_of cut/child.avhd)
tip=$(hash_of cut/tip.avhd)
cp -r --sparse=always cut cut.before

# SIGTERM: it ends at the next safe place, as a process that the signal ended, and says what to do.
"$vhdctl" merge cut/child.avhd >.out 2>.err &
pid=$!
sleep 0.15
kill -TERM $pid
code=0
wait $pid || code=$?
if [ $code -ne 0 ]; then
        [ $code = 143 ] || fail "SIGTERM ended merge with $code: $(cat .err)"
        grep -q 'same command goes on' .err || fail "SIGTERM: it does not say how to go on: $(cat .err)"
        reads "$tip" cut/tip.avhd
        reads "$sum" cut/child.avhd
        "$vhdctl" tree cut | grep -q 'merge unfinished' || fail "tree does not tell of the unfinished merge"
        # What it stands on is not written to by anybody else.
        expect 3 "$vhdctl" serve cut/base.vhd
else
        rm -r cut # it was too quick for us
        cp -r --sparse=always cut.before cut
fi

# kill -9, again and again.
kills=0
rounds=0
for ((tries = 0; kills < 20 && tries < 400; tries++)); do
        "$vhdctl" merge cut/child.avhd >.out 2>.err &
        pid=$!
        sleep "0.0$((RANDOM % 90 + 10))"
        kill -KILL $pid 2>/dev/null || true
        code=0
        wait $pid 2>/dev/null || code=$?
        if [ $code = 137 ]; then
                kills=$((kills + 1))
        elif [ $code -ne 0 ]; then
                fail "after $kills deaths the merge does not go on: $(cat .err)"
        fi
        if [ -e cut/child.avhd ]; then
                [ $code -ne 0 ] || fail "it is done, and the child is still there"
                [ $((kills % 4)) -ne 0 ] || reads "$sum" cut/child.avhd
        else
                reads "$sum" cut/base.vhd
        fi
        [ $((kills % 4)) -ne 0 ] || reads "$tip" cut/tip.avhd
        [ ! -e cut/child.avhd ] || continue # else it is done, perhaps killed behind the last step
        rounds=$((rounds + 1))
        agreed "$sum" cut/base.vhd
        agreed "$tip" cut/tip.avhd
        [ "$(echo cut/*)" = 'cut/base.vhd cut/tip.avhd' ] || fail "left are $(echo cut/*)"
        rm -r cut
        cp -r --sparse=always cut.before cut
done
[ $kills -ge 20 ] || fail "only $kills of $tries merges were killed on their way"
[ ! -e cut/child.avhd ] || expect 0 "$vhdctl" merge cut/child.avhd
agreed "$sum" cut/base.vhd
agreed "$tip" cut/tip.avhd
nothing_left_beside

# At each name that is removed on the way: what began in the end of a merge goes on, too.
mkdir ends
"$vhdctl" create --quiet ends/base.vhd --size 16M
guest ends/base.vhd 20 20
"$vhdctl" create --quiet ends/child.avhd --parent ends/base.vhd
guest ends/child.avhd 21 20
for one in tip other; do
        "$vhdctl" create --quiet ends/$one.avhd --parent ends/child.avhd
        guest ends/$one.avhd 22 5
done
end_sum=$(hash_of ends/child.avhd)
end_tip=$(hash_of ends/tip.avhd)
end_other=$(hash_of ends/other.avhd)
cp -r ends ends.before
for ((n = 1; n < 100; n++)); do
        code=0
        strace -f -qq -o /dev/null -e trace=unlink,unlinkat -e inject=unlink,unlinkat:signal=SIGKILL:when=$n \
                "$vhdctl" merge --quiet ends/child.avhd 2>.err || code=$?
        [ $code -ne 0 ] || break
        reads "$end_tip" ends/tip.avhd
        reads "$end_other" ends/other.avhd
        if [ -e ends/child.avhd ]; then
                reads "$end_sum" ends/child.avhd
                expect 0 "$vhdctl" merge --quiet ends/child.avhd
        fi
        reads "$end_sum" ends/base.vhd
        reads "$end_tip" ends/tip.avhd
        reads "$end_other" ends/other.avhd
        [ "$(echo ends/*)" = 'ends/base.vhd ends/other.avhd ends/tip.avhd' ] || fail "left are $(echo ends/*)"
        rm -r ends
        cp -r ends.before ends
done
[ $n -gt 4 ] || fail "only $n names are removed: $(cat .err)"
rm -r ends ends.before

# Two at once: one of them wins, the other says why not, and nothing is lost.
rm -r cut
cp -r --sparse=always cut.before cut
"$vhdctl" merge cut/child.avhd >.out1 2>.err1 &
one=$!
"$vhdctl" merge cut/child.avhd >.out2 2>.err2 &
two=$!
codes=0
for pid in $one $two; do
        code=0
        wait $pid || code=$?
        codes=$((codes + code))
done
[ $codes = 3 ] || fail "two merges at once: $(cat .err1 .err2)"
grep -qE 'cut/child.avhd|cut/base.vhd' .err1 .err2 || fail "the second merge does not say why: $(cat .err1 .err2)"
[ ! -e cut/child.avhd ] || fail "two merges at once, and none was done"
agreed "$sum" cut/base.vhd
agreed "$tip" cut/tip.avhd
rm -r cut

# --- no room for what has to move

mkdir tight
if [ "$(id -u)" -eq 0 ] && command -v mkfs.ext4 >/dev/null && truncate -s 24M tight.img &&
        mkfs.ext4 -q -F tight.img && mount -o loop tight.img tight 2>/dev/null; then
        mounted=$tmp/tight
        "$vhdctl" create --quiet tight/base.vhd --size 40M
        dd if=/dev/zero of=tight/ballast bs=1M count=12 status=none
        mkdir full
        "$vhdctl" create --quiet full/child.avhd --parent tight/base.vhd
        serve --image-root tight full/child.avhd
        python3 - "$uri" <<'PYTHON'
import random
import sys
import nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
random.seed(3)
for block in range(16):
    handle.pwrite(random.randbytes(1 << 20), block << 21)
handle.flush()
PYTHON
        stop_server
        sum=$(hash_of --image-root tight full/child.avhd)
        expect 3 "$vhdctl" merge --image-root tight full/child.avhd
        grep -qiE 'no space|full' <<<"$errors" || fail "a full disk is called otherwise"
        said 'same command goes on'
        reads "$sum" --image-root tight full/child.avhd
        expect 0 "$vhdctl" check --chain --image-root tight full/child.avhd
        expect 3 "$vhdctl" merge --image-root tight full/child.avhd
        rm tight/ballast
        expect 0 "$vhdctl" merge --image-root tight full/child.avhd
        agreed "$sum" tight/base.vhd
        [ ! -e full/child.avhd ] || fail "the child is still there"
        umount tight
        mounted=
fi

echo "$name: all well ($kills deaths on the way of $((rounds + 1)) merges)"
