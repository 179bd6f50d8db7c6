#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Somebody follows docs/coming-from.md and a line of it does not work. So each command in the right
# column is run, in the order of the page, in a folder as the page describes it: every line in a fresh
# copy, except that a server stays up, in its folder, for the lines after it that speak to it. Lines of
# the daemon's have a daemon, new for each, on the copy.
set -euo pipefail

page=$VHDD_SOURCE/docs/coming-from.md
vhdctl=$VHDD_BUILD/vhdd/ctl/vhdctl
vhdd=$VHDD_BUILD/vhdd/vhdd
plugin=$(find "$VHDD_BUILD/nbd" -name nbdkit-vhd-plugin.so 2>/dev/null || true)

skip()
{
        echo "skipped: $*"
        exit 77
}

[ -x "$vhdctl" ] || skip "no vhdctl in '$VHDD_BUILD'"
[ -x "$vhdd" ] || skip "no vhdd in '$VHDD_BUILD'"
for tool in nbdinfo nbdcopy nbdkit qemu-img python3; do
        command -v "$tool" >/dev/null || skip "$tool is not installed"
done

tmp=$(mktemp -d)
server=
stop_server()
{
        local status=0
        [ -n "$server" ] || return 0
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || status=$?
        server=
        return "$status"
}
trap 'stop_server || true; rm -rf "$tmp"' EXIT

# The programs under their own names, wherever they were built.
mkdir "$tmp/bin"
ln -s "$vhdctl" "$tmp/bin/vhdctl"
if [ -f "$plugin" ]; then
        # "nbdkit vhd" finds only installed plugins: put the path in its place.
        {
                echo '#!/bin/bash'
                echo "real=$(command -v nbdkit)"
                echo 'args=()'
                echo "for arg; do [ \"\$arg\" != vhd ] || arg=$plugin; args+=(\"\$arg\"); done"
                # shellcheck disable=SC2016
                echo 'exec "$real" "${args[@]}"'
        } >"$tmp/bin/nbdkit"
        chmod +x "$tmp/bin/nbdkit"
fi
export PATH=$tmp/bin:$PATH

# What the page's first paragraph promises.
make_folder()
{
        mkdir -p vhds moved away "vm/Virtual Hard Disks" vm/Snapshots/GUID
        truncate -s 8M disk.raw
        python3 -c '
import random
random.seed(1)
with open("disk.raw", "r+b") as disk:
    for _ in range(40):
        disk.seek(random.randrange(2048) * 4096)
        disk.write(random.randbytes(4096))'
        vhdctl convert --quiet disk.raw disk.vhd
        vhdctl convert --quiet disk.raw base.vhd
        vhdctl create --quiet child.avhd --parent base.vhd
        cp base.vhd vhds/
        (cd vhds && vhdctl create --quiet child.avhd --parent base.vhd)
        cp base.vhd away/
        (cd away && vhdctl create --quiet child.avhd --parent base.vhd)
        mv away/child.avhd moved/
        rm -r away
        cp disk.vhd "vm/Virtual Hard Disks/"
        (cd vm/Snapshots/GUID && vhdctl create --quiet disk_GUID.avhd \
                --parent '../../Virtual Hard Disks/disk.vhd')
}
mkdir "$tmp/origin"
(cd "$tmp/origin" && make_folder)

# wait_for_server: until it has said where it listens, or has ended.
wait_for_server()
{
        local tries
        for ((tries = 0; tries < 1000; tries++)); do
                if grep -q '^nbd' "$tmp/server.log" 2>/dev/null; then return 0; fi
                kill -0 "$server" 2>/dev/null || return 1
                sleep 0.01
        done
        return 1
}

# start_daemon: with the vm that the page's first paragraph promises.
start_daemon()
{
        local tries

        export VHDD_CONTROL=$tmp/work/.state/control.sock
        mkdir -m 700 .state
        # In the work folder as everything else, out of sight of those who count its files.
        "$vhdd" --state-dir .state --nbd-socket .state/nbd.sock >"$tmp/server.log" 2>&1 </dev/null &
        server=$!
        for ((tries = 0; tries < 1000; tries++)); do
                if vhdctl status >/dev/null 2>&1; then break; fi
                kill -0 "$server" 2>/dev/null || return 1
                sleep 0.01
        done
        {
                vhdctl vm create web
                vhdctl disk attach web web.vhd --create 8M --name disk
                vhdctl snapshot take web 'clean install'
                vhdctl snapshot take web updated
        } >"$tmp/log" 2>&1
}

# is_daemons LINE: a verb that asks the daemon.
is_daemons()
{
        [[ $1 =~ vhdctl\ (vm|disk|snapshot|snippet|job|doctor|status)\  ]]
}

failed=0
run=0
bad()
{
        echo "not ok: $line"
        sed 's/^/    /' "$tmp/log"
        failed=$((failed + 1))
}

# commands: the right column, as far as it is a command.
commands()
{
        # shellcheck disable=SC2016
        sed -nE 's/^\|.* \| `([^`]+)` \|$/\1/p' "$page" | sed 's/\\|/|/g'
}

while IFS= read -r line; do
        run=$((run + 1))
        if [[ $line == *socket=nbd.sock* ]]; then
                # A client of the server that runs: stay in its folder.
                bash -c "$line" >"$tmp/log" 2>&1 </dev/null || bad
                continue
        fi
        if ! stop_server; then
                echo "not ok: the server before this line did not end well: $line"
                sed 's/^/    /' "$tmp/server.log"
                failed=$((failed + 1))
        fi
        rm -rf "$tmp/work"
        cp -a "$tmp/origin" "$tmp/work"
        cd "$tmp/work"
        if is_daemons "$line"; then
                if ! start_daemon; then
                        cat "$tmp/server.log" >>"$tmp/log"
                        bad
                        continue
                fi
                bash -c "$line" >"$tmp/log" 2>&1 </dev/null || bad
        elif [[ $line == 'vhdctl serve '* ]]; then
                # Its own log, and a new one: an old one says that a server listens.
                rm -f "$tmp/server.log"
                bash -c "exec $line" >"$tmp/server.log" 2>&1 </dev/null &
                server=$!
                wait_for_server || { cp "$tmp/server.log" "$tmp/log" && bad; }
        else
                bash -c "$line" >"$tmp/log" 2>&1 </dev/null || bad
        fi
done < <(commands)
stop_server || failed=$((failed + 1))

[ "$run" -ge 50 ] || { echo "only $run lines were found in the page" && exit 1; }
echo "summary: $run lines of docs/coming-from.md run, $failed failed"
[ "$failed" -eq 0 ]
