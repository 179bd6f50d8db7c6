# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# fuselib.sh - what the scripts that mount share; lib.sh comes with it. What is mounted below $tmp, and
# what loop devices stand on files there, is gone at the end.
#
#   mount_image DIR ARG...   vhdctl mount; the process that serves it is $served
#   end_mount DIR            umount, and waits until that process has ended
#   gone PID                 waits until it has ended
source "$(dirname "$0")/lib.sh"
need fusermount3
[ -w /dev/fuse ] || skip "no /dev/fuse that we may use"

vhdfuse=$VHDD_BUILD/vhdd/vhdfuse/vhdfuse
served=

release_all()
{
        local device directory
        while read -r device; do
                losetup -d "$device" 2>/dev/null || true
        done < <(losetup -n -O NAME,BACK-FILE 2>/dev/null | grep -F " $tmp/" | cut -d' ' -f1)
        while read -r directory; do
                umount "$directory" 2>/dev/null || umount -l "$directory" 2>/dev/null ||
                        fusermount3 -u -z "$directory" 2>/dev/null || true
        done < <(cut -d' ' -f2 /proc/self/mounts | grep -F "$tmp/" | tac)
}

end_all()
{
        set +e
        jobs -p | xargs -r kill -KILL 2>/dev/null
        release_all
        release_all
        [ -z "$served" ] || kill -KILL "$served" 2>/dev/null
        cleanup
}
trap end_all EXIT

gone()
{
        local tries=0
        # A zombie whose parent does not care is gone too.
        while [ -e "/proc/$1/stat" ] && ! grep -q ') Z ' "/proc/$1/stat" 2>/dev/null; do
                tries=$((tries + 1))
                [ "$tries" -lt 3000 ] || fail "process $1 does not end"
                sleep 0.01
        done
}

mount_image()
{
        mkdir -p "$1" 2>/dev/null || true # a dead mount is there already
        expect 0 "$vhdctl" mount --json "${@:2}" "$1"
        served=$(jq .pid <<<"$out")
        [ "$served" -gt 1 ] || fail "no process serves '$1'"
}

end_mount()
{
        check "unmounting $1" umount "$1"
        gone "$served"
        served=
}
