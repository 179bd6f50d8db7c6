#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A script relies on a key that docs/api.md names, and the program spells it another way; or a key is
# printed that nobody described. So every verb is run, and the keys of its answer are looked up in the
# verb's chapter, and the other way round.
set -euo pipefail

page=$VHDD_SOURCE/docs/api.md
vhdctl=$VHDD_BUILD/vhdd/ctl/vhdctl

[ -x "$vhdctl" ] || { echo "skipped: no vhdctl in '$VHDD_BUILD'" && exit 77; }
command -v jq >/dev/null || { echo "skipped: jq is not installed" && exit 77; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

# documented CHAPTER: the keys in the left column of the chapter's table and in its right column.
documented()
{
        # shellcheck disable=SC2016
        awk -v chapter="$1" '/^## /{ inside = $0 == "## " chapter } inside && /^\| /' "$page" |
                grep -oE '`[a-z][a-z0-9-]*`' | tr -d '`' | sort -u
}

# promised CHAPTER: the keys in the left column alone: these are always somewhere in the answers.
promised()
{
        # shellcheck disable=SC2016
        awk -F'|' -v chapter="$1" '/^## /{ inside = $0 == "## " chapter } inside && /^\| /{ print $2 }' \
                "$page" | grep -oE '`[a-z][a-z0-9-]*`' | tr -d '`' | sort -u
}

# keys FILE...: every key of every object in these answers.
keys()
{
        jq -r '.. | objects | keys[]' "$@" | sort -u
}

failed=0
checked=0
chapter()
{
        local name=$1 missing extra
        shift
        # What a failure says about itself may stand in any answer.
        extra=$(comm -13 <(sort -u <(documented "$name") <(documented Failures)) <(keys "$@") | xargs)
        missing=$(comm -23 <(promised "$name") <(keys "$@") | xargs)
        checked=$((checked + $(keys "$@" | wc -l)))
        if [ -n "$extra" ]; then
                echo "not ok: $name: printed, and not in docs/api.md: $extra"
                failed=$((failed + 1))
        fi
        if [ -n "$missing" ]; then
                echo "not ok: $name: in docs/api.md, and not printed: $missing"
                failed=$((failed + 1))
        fi
}

truncate -s 8M disk.raw
printf 'something' | dd of=disk.raw conv=notrunc bs=1 seek=5000 status=none
mkdir apart moved
"$vhdctl" create --json dynamic.vhd --size 3M >create-1
"$vhdctl" convert --json --progress json disk.raw base.vhd >convert-1 2>progress-1
"$vhdctl" create --json child.avhd --parent base.vhd >create-2
"$vhdctl" create --quiet apart/lost.avhd --parent base.vhd
ln -s ../child.avhd apart/link.avhd
cp base.vhd bent.vhd
printf 'X' | dd of=bent.vhd conv=notrunc bs=1 seek=$(($(stat -c %s bent.vhd) - 400)) status=none

"$vhdctl" tree --json . >tree-1 || [ $? -eq 1 ]
"$vhdctl" tree --json apart >tree-2 || [ $? -eq 1 ]
"$vhdctl" info --json --chain --raw child.avhd >info-1
"$vhdctl" info --json base.vhd child.avhd >info-2
"$vhdctl" map --json child.avhd >map-1
head -c -512 base.vhd >cut.vhd
"$vhdctl" check --json base.vhd bent.vhd cut.vhd >check-1 || [ $? -eq 1 ]
"$vhdctl" check --json --repair --use head bent.vhd >check-2 || [ $? -eq 1 ]
"$vhdctl" seal --json base.vhd >seal-1
"$vhdctl" compare --json base.vhd disk.raw >compare-1
"$vhdctl" hash --json child.avhd >hash-1
cp child.avhd moved/
"$vhdctl" relink --json moved/child.avhd --parent base.vhd >relink-1
cp base.vhd alone.vhd
"$vhdctl" resize --json alone.vhd +1M >resize-1
"$vhdctl" resize --json --dry-run alone.vhd +1M >resize-2
"$vhdctl" compact --json alone.vhd >compact-1
"$vhdctl" compact --json --dry-run alone.vhd >compact-2
"$vhdctl" create --quiet grandchild.avhd --parent child.avhd
"$vhdctl" merge --json --dry-run child.avhd >merge-1
"$vhdctl" merge --json grandchild.avhd --output flat.vhd >convert-2
"$vhdctl" merge --json child.avhd >merge-2
mkdir mnt
"$vhdctl" mount --json --dry-run base.vhd mnt >mount-1 2>/dev/null
"$vhdctl" serve --json --read-only --socket nbd.sock base.vhd >serve-1 2>/dev/null &
server=$!
tries=0
until [ -s serve-1 ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1000 ] || ! kill -0 "$server" 2>/dev/null; then break; fi
        sleep 0.01
done
kill -TERM "$server"
wait "$server"

# A failure of each kind: without a place, and with one.
if "$vhdctl" info --json nothing.vhd >failure-1 2>/dev/null; then exit 1; fi
if "$vhdctl" hash --json apart/lost.avhd >failure-2 2>/dev/null; then exit 1; fi
printf 'X' | dd of=dynamic.vhd conv=notrunc bs=1 seek=600 status=none
if "$vhdctl" hash --json dynamic.vhd >failure-3 2>/dev/null; then exit 1; fi

chapter 'Failures' failure-*
chapter 'Progress' progress-*
chapter 'create, convert' create-* convert-*
for verb in tree info map check seal compare hash relink merge resize compact serve mount; do
        chapter "$verb" "$verb"-*
done
[ "$checked" -gt 100 ] || { echo "only $checked keys were seen" && exit 1; }
echo "summary: $checked keys of JSON, $failed disagreements with docs/api.md"
[ "$failed" -eq 0 ]
