#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""disk-resize - another size for a disk whose guest runs.

What was written has to stay, what is new reads as zeros, and daemon, file and guest agree on the size:
also when the worker or the broker dies in the middle, when there is no space, and when the agent says
no. A client that reconnects, as a virtual machine does, sees no error."""

import os
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from agentlib import Agent, wait_for  # noqa: E402
from daemonlib import demand, nbd  # noqa: E402

MIB = 1 << 20
VERBS = ("start", "stop", "disk-resize")


class Guest(threading.Thread):
    """Writes and reads its own all the time, and connects again when it is cut off."""

    def __init__(self, daemon, export):
        super().__init__(daemon=True)
        self.daemon_, self.export, self.ends = daemon, export, False
        self.n, self.cuts, self.wrong = 0, 0, None
        self.handle = daemon.connect(export)
        self.start()

    def run(self):
        while not self.ends and not self.wrong:
            try:
                self.round()
            except nbd.Error as e:
                if self.handle.aio_is_ready():
                    self.wrong = f"an error of the disk: {e}"
                    return
                self.cuts += 1
                self.handle = self.daemon_.connect(self.export)

    def round(self):
        text = self.n.to_bytes(8, "little") * 64
        self.handle.pwrite(text, 4096)
        self.handle.flush()
        if self.handle.pread(512, 4096) != text:
            self.wrong = f"round {self.n} is not what it wrote"
        self.n += 1

    def goes_on(self):
        n = self.n
        wait_for(lambda: self.wrong or self.n > n + 3, "the guest stands still")
        demand(not self.wrong, f"the guest saw {self.wrong}")

    def end(self):
        self.ends = True
        self.join(30)
        demand(not self.wrong, f"the guest saw {self.wrong}")
        daemonlib.leave(self.handle)


def size(daemon, disk="disk"):
    return daemon.show("disk", "web", disk)["size"]


def file_size(daemon, path):
    answer = subprocess.run([daemon.vhdctl, "info", path, "--json"], check=True,
                            stdout=subprocess.PIPE, text=True)
    return daemonlib.json.loads(answer.stdout)["virtual-size"]


def fill(daemon, export, n):
    handle = daemon.connect(export)
    for at in range(0, n, MIB):
        handle.pwrite(at.to_bytes(8, "little") * 512, at)
    handle.flush()
    daemonlib.leave(handle)


def check(daemon, export, filled, whole):
    handle = daemon.connect(export)
    demand(handle.get_size() == whole, f"'{export}' has {handle.get_size()} bytes, not {whole}")
    for at in range(0, filled, MIB):
        text = handle.pread(4096, at)
        demand(at == 0 or text == at.to_bytes(8, "little") * 512, f"'{export}' lost what was at {at}")
    tail = min(MIB, whole - filled)
    demand(tail == 0 or handle.pread(tail, whole - tail) == bytes(tail),
           f"the new end of '{export}' is not zeros")
    daemonlib.leave(handle)


def under_a_guest(daemon, name, begin):
    """@name: a disk that was filled up to @begin bytes."""
    seen = []

    def resize(agent, request, _fd):
        handle = agent.daemon_.connect(request["export"])
        seen.append((request["disk"]["size"], handle.get_size()))
        daemonlib.leave(handle)
        return {"guest": "taken"}

    agent = Agent(daemon.control, "web", {"disk-resize": resize}, verbs=VERBS)
    agent.daemon_ = daemon
    guest = Guest(daemon, f"web/{name}")
    guest.goes_on()
    for step in (begin + 3 * MIB, begin + 64 * MIB, 3 << 30):
        got = daemon.query("disk", "resize", "web", name, str(step))
        demand(got["size"] == step and got["guest"] == "taken", f"{got}")
        demand(seen.pop() == (step, step), f"the agent saw {seen}")
        guest.goes_on()
    got = daemon.query("disk", "resize", "web", name, str(3 << 30))
    demand(got["size"] == got["size-before"] == 3 << 30, f"{got}")
    for options, sentence in (("1G", "--shrink"), ("1G --shrink", "is on"), ("9T", "2040 GiB")):
        got = daemon.try_ctl("disk", "resize", "web", name, *options.split())
        demand(got.status in (2, 3) and sentence in got.err and got.is_one_sentence(), f"{got}")
    demand(guest.cuts == 3, f"the guest was cut off {guest.cuts} times")
    # The agent says no: the disk has grown, and that is said.
    agent.behaviour["disk-resize"] = "no"
    got = daemon.try_ctl("disk", "resize", "web", name, "+1M")
    demand(got.status == 3 and "its guest does not know" in got.err, f"{got}")
    demand(size(daemon, name) == (3 << 30) + MIB, "the catalog does not know of it")
    guest.end()
    agent.gone(daemon)
    # Saved: as its memory knows it.
    agent = Agent(daemon.control, "web", {"describe": lambda *_: {"state": "saved"}},
                  verbs=VERBS + ("describe",))
    got = daemon.try_ctl("disk", "resize", "web", name, "+1M")
    demand(got.status == 3 and "is saved" in got.err and got.is_one_sentence(), f"{got}")
    demand(size(daemon, name) == (3 << 30) + MIB and agent.asked == ["describe"], f"{agent.asked}")
    agent.gone(daemon)


def refusals(daemon, folder):
    """Who would be cut off unasked, and what Hyper-V would not open."""
    client = daemon.connect("web/disk")
    got = daemon.try_ctl("disk", "resize", "web", "disk", "+1M")
    demand(got.status == 3 and "cut off" in got.err and got.is_one_sentence(), f"{got}")
    before = size(daemon)
    daemon.ctl("disk", "resize", "web", "disk", "+1M", "--dry-run", "--force")
    daemon.ctl("disk", "resize", "web", "disk", "+1M", "--force")
    demand(size(daemon) == before + MIB, "it did not grow")
    try:
        client.pread(512, 0)
        raise daemonlib.TestFailed("a client with the old size goes on")
    except nbd.Error:
        pass
    # Its tail is data: no smaller. Cut to what is not: yes.
    whole = size(daemon)
    handle = daemon.connect("web/disk")
    handle.pwrite(b"end" * 512, whole - 1536)
    daemonlib.leave(handle)
    wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
    got = daemon.try_ctl("disk", "resize", "web", "disk", str(whole - MIB), "--shrink")
    demand(got.status == 3 and "holds data behind" in got.err, f"{got}")
    handle = daemon.connect("web/disk")
    demand(handle.pread(3, whole - 1536) == b"end", "what was cut off by a refusal is lost")
    handle.zero(1536, whole - 1536)
    daemonlib.leave(handle)
    wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
    daemon.ctl("disk", "resize", "web", "disk", str(whole - MIB), "--shrink")
    demand(size(daemon) == whole - MIB, f"{size(daemon)}")
    check(daemon, "web/disk", 8 * MIB, whole - MIB)
    # With a snapshot.
    wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
    daemon.ctl("snapshot", "take", "web", "s1")
    got = daemon.try_ctl("disk", "resize", "web", "disk", "+8M")
    demand("has snapshots" in got.err and got.is_one_sentence(), f"{got}")
    daemon.ctl("disk", "resize", "web", "disk", "+8M", "--force")
    check(daemon, "web/disk", 8 * MIB, whole + 7 * MIB)
    check(daemon, "web/disk@s1", 8 * MIB, whole - MIB)
    wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
    daemon.ctl("snapshot", "revert", "web")
    demand(size(daemon) == whole - MIB, "a revert did not bring the size back")
    check(daemon, "web/disk", 8 * MIB, whole - MIB)
    raw = os.path.join(folder, "disk.raw")
    with open(raw, "wb") as f:
        f.truncate(4 * MIB)
    daemon.ctl("disk", "attach", "web", raw, "--format", "raw", "--name", "raw")
    daemon.ctl("disk", "resize", "web", "raw", "+4M")
    demand(os.path.getsize(raw) == 8 * MIB == size(daemon, "raw"), f"{os.path.getsize(raw)}")
    daemon.ctl("disk", "detach", "web", "raw")
    daemon.ctl("disk", "attach", "web", raw, "--format", "raw", "--name", "raw", "--read-only")
    got = daemon.try_ctl("disk", "resize", "web", "raw", "+4M")
    demand(got.status == 3 and "read-only" in got.err, f"{got}")


def no_space(daemon, folder):
    """A fixed disk takes its space at once: where there is none, it stays as it was."""
    mount = os.path.join(folder, "small")
    os.mkdir(mount)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "none", mount],
                      stderr=subprocess.DEVNULL).returncode:
        print("disk-resize: a full file system is not tried: it takes a mount")
        return
    try:
        path = os.path.join(mount, "fixed.vhd")
        subprocess.run([daemon.vhdctl, "create", path, "--size", "8M", "--type", "fixed", "--quiet"],
                       check=True)
        os.chmod(path, 0o666)
        daemon.ctl("disk", "attach", "web", path, "--name", "fixed")
        fill(daemon, "web/fixed", 8 * MIB)
        wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
        got = daemon.try_ctl("disk", "resize", "web", "fixed", "64M")
        demand(got.status == 3 and "space" in got.err and got.is_one_sentence(), f"{got}")
        demand(size(daemon, "fixed") == 8 * MIB, f"{size(daemon, 'fixed')}")
        check(daemon, "web/fixed", 8 * MIB, 8 * MIB)
        wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
        daemon.ctl("disk", "resize", "web", "fixed", "12M")
        check(daemon, "web/fixed", 8 * MIB, 12 * MIB)
        wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
        daemon.ctl("disk", "detach", "web", "fixed")
    finally:
        daemon.stop()
        subprocess.run(["umount", "-l", mount], check=True)
        daemon.start()


def deaths(daemon, path, long):
    """The worker, or the broker, is killed some time after the call: never an error in the guest, and
    what the catalog says is what the file has."""
    agent = Agent(daemon.control, "web", {"disk-resize": lambda *_: {}}, verbs=VERBS)
    guest = Guest(daemon, "web/mortal")
    worker_deaths = broker_deaths = 0
    for i in range(60 if long else 14):
        wanted = size(daemon, "mortal") + MIB
        worker = daemon.worker("web")
        call = daemon.begin("disk.resize", vm="web", disk="mortal", size=wanted)
        time.sleep(i % 7 * 0.004)  # anywhere in it
        if i % 2:
            os.kill(worker, signal.SIGKILL)
            worker_deaths += 1
            got = daemon.finish(call)
            demand(got.status == 0, f"the worker died, and: {got}")
            demand(size(daemon, "mortal") == wanted, f"{size(daemon, 'mortal')}, not {wanted}")
        else:
            daemon.kill_broker()
            broker_deaths += 1
            daemon.finish(call)
            daemon.start()
            agent = Agent(daemon.control, "web", {"disk-resize": lambda *_: {}}, verbs=VERBS)
        guest.goes_on()
        now = size(daemon, "mortal")
        demand(now in (wanted, wanted - MIB), f"a size of {now}")
        demand(file_size_live(daemon, path) == now, f"the catalog says {now}")
    guest.end()
    agent.leave()
    return worker_deaths, broker_deaths


def file_size_live(daemon, path):
    """Of the footer at the file's end or ahead of it: what a client is told."""
    handle = daemon.connect("web/mortal@now")
    found = handle.get_size()
    daemonlib.leave(handle)
    return found


