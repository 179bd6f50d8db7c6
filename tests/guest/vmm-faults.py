#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-faults - QEMU, its supervisor or the daemon dies at each step of a snapshot with memory; the disk is full.

    vmm-faults.py [CASE...]

How the guest is made and what runs in it: vmmlib.py; how a step is hit: qmpbetween.py. VHDD_LONG=1 takes every
step, otherwise it is a sample.
Cases (all without an argument): killed-qemu killed-supervisor killed-daemon killed-relay killed-start killed-save
full-disk paused pause pass-through
Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""


import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vmmlib  # noqa: E402
from vmmlib import NAME, demand, set_qemu, wait_until  # noqa: E402

LONG = bool(os.environ.get("VHDD_LONG"))
BETWEEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qmpbetween.py")
BOUND_S = 30  # for a guest that stands because somebody died, until it runs again
SLOW = 64 << 20  # bytes a second: a save that can be met in the middle


class Steps:
    """QEMU behind qmpbetween.py."""

    def __init__(self, vm):
        self.vm = vm
        set_qemu(vm.folder, f"#!/bin/sh\nexec {sys.executable} {BETWEEN} {vm.folder} "
                            f"/usr/bin/qemu-system-x86_64 \"$@\"\n")

    def plan(self, **plan):
        if plan.pop("stop-worker", False):
            plan["stopped"] = self.vm.daemon.worker(NAME)
        if plan.get("kill") == "daemon":
            plan["kill"] = self.vm.daemon.broker.pid
        for name in ("steps", "done"):
            if os.path.exists(self.vm.path(name)):
                os.unlink(self.vm.path(name))
        with open(self.vm.path("plan.new"), "w", encoding="ascii") as f:
            json.dump(plan, f)
        os.rename(self.vm.path("plan.new"), self.vm.path("plan"))

    def seen(self):
        with open(self.vm.path("steps"), encoding="ascii") as f:
            return f.read().split()

    def is_done(self):
        return os.path.exists(self.vm.path("done"))


def files_of(vm):
    """What lies in the vm's folders. Which of two images a merge leaves is its own business, so a disk's have
    one name here."""
    found = []
    for path, folders, files in os.walk(vm.folder):
        if path.startswith(vm.daemon.state):
            folders.clear()
            continue
        found += [os.path.join(path, re.sub("_.*avhd", "_*.avhd", f)) for f in files
                  if f.endswith((".avhd", ".vhd")) or "Snapshots" in path]
        found += [os.path.join(path, f) for f in folders if "Snapshots" in path]
    return sorted(found)


def depths(vm):
    return [vm.daemon.show("disk", NAME, disk)["depth"] for disk in ("root", "data")]


def names(vm):
    return [s["name"] for s in vm.daemon.query("snapshot", "list", NAME)]


def healthy(vm):
    found = [f for f in vm.daemon.try_ctl("doctor", "--json").json()["findings"]
             if f["id"] not in ("low-space", "long-chain")]
    demand(not found, f"the doctor finds: {found}")


class Before:
    """How it is before a snapshot that may not come to be."""

    def __init__(self, vm):
        self.vm, self.files, self.depths, self.names = vm, files_of(vm), depths(vm), names(vm)

    def is_so_again(self, what):
        vm = self.vm
        wait_until(lambda: depths(vm) == self.depths, lambda: f"{what}: the disks are {depths(vm)} deep, "
                   f"not {self.depths}\n{vm.daemon.tail()}")
        demand(names(vm) == self.names, f"{what}: {names(vm)}")
        wait_until(lambda: files_of(vm) == self.files, lambda: f"{what}: left over: "
                   f"{files_of(vm)}, not {self.files}\n{vm.daemon.tail()}")


