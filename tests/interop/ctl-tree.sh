#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tree calls a broken chain whole, or a whole one broken; draws it so that a terminal obeys a file's name;
# takes minutes for a folder of a thousand files. seal misses a change, or cries over none.
source "$(dirname "$0")/lib.sh"
need python3
cd "$tmp"

mkdir vm
expect 0 "$vhdctl" create vm/base.vhd --size 64M
expect 0 "$vhdctl" create vm/a.avhd --parent vm/base.vhd
expect 0 "$vhdctl" create vm/b.avhd --parent vm/base.vhd
expect 0 "$vhdctl" create vm/a2.avhd --parent vm/a.avhd
echo hello >vm/notes.txt

# Drawn as it is, with lines in UTF-8 or without.
expect 0 "$vhdctl" tree vm
printed "├─ a.avhd"
printed "│  └─ a2.avhd"
printed "└─ b.avhd"
printed "1 tree, 4 images, 2 tips, 0 broken, 1 other file"
expect 0 env LC_ALL=C "$vhdctl" tree vm
printed "|  \`- a2.avhd"
expect 0 "$vhdctl" tree --json vm
json '[.images[] | {f: .filename, d: .depth, t: .tip}]' \
        '[{"f":"vm/a.avhd","d":2,"t":false},{"f":"vm/a2.avhd","d":3,"t":true},{"f":"vm/b.avhd","d":2,"t":true},{"f":"vm/base.vhd","d":1,"t":false}]'
json '.roots' '["vm/base.vhd"]'
json '[.images[].error]' '[null,null,null,null]'

# A broken link: exit status 1, why, and a command that mends it when it is pasted.
mkdir vm/old
mv vm/base.vhd vm/old/golden.vhd
expect 1 "$vhdctl" tree vm
printed "BROKEN"
printed "broken below"
printed "2 broken" # the link above a broken one is not broken itself
while read -r _ verb arguments; do
        eval "\"\$vhdctl\" $verb $arguments" >/dev/null || fail "'$verb $arguments' does not work"
done < <(grep -o 'vhdctl relink .*' <<<"$out")
expect 0 "$vhdctl" tree vm
printed "0 broken"

# A name that a terminal would obey.
cp vm/b.avhd "$(printf 'vm/\033[2Jevil\n.avhd')"
expect 0 "$vhdctl" tree vm
[[ $out != *$'\033'* ]] || fail "an escape sequence came through"
printed '\x1b[2Jevil\n.avhd'
printed "has the same id as"
expect 0 "$vhdctl" tree --json vm

# Wrong usage, and what is not there.
expect 2 "$vhdctl" tree
expect 2 "$vhdctl" tree --parent vm/b.avhd vm
expect 3 "$vhdctl" tree none
said "none"

# A thousand files in five seconds, a tenth of them broken.
mkdir many
expect 0 "$vhdctl" create many/base.vhd --size 64M
expect 0 "$vhdctl" create many/0.avhd --parent many/base.vhd
expect 0 "$vhdctl" create many/gone.vhd --size 64M
expect 0 "$vhdctl" create many/x0.avhd --parent many/gone.vhd
rm many/gone.vhd
for i in $(seq 1 899); do ln many/0.avhd "many/link$i.avhd"; done
for i in $(seq 1 99); do cp --sparse=always many/x0.avhd "many/x$i.avhd"; done
start=$(date +%s%N)
expect 1 "$vhdctl" tree many
took=$((($(date +%s%N) - start) / 1000000))
[ $took -lt 5000 ] || fail "a thousand files took $took ms"

# seal: a change of a byte is noticed, whatever the time stamp says.
expect 0 "$vhdctl" convert vm/b.avhd sealed.vhd
expect 0 "$vhdctl" seal --json sealed.vhd
json '.filename' '"sealed.vhd"'
[ -s sealed.vhd.vhdd-seal ] || fail "there is no seal"
expect 0 "$vhdctl" create child.avhd --parent sealed.vhd
expect 0 "$vhdctl" hash child.avhd
[ -z "$errors" ] || fail "a sealed parent that nobody touched is complained of"
expect 3 "$vhdctl" seal sealed.vhd
said "has a seal already"
touch sealed.vhd
expect 0 "$vhdctl" hash child.avhd
said "is not what its seal says"
expect 0 "$vhdctl" seal --force sealed.vhd
expect 0 "$vhdctl" hash child.avhd
[ -z "$errors" ] || fail "a parent that was sealed anew is complained of"
"$vhdctl" seal --quiet child.avhd
expect 0 "$vhdctl" relink child.avhd --parent sealed.vhd
said "does not fit it any more"
echo "ctl-tree: drawn, mended, $took ms for a thousand files, sealed"
