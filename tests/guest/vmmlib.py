# SPDX-License-Identifier: Apache-2.0
"""vmmlib - a vm of vmm-host's with a Linux guest (QEMU, TCG), for the tests in this folder.

The guest boots once; a snapshot of it as it runs is where every case begins, by `snapshot apply', which starts
a QEMU with that memory. In the guest a journal runs: a number that is counted on a disk and in memory, and
each time the disk is read, past every cache, before it is written: memory and disk that are of different
moments, or an answered write that was lost, are seen by the guest itself.

The guest is built in $VHDD_BUILD/guest (70 MB of downloads, once), or taken from $VHDD_GUEST."""


import os
import shutil
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../daemon")]
import daemonlib  # noqa: E402
import guestctl  # noqa: E402
import guestlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from guestlib import WAIT_S  # noqa: E402

NAME = "web"
DISK = "/dev/sda"  # the SCSI disk of the start; the one on IDE is found after it

JOURNAL = f"""\
put() {{ printf '%-512s' "$1" | dd of={DISK} bs=512 count=1 oflag=direct conv=notrunc 2>/tmp/dd.err || echo "write $1" >> /tmp/bad; }}
n=0
put 0
while [ ! -e /tmp/stop ]; do
    d=$(dd if={DISK} bs=512 count=1 iflag=direct 2>/tmp/dd.err | tr -d ' \\000')
    [ "$d" = "$n" ] || echo "disk '$d', memory $n" >> /tmp/bad
    n=$((n + 1))
    put $n
    echo $n > /tmp/counter.new && mv /tmp/counter.new /tmp/counter
done
"""

def wait_until(what, sentence, timeout=60):
    """Answers what @what answers as soon as that is true."""
    end = time.monotonic() + timeout
    while True:
        got = what()
        if got:
            return got
        demand(time.monotonic() < end, sentence if isinstance(sentence, str) else sentence())
        time.sleep(0.05)


class Vm:
    """A vm of a daemon, and its guest."""

    def __init__(self, daemon, folder, name=NAME):
        self.daemon, self.folder, self.name, self.guest = daemon, folder, name, None

    def path(self, name):
        return os.path.join(self.folder, name)

    def ctl(self, *arguments, status=0):
        return self.daemon.ctl(*arguments, status=status)

    def call(self, method, **params):
        """A method of the control API itself, without a vhdctl."""
        call = self.daemon.begin(method, vm=self.name, **params)
        answer = self.daemon.finish(call)
        demand(answer.status == 0, f"{answer}")
        return call.result

    def show(self):
        return self.daemon.show("vm", self.name)

    def state(self):
        return self.show().get("machine", {}).get("state")

    def end_of(self):
        return self.show()["machine"].get("last-end", {}).get("how")

    def await_state(self, state, timeout=60):
        wait_until(lambda: self.state() == state,
                   lambda: f"the vm is '{self.state()}', not '{state}'\n{self.daemon.tail()}", timeout)

    def process(self, name):
        """The pid of its "qemu", its "supervisor", a "relay" or the "host" of all vms, or None."""
        vm = self.show()["id"]
        words = {"qemu": f"guest={vm}", "supervisor": f"--supervise {vm}", "relay": "--relay"}
        for pid, line in self.daemon.processes().items():
            is_ours = line.split()[0].endswith("vmm-host")
            if name == "host" and is_ours and "--supervise" not in line and "--relay" not in line:
                return pid
            if name in words and words[name] in line:
                return pid
        return None

    def kill(self, name):
        pid = self.process(name)
        demand(pid, f"there is no {name} to kill")
        os.kill(pid, signal.SIGKILL)
        return pid

    # --- the guest

    def create(self, guest=None):
        """Without disks as yet. Its kernel and its programs come from elsewhere."""
        guest = guest or guestlib.find_guest(os.environ["VHDD_BUILD"])
        self.ctl("vm", "create", self.name, "--memory", "startup=256M,max=512M", "--accel", "tcg",
                 "--kernel", os.path.join(guest, "vmlinuz"), "--initrd", os.path.join(guest, "initramfs"),
                 "--append", "panic=-1 guest.ctl=ttyS0 guest.acpi=1 guest.mods=virtio_console,pvpanic-pci")

    def disconnect(self):
        if self.guest:
            self.guest.sock.close()
        self.guest = None

    def connect(self):
        self.disconnect()
        # A vmm-host that died is started again by and by.
        answer = wait_until(lambda: (lambda a: a if a.status == 0 else None)(
            self.daemon.try_ctl("vm", "console", self.name, "--json")), "there is no console")
        path = answer.json()["socket"]
        self.guest = guestctl.Guest(path).ready(timeout=WAIT_S)

    def inside(self, command):
        status, text = self.guest.run(command, timeout=WAIT_S)
        demand(status == 0, f"in the guest '{command}' ended with {status}: {text}\n{self.daemon.tail()}")
        return text

    def put(self, path, text):
        self.inside(f"rm -f {path}")
        for line in text.splitlines():
            quoted = line.replace("'", "'\\''")
            self.inside(f"echo '{quoted}' >> {path}")

    def counter(self):
        return int(self.inside("cat /tmp/counter"))

    def await_progress(self, more=2, timeout=WAIT_S):
        """The journal goes on, and has seen nothing wrong."""
        begin = self.counter()
        wait_until(lambda: self.counter() >= begin + more, "the journal in the guest stands still", timeout)
        self.check()

    def check(self):
        bad = self.inside("cat /tmp/bad 2>/dev/null; dmesg | grep -iE 'I/O error|hung task'; true")
        demand(not bad, f"the guest saw: {bad}\n{self.daemon.tail()}")

    def sd_count(self):
        return int(self.inside("ls -d /sys/block/sd* | wc -l"))

    def apply(self, snapshot):
        """The guest as it was when @snapshot was taken."""
        if not self.show()["on"]:
            self.ctl("vm", "start", self.name)
        self.ctl("snapshot", "apply", self.name, snapshot)
        demand(self.state() == "running", f"after an apply the vm is '{self.state()}'")
        self.connect()

    def begin(self):
        self.apply("begin")


