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
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import guestctl  # noqa: E402

RECONNECT_S = 25  # below a guest's own time-out of 30 s
WAIT_S = 300  # for anything a guest does; two loaded cores emulate slowly

# Writes files of odd sizes until it is told to stop; every other one is flushed by itself, the rest when the
# guest sees fit. A checksum is noted before its file is written, so none can be missing.
WRITER = """\
n=$1
rm -f /tmp/stop
i=0
while [ ! -e /tmp/stop ]; do
    i=$((i + 1))
    f=/mnt/r$n.$((i % 40))
    head -c $((i * 7919 % 400000 + 1)) /dev/urandom > /tmp/piece
    sum=$(md5sum < /tmp/piece)
    if [ $((i % 2)) = 0 ]; then
        dd if=/tmp/piece of=$f bs=64k conv=fsync 2>/tmp/dd.err || { cat /tmp/dd.err; exit 1; }
    else
        cp /tmp/piece $f || exit 1
    fi
    echo "${sum%% *}  $f" > /tmp/sums/r$n.$((i % 40))
    [ $((i % 16)) != 0 ] || rm /mnt/r$n.$((i * 3 % 40)) /tmp/sums/r$n.$((i * 3 % 40)) 2>/dev/null
done
echo $i > /tmp/done
"""


def skip(why):
    print(why)
    sys.exit(77)


def fail(why):
    print(f"guest-kill9: {why}", file=sys.stderr)
    sys.exit(1)


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


def find_guest(build):
    """The folder with vmlinuz and an initramfs that has mke2fs and e2fsck in it."""
    ready = os.environ.get("VHDD_GUEST") or os.path.join(build, "guest")
    files = [os.path.join(ready, name) for name in ("vmlinuz", "initramfs")]
    if all(os.path.exists(f) for f in files):
        return ready
    environment = dict(os.environ, GUEST_PROGRAMS="mke2fs e2fsck")
    made = subprocess.run(
        [os.path.join(HERE, "mkguest.sh"), ready], env=environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    if made.returncode != 0:
        skip(f"no guest could be built: {made.stdout.strip().splitlines()[-1:]}")
    return ready


class Machine:
    """The server and the guest; end() ends both, by their own pids."""

    def __init__(self, build, folder, guest):
        self.vhdctl = os.path.join(build, "vhdd/ctl/vhdctl")
        self.folder, self.guest_folder = folder, guest
        self.disk = self.path("disk.avhd")
        self.server = self.qemu = self.guest = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *command):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

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

    def start_guest(self):
        nbd = (f"driver=nbd,node-name=disk,server.type=unix,server.path={self.path('nbd.sock')},"
               f"export=,reconnect-delay={RECONNECT_S},discard=unmap,detect-zeroes=unmap")
        with open(self.path("qemu.log"), "wb") as log:
            self.qemu = subprocess.Popen(
                ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "256",
                 "-nodefaults", "-no-user-config", "-display", "none",
                 "-kernel", os.path.join(self.guest_folder, "vmlinuz"),
                 "-initrd", os.path.join(self.guest_folder, "initramfs"),
                 "-append", "console=ttyS0 panic=-1 guest.mods=ext4",
                 "-serial", f"file:{self.path('console')}",
                 "-serial", f"unix:{self.path('ctl.sock')},server=on,wait=off",
                 "-blockdev", nbd, "-device", "virtio-blk-pci,drive=disk,discard=on"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        self.guest = guestctl.Guest(self.path("ctl.sock")).ready(timeout=WAIT_S)

    def tail(self, name, n=20):
        with open(self.path(name), encoding="utf-8", errors="replace") as f:
            return "".join(f.readlines()[-n:])

    def inside(self, command):
        """Runs it in the guest; it must succeed."""
        status, text = self.guest.run(command, timeout=WAIT_S)
        if status != 0:
            fail(f"in the guest '{command}' ended with {status}:\n{text}\n"
                 f"server: {self.tail('serve.log')}")
        return text

    def put_writer(self):
        for line in WRITER.splitlines():
            quoted = line.replace("'", "'\\''")
            self.inside(f"echo '{quoted}' >> /tmp/writer")
        self.inside("mkdir -p /tmp/sums")

    def end(self):
        for process in (self.qemu, self.server):
            if process and process.poll() is None:
                process.kill()
                process.wait()


def one_death(machine, number, chance):
    """Writing, death, life, more writing; then every file is what it was meant to be."""
    machine.inside("rm -f /tmp/done")
    machine.inside(f"sh /tmp/writer {number} >/tmp/writer.log 2>&1 &")
    time.sleep(chance.uniform(0.5, 3))
    machine.kill_server()
    time.sleep(chance.uniform(0, 1))
    machine.start_server()
    time.sleep(chance.uniform(0.5, 2))
    machine.inside("touch /tmp/stop")
    written = machine.inside(
        "n=0; while [ ! -e /tmp/done ]; do sleep 0.1; n=$((n + 1)); "
        f"[ $n -lt {WAIT_S * 9} ] || {{ cat /tmp/writer.log; exit 1; }}; done; cat /tmp/done"
    )
    check_files(machine)
    return int(written)


def check_files(machine):
    machine.inside("sync")
    machine.inside("echo 3 > /proc/sys/vm/drop_caches")
    machine.inside("cat /tmp/sums/* > /tmp/all")
    machine.inside("md5sum -c /tmp/all > /tmp/md5.log 2>&1 || { grep -v OK /tmp/md5.log; exit 1; }")
    machine.inside("! dmesg | grep -iE 'I/O error|ext4-fs error|ext4-fs warning|aborted'")


def check_the_end(machine):
    """The file system as the guest sees it, and as the host does once all has ended."""
    machine.inside("umount /mnt")
    machine.inside("/bin/e2fsck -f -n /dev/vda")
    machine.guest.sock.close()
    machine.qemu.terminate()
    machine.qemu.wait()
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
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program in ("qemu-system-x86_64", "e2fsck", "mke2fs"):
        if not shutil.which(program):
            skip(f"{program} is not installed")
    # A time limit's SIGTERM ends server and guest, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    build = os.environ.get("VHDD_BUILD") or sys.exit("VHDD_BUILD is not set")
    guest = find_guest(build)
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
