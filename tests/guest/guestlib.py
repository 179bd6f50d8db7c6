# SPDX-License-Identifier: Apache-2.0
"""What the tests with a guest share: a guest, a writer in it that knows its checksums, a QEMU with a
disk over NBD. A Machine ends what it started, by pid."""

import fcntl
import os
import shutil
import subprocess
import sys

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
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    print(f"{name}: {why}", file=sys.stderr)
    sys.exit(1)


def need_programs():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program in ("qemu-system-x86_64", "e2fsck", "mke2fs"):
        if not shutil.which(program):
            skip(f"{program} is not installed")


def find_guest(build):
    """The folder with vmlinuz and an initramfs that has mke2fs and e2fsck in it."""
    ready = os.environ.get("VHDD_GUEST") or os.path.join(build, "guest")
    make([os.path.join(ready, name) for name in ("vmlinuz", "initramfs")], "no guest could be built", ready)
    return ready


def find_agent(build):
    """An archive with Debian's qemu-guest-agent, to be put behind an initramfs."""
    folder = os.path.join(build, "guest")
    path = os.path.join(folder, "agent.cpio")
    make([path], "qemu-guest-agent could not be had", "--agent", folder)
    return path


def make(files, otherwise, *arguments):
    """mkguest.sh, unless @files are there; another test may be at it: one makes them, the other waits."""
    environment = dict(os.environ, GUEST_PROGRAMS="mke2fs e2fsck")
    folder = os.path.dirname(files[0])
    if all(os.path.exists(f) for f in files):
        return
    with open(f"{folder}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(os.path.exists(f) for f in files):
            return
        made = subprocess.run(
            [os.path.join(HERE, "mkguest.sh"), *arguments], env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
    if made.returncode != 0:
        skip(f"skipped: {otherwise}: {made.stdout.strip().splitlines()[-1:]}")


class Machine:
    """A folder, and a guest with one disk, over NBD mostly; end() ends it."""

    def __init__(self, build, folder, guest):
        self.vhdctl = os.path.join(build, "vhdd/ctl/vhdctl")
        self.folder, self.guest_folder = folder, guest
        self.qemu = self.guest = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *command):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def status_of(self, *command):
        return subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode

    def start_guest(self, export="", more=(), disk=None):
        """@disk: what QEMU is to open (the node is called "disk"); else the export over NBD."""
        nbd = (f"driver=nbd,node-name=disk,server.type=unix,server.path={self.path('nbd.sock')},"
               f"export={export},reconnect-delay={RECONNECT_S},discard=unmap,detect-zeroes=unmap")
        with open(self.path("qemu.log"), "wb") as log:
            self.qemu = subprocess.Popen(
                ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "256",
                 "-nodefaults", "-no-user-config", "-display", "none",
                 "-kernel", os.path.join(self.guest_folder, "vmlinuz"),
                 "-initrd", os.path.join(self.guest_folder, "initramfs"),
                 "-append", "console=ttyS0 panic=-1 guest.mods=ext4",
                 "-serial", f"file:{self.path('console')}",
                 "-serial", f"unix:{self.path('ctl.sock')},server=on,wait=off",
                 "-blockdev", disk or nbd, "-device", "virtio-blk-pci,drive=disk,discard=on", *more],
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
                 f"server: {self.server_said()}")
        return text

    def server_said(self):
        """The last lines of whoever serves the disk."""
        return ""

    def put_writer(self):
        for line in WRITER.splitlines():
            quoted = line.replace("'", "'\\''")
            self.inside(f"echo '{quoted}' >> /tmp/writer")
        self.inside("mkdir -p /tmp/sums")

    def start_writer(self, number):
        self.inside("rm -f /tmp/done")
        self.inside(f"sh /tmp/writer {number} >/tmp/writer.log 2>&1 &")

    def stop_writer(self):
        """Answers how many files it wrote."""
        self.inside("touch /tmp/stop")
        return int(self.inside(
            "n=0; while [ ! -e /tmp/done ]; do sleep 0.1; n=$((n + 1)); "
            f"[ $n -lt {WAIT_S * 9} ] || {{ cat /tmp/writer.log; exit 1; }}; done; cat /tmp/done"
        ))

    def check_files(self):
        """Each file is what it was meant to be, and the guest saw no error."""
        self.inside("sync")
        self.inside("echo 3 > /proc/sys/vm/drop_caches")
        self.inside("cat /tmp/sums/* > /tmp/all")
        self.inside("md5sum -c /tmp/all > /tmp/md5.log 2>&1 || { grep -v OK /tmp/md5.log; exit 1; }")
        self.inside("! dmesg | grep -iE 'I/O error|ext4-fs error|ext4-fs warning|aborted'")

    def end_guest(self):
        self.inside("umount /mnt")
        self.inside("/bin/e2fsck -f -n /dev/vda")
        self.guest.sock.close()
        self.qemu.terminate()
        self.qemu.wait()

    def end(self):
        if self.qemu and self.qemu.poll() is None:
            self.qemu.kill()
            self.qemu.wait()
