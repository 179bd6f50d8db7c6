#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-agent - guest services with Debian's own qemu-guest-agent: heartbeat, time, freezing, shutdown.

    vmm-agent.py [CASE...]

An ext4 file system of the guest is written to all the time. The agent is put into the guest by mkguest.sh
--agent (8 MB of downloads, once; skipped where it cannot be had). What else runs there: vmmlib.py.
Cases (all without an argument): heartbeat time freeze late orphan shutdown
Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""


import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vmmlib  # noqa: E402
from vmmlib import NAME, daemonlib, demand, guestlib, wait_until  # noqa: E402

THAW_S = 10  # a frozen guest is thawed so long after it was frozen
SLACK_S = 6  # of a supervisor that comes again, and of a busy machine
FILE_SYSTEM = "root"  # the disk on IDE
SUPERBLOCK, INCOMPATIBLE, NEEDS_RECOVERY = 1024, 0x60, 0x4

WRITER = """\
i=0
while :; do
    i=$((i + 1))
    head -c $((i * 7919 % 100000 + 1)) /dev/urandom > /mnt/f.$((i % 20)) || echo "write $i" >> /tmp/bad
    echo $i > /tmp/written.new && mv /tmp/written.new /tmp/written
done
"""


def prepare(vm):
    disk = vm.inside("for d in /sys/block/sd*; do [ /dev/${d##*/} = " + vmmlib.DISK + " ] || echo ${d##*/}; done")
    vm.inside(f"modprobe ext4; /bin/mke2fs -q -F -t ext4 /dev/{disk} && mount -t ext4 /dev/{disk} /mnt")
    vm.put("/tmp/writer", WRITER)
    vm.inside("setsid sh /tmp/writer > /tmp/writer.log 2>&1 &")
    vm.inside("setsid /bin/qemu-ga -m virtio-serial -p /dev/vport*p1 -t /run > /tmp/agent.log 2>&1 &")
    await_agent(vm)


def guest(vm):
    return vm.show()["machine"]["guest"]


def await_agent(vm):
    wait_until(lambda: guest(vm)["agent"],
               lambda: f"no heartbeat: {vm.show()} {vm.inside('cat /tmp/agent.log; ls /dev/vport*')}")


def written(vm):
    return int(vm.inside("cat /tmp/written"))


def await_writes(vm, timeout=guestlib.WAIT_S):
    begin = written(vm)
    wait_until(lambda: written(vm) > begin + 1, "the guest's file system stands still", timeout)
    vm.check()


def heartbeat(vm):
    """What a person sees of the guest."""
    vm.begin()
    await_agent(vm)
    wait_until(lambda: guest(vm).get("os"), "no osinfo came")
    version = vm.inside("/bin/qemu-ga --version").split()[-1]
    said = guest(vm)
    demand(said["os"] == "a guest of mkguest.sh" and said["version"] in version and said["heartbeat"] == "ok",
           f"{said}, and the agent is {version}")
    text = vm.ctl("vm", "show", NAME).out
    demand(f"a guest of mkguest.sh, agent {said['version']}, heartbeat ok" in text, text)
    checks = {c["name"]: c for c in vm.ctl("vm", "doctor", NAME, "--json").json()["checks"]}
    demand(checks["guest-agent"]["ok"], f"{checks}")


def clock(vm):
    """A guest that goes on from its memory is told what time it is."""
    vm.begin()
    vm.inside("date -s @1000000000")
    vm.ctl("snapshot", "take", NAME, "old")
    vm.ctl("snapshot", "apply", NAME, "old")
    vm.connect()
    wait_until(lambda: abs(int(vm.inside("date +%s")) - time.time()) < 10,
               lambda: f"the guest's clock stands at {vm.inside('date')}")
    await_writes(vm)
    vm.ctl("snapshot", "apply", NAME, "begin")
    vm.ctl("snapshot", "delete", NAME, "old", "--wait")