def make(daemon, name, path):
    daemon.ctl("disk", "attach", "web", path, "--name", name, "--create", "16M")
    fill(daemon, f"web/{name}", 8 * MIB)


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        paths = {name: os.path.join(folder, name + ".vhd") for name in ("disk", "growing", "mortal")}
        for name in ("disk", "growing"):
            make(daemon, name, paths[name])
        under_a_guest(daemon, "growing", 16 * MIB)
        check(daemon, "web/growing", 0, (3 << 30) + MIB)
        wait_for(lambda: not daemon.show("vm", "web")["on"], "still on")
        refusals(daemon, folder)
        no_space(daemon, folder)
        make(daemon, "mortal", paths["mortal"])
        n = deaths(daemon, paths["mortal"], os.environ.get("VHDD_LONG"))
        last = size(daemon, "mortal")
        daemon.stop()
        for path in (paths["growing"], paths["mortal"]):
            answer = subprocess.run([daemon.vhdctl, "check", path], stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True)
            demand(answer.returncode == 0, f"'{path}' after all that: {answer.stdout}")
        demand(file_size(daemon, paths["mortal"]) == last, "the file has another size")
    print(f"disk-resize: under its guest; {n[0]} workers and {n[1]} brokers died of it")


if __name__ == "__main__":
    daemonlib.run("disk-resize", test)
