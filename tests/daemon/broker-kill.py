#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""broker-kill - processes of the daemon die under load, and clients go on.

The broker: its clients (fio, without any reconnecting) see no error, through several deaths, a
restart and an upgrade in place; its successor adopts the workers that it finds and starts no others.
A worker: a client that reconnects, as QEMU does, finds every write that was answered; clients of
another vm notice nothing; one that dies at once again and again is given up for a while. The greeter: those connected go on, new ones are served again. At the end
nothing is left, a worker without disks neither."""

import os
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand, nbd  # noqa: E402

DEATHS = 4
FIO_S = 6


def begin_fio(daemon, folder, export, seconds):
    return subprocess.Popen(
        ["fio", "--name=load", "--ioengine=nbd", f"--uri={daemon.uri(export)}",
         "--rw=randrw", "--bs=4k", "--iodepth=16", "--time_based", f"--runtime={seconds}",
         "--verify=xxhash", "--verify_fatal=1", "--size=16m", "--fsync=64",
         f"--output={folder}/fio.log"],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
    )


def fio_said(folder):
    with open(os.path.join(folder, "fio.log"), encoding="utf-8", errors="replace") as f:
        return f.read()


def wait_connected(daemon, process):
    """fio takes its time to begin; a broker that dies before that refuses it, and rightly."""
    end = time.monotonic() + 20
    while daemon.show("disk", "web", "disk")["clients"] != 1:
        demand(process.poll() is None and time.monotonic() < end, "fio does not connect")
        time.sleep(0.05)


def broker_dies(daemon, folder):
    """Under fio; whoever comes next has the same workers."""
    workers = sorted(daemon.role("worker"))
    demand(len(workers) == 2, f"two vms are served by the workers {workers}")
    fio = begin_fio(daemon, folder, "web/disk", FIO_S)
    try:
        wait_connected(daemon, fio)
        for number in range(DEATHS):
            time.sleep(0.6)
            demand(fio.poll() is None, f"fio ended early:\n{fio_said(folder)}")
            if number == 1:
                daemon.ctl("restart")
                daemon.wait_ready()
            else:
                daemon.kill_broker()
                time.sleep(0.2 * number)
                daemon.start()
            demand(sorted(daemon.role("worker")) == workers,
                   f"workers were {workers}, and after broker {number + 2} began "
                   f"{daemon.role('worker')}")
            disk = daemon.show("disk", "web", "disk")
            demand(disk["clients"] == 1, f"the new broker counts {disk['clients']} clients, not 1")
        status = fio.wait(FIO_S + 60)
    finally:
        if fio.poll() is None:
            fio.kill()
            fio.wait()
    demand(status == 0, f"fio ended with {status}:\n{fio_said(folder)}")


class Writer(threading.Thread):
    """Writes numbered sectors, and knows which were answered. Connects again when it is cut off."""

    def __init__(self, daemon, export):
        super().__init__()
        self.daemon, self.export, self.stopping, self.problem = daemon, export, False, None
        self.answered = {}
        self.reconnects = self.number = 0

    def run(self):
        try:
            self.write()
        except Exception as e:  # a thread's failure is the test's
            self.problem = e

    def write(self):
        chance = random.Random(7)
        handle = self.daemon.connect(self.export)
        size = handle.get_size()
        while not self.stopping:
            self.number += 1
            at = chance.randrange(size // 512) * 512
            payload = self.number.to_bytes(8, "big") * 64
            while True:
                try:
                    handle.pwrite(payload, at)
                    break
                except nbd.Error:
                    demand(handle.aio_is_dead() or handle.aio_is_closed(),
                           f"{self.export}: a write was refused")
                    handle = self.daemon.connect(self.export)
                    self.reconnects += 1
            self.answered[at] = payload
        daemonlib.leave(handle)


def wait_until(what, sentence):
    """Answers what @what answers as soon as that is true."""
    end = time.monotonic() + 60
    while True:
        got = what()
        if got:
            return got
        demand(time.monotonic() < end, sentence)
        time.sleep(0.02)


def wait_writing(writers, more=100):
    """Each of them writes, by whatever worker there is now."""
    before = {vm: writer.number for vm, writer in writers.items()}
    for vm, writer in writers.items():
        wait_until(lambda vm=vm, writer=writer: writer.number > before[vm] + more or writer.problem,
                   f"the client of {vm} does not write")
        demand(not writer.problem, f"client of {vm}: {writer.problem}")


def worker_dies(daemon):
    """The writer of its vm reconnects and finds what was answered; the other vm's sees nothing."""
    writers = {vm: Writer(daemon, f"{vm}/disk") for vm in ("web", "db")}
    for writer in writers.values():
        writer.start()
    try:
        for _ in range(DEATHS):
            wait_writing(writers)
            # Its successor tells its number a moment after it serves.
            os.kill(wait_until(lambda: daemon.worker("web"), "vm 'web' has no worker"), 9)
        wait_writing(writers)
    finally:
        for writer in writers.values():
            writer.stopping = True
            writer.join()
    for vm, writer in writers.items():
        demand(not writer.problem, f"client of {vm}: {writer.problem}")
    demand(writers["db"].reconnects == 0, "a worker's death cut off a client of another vm")
    demand(writers["web"].reconnects >= DEATHS, "the worker died and its client did not notice")
    for vm, writer in writers.items():
        handle = daemon.connect(f"{vm}/disk")
        content = daemonlib.read_all(handle)
        daemonlib.leave(handle)
        lost = [at for at, payload in writer.answered.items() if content[at : at + 512] != payload]
        demand(not lost, f"{len(lost)} of {len(writer.answered)} answered writes to {vm} are lost, "
                         f"the first at {min(lost or [0])}")
    return sum(len(writer.answered) for writer in writers.values())


