#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A verb of the daemon sends what its command line does not say, hides what the daemon answered, or ends
# with the wrong exit code. So every verb is run against a daemon whose answers are written down
# (ctl-daemon.json), and what it sent is compared.
source "$(dirname "$0")/lib.sh"
fake=$VHDD_BUILD/tests/interop/fake_daemon
[ -x "$fake" ] || skip "no fake_daemon in '$VHDD_BUILD'"
cd "$tmp"
export TZ=UTC

answers=$tmp/answers.json
cp "$VHDD_SOURCE/tests/interop/ctl-daemon.json" "$answers"

# One sentence with the command that starts one, while there is none.
expect 3 "$vhdctl" vm list --control "$tmp/control.sock"
said "no daemon listens at '$tmp/control.sock'"
said 'vhdd --state-dir'
expect 3 "$vhdctl" vm list --control "$tmp/control.sock" --json
json .code '"ENOENT"'
long=$tmp/$(printf 'x%.0s' {1..200})/control.sock
expect 3 "$vhdctl" vm list --control "$long"
said 'at most 107 bytes'

"$fake" "$tmp/control.sock" "$answers" "$tmp/requests" 2>"$tmp/log" &
server=$!
for _ in {1..1000}; do
        "$vhdctl" status --control "$tmp/control.sock" >/dev/null 2>&1 && break
        sleep 0.01
done
export VHDD_CONTROL=$tmp/control.sock

# sent METHOD PARAMS: the last request was this.
sent()
{
        local last
        last=$(tail -n 1 "$tmp/requests")
        [ "$last" = "$1 $2" ] || fail "sent '$last' instead of '$1 $2'"
}

# vms
expect 0 "$vhdctl" vm create web
sent vm.create '{"vm":"web"}'
expect 0 "$vhdctl" vm create web --memory 'startup=1G,buffer=20%,weight=50'
sent vm.create '{"settings":{"memory":{"buffer":20,"startup":1073741824,"weight":50}},"vm":"web"}'
printed 'web created'
expect 0 "$vhdctl" vm create web -n --memory startup=2G,max=8G,buffer=20%,weight=80 --cpus 4 --hyperv \
        --network lan --network 'wan:vlan=7,mac=52:54:00:12:34:56,queues=2' --display vnc --accel kvm \
        --snapshot-dir snaps --kernel k --append 'a b'
