#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A vm out into a folder and in again: as a copy, twice, and as what it was; while it runs; as a job that is
# slowed down, stopped, or killed at each of its steps; from folders in which something is missing. What
# could go wrong: a copy that stands on the original, half a folder that looks whole, a snapshot that was
# taken for the export alone and stays, a file that nobody names.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/daemonlib.sh"

need qemu-io
killat=$VHDD_BUILD/tests/interop/libkillat.so
img=$tmp/img
export KILLAT=$tmp/killat
mkdir "$img"

cleanup_all()
{
        [ -z "${client:-}" ] || kill -KILL "$client" 2>/dev/null || true
        cleanup_daemon
}
trap cleanup_all EXIT

uri_of() # VM DISK [SNAPSHOT]
{
        "$vhdctl" disk uri "$1" "$2${3:+@$3}" --json | jq -r .uri
}

# What a guest would read: sha256. A snapshot's export that its last reader left is closed half a second
# later, and who comes just then has to come again.
read_hash() # VM DISK [SNAPSHOT]
{
        for _ in 1 2 3; do
                nbdcopy "$(uri_of "$@")" - >"$tmp/.read" 2>"$tmp/.read-errors" && break
        done
        sha256sum <"$tmp/.read" | cut -d' ' -f1
}

guest_writes() # VM DISK PATTERN OFFSET
{
        check "a guest writes" qemu-io -f raw -c "write -P $3 $4 64k" -c flush "$(uri_of "$1" "$2")"
        off "$1"
}

# A client that ended is gone for the daemon a moment later.
off()
{
        local tries=0
        until [ "$("$vhdctl" vm show "$1" --json | jq .on)" = false ]; do
                tries=$((tries + 1))
                [ "$tries" -le 400 ] || fail "vm '$1' does not go off"
                sleep 0.05
        done
}

need nbdcopy

# --- a vm with two disks in two folders, two snapshots, and a settings' worth of words

mkdir "$img/deep"
truncate -s 16M "$tmp/a.raw"
random_pieces "$tmp/a.raw" 1 200
head -c 2M /dev/urandom >"$tmp/b.raw"
expect 0 "$vhdctl" convert "$tmp/a.raw" "$img/a.vhd" --type dynamic
expect 0 "$vhdctl" convert "$tmp/b.raw" "$img/deep/b.vhd" --type fixed
start_daemon
expect 0 "$vhdctl" vm create web --cpus 2 --memory startup=512M,max=2G \
        --network lan:vlan=7,mac=52:54:00:12:34:56
expect 0 "$vhdctl" disk attach web "$img/a.vhd" --at ide0:0
expect 0 "$vhdctl" disk attach web "$img/deep/b.vhd" --at scsi2:5
expect 0 "$vhdctl" snapshot take web one
guest_writes web a 17 0
expect 0 "$vhdctl" snapshot take web two
guest_writes web a 34 65536
guest_writes web b 51 4096
tree=$(tree_of web)
declare -A hash_a hash_b
for s in now one two; do
        hash_a[$s]=$(read_hash web a "$s")
        hash_b[$s]=$(read_hash web b "$s")
done
off web
[ "${hash_a[now]}" != "${hash_a[two]}" ] && [ "${hash_a[one]}" != "${hash_a[two]}" ] || fail "the states do not differ"

same_as_web() # VM
{
        local s
        [ "$(tree_of "$1")" = "$tree" ] || fail "the tree of '$1' is $(tree_of "$1")"
        for s in now one two; do
                [ "$(read_hash "$1" a "$s")" = "${hash_a[$s]}" ] || fail "$1/a@$s reads otherwise"
                [ "$(read_hash "$1" b "$s")" = "${hash_b[$s]}" ] || fail "$1/b@$s reads otherwise"
        done
        off "$1"
        expect 0 "$vhdctl" disk list "$1" --json
        json '[.[] | [.name, .at]]' '[["a","ide0:0"],["b","scsi2:5"]]'
        expect 0 "$vhdctl" vm show "$1" --json
        json '[.settings.cpus, .settings.memory.max]' '[2,2147483648]'
}

# --- dry run, and the words for what is refused

expect 0 "$vhdctl" vm export web "$tmp/exp" --dry-run --json
json '.files | length' 7
[ ! -e "$tmp/exp" ] || fail "a dry run made a folder"
mkdir "$tmp/taken"
expect 3 "$vhdctl" vm export web "$tmp/taken"
said 'is there already'
[ -z "$(ls -A "$tmp/taken")" ] || fail "an export wrote into a folder that was there"