def look_at_image(vm, snapshot):
    """Whether the file system in that snapshot would have its journal replayed; and if not: it is sound."""
    path = vm.path("image")
    handle = vm.daemon.connect(f"{NAME}/{FILE_SYSTEM}@{snapshot}")
    with open(path, "wb") as f:
        f.write(daemonlib.read_all(handle))
    daemonlib.leave(handle)
    with open(path, "rb") as f:
        f.seek(SUPERBLOCK + INCOMPATIBLE)
        recovers = struct.unpack("<I", f.read(4))[0] & NEEDS_RECOVERY != 0
    if not recovers:
        checked = subprocess.run([shutil.which("e2fsck"), "-fn", path], check=False, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True)
        demand(checked.returncode == 0, f"the file system of '{snapshot}' is not sound: {checked.stdout}")
    os.unlink(path)
    return recovers


def freeze(vm):
    """What is snapshotted of a frozen file system has nothing to replay; the guest goes on at once."""
    vm.begin()
    await_agent(vm)
    await_writes(vm)
    crash = vm.daemon.query("snapshot", "take", NAME, "crash", "--disks-only")
    begin = time.monotonic()
    quiet = vm.daemon.query("snapshot", "take", NAME, "quiet", "--quiesce")
    await_writes(vm)
    took = time.monotonic() - begin
    demand(crash["consistency"] == "crash" and quiet["consistency"] == "filesystem" and not quiet["memory"],
           f"{crash} {quiet}")
    shown = vm.ctl("snapshot", "show", NAME, "quiet").out
    demand("filesystem" in shown or "file system" in shown, f"its consistency is not shown:\n{shown}")
    demand(look_at_image(vm, "crash"), "a mounted file system has nothing to replay: the test sees nothing")
    demand(not look_at_image(vm, "quiet"), "the file system of a frozen guest has a journal to replay")
    demand(took < THAW_S, f"the guest stood for {took:.1f} s")
    await_agent(vm)
    for name in ("crash", "quiet"):
        vm.ctl("snapshot", "delete", NAME, name, "--wait")
    await_writes(vm)


def freeze_alone(vm):
    """The guest is frozen, and nobody is there to thaw it: as if whoever froze it had died."""
    await_agent(vm)
    await_writes(vm)
    path = os.path.join(vm.daemon.state, "run/vmm", vm.show()["id"], "supervisor.sock")
    with socket.socket(socket.AF_UNIX) as s:  # in vmm-host's place, which comes back by itself
        s.connect(path)
        s.sendall(json.dumps({"id": 1, "do": "freeze"}).encode() + b"\n")
        begin = time.monotonic()

        def stands():
            before = written(vm)
            time.sleep(1)
            return written(vm) == before
        wait_until(stands, "the guest does not freeze")
    return begin


def await_thaw(vm, begin):
    now = written(vm)
    wait_until(lambda: written(vm) > now, "the guest stays frozen", 2 * THAW_S + SLACK_S)
    took = time.monotonic() - begin
    demand(THAW_S - 2 < took < THAW_S + SLACK_S, f"the guest was frozen for {took:.1f} s")
    await_agent(vm)
    vm.check()
    # Nothing is left of it: the next one is frozen and thawed as the first.
    quiet = vm.daemon.query("snapshot", "take", NAME, "again", "--quiesce")
    demand(quiet["consistency"] == "filesystem", f"{quiet}")
    await_writes(vm)
    vm.ctl("snapshot", "delete", NAME, "again", "--wait")


def late(vm):
    """Whoever froze it does not come back."""
    vm.begin()
    await_thaw(vm, freeze_alone(vm))


def orphan(vm):
    """The supervisor dies while the guest is frozen: the next one thaws it when its time has come."""
    vm.begin()
    begin = freeze_alone(vm)
    vm.kill("supervisor")
    await_thaw(vm, begin)


def shutdown(vm):
    """By the agent: there is nobody who would see the power button."""
    vm.begin()
    vm.inside("killall acpid")
    await_agent(vm)
    vm.ctl("vm", "shutdown", NAME)
    vm.await_state("off")
    demand(vm.end_of() == "power-off", f"a shutdown ended by {vm.end_of()}")


CASES = {"heartbeat": heartbeat, "time": clock, "freeze": freeze, "late": late, "orphan": orphan,
         "shutdown": shutdown}


if __name__ == "__main__":
    vmmlib.main("vmm-agent", CASES, __doc__, archive=guestlib.find_agent, prepare=prepare)