settings='{"accel":"kvm","append":"a b","cpus":4,"display":"vnc","hyperv":true,"kernel":"'$tmp'/k","memory":'
settings+='{"buffer":20,"max":8589934592,"startup":2147483648,"weight":80},"networks":[{"switch":"lan"},'
settings+='{"mac":"52:54:00:12:34:56","queues":2,"switch":"wan","vlan":7}]}'
sent vm.create '{"dry-run":true,"settings":'"$settings"',"snapshot-dir":"'"$tmp"'/snaps","vm":"web"}'
printed 'would be created'
expect 0 "$vhdctl" vm create web --memory 2G
sent vm.create '{"settings":{"memory":{"startup":2147483648}},"vm":"web"}'
expect 2 "$vhdctl" vm create web --memory 2G,8G
said "'2G,8G' is no size"
expect 2 "$vhdctl" vm create web --memory max
said 'NAME=VALUE'
expect 2 "$vhdctl" vm create web --memory colour=2
said 'startup, max, buffer, weight'
expect 2 "$vhdctl" vm create web --display crt
said 'vnc, spice, none'
expect 2 "$vhdctl" vm create web --network :vlan=1
expect 2 "$vhdctl" vm create 'a/b'
said "no '/'"
expect 2 "$vhdctl" vm create now
said 'reserved'
expect 2 "$vhdctl" vm create "$(printf 'x%.0s' {1..10000})"
said 'too long'
expect 2 "$vhdctl" vm create $'a\nb' --json
json .code '"EINVAL"'
expect 2 "$vhdctl" vm create
expect 0 "$vhdctl" vm set web --name 'web (old)' --cpus 2
sent vm.set '{"name":"web (old)","settings":{"cpus":2},"vm":"web"}'
expect 0 "$vhdctl" vm list
[ "$(wc -l <<<"$out")" = 3 ] || fail 'two vms are not two rows and their heads'
printed 'the mail vm'
printed '2026-01-31 12:00'
[ "$(sed -n 2p <<<"$out" | awk '{ print $1, $2, $3, $4, $5, $6 }')" = 'web on 2 3 monday 1' ] || fail 'columns'
expect 0 env TZ=Asia/Tokyo "$vhdctl" vm list
printed '2026-01-31 21:00'
expect 0 "$vhdctl" vm list --json
json '.[1].name' '"the mail vm"'
expect 0 "$vhdctl" vm show web
printed '2 GiB'
printed '"switch":"lan"'
sent vm.show '{"machine":true,"vm":"web"}'
printed 'running'
printed '7.2.22, tcg, process 4712'
printed 'Debian GNU/Linux 12, agent 7.2.0, heartbeat ok'
printed 'crash: QEMU was ended by signal 9'
expect 0 "$vhdctl" vm remove web --delete-files
sent vm.remove '{"delete-files":true,"vm":"web"}'
printed 'kept /srv/web/web.vhd'
expect 3 "$vhdctl" vm start web
said 'no agent is registered'
for verb in stop shutdown reset pause resume save; do
        expect 0 "$vhdctl" vm "$verb" web
        sent "vm.$verb" '{"vm":"web"}'
done
expect 0 "$vhdctl" vm doctor
sent vm.doctor '{}'
printed 'KVM runs guests'
printed 'modprobe vhost_net'
expect 0 "$vhdctl" vm doctor web --json
sent vm.doctor '{"vm":"web"}'
json '.checks[1].ok' false
# A console: what the guest says is shown, and its end ends it.
expect 3 "$vhdctl" vm console web
said 'cannot open the console'
socat UNIX-LISTEN:"$tmp/console",fork SYSTEM:'echo login of web; read line; echo got $line' &
console=$!
for _ in {1..1000}; do [ -S "$tmp/console" ] && break; sleep 0.01; done
sed -i "s|@CONSOLE@|$tmp/console|" "$answers"
expect 0 "$vhdctl" vm console web --json
json .socket "\"$tmp/console\""
mkfifo "$tmp/keys"
exec 7<>"$tmp/keys" # no end of it: the guest's end is what ends the console
echo hello >&7
out=$("$vhdctl" vm console web <"$tmp/keys")
printed 'login of web'
printed 'got hello'
exec 7>&-
kill "$console"
mkdir old
expect 2 "$vhdctl" vm import old
said '--move'
expect 2 "$vhdctl" vm import old --move --copy
expect 0 "$vhdctl" vm import ./old/../old --to new/ --only 2 --name o
sent vm.import '{"directory":"'"$tmp"'/old","name":"o","only":"2","to":"'"$tmp"'/new"}'
printed '1 disk, 2 snapshots'
printed "note: 'a/b'"
expect 0 "$vhdctl" vm export web out --config-only
sent vm.export '{"config-only":true,"directory":"'"$tmp"'/out","vm":"web"}'
printed '1 MiB'

# switches and network cards. How the caller has come is told where an uplink is taken.
unset SSH_CONNECTION
expect 0 "$vhdctl" switch create lab --type private
sent switch.create '{"name":"lab","type":"private"}'
SSH_CONNECTION='192.0.2.9 1 192.0.2.1 22' expect 0 "$vhdctl" switch create lan --type external --uplink eth1 --force -n
sent switch.create '{"connection":"192.0.2.9 1 192.0.2.1 22","dry-run":true,"force":true,"name":"lan","type":"external","uplink":"eth1"}'
printed 'would be created'
printed 'two are better'
# Behind sudo, which forgets it, the parents know.
expect 0 env SSH_CONNECTION='192.0.2.9 2 192.0.2.1 22' bash -c 'unset SSH_CONNECTION; "$@"; exit $?' - \
        "$vhdctl" switch set lan --share-host --host-vlan 20 --host-address 192.0.2.1/24 --host-address 192.0.2.2/24
