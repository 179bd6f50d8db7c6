#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""snapshot-instant - a snapshot holds all disks of its vm as they were at one instant.

    snapshot-instant.py [--snapshots N]

A guest that writes a counter to its two disks alternately, each after the last was answered, can never
have the two differ by more than one. So no snapshot may either: a data base with its log on another
disk depends on it. Nor may a snapshot lack what was answered before it was asked for, or hold what
was written after it was answered."""

import argparse
import os
import struct
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

DISKS = ("log", "data")


class Counter(threading.Thread):
    """Writes 1 to the first disk, 1 to the second, 2 to the first, and so on."""

    def __init__(self, handles):
        super().__init__()
        self.handles, self.answered, self.stopping, self.problem = handles, 0, False, None

    def run(self):
        try:
            while not self.stopping:
                block = struct.pack(">Q", self.answered + 1) + bytes(4088)
                for handle in self.handles:
                    handle.pwrite(block, 0)
                self.answered += 1
        except Exception as e:  # a thread's failure is the test's
            self.problem = e


def read_counter(daemon, disk, snapshot):
    handle = daemon.connect(f"web/{disk}@{snapshot}")
    value = struct.unpack(">Q", handle.pread(8, 0))[0]
    daemonlib.leave(handle)
    return value


def take_all(daemon, counter, count):
    """(name, answered before, answered after) of each snapshot."""
    taken = []
    for number in range(count):
        name = f"s{number}"
        before = counter.answered
        daemon.ctl("snapshot", "take", "web", name)
        taken.append((name, before, counter.answered + 1))
        demand(not counter.problem, f"a client saw an error: {counter.problem}")
    return taken


def instant(folder, count):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        for disk in DISKS:
            daemon.ctl("disk", "attach", "web", os.path.join(folder, disk + ".vhd"), "--name", disk,
                       "--create", "16M")
        counter = Counter([daemon.connect(f"web/{disk}") for disk in DISKS])
        counter.start()
        try:
            taken = take_all(daemon, counter, count)
        finally:
            counter.stopping = True
            counter.join()
        demand(not counter.problem, f"a client saw an error: {counter.problem}")
        for name, before, after in taken:
            log, data = (read_counter(daemon, disk, name) for disk in DISKS)
            demand(log - data in (0, 1), f"{name} has {log} on the first disk, {data} on the second")
            demand(data >= before, f"{name} has {data}, but {before} had been answered before")
            demand(log <= after, f"{name} has {log}, but only {after} can have been written then")
        demand(taken[-1][1] > taken[0][1], "nothing was written meanwhile; nothing was shown")
        for handle in counter.handles:
            daemonlib.leave(handle)
        daemon.stop()
        print(f"summary: {count} snapshots, {counter.answered} writes to each of two disks: "
              "each snapshot is one instant")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--snapshots", type=int, default=100)
    args = parser.parse_args()
    daemonlib.run("instant", lambda folder: instant(folder, args.snapshots))


if __name__ == "__main__":
    main()
