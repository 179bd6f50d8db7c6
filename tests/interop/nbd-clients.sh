#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# vhdctl serve, and the NBD clients that people have: libnbd's tools and QEMU's. Each negotiates in its
# own way, and each would show it if sizes, extents, holes or zeros were not what we say.
source "$(dirname "$0")/lib.sh"
need nbdinfo nbdcopy qemu-img qemu-io
cd "$tmp"

truncate -s 48M plain.raw
random_pieces plain.raw 9 2000
"$vhdctl" convert --quiet plain.raw base.vhd
"$vhdctl" create --quiet child.vhd --parent base.vhd

# --- nbdinfo: what is offered
serve --socket "$tmp/s" child.vhd
expect 0 nbdinfo --json "$uri"
json '.protocol' '"newstyle-fixed"'
json '.structured' true
json '.exports[0]."export-size"' 50331648
json '.exports[0].contexts' '["base:allocation","vhdd:depth","qemu:allocation-depth"]'
json '.exports[0]."block_size_minimum"' 1
json '.exports[0]."block_size_maximum"' 33554432
for can in can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero; do
        json ".exports[0].$can" true
done
expect 0 nbdinfo --list --json "$uri"
json '[.exports[]."export-name"]' '["child.vhd"]'
expect 0 nbdinfo --size "nbd+unix:///child.vhd?socket=$tmp/s"
printed 50331648
expect 1 nbdinfo --size "nbd+unix:///other?socket=$tmp/s"

# --- maps: of what is there, and of who has it
qemu-io -f raw -c 'write -P 1 4M 1M' -c 'write -z 8M 1M' -c flush "$uri" >/dev/null
expect 0 nbdinfo --map --json "$uri"
json 'map(.length) | add' 50331648
json 'map(select(.type != 0 and .type != 3)) | length' 0
json 'map(select(.offset <= 4194304 and .offset + .length >= 5242880 and .type == 0)) | length' 1
expect 0 nbdinfo --map=vhdd:depth --json "$uri"
depths=$out
json 'map(.length) | add' 50331648
json 'map(select(.offset == 4194304)) | map(.type)' '[1]'
json 'map(.type) | unique | . - [0,1,2]' '[]'
expect 0 nbdinfo --map=qemu:allocation-depth --json "$uri"
[ "$(jq -c 'map([.offset, .length, .type])' <<<"$out")" = "$(jq -c 'map([.offset, .length, .type])' <<<"$depths")" ] ||
        fail "the two depths differ"

# --- nbdcopy both ways, one connection and four, and with QEMU against it
cp plain.raw model.raw
qemu-io -f raw -c 'write -P 1 4M 1M' -c 'write -z 8M 1M' model.raw >/dev/null
for connections in 1 4; do
        check "nbdcopy reads" nbdcopy --connections=$connections "$uri" got.raw
        cmp model.raw got.raw
        random_pieces model.raw $connections 500
        check "nbdcopy writes" nbdcopy --connections=$connections --flush model.raw "$uri"
        check "QEMU reads the same" qemu-img compare -f raw -F raw model.raw "$uri"
done
check "nbdcopy with small requests" nbdcopy --request-size=4096 --requests=64 "$uri" got.raw
cmp model.raw got.raw
check "nbdcopy with large requests" nbdcopy --request-size=33554432 --requests=4 --threads=2 "$uri" got.raw
cmp model.raw got.raw
check "QEMU writes" qemu-img convert -n -f raw -O raw -m 16 -W plain.raw "$uri"
check "QEMU reads" qemu-img convert -f raw -O raw "$uri" got.raw
cmp plain.raw got.raw

# --- down to one byte, at every end
qemu-io -f raw -c 'write -P 3 0 1' -c 'write -P 4 511 2' -c 'write -P 5 50331647 1' \
        -c 'write -P 6 2097151 3' -c 'write -z 4097 1' -c 'write -f -P 7 12345 67' \
        -c 'discard 70000 100000' "$uri" >/dev/null
# It ends with 1 if a pattern is not what it should be.
expect 0 qemu-io -f raw -c 'read -P 3 0 1' -c 'read -P 4 511 2' -c 'read -P 5 50331647 1' \
        -c 'read -P 6 2097151 3' -c 'read -P 0 4097 1' -c 'read -P 7 12345 67' "$uri"

# --- a second client sees what the first wrote, at once
qemu-io -f raw -c 'write -P 99 1M 64k' -c 'sleep 1000' "$uri" >/dev/null &
writer=$!
seen=no
for _ in $(seq 300); do
        if qemu-io -r -f raw -c 'read -P 99 1M 64k' "$uri" >/dev/null; then
                seen=yes
                break
        fi
        sleep 0.01
done
[ $seen = yes ] || fail "a second client does not see the write"
wait "$writer"
stop_server
expect 0 "$vhdctl" info --json child.vhd

# --- many exports in one process, and TCP
serve --listen 127.0.0.1:0 --insecure base.vhd --read-only
case $uri in nbd://127.0.0.1:*) ;; *) fail "no URI for TCP: $uri" ;; esac
check "TCP reads" nbdcopy --connections=4 "$uri" got.raw
cmp plain.raw got.raw
expect 1 qemu-io -f raw -c 'write 0 512' "$uri"
stop_server
cp base.vhd other.vhd
serve --read-only --socket "$tmp/s" base.vhd other.vhd
expect 0 nbdinfo --list --json "nbd+unix:///?socket=$tmp/s"
json '[.exports[]."export-name"] | sort' '["base.vhd","other.vhd"]'
expect 1 nbdinfo --size "nbd+unix:///?socket=$tmp/s"
for name_of in base other; do
        check "export $name_of" nbdcopy "nbd+unix:///$name_of.vhd?socket=$tmp/s" got.raw
        cmp plain.raw got.raw
done
stop_server

# --- the libnbd shell, where there is one: the flags that the tools never set
if python3 -c 'import nbd' 2>/dev/null; then
        serve --socket "$tmp/s" child.vhd
        check "libnbd's own calls" python3 - "$uri" <<'PYTHON'
import errno
import sys
import nbd

h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("vhdd:depth")
h.connect_uri(sys.argv[1])
size = h.get_size()
h.pwrite(b"\x55" * 70001, 4095)
assert h.pread(70001, 4095) == b"\x55" * 70001
assert h.pread(1, size - 1) is not None
chunks = []
h.pread_structured(1 << 20, 0, lambda data, offset, status, error: chunks.append((offset, len(data), status)),
                   flags=nbd.CMD_FLAG_DF)
assert sum(length for _, length, _ in chunks) == 1 << 20
h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
try:
    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e
h.cache(1 << 20, 0)
h.trim(1 << 20, 0, nbd.CMD_FLAG_FUA)
got = {}
h.block_status(4 << 20, 0, lambda name, offset, entries, error: got.update({name: entries}),
               flags=nbd.CMD_FLAG_REQ_ONE)
assert len(got["base:allocation"]) == 2 and len(got["vhdd:depth"]) == 2, got
h.flush()
h.set_strict_mode(0)
for bad in (lambda: h.pread(512, size), lambda: h.pwrite(b"x", size), lambda: h.zero(512, size)):
    try:
        bad()
    except nbd.Error as e:
        assert e.errnum in (errno.EINVAL, errno.ENOSPC), e
    else:
        raise AssertionError("beyond the end")
h.shutdown()
PYTHON
        stop_server
fi