sent switch.set '{"connection":"192.0.2.9 2 192.0.2.1 22","host-addresses":["192.0.2.1/24","192.0.2.2/24"],"host-vlan":20,"name":"lan","share-host":true}'
expect 0 "$vhdctl" switch set lan --no-share-host --host-address none --quiet
[ "$(tail -n 1 "$tmp/requests" | sed 's/"connection":"[^"]*",//')" = \
        'switch.set {"host-addresses":[],"name":"lan","share-host":false}' ] || fail 'not what was to be sent'
expect 2 "$vhdctl" switch create lan
said '--type private, internal or external'
expect 2 "$vhdctl" switch create lan --type bridged
expect 2 "$vhdctl" switch create lan --type private --host-vlan x
expect 0 "$vhdctl" switch list
[ "$(sed -n 2p <<<"$out" | awk '{ print $1, $2, $3, $4, $5, $6 }')" = 'lan external eth1 lan 1 kernel' ] || fail "$out"
[ "$(sed -n 3p <<<"$out" | awk '{ print $1, $2, $3, $4, $5, $6 }')" = 'lab private - - 0 user-space' ] || fail "$out"
expect 0 "$vhdctl" switch show lan
printed '192.0.2.1/24'
printed 'web   5a:00:00:00:00:01    10  dropped     vhdd01020304'
printed 'mail  5a:00:00:00:00:02     -  allowed     vhdd01020305  No such device'
expect 0 "$vhdctl" switch show lan --json
json '.ports | map(.vlan)' '[10,0]'
expect 0 "$vhdctl" switch remove lan --force
sent switch.remove '{"force":true,"name":"lan"}'
printed 'lan removed'
expect 0 "$vhdctl" vm network attach web lan:vlan=10,queues=2,mac-spoofing=on -n
sent vm.network.attach '{"dry-run":true,"network":{"mac-spoofing":true,"queues":2,"switch":"lan","vlan":10},"vm":"web"}'
printed 'would be plugged into'
expect 0 "$vhdctl" vm network detach web 5a:00:00:00:00:03
sent vm.network.detach '{"network":"5a:00:00:00:00:03","vm":"web"}'
printed "at the vm's next start"
expect 2 "$vhdctl" vm network attach web :vlan=1
expect 2 "$vhdctl" vm network attach web lan:mac-spoofing=maybe
said 'on or off'
expect 2 "$vhdctl" vm network swap web lan
expect 2 "$vhdctl" vm network attach web

# disks
expect 0 "$vhdctl" disk attach web data.vhd --at scsi0:1 --create 10G --read-only --format vhd --name data
sent disk.attach '{"at":"scsi0:1","create":10737418240,"file":"'"$tmp"'/data.vhd","format":"vhd","name":"data","read-only":true,"vm":"web"}'
printed 'nbd+unix:///web/data'
expect 0 "$vhdctl" disk attach web /dev/disk/by-id/x --pass-through --quiet
sent disk.attach '{"file":"/dev/disk/by-id/x","pass-through":true,"vm":"web"}'
[ -z "$out" ] || fail '--quiet says something'
expect 2 "$vhdctl" disk attach web data.vhd --at scsi9:1
said 'scsi3:63'
expect 2 "$vhdctl" disk attach web data.vhd --create 10GB
expect 3 "$vhdctl" disk attach web data.vhd --control "$tmp/absent.sock"
expect 0 "$vhdctl" disk detach web data --timeout 2m --force
sent disk.detach '{"disk":"data","force":true,"timeout":120,"vm":"web"}'
expect 2 "$vhdctl" disk detach web data --timeout soon
expect 0 "$vhdctl" disk compact web data
sent disk.compact '{"disk":"data","vm":"web"}'
printed 'web/data'
expect 0 "$vhdctl" disk compact web data --dry-run --wait
sent disk.compact '{"disk":"data","dry-run":true,"vm":"web"}'
expect 2 "$vhdctl" disk compact web
expect 0 "$vhdctl" disk resize web data 12G
sent disk.resize '{"disk":"data","size":12884901888,"vm":"web"}'
printed 'web/data has 12 GiB, before 10 GiB'
printed 'the guest has taken it'
expect 0 "$vhdctl" disk resize web data +1G --force --shrink --dry-run
sent disk.resize '{"add":1073741824,"disk":"data","dry-run":true,"force":true,"shrink":true,"vm":"web"}'
expect 2 "$vhdctl" disk resize web data
expect 2 "$vhdctl" disk resize web data much
expect 2 "$vhdctl" disk resize web data 0
expect 0 "$vhdctl" disk list
sent disk.list '{}'
printed '64 GiB'
printed 'failed, read-only, pass-through'
expect 0 "$vhdctl" disk list web --json
sent disk.list '{"vm":"web"}'
json 'map(.depth)' '[3,1]'
expect 0 "$vhdctl" disk show web system
printed '/srv/web/web.vhd'
printed 'monday, s2'
printed 'unix:uid=0,pid=99  web/system     3m 20s        11       0  4 KiB    1 MiB'
expect 0 "$vhdctl" disk uri web system@monday
sent disk.uri '{"disk":"system","snapshot":"monday","vm":"web"}'
[ "$out" = 'nbd+unix:///web/system@monday?socket=/s' ] || fail 'disk uri prints more than the URI'
expect 0 "$vhdctl" disk uri web system@now
expect 2 "$vhdctl" disk uri web system@
expect 0 "$vhdctl" snippet qemu web/system
sent snippet '{"disk":"system","kind":"qemu","vm":"web"}'
expect 2 "$vhdctl" snippet qemu web
expect 2 "$vhdctl" snippet bochs web/system

# snapshots
expect 0 "$vhdctl" snapshot take web monday --disks-only --skip-pass-through --note 'a b'
sent snapshot.take '{"disks-only":true,"name":"monday","note":"a b","skip-pass-through":true,"vm":"web"}'
printed '1.23 ms'
printed 'the guest stood still for 4.20 ms'
expect 0 "$vhdctl" snapshot take web quiet --quiesce
sent snapshot.take '{"name":"quiet","quiesce":true,"vm":"web"}'
expect 0 "$vhdctl" snapshot memory web monday --output monday.memory
sent snapshot.memory '{"file":"'"$tmp"'/monday.memory","name":"monday","vm":"web"}'
printed '1 GiB'
expect 2 "$vhdctl" snapshot memory web monday
said '--output'
expect 0 "$vhdctl" snapshot list web
printed 'fresh'
[ "$(sed -n 3p <<<"$out" | grep -o 'fresh  *yes')" != '' ] || fail 'parent and current are not shown'
expect 0 "$vhdctl" snapshot list web --json
json '.[1].parent == .[0].id' true
expect 0 "$vhdctl" snapshot tree web
wanted='SNAPSHOT        TAKEN                SIZE
fresh           2026-01-28 12:00    2 MiB  after setup
├─ monday       2026-01-29 12:00  1.5 KiB  with memory
│  └─ Übung     2026-01-30 12:00   1 byte
│     └─ * now  running             4 KiB  the vm is here
└─ experiment   2026-01-30 13:00    1 GiB'
# shellcheck disable=SC2001
[ "$(sed 's/ *$//' <<<"$out")" = "$wanted" ] || fail 'the tree is drawn otherwise'
expect 0 env LC_ALL=C "$vhdctl" snapshot tree web
printed '|  `- '
expect 0 "$vhdctl" snapshot show web fresh
printed 'left out: pass-through'
expect 0 "$vhdctl" snapshot rename web old new
sent snapshot.rename '{"new":"new","old":"old","vm":"web"}'
expect 0 "$vhdctl" snapshot apply web monday --save-current 'the failed update' --keep-discarded 24h --force
sent snapshot.apply '{"force":true,"keep-discarded":86400,"name":"monday","save-current":"the failed update","vm":"web"}'
printed 'detached data; its file stays: /srv/web/data.vhd'
printed '2026-02-01 12:00'
expect 3 "$vhdctl" snapshot revert web
said 'has no snapshot'
said 'vhdctl snapshot take web NAME'
expect 3 "$vhdctl" snapshot revert web --json
json .hint '"vhdctl snapshot take web NAME"'
expect 0 "$vhdctl" snapshot undo web
expect 0 "$vhdctl" snapshot delete web monday --subtree --merge deferred
sent snapshot.delete '{"merge":"deferred","name":"monday","subtree":true,"vm":"web"}'
printed '1 image: others stand on it, so it is merged'
expect 2 "$vhdctl" snapshot delete web monday --merge tomorrow
expect 2 "$vhdctl" snapshot prune web
said '--keep-last'
expect 0 "$vhdctl" snapshot prune web --keep-last 3 --keep-daily 7
sent snapshot.prune '{"keep-daily":7,"keep-last":3,"vm":"web"}'
expect 0 "$vhdctl" snapshot diff web system --from monday
sent snapshot.diff '{"disk":"system","from":"monday","vm":"web"}'
printed '1.0 MiB of 64 GiB changed, in 2 ranges'

# memory
expect 0 "$vhdctl" memory
sent memory.show '{}'
printed 'budget         2 GiB (--host-memory)'
printed 'wanted         3 GiB (more than there is: shared by weight)'
printed 'operations     9 (6 to add, 3 to remove)'
printed 'web   warning     1 GiB  1.5 GiB      150%  1.5 GiB  512 MiB  4 GiB     20%      75'
printed 'old   unknown   512 MiB        -         -  512 MiB  512 MiB  4 GiB     20%      25'
printed 'mail  off       0 bytes        -         -  0 bytes    1 GiB  1 GiB      5%      50'
printed 'old takes no more memory than it has; it is asked again in 42 s'
printed 'web has a startup memory of 640 MiB from its next start on'
expect 0 "$vhdctl" memory web
sent memory.show '{"vm":"web"}'
printed 'pressure       150%'
expect 0 "$vhdctl" memory --json
json '.vms[1].demand' null
expect 2 "$vhdctl" memory web mail

# jobs, and the daemon itself
expect 0 "$vhdctl" job list
printed 'merge web_2.avhd into web.vhd'
expect 0 "$vhdctl" job wait 7
sent job.show '{"id":7}'
expect 2 "$vhdctl" job wait seven
expect 0 "$vhdctl" status
printed '4711'
expect 0 "$vhdctl" metrics
printed 'vhdd_stall_seconds 0.0015'
expect 0 "$vhdctl" metrics --json
json '.[0]' '{"name":"vhdd_reads_total","labels":{"vm":"web","disk":"a \"b\""},"value":12}'
json 'length' 2
expect 1 "$vhdctl" doctor
printed "damage   missing-file: '/srv/web.vhd' is missing"
printed 'rm /srv/x.avhd'
expect 1 "$vhdctl" doctor --rebuild --json
sent doctor '{"rebuild":true}'
json '.findings | length' 2

# An answer of another shape than ours is shown as far as it goes, and hurts nobody.
jq '.["vm.list"] = [{"name": 7}, "x", null] | .["snapshot.tree"] = {"snapshots": [
        {"id": "a", "parent": "b", "name": "a"}, {"id": "b", "parent": "a", "name": "b"}]}' \
        "$answers" >"$tmp/new.json"
