# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# lib.sh - what the interop scripts share. Source it first: it makes $tmp (removed at the end), finds
# vhdctl, and knows how to expect an exit code.
#
#   need TOOL...                 ends with 77 if one is not installed
#   expect CODE COMMAND...       runs it; its stdout is in $out, its stderr in $errors
#   said TEXT                    the last stderr has TEXT
#   json FILTER WANTED           jq's answer about the last stdout
#   check WHAT COMMAND...        COMMAND must succeed
#   images                       $images is the folder of images by others, unpacked (else skip)
#   serve ARG...                 vhdctl serve in the background; $uri is its first URI
#   stop_server [CODE]           SIGTERM; it must end with CODE (0)
set -euo pipefail
export LC_ALL=C.UTF-8
unset VHDD_CONTROL
# Debian's own python3 before any other: python3-libnbd belongs to it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

name=$(basename "$0" .sh)
vhdctl=$VHDD_BUILD/vhdd/ctl/vhdctl
out=
errors=
uri=
server=

skip()
{
        echo "$name: skipped: $*"
        exit 77
}

fail()
{
        echo "$name: $*" >&2
        [ -z "$out" ] || printf '%s\n' "--- stdout" "$out" >&2
        [ -z "$errors" ] || printf '%s\n' "--- stderr" "$errors" >&2
        exit 1
}

need()
{
        local tool
        for tool; do
                command -v "$tool" >/dev/null || skip "$tool is not installed"
        done
}

[ -x "$vhdctl" ] || skip "no vhdctl in '$VHDD_BUILD'"
need jq

tmp=$(mktemp -d "${TMPDIR:-/tmp}/vhdd-$name.XXXXXX")
cleanup()
{
        [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
        rm -rf "$tmp"
}
trap cleanup EXIT

expect()
{
        local wanted=$1 code=0
        shift
        out=$("$@" 2>"$tmp/.errors") || code=$?
        errors=$(cat "$tmp/.errors")
        [ "$code" -eq "$wanted" ] || fail "exit code $code instead of $wanted: $*"
}

said()
{
        grep -qF -- "$1" <<<"$errors" || fail "stderr does not say '$1'"
}

printed()
{
        grep -qF -- "$1" <<<"$out" || fail "stdout does not say '$1'"
}

json()
{
        local have
        have=$(jq -c "$1" <<<"$out") || fail "stdout is no JSON"
        [ "$have" = "$2" ] || fail "$1 is $have instead of $2"
}

check()
{
        local what=$1
        shift
        "$@" >"$tmp/.check" 2>&1 || {
                cat "$tmp/.check" >&2
                fail "$what: $*"
        }
}

images()
{
        local shared=${VHDD_SHARED:-$VHDD_SOURCE/../shared} packed
        [ -d "$shared/images" ] || skip "the images by other writers are not at '$shared/images'"
        need xz
        images=$tmp/images
        mkdir "$images"
        for packed in "$shared"/images/*.xz "$shared"/images/*/*.xz; do
                local folder
                folder=$images/$(dirname "${packed#"$shared/images/"}")
                mkdir -p "$folder"
                xz -dc "$packed" >"$folder/$(basename "$packed" .xz)"
        done
        [ ! -d "$shared/images/hyperv-config" ] || cp -r "$shared/images/hyperv-config" "$images/"
        # How much of the store they take is known once they are written out.
        find "$images" -type f -exec sync {} +
}

# content FILE: sha256 of a flat file.
content()
{
        sha256sum "$1" | cut -d' ' -f1
}

# random_pieces FILE SEED COUNT: writes so many 4 KiB pieces at places that SEED decides.
random_pieces()
{
        python3 - "$@" <<'PYTHON'
import os
import random
import sys

path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
size = os.path.getsize(path)
with open(path, "r+b") as disk:
    for _ in range(count):
        disk.seek(random.randrange(size // 4096) * 4096)
        disk.write(random.randbytes(4096))
PYTHON
}

serve()
{
        local tries=0
        : >"$tmp/.uri"
        "$vhdctl" serve "$@" >"$tmp/.uri" 2>"$tmp/.serve-errors" &
        server=$!
        until [ -s "$tmp/.uri" ]; do
                tries=$((tries + 1))
                if [ "$tries" -gt 2000 ] || ! kill -0 "$server" 2>/dev/null; then
                        errors=$(cat "$tmp/.serve-errors")
                        fail "vhdctl serve does not serve: $*"
                fi
                sleep 0.01
        done
        # shellcheck disable=SC2034 # the scripts that source this use it
        uri=$(head -n 1 "$tmp/.uri")
}

stop_server()
{
        local wanted=${1:-0} code=0
        kill -TERM "$server"
        wait "$server" || code=$?
        server=
        errors=$(cat "$tmp/.serve-errors")
        [ "$code" -eq "$wanted" ] || fail "vhdctl serve ended with $code instead of $wanted"
}