def set_qemu(folder, text=None):
    """The program that VHDD_QEMU names: a script, or the real one."""
    path = os.path.join(folder, "qemu")
    if os.path.lexists(path):
        os.unlink(path)
    if text is None:
        os.symlink(shutil.which("qemu-system-x86_64"), path)
    elif text:
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
        os.chmod(path, 0o755)


def join(folder, guest, archive):
    """A folder like @guest, whose initramfs has @archive behind it."""
    made = os.path.join(folder, "guest")
    os.mkdir(made)
    os.symlink(os.path.join(guest, "vmlinuz"), os.path.join(made, "vmlinuz"))
    with open(os.path.join(made, "initramfs"), "wb") as to:
        for path in (os.path.join(guest, "initramfs"), archive):
            with open(path, "rb") as f:
                shutil.copyfileobj(f, to)
    return made


def create(vm, guest):
    """The vm with its disks, off."""
    vm.create(guest)
    vm.ctl("disk", "attach", vm.name, vm.path("root.vhd"), "--create", "64M", "--at", "ide0:0")
    vm.ctl("disk", "attach", vm.name, vm.path("data.vhd"), "--create", "64M", "--at", "scsi1:3")


def start(vm):
    """From nothing."""
    wait_until(lambda: vm.show()["agent"], f"vm '{vm.name}' got no supervisor")
    vm.ctl("vm", "start", vm.name)


def boot(vm, guest, prepare=None):
    create(vm, guest)
    start(vm)
    vm.connect()
    vm.put("/tmp/journal", JOURNAL)
    vm.inside("setsid sh /tmp/journal > /tmp/journal.log 2>&1 &")
    wait_until(lambda: vm.guest.run("cat /tmp/counter")[0] == 0, "the journal does not begin")
    vm.await_progress()
    if prepare:
        prepare(vm)
    vm.disconnect()
    vm.ctl("snapshot", "take", vm.name, "begin")
    demand(vm.daemon.query("snapshot", "show", vm.name, "begin")["memory"], "the snapshot has no memory")


def main(title, cases, usage, without_guest=(), archive=None, prepare=None):
    """Runs the @cases ({name: function of a Vm}) that the command line names, or all, in their order; those in
    @without_guest before the guest boots. What a case answers, a few words, goes into the summary.
    @usage: the test's own docstring. @archive: a function that answers what is put behind the initramfs, of the
    build's folder; @prepare: what is done in the guest before its snapshot."""
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(usage)
        return
    chosen = sys.argv[1:] or list(cases)
    if any(c not in cases for c in chosen):
        print(f"usage: {usage.splitlines()[2].strip()}", file=sys.stderr)
        sys.exit(2)
    chosen = [c for c in cases if c in chosen]
    guestlib.need_programs()
    build = os.environ.get("VHDD_BUILD") or sys.exit("VHDD_BUILD is not set")
    host = os.path.join(build, "vmm-glue/vmm-host")
    daemonlib.find_programs()
    guest = guestlib.find_guest(build)
    more = archive(build) if archive else None
    took, said = {}, {}

    def timed(name, function, *arguments):
        begin = time.monotonic()
        words = function(*arguments)
        said[name] = f" ({words})" if words else ""
        took[name] = time.monotonic() - begin
        print(f"{name}: {took[name]:.1f} s{said[name]}", flush=True)

    def test(folder):
        set_qemu(folder)
        os.environ["VHDD_QEMU"] = os.path.join(folder, "qemu")
        with daemonlib.Daemon(folder, ["--vmm-command", host]) as daemon:
            daemon.start()
            vm = Vm(daemon, folder)
            for name in chosen:
                if name in without_guest:
                    timed(name, cases[name], vm)
            if any(name not in without_guest for name in chosen):
                timed("boot", boot, vm, join(folder, guest, more) if more else guest, prepare)
            for name in chosen:
                if name not in without_guest:
                    timed(name, cases[name], vm)
            # The guest of the last case runs: the daemon's end shuts it down, or switches it off.
            daemon.stop()
        print(f"summary: {title}: " + ", ".join(f"{name} {s:.0f} s{said[name]}" for name, s in took.items()))

    daemonlib.run(title, test)
