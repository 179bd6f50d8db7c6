#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A script that somebody wrote against vhdctl breaks because an option is only taken in one place, an
# exit code changes its meaning, or a failure goes unnoticed. The frame's promises, one by one.
source "$(dirname "$0")/lib.sh"
cd "$tmp"

# --help and --version; every verb has both, and an example.
expect 0 "$vhdctl" --version
[[ $out =~ ^vhdctl\ [0-9]+\.[0-9]+ ]] || fail "--version says '$out'"
expect 0 "$vhdctl" --help
verbs=$(sed -nE 's/^  ([a-z]+( [a-z]+)?)  +.*/\1/p' <<<"$out")
for verb in create tree info map check seal convert compare hash relink resize compact serve mount \
        memory 'switch list'; do
        grep -qx "$verb" <<<"$verbs" || fail "--help does not name $verb"
done
while read -r -a verb; do
        expect 0 "$vhdctl" "${verb[@]}" --help
        printed "vhdctl ${verb[*]} "
        printed 'Examples:'
        [ "$(awk 'length > 100' <<<"$out")" = '' ] || fail "${verb[*]} --help has lines that are too long"
done <<<"$verbs"
for group in vm disk snapshot job; do
        expect 0 "$vhdctl" "$group" --help
        printed "  $group list"
        expect 2 "$vhdctl" "$group"
        said "  $group list"
        expect 2 "$vhdctl" "$group" frobnicate
        said "no verb '$group frobnicate'"
done
expect 0 "$vhdctl" help snapshot take
printed 'vhdctl snapshot take '

# Wrong usage is 2, and says what help there is.
expect 2 "$vhdctl"
expect 2 "$vhdctl" frobnicate
said "no verb 'frobnicate'"
expect 2 "$vhdctl" info
said 'FILE'
expect 2 "$vhdctl" info --frobnicate x.vhd
said 'frobnicate'
expect 2 "$vhdctl" hash a b
expect 2 "$vhdctl" convert a
expect 2 "$vhdctl" info --progress sometimes a
expect 2 "$vhdctl" info --format vmdk a
expect 2 "$vhdctl" create x.vhd --size 10GB
said '10GB'

# Options before and after operands, also where POSIXLY_CORRECT would end them; -- ends them.
expect 0 "$vhdctl" create --size 8M a.vhd --json
json '."virtual-size"' 8388608
expect 0 env POSIXLY_CORRECT=1 "$vhdctl" info a.vhd --json
json .filename '"a.vhd"'
expect 0 "$vhdctl" create --size=8M -- --json
[ -f ./--json ] || fail "-- does not end the options"
expect 0 "$vhdctl" info -- --json
printed dynamic

# A failure is 3 with one sentence that names the file, and an object with --json.
expect 3 "$vhdctl" info absent.vhd
said 'absent.vhd'
[ "$(grep -c '^vhdctl: ' <<<"$errors")" = 1 ] || fail "not one sentence"
expect 3 "$vhdctl" hash absent.vhd --json
json .code '"ENOENT"'
json .file '"absent.vhd"'
json '.message | length > 10' true

# Nothing is overwritten without --force, and a dry run changes nothing.
before=$(content a.vhd)
expect 3 "$vhdctl" create a.vhd --size 16M
said '--force'
[ "$(content a.vhd)" = "$before" ] || fail "a refused create changed the file"
expect 0 "$vhdctl" create a.vhd --size 16M --force --dry-run
[ "$(content a.vhd)" = "$before" ] || fail "a dry run changed the file"
expect 0 "$vhdctl" create b.vhd --size 16M -n
[ ! -e b.vhd ] || fail "a dry run made a file"
expect 0 "$vhdctl" create a.vhd --size 16M --force
[ "$(content a.vhd)" != "$before" ] || fail "--force did not replace the file"
expect 0 "$vhdctl" create quiet.vhd --size 1M --quiet
[ -z "$out$errors" ] || fail "--quiet says something"

# An answer that cannot be written is a failure, not a success with half an answer.
expect 3 bash -c "'$vhdctl' info a.vhd >/dev/full"

# Names from strangers do not reach the terminal as they are.
evil=$'evil\e[31m\n.vhd'
expect 0 "$vhdctl" create "$evil" --size 1M
expect 0 "$vhdctl" info "$evil"
! grep -q $'\e' <<<"$out" || fail "an escape sequence reached the terminal"
expect 0 "$vhdctl" info "$evil" --json
json '.filename | length' 14
echo "$name: all well"