def whole_or_undone(vm, what, answer, before):
    """True: it is there, and whole."""
    if answer.status == 0:
        demand(vm.daemon.query("snapshot", "show", NAME, "s")["memory"], f"{what}: without memory")
        return True
    demand(answer.is_one_sentence(), f"{what}: more than a sentence: {answer.err}")
    demand(answer.status == 3 and "s" in answer.err, f"{what}: {answer}")
    before.is_so_again(what)
    print(f"  {what}: {answer.err.strip()}", flush=True)
    return False


def take(vm):
    return vm.daemon.finish(vm.daemon.popen("snapshot", "take", NAME, "s"))


def start_from(vm, snapshot):
    if vm.show()["on"]:
        vm.ctl("vm", "stop", NAME)
    vm.ctl("snapshot", "apply", NAME, snapshot)
    vm.ctl("vm", "start", NAME)
    vm.ctl("vm", "console", NAME, "--json")  # at once: whoever has started it knows that it is on
    vm.connect()
    vm.await_progress()


# The steps in the order in which an undisturbed snapshot takes them; SAMPLE is what is tried without VHDD_LONG.
TAKE = ("stop>", "STOP!", "stop<", "migrate-set-capabilities>", "migrate-set-capabilities<", "migrate-set-parameters>",
        "migrate-set-parameters<", "getfd>", "getfd<", "migrate>", "setup!", "migrate<", "active!", "RESUME!",
        "completed!", "migrate-set-capabilities>2", "migrate-set-capabilities<2")
SWITCH = "the switch of the disks"
AFTER_MS = (50, 300, 1000)  # behind `migrate<', where nothing tells how far it is
SAMPLE = {
    "qemu": ("stop<", SWITCH, "migrate<", "300 ms into the save", "migrate-set-capabilities>2"),
    "supervisor": ("stop<", SWITCH, "setup!", "300 ms into the save"),
    "daemon": ("stop<", "300 ms into the save"),
}


def plans(who):
    """[(at what step, the plan)]"""
    found = [(name, {"at": name}) for name in TAKE]
    found += [(SWITCH, {"at": "stop<", "after-ms": 100, "stop-worker": True})]
    found += [(f"{ms} ms into the save", {"at": "migrate<", "after-ms": ms}) for ms in AFTER_MS]
    return [(f"{who} at {name}", dict(plan, kill=who, bandwidth=SLOW)) for name, plan in found
            if LONG or name in SAMPLE[who]]


def steps_of_one(vm, steps):
    """What the steps are called is so: of a snapshot that nobody disturbs."""
    start_from(vm, "begin")
    steps.plan(bandwidth=SLOW)
    vm.ctl("snapshot", "take", NAME, "s")
    vm.ctl("snapshot", "delete", NAME, "s", "--wait")
    demand(set(steps.seen()) == set(TAKE), f"a snapshot's steps are {steps.seen()}")


def killed_qemu(vm):
    """The vm is off; what it had before is there, and it starts from it."""
    steps = Steps(vm)
    steps_of_one(vm, steps)
    for what, plan in plans("qemu"):
        before = Before(vm)
        steps.plan(**plan)
        answer = take(vm)
        wait_until(steps.is_done, f"{what}: was not reached")
        vm.await_state("off")
        demand(vm.end_of() == "crash" and not vm.show()["on"], f"{what}: {vm.show()}")
        is_there = whole_or_undone(vm, what, answer, before)
        healthy(vm)
        start_from(vm, "s" if is_there else "begin")
        if is_there:
            vm.ctl("snapshot", "delete", NAME, "s", "--wait")


def goes_on(vm, what, qemu):
    wait_until(lambda: vm.show()["agent"] and vm.state() == "running",
               lambda: f"{what}: the vm is '{vm.state()}'\n{vm.daemon.tail()}", BOUND_S)
    demand(vm.process("qemu") == qemu, f"{what}: QEMU died as well")
    vm.await_progress(timeout=BOUND_S)


