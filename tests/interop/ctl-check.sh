#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# check calls a damaged image good, or --repair makes it worse: what it says, what it changes, what it
# keeps, and that it changes nothing where it only looks.
source "$(dirname "$0")/lib.sh"
need python3
cd "$tmp"

truncate -s 16M disk.raw
random_pieces disk.raw 9 60
"$vhdctl" convert --quiet disk.raw good.vhd
"$vhdctl" create --quiet child.avhd --parent good.vhd
sum=$(content disk.raw)

expect 0 "$vhdctl" check good.vhd
printed 'no damage'
expect 0 "$vhdctl" check --chain child.avhd --json
json '[.[] | [.filename | split("/")[-1]][0]]' '["child.avhd","good.vhd"]'
json '[.[].clean]' '[true,true]'
# --deep compares with the seals: without a single one there is no answer.
expect 3 "$vhdctl" check --deep --chain child.avhd --json
said "no seal"
json '[.[].clean]' '[true,true]'
json '[.[].findings[] | select(.id == "no-seal")] | length' 2

# A lost footer: found, not mended by guessing, mended when told, and the bytes are those of before.
cp good.vhd lost.vhd
truncate -s -512 lost.vhd
before=$(content lost.vhd)
expect 1 "$vhdctl" check lost.vhd --json
json '.[0].clean' false
json '.[0].findings | map(select(.severity == "damage")) | length > 0' true
json '.[0].findings[0] | keys | contains(["id", "severity", "message", "offset", "repairable"])' true
expect 3 "$vhdctl" hash lost.vhd
expect 1 "$vhdctl" check --repair lost.vhd
[ "$(content lost.vhd)" = "$before" ] || fail "--repair guessed which footer is right"
expect 1 "$vhdctl" check --repair --use head --dry-run lost.vhd --json
json '[.[0].repaired[].id]' '["footer-missing"]'
[ "$(content lost.vhd)" = "$before" ] || fail "a dry run changed the image"
expect 0 "$vhdctl" check --repair --use head lost.vhd --json
json '[.[0].repaired[].id]' '["footer-missing"]'
json '.[0].findings' '[]'
backup=$(jq -r '.[0].backup' <<<"$out")
[ -s "$backup" ] || fail "the mended bytes are not kept"
[ "$("$vhdctl" hash --algorithm sha256 lost.vhd | cut -d' ' -f1)" = "$sum" ] || fail "the mended image reads otherwise"
expect 0 "$vhdctl" check lost.vhd

# A spoiled copy at the head: mended from the tail without a word of ours.
cp good.vhd head.vhd
printf x | dd of=head.vhd bs=1 seek=100 conv=notrunc status=none
expect 1 "$vhdctl" check head.vhd
printed -- --repair
expect 0 "$vhdctl" check --repair head.vhd
printed mended
cmp <(head -c 512 head.vhd) <(head -c 512 good.vhd) || fail "the head is not what it was"

# A BAT entry that points nowhere: damage that cannot be mended without losing the block.
cp good.vhd bat.vhd
printf '\0\377\377\377' | dd of=bat.vhd bs=1 seek=1536 conv=notrunc status=none
expect 1 "$vhdctl" check --repair bat.vhd --json
json '.[0].repaired' '[]'
json '[.[0].findings[] | select(.id == "bat-entry-outside").offset]' '[1536]'

# An image that others stand on is not written to.
cp good.vhd keep.vhd
"$vhdctl" create --quiet stands.avhd --parent keep.vhd
printf x | dd of=keep.vhd bs=1 seek=100 conv=notrunc status=none
before=$(content keep.vhd)
expect 3 "$vhdctl" check --repair keep.vhd
said stand
[ "$(content keep.vhd)" = "$before" ] || fail "a parent was changed"
rm keep.vhd stands.avhd

# --chain: a parent that is gone, or is another one, is damage of the chain.
mv good.vhd away.vhd
expect 0 "$vhdctl" check child.avhd
expect 1 "$vhdctl" check --chain child.avhd --json
json '[.[0].findings[] | select(.severity == "damage").id]' '["parent-not-found"]'
"$vhdctl" create --quiet good.vhd --size 16M
expect 1 "$vhdctl" check --chain child.avhd --json
json '[.[0].findings[] | select(.severity == "damage").id]' '["parent-id"]'
mv away.vhd good.vhd

# A seal: a parent that somebody wrote to is told of, though its id is the same.
"$vhdctl" seal --quiet good.vhd
expect 0 "$vhdctl" check --deep good.vhd
expect 0 "$vhdctl" check --deep --chain child.avhd
offset=$("$vhdctl" map --json good.vhd | jq '[.[] | select(.zero | not).offset][3]')
printf XXXX | dd of=good.vhd bs=1 seek="$offset" conv=notrunc status=none
expect 1 "$vhdctl" check --deep --chain child.avhd --json
json '[.[1].findings[] | select(.id == "seal-differs")] | length > 0' true

# A folder: every image in it; other files are not taken for one. A file that is no VHD, named: 3.
mkdir folder
cp lost.vhd folder/ok.vhd
cp bat.vhd folder/bad.vhd
echo text >folder/notes.txt
expect 1 "$vhdctl" check folder --json
json '[.[] | [(.filename | split("/")[-1]), .clean]]' '[["bad.vhd",false],["ok.vhd",true]]'
expect 3 "$vhdctl" check folder/notes.txt
said notes.txt
expect 0 "$vhdctl" check disk.raw # raw by its name: nothing in it could be wrong
expect 3 "$vhdctl" check absent.vhd lost.vhd --json
json 'length' 2
expect 2 "$vhdctl" check --use head lost.vhd
expect 2 "$vhdctl" check --repair --use middle lost.vhd

# Somebody writes to it: it is not looked through meanwhile.
if command -v nbdinfo >/dev/null; then
        serve lost.vhd
        expect 3 "$vhdctl" check lost.vhd
        said lost.vhd
        stop_server
fi
echo "$name: all well"