cp "$answers" "$tmp/good.json"
cp "$tmp/log" "$tmp/log-good"
mv "$tmp/new.json" "$answers"
expect 0 "$vhdctl" vm list
expect 0 timeout 10 "$vhdctl" snapshot tree web
grep -q 'vm.list disagrees with the schema' "$tmp/log" || fail 'nobody logged an answer against the schema'
mv "$tmp/good.json" "$answers"
[ ! -s "$tmp/log-good" ] || fail "the answers written down are not the schema's: $(cat "$tmp/log-good")"

# The shell completes verbs and options from the program, names from the daemon, and is silent without
# one. completes LINE: what is offered behind it, in one line.
completes()
{
        (
                compopt() { :; }
                # shellcheck disable=SC1091
                source "$VHDD_SOURCE/completions/vhdctl"
                read -r -a COMP_WORDS <<<"${1/#vhdctl/$vhdctl}"
                [[ $1 != *' ' ]] || COMP_WORDS+=('')
                COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
                _vhdctl
                echo "${COMPREPLY[*]}"
        ) 2>&1
}
offers()
{
        local have
        have=$(completes "$1")
        [ "$have" = "$2" ] || fail "behind '$1' the shell offers '$have' instead of '$2'"
}
offers 'vhdctl sn' 'snippet snapshot'
offers 'vhdctl disk ' 'attach detach compact resize list show uri'
offers 'vhdctl vm show ' 'web the\ mail\ vm'
offers 'vhdctl vm show the' 'the\ mail\ vm'
offers 'vhdctl vm show --json w' 'web'
offers 'vhdctl disk uri --control '"$tmp"'/control.sock web ' 'system data'
offers 'vhdctl snapshot apply web m' 'monday'
offers 'vhdctl snapshot apply --save-current x web ' 'fresh monday'
offers 'vhdctl snapshot diff web system --from f' 'fresh'
offers 'vhdctl snapshot delete web monday --mer' '--merge'
offers 'vhdctl snippet qemu web/d' 'web/data'
offers 'vhdctl vm create ' ''
VHDD_CONTROL=$tmp/absent.sock offers 'vhdctl vm show ' ''

