#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""guest-snapshots - a guest's vm is snapshotted under it, again and again, and more happens besides.

    guest-snapshots.py [--long] [--snapshots N] [--seed N]

A Linux guest (QEMU, TCG) writes files without pause to ext4 on a disk of the daemon's. Meanwhile its vm
is snapshotted; a second disk is attached to the daemon, hot-added to the guest and written; the worker
is killed with SIGKILL, and the broker too and started again. The guest saw no I/O error, each of its
files has its checksum (read from the disk, not from its cache), both file systems are clean. Each
snapshot is what a power cut at that instant would have left: its journal replays, and after that
e2fsck finds nothing; and it still reads the same at the end as right after it was taken.

  --snapshots  how many (default 3); --long, or $VHDD_LONG: 20
  --seed       of the moments at which things happen (default: told at the start)

The guest is built in $VHDD_BUILD/guest (70 MB of downloads, once), or taken from $VHDD_GUEST.
Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../daemon")]
import daemonlib  # noqa: E402
import guestlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from guestlib import RECONNECT_S, WAIT_S  # noqa: E402


class Qmp:
    """QEMU's monitor: one command at a time, events are passed over."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rw", encoding="utf-8")
        json.loads(self.stream.readline())
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "return" in answer:
                return answer["return"]
            demand("error" not in answer, f"QEMU refuses {command}: {answer.get('error')}")


class Machine(guestlib.Machine):
    """With the daemon as its server."""

    def __init__(self, build, folder, guest, daemon):
        super().__init__(build, folder, guest)
        self.daemon = daemon

    def server_said(self):
        return self.daemon.tail()

    def hot_add(self):
        """A disk that was not there when the guest began, formatted and written by it."""
        self.daemon.ctl("disk", "attach", "web", self.path("hot.vhd"), "--name", "hot", "--create",
                        "64M", "--at", "scsi0:5")
        qmp = Qmp(self.path("qmp.sock"))
        qmp.call("blockdev-add", **{
            "driver": "nbd", "node-name": "hot", "export": "web/hot", "reconnect-delay": RECONNECT_S,
            "server": {"type": "unix", "path": self.daemon.socket}})
        qmp.call("device_add", driver="scsi-hd", id="hot", drive="hot", bus="scsi0.0", **{
            "scsi-id": 5, "lun": 0})
        qmp.socket.close()
        self.inside("n=0; while [ ! -b /dev/sda ]; do sleep 0.1; n=$((n + 1)); [ $n -lt 600 ]; done")
        self.inside("mkdir -p /hot && /bin/mke2fs -q -t ext4 /dev/sda && mount -t ext4 /dev/sda /hot")
        self.inside("dd if=/dev/urandom of=/hot/file bs=64k count=100 conv=fsync 2>/dev/null")
        self.inside("md5sum /hot/file > /tmp/hot.sum")

    def check_hot(self):
        self.inside("umount /hot && mount -t ext4 /dev/sda /hot && md5sum -c /tmp/hot.sum")
        self.inside("umount /hot && /bin/e2fsck -f -n /dev/sda")


def kill_worker(machine):
    pid = machine.daemon.worker("web")
    demand(pid, "the vm has no worker")
    os.kill(pid, signal.SIGKILL)


def restart_broker(machine):
    machine.daemon.kill_broker()
    time.sleep(0.3)
    machine.daemon.start()


def content(daemon, snapshot):
    handle = daemon.connect(f"web/disk@{snapshot}")
    data = daemonlib.read_all(handle)
    daemonlib.leave(handle)
    return data


def check_snapshot(machine, name, digest):
    """Its journal replays on a copy, and then nothing is wrong with it."""
    data = content(machine.daemon, name)
    demand(hashlib.sha256(data).hexdigest() == digest, f"snapshot {name} has changed since it was taken")
    copy = machine.path("copy.raw")
    with open(copy, "wb") as f:
        f.write(data)
    # -E journal_only ends with 0 or, when it had something to replay, with 1.
    replayed = machine.status_of("e2fsck", "-E", "journal_only", "-y", copy)
    demand(replayed in (0, 1), f"the journal of snapshot {name} does not replay ({replayed})")
    machine.run("e2fsck", "-f", "-n", copy)
    os.unlink(copy)


def snapshots(machine, count, chance):
    """Takes them while all that happens happens; answers {name: checksum right after it was taken}."""
    happens = [(1, machine.hot_add), (count // 2, lambda: kill_worker(machine)),
               (count - 1, lambda: restart_broker(machine))]
    if count >= 10:
        happens += [(count // 4, lambda: restart_broker(machine)),
                    (count * 3 // 4, lambda: kill_worker(machine))]
    taken = {}
    for number in range(count):
        for when, what in happens:
            if when == number:
                what()
                time.sleep(chance.uniform(0, 0.5))
        time.sleep(chance.uniform(0.3, 1.5))
        name = f"s{number}"
        machine.daemon.ctl("snapshot", "take", "web", name)
        taken[name] = hashlib.sha256(content(machine.daemon, name)).hexdigest()
    return taken


def parse():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[2].strip(), add_help=False)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--snapshots", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("-h", "--help", action="store_true")
    args = parser.parse_args()
    if args.help:
        print(__doc__)
        sys.exit(0)
    if args.snapshots is None:
        args.snapshots = 20 if args.long or os.environ.get("VHDD_LONG") else 3
    return args


def main():
    args = parse()
    guestlib.need_programs()
    build = os.environ.get("VHDD_BUILD") or sys.exit("VHDD_BUILD is not set")
    daemonlib.find_programs()
    guest = guestlib.find_guest(build)
    chance = random.Random(args.seed)
    print(f"{args.snapshots} snapshots, --seed {args.seed}", flush=True)

    def test(folder):
        with daemonlib.Daemon(folder) as daemon:
            machine = Machine(build, folder, guest, daemon)
            try:
                daemon.start()
                daemon.ctl("vm", "create", "web")
                daemon.ctl("disk", "attach", "web", machine.path("disk.vhd"), "--name", "disk",
                           "--create", "256M", "--at", "ide0:0")
                machine.start_guest("web/disk", [
                    "-qmp", f"unix:{machine.path('qmp.sock')},server=on,wait=off",
                    "-device", "virtio-scsi-pci,id=scsi0"])
                machine.inside("/bin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt")
                machine.inside("sync")
                machine.put_writer()
                machine.start_writer(0)
                taken = snapshots(machine, args.snapshots, chance)
                written = machine.stop_writer()
                machine.check_files()
                machine.check_hot()
                machine.end_guest()
                for name, digest in taken.items():
                    check_snapshot(machine, name, digest)
                daemon.stop()
            finally:
                machine.end()
        print(f"summary: {len(taken)} snapshots under a writing guest, a disk hot-added, worker and "
              f"broker killed; {written} files whole, no I/O error, each snapshot replays clean")

    daemonlib.run("guest-snapshots", test)


if __name__ == "__main__":
    main()
