#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Somebody serves a folder of backups: the wrong disk under a name, a write that reaches a parent, a
# socket that anybody may use, a stop that loses what was flushed.
source "$(dirname "$0")/lib.sh"
need nbdinfo nbdcopy nbdsh python3
python3 -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"
cd "$tmp"

truncate -s 16M disk.raw
random_pieces disk.raw 5 60
"$vhdctl" convert --quiet disk.raw base.vhd
"$vhdctl" create --quiet child.avhd --parent base.vhd
sum=$(content disk.raw)

# write_at URI OFFSET TEXT: a write, and a flush.
write_at()
{
        python3 - "$@" <<'PYTHON'
import sys
import nbd
uri, offset, text = sys.argv[1:]
handle = nbd.NBD()
handle.connect_uri(uri)
handle.pwrite(text.encode(), int(offset))
handle.flush()
handle.shutdown()
PYTHON
}

served()
{
        nbdcopy "$1" - | sha256sum | cut -d' ' -f1
}

# One image: the export "" and its base name; the default socket lies in a private folder.
serve child.avhd
[[ $uri == nbd+unix:///?socket=* ]] || fail "the URI is '$uri'"
socket=${uri#*socket=}
[ "$(stat -c %a "$(dirname "$socket")")" = 700 ] || fail "the folder of the socket is not private"
[ "$(served "$uri")" = "$sum" ] || fail "export '' reads otherwise"
[ "$(served "nbd+unix:///child.avhd?socket=$socket")" = "$sum" ] || fail "its base name reads otherwise"
expect 0 nbdinfo --list --json "$uri"
json '[.exports[]."export-name"]' '["child.avhd"]'
expect 1 nbdinfo "nbd+unix:///other?socket=$socket"
write_at "$uri" 4096 changed
stop_server
[ ! -e "$(dirname "$socket")" ] || fail "the socket's folder is left"
expect 1 "$vhdctl" compare child.avhd base.vhd --json
json '."first-difference"' 4096
expect 0 "$vhdctl" compare base.vhd disk.raw

# An image that others stand on takes no writes: refused, or read-only, or scratch.
expect 3 "$vhdctl" serve base.vhd
said stand
said --read-only
serve --read-only base.vhd
[ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ] || fail "not read-only"
stop_server
before=$(content base.vhd)
serve --scratch base.vhd
write_at "$uri" 0 thrown-away
[ "$(nbdsh -u "$uri" -c 'print(h.pread(11, 0).decode())')" = thrown-away ] ||
        fail "a scratch write is not read back"
stop_server
[ "$(content base.vhd)" = "$before" ] || fail "--scratch changed the image"
expect 2 "$vhdctl" serve --scratch --read-only base.vhd

# Locks: what is served for writing nobody else writes; readers of headers may.
serve child.avhd
expect 3 "$vhdctl" serve child.avhd
said child.avhd
expect 0 "$vhdctl" info child.avhd
expect 3 "$vhdctl" convert disk.raw child.avhd --force --type dynamic
stop_server

# Several images: by base name; "" is refused. Two of one name cannot be told apart.
"$vhdctl" convert --quiet disk.raw other.vhd
serve child.avhd other.vhd --json
expect 0 cat "$tmp/.uri"
json '[.exports[].name]' '["child.avhd","other.vhd"]'
json '[.exports[].depth]' '[2,1]'
uri=$(jq -r '.exports[1].uris[0]' <<<"$out")
[ "$(served "$uri")" = "$sum" ] || fail "the second export reads otherwise"
expect 1 nbdinfo "${uri/other.vhd/}"
stop_server
mkdir twin
cp other.vhd twin/
expect 3 "$vhdctl" serve other.vhd twin/other.vhd
said other.vhd
expect 2 "$vhdctl" serve other.vhd child.avhd --name x
serve other.vhd --name 'a disk'
[ "$(served "$uri")" = "$sum" ] || fail "--name is not served"
[[ $uri == *a%20disk* ]] || fail "the name is not in the URI '$uri'"
stop_server

# A folder: every tip; a broken chain is named and left out.
mkdir folder
cp base.vhd folder/
(cd folder && "$vhdctl" create --quiet a.avhd --parent base.vhd &&
        "$vhdctl" create --quiet b.avhd --parent base.vhd &&
        "$vhdctl" create --quiet c.avhd --parent b.avhd &&
        cp base.vhd gone.vhd && "$vhdctl" create --quiet gone.vhd --size 16M --force &&
        "$vhdctl" create --quiet orphan.avhd --parent gone.vhd && rm gone.vhd &&
        echo 'no disk' >notes.txt)
serve folder --json
expect 0 cat "$tmp/.uri"
json '[.exports[].name] | sort' '["a.avhd","c.avhd"]'
errors=$(cat "$tmp/.serve-errors")
said orphan.avhd
stop_server
mkdir empty
expect 3 "$vhdctl" serve empty
said empty

# As Hyper-V lays it out: the parent is reached through "..", and takes one --image-root.
mkdir -p 'vm/Virtual Hard Disks' vm/Snapshots/5F0E7C0C-6C15-4E0F-9F3C-0C5A1E8E2B6A
cp base.vhd 'vm/Virtual Hard Disks/disk.vhd'
(cd vm/Snapshots/* && "$vhdctl" create --quiet disk_GUID.avhd --parent '../../Virtual Hard Disks/disk.vhd')
expect 0 "$vhdctl" info --json vm/Snapshots/*/disk_GUID.avhd
json '.parent.locators[0].text | endswith("\\..\\..\\Virtual Hard Disks\\disk.vhd")' true
expect 3 "$vhdctl" serve vm/Snapshots/*/disk_GUID.avhd
said --image-root
serve --image-root vm vm/Snapshots/*/disk_GUID.avhd
[ "$(served "$uri")" = "$sum" ] || fail "Hyper-V's layout reads otherwise"
stop_server

# A given socket: one left by a dead server is replaced, anything else is not touched.
serve --socket given.sock other.vhd
[ -S given.sock ] || fail "no socket at --socket"
expect 3 "$vhdctl" serve --socket given.sock child.avhd
said given.sock
kill -KILL "$server"
wait "$server" 2>/dev/null || true
serve --socket given.sock other.vhd
[ "$(served "$uri")" = "$sum" ] || fail "after kill -9 it reads otherwise"
stop_server
[ ! -e given.sock ] || fail "the socket is left"
echo precious >file
expect 3 "$vhdctl" serve --socket file other.vhd
[ "$(cat file)" = precious ] || fail "a file was replaced by a socket"

# TCP: only with --insecure, and only on loopback.
expect 2 "$vhdctl" serve --listen 127.0.0.1:0 other.vhd
said --insecure
expect 2 "$vhdctl" serve --listen nowhere --insecure other.vhd
expect 3 "$vhdctl" serve --listen 0.0.0.0:0 --insecure other.vhd
said loopback
serve --listen 127.0.0.1:0 --insecure other.vhd
[[ $uri == nbd://127.0.0.1:* ]] || fail "the URI is '$uri'"
[ "$(served "$uri")" = "$sum" ] || fail "over TCP it reads otherwise"
stop_server

# SIGTERM and SIGINT, with a client that writes without end: quick, 0, and what was flushed is there.
for signal in TERM INT; do
        serve other.vhd --threads 2 --cache writeback
        : >"$tmp/flushed"
        python3 - "$uri" >"$tmp/flushed" 2>/dev/null <<'PYTHON' &
import sys
import nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
n = 0
while True:
    n += 1
    handle.pwrite(b"%08d" % n, 1 << 20)
    handle.flush()
    print(n, flush=True)
PYTHON
        client=$!
        for ((i = 0; i < 1000; i++)); do
                [ "$(wc -l <"$tmp/flushed")" -lt 20 ] || break
                sleep 0.01
        done
        [ -s "$tmp/flushed" ] || fail "the client has flushed nothing after 10 s"
        began=$(date +%s)
        kill -$signal "$server"
        code=0
        wait "$server" || code=$?
        server=
        [ $code = 0 ] || fail "SIG$signal ended it with $code"
        [ $(($(date +%s) - began)) -lt 30 ] || fail "SIG$signal took more than 30 s"
        wait $client || true
        flushed=$(tail -n 1 "$tmp/flushed")
        "$vhdctl" convert --quiet other.vhd after.raw --force
        stored=$(dd if=after.raw bs=8 skip=131072 count=1 status=none)
        ((10#$stored >= flushed)) || fail "flushed $flushed, stored $stored"
done

# A damaged image is not served; with --force it is, read-only.
cp other.vhd damaged.vhd
printf '\0\377\377\377' | dd of=damaged.vhd bs=1 seek=1536 conv=notrunc status=none
expect 3 "$vhdctl" serve damaged.vhd
said damaged.vhd
serve --force damaged.vhd
[ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ] ||
        fail "a damaged image is served for writing"
stop_server

expect 3 "$vhdctl" serve absent.vhd
said absent.vhd
expect 2 "$vhdctl" serve other.vhd --threads 0
expect 2 "$vhdctl" serve other.vhd --cache none
expect 0 "$vhdctl" serve --dry-run other.vhd
said other.vhd
echo "$name: all well"