# --- the export itself, and that it can be told from another

expect 0 "$vhdctl" vm export web "$tmp/exp" --json
json '.files | length' 7
json 'has("job")' false
for file in $(jq -r '.files[]' <<<"$out"); do
        [ -s "$file" ] || fail "'$file' is not there"
done
[ ! -e "$tmp/exp.vhdd-partial" ] || fail "the folder that was filled is still there"
expect 3 "$vhdctl" vm export web "$tmp/exp"
said 'is there already'
expect 0 "$vhdctl" job list --json
json '[.[] | select(.kind == "export") | .state] | unique' '["done"]'
same_as_web web
healthy

# --- as what it was: refused while it is here, and its id when it is not

expect 3 "$vhdctl" vm import "$tmp/exp" --move --name again
said 'is there already, with the id'
expect 2 "$vhdctl" vm import "$tmp/exp" --move --copy
expect 2 "$vhdctl" vm import "$tmp/exp" --move --to "$tmp/x"

# --- as a copy, twice: other ids, another address, the same content; none stands on another's files

expect 0 "$vhdctl" vm import "$tmp/exp" --copy --name c1 --json
json '.vm.name' '"c1"'
printed 'network card 1 gets another address'
expect 0 "$vhdctl" vm import "$tmp/exp" --copy --to "$tmp/c2" --name c2
same_as_web c1
same_as_web c2
expect 0 "$vhdctl" vm show c1 --json
json '.settings.networks' '[{"switch":"lan","vlan":7}]'
ids=$(for vm in web c1 c2; do "$vhdctl" vm show "$vm" --json | jq -r .id; done | sort -u | wc -l)
[ "$ids" -eq 3 ] || fail "of three vms there are $ids ids"
for vm in c1 c2; do
        expect 0 "$vhdctl" disk show "$vm" a --json
        json "[.layers[].file | startswith(\"$tmp/$vm/\")] | unique" '[true]'
        expect 0 "$vhdctl" disk show "$vm" b --json
        json "[.layers[].file | startswith(\"$tmp/$vm/\")] | unique" '[true]'
done
healthy

# What is done to one is nothing to the others: a merge writes to a parent and gives it another id.
expect 0 "$vhdctl" snapshot delete c1 one --wait
guest_writes c1 a 99 0
expect 0 "$vhdctl" snapshot delete c1 two --wait
guest_writes c2 b 98 0
expect 0 "$vhdctl" snapshot revert c2
same_as_web web
for s in one two; do
        [ "$(read_hash c2 a $s)" = "${hash_a[$s]}" ] || fail "a merge in one copy is seen in the other"
done
off c2
healthy

# --- what it was at a snapshot, as a vm without snapshots: one new image a disk