# Events, filtered, as text and as JSON; terminal escapes in them do not arrive.
"$vhdctl" events web --type snapshot --json >"$tmp/events-json" 2>/dev/null &
json_watcher=$!
"$vhdctl" events >"$tmp/events" 2>/dev/null &
watcher=$!
for _ in {1..500}; do
        printf '%s\n' '{"jsonrpc":"2.0","id":1,"method":"restart"}' |
                python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.stdin.buffer.read())
s.recv(1000)' "$tmp/control.sock"
        [ ! -s "$tmp/events-json" ] || [ "$(wc -l <"$tmp/events")" -lt 2 ] || break
        sleep 0.01
done
[ "$(head -n 1 "$tmp/events-json" | jq -c '[.type, .vm, .size]')" = '["snapshot","web",7]' ] || fail 'no event'
[ "$(jq -c .type "$tmp/events-json" | sort -u)" = '"snapshot"' ] || fail 'an event that nobody asked for'
grep -q ' snapshot web name=before\\x1b\[31m size=7' "$tmp/events" || fail "events say: $(head -n 1 "$tmp/events")"
grep -q ' job$' "$tmp/events" || fail 'an event without a vm is missing'

# The end: refused dry, then real; whoever watches ends too.
expect 0 "$vhdctl" shutdown --dry-run
sent shutdown '{"dry-run":true}'
printed 'would end'
expect 0 "$vhdctl" status
expect 0 timeout 30 "$vhdctl" shutdown
wait "$server" || fail "the daemon ended with $?"
server=
wait "$watcher" && fail 'events do not notice the end'
wait "$json_watcher" && fail 'events do not notice the end'
expect 3 "$vhdctl" status
echo "$name: $(wc -l <"$tmp/requests") requests, all well"
