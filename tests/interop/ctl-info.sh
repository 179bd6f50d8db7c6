#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# info and map are what people and scripts look at first: a wrong size, a parent that was opened
# though the image came from an enemy, a map with gaps.
source "$(dirname "$0")/lib.sh"
need python3
cd "$tmp"

truncate -s 24M disk.raw
random_pieces disk.raw 1 50
"$vhdctl" convert --quiet disk.raw base.vhd
"$vhdctl" create --quiet child.avhd --parent base.vhd
"$vhdctl" convert --quiet disk.raw fixed.vhd --type fixed

expect 0 "$vhdctl" info base.vhd --json
json .format '"vhd"'
json .type '"dynamic"'
json '."virtual-size"' 25165824
json '."block-size"' 2097152
json '."creator-app"' '"win "'
json '."allocated-blocks" > 0' true
json '.parent' null
json '.problems' '[]'
expect 0 "$vhdctl" info fixed.vhd --json
json .type '"fixed"'
json '."block-size"' null
expect 0 "$vhdctl" info disk.raw --json
json .format '"raw"'
json .type '"raw"'
expect 0 "$vhdctl" info --format raw base.vhd --json
json .type '"raw"'

# Several files are a list; one that fails is in it with its error, and the end is 3.
expect 0 "$vhdctl" info base.vhd fixed.vhd --json
json '[.[].type]' '["dynamic","fixed"]'
expect 3 "$vhdctl" info base.vhd absent.vhd fixed.vhd --json
json 'length' 3
json '.[1].error.code' '"ENOENT"'
said absent.vhd

# Every byte of footer and header is told of.
expect 0 "$vhdctl" info --raw child.avhd --json
json '[.raw[] | select(.structure == "tail").size] | add' 512
json '[.raw[] | select(.structure == "head").size] | add' 512
json '[.raw[] | select(.structure == "header").size] | add' $((1024 - 8 * 24))
json '[.raw[] | select(.structure == "header" and .field == "block_size").value]' '["2097152"]'
expect 0 "$vhdctl" info --raw fixed.vhd
printed 'tail.cookie'
! grep -q 'head.cookie' <<<"$out" || fail "the head of a fixed disk is its guest's"

# A footer of 511 bytes, as Virtual PC wrote it once, has one byte less.
head -c -1 fixed.vhd >old.vhd
expect 0 "$vhdctl" info --raw old.vhd --json
json '[.raw[] | select(.structure == "tail").size] | add' 511

# Opens nothing but the file: the parent can be gone, or be something that must not be touched.
mv base.vhd away.vhd
expect 0 "$vhdctl" info child.avhd --json
json '.parent.filename' "\"$tmp/base.vhd\""
expect 3 "$vhdctl" info --chain child.avhd
said base.vhd
if command -v strace >/dev/null; then
        mkfifo base.vhd
        # (A leak detector cannot work beside strace.)
        expect 0 env ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" \
                timeout 10 strace -f -o trace "$vhdctl" info child.avhd
        if grep -E '^[0-9]+ +open' trace | grep -q 'base\.vhd'; then fail "info opened the parent"; fi
        rm base.vhd
fi
mv away.vhd base.vhd

# A damaged image is still told of, and what is wrong with it.
cp base.vhd damaged.vhd
truncate -s -512 damaged.vhd
expect 0 "$vhdctl" info damaged.vhd --json
json '.type' '"dynamic"'
json '.problems | length > 0' true
expect 3 "$vhdctl" hash damaged.vhd
said damaged.vhd

# map: without gaps, from 0 to the end; depth and file are right; what it says is there, is there.
expect 0 "$vhdctl" map base.vhd --json
json 'reduce .[] as $e ({at: 0, ok: true}; {at: ($e.start + $e.length), ok: (.ok and $e.start == .at)}) | [.at, .ok]' \
        '[25165824,true]'
json '[.[] | keys | join(" ")] | unique' '["depth filename length offset present start zero"]'
json '[.[] | select(.present) | .filename] | unique' '["base.vhd"]'
printf '%s' "$out" >map.json
check "map points to the data" python3 - <<'PYTHON'
import json
runs = json.load(open("map.json"))
image, disk = open("base.vhd", "rb").read(), open("disk.raw", "rb").read()
data = 0
for run in runs:
    here = disk[run["start"]:run["start"] + run["length"]]
    if run["zero"]:
        assert not any(here), run
    else:
        assert image[run["offset"]:run["offset"] + run["length"]] == here, run
        data += run["length"]
assert data >= 50 * 4096 // 2
PYTHON
expect 0 "$vhdctl" map child.avhd --json
json '[.[] | select(.present) | .depth] | unique' '[1]'
expect 0 "$vhdctl" map child.avhd
printed 'base.vhd'
"$vhdctl" create --quiet empty.vhd --size 2040G
expect 0 "$vhdctl" map empty.vhd --json
json '[.[] | [.start, .length, .present, .zero]]' '[[0,2190433320960,false,true]]'
expect 3 "$vhdctl" map absent.vhd
echo "$name: all well"