def greeter_dies(daemon):
    handle = daemon.connect("web/disk")
    greeters = daemon.role("greeter")
    demand(len(greeters) == 1, f"the greeters are {greeters}")
    os.kill(greeters[0], 9)
    handle.pwrite(b"g" * 512, 0)
    other = daemon.connect("web/disk@now")
    demand(other.pread(512, 0) == b"g" * 512, "a new client reads something else")
    daemonlib.leave(other)
    daemonlib.leave(handle)
    demand(daemon.role("greeter") not in ([], greeters), "no new greeter")


def worker_dies_at_once(daemon):
    """Again and again: it is not started any more, one thread waits for better times, and others are served."""
    end = time.monotonic() + 60
    refused = lambda: "each time at once" in daemon.tail(5)  # noqa: E731
    while not refused():
        demand(time.monotonic() < end, f"its worker is started for ever:\n{daemon.tail()}")
        pid = daemon.worker("db")
        if pid:
            os.kill(pid, 9)
        time.sleep(0.002)
    time.sleep(1)
    threads = len(os.listdir(f"/proc/{daemon.broker.pid}/task"))
    demand(threads < 50, f"the broker has {threads} threads:\n{daemon.tail()}")
    handle = daemon.connect("web/disk")
    handle.pread(512, 0)
    daemonlib.leave(handle)
    # A new broker begins counting anew.
    daemon.kill_broker()
    daemon.start()
    daemonlib.leave(daemon.connect("db/disk"))


def worker_without_disks(daemon):
    """Its vm's last disk goes, and then the broker: the next one ends that worker, too."""
    workers = sorted(daemon.role("worker"))
    daemon.ctl("disk", "detach", "db", "disk")
    daemon.kill_broker()
    daemon.start()
    demand(sorted(daemon.role("worker")) == workers, "a vm without disks has lost its worker")


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        for vm in ("web", "db"):
            daemon.ctl("vm", "create", vm)
            daemon.ctl("disk", "attach", vm, os.path.join(folder, vm + ".vhd"), "--name", "disk",
                       "--create", "16M")
        # Both workers are there once both disks have been asked for.
        for vm in ("web", "db"):
            daemonlib.leave(daemon.connect(f"{vm}/disk"))
        broker_dies(daemon, folder)
        writes = worker_dies(daemon)
        greeter_dies(daemon)
        worker_dies_at_once(daemon)
        worker_without_disks(daemon)
        daemon.stop()
        print(f"summary: broker and worker died {DEATHS} times each under load; no I/O error, "
              f"{writes} answered writes there")


if __name__ == "__main__":
    daemonlib.need("fio")
    daemonlib.run("broker-kill", test)
