#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""guest-kill9 - the server dies under a guest that writes, and the guest never knows.

    guest-kill9.py [--long] [--kills N] [--seed N]

A Linux guest (QEMU, TCG) has a disk of ours: a differencing VHD over a dynamic one, served by vhdctl.
It makes ext4 on it and writes files without pause. In the middle of that the server is killed with
SIGKILL and started again; QEMU's reconnect-delay hides the gap and repeats what was not answered. What
was answered must have survived (rule E4): each file has its checksum, read from the disk and not from the
guest's cache; the guest saw no I/O error; at the end e2fsck is content, in the guest and on the
host, and so is vhdctl check.

  --kills  how often (default 3); --long, or $VHDD_LONG: 20
  --seed   of the moments at which it dies (default: told at the start)

The guest is built in $VHDD_BUILD/guest (70 MB of downloads, once), or taken from $VHDD_GUEST.
Exit status: 0 it survived, 1 it did not, 2 usage, 77 skipped."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guestlib  # noqa: E402
from guestlib import WAIT_S, fail  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[2].strip(), add_help=False)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("-h", "--help", action="store_true")
    args = parser.parse_args()
    if args.help:
        print(__doc__)
        sys.exit(0)
    if args.kills is None:
        args.kills = 20 if args.long or os.environ.get("VHDD_LONG") else 3
    return args


class Machine(guestlib.Machine):
    """With vhdctl serve as its server."""

    def __init__(self, build, folder, guest):
        super().__init__(build, folder, guest)
        self.disk = self.path("disk.avhd")
        self.server = None

    def make_disk(self):
        self.run(self.vhdctl, "create", "--quiet", self.path("base.vhd"), "--size", "256M")
        self.run(self.vhdctl, "create", "--quiet", self.disk, "--parent", self.path("base.vhd"))

    def start_server(self):
        socket = self.path("nbd.sock")
        if os.path.exists(socket):
            os.unlink(socket)
        with open(self.path("serve.log"), "ab") as log:
            self.server = subprocess.Popen(
                [self.vhdctl, "serve", "--socket", socket, self.disk],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        end = time.monotonic() + WAIT_S
        while not os.path.exists(socket):
            if self.server.poll() is not None or time.monotonic() > end:
                fail(f"the server did not come up:\n{self.tail('serve.log')}")
            time.sleep(0.01)

    def kill_server(self):
        if self.server.poll() is not None:
            fail(f"the server ended by itself:\n{self.tail('serve.log')}")
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()

    def server_said(self):
        return self.tail("serve.log")

    def end(self):
        super().end()
        if self.server and self.server.poll() is None:
            self.server.kill()
            self.server.wait()


def one_death(machine, number, chance):
    """Writing, death, life, more writing; then every file is what it was meant to be."""
    machine.start_writer(number)
    time.sleep(chance.uniform(0.5, 3))
    machine.kill_server()
    time.sleep(chance.uniform(0, 1))
    machine.start_server()
    time.sleep(chance.uniform(0.5, 2))
    written = machine.stop_writer()
    machine.check_files()
    return written


def check_the_end(machine):
    """The file system as the guest sees it, and as the host does once all has ended."""
    machine.end_guest()
    machine.server.terminate()
    status = machine.server.wait(WAIT_S)
    if status != 0:
        fail(f"the server ended with {status}:\n{machine.tail('serve.log')}")
    machine.run(machine.vhdctl, "check", "--quiet", "--chain", machine.disk)
    raw = machine.path("disk.raw")
    machine.run(machine.vhdctl, "convert", "--quiet", machine.disk, raw, "--type", "raw")
    machine.run("e2fsck", "-f", "-n", raw)


def main():
    args = parse()
    guestlib.need_programs()
    # A time limit's SIGTERM ends server and guest, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    build = os.environ.get("VHDD_BUILD") or sys.exit("VHDD_BUILD is not set")
    guest = guestlib.find_guest(build)
    chance = random.Random(args.seed)
    print(f"{args.kills} kills, --seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vhdd-guest-") as folder:
        machine = Machine(build, folder, guest)
        try:
            machine.make_disk()
            machine.start_server()
            machine.start_guest()
            machine.inside("/bin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt")
            machine.put_writer()
            total = 0
            for number in range(args.kills):
                total += one_death(machine, number, chance)
            check_the_end(machine)
        finally:
            machine.end()
    print(f"summary: a guest survived {args.kills} deaths of the server; "
          f"{total} files written, all whole, file system clean")


if __name__ == "__main__":
    main()
