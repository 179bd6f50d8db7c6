#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Whole vms out of the daemon and in again: export, import from a sidecar and from headers alone, the
# doctor, a catalog that is lost and made anew, an import whose daemon is killed in the middle. What
# could go wrong: a copy with other bytes, a branch that is lost, a file that nobody names.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/daemonlib.sh"

img=$tmp/img
mkdir "$img"

# --- a vm with two disks and two snapshots

head -c 3M /dev/urandom >"$tmp/a.raw"
head -c 2M /dev/urandom >"$tmp/b.raw"
expect 0 "$vhdctl" convert "$tmp/a.raw" "$img/a.vhd" --type dynamic
expect 0 "$vhdctl" convert "$tmp/b.raw" "$img/b.vhd" --type fixed
start_daemon
expect 0 "$vhdctl" vm create web
expect 0 "$vhdctl" disk attach web "$img/a.vhd"
expect 0 "$vhdctl" disk attach web "$img/b.vhd"
expect 0 "$vhdctl" snapshot take web 'first one'
expect 0 "$vhdctl" snapshot take web second
tree=$(tree_of web)
[ "$tree" = '[{"name":"first one","current":false},{"name":"second","current":true}]' ] ||
        fail "the tree is $tree"
healthy

# --- export: the same bytes, in the same places to one another

expect 0 "$vhdctl" vm export web "$tmp/exp" --json
json '.files | length' 7
leaf=$("$vhdctl" disk list web --json | jq -r '.[0].file')
expect 0 "$vhdctl" hash "$tmp/exp/$(basename "$leaf")"
copied=${out%% *}
expect 0 "$vhdctl" hash "$img/a.vhd"
[ "$copied" = "${out%% *}" ] || fail "the exported disk reads $copied instead of ${out%% *}"
expect 3 "$vhdctl" vm export web "$tmp/exp"
said 'is there already'
[ -s "$tmp/exp/web.vhdd.json" ] || fail "refusing to export again took the first export away"

# --- import of that folder

expect 3 "$vhdctl" vm import "$tmp/exp" --to "$tmp/cp"
said "there is a vm 'web' already"
expect 0 "$vhdctl" vm import "$tmp/exp" --to "$tmp/cp" --name copy
[ "$(tree_of copy)" = "$tree" ] || fail "the copy's tree is $(tree_of copy)"
expect 0 "$vhdctl" disk list copy --json
json '[.[].name]' '["a","b"]'
json '[.[].state] | unique' '["serving"]'
json "[.[].file | startswith(\"$tmp/cp/\")] | all" true
healthy

# Going back in the copy gives the copy's own images, not those it came from.
expect 0 "$vhdctl" snapshot apply copy 'first one'
expect 0 "$vhdctl" disk list copy --json
json "[.[].file | startswith(\"$tmp/cp/\")] | all" true
healthy

# --- from headers alone: two trees, one chosen; used where they lie

mkdir "$tmp/bare"
cp -p "$tmp"/exp/*vhd "$tmp/bare"
expect 2 "$vhdctl" vm import "$tmp/bare" --move --name bare
said '2 trees'
said '--only'
expect 0 "$vhdctl" vm import "$tmp/bare" --move --name bare --only b.vhd --dry-run --json
expect 3 "$vhdctl" vm show bare
expect 0 "$vhdctl" vm import "$tmp/bare" --move --name bare --only a.vhd
expect 0 "$vhdctl" snapshot list bare --json
json length 2
expect 0 "$vhdctl" disk list bare --json
json '[.[].depth]' '[3]'
expect 3 "$vhdctl" vm import "$tmp/bare" --move --name again --only a.vhd
said 'is used by a vm already'
expect 2 "$vhdctl" vm import "$tmp/bare" --name x
expect 3 "$vhdctl" vm import "$tmp/no-such-folder" --move

# Nothing that can be used: the sentence says why.
mkdir "$tmp/none" "$tmp/damaged"
expect 3 "$vhdctl" vm import "$tmp/none" --move
said 'there is no image'
head -c 4096 /dev/urandom >"$tmp/damaged/x.vhd"
expect 3 "$vhdctl" vm import "$tmp/damaged" --move
said "'$tmp/damaged/x.vhd' is left out"

# --- the doctor finds what is put in its way

rm "$tmp/bare"/b*vhd
touch "$img/web_5fa21a55-f394-4a4d-9958-1951a67d5540.avhd"
out=$("$vhdctl" doctor --json || true)
json '[.findings[] | select(.id == "orphan-file") | .file]' \
        "[\"$img/web_5fa21a55-f394-4a4d-9958-1951a67d5540.avhd\"]"
rm "$img/web_5fa21a55-f394-4a4d-9958-1951a67d5540.avhd"
touch "$img/b.vhd"
out=$("$vhdctl" doctor --json || true)
json '[.findings[] | select(.id == "parent-changed") | .file]' "[\"$img/b.vhd\"]"

# --- the catalog is lost, and made anew

bare=$(tree_of bare)
stop_daemon
rm "$state"/catalog.sqlite*
start_daemon
expect 0 "$vhdctl" vm list --json
json length 0
expect 0 "$vhdctl" doctor --rebuild --dry-run --json
json .rebuilt.vms 3
expect 0 "$vhdctl" vm list --json
json length 0
out=$("$vhdctl" doctor --rebuild --json || true)
json .rebuilt.vms 3
[ "$(tree_of web)" = "$tree" ] || fail "the tree that came back is $(tree_of web)"
[ "$(tree_of bare)" = "$bare" ] || fail "the bare tree that came back is $(tree_of bare)"
expect 0 "$vhdctl" disk list web --json
json '[.[].state] | unique' '["serving"]'

# --- settings that are older than the images do not take the ground from under what came later

mkdir "$tmp/aged"
expect 0 "$vhdctl" vm create aged
expect 0 "$vhdctl" disk attach aged "$tmp/aged/d.vhd" --create 16M
expect 0 "$vhdctl" snapshot take aged one
expect 0 "$vhdctl" vm export aged "$tmp/aged-settings" --config-only
expect 0 "$vhdctl" snapshot take aged two
expect 0 "$vhdctl" vm remove aged
expect 3 "$vhdctl" vm import "$tmp/aged-settings" --move
said "they are older than that image"
expect 0 "$vhdctl" vm import "$tmp/aged" --move --name aged
json_of_aged=$("$vhdctl" disk list aged --json | jq length)
[ "$json_of_aged" = 1 ] || fail "the disk did not come back from its images"
expect 0 "$vhdctl" vm remove aged

# --- the daemon is killed while it copies: all of it, or nothing

expect 0 "$vhdctl" vm remove bare
mkdir "$tmp/big"
expect 0 "$vhdctl" create "$tmp/big/big.vhd" --size 300M --type fixed
dd if=/dev/zero of="$tmp/big/big.vhd" bs=1M count=300 conv=notrunc status=none
for pause in 0.02 0.1 0.3; do
        "$vhdctl" vm import "$tmp/big" --to "$tmp/bigcopy" --name big >/dev/null 2>&1 &
        client=$!
        sleep "$pause"
        kill -KILL "$server"
        wait "$server" 2>/dev/null || true
        wait "$client" || true
        start_daemon
        if "$vhdctl" vm show big >/dev/null 2>&1; then
                [ -e "$tmp/bigcopy/big.vhd" ] || fail "the vm is there, and its image is not"
                expect 0 "$vhdctl" vm remove big --delete-files
        fi
        [ ! -e "$tmp/bigcopy/big.vhd" ] || fail "an image was left that nobody names"
done
stop_daemon
echo "whole-vms: all right"
