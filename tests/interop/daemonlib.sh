# SPDX-License-Identifier: Apache-2.0
# Sourced after lib.sh by tests that have a daemon of their own, in $state; $VHDD_CONTROL leads to it.
#
#   start_daemon [PRELOAD]       its pid is $server, its log $tmp/daemon.log
#   stop_daemon                  by SIGTERM, and well
#   end_daemon, cleanup_daemon   for a test's own trap; without one the second is the trap
#   tree_of VM, healthy          the snapshots in a line; doctor finds nothing
# shellcheck disable=SC2034,SC2154 # tmp and server are lib.sh's

vhdd=$VHDD_BUILD/vhdd/vhdd
[ -x "$vhdd" ] || skip "no vhdd in '$VHDD_BUILD'"
state=$tmp/state
export VHDD_CONTROL=$state/control.sock
mkdir "$state"

start_daemon()
{
        local tries=0
        LD_PRELOAD=${1:-} "$vhdd" --state-dir "$state" --image-root "$tmp" >>"$tmp/daemon.log" 2>&1 &
        server=$!
        until "$vhdctl" status >/dev/null 2>&1; do
                tries=$((tries + 1))
                if [ "$tries" -gt 600 ] || ! kill -0 "$server" 2>/dev/null; then
                        cat "$tmp/daemon.log" >&2
                        fail "the daemon does not answer"
                fi
                sleep 0.05
        done
}

stop_daemon()
{
        local code=0
        kill -TERM "$server"
        wait "$server" || code=$?
        server=
        [ "$code" -eq 0 ] || fail "the daemon ended with $code"
}

# The workers go on after their daemon's kill; this test ends those that it started, by their pids.
end_daemon()
{
        local file pid
        [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
        [ -z "$server" ] || wait "$server" 2>/dev/null || true
        for file in "$state"/run/*.pid; do
                [ -e "$file" ] || continue
                read -r pid _ <"$file" || continue
                kill -KILL "$pid" 2>/dev/null || true
        done
        server=
}

cleanup_daemon()
{
        end_daemon
        cleanup
}
trap cleanup_daemon EXIT

tree_of()
{
        "$vhdctl" snapshot list "$1" --json | jq -c 'map({name, current}) | sort_by(.name)'
}

healthy()
{
        expect 0 "$vhdctl" doctor --json
        json '[.findings[] | select(.id != "low-space")]' '[]'
}
