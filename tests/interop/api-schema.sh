#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A client relies on what docs/api.md promises, and the daemon answers something else; or a method is
# described that no daemon has. So each method of the schema is called on a real daemon, which holds its
# own answers against the schema and logs those that disagree. And who may not speak is told so.
source "$(dirname "$0")/lib.sh"
vhdd=$VHDD_BUILD/vhdd/vhdd
[ -x "$vhdd" ] || skip "no vhdd in '$VHDD_BUILD'"
need python3
cd "$tmp"
chmod 755 "$tmp"
state=$tmp/state
images=$tmp/images
mkdir "$images"

start_daemon()
{
        "$vhdd" --state-dir "$state" --image-root "$images" 2>>"$tmp/log" &
        server=$!
        for _ in {1..1000}; do
                if "$vhdctl" status --control "$state/control.sock" >/dev/null 2>&1; then return; fi
                kill -0 "$server" 2>/dev/null || break
                sleep 0.02
        done
        fail "vhdd does not start: $(cat "$tmp/log")"
}

# A daemon that is killed leaves its workers to the next one: it is asked first.
stop_daemon()
{
        [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
        for _ in {1..1500}; do
                kill -0 "$server" 2>/dev/null || break
                sleep 0.02
        done
        cleanup
}
trap stop_daemon EXIT

start_daemon
export VHDD_CONTROL=$state/control.sock
python3 - "$VHDD_CONTROL" "$images" <<'PYTHON' || fail "see above; the daemon's log: $(cat "$tmp/log")"
import json
import socket
import sys
import time

path, images = sys.argv[1:]


class Connection:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        self.waiting = []

    def send(self, **message):
        self.socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def read(self):
        return json.loads(self.file.readline())

    def call(self, method, **params):
        self.send(id=1, method=method, params=params)
        while True:
            message = self.read()
            if "method" not in message:
                return message
            self.waiting.append(message)


control = Connection()
called = set()


def ask(method, wanted=None, **params):
    """The result; or, with the name of an errno, the failure."""
    params = {name.replace("_", "-"): value for name, value in params.items()}
    answer = control.call(method, **params)
    called.add(method)
    if wanted:
        assert answer.get("error", {}).get("data", {}).get("code") == wanted, (method, answer)
        return answer["error"]
    assert "result" in answer, (method, answer)
    if schema and not params.get("dry-run"):
        undescribed.update(look_up(schema["methods"][method]["result"], answer["result"], method))
    return answer["result"]


def look_up(part, value, where):
    """Members of the answer that nobody described."""
    if "$ref" in part:
        part = schema["types"][part["$ref"]]
    if isinstance(value, list):
        for one in value if "items" in part else []:
            yield from look_up(part["items"], one, where)
    elif isinstance(value, dict) and "properties" in part:
        for name, inner in value.items():
            if name in part["properties"]:
                yield from look_up(part["properties"][name], inner, f"{where}.{name}")
            else:
                yield f"{where}.{name}"


schema = None
undescribed = set()
schema = ask("rpc.schema")
offered = set(ask("rpc.methods"))
missing = set(schema["methods"]) - offered
assert not missing, f"described, and this daemon has them not: {sorted(missing)}"

ask("events.subscribe")
ask("status")
settings = {"cpus": 2, "memory": {"startup": 1 << 30}, "networks": [{"switch": "lan"}]}
assert "id" not in ask("vm.create", vm="dry", dry_run=True) or ask("vm.list") == []
vm = ask("vm.create", vm="web 1", settings=settings)
ask("vm.create", "EEXIST", vm="web 1")
assert ask("vm.show", vm=vm["id"])["settings"] == settings
ask("vm.set", vm="web 1", name="web", settings={"cpus": 4})
ask("vm.show", "ENOENT", vm="web 1")
ask("disk.attach", vm="web", file=f"{images}/a.vhd", create=64 << 20, at="ide0:0")
ask("disk.attach", vm="web", file=f"{images}/b.vhd", create=32 << 20)
ask("disk.attach", "EEXIST", vm="web", file=f"{images}/c.vhd", create=32 << 20, name="b")
assert [disk["name"] for disk in ask("disk.list", vm="web")] == ["a", "b"]
assert len(ask("disk.list")) == 2
ask("disk.show", vm="web", disk="a")
try:
    import nbd

    client = nbd.NBD()
    client.connect_uri(ask("disk.uri", vm="web", disk="a")["uri"])
    client.pwrite(b"x" * 4096, 0)
    shown = ask("disk.show", vm="web", disk="a")
    assert len(shown["client-list"]) == shown["clients"] == 1, shown
    assert ask("vm.show", vm="web")["on"]
    client.shutdown()
except ImportError:
    print("api-schema: without an NBD client: python3-libnbd is not installed")
ask("disk.resize", vm="web", disk="b", add=1 << 20, dry_run=True)
resized = ask("disk.resize", vm="web", disk="b", add=1 << 20)
assert resized["size"] == (33 << 20) and resized["size-before"] == (32 << 20), resized
ask("disk.resize", "EINVAL", vm="web", disk="b", size=16 << 20)
ask("disk.compact", vm="web", disk="a", dry_run=True)
compacted = ask("disk.compact", vm="web", disk="a")
assert compacted["kind"] == "compact" and compacted["id"] > 0, compacted
ask("disk.compact", "ENOENT", vm="web", disk="x")
ask("job.show", id=compacted["id"])
ask("disk.uri", vm="web", disk="a")
for kind in "libvirt", "qemu", "virt-v2v":
    ask("snippet", kind=kind, vm="web", disk="a")

first = ask("snapshot.take", vm="web", name="first", note="of all")
ask("snapshot.take", "EEXIST", vm="web", name="first")
ask("snapshot.take", vm="web", name="second", disks_only=True)
snapshots = ask("snapshot.list", vm="web")
assert [one["name"] for one in snapshots] == ["first", "second"]
assert [one["current"] for one in snapshots] == [False, True]
assert snapshots[1]["parent"] == first["id"] and snapshots[0]["parent"] is None
tree = ask("snapshot.tree", vm="web")
assert tree["current"] == snapshots[1]["id"]
ask("snapshot.show", vm="web", name="first")
ask("snapshot.memory", "ENOENT", vm="web", name="first", file=f"{images}/memory")
ask("snapshot.rename", vm="web", old="second", new="2nd")
ask("disk.uri", vm="web", disk="a", snapshot="2nd")
ask("snapshot.diff", vm="web", disk="a", **{"from": "first", "to": "2nd"})
ask("snapshot.diff", vm="web", disk="a")
ask("snapshot.apply", vm="web", name="first", save_current="third")
ask("snapshot.apply", vm="web", name="2nd", keep_discarded=3600)
ask("snapshot.undo", vm="web")
ask("snapshot.revert", vm="web")
ask("snapshot.delete", vm="web", name="2nd", merge="deferred")
ask("snapshot.prune", vm="web", keep_last=1)
for verb, more in ("pause", {}), ("cancel", {}), ("limit", {"rate": 1 << 20}), ("resume", {}):
    ask(f"job.{verb}", "ENOENT", id=999999, **more)
try:  # a merge that waits: for a client to leave
    client = nbd.NBD()
    client.connect_uri(ask("disk.uri", vm="web", disk="a")["uri"])
    ask("snapshot.take", vm="web", name="5th")
    ask("snapshot.take", vm="web", name="6th")
    waiting = ask("snapshot.delete", vm="web", name="5th", merge="deferred")["jobs"]
    assert waiting, "nothing waits for the client to leave"
    ask("job.limit", id=waiting[0], rate=1 << 20)
    ask("job.pause", id=waiting[0])
    ask("job.resume", id=waiting[0])
    ask("job.cancel", id=waiting[0])
    ask("job.show", id=waiting[0])
    client.shutdown()
except NameError:
    pass  # as was said above
jobs = ask("job.list")
ask("job.show", "ENOENT", id=999999)
for job in jobs:
    ask("job.show", id=job["id"])
    ask("job.pause", id=job["id"], dry_run=True)
    ask("job.limit", id=job["id"], rate=0, dry_run=True)
for method in "job.pause", "job.resume", "job.cancel":
    ask(method, "ENOENT", id=999999)
ask("job.limit", "ENOENT", id=999999, rate=1 << 20)
assert "# EOF" in ask("metrics")["text"]
ask("doctor", rebuild=True, dry_run=True)
ask("doctor")
ask("disk.detach", vm="web", disk="b")

for verb in "start", "stop", "shutdown", "reset", "pause", "resume", "save":
    error = ask(f"vm.{verb}", "ENXIO", vm="web")
    assert "agent" in error["message"], error
agent = Connection()
answer = agent.call("agent.register", vm="web", name="test", on=True, verbs=["pause"], timeout=20)
assert "result" in answer, answer
assert ask("vm.show", vm="web")["on"]
control.send(id=7, method="vm.pause", params={"vm": "web"})
request = agent.read()
assert request["method"] == "agent.request" and request["params"]["verb"] == "pause", request
answer = agent.call("agent.reply", request=request["params"]["request"])
assert "result" in answer, answer
while (answer := control.read()).get("id") != 7:
    control.waiting.append(answer)
assert "result" in answer, answer
answer = agent.call("agent.state", vm="web", on=False)
assert "result" in answer, answer
assert not ask("vm.show", vm="web")["on"]
called |= {"agent.register", "agent.reply", "agent.state"}
agent.file.close()
agent.socket.close()

questions = {
    "memory.show": {}, "switch.create": {"name": "lan", "type": "private"}, "switch.list": {},
    "switch.show": {"name": "lan"}, "switch.set": {"name": "lan", "share-host": True},
    "switch.remove": {"name": "lan"}, "vm.console": {"vm": "web"}, "vm.doctor": {},
    "vm.network.attach": {"vm": "web", "network": {"switch": "lan", "mac-spoofing": True}},
    "vm.network.detach": {"vm": "web", "network": "lan"},
}
for method, params in questions.items():
    error = ask(method, "ENXIO", **params)
    assert "vmm-host" in error["message"], error
host = Connection()
assert "result" in host.call("vmm.register", timeout=20)
lan = {"name": "lan", "type": "private"}
change = {"network": {"switch": "lan"}, "now": True}
answers = {
    "memory.show": {"host": {}, "vms": []}, "switch.list": [lan], "vm.console": {"socket": "/s"},
    "vm.doctor": {"checks": [{"name": "qemu", "ok": True, "message": "7.2"}]}, "switch.remove": {},
    "vm.network.attach": change, "vm.network.detach": change,
}
for number, (method, params) in enumerate(questions.items()):
    control.send(id=100 + number, method=method, params=params)
    request = host.read()
    assert request["method"] == "vmm.request", request
    assert request["params"]["method"] == method, request
    wanted = {**params, "vm": vm["id"]} if "vm" in params else params
    assert request["params"]["params"] == wanted, request
    result = answers.get(method, lan)
    answer = host.call("vmm.reply", request=request["params"]["request"], result=result)
    assert "result" in answer, answer
    while (answer := control.read()).get("id") != 100 + number:
        control.waiting.append(answer)
    assert answer["result"] == result, answer
    called.add(method)
called |= {"vmm.register", "vmm.reply"}
host.file.close()
host.socket.close()


def finish(answer):
    """Waits for the job of an answer, and expects it to be done."""
    while (job := ask("job.show", id=answer["job"]["id"]))["state"] == "running":
        time.sleep(0.05)
    assert job["state"] == "done", job


finish(ask("vm.export", vm="web", directory=f"{images}/out"))
name = ask("snapshot.list", vm="web")[0]["name"]
finish(ask("snapshot.export", vm="web", name=name, directory=f"{images}/flat"))
finish(ask("vm.import", directory=f"{images}/out", copy=True, to=f"{images}/again", name="again"))
ask("vm.remove", vm="web", delete_files=True)
assert [vm["name"] for vm in ask("vm.list")] == ["again"]
ask("shutdown", dry_run=True)
ask("restart", dry_run=True)

missed = set(schema["methods"]) - called
assert not missed, f"not called by this test: {sorted(missed)}"
assert not undescribed, f"answered, and not described: {sorted(undescribed)}"
kinds = {message["params"]["type"] for message in control.waiting}
unknown = kinds - set(schema["events"])
assert not unknown, f"events that the schema does not name: {sorted(unknown)}"
assert {"vm-created", "disk-attached", "snapshot-taken"} <= kinds, kinds
print(f"api-schema: {len(called)} methods called, {len(kinds)} kinds of events seen")
PYTHON

# A stranger: told so by whoever meets him first, the socket's mode or the daemon.
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null && setpriv --reuid=65533 --regid=65533 \
        --clear-groups test -x "$vhdctl"; then
        stranger=(setpriv --reuid=65533 --regid=65533 --clear-groups)
        chmod 755 "$state"
        expect 3 "${stranger[@]}" "$vhdctl" vm list
        said 'you may not speak to the daemon'
        chmod 666 "$VHDD_CONTROL"
        expect 3 "${stranger[@]}" "$vhdctl" vm list --json
        said 'user 65533 may not speak to the daemon'
        json .code '"EACCES"'
        if group=$(getent group vhdd | cut -d: -f3) && [ -n "$group" ]; then
                expect 0 setpriv --reuid=65533 --regid=65533 --groups="$group" "$vhdctl" vm list
        fi
fi

expect 0 timeout 60 "$vhdctl" shutdown
wait "$server" || fail "vhdd ended with $?"
server=
if grep -F 'disagrees with the schema' "$tmp/log" >&2; then
        fail 'answers that disagree with the schema'
fi
