#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""seals - what became a parent is sealed in the background, and no seal ever says what is not so.

    seals.py [--only CASE] [--seed N]

A snapshot freezes an image: its seal appears, without being asked for and without a word in `job list'. A
byte that somebody changes behind the daemon's back, with the old time put back, is found by `check --deep'.
Merges, applies, kills of workers and brokers leave seals that fit, or none, and nothing beside the images
that nobody needs; at no time is anything said to be changed that was not."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

MIB = 1 << 20
SOON_S = 20
FALSE_ALARMS = ["is not what its seal says", "was changed after it was frozen", "was changed while"]


class Case:
    def __init__(self, folder, name, chance, _long):
        self.folder = os.path.join(folder, name)
        os.makedirs(self.folder)
        self.chance = chance
        self.daemon = daemonlib.Daemon(self.folder)
        self.daemon.start()
        self.daemon.ctl("vm", "create", "v")

    def file(self, name="d.vhd"):
        return os.path.join(self.folder, name)

    def attach(self, size=16 * MIB):
        self.daemon.ctl("disk", "attach", "v", self.file(), "--name", "d", "--create", str(size))
        self.size = size

    def fill(self, pieces=8, length=256 << 10):
        handle = self.daemon.connect("v/d")
        for _ in range(pieces):
            at = self.chance.randrange((self.size - length) // 512) * 512
            handle.pwrite(self.chance.randbytes(length), at)
        handle.flush()
        daemonlib.leave(handle)

    def read(self, export="v/d"):
        handle = self.daemon.connect(export)
        got = daemonlib.read_all(handle)
        daemonlib.leave(handle)
        return got

    def take(self, name):
        self.daemon.ctl("snapshot", "take", "v", name)

    def call(self, method, **params):
        answer = self.daemon.finish(self.daemon.begin(method, **params))
        demand(answer.status == 0, f"{answer}")
        return answer.json()

    def frozen(self):
        """The images that are parents, or wait to be one."""
        leaf = self.daemon.show("disk", "v", "d")["file"]
        return [self.file(n) for n in os.listdir(self.folder) if n.endswith("vhd")
                and self.file(n) != leaf]

    def seals(self):
        return [job for job in self.daemon.query("job", "list", "v", "--all") if job["kind"] == "seal"]

    def wait(self, what, until, seconds=SOON_S):
        end = time.monotonic() + seconds
        while not until():
            demand(time.monotonic() < end, f"{what}: not after {seconds} s: "
                   f"{self.daemon.query('job', 'list', '--all')} {sorted(os.listdir(self.folder))}\n"
                   f"{self.daemon.tail()}")
            time.sleep(0.05)

    def wait_sealed(self):
        """Each parent has a seal, and nobody is at work on one."""
        self.wait("a seal for each parent", lambda: all(
            os.path.exists(name + ".vhdd-seal") for name in self.frozen()) and not self.seals())

    def wait_merged(self):
        self.wait("the merge's end", lambda: not [
            job for job in self.daemon.query("job", "list", "v") if job["state"] != "done"], 60)

    def check_quiet(self):
        with open(self.daemon.log, encoding="utf-8", errors="replace") as log:
            for line in log:
                for alarm in FALSE_ALARMS:
                    demand(alarm not in line, f"a false alarm: {line}")
        found = [f for f in self.daemon.query("doctor")["findings"]
                 if f["severity"] != "info" and f["id"] != "low-space"]
        demand(not found, f"doctor finds {found}")

    def check_files(self):
        """Without the daemon: every seal is of a parent, and fits."""
        frozen = self.frozen()
        self.check_quiet()
        self.daemon.stop()
        for name in os.listdir(self.folder):
            demand(".vhdd-" not in name or
                   name.endswith(".vhdd-seal") and self.file(name[:-len(".vhdd-seal")]) in frozen,
                   f"'{name}' is left; the parents are {frozen}")
        for name in frozen:
            answer = self.daemon.try_ctl("check", "--deep", name)
            demand(answer.status == 0, f"{answer}: {answer.out}")
        self.daemon.start()

    def over(self):
        self.daemon.stop()

    def close(self):
        self.daemon.end()


# --- the cases

def appears(case):
    """Within seconds, for each snapshot; and it finds a byte."""
    case.attach()
    case.fill()
    handle = case.daemon.connect("v/d")
    mark = case.chance.randbytes(512)
    handle.pwrite(mark, 5 * MIB)
    daemonlib.leave(handle)
    case.take("one")
    case.wait_sealed()
    case.fill()
    case.take("two")
    case.take("three")
    demand(case.daemon.query("job", "list") == [], "seals are listed though nobody asked for all")
    demand(case.daemon.query("status")["jobs"] == 0, "seals are counted as work")
    case.wait_sealed()
    demand(len(case.frozen()) == 3, f"the parents are {case.frozen()}")
    case.check_files()
    case.daemon.stop()
    with open(case.file(), "r+b") as file:
        times = os.fstat(file.fileno())
        file.seek(file.read().index(mark))
        file.write(bytes([mark[0] ^ 1]))
    os.utime(case.file(), ns=(times.st_atime_ns, times.st_mtime_ns))
    answer = case.daemon.try_ctl("check", case.file())
    demand(answer.status == 0, f"without --deep nobody can know: {answer} {answer.out}")
    answer = case.daemon.try_ctl("check", "--deep", case.file())
    demand(answer.status == 1 and "other data" in answer.out, f"a byte was changed: {answer} {answer.out}")


def merged(case):
    """What goes takes its seal along; what stays, and is a parent still, gets another one."""
    case.attach()
    for name in ["a", "b", "c", "d"]:
        case.fill()
        case.take(name)
    case.fill()
    case.wait_sealed()
    content = case.read()
    for name in ["b", "a", "d"]:
        case.daemon.ctl("snapshot", "delete", "v", name, "--wait")
        case.wait_merged()
        case.wait_sealed()
        case.check_files()
        demand(case.read() == content, f"the disk is another one after '{name}' is gone")
    case.daemon.ctl("snapshot", "delete", "v", "c", "--wait")
    case.wait_merged()
    left = [name for name in os.listdir(case.folder) if ".vhdd-" in name]
    demand(not left, f"nobody is a parent any more, and there is {left}")
    case.check_files()


def branches(case):
    """Children that are relinked are sealed anew; one that is applied is as good a parent as before."""
    case.attach()
    case.fill()
    case.take("base")
    for name in ["left", "right", "middle"]:
        case.fill()
        case.take(name)
        case.daemon.ctl("snapshot", "apply", "v", "base", "--force")
    case.wait_sealed()
    for name in ["left", "right"]:
        case.daemon.ctl("snapshot", "apply", "v", name, "--force")
        case.fill()
        case.take(name + "-more")
    case.wait_sealed()
    case.check_files()
    for name in ["right", "left", "left-more"]:
        case.daemon.ctl("snapshot", "delete", "v", name, "--wait")
        case.wait_merged()
        case.wait_sealed()
        case.check_files()


def people(case):
    """Paused, slow, cancelled, resumed; merges do not wait for it."""
    case.attach(256 * MIB)
    case.fill(40, 4 * MIB)
    # By the socket itself: with processes in between it could be done before it is limited.
    case.call("snapshot.take", vm="v", name="one")
    jobs = [job for job in case.call("job.list", vm="v", all=True) if job["kind"] == "seal"]
    demand(len(jobs) == 1, f"there is no seal's job: {jobs}")
    case.call("job.limit", id=jobs[0]["id"], rate=MIB)
    job = str(jobs[0]["id"])
    case.wait("it runs", lambda: case.seals()[0]["state"] == "running" and case.seals()[0]["done"] > 0)
    demand(case.daemon.show("job", job)["file"] == case.file(), "it is about another file")
    case.daemon.ctl("job", "pause", job)
    demand(case.seals()[0]["state"] == "paused", f"{case.seals()}")
    demand(not [n for n in os.listdir(case.folder) if n.endswith(".new")], "half a seal is left")
    case.daemon.ctl("job", "resume", job)
    case.wait("it goes on", lambda: case.seals()[0]["state"] == "running")
    case.daemon.ctl("job", "cancel", job)
    demand(case.seals()[0]["state"] == "cancelled", f"{case.seals()}")
    case.daemon.ctl("job", "resume", job)
    case.wait("it goes on", lambda: case.seals()[0]["state"] == "running")
    case.take("two")
    case.daemon.ctl("snapshot", "delete", "v", "one", "--wait")
    case.wait_merged()
    case.wait_sealed()
    case.check_files()


def deaths(case):
    """Workers and brokers die at any time; what is left in the end is as if nobody had."""
    case.attach(64 * MIB)
    names, made = [], 0
    for _ in range(8):
        for _ in range(case.chance.randrange(1, 3)):
            case.fill(10, MIB)
            made += 1
            names.append(f"s{made}")
            case.take(names[-1])
        if len(names) > 2:
            case.daemon.ctl("snapshot", "delete", "v", names.pop(case.chance.randrange(len(names))))
        time.sleep(case.chance.random() / 2)
        if case.chance.random() < 0.5:
            worker = case.daemon.worker("v")
            if worker:
                os.kill(worker, signal.SIGKILL)
        else:
            case.daemon.kill_broker()
            case.daemon.start()
    content = case.read()
    case.wait_merged()
    case.wait_sealed()
    # What a worker without its broker had to leave beside an image goes when the chain is opened next.
    case.daemon.stop()
    case.daemon.start()
    demand(case.read() == content, "the disk is another one")
    case.check_files()
    demand(case.read() == content, "the disk is another one")


def cut_off(case):
    """Everybody dies while the children of what was merged are relinked, one after the other, and nobody goes
    on: those that were relinked are what they are meant to be."""
    case.attach()
    case.fill()
    case.take("first")
    case.fill()
    case.take("top")
    for number in range(24):
        case.fill(1, 4096)
        case.take(f"child{number}")
        case.daemon.ctl("snapshot", "apply", "v", "top", "--force")
    case.wait_sealed()
    disks = [case.daemon.show("snapshot", "v", f"child{number}")["disks"][0] for number in range(24)]
    children = [disk["file"] for disk in disks]
    before = {file: os.stat(file).st_mtime_ns for file in children}
    worker = case.daemon.worker("v")
    case.daemon.ctl("snapshot", "delete", "v", "first")
    end = time.monotonic() + SOON_S
    while all(os.stat(file).st_mtime_ns == before[file] for file in children):
        demand(time.monotonic() < end, f"no child is relinked: {case.daemon.query('job', 'list', '--all')}")
    os.kill(worker, signal.SIGKILL)
    case.daemon.kill_broker()
    changed = [file for file in children if os.stat(file).st_mtime_ns != before[file]]
    print(f"cut off after {len(changed)} of {len(children)}")
    with open(case.file(), "rb") as reader:
        daemonlib.keep_writers_out(reader)
        case.daemon.start()
        case.wait("the merge waits", lambda: case.daemon.query("job", "list", "v")[0]["state"] == "waiting")
        job = str(case.daemon.query("job", "list", "v")[0]["id"])
        case.daemon.ctl("job", "cancel", job)
        said = case.daemon.try_ctl("doctor").out
        demand("was changed" not in said, f"a false alarm:\n{said}")
    time.sleep(2)
    for number in range(24):
        case.read(f"v/d@child{number}")
    case.daemon.ctl("job", "resume", job)
    # What could not be completed before is tried again.
    case.wait("the disk is served", lambda: case.daemon.show("disk", "v", "d")["state"] == "serving")
    case.read()
    case.wait_merged()
    case.wait_sealed()
    case.check_files()


def broken(case):
    """An image that is opened to be written has no seal; one that was changed gets none."""
    case.daemon.ctl("create", case.file(), "--size", "16M")
    case.daemon.ctl("seal", case.file())
    case.daemon.ctl("disk", "attach", "v", case.file(), "--name", "d")
    case.size = 16 * MIB
    demand(not os.path.exists(case.file() + ".vhdd-seal"), "a disk that is written to has a seal")
    case.fill()
    case.take("one")
    case.wait_sealed()
    case.check_quiet()
    case.daemon.ctl("snapshot", "delete", "v", "one", "--wait")
    case.wait_merged()
    case.take("two")
    case.wait_sealed()
    case.check_files()
    case.daemon.stop()
    os.unlink(case.file() + ".vhdd-seal")
    answer = case.daemon.try_ctl("check", "--deep", case.file())
    demand(answer.status == 3 and "no seal" in answer.err, f"there is none: {answer}")


CASES = [appears, merged, branches, people, deaths, cut_off, broken]


if __name__ == "__main__":
    daemonlib.run_cases("seals", __doc__, Case, CASES)
