#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""kill-under-load - worker and broker die at any moment, also both, also in the middle of a snapshot,
while clients of two disks of one vm write, read and flush without a pause.

What could go wrong: an answered write is lost or an old one comes back; a flush waits for a snapshot
that nobody finishes any more; a disk is not served again, because what a dead process left can be
neither completed nor removed. random-run.py goes step by step; here everything happens at once.

    kill-under-load.py [--seed N] [--seconds S]        the same seed makes the same choices"""

import argparse
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand, nbd  # noqa: E402

DISKS = ("a", "b")
BLOCK = 4096
BLOCKS = 1024
STEP_LIMIT_S = 30  # for one request, with every reconnecting


class Client(threading.Thread):
    """Writes numbered blocks to one disk, and remembers what was answered."""

    def __init__(self, daemon, disk, seed):
        super().__init__(daemon=True)
        self.server, self.export = daemon, f"web/{disk}"
        self.random = random.Random(f"{seed}/{disk}")
        self.written = {}  # block: number, as answered
        self.asked = None  # (block, number) that was sent and may or may not be there
        self.requests = self.reconnects = 0
        self.stopping = False
        self.trouble = None
        self.handle = None

    @staticmethod
    def content(block, number):
        return (block.to_bytes(4, "little") + number.to_bytes(4, "little")) * (BLOCK // 8)

    def check(self, block):
        data = bytes(self.handle.pread(BLOCK, block * BLOCK))
        number = self.written.get(block, 0)
        if data == (self.content(block, number) if number else bytes(BLOCK)):
            return
        demand(self.asked and self.asked[0] == block and data == self.content(*self.asked),
               f"{self.export}: block {block} should be number {number}, and is {data[:8].hex()}")
        self.written[block] = self.asked[1]

    def write(self):
        """What was sent and not answered is sent again, as QEMU does."""
        if not self.asked:
            self.asked = (self.random.randrange(BLOCKS), self.requests + 1)
        self.handle.pwrite(self.content(*self.asked), self.asked[0] * BLOCK)
        self.written[self.asked[0]] = self.asked[1]
        self.asked = None

    def step(self):
        what = self.random.random()
        if self.asked or what < 0.6:
            self.write()
        elif what < 0.66:
            self.handle.flush()
        else:
            self.check(self.random.randrange(BLOCKS))
        self.requests += 1

    def insist(self, action):
        """Until it is done, over any number of deaths."""
        end = time.monotonic() + STEP_LIMIT_S
        while True:
            try:
                if not self.handle:
                    self.handle = self.server.connect(self.export, STEP_LIMIT_S)
                return action()
            except nbd.Error as e:
                demand(e.errnum not in ("EIO", "EPERM", "ESHUTDOWN"), f"{self.export}: {e}")
                demand(time.monotonic() < end, f"{self.export}: {e}")
                self.handle = None
                self.reconnects += 1

    def check_all(self):
        for block in range(BLOCKS):
            self.check(block)

    def run(self):
        try:
            while not self.stopping:
                self.insist(self.step)
            self.insist(self.check_all)
        except daemonlib.TestFailed as e:
            self.trouble = e


def kill_worker(daemon):
    pid = daemon.worker("web")
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def kill_broker(daemon):
    daemon.kill_broker()


def kill_both(daemon):
    daemon.kill_broker()
    kill_worker(daemon)


def execute_anew(daemon):
    daemon.broker.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    daemon.wait_ready()


DEATHS = (kill_worker, kill_broker, kill_both, execute_anew)


def disturb(daemon, choices, number):
    """One death, or a snapshot, or a death in the middle of a snapshot."""
    take = daemon.popen("snapshot", "take", "web", f"s{number}") if choices.random() < 0.6 else None
    if take:
        time.sleep(choices.uniform(0, 0.06))
    if not take or choices.random() < 0.7:
        choices.choice(DEATHS)(daemon)
        if daemon.broker.poll() is not None:
            daemon.start()
    if take:
        daemon.finish(take)


def test(folder, seed, seconds):
    choices = random.Random(seed)
    with daemonlib.Daemon(folder).start() as daemon:
        daemon.ctl("vm", "create", "web")
        daemon.show("vm", "web")
        daemon.worker("web")
        for disk in DISKS:
            daemon.ctl("disk", "attach", "web", os.path.join(folder, f"{disk}.vhd"),
                       "--create", "64M", "--name", disk)
        clients = [Client(daemon, disk, seed) for disk in DISKS]
        for client in clients:
            client.start()
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end and not any(client.trouble for client in clients):
            time.sleep(choices.uniform(0.05, 0.5))
            number += 1
            disturb(daemon, choices, number)
        for client in clients:
            client.stopping = True
        for client in clients:
            client.join(2 * STEP_LIMIT_S)
            demand(not client.trouble, f"{client.trouble}\n{daemon.tail()}")
            demand(not client.is_alive(), f"{client.export}: a request waits\n{daemon.tail()}")
            demand(client.requests > 100, f"{client.export}: only {client.requests} requests")
        # One more, whole: nothing is left half done.
        daemon.ctl("snapshot", "take", "web", "last")
        taken = len(daemon.query("snapshot", "list", "web"))
        daemon.stop()
        daemon.start()
        for client in clients:
            client.handle = None
            client.insist(client.check_all)
        daemon.stop()
        for disk in DISKS:
            daemon.ctl("check", os.path.join(folder, f"{disk}.vhd"))
    print(f"summary: {number} deaths and snapshots, {taken} snapshots in the end, "
          f"{sum(c.requests for c in clients)} requests, "
          f"{sum(c.reconnects for c in clients)} reconnects, no difference")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    print(f"kill-under-load: --seed {arguments.seed} --seconds {arguments.seconds}", flush=True)
    daemonlib.run("kill-under-load",
                  lambda folder: test(folder, arguments.seed, arguments.seconds))


main()
