#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# blockdev - a block device as a guest's disk, on loop devices of our own.
#
# What could go wrong: two kernels write to one file system (the host mounted it, or mounts it
# later), the host's nodes of its partitions show what the guest has long overwritten, they never
# come back, or a disk beyond VHD's 2040 GiB is cut. Needs root and loop devices; else skipped.
set -euo pipefail
export LC_ALL=C

vhdctl=${VHDD_BUILD:?}/vhdd/ctl/vhdctl
tmp=
server=
loops=()
mounts=()

skip()
{
        echo "$*"
        exit 77
}

die()
{
        echo "blockdev: $*" >&2
        exit 1
}

# shellcheck disable=SC2317 # called by the trap
cleanup()
{
        local loop mount

        set +e
        [ -z "$server" ] || { kill -KILL "$server" && wait "$server"; } 2>/dev/null
        for mount in "${mounts[@]}"; do umount "$mount" 2>/dev/null; done
        for loop in "${loops[@]}"; do
                partx -d "$loop" 2>/dev/null
                losetup -d "$loop" 2>/dev/null
        done
        [ -z "$tmp" ] || rm -rf "$tmp"
}

# attach FILE: sets $loop to a loop device on it.
attach()
{
        loop=$(losetup -f --show "$1")
        loops+=("$loop")
}

# detach: gives $loop back.
detach()
{
        losetup -d "$loop"
}

# serve ARG...: starts vhdctl serve on $socket; its words are in $tmp/log.
serve()
{
        local tries=0

        rm -f "$socket"
        "$vhdctl" serve --socket "$socket" "$@" >"$tmp/log" 2>&1 &
        server=$!
        until [ -S "$socket" ]; do
                tries=$((tries + 1))
                if [ "$tries" -gt 1000 ] || ! kill -0 "$server" 2>/dev/null; then
                        cat "$tmp/log" >&2
                        die "cannot serve $*"
                fi
                sleep 0.01
        done
}

# stop: ends the server as a user does; it must end with 0.
stop()
{
        local status=0

        kill -TERM "$server"
        wait "$server" || status=$?
        server=
        [ "$status" -eq 0 ] || { cat "$tmp/log" >&2 && die "the server ended with $status"; }
}

# crash: ends the server as a crash does.
crash()
{
        kill -KILL "$server"
        wait "$server" 2>/dev/null || true
        server=
}

# refused WORDS ARG...: vhdctl serve ARG... must end with 3 and a sentence with WORDS in it.
refused()
{
        local words=$1 status=0
        shift

        rm -f "$socket"
        timeout 30 "$vhdctl" serve --socket "$socket" "$@" >"$tmp/log" 2>&1 || status=$?
        [ "$status" -eq 3 ] || { cat "$tmp/log" >&2 && die "serve $* ended with $status, not 3"; }
        grep -qF -- "$words" "$tmp/log" ||
                { cat "$tmp/log" >&2 && die "serve $*: no word of '$words'"; }
}

# io [-r] COMMAND...: qemu-io commands on the export; each must succeed. -r: it is read-only.
io()
{
        local command
        local -a args=()

        for command; do
                case $command in
                -r) args+=(-r) ;;
                *) args+=(-c "$command") ;;
                esac
        done
        qemu-io -f raw "${args[@]}" "nbd+unix:///?socket=$socket" >"$tmp/io" 2>&1 ||
                { cat "$tmp/io" >&2 && die "qemu-io $*"; }
        ! grep -qiE 'fail|error|mismatch' "$tmp/io" || { cat "$tmp/io" >&2 && die "qemu-io $*"; }
}

# nodes: numbers of the partitions of $loop that the host has.
nodes()
{
        local name

        name=$(basename "$loop")
        (cd "/sys/block/$name" && find . -maxdepth 1 -name "${name}p*" | sed 's/.*p//' | sort -n |
                paste -sd ' ')
}

# expect_nodes "1 2" WHEN
expect_nodes()
{
        [ "$(nodes)" = "$1" ] || die "partitions $2: '$(nodes)' instead of '$1'"
}

