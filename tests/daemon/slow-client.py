#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""slow-client - a client that asks for much and takes nothing holds nobody up.

    slow-client.py

What sendfile has queued for it is a reference to the images' pages, and no place may be punched under it
(rule E8): so a merge has to wait for such a client. In between the vm's verbs must be answered: a snapshot,
a disk that comes and goes. When the client has taken its replies, or is gone, the merge ends, and the disk
reads as it did. Once the client is there before the merge, and once it comes in the middle of one."""

import os
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

MIB = 1 << 20
SIZE = 64 * MIB
VERB_S = 10  # a loaded machine's second or two; a wait for the client has no end
END_S = 60
N_READS = 48


class Stuck:
    """Asks for 48 MiB, and reads nothing."""

    def __init__(self, daemon, export):
        self.reader = daemon.reader(export)
        self.socket = self.reader.socket
        self.socket.setblocking(False)
        for number in range(N_READS):
            request = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1000 + number, number * MIB, MIB)
            sent = self.socket.send(request)
            demand(sent == len(request), "the server takes no more requests")
        time.sleep(0.5)  # until the socket is full

    def drain(self):
        """Takes all replies, and answers with the bytes."""
        self.socket.settimeout(END_S)
        got = bytearray(N_READS * MIB)
        left = N_READS
        while left:
            head = self.reader._take(20)
            _, flags, kind, cookie, n = struct.unpack(">IHHQI", head)
            text = self.reader._take(n)
            demand(kind in (0, 1, 2), f"chunk {kind}, {bytes(text)}")
            if kind == 1:
                at = struct.unpack(">Q", text[:8])[0]
                got[at:at + n - 8] = text[8:]
            demand(1000 <= cookie < 1000 + N_READS, f"cookie {cookie}")
            left -= flags & 1
        return got

    def leave(self):
        self.socket.close()


def fill(daemon, content, seed):
    handle = daemon.connect("v/d")
    for at in range(0, SIZE, 2 * MIB):
        piece = bytes([(seed + at // MIB) % 251 + 1]) * (MIB + 4096)
        handle.pwrite(piece, at)
        content[at:at + len(piece)] = piece
    handle.flush()
    daemonlib.leave(handle)


def timed(daemon, *command):
    start = time.monotonic()
    daemon.ctl(*command)
    took = time.monotonic() - start
    demand(took < VERB_S, f"{' '.join(command)} takes {took:.1f} s")
    print(f"{' '.join(command)}: {took:.2f} s", flush=True)


def use_verbs(daemon, folder, name):
    timed(daemon, "snapshot", "take", "v", name)
    timed(daemon, "disk", "attach", "v", f"{folder}/more.vhd", "--name", "more", "--create", "4M")
    timed(daemon, "disk", "detach", "v", "more")
    os.unlink(f"{folder}/more.vhd")


def wait_for_merges(daemon):
    def over():
        jobs = [job for job in daemon.query("job", "list") if job["state"] not in ("done", "cancelled")]
        demand(not any(job["state"] == "failed" for job in jobs), f"a merge fails: {jobs}")
        return not jobs

    until = time.monotonic() + END_S
    while not over():
        demand(time.monotonic() < until, f"the merges do not end: {daemon.query('job', 'list')}")
        time.sleep(0.2)


def check(daemon, content):
    handle = daemon.connect("v/d")
    demand(daemonlib.read_all(handle) == content, "the disk reads as another one")
    daemonlib.leave(handle)


def before_the_merge(daemon, folder, content):
    client = Stuck(daemon, "v/d")
    daemon.ctl("snapshot", "delete", "v", "one")
    time.sleep(1)
    use_verbs(daemon, folder, "two")
    demand(client.drain() == content[:N_READS * MIB], "the client's replies are of another disk")
    wait_for_merges(daemon)
    client.leave()
    check(daemon, content)


def in_the_middle(daemon, folder, content):
    fill(daemon, content, 101)
    keeps_it_on = daemon.connect("v/d")
    command = ("snapshot", "delete", "v", "two", "--merge", "deferred", "--json")
    job = str(daemon.ctl(*command).json()["jobs"][0])
    daemon.ctl("job", "limit", job, "4M")
    daemonlib.leave(keeps_it_on)
    until = time.monotonic() + END_S
    while daemon.show("job", job)["state"] != "running":
        demand(time.monotonic() < until, "the merge does not begin")
        time.sleep(0.05)
    client = Stuck(daemon, "v/d")
    daemon.ctl("job", "limit", job, "0")
    use_verbs(daemon, folder, "three")
    wait_for_merges(daemon)
    use_verbs(daemon, folder, "four")
    client.leave()
    check(daemon, content)


def slow_client(folder):
    content = bytearray(SIZE)
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "v")
        daemon.ctl("disk", "attach", "v", f"{folder}/d.vhd", "--name", "d", "--create", f"{SIZE >> 20}M")
        fill(daemon, content, 1)
        daemon.ctl("snapshot", "take", "v", "one")
        fill(daemon, content, 57)
        before_the_merge(daemon, folder, content)
        in_the_middle(daemon, folder, content)


if __name__ == "__main__":
    daemonlib.run("slow-client", slow_client)
