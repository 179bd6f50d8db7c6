#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Units that systemd does not accept are noticed by nobody until the next boot. systemd's own tools
# read what we install: the units, the users, the folders, and how much the service could do.
set -euo pipefail

skip()
{
        echo "skipped: $*"
        exit 77
}

dist=$VHDD_SOURCE/dist/systemd
command -v systemd-analyze >/dev/null || skip "systemd-analyze is not installed"
[ -f "$VHDD_BUILD/dist/vhdd.service" ] || skip "no dist/vhdd.service in '$VHDD_BUILD'"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# The programs are not installed yet: any program will do in their place.
sed -E 's,=/[^ ]*/(vhdd|vhdctl) ,=/bin/true ,' "$VHDD_BUILD/dist/vhdd.service" >"$tmp/vhdd.service"
[ "$(grep -c '^Exec.*=/bin/true ' "$tmp/vhdd.service")" -eq 3 ]
sed -E 's,=/[^ ]*/vmm-host ,=/bin/true ,' "$VHDD_BUILD/dist/vhdd-vmm.service" >"$tmp/vhdd-vmm.service"
grep -q '^ExecStart=/bin/true --control' "$tmp/vhdd-vmm.service"
cp "$dist"/*.socket "$tmp"
status=0
SYSTEMD_UNIT_PATH=$tmp: systemd-analyze verify --man=no "$tmp"/*.service "$tmp"/*.socket \
        >"$tmp/log" 2>&1 || status=$?
# What it says about other units of this machine is not about us.
if [ "$status" -ne 0 ] || grep -q 'vhdd' "$tmp/log"; then
        cat "$tmp/log"
        echo "not ok: systemd does not like the units"
        exit 1
fi

# 100 is a service that may do everything.
if systemd-analyze --help | grep -q -- --threshold; then
        systemd-analyze security --offline=true --threshold=50 --no-pager "$tmp/vhdd.service" \
                >"$tmp/log" 2>&1 || { cat "$tmp/log" && echo "not ok: the service may do too much" && exit 1; }
        tail -n 1 "$tmp/log"
        # It makes networks and runs code that it has just written.
        systemd-analyze security --offline=true --threshold=65 --no-pager "$tmp/vhdd-vmm.service" \
                >"$tmp/log" 2>&1 || { cat "$tmp/log" && echo "not ok: vhdd-vmm may do too much" && exit 1; }
        tail -n 1 "$tmp/log"
fi

# Both work on a root folder of their own, and change nothing here.
mkdir -p "$tmp/root/etc"
systemd-sysusers --root="$tmp/root" "$dist/vhdd.sysusers"
grep -q '^vhdd:' "$tmp/root/etc/group"
grep -q '^vhdd-worker:' "$tmp/root/etc/passwd"
[ "$(grep -c '^vhdd' "$tmp/root/etc/passwd")" -eq 1 ]
if [ "$(id -u)" -eq 0 ]; then
        systemd-tmpfiles --root="$tmp/root" --create "$dist/vhdd.tmpfiles"
        [ -d "$tmp/root/run/vhdd" ] && [ -d "$tmp/root/var/lib/vhdd" ]
fi
