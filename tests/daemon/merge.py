#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""merge - what deleted snapshots leave is merged, and the disk reads as it did at every moment.

    merge.py [--long] [--only CASE] [--seed N]

Each case makes chains, deletes snapshots of them, live (under a client that writes, and reads back what
it wrote), deferred, or pushed; pauses, limits, cancels, and kills the worker or the broker in the middle.
It demands that running disks and remaining snapshots read as the model says, that the merge ends, that
files which went are gone, that `vhdctl check' finds nothing wrong with those that stay, that 7zz reads
the same out of them, and that after the last snapshot one file is left, under its first name."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand, nbd  # noqa: E402

MIB = 1 << 20
END_S = 90
PIECE = 64 << 10


class Guest:
    """A disk, its model, and a client that writes to it from a thread of its own when told to."""

    def __init__(self, daemon, vm, disk, size, chance):
        self.daemon, self.vm, self.disk, self.chance = daemon, vm, disk, chance
        self.content = bytearray(size)
        self.snapshots = {}
        self.problem = self.thread = None
        self.stop = threading.Event()
        self.writes = self.cuts = 0

    def export(self):
        return f"{self.vm}/{self.disk}"

    def write(self, handle, count=1):
        for _ in range(count):
            length = self.chance.choice([512, 4096, 4096, PIECE, PIECE, 3 * 512])
            at = self.chance.randrange((len(self.content) - length) // 512) * 512
            kind = self.chance.random()
            data = bytes(length) if kind < 0.15 else self.chance.randbytes(length)
            if kind < 0.1:
                handle.zero(length, at, self.chance.choice([0, nbd.CMD_FLAG_NO_HOLE]))
            else:
                handle.pwrite(data, at, nbd.CMD_FLAG_FUA if kind > 0.9 else 0)
            self.content[at:at + length] = data
            self.writes += 1

    def fill(self, pieces):
        """Some whole pieces, spread over the disk; so many for one of 64 MiB."""
        pieces = max(1, pieces * len(self.content) // (64 * MIB))
        handle = self.daemon.connect(self.export())
        for _ in range(pieces):
            at = self.chance.randrange(len(self.content) // PIECE) * PIECE
            data = self.chance.randbytes(PIECE)
            handle.pwrite(data, at)
            self.content[at:at + PIECE] = data
        handle.flush()
        daemonlib.leave(handle)

    def take(self, name):
        self.daemon.ctl("snapshot", "take", self.vm, name)
        self.snapshots[name] = bytes(self.content)

    # --- a client that goes on

    def start(self, may_be_cut=False):
        self.stop.clear()
        self.thread = threading.Thread(target=self._run, args=(may_be_cut,))
        self.thread.start()

    def _run(self, may_be_cut):
        try:
            handle = self.daemon.connect(self.export())
            while not self.stop.is_set():
                before = bytes(self.content)
                try:
                    self._step(handle)
                except nbd.Error as e:
                    if not may_be_cut:
                        raise
                    del e
                    self.content[:] = before
                    handle = self._again()
            daemonlib.leave(handle)
        except Exception as e:  # a thread's failure is the test's
            self.problem = e

    def _again(self):
        """What was under way is sent again, as QEMU does, until it is answered."""
        while True:
            self.cuts += 1
            handle = self.daemon.connect(self.export())
            try:
                self._redo(handle)
                return handle
            except nbd.Error:
                demand(self.cuts < 1000, f"{self.export()}: no request comes through")

    def _step(self, handle):
        length = self.chance.choice([512, 4096, PIECE])
        at = self.chance.randrange((len(self.content) - length) // 512) * 512
        self.pending = (at, self.chance.randbytes(length))
        self._redo(handle)
        at = self.chance.randrange(len(self.content) // PIECE) * PIECE
        got = handle.pread(PIECE, at)
        demand(got == self.content[at:at + PIECE], f"{self.export()} reads wrong at {at} under a merge")

    def _redo(self, handle):
        at, data = self.pending
        handle.pwrite(data, at)
        self.content[at:at + len(data)] = data
        self.writes += 1

    def end(self):
        self.stop.set()
        self.thread.join()
        if self.problem:
            raise self.problem

    # --- what it must be

    def verify(self):
        for export, content in [(self.export(), self.content)] + [
                (f"{self.export()}@{name}", data) for name, data in self.snapshots.items()]:
            handle = self.daemon.connect(export)
            got = daemonlib.read_all(handle)
            daemonlib.leave(handle)
            if got != content:
                at = next(i for i in range(0, len(got), 512) if got[i:i + 512] != content[i:i + 512])
                raise daemonlib.TestFailed(f"{export} differs from the model at sector {at // 512}")


class Case:
    def __init__(self, folder, name, chance, long):
        self.folder = os.path.join(folder, name)
        os.makedirs(self.folder)
        self.chance, self.long = chance, long
        self.daemon = daemonlib.Daemon(self.folder)
        self.daemon.start()
        self.daemon.ctl("vm", "create", "v")
        self.guests = []

    def guest(self, disk="d", size=None, create=True):
        size = size or (64 * MIB if self.long else 16 * MIB)
        self.daemon.ctl("disk", "attach", "v", self.file(disk), "--name", disk,
                        *(["--create", str(size)] if create else []))
        guest = Guest(self.daemon, "v", disk, size, random.Random(self.chance.random()))
        self.guests.append(guest)
        return guest

    def file(self, disk):
        return os.path.join(self.folder, disk + ".vhd")

    def take(self, name):
        """Of all disks, whose clients are not there or at rest."""
        self.daemon.ctl("snapshot", "take", "v", name)
        for guest in self.guests:
            guest.snapshots[name] = bytes(guest.content)

    def delete(self, name, *options):
        answer = self.daemon.ctl("snapshot", "delete", "v", name, "--json", *options).json()
        for guest in self.guests:
            for gone in answer["deleted"]:
                guest.snapshots.pop(gone, None)
        return answer

    def delete_slowly(self, guest, name, *options):
        """Answers the job, which runs by then and does not end by itself."""
        handle = self.daemon.connect(guest.export())  # a deferred merge waits
        job = str(self.delete(name, "--merge", "deferred", *options)["jobs"][0])
        self.slow(job, "1K")
        daemonlib.leave(handle)
        self.wait("it runs", lambda: self.daemon.show("job", job)["state"] == "running")
        return job

    def jobs(self):
        return self.daemon.query("job", "list", "v")

    def open_jobs(self):
        return [job for job in self.jobs() if job["state"] != "done"]

    def wait(self, what="no job is left", until=None, seconds=END_S):
        until = until or (lambda: not self.open_jobs())
        end = time.monotonic() + seconds
        while not until():
            demand(time.monotonic() < end,
                   f"{what}: not after {seconds} s: {self.jobs()}\n{self.daemon.tail()}")
            for guest in self.guests:
                if guest.problem:
                    raise guest.problem
            time.sleep(0.05)

    def images(self):
        return sorted(name for name in os.listdir(self.folder) if name.endswith("vhd"))

    def check(self, one_file_each=False):
        """Everything reads as it must, and so do the files without the daemon."""
        for guest in self.guests:
            guest.verify()
        found = [f for f in self.daemon.query("doctor")["findings"] if f["severity"] != "info"]
        found = [f for f in found if f["id"] != "low-space"]
        demand(not found, f"doctor finds {found}")
        self.daemon.stop()
        for name in self.images():
            answer = self.daemon.try_ctl("check", os.path.join(self.folder, name))
            demand(answer.status == 0, f"{answer}: {answer.out}")
        if one_file_each:
            wanted = sorted(os.path.basename(self.file(g.disk)) for g in self.guests)
            demand(self.images() == wanted, f"the files are {self.images()}, not {wanted}")
            left = [n for n in os.listdir(self.folder) if ".vhdd-" in n]
            demand(not left, f"something is left beside the images: {left}")
            for guest in self.guests:
                self.check_with_7zz(guest)
        self.daemon.start()
        for guest in self.guests:
            guest.verify()

    def check_with_7zz(self, guest):
        if not shutil.which("7zz"):
            return
        got = subprocess.run(["7zz", "x", "-tVHD", "-so", self.file(guest.disk)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        demand(got.returncode == 0, f"7zz: {got.stderr.decode(errors='replace')}")
        demand(hashlib.sha256(got.stdout).digest() == hashlib.sha256(guest.content).digest(),
               f"7zz reads something else out of '{self.file(guest.disk)}'")

    def locked(self, names):
        with open("/proc/locks", encoding="ascii") as lines:
            held = {int(word.split(":")[2]) for line in lines for word in line.split() if word.count(":") == 2}
        return [name for name in names if os.stat(os.path.join(self.folder, name)).st_ino in held]

    def demand_no_locks(self, names):
        """On images of other branches, which nobody has open, once they are sealed."""
        self.wait(f"nobody locks {names}", lambda: not self.locked(names), 30)

    def over(self):
        self.daemon.stop()

    def close(self):
        self.daemon.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def slow(self, job, rate="2M"):
        answer = self.daemon.try_ctl("job", "limit", str(job), rate)
        demand(answer.status == 0 or "is done" in answer.err, f"{answer}")


# --- the cases

def newest_live(case):
    """The newest snapshot, under a client that writes: one file again, under the first name."""
    guest = case.guest()
    guest.fill(200)
    guest.take("s")
    guest.fill(200)
    guest.start()
    plan = case.daemon.ctl("snapshot", "delete", "v", "s", "--dry-run", "--json").json()["merges"]
    demand(len(plan) == 1 and plan[0]["destination"] == case.file("d") and plan[0]["bytes"] > 0,
           f"the plan is {plan}")
    before = guest.writes
    answer = case.delete("s")
    demand(len(answer["jobs"]) == 1, f"no job: {answer}")
    case.daemon.ctl("job", "wait", str(answer["jobs"][0]))
    case.wait("writes go on", lambda: guest.writes > before + 20)
    guest.end()
    case.wait()
    case.check(one_file_each=True)


def many_layers(case):
    """Snapshots from the middle, below and above, several disks, in one pass where they are neighbours."""
    guests = [case.guest("a"), case.guest("b", 8 * MIB)]
    for number in range(6):
        for guest in guests:
            guest.fill(60)
        case.take(f"s{number}")
    for guest in guests:
        guest.fill(40)
        guest.start()
    for name in ("s2", "s3"):
        case.delete(name)
    case.wait()
    case.delete("s5", "--wait")
    case.delete("s0", "--wait")
    for guest in guests:
        guest.end()
    case.check()
    case.delete("s1", "--subtree", "--wait")
    case.wait()
    case.check(one_file_each=True)


def deferred(case):
    """Deferred waits for the vm to be off, and goes on when it is on again."""
    guest = case.guest()
    guest.fill(300)
    guest.take("s")
    guest.fill(300)
    handle = case.daemon.connect("v/d")
    job = case.delete("s", "--merge", "deferred")["jobs"][0]
    time.sleep(0.5)
    state = case.daemon.show("job", str(job))
    demand(state["state"] == "waiting" and state["reason"] == "the vm is on", f"{state}")
    case.slow(job)
    daemonlib.leave(handle)
    handle = None
    case.wait("it runs", lambda: case.daemon.show("job", str(job))["state"] == "running")
    guest.start()
    time.sleep(0.5)
    demand(case.daemon.show("job", str(job))["state"] == "running", "it stopped under the guest")
    case.slow(job, "0")
    case.wait()
    guest.end()
    case.check(one_file_each=True)


def branches(case):
    """An image with several children waits; or is pushed; branches that nobody runs on are merged, too."""
    guest = case.guest()
    guest.fill(100)
    guest.take("root")
    guest.fill(50)
    guest.take("left")
    guest.fill(50)
    guest.take("left tip")
    case.daemon.ctl("snapshot", "apply", "v", "root")
    guest.content = bytearray(guest.snapshots["root"])
    guest.fill(50)
    guest.take("right")
    guest.fill(50)
    guest.start()
    case.delete("left", "--wait")  # on the other branch
    answer = case.delete("root")
    job = answer["jobs"][0]
    case.wait("it waits", lambda: case.daemon.show("job", str(job))["stuck"])
    guest.end()
    case.check()
    guest.start()
    case.delete("left tip", "--wait")  # now one child is left
    case.wait()
    case.delete("right", "--wait")
    guest.end()
    case.wait()
    case.check(one_file_each=True)


def one_child_cannot(case):
    """Of several children one is read by another program, then one is missing: none is told of another parent,
    and each reads as before; when it is over the merge ends."""
    guest = case.guest()
    guest.fill(60)
    guest.take("first")
    guest.fill(60)
    guest.take("top")
    for number in range(5):
        guest.fill(10)
        guest.take(f"child{number}")
        case.daemon.ctl("snapshot", "apply", "v", "top", "--force")
        guest.content = bytearray(guest.snapshots["top"])
    children = sorted(case.daemon.show("snapshot", "v", f"child{n}")["disks"][0]["file"] for n in range(5))
    case.wait("nothing is sealed", lambda: not case.daemon.query("job", "list", "v", "--all"))
    before = {file: os.stat(file).st_mtime_ns for file in children}

    def untouched(but=None):
        changed = [file for file in children if file != but and os.stat(file).st_mtime_ns != before[file]]
        demand(not changed, f"{changed} were changed")

    with open(children[3], "rb") as reader:
        daemonlib.keep_writers_out(reader)
        job = str(case.delete("first")["jobs"][0])
        case.wait("it says what it waits for",
                  lambda: "in use" in (case.daemon.show("job", job)["reason"] or ""))
        untouched()
        guest.verify()
        case.daemon.ctl("job", "pause", job)
    os.rename(children[3], children[3] + ".away")
    case.daemon.ctl("job", "resume", job)
    case.wait("it fails", lambda: case.daemon.show("job", job)["state"] == "failed")
    demand(children[3] in case.daemon.show("job", job)["error"], f"{case.daemon.show('job', job)}")
    untouched(children[3])
    os.rename(children[3] + ".away", children[3])
    case.daemon.ctl("job", "resume", job)
    case.wait()
    case.check()


def let_go(case):
    """A merge on a branch that nobody runs on writes to images that are in no chain, and lets go of them:
    their disk can be detached, and the files used elsewhere. So it is when the worker dies before its end."""
    guest = case.guest()
    guest.fill(20)
    for name in ["one", "two", "three", "four", "five"]:
        guest.take(name)
        guest.fill(40)
    files = {s["name"]: os.path.basename(d["file"]) for s in case.daemon.query("snapshot", "list", "v")
             for d in case.daemon.show("snapshot", "v", s["name"])["disks"]}
    case.daemon.ctl("snapshot", "apply", "v", "one")
    guest.content = bytearray(guest.snapshots["one"])
    case.delete("two", "--wait")  # the image of "four" is relinked
    case.wait()
    case.demand_no_locks(set(case.images()) & {files[n] for n in ["three", "four", "five"]})
    answer = case.delete("three")
    case.slow(answer["jobs"][0])
    os.kill(case.daemon.worker("v"), signal.SIGKILL)
    case.daemon.try_ctl("job", "cancel", str(answer["jobs"][0]))
    case.wait(until=lambda: all(job["state"] in ("done", "cancelled") for job in case.jobs()))
    case.demand_no_locks(set(case.images()) & {files[n] for n in ["four", "five"]})
    case.check()


def taken_away(case):
    """A disk goes with an apply that saves the state before, in the middle of a merge of its leaf: its
    content is kept in the file that it is merged into, also when the saved snapshot is deleted."""
    case.guest("a")
    case.take("before")
    guest = case.guest("d")
    guest.fill(50)
    case.take("s")
    guest.fill(100)
    handle = case.daemon.connect(guest.export())  # a deferred merge waits
    jobs = case.delete("s", "--merge", "deferred")["jobs"]
    for job in jobs:
        case.slow(job, "100K")
    daemonlib.leave(handle)
    case.wait("it runs", lambda: any(job["state"] == "running" for job in case.jobs()))
    case.daemon.ctl("snapshot", "apply", "v", "before", "--save-current", "saved")
    for job in jobs:
        case.slow(job, "0")
    case.wait()
    case.daemon.ctl("snapshot", "delete", "v", "saved", "--wait")
    case.wait()
    case.daemon.ctl("disk", "attach", "v", case.file("d"), "--name", "d")
    for one in case.guests:
        one.snapshots = {}
    guest.verify()
    case.guests[0].snapshots = {"before": bytes(case.guests[0].content)}
    case.delete("before", "--wait")
    case.wait()
    case.check(one_file_each=True)


def user_files(case):
    """Two states of a disk of the user's own, both detached and kept: neither is merged into what the other
    stands on, although no snapshot holds it any more."""
    case.guest("a")
    case.take("before")
    case.daemon.ctl("create", "--quiet", case.file("d"), "--size", str(16 * MIB))
    guest = case.guest("d", size=16 * MIB, create=False)
    guest.fill(50)
    case.take("s")

    def leaf():
        return case.daemon.show("disk", "v", "d")["layers"][0]["file"]

    guest.fill(20)
    states = {leaf(): bytes(guest.content)}
    case.daemon.ctl("disk", "detach", "v", "d")
    case.daemon.ctl("snapshot", "apply", "v", "s")
    guest.content = bytearray(guest.snapshots["s"])
    guest.fill(20)
    states[leaf()] = bytes(guest.content)
    case.daemon.ctl("snapshot", "apply", "v", "before", "--save-current", "saved")
    case.delete("s", "--subtree")
    first = next(iter(states))
    case.daemon.ctl("disk", "attach", "v", first, "--name", "d")
    guest.content, guest.snapshots = bytearray(states.pop(first)), {}
    case.wait(until=lambda: all(job["state"] == "done" or job["stuck"] for job in case.open_jobs()))
    for file, content in states.items():
        flat = os.path.join(case.folder, "flat")
        case.daemon.ctl("convert", "--quiet", file, flat, "--type", "raw")
        with open(flat, "rb") as f:
            demand(f.read() == content, f"'{file}', which was kept, reads otherwise")
        os.unlink(flat)
    guest.verify()


def push(case):
    guest = case.guest()
    guest.fill(60)
    guest.take("root")
    guest.fill(30)
    guest.take("left")
    case.daemon.ctl("snapshot", "apply", "v", "root")
    guest.content = bytearray(guest.snapshots["root"])
    guest.fill(30)
    guest.start()
    case.delete("root", "--push", "--wait")
    guest.end()
    case.wait()
    case.check()
    case.delete("left")
    case.wait()
    case.check(one_file_each=True)


def prune(case):
    guest = case.guest()
    for number in range(8):
        guest.fill(20)
        guest.take(f"s{number}")
    guest.fill(20)
    guest.start()
    answer = case.daemon.ctl("snapshot", "prune", "v", "--keep-last", "2", "--wait", "--json").json()
    for name in answer["deleted"]:
        del guest.snapshots[name]
    demand(len(answer["deleted"]) == 6, f"{answer}")
    guest.end()
    case.wait()
    demand(len(case.images()) == 3, f"the files are {case.images()}")
    case.check()


def people(case):
    """Pause, resume, limit, cancel; two at once for one chain."""
    guest = case.guest()
    guest.fill(400)
    guest.take("s")
    guest.fill(400)
    before = guest.writes
    guest.start()
    case.wait("the guest is there", lambda: guest.writes > before)
    job = str(case.delete("s", "--merge", "deferred")["jobs"][0])
    case.slow(job, "500K")
    guest.end()
    show = lambda: case.daemon.show("job", job)
    case.wait("it gets on", lambda: show()["state"] == "running" and show()["done"] > 0)
    case.daemon.ctl("job", "pause", job)
    time.sleep(1)
    done = show()["done"]
    time.sleep(1)
    demand(show()["state"] == "paused" and show()["done"] == done, f"it is not paused: {show()}")
    guest.verify()
    case.daemon.stop()
    case.daemon.start()
    guest.verify()
    time.sleep(0.5)
    demand(show()["state"] == "paused", f"paused, but after a restart it is {show()['state']}")
    case.daemon.ctl("job", "resume", job)
    case.wait("it runs again", lambda: show()["state"] == "running")
    case.daemon.ctl("job", "cancel", job)
    demand(show()["state"] == "cancelled", f"{show()}")
    demand(case.daemon.try_ctl("job", "wait", job).status == 3, "a cancelled job is no success")
    guest.take("t")
    guest.fill(20)
    other = str(case.delete("t")["jobs"][0])
    case.wait("it comes after", lambda: case.daemon.show("job", other)["state"] == "waiting")
    guest.verify()
    case.daemon.ctl("job", "resume", job)
    case.slow(job, "0")
    case.daemon.ctl("job", "wait")
    case.wait()
    case.check(one_file_each=True)


def deaths(case):
    """The worker, the broker, or both die again and again: it ends all the same."""
    guest = case.guest()
    guest.fill(300)
    guest.take("one")
    guest.fill(200)
    guest.take("two")
    guest.fill(300)
    guest.start(may_be_cut=True)
    case.delete("one")
    case.delete("two")
    rounds = 25 if case.long else 8
    for number in range(rounds):
        open_jobs = [job for job in case.open_jobs() if job["state"] == "running"]
        for job in open_jobs:
            case.slow(job["id"], "8M")
        time.sleep(case.chance.uniform(0, 0.4))
        what = case.chance.choice(["worker", "broker", "both"])
        pid = case.daemon.worker("v")
        if what != "worker":
            case.daemon.kill_broker()
        if what != "broker" and pid:
            os.kill(pid, signal.SIGKILL)
        if what != "worker":
            case.daemon.launch()
            case.daemon.wait_ready()
        if number == rounds // 2:
            guest.end()
            guest.verify()
            guest.start(may_be_cut=True)
    for job in case.open_jobs():
        case.slow(job["id"], "0")
    case.wait()
    guest.end()
    case.check(one_file_each=True)


def deaths_at_the_end(case):
    """Small merges, so that a death often hits their beginning or their end."""
    guest = case.guest(size=8 * MIB)
    for number in range(40 if case.long else 8):
        guest.fill(24)
        guest.take("s")
        guest.fill(24)
        guest.start(may_be_cut=True)
        case.delete("s")
        time.sleep(case.chance.uniform(0, 0.12))
        what = case.chance.choice(["worker", "broker", "both"])
        pid = case.daemon.worker("v")
        if what != "worker":
            case.daemon.kill_broker()
        if what != "broker" and pid:
            os.kill(pid, signal.SIGKILL)
        if what != "worker":
            case.daemon.launch()
            case.daemon.wait_ready()
        case.wait()
        guest.end()
        guest.verify()
    case.check(one_file_each=True)


def readers(case):
    """A deleted snapshot that is read reads on; what it stands on is merged when its reader has gone."""
    guest = case.guest()
    guest.fill(60)
    guest.take("one")
    guest.fill(60)
    guest.take("two")
    guest.fill(60)
    one, two = bytes(guest.snapshots["one"]), bytes(guest.snapshots["two"])
    handle, other = case.daemon.connect("v/d@one"), case.daemon.connect("v/d@two")
    case.delete("one")
    time.sleep(0.5)
    demand(daemonlib.read_all(handle) == one, "the reader of a deleted snapshot reads something else")
    daemonlib.leave(handle)
    case.wait("its merge is noted", lambda: case.jobs())
    case.wait()
    demand(daemonlib.read_all(other) == two, "a reader reads something else after a merge below it")
    daemonlib.leave(other)
    case.check()
    case.delete("two", "--wait")
    case.check(one_file_each=True)


def beside(case):
    """Snapshots, applies, undos and deletions in the middle of a merge."""
    guest = case.guest()
    for name in ("a", "b", "c"):
        guest.fill(150)
        guest.take(name)
    guest.fill(150)
    job = case.delete("b")["jobs"][0]
    case.slow(job, "4M")
    guest.take("d")
    guest.fill(50)
    guest.verify()
    case.daemon.ctl("snapshot", "apply", "v", "a", "--save-current", "e")
    guest.snapshots["e"] = bytes(guest.content)
    guest.content = bytearray(guest.snapshots["a"])
    guest.fill(50)
    guest.verify()
    case.daemon.ctl("snapshot", "apply", "v", "e", "--keep-discarded", "1h")
    kept = bytes(guest.content)
    guest.content = bytearray(guest.snapshots["e"])
    guest.fill(20)
    guest.verify()
    case.daemon.ctl("snapshot", "undo", "v")
    guest.content = bytearray(kept)
    guest.verify()
    case.delete("c")
    case.delete("d")
    for one in case.open_jobs():
        case.slow(one["id"], "0")
    case.wait()
    case.check()
    case.delete("a", "--subtree", "--wait")
    case.wait()
    case.check(one_file_each=True)


def full(case):
    """A full file system pauses a merge, which goes on by itself when there is room again."""
    small = os.path.join(case.folder, "small")
    os.mkdir(small)
    if os.geteuid() != 0 or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", small], check=False).returncode:
        print("full: skipped (it needs mount)")
        return
    filler = os.path.join(small, "filler")
    try:
        case.daemon.ctl("disk", "attach", "v", os.path.join(small, "d.vhd"), "--name", "d",
                        "--create", "16M")
        guest = Guest(case.daemon, "v", "d", 16 * MIB, random.Random(case.chance.random()))
        case.guests.append(guest)
        guest.take("s")
        guest.fill(300)
        with open(filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass
        job = str(case.delete("s")["jobs"][0])
        show = lambda: case.daemon.show("job", job)
        case.wait("it is paused", lambda: show()["state"] == "paused")
        demand("space" in show()["error"].lower(), f"the sentence does not say why: {show()}")
        found = [f["id"] for f in case.daemon.query("doctor")["findings"]]
        demand("merge-paused" in found, f"doctor finds {found}")
        guest.verify()
        os.unlink(filler)
        case.wait()
        guest.verify()
        demand(sorted(n for n in os.listdir(small) if n.endswith("vhd")) == ["d.vhd"],
               f"the files are {os.listdir(small)}")
    finally:
        case.daemon.end()
        subprocess.run(["umount", small], check=False)
        case.daemon.start()


def changed(case):
    """An image that was changed behind its child's back is not merged, unless somebody insists."""
    guest = case.guest()
    guest.fill(60)
    guest.take("s")
    guest.fill(60)
    case.daemon.stop()
    os.utime(case.file("d"))
    case.daemon.start()
    answer = case.delete("s")
    job = str(answer["jobs"][0])
    case.wait("it is refused", lambda: case.daemon.show("job", job)["state"] == "failed")
    error = case.daemon.show("job", job)["error"]
    demand(case.file("d") in error and "changed" in error, f"the sentence is: {error}")
    found = case.daemon.try_ctl("doctor", "--json").json()["findings"]
    hints = [f["hint"] for f in found if f["id"] == "merge-failed"]
    demand(hints == [f"vhdctl job resume {job} --force"], f"doctor hints at {hints}")
    guest.verify()
    case.daemon.ctl("job", "resume", job, "--force")
    case.wait()
    case.check(one_file_each=True)


def strangers(case):
    """Clones that somebody made of snapshots, beside the vm's images, and that the daemon was not told of: what
    they stand on is neither merged nor removed."""
    guest = case.guest()
    guest.fill(100)

    def newest():
        return case.daemon.show("disk", "v", "d")["layers"][0]["file"]

    def clone(name, parent):
        case.daemon.ctl("create", "--quiet", case.file(name), "--parent", parent)
        return case.file(name)

    def read(file):
        flat = os.path.join(case.folder, "flat")
        case.daemon.ctl("convert", "--quiet", file, flat, "--type", "raw")
        with open(flat, "rb") as f:
            content = f.read()
        os.unlink(flat)
        return content

    guest.take("base")
    guest.fill(10)
    middle = newest()
    guest.take("middle")
    guest.fill(60)
    tip = newest()
    guest.take("tip")
    guest.fill(50)
    wanted = dict(guest.snapshots)
    clones = {"base": clone("of-base", case.file("d")), "middle": clone("of-middle", middle),
              "tip": clone("of-tip", tip)}

    def clones_are_right():
        for name, file in clones.items():
            demand(read(file) == wanted[name], f"the clone of '{name}' reads otherwise")

    def dry_run(name):
        merges = case.daemon.ctl("snapshot", "delete", "v", name, "--dry-run", "--json").json()["merges"]
        demand(len(merges) == 1, f"a dry run says {merges}")
        return merges[0].get("reason") or ""

    demand(f"'{clones['middle']}'" in dry_run("middle"), f"a dry run says '{dry_run('middle')}'")
    # The root's blocks stay where they are: those above come down, into what a clone stands on.
    why = dry_run("base")
    demand(any(f"'{file}'" in why for file in clones.values()), f"a dry run says '{why}'")
    job = str(case.delete("middle")["jobs"][0])
    case.wait("it waits", lambda: case.daemon.show("job", job)["stuck"])
    reason = case.daemon.show("job", job)["reason"]
    demand(f"'{clones['middle']}', which is no vm's," in reason, f"it waits because {reason}")
    clones_are_right()
    guest.verify()
    # The few go up: what stands on the image above reads as before, and is not asked.
    os.unlink(clones.pop("middle"))
    case.daemon.ctl("job", "resume", job)
    case.wait()
    clones_are_right()
    guest.verify()
    # A tip that nobody of ours stands on goes at once, but not from under a clone.
    case.daemon.ctl("snapshot", "apply", "v", "base")
    guest.content = bytearray(wanted["base"])
    answer = case.delete("tip")
    demand(answer["kept-files"] == [tip] and os.path.exists(tip), f"the image under a clone: {answer}")
    clones_are_right()
    guest.verify()
    # Who says so merges nevertheless.
    image = newest()
    guest.fill(20)
    guest.take("last")
    guest.fill(20)
    clone("of-last", image)
    job = str(case.delete("last")["jobs"][0])
    case.wait("it waits", lambda: case.daemon.show("job", job)["stuck"])
    case.daemon.ctl("job", "resume", job, "--force")
    case.wait()
    clones_are_right()
    guest.verify()


def two_disks_on_one_chain(case):
    """A branch that was detached is another disk: what is merged beneath both comes after the other's own merge,
    whose layers it would take away, and no write is lost that comes meanwhile."""
    guest = case.guest("d")
    guest.fill(60)
    case.take("a")
    guest.fill(20)
    case.take("b")
    guest.fill(150)
    case.take("c")
    guest.fill(40)  # fewer: they come down
    kept, content = case.daemon.show("disk", "v", "d")["layers"][0]["file"], bytes(guest.content)
    case.daemon.ctl("disk", "detach", "v", "d")
    case.daemon.ctl("snapshot", "apply", "v", "b")
    guest.content = bytearray(guest.snapshots["b"])
    case.daemon.ctl("disk", "attach", "v", kept, "--name", "e")
    other = Guest(case.daemon, "v", "e", len(content), random.Random(case.chance.random()))
    other.content = bytearray(content)
    case.guests.append(other)
    worker = case.daemon.worker("v")
    handle = case.daemon.connect(other.export())  # a deferred merge waits
    upper = case.delete("c", "--merge", "deferred")["jobs"]
    for job in upper:
        case.slow(job, "1K")
    daemonlib.leave(handle)
    case.wait("it runs", lambda: all(case.daemon.show("job", str(job))["state"] == "running" for job in upper))
    lower = str(case.delete("a")["jobs"][0])
    case.wait("the lower one waits", lambda: case.daemon.show("job", lower)["state"] == "waiting")
    demand("it comes after job" in case.daemon.show("job", lower)["reason"], f"{case.jobs()}")
    other.start()
    for job in upper:
        case.slow(job, "0")
    case.wait()
    other.end()
    demand(case.daemon.worker("v") == worker, "the worker died")
    for one in case.guests:
        one.verify()


def pushed_beside_a_reader(case):
    """Who reads the branch that a copy is pushed into reads on as before, whatever the image that was copied
    becomes."""
    guest = case.guest()
    guest.fill(20)
    handle = case.daemon.connect(guest.export())
    hole = 6 * MIB  # which the root and the branch do not have
    handle.zero(2 * MIB, hole)
    guest.content[hole:hole + 2 * MIB] = bytes(2 * MIB)
    daemonlib.leave(handle)
    guest.take("root")
    handle = case.daemon.connect(guest.export())
    handle.pwrite(b"L" * 4096, 0)
    guest.content[0:4096] = b"L" * 4096
    daemonlib.leave(handle)
    guest.take("left")
    left = bytes(guest.content)
    case.daemon.ctl("snapshot", "apply", "v", "root")
    guest.content = bytearray(guest.snapshots["root"])
    handle = case.daemon.connect(guest.export())
    handle.pwrite(b"R" * (2 * MIB), hole)
    guest.content[hole:hole + 2 * MIB] = b"R" * (2 * MIB)
    daemonlib.leave(handle)
    job = case.delete_slowly(guest, "root", "--push")
    reader = case.daemon.connect("v/d@left")
    demand(daemonlib.read_all(reader) == left, "the branch reads something else under the merge")
    case.slow(job, "0")
    case.wait()
    demand(daemonlib.read_all(reader) == left, "the branch reads what its sibling wrote")
    daemonlib.leave(reader)
    guest.verify()
    case.check()


def leaf_of_a_closed_merge(case):
    """A reader of a snapshot on a branch that is merged has images of the merge's own chain; they are no second
    writer when the branch is applied and merged again."""
    guest = case.guest()
    guest.fill(60)
    guest.take("root")
    guest.fill(4)
    guest.take("q")
    guest.fill(60)
    guest.take("s1")
    guest.fill(60)
    guest.take("s2")
    guest.fill(20)
    case.daemon.ctl("snapshot", "apply", "v", "root")
    guest.content = bytearray(guest.snapshots["root"])
    job = case.delete_slowly(guest, "s1")
    reader = case.daemon.connect("v/d@s2")
    s2 = bytes(guest.snapshots["s2"])
    case.slow(job, "0")
    case.wait()
    case.daemon.ctl("snapshot", "apply", "v", "s2", "--force")
    guest.content = bytearray(s2)
    guest.start()
    case.delete("q")
    case.wait()
    demand(daemonlib.read_all(reader) == s2, "the reader reads something else")
    daemonlib.leave(reader)
    guest.end()
    guest.verify()
    case.check()


def undone(case):
    """What an undo brings back may be in the hands of a merge of its own."""
    guest = case.guest()
    guest.fill(60)
    guest.take("one")
    guest.fill(100)
    guest.take("two")
    guest.fill(100)
    before = bytes(guest.content)
    case.daemon.ctl("snapshot", "apply", "v", "one", "--keep-discarded", "1h")
    job = case.delete_slowly(guest, "two")
    case.daemon.ctl("snapshot", "undo", "v")
    guest.content = bytearray(before)
    guest.start(may_be_cut=True)
    time.sleep(0.3)
    os.kill(case.daemon.worker("v"), signal.SIGKILL)
    case.slow(job, "0")
    case.wait()
    guest.end()
    guest.verify()
    case.delete("one")
    case.wait()
    case.check(one_file_each=True)


def half_merged(case):
    """A vm whose merge has begun in the user's own file is not deleted; a clone that comes before a merge goes
    on makes it wait."""
    base = case.file("d")
    case.daemon.ctl("create", base, "--size", "16M")
    guest = case.guest(size=16 * MIB, create=False)
    guest.fill(60)
    guest.take("s")
    guest.fill(60)
    job = case.delete_slowly(guest, "s")
    answer = case.daemon.try_ctl("vm", "remove", "v", "--delete-files")
    demand(answer.status == 3 and "begun to merge" in answer.err, f"{answer}")
    case.daemon.ctl("job", "cancel", str(job))
    answer = case.daemon.try_ctl("vm", "remove", "v", "--delete-files")
    demand(answer.status == 3 and "begun to merge" in answer.err, f"{answer}")
    leaf = case.daemon.show("disk", "v", "d")["layers"][0]["file"]
    clone = os.path.join(case.folder, "clone.vhd")
    case.daemon.ctl("disk", "detach", "v", "d")
    case.daemon.ctl("create", clone, "--parent", leaf, "--image-root", case.folder)
    case.daemon.ctl("disk", "attach", "v", leaf, "--name", "d")
    case.daemon.ctl("job", "resume", str(job))
    case.wait("it says who stands on it", lambda: "clone.vhd" in (case.daemon.show("job", str(job))["reason"] or ""))
    os.unlink(clone)
    case.slow(job, "0")
    case.daemon.ctl("job", "resume", str(job))
    case.wait()
    guest.verify()
    case.daemon.ctl("vm", "remove", "v", "--delete-files")


def two_leaves_on_one_image(case):
    """Two disks whose leaves stand on the image that goes: each is written to while it is told of another parent,
    and no write of either is lost when the worker dies soon after."""
    for number in range(6 if case.long else 3):
        name = f"d{number}"
        guest = case.guest(name)
        guest.fill(60)
        case.daemon.ctl("snapshot", "take", "v", f"a{number}")
        guest.fill(20)
        case.daemon.ctl("snapshot", "take", "v", f"b{number}")
        base = bytes(guest.content)
        guest.fill(40)
        kept, content = case.daemon.show("disk", "v", name)["layers"][0]["file"], bytes(guest.content)
        case.daemon.ctl("disk", "detach", "v", name)
        case.daemon.ctl("snapshot", "apply", "v", f"b{number}")
        guest.content = bytearray(base)
        # Whichever the daemon takes for its merge.
        case.daemon.ctl("disk", "attach", "v", kept, "--name", f"e{number}")
        other = Guest(case.daemon, "v", f"e{number}", len(content), random.Random(case.chance.random()))
        other.content = bytearray(content)
        case.guests.append(other)
        for one in (guest, other):
            one.start(may_be_cut=True)
        case.daemon.ctl("job", "wait", str(case.delete(f"a{number}")["jobs"][0]))
        os.kill(case.daemon.worker("v"), signal.SIGKILL)
        time.sleep(0.2)
        for one in (guest, other):
            one.end()
            one.verify()
        for one in (f"e{number}", name):
            case.daemon.ctl("disk", "detach", "v", one)
        case.daemon.ctl("vm", "remove", "v")
        case.daemon.ctl("vm", "create", "v")
        case.daemon.ids.clear()


CASES = [newest_live, many_layers, deferred, branches, one_child_cannot, let_go, taken_away, user_files, push, prune, people, deaths,
         deaths_at_the_end, readers, beside, full, changed, strangers,
         two_disks_on_one_chain, two_leaves_on_one_image, pushed_beside_a_reader, leaf_of_a_closed_merge, undone,
         half_merged]


if __name__ == "__main__":
    daemonlib.run_cases("merge", __doc__, Case, CASES)
