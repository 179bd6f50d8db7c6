#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The first thing that anybody tries is ./scripts/run, and then the README's first minute. What run makes
# must be served, hold the files of all three layers, take a write, end with 0 on SIGTERM, and leave
# nothing behind; and each line of the README's first minute must do what stands there.
set -euo pipefail

skip()
{
        echo "skipped: $*"
        exit 77
}

[ -x "$VHDD_BUILD/vhdd/ctl/vhdctl" ] || skip "no vhdctl in '$VHDD_BUILD'"
[ -x "$VHDD_BUILD/vhdd/vhdd" ] || skip "no vhdd in '$VHDD_BUILD'"
for tool in nbdcopy nbdinfo nbdsh debugfs mke2fs jq; do
        command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
                skip "$tool is not installed"
done
# Debian's own python3 before any other: nbdsh and libnbd's module belong to it.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
# A test installs nothing, and run would.
mapfile -t packages < <("$VHDD_SOURCE/scripts/setup" --demo --list)
dpkg-query -W "${packages[@]}" >/dev/null 2>&1 || skip "some of ${packages[*]} are not installed"

tmp=$(mktemp -d)
server=
end()
{
        [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
        rm -rf "$tmp"
}
trap end EXIT
mkdir "$tmp/run"

TMPDIR=$tmp/run "$VHDD_SOURCE/scripts/run" >"$tmp/log" 2>&1 &
server=$!
tries=0
until grep -q '^  qemu-system' "$tmp/log"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then
                cat "$tmp/log"
                echo "not ok: run did not come to the lines to try"
                exit 1
        fi
        sleep 0.1
done
uri=$(sed -nE "s/^  nbdinfo '(.*)'$/\1/p" "$tmp/log")
[ "$(nbdinfo --size "$uri")" -eq 67108864 ]
nbdcopy "$uri" "$tmp/disk.raw"
for layer in 'hello This file came with base.vhd.' 'monday Monday wrote this.' \
        'tuesday Tuesday wrote this.'; do
        said=$(debugfs -R "cat ${layer%% *}.txt" "$tmp/disk.raw" 2>/dev/null)
        if [ "$said" != "${layer#* }" ]; then
                echo "not ok: ${layer%% *}.txt says '$said'"
                exit 1
        fi
done

# The line that makes vhdctl speak to this daemon, as it was printed.
eval "$(grep '^  export VHDD_CONTROL=' "$tmp/log")"
PATH=$PATH:$VHDD_BUILD/vhdd/ctl
[ "$(vhdctl snapshot list demo --json | jq -c 'map([.name, .current])')" = \
        '[["base",false],["monday",true]]' ]
nbdcopy "$(vhdctl disk uri demo disk@monday)" "$tmp/monday.raw"
debugfs -R 'cat monday.txt' "$tmp/monday.raw" 2>/dev/null | grep -q 'Monday wrote this'
if debugfs -R 'cat tuesday.txt' "$tmp/monday.raw" 2>/dev/null | grep -q 'Tuesday'; then
        echo "not ok: the snapshot of Monday knows of Tuesday"
        exit 1
fi

# The README's lines, one after the other in one shell, as somebody pastes them. "# exit code N" behind
# one says how it ends; else it must succeed.
lines()
{
        sed -n '/^## The first minute/,/^## /p' "$VHDD_SOURCE/README.md" |
                sed -n '/in another terminal/,/^[^ ]*##/s/^    //p'
}
mkdir "$tmp/work"
ran=0
cd "$tmp/work"
while IFS= read -r line; do
        wanted=$(sed -nE 's/.*# exit code ([0-9]+).*/\1/p' <<<"$line")
        status=0
        eval "$line" >"$tmp/line.log" 2>&1 </dev/null || status=$?
        ran=$((ran + 1))
        if [ "$status" -ne "${wanted:-0}" ]; then
                cat "$tmp/line.log"
                echo "not ok: this line of the README ended with $status: $line"
                exit 1
        fi
        said=$(sed -nE 's/.*# (b'"'.*'"').*/\1/p' <<<"$line")
        if [ -n "$said" ] && ! grep -qF "$said" "$tmp/line.log"; then
                cat "$tmp/line.log"
                echo "not ok: this line of the README did not say $said: $line"
                exit 1
        fi
done < <(lines)
[ "$ran" -ge 8 ] || { echo "not ok: only $ran lines were found in the README" && exit 1; }
cd "$tmp"

# Writing the disk back as it is changes nothing and is taken.
nbdcopy --flush "$tmp/disk.raw" "$uri"
nbdcopy "$uri" "$tmp/again.raw"
cmp "$tmp/disk.raw" "$tmp/again.raw"

status=0
kill -TERM "$server"
wait "$server" || status=$?
server=
[ "$status" -eq 0 ] || { cat "$tmp/log" && echo "not ok: it ended with $status" && exit 1; }
if pgrep -f "$tmp/run/" >/dev/null; then
        pgrep -af "$tmp/run/"
        echo "not ok: processes are left behind"
        exit 1
fi
left=$(ls -A "$tmp/run")
[ -z "$left" ] || { echo "not ok: left behind: $left" && exit 1; }
echo "summary: the demo and $ran lines of the README's first minute"