huge_disk()
{
        local size=$((3 << 40)) at=$((2600 << 30)) status=0

        truncate -s "$size" "$tmp/huge"
        attach "$tmp/huge"
        serve "$loop"
        [ "$(nbdinfo --size "nbd+unix:///?socket=$socket")" = "$size" ] || die "the size is cut"
        io "write -P 0x5a $at 1M" "write -P 0xa5 $((size - 4096)) 4096" "flush" \
                "read -P 0x5a $at 1M" "read -P 0 $((at + (1 << 20))) 64k" \
                "read -P 0xa5 $((size - 4096)) 4096" "discard $((at + 4096)) 4096" \
                "write -z $((at + 8192)) 512" "read -P 0x5a $at 4096" \
                "read -P 0 $((at + 8192)) 512" "read -P 0x5a $((at + 8704)) 512"
        stop
        cmp <(dd if="$loop" bs=4096 skip=$((at / 4096)) count=1 status=none) \
                <(head -c 4096 /dev/zero | tr '\0' '\132') || die "the data is not on the device"
        ! "$vhdctl" create "$tmp/child.avhd" --parent "$loop" >"$tmp/log" 2>&1 ||
                die "a differencing disk stands on a pass-through disk"
        [ ! -e "$tmp/child.avhd" ] || die "a refused create left a file"
        detach
        rm "$tmp/huge"
}

host_uses_it()
{
        truncate -s 16M "$tmp/disk"
        mke2fs -q -F "$tmp/disk"
        attach "$tmp/disk"
        mkdir "$tmp/a folder"
        mount "$loop" "$tmp/a folder"
        mounts+=("$tmp/a folder")
        refused "is mounted at '$tmp/a folder'" "$loop"
        serve --read-only "$loop"
        io -r "read 0 64k"
        stop
        umount "$tmp/a folder"

        # The other way round: what we hold the host cannot have, nor we a second time.
        serve "$loop"
        ! mount "$loop" "$tmp/a folder" 2>/dev/null || die "mounted while it is a guest's"
        ! flock --shared --nonblock "$loop" true || die "udev would look at it"
        socket=$tmp/second.sock refused "(pid $server)" "$loop"
        stop
        flock --shared --nonblock "$loop" true || die "still locked"
        mount "$loop" "$tmp/a folder"
        umount "$tmp/a folder"
        detach
        rm "$tmp/disk"
}

partitions()
{
        truncate -s 64M "$tmp/disk"
        attach "$tmp/disk"
        printf 'label: gpt\n,8M\n,8M\n' | sfdisk -q --no-reread "$loop" >"$tmp/log" 2>&1
        if ! partx -a "$loop" 2>"$tmp/log" || [ "$(nodes)" != "1 2" ]; then
                echo "partitions: not tested, this kernel makes no nodes for them: $(cat "$tmp/log")"
                detach
                return
        fi

        serve --read-only "$loop"
        expect_nodes "1 2" "while it is only read"
        stop
        serve "$loop"
        expect_nodes "" "while it is a guest's"
        stop
        expect_nodes "1 2" "at the end"

        # A dead server owes them; the next one, or a reader, pays.
        serve "$loop"
        crash
        expect_nodes "" "after a crash"
        serve "$loop"
        io "write -P 1 40M 64k"
        expect_nodes "" "while it is a guest's again"
        stop
        expect_nodes "1 2" "after a crash and a clean end"
        serve "$loop"
        crash
        "$vhdctl" map --format raw "$loop" >/dev/null
        expect_nodes "1 2" "after a crash and a look"

        # The guest partitions its disk anew: the host must see that, and not what was.
        serve "$loop"
        truncate -s 64M "$tmp/table"
        printf 'label: gpt\n,4M\n,4M\n,4M\n' | sfdisk -q "$tmp/table" >/dev/null 2>&1
        nbdcopy "$tmp/table" "nbd+unix:///?socket=$socket"
        stop
        expect_nodes "1 2 3" "after the guest has partitioned the disk"
        [ "$(cat "/sys/block/$(basename "$loop")/$(basename "$loop")p1/size")" -eq 8192 ] ||
                die "partition 1 has its old size"

        # A table that makes no sense (overlapping, beyond the end) is the guest's own affair.
        cp "$tmp/table" "$tmp/saved"
        serve "$loop"
        python3 - "$tmp/table" <<'PYTHON'
import struct
import sys

def entry(start, size):
    return struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, size)

with open(sys.argv[1], "wb") as f:
    f.truncate(64 << 20)
    f.seek(446)
    f.write(entry(2048, 4096) + entry(3000, 4096) + entry(1 << 31, 8) + entry(8192, 1 << 31))
    f.write(b"\x55\xaa")
PYTHON
        nbdcopy "$tmp/table" "nbd+unix:///?socket=$socket"
        stop
        expect_nodes "1" "after a table that makes no sense"
        serve "$loop"
        nbdcopy "$tmp/saved" "nbd+unix:///?socket=$socket"
        stop
        expect_nodes "1 2 3" "after a good table again"

        # A partition in use holds the whole disk, and one partition can be a disk.
        mke2fs -q -F "${loop}p2"
        mount "${loop}p2" "$tmp/a folder"
        refused "p2 is mounted at" "$loop"
        serve "${loop}p1"
        [ "$(nbdinfo --size "nbd+unix:///?socket=$socket")" -eq $((4 << 20)) ] ||
                die "a partition has another size"
        stop
        umount "$tmp/a folder"
        expect_nodes "1 2 3" "at the very end"
        partx -d "$loop"
        detach
        rm "$tmp/disk" "$tmp/table" "$tmp/saved"
}

# After a reboot /dev/sdb may be another disk; a link as those in /dev/disk/by-id finds it again.
by_name()
{
        local first

        truncate -s 4M "$tmp/disk"
        attach "$tmp/disk"
        first=$loop
        ln -s "$loop" "$tmp/wwn-0x1"
        serve "$tmp/wwn-0x1"
        io "write -P 7 1M 4k"
        stop
        truncate -s 4M "$tmp/other"
        detach
        attach "$tmp/other" # most likely the number that just became free
        attach "$tmp/disk"
        ln -sfn "$loop" "$tmp/wwn-0x1"
        serve "$tmp/wwn-0x1"
        io "read -P 7 1M 4k"
        stop
        detach
        loop=${loops[-2]}
        [ "$loop" = "$first" ] || echo "by name: the number was not given again"
        detach
        rm "$tmp/disk" "$tmp/other"
}

# XenServer keeps VHDs on logical volumes. What a guest wrote to its disk must not make it one.
vhd_on_device()
{
        "$vhdctl" create "$tmp/v.vhd" --size 8M --type fixed
        rm -f "$socket"
        serve "$tmp/v.vhd"
        io "write -P 9 2M 64k"
        stop
        attach "$tmp/v.vhd"
        refused "--format" "$loop"
        serve --format vhd --read-only "$loop"
        [ "$(nbdinfo --size "nbd+unix:///?socket=$socket")" -eq $((8 << 20)) ] ||
                die "the footer belongs to the disk"
        io -r "read -P 9 2M 64k"
        stop
        serve --format raw "$loop"
        [ "$(nbdinfo --size "nbd+unix:///?socket=$socket")" -eq $(((8 << 20) + 512)) ] ||
                die "a raw device has another size than it has"
        stop
        detach
        rm "$tmp/v.vhd"
}

[ "$(id -u)" -eq 0 ] || skip "needs root, for loop devices"
for program in losetup partx sfdisk mke2fs flock qemu-io nbdinfo nbdcopy python3; do
        command -v "$program" >/dev/null || skip "$program is not installed"
done
trap cleanup EXIT
tmp=$(mktemp -d "${TMPDIR:-/tmp}/vhdd-blockdev.XXXXXX")
socket=$tmp/nbd.sock
truncate -s 1M "$tmp/probe"
if ! probe=$(losetup -f --show "$tmp/probe" 2>&1); then
        skip "this machine gives out no loop devices: $probe"
fi
losetup -d "$probe"

huge_disk
host_uses_it
partitions
by_name
vhd_on_device