def killed_others(vm, who):
    steps = Steps(vm)
    steps_of_one(vm, steps)
    qemu = vm.process("qemu")
    for what, plan in plans(who):
        before = Before(vm)
        steps.plan(**plan)
        answer = take(vm)
        wait_until(steps.is_done, f"{what}: was not reached")
        if who == "daemon":
            vm.daemon.broker.wait()
            vm.daemon.start()
        goes_on(vm, what, qemu)
        if whole_or_undone(vm, what, answer, before):
            vm.ctl("snapshot", "delete", NAME, "s", "--wait")
        healthy(vm)
        # What was being saved for nobody is in nobody's way.
        vm.ctl("snapshot", "take", NAME, "s")
        vm.ctl("snapshot", "delete", NAME, "s", "--wait")
        goes_on(vm, what, qemu)


def killed_supervisor(vm):
    """The guest does not see it, and goes on if it stood still."""
    killed_others(vm, "supervisor")


def killed_daemon(vm):
    """Likewise; the next daemon undoes what was not whole."""
    killed_others(vm, "daemon")


def killed_relay(vm):
    """Who writes the memory for QEMU dies: no snapshot, and no harm."""
    steps = Steps(vm)
    start_from(vm, "begin")
    qemu, before = vm.process("qemu"), Before(vm)
    steps.plan(bandwidth=SLOW)
    call = vm.daemon.popen("snapshot", "take", NAME, "s")
    os.kill(wait_until(lambda: vm.process("relay"), "nobody writes the memory"), signal.SIGKILL)
    answer = vm.daemon.finish(call)
    demand(answer.status == 3, f"a snapshot whose memory nobody wrote: {answer}")
    whole_or_undone(vm, "killed relay", answer, before)
    goes_on(vm, "killed relay", qemu)


def killed_start(vm):
    """The supervisor dies while it starts QEMU from memory: it runs, or it is off; never something between."""
    steps = Steps(vm)
    for at in ("getfd>", "migrate-incoming<", "completed!", "cont>", "cont<") if LONG else ("completed!", "cont>"):
        start_from(vm, "begin")
        vm.ctl("vm", "stop", NAME)
        vm.ctl("snapshot", "apply", NAME, "begin")
        steps.plan(at=at, kill="supervisor")
        answer = vm.daemon.try_ctl("vm", "start", NAME)
        demand(answer.status == 3 and answer.is_one_sentence(), f"{at}: {answer}")
        wait_until(lambda: vm.show()["agent"] and vm.state() in ("off", "running"),
                   lambda at=at: f"a start that was cut off at {at}: {vm.state()}\n{vm.daemon.tail()}", BOUND_S)
        demand(vm.show()["on"] == (vm.state() == "running"), f"{at}: {vm.show()}")
        if vm.state() == "running":
            vm.connect()
            vm.await_progress()


def killed_save(vm):
    """The supervisor dies during `vm save': the guest goes on, or it is saved whole."""
    steps = Steps(vm)
    start_from(vm, "begin")
    for at in ("stop<", "migrate<", "completed!", "quit>", "quit<") if LONG else ("migrate<", "completed!", "quit>"):
        steps.plan(at=at, kill="supervisor", bandwidth=SLOW)
        answer = vm.daemon.try_ctl("vm", "save", NAME)
        demand(answer.status == 3 and answer.is_one_sentence(), f"{at}: {answer}")
        wait_until(lambda: vm.show()["agent"] and vm.state() in ("saved", "running"),
                   lambda at=at: f"a save that was cut off at {at}: {vm.state()}\n{vm.daemon.tail()}", BOUND_S)
        demand(vm.show()["on"], f"{at}: it counts as off")
        if vm.state() == "saved":
            vm.ctl("vm", "start", NAME)
            vm.connect()
        vm.await_progress(timeout=BOUND_S)


