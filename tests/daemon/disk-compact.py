#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""disk-compact - a disk's image becomes as small as what it holds, while the disk is in use.

    disk-compact.py [--long] [--only CASE] [--seed N]

Each case fills a disk, gives much of it back (trims, zeros that a guest wrote), and lets the daemon compact
it under a client that writes, and reads back what it wrote; pauses, limits, cancels; takes snapshots and
merges in between; kills the worker or the broker in the middle. It demands that the disk and its snapshots
read as the model says at every moment, that the job ends, that the file is smaller by then, and that
`vhdctl check' finds nothing wrong with it."""

import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from merge import Case as MergeCase, Guest, MIB, PIECE  # noqa: E402

BLOCK = 2 * MIB


class Tenant(Guest):
    """Writes to the first quarter of its disk, and reads back from all of it."""

    def _step(self, handle):
        length = self.chance.choice([512, 4096, PIECE])
        at = self.chance.randrange((len(self.content) // 4 - length) // 512) * 512
        self.pending = (at, self.chance.randbytes(length))
        self._redo(handle)
        at = self.chance.randrange(len(self.content) // PIECE) * PIECE
        got = handle.pread(PIECE, at)
        demand(got == self.content[at:at + PIECE], f"{self.export()} reads wrong at {at} when compacted")

    def fill_all(self):
        """Something in each block."""
        handle = self.daemon.connect(self.export())
        for block in range(0, len(self.content), BLOCK):
            for at in (block, block + BLOCK - PIECE, block + self.chance.randrange(31) * PIECE):
                data = self.chance.randbytes(PIECE)
                handle.pwrite(data, at)
                self.content[at:at + PIECE] = data
        handle.flush()
        daemonlib.leave(handle)

    def give_back(self):
        """Two thirds of the blocks: half of these trimmed, half overwritten with zeros."""
        handle = self.daemon.connect(self.export())
        for number, block in enumerate(range(0, len(self.content), BLOCK)):
            if number % 3 == 0:
                continue
            if number % 3 == 1 and handle.can_trim():
                handle.trim(BLOCK, block)
            else:
                handle.pwrite(bytes(BLOCK), block)
            self.content[block:block + BLOCK] = bytes(BLOCK)
        handle.flush()
        got = daemonlib.read_all(handle)  # a trim promises nothing
        demand(got == self.content, "what was given back does not read as zeros")
        daemonlib.leave(handle)


class Case(MergeCase):
    def guest(self, disk="d", size=64 * MIB):
        guest = super().guest(disk, size)
        self.guests[-1] = Tenant(self.daemon, "v", disk, size, random.Random(self.chance.random()))
        del guest
        return self.guests[-1]

    def leaf(self, disk="d"):
        return self.daemon.show("disk", "v", disk)["file"]

    def size(self, disk="d"):
        return os.stat(self.leaf(disk)).st_size

    def compact(self, *options, disk="d"):
        return self.daemon.ctl("disk", "compact", "v", disk, "--json", *options).json()

    def slow_compact(self, guest):
        """One that has to wait for a merge until it is limited, so it is slow from its beginning."""
        guest.take("slow")
        guest.fill(200)
        handle = self.daemon.connect(guest.export())
        merge = self.delete("slow", "--merge", "deferred")["jobs"][0]
        self.slow(merge, "1M")
        daemonlib.leave(handle)
        self.wait("the merge runs", lambda: self.daemon.show("job", str(merge))["state"] == "running")
        job = self.compact()["id"]
        self.wait("it comes after", lambda: (self.daemon.show("job", str(job))["reason"] or "").startswith(
            f"it comes after job {merge}"))
        self.slow(job, "2M")
        self.slow(merge, "0")
        self.wait("it begins", lambda: self.daemon.show("job", str(job))["state"] == "running")
        return job

    def begin(self):
        guest = self.guest()
        guest.fill_all()
        guest.give_back()
        return guest


# --- the cases

def live(case):
    guest = case.begin()
    before, guest_writes = case.size(), guest.writes
    guest.start()
    plan = case.compact("--dry-run")
    demand(plan["id"] == 0 and plan["file"] == case.file("d") and not case.jobs(), f"{plan}")
    case.daemon.ctl("disk", "compact", "v", "d", "--wait")
    after = case.size()
    job = case.jobs()[-1]
    demand(job["kind"] == "compact" and job["state"] == "done" and job["done"] == job["total"], f"{job}")
    demand(after < before * 6 // 10, f"{before} bytes before, {after} after")
    case.wait("writes go on", lambda: guest.writes > guest_writes + 20)
    case.daemon.ctl("disk", "compact", "v", "d", "--wait")
    guest.end()
    case.check(one_file_each=True)


def people(case):
    """Pause, resume, limit, cancel, a restart; one job at a time."""
    guest = case.begin()
    job = str(case.slow_compact(guest))
    guest.give_back()
    before = case.size()
    show = lambda: case.daemon.show("job", job)
    demand(case.daemon.try_ctl("disk", "compact", "v", "d").status == 3, "two compact one disk")
    case.wait("it gets on", lambda: show()["done"] > 0)
    case.daemon.ctl("job", "pause", job)
    time.sleep(1)
    done = show()["done"]
    time.sleep(0.5)
    demand(show()["state"] == "paused" and show()["done"] == done, f"it is not paused: {show()}")
    case.daemon.stop()
    case.daemon.start()
    guest.verify()
    demand(show()["state"] == "paused", f"paused, but after a restart it is {show()['state']}")
    case.daemon.ctl("job", "resume", job)
    case.wait("it runs again", lambda: show()["state"] == "running")
    guest.start()
    case.daemon.ctl("job", "cancel", job)
    demand(show()["state"] == "cancelled", f"{show()}")
    case.daemon.ctl("job", "resume", job)
    case.wait("it runs once more", lambda: show()["state"] == "running")
    case.slow(job, "0")
    case.daemon.ctl("job", "wait", job)
    guest.end()
    demand(case.size() < before * 6 // 10, f"{before} bytes before, {case.size()} after")
    case.check(one_file_each=True)


def beside(case):
    """A snapshot in the middle: what it froze is what it was, and the job goes on with the new leaf. Then
    a merge has to wait."""
    guest = case.begin()
    job = str(case.slow_compact(guest))
    case.wait("it gets on", lambda: case.daemon.show("job", job)["done"] > 0)
    guest.take("middle")
    guest.fill(100)
    case.wait("it has the new leaf", lambda: case.daemon.show("job", job)["file"] == case.leaf())
    guest.verify()
    merge = str(case.delete("middle")["jobs"][0])
    case.slow(job, "0")
    case.wait()
    for one in (job, merge):
        demand(case.daemon.show("job", one)["state"] == "done", f"{case.daemon.show('job', one)}")
    for number in range(30 if case.long else 3):  # snapshots in all its stages
        guest.fill(60)
        guest.give_back()
        one = case.compact()["id"]
        time.sleep(case.chance.uniform(0, 0.1))
        guest.take("s")
        guest.fill(10)
        guest.verify()
        case.daemon.ctl("job", "wait", str(one))
        case.delete("s", "--wait")
        guest.verify()
    guest.give_back()
    case.daemon.ctl("disk", "compact", "v", "d", "--wait")
    case.check(one_file_each=True)


def adopted(case):
    """A broker that takes over what the one before it left knows as much of the disks."""
    guest = case.begin()
    before = case.daemon.show("disk", "v", "d")
    demand(before["type"] == "dynamic", f"a new disk is {before}")
    case.daemon.ctl("restart")
    case.daemon.wait_ready()
    demand(case.daemon.show("disk", "v", "d")["type"] == "dynamic", "after a restart its type is not known")
    case.daemon.kill_broker()
    case.daemon.launch()
    case.daemon.wait_ready()
    demand(case.daemon.show("disk", "v", "d")["type"] == "dynamic", "after a death its type is not known")
    size = case.size()
    case.compact("--wait")
    demand(case.size() < size, f"{size} bytes before, {case.size()} after")
    guest.verify()


def deaths(case):
    """The worker, the broker, or both die again and again: it ends all the same."""
    guest = case.begin()
    job = str(case.slow_compact(guest))
    guest.give_back()
    before = case.size()
    case.slow(job, "16M")
    guest.start(may_be_cut=True)
    kills = 0
    for number in range(20 if case.long else 6):
        if case.daemon.show("job", job)["state"] == "done":
            demand(kills > 0, "it was done before anybody died")
            job = str(case.compact()["id"])
        time.sleep(case.chance.uniform(0, 0.3))
        what = case.chance.choice(["worker", "worker", "broker", "both"])
        pid = case.daemon.worker("v")
        if what != "worker":
            case.daemon.kill_broker()
        if what != "broker" and pid:
            os.kill(pid, signal.SIGKILL)
        if what != "worker":
            case.daemon.launch()
            case.daemon.wait_ready()
        kills += 1
    case.slow(job, "0")
    case.wait()
    guest.end()
    demand(case.daemon.show("job", job)["state"] == "done", f"{case.daemon.show('job', job)}")
    demand(case.size() < before * 6 // 10, f"{before} bytes before, {case.size()} after")
    case.check(one_file_each=True)


def refused(case):
    """What cannot be compacted, and what becomes of a job whose disk goes."""
    guest = case.begin()
    fixed, raw = os.path.join(case.folder, "fixed.vhd"), os.path.join(case.folder, "raw.img")
    case.daemon.ctl("create", fixed, "--size", "4M", "--type", "fixed")
    with open(raw, "wb") as f:
        f.truncate(4 * MIB)
    case.daemon.ctl("disk", "attach", "v", fixed)
    case.daemon.ctl("disk", "attach", "v", raw, "--format", "raw", "--name", "raw")
    for disk, word in (("fixed", "fixed"), ("raw", "it is raw"), ("none", "no disk")):
        for more in ([], ["--dry-run"]):
            answer = case.daemon.try_ctl("disk", "compact", "v", disk, *more)
            demand(answer.status == 3 and word in answer.err and answer.is_one_sentence(), f"{answer}")
    demand(not case.jobs(), f"{case.jobs()}")
    for disk in ("fixed", "raw"):
        case.daemon.ctl("disk", "detach", "v", disk)
    other = case.guest("e")
    other.fill_all()
    case.slow(case.compact(disk="e")["id"], "1")
    case.daemon.ctl("disk", "detach", "v", "e")
    case.guests.remove(other)
    case.wait()
    demand(all(job["file"] != case.file("e") or job["state"] == "done" for job in case.jobs()), "")
    demand(os.path.exists(case.file("e")), "the image of a detached disk is gone")
    guest.verify()


CASES = [live, people, beside, adopted, deaths, refused]


if __name__ == "__main__":
    daemonlib.run_cases("disk-compact", __doc__, Case, CASES)