for s in one two; do
        expect 0 "$vhdctl" snapshot export web $s "$tmp/flat-$s" --json
        json '.files | map(sub(".*/"; ""))' '["a.vhd","b.vhd","web.vhdd.json"]'
        expect 0 "$vhdctl" info "$tmp/flat-$s/a.vhd" --json
        json '[.type, .parent]' '["dynamic",null]'
        expect 0 "$vhdctl" check "$tmp/flat-$s"/*.vhd
        expect 0 "$vhdctl" vm import "$tmp/flat-$s" --copy --to "$tmp/f-$s" --name f
        expect 0 "$vhdctl" snapshot list f --json
        json length 0
        [ "$(read_hash f a now)" = "${hash_a[$s]}" ] || fail "the exported snapshot's a reads otherwise"
        [ "$(read_hash f b now)" = "${hash_b[$s]}" ] || fail "the exported snapshot's b reads otherwise"
        expect 0 "$vhdctl" disk list f --json
        json '[.[] | [.name, .at, .depth]]' '[["a","ide0:0",1],["b","scsi2:5",1]]'
        expect 0 "$vhdctl" vm show f --json
        json '[.settings.cpus, .settings.memory.max]' '[2,2147483648]'
        off f
        expect 0 "$vhdctl" vm remove f --delete-files
done
expect 0 "$vhdctl" vm import "$tmp/flat-one" --move --name f --dry-run
expect 3 "$vhdctl" snapshot export web one "$tmp/flat-one"
said 'is there already'
expect 3 "$vhdctl" snapshot export web none "$tmp/flat-none"
expect 0 "$vhdctl" snapshot export web one "$tmp/flat-none" --dry-run
[ ! -e "$tmp/flat-none" ] || fail "a dry run made a folder"
same_as_web web
healthy

# --- moved: the vm goes, and comes back from the folder with the id that it had

id=$("$vhdctl" vm show web --json | jq -r .id)
expect 0 "$vhdctl" vm remove web --delete-files
rm -rf "${img:?}"/*
cp -r --preserve=timestamps "$tmp/exp" "$tmp/kept"
expect 0 "$vhdctl" vm import "$tmp/exp" --move --json
json '.vm.id' "\"$id\""
same_as_web web
expect 0 "$vhdctl" disk list web --json
json "[.[].file | startswith(\"$tmp/exp/\")] | unique" '[true]'
healthy
expect 0 "$vhdctl" vm remove c1 --delete-files
expect 0 "$vhdctl" vm remove c2 --delete-files

# --- of a running vm: not without --live; with it what was there at one instant, and no snapshot stays

qemu-io -f raw -c 'write -P 7 0 64k' -c flush -c 'sleep 600000' "$(uri_of web a)" >/dev/null 2>&1 &
client=$!
tries=0
until [ "$("$vhdctl" vm show web --json | jq .on)" = true ]; do
        tries=$((tries + 1))
        [ "$tries" -le 400 ] || fail "the guest does not come"
        sleep 0.05
done
expect 3 "$vhdctl" vm export web "$tmp/live"
said 'is on'
said -- '--live'
[ ! -e "$tmp/live" ] || fail "a refused export made a folder"
expect 0 "$vhdctl" vm export web "$tmp/live" --live
kill -0 "$client" || fail "the guest was cut off"
tries=0
until [ "$(tree_of web)" = "$tree" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 400 ] || fail "the export's snapshot stays: $(tree_of web)"
        sleep 0.05
done
kill -KILL "$client"
wait "$client" 2>/dev/null || true
client=
expect 0 "$vhdctl" job wait
off web
[ "$(tree_of web)" = "$tree" ] || fail "the tree after a live export is $(tree_of web)"
hash_a[now]=$(read_hash web a now)
off web
same_as_web web
expect 0 "$vhdctl" vm import "$tmp/live" --copy --to "$tmp/c3" --name c3
same_as_web c3
healthy
expect 0 "$vhdctl" vm remove c3 --delete-files
[ -z "$(find "$tmp/c3" -name '*vhd' 2>/dev/null)" ] || fail "images of a removed copy stay"

# --- a job: slow, then stopped; nothing of it stays, and the vm is had by nobody else meanwhile

expect 0 "$vhdctl" create "$img/big.vhd" --size 64M --type fixed
dd if=/dev/urandom of="$img/big.vhd" bs=1M count=64 conv=notrunc status=none
expect 0 "$vhdctl" vm create big
expect 0 "$vhdctl" disk attach big "$img/big.vhd"

begin_slow() # DIR
{
        local tries=0
        expect 0 "$vhdctl" vm export big "$1" --limit 2M --no-wait --json
        job=$(jq .job.id <<<"$out")
        expect 0 "$vhdctl" job limit "$job" 1M
        until [ "$("$vhdctl" job show "$job" --json | jq '.done > 0')" = true ]; do
                tries=$((tries + 1))
                [ "$tries" -le 400 ] || fail "the export does not move"
                sleep 0.05
        done
}

begin_slow "$tmp/slow"
expect 0 "$vhdctl" job show "$job" --json
json '[.kind, .vm, .limit]' '["export","big",1048576]'
[ -d "$tmp/slow.vhdd-partial" ] && [ ! -e "$tmp/slow" ] || fail "the name comes before the content"
expect 3 "$vhdctl" snapshot take big no
said "is being exported by job $job"
expect 3 "$vhdctl" vm import "$tmp/slow.vhdd-partial" --copy
said 'not whole'
expect 0 "$vhdctl" job pause "$job" --json
json .state '"paused"'
expect 0 "$vhdctl" job resume "$job" --json
json .state '"running"'
expect 0 "$vhdctl" job cancel "$job"
expect 3 "$vhdctl" job wait "$job"
said 'cancelled'
[ ! -e "$tmp/slow" ] && [ ! -e "$tmp/slow.vhdd-partial" ] || fail "of a cancelled export something stays"
expect 2 "$vhdctl" job resume "$job"
expect 0 "$vhdctl" snapshot take big yes
healthy

# The daemon ends meanwhile, and starts again.
begin_slow "$tmp/slow"
stop_daemon
[ ! -e "$tmp/slow.vhdd-partial" ] || fail "of an export that the daemon's end broke off something stays"
start_daemon
expect 0 "$vhdctl" job show "$job" --json
json .state '"failed"'
expect 0 "$vhdctl" vm remove big --delete-files
rm -f "$img"/big*

# --- killed at each step: all of it or nothing, at the next start

[ -e "$killat" ] || skip "no '$killat'"
expect 0 "$vhdctl" create "$img/s.vhd" --size 8M
expect 0 "$vhdctl" vm create small
expect 0 "$vhdctl" disk attach small "$img/s.vhd"
guest_writes small s 5 0
expect 0 "$vhdctl" snapshot take small one
guest_writes small s 6 65536
small=$(tree_of small)
small_now=$(read_hash small s now)
off small
expect 0 "$vhdctl" vm export small "$tmp/whole"
expect 0 "$vhdctl" hash "$tmp/whole/s.vhd"
small_then=${out/whole/k}
stop_daemon
start_daemon "$killat"

# Runs it in a daemon that dies at its Nth step; and then there is another daemon.
die_in()
{
        rm -f "$KILLAT.count"
        echo "$n" >"$KILLAT"
        "$vhdctl" "$@" >/dev/null 2>&1 || true
        rm -f "$KILLAT"
        total=$(($(cat "$KILLAT.count") + 1))
        [ "$total" -le 1000 ] || fail "'$*' has $total steps"
        "$vhdctl" status >/dev/null 2>&1 && return 0
        wait "$server" 2>/dev/null || true
        start_daemon "$killat"
}

# The next of its steps, in n: with --long each, else every third.
next_step()
{
        deaths=$((deaths + 1))
        if [ -n "${VHDD_LONG:-}" ]; then n=$((n + 1)); else n=$((n + 3)); fi
}

rows_of() # DIR
{
        jq 'del(.images[]["sealed-size", "sealed-mtime-ns"])' "$1/small.vhdd.json" | sed "s|$1/|DIR/|"
}

# The same files with the same content, and the same rows but for when an image was sealed.
same_folder()
{
        local file
        diff <(cd "$tmp/k" && find . | sort) <(cd "$tmp/whole" && find . | sort) ||
                fail "step $n: the folder is not the whole one"
        while IFS= read -r file; do
                check "step $n: the content of $file" "$vhdctl" compare --strict --image-root "$tmp/k" \
                        --image-root "$tmp/whole" "$tmp/k/$file" "$tmp/whole/$file"
        done < <(cd "$tmp/k" && find . -name '*vhd')
        diff <(rows_of "$tmp/k") <(rows_of "$tmp/whole") ||
                fail "step $n: the folder's rows are not those of the whole one"
}

n=0 whole=0 total=1 deaths=0
while [ "$n" -lt "$total" ]; do
        next_step
        die_in vm export small "$tmp/k"
        [ ! -e "$tmp/k.vhdd-partial" ] || fail "step $n: there stays $(find "$tmp/k.vhdd-partial")"
        [ "$(tree_of small)" = "$small" ] || fail "step $n: the tree is $(tree_of small)"
        expect 0 "$vhdctl" job list --json
        json '[.[] | select(.kind == "export" and .state == "running")]' '[]'
        [ -e "$tmp/k" ] || continue
        whole=$((whole + 1))
        same_folder
        rm -r "$tmp/k"
done
[ "$n" -gt 20 ] || fail "only $n steps were counted"
[ "$whole" -ge 2 ] || fail "no death came after the folder was whole"
echo "summary: an export was killed at $deaths of its $n steps; $whole times it was whole"

n=0 whole=0 total=1 deaths=0
while [ "$n" -lt "$total" ]; do
        next_step
        die_in snapshot export small one "$tmp/k"
        [ ! -e "$tmp/k.vhdd-partial" ] || fail "step $n: there stays $(find "$tmp/k.vhdd-partial")"
        [ -e "$tmp/k" ] || continue
        whole=$((whole + 1))
        [ "$("$vhdctl" hash "$tmp/k/s.vhd")" = "$small_then" ] || fail "step $n: the image reads otherwise"
        [ -s "$tmp/k/small.vhdd.json" ] || fail "step $n: the folder is not whole"
        rm -r "$tmp/k"
done
[ "$n" -gt 10 ] || fail "only $n steps were counted"
[ "$whole" -ge 1 ] || fail "no death came after the folder was whole"
echo "summary: a snapshot's export was killed at $deaths of its $n steps; $whole times it was whole"

n=0 whole=0 total=1 deaths=0
while [ "$n" -lt "$total" ]; do
        next_step
        die_in vm import "$tmp/whole" --copy --to "$tmp/k" --name k
        if "$vhdctl" vm show k >/dev/null 2>&1; then
                whole=$((whole + 1))
                [ "$(tree_of k)" = "$small" ] || fail "step $n: the copy's tree is $(tree_of k)"
                [ "$(read_hash k s now)" = "$small_now" ] || fail "step $n: the copy reads otherwise"
                off k
                expect 0 "$vhdctl" vm remove k --delete-files
                rm -rf "$tmp/k"
        fi
        [ ! -e "$tmp/k" ] || fail "step $n: without a vm there is $(find "$tmp/k")"
done
[ "$n" -gt 20 ] || fail "only $n steps were counted"
[ "$whole" -ge 1 ] || fail "no death came after the vm was there"
echo "summary: an import was killed at $deaths of its $n steps; $whole times the vm was there"

merges_left()
{
        "$vhdctl" job list small --json | jq '[.[] | select(.kind == "merge" and .state != "done")] | length'
}

# A live one, at some of them: its snapshot goes, too.
qemu-io -f raw -c 'write -P 9 0 64k' -c flush -c 'sleep 600000' "$(uri_of small s)" >/dev/null 2>&1 &
client=$!
tries=0
until [ "$("$vhdctl" vm show small --json | jq .on)" = true ]; do
        tries=$((tries + 1))
        [ "$tries" -le 400 ] || fail "the guest does not come"
        sleep 0.05
done
n=1 total=1
while [ "$n" -le "$total" ]; do
        die_in vm export small "$tmp/k" --live
        [ ! -e "$tmp/k.vhdd-partial" ] || fail "step $n: there stays $(find "$tmp/k.vhdd-partial")"
        kill -0 "$client" || fail "step $n: the guest was cut off"
        tries=0
        until [ "$(tree_of small)" = "$small" ] && [ "$(merges_left)" -eq 0 ]; do
                tries=$((tries + 1))
                [ "$tries" -le 400 ] || fail "step $n: the tree stays $(tree_of small), $("$vhdctl" job list)"
                sleep 0.05
        done
        rm -rf "$tmp/k"
        n=$((n + 7))
done
kill -KILL "$client"
wait "$client" 2>/dev/null || true
client=
off small
[ "$(tree_of small)" = "$small" ] || fail "the tree after the live exports is $(tree_of small)"
healthy
stop_daemon
start_daemon

# --- folders in which something is wrong: one sentence, and nothing made

cp -r --preserve=timestamps "$tmp/kept" "$tmp/broken"
# One in the middle: something stands on it.
missing=$tmp/broken/$(jq -r '[.images[].parent] as $parents | .images[] |
        select(.parent != null and (.path | IN($parents[])) and (.path | startswith("a_"))) | .path' \
        "$tmp/broken/web.vhdd.json")
rm "$missing"
expect 3 "$vhdctl" vm import "$tmp/broken" --copy --to "$tmp/broken2" --name broken
said "'$missing', which is not there"
[ "$(wc -l <<<"$errors")" -le 2 ] || fail "more than a sentence and a hint"
expect 3 "$vhdctl" vm show broken
[ ! -e "$tmp/broken2" ] || fail "something was made"
# The same by the headers alone.
mkdir "$tmp/headers"
cp -p "$tmp"/kept/a*vhd "$tmp/headers"
rm "$tmp/headers/$(basename "$missing")"
expect 3 "$vhdctl" vm import "$tmp/headers" --copy --to "$tmp/broken2" --name broken
said 'cannot be used'
said "$(basename "$missing")"
expect 3 "$vhdctl" vm show broken
[ ! -e "$tmp/broken2" ] || fail "something was made"

# Another's file under an image's name: its id is not the one that is meant.
cp -r --preserve=timestamps "$tmp/kept" "$tmp/swapped"
expect 0 "$vhdctl" create "$tmp/other.vhd" --size 16M
cp "$tmp/other.vhd" "$tmp/swapped/a.vhd"
expect 3 "$vhdctl" vm import "$tmp/swapped" --copy --name swapped
expect 3 "$vhdctl" vm show swapped
echo '{"format": "vhdd-sidecar", "version": 1' >"$tmp/swapped/web.vhdd.json"
expect 3 "$vhdctl" vm import "$tmp/swapped" --copy --name swapped
expect 3 "$vhdctl" vm show swapped
mkdir "$tmp/empty"
expect 3 "$vhdctl" vm import "$tmp/empty" --copy --name empty
[ ! -e "$tmp/empty2" ] || fail "something was made"
healthy
stop_daemon
echo "vm-export: all right"