class Small:
    """A file system of so many bytes at @path, as long as it lasts."""

    def __init__(self, path, size):
        self.path, self.size = path, size

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "none", self.path],
                              stderr=subprocess.DEVNULL, check=False)
        self.is_there = done.returncode == 0
        return self

    def grow(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def __exit__(self, *_):
        if self.is_there:
            subprocess.run(["umount", "-l", self.path], check=True)


def full_disk(vm):
    """No room for the memory: undone, the guest goes on; with room again it is as before."""
    set_qemu(vm.folder)
    start_from(vm, "begin")
    with Small(vm.path("small"), 24 << 20) as small:
        if not small.is_there:
            print("full-disk: skipped: it takes a mount")
            return
        vm.ctl("vm", "set", NAME, "--snapshot-dir", small.path)
        try:
            before = Before(vm)
            answer = take(vm)
            demand(answer.status == 3 and answer.is_one_sentence(), f"{answer}")
            print(f"  {answer.err.strip()}")
            before.is_so_again("a full disk")
            demand(vm.state() == "running", f"the vm is '{vm.state()}'")
            vm.await_progress()
            healthy(vm)
            demand(os.listdir(small.path) == [], f"left over: {os.listdir(small.path)}")
            for word in (small.path, "No space left", "--snapshot-dir"):
                demand(word in answer.err, f"'{word}' is not in: {answer.err}")
            small.grow(1 << 30)
            vm.ctl("snapshot", "take", NAME, "s")
            demand(vm.daemon.query("snapshot", "show", NAME, "s")["memory"], "without memory")
            start_from(vm, "s")
            vm.ctl("snapshot", "delete", NAME, "s", "--wait")
        finally:
            vm.ctl("vm", "set", NAME, "--snapshot-dir", vm.path("Snapshots"))
    with Small(os.path.join(vm.daemon.state, "vmm"), 24 << 20) as small:
        answer = vm.ctl("vm", "save", NAME, status=3)
        print(f"  {answer.err.strip()}")
        demand(answer.is_one_sentence(), f"more than a sentence: {answer.err}")
        demand(vm.state() == "running", f"the vm is '{vm.state()}'")
        vm.await_progress()
        left = [f for _, _, files in os.walk(small.path) for f in files]
        demand(not left, f"left over: {left}")
        for word in (small.path, "No space left"):
            demand(word in answer.err, f"'{word}' is not in: {answer.err}")
        small.grow(1 << 30)
        vm.ctl("vm", "save", NAME)
        vm.ctl("vm", "start", NAME)
        vm.connect()
        vm.await_progress()


def paused(vm):
    """A guest that a person has paused stands still before and after a snapshot, and another one."""
    set_qemu(vm.folder)
    start_from(vm, "begin")
    vm.ctl("vm", "pause", NAME)
    for name in ("s", "t"):
        taken = vm.daemon.query("snapshot", "take", NAME, name)
        demand(taken["memory"] and vm.state() == "paused", f"a paused vm is '{vm.state()}' after a snapshot")
    vm.ctl("vm", "resume", NAME)
    vm.await_progress()
    start_from(vm, "t")
    for name in ("s", "t"):
        vm.ctl("snapshot", "delete", NAME, name, "--wait")


def pause(vm):
    """How long the guest stands still, as the product itself says."""
    set_qemu(vm.folder)
    start_from(vm, "begin")
    stood = []
    for n in range(10):
        stood.append(vm.daemon.query("snapshot", "take", NAME, f"p{n}")["pause-us"] / 1000)
        vm.await_progress(1)
    vm.ctl("snapshot", "delete", NAME, "p0", "--subtree", "--wait")
    vm.await_progress()
    stood.sort()
    return f"stood still {stood[0]:.0f} / {statistics.median(stood):.0f} / {stood[-1]:.0f} ms min/median/max"


class Loops:
    """Block devices over files of so many bytes."""

    def __init__(self, vm, **sizes):
        self.vm, self.sizes, self.devices = vm, sizes, {}

    def __enter__(self):
        for name, size in self.sizes.items():
            with open(self.vm.path(name), "wb") as f:
                f.truncate(size)
            done = subprocess.run(["losetup", "--find", "--show", self.vm.path(name)], check=False, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                self.devices[name] = done.stdout.strip()
        return self

    def is_used(self, name):
        """Somebody has it open: it goes with its last user."""
        subprocess.run(["losetup", "--detach", self.devices[name]], check=True)
        time.sleep(0.2)
        listed = subprocess.run(["losetup", "--list", "--noheadings", self.devices[name]], check=False, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return self.vm.path(name) in listed

    def __exit__(self, *_):
        for device in self.devices.values():
            subprocess.run(["losetup", "--detach", device], check=False, stderr=subprocess.DEVNULL)


def holds(path, text):
    with open(path, "rb") as f:
        return f.read(len(text)) == text.encode()


def pass_through(vm):
    """A device of the host's as the disk at ide0:0, and one that is hot-added: the guest's bytes are on it."""
    set_qemu(vm.folder)
    if vm.show()["on"]:
        vm.ctl("vm", "stop", NAME)
    with Loops(vm, first=20 << 20, second=24 << 20) as loops:
        if len(loops.devices) < 2:
            print("pass-through: skipped: it takes a loop device")
            return
        other = vmmlib.Vm(vm.daemon, vm.folder, "through")
        try:
            through(other, loops)
        finally:
            vm.daemon.try_ctl("vm", "stop", "through")
            vm.daemon.try_ctl("vm", "remove", "through", "--delete-files")


def through(vm, loops):
    vm.create()
    vm.ctl("disk", "attach", vm.name, loops.devices["first"], "--pass-through", "--at", "ide0:0", "--name", "first")
    vm.ctl("disk", "attach", vm.name, vm.path("beside.vhd"), "--create", "16M", "--at", "scsi0:0")
    wait_until(lambda: vm.show()["agent"], "the vm got no supervisor")
    vm.ctl("vm", "start", vm.name)
    vm.connect()

    def write(name):
        sectors = loops.sizes[name] // 512
        device = vm.inside(f"grep -lx {sectors} /sys/block/sd*/size").split("/")[3]
        vm.inside(f"printf '%-4096s' 'what {name} got' | dd of=/dev/{device} bs=4096 oflag=direct conv=fsync,notrunc")
        wait_until(lambda: holds(vm.path(name), f"what {name} got"), f"'{name}' does not hold what the guest wrote")

    write("first")
    count = vm.sd_count()
    added = vm.daemon.query("disk", "attach", vm.name, loops.devices["second"], "--pass-through", "--at", "scsi2:7",
                            "--name", "second")
    demand(added["guest"] == "taken" and vm.sd_count() == count + 1, f"hot-added: {added}")
    write("second")
    refused = vm.ctl("snapshot", "take", vm.name, "s", status=3)
    demand(refused.is_one_sentence(), f"more than a sentence: {refused.err}")
    for word in ("'first'", "pass-through", "--skip-pass-through"):
        demand(word in refused.err, f"'{word}' is not in: {refused.err}")
    demand(not vm.daemon.query("snapshot", "list", vm.name), "a refused snapshot is there")
    taken = vm.daemon.query("snapshot", "take", vm.name, "s", "--skip-pass-through")
    skipped = {disk["name"] for disk in taken["disks"] if disk["skipped"]}
    demand(skipped == {"first", "second"}, f"left out: {skipped}")
    write("first")
    vm.ctl("disk", "detach", vm.name, "second")
    wait_until(lambda: vm.sd_count() == count, "the guest keeps a disk that was detached")
    demand(not loops.is_used("second"), "somebody keeps a detached device open")
    vm.inside("dmesg | grep -i 'I/O error' && exit 1; true")


CASES = {"killed-qemu": killed_qemu, "killed-supervisor": killed_supervisor, "killed-daemon": killed_daemon,
         "killed-relay": killed_relay, "killed-start": killed_start, "killed-save": killed_save, "full-disk": full_disk,
         "paused": paused, "pause": pause, "pass-through": pass_through}


if __name__ == "__main__":
    vmmlib.main("vmm-faults", CASES, __doc__)
