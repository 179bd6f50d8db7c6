#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm - the daemon's own vmm-host runs a Linux guest: power, saved memory, hot disks, and who dies when.

    vmm.py [CASE...]

How the guest is made and what runs in it: vmmlib.py.
Cases (all without an argument): bad-input display budget memory saved agent disks power crash deaths outage
Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""


import os
import signal
import socket
import struct
import sys
import tempfile
import time
from urllib.parse import urlsplit

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vmmlib  # noqa: E402
from vmmlib import NAME, daemonlib, demand, set_qemu, wait_until  # noqa: E402

# As much of qemu-guest-agent's protocol as vmm-glue speaks.
AGENT = """\
exec 4<>/dev/vport7p1
while :; do
    read -r line <&4 || { sleep 1; continue; } # nobody is at the other end
    id=$(echo "$line" | sed -n 's/.*"id": *\\([0-9]*\\).*/\\1/p')
    case $line in
    *guest-info*) r='{"version":"9.9"}' ;;
    *guest-get-osinfo*) r='{"pretty-name":"a small guest"}' ;;
    *guest-fsfreeze-freeze*) echo frozen >> /tmp/agent; r=1 ;;
    *guest-fsfreeze-thaw*) echo thawed >> /tmp/agent; r=1 ;;
    *guest-set-time*) echo time >> /tmp/agent; r='{}' ;;
    *guest-shutdown*) [ -e /tmp/deaf ] || poweroff -f; r='{}' ;;
    *) r='{}' ;;
    esac
    echo "{\\"return\\":$r,\\"id\\":$id}" >&4
done
"""


def bad_input(vm):
    """One clear sentence, and nothing half-made."""
    def refused(words, *arguments, status=3):
        answer = vm.ctl(*arguments, status=status)
        demand(answer.is_one_sentence(), f"this is more than a sentence: {answer.err}")
        for word in words:
            demand(word in answer.err, f"'{word}' is not in: {answer.err}")

    daemon = vm.daemon
    daemon.ctl("vm", "create", "bad", "--memory", "startup=64M", "--accel", "tcg")
    wait_until(lambda: daemon.show("vm", "bad")["agent"], "vm 'bad' got no supervisor")
    refused(["no disk to start from"], "vm", "start", "bad")
    daemon.ctl("disk", "attach", "bad", vm.path("bad.vhd"), "--create", "16M", "--at", "scsi0:0")
    refused(["SCSI", "IDE"], "vm", "start", "bad")
    refused(["scsi3:63"], "disk", "attach", "bad", vm.path("x.vhd"), "--create", "1M", "--at", "ide2:0",
            status=2)
    refused(["scsi3:63"], "disk", "attach", "bad", vm.path("x.vhd"), "--create", "1M", "--at", "scsi0:64",
            status=2)
    demand(not os.path.exists(vm.path("x.vhd")), "a refused disk left a file behind")
    daemon.ctl("disk", "attach", "bad", vm.path("bad0.vhd"), "--create", "16M", "--at", "ide0:0")
    set_qemu(vm.folder, "")
    refused(["no QEMU", "apt install"], "vm", "start", "bad")
    set_qemu(vm.folder, "#!/bin/sh\necho 'QEMU emulator version 6.2.0'\n")
    refused(["6.2.0", "too old", "7.2"], "vm", "start", "bad")
    set_qemu(vm.folder, "#!/bin/sh\necho hello\n")
    refused(["does not say that it is QEMU"], "vm", "start", "bad")
    set_qemu(vm.folder, "#!/bin/sh\n[ $1 = --version ] && { echo 'QEMU emulator version 7.2.0'; exit; }\n"
                        "echo 'qemu: cannot do it' >&2\nexit 1\n")
    refused(["QEMU ended", "cannot do it"], "vm", "start", "bad")
    daemon.ctl("vm", "set", "bad", "--display", "spice")
    set_qemu(vm.folder, "#!/bin/sh\n[ $1 = --version ] && { echo 'QEMU emulator version 7.2.0'; exit; }\n"
                        "echo 'name \"VGA\", bus PCI'\n")
    refused(["no SPICE", "qemu-system-modules-spice", "--display vnc"], "vm", "start", "bad")
    daemon.ctl("vm", "set", "bad", "--display", "none")
    set_qemu(vm.folder)
    daemon.ctl("vm", "set", "bad", "--memory", "startup=1M")
    refused(["too little"], "vm", "start", "bad")
    daemon.ctl("vm", "set", "bad", "--memory", "startup=1T")
    refused(["'bad' starts with 1 TiB", "together may have", "--host-memory", "startup="], "vm", "start", "bad")
    daemon.ctl("vm", "set", "bad", "--memory", "startup=64M", "--network", "nowhere")
    refused(["networks"], "vm", "start", "bad")
    bad = vmmlib.Vm(daemon, vm.folder, "bad")
    demand(not bad.show()["on"] and not bad.process("qemu"), "a refused start left something behind")
    daemon.ctl("vm", "remove", "bad", "--delete-files")


def greeting(uri, scheme, size, first=b""):
    """What the screen's server says first, or to @first."""
    where = urlsplit(uri)
    demand(where.scheme == f"{scheme}+unix", f"the screen is said to be at '{uri}'")
    demand(os.stat(where.path).st_mode & 0o077 == 0, f"'{where.path}' is open to others")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(where.path)
        s.sendall(first)
        got = b""
        while len(got) < size:
            more = s.recv(size - len(got))
            demand(more, f"the screen's server leaves after {got}")
            got += more
    return got


def display(vm):
    """A screen is where it is said to be, speaks its protocol, and goes with the machine."""
    daemon = vm.daemon

    def screen():
        return daemon.query("vm", "console", "screen")["display"]

    def restart(kind, status=0):
        daemon.ctl("vm", "set", "screen", "--display", kind)
        return daemon.ctl("vm", "start", "screen", status=status)

    daemon.ctl("vm", "create", "screen", "--memory", "startup=64M", "--accel", "tcg")
    daemon.ctl("disk", "attach", "screen", vm.path("screen.vhd"), "--create", "16M", "--at", "ide0:0")
    restart("vnc")
    uri = screen()
    demand(greeting(uri, "vnc", 12) == b"RFB 003.008\n", "no VNC server speaks there")
    demand(daemon.show("vm", "screen")["machine"]["display"] == "vnc", f"{daemon.show('vm', 'screen')}")
    daemon.ctl("vm", "set", "screen", "--display", "none")
    demand(screen() == uri, f"what is set for the next start is said of this one: {screen()}")
    daemon.ctl("vm", "stop", "screen")
    demand(not os.path.exists(urlsplit(uri).path), "the screen's socket outlives its machine")
    checks = {c["name"]: c for c in daemon.ctl("vm", "doctor", "--json").json()["checks"]}
    if checks["spice"]["ok"]:
        restart("spice")
        link = struct.pack("<4s3I", b"REDQ", 2, 2, 18) + struct.pack("<IBBIII", 0, 1, 0, 0, 0, 18)
        demand(greeting(screen(), "spice", 4, link) == b"REDQ", "no SPICE server speaks there")
        daemon.ctl("vm", "stop", "screen")
    else:
        answer = restart("spice", status=3)
        demand(answer.is_one_sentence() and "qemu-system-modules-spice" in answer.err, f"{answer}")
        print("display: this QEMU has no SPICE")
    restart("none")
    demand(screen() is None, f"without a screen there is one: {screen()}")
    daemon.ctl("vm", "stop", "screen")
    daemon.ctl("vm", "remove", "screen", "--delete-files")


def budget(vm):
    """Two vms on a host that has memory for one: the second one's start, and what was saved of it, wait for the
    first one's end, and no longer."""
    folder = vm.path("budget")
    os.mkdir(folder)
    host = os.path.join(os.environ["VHDD_BUILD"], "vmm-glue/vmm-host")
    with daemonlib.Daemon(folder, ["--vmm-command", host, "--host-memory", "300M"]) as daemon:
        daemon.start()
        for name in ("one", "two"):
            daemon.ctl("vm", "create", name, "--memory", "startup=200M", "--accel", "tcg")
            daemon.ctl("disk", "attach", name, os.path.join(folder, name + ".vhd"), "--create", "16M",
                       "--at", "ide0:0")

        def refused():
            answer = daemon.ctl("vm", "start", "two", status=3)
            demand(answer.is_one_sentence(), f"{answer}")
            for words in ("'two' starts with 200 MiB", "1 other vm with 200 MiB", "300 MiB", "--host-memory",
                          "stop or save"):
                demand(words in answer.err, f"'{words}' is not in: {answer.err}")

        daemon.ctl("vm", "start", "one")
        refused()
        demand(not daemon.show("vm", "two")["on"], "a refused start left something behind")
        daemon.ctl("vm", "stop", "one")
        daemon.ctl("vm", "start", "two")
        daemon.ctl("vm", "save", "two")
        daemon.ctl("vm", "start", "one")
        refused()
        demand(daemon.show("vm", "two")["machine"]["state"] == "saved", "what was saved is given up")
        daemon.ctl("vm", "stop", "one")
        daemon.ctl("vm", "start", "two")
        demand(daemon.show("vm", "two")["machine"]["state"] == "running", f"{daemon.show('vm', 'two')}")
        daemon.ctl("vm", "stop", "two")
        daemon.stop()


def memory(vm):
    """Memory and disk are of one moment, after each apply and revert."""
    vm.begin()
    first = vm.counter()
    vm.await_progress(5)
    vm.ctl("snapshot", "take", NAME, "later")
    vm.await_progress(5)
    later = vm.counter()
    vm.begin()
    demand(vm.counter() < later, "an apply did not bring the memory back")
    demand(vm.counter() <= first + 60, f"the counter is {vm.counter()}, and was {first}")
    vm.await_progress(5)
    vm.ctl("snapshot", "apply", NAME, "later")
    vm.connect()
    demand(vm.counter() >= first + 5, "the second snapshot's memory is the first one's")
    vm.await_progress()
    vm.ctl("snapshot", "delete", NAME, "later", "--wait")
    vm.await_progress()


def saved(vm):
    """vm save keeps all until the next start; a saved vm is on, and its disks are not to be touched."""
    vm.begin()
    vm.inside("echo kept > /tmp/kept")
    vm.ctl("vm", "save", NAME)
    demand(vm.state() == "saved" and not vm.process("qemu"), f"a saved vm is '{vm.state()}'")
    demand(vm.show()["on"], "a saved vm counts as off")
    answer = vm.ctl("disk", "attach", NAME, vm.path("late.vhd"), "--create", "1M", "--at", "scsi0:9",
                    status=3)
    demand("saved" in answer.err, f"a disk for a saved vm: {answer.err}")
    vm.kill("supervisor")
    wait_until(lambda: vm.state() == "saved", "the next supervisor does not know of the saved memory")
    # On another file system, where there is one.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        vm.ctl("vm", "set", NAME, "--snapshot-dir", other)
        vm.ctl("snapshot", "take", NAME, "elsewhere")
        vm.ctl("snapshot", "delete", NAME, "elsewhere", "--wait")
        vm.ctl("vm", "set", NAME, "--snapshot-dir", vm.path("snapshots"))
    vm.ctl("snapshot", "take", NAME, "of-saved")
    demand(vm.daemon.query("snapshot", "show", NAME, "of-saved")["memory"], "no memory of a saved vm")
    # It goes on with what it was started with, whatever the next start is to have.
    vm.ctl("vm", "set", NAME, "--memory", "startup=1T,max=1T")
    vm.ctl("vm", "start", NAME)
    vm.ctl("vm", "set", NAME, "--memory", "startup=256M,max=512M")
    vm.connect()
    demand(vm.inside("cat /tmp/kept") == "kept", "what was saved did not come back")
    vm.await_progress()
    vm.ctl("vm", "save", NAME)
    vm.ctl("vm", "stop", NAME)
    demand(not vm.show()["on"] and vm.state() == "off", "stop does not give saved memory up")
    vm.ctl("vm", "start", NAME)
    vm.ctl("snapshot", "apply", NAME, "of-saved")
    vm.connect()
    demand(vm.inside("cat /tmp/kept") == "kept", "a saved vm's snapshot has other memory")
    vm.ctl("snapshot", "apply", NAME, "begin")
    vm.ctl("snapshot", "delete", NAME, "of-saved", "--wait")


def agent(vm):
    """Heartbeat, what the guest says of itself, time after a restore, shutdown."""
    vm.begin()
    demand(not vm.show()["machine"]["guest"]["agent"], "an agent answers where there is none")
    vm.put("/tmp/agent.sh", AGENT)
    vm.inside("port=$(basename /dev/vport*p1); sed -i \"s/vport7p1/$port/\" /tmp/agent.sh")
    vm.inside("setsid sh /tmp/agent.sh > /tmp/agent.log 2>&1 &")
    wait_until(lambda: vm.show()["machine"]["guest"]["agent"],
               lambda: f"no heartbeat: {vm.show()} {vm.inside('cat /tmp/agent.log; ls /dev/vport*')}")
    wait_until(lambda: vm.show()["machine"]["guest"].get("os") == "a small guest", "no osinfo came")
    demand(vm.show()["machine"]["guest"]["version"] == "9.9", "no version came")
    wait_until(lambda: "time" in vm.inside("cat /tmp/agent"), "the guest was not told the time")
    checks = {c["name"]: c for c in vm.ctl("vm", "doctor", NAME, "--json").json()["checks"]}
    demand(checks["guest-agent"]["ok"] and checks["vm"]["ok"] and checks["qemu"]["ok"], f"{checks}")
    vm.inside("touch /tmp/deaf")
    begin = time.monotonic()
    answer = vm.ctl("vm", "shutdown", NAME, "--timeout", "2", status=3)
    demand(2 <= time.monotonic() - begin < 30 and answer.is_one_sentence(), f"a guest that is deaf: {answer}")
    for word in ("within 2 s", "is on still", "vm stop"):
        demand(word in answer.err, f"'{word}' is not in: {answer.err}")
    demand(vm.state() == "running", f"a guest that did not shut down is '{vm.state()}'")
    vm.inside("rm /tmp/deaf")
    vm.ctl("vm", "shutdown", NAME, "--timeout", "1m")
    vm.await_state("off")
    demand(vm.end_of() == "power-off", f"a shutdown ended by {vm.end_of()}")


def disks(vm):
    """64 disks on one controller come and go; one grows; IDE stays as it is."""
    vm.begin()
    before = vm.sd_count()
    for n in range(64):
        answer = vm.call("disk.attach", file=vm.path(f"hot{n}.vhd"), create=4 << 20, at=f"scsi3:{n}",
                         name=f"hot{n}")
        demand(answer["guest"] == "taken", f"disk {n}: {answer['guest']}")
    demand(vm.sd_count() == before + 64, f"the guest has {vm.sd_count()} disks")
    answer = vm.ctl("disk", "attach", NAME, vm.path("more.vhd"), "--create", "4M", "--at", "scsi3:0",
                    status=3)
    demand("scsi3:0" in answer.err, f"a place that is taken: {answer.err}")
    for arguments in (("attach", NAME, vm.path("more.vhd"), "--create", "4M", "--at", "ide1:0"),
                      ("detach", NAME, "root")):
        answer = vm.ctl("disk", *arguments, status=3)
        demand("IDE" in answer.err and "while the vm" in answer.err, f"IDE: {answer.err}")
    demand(not os.path.exists(vm.path("more.vhd")), "a refused disk left a file behind")
    vm.ctl("disk", "resize", NAME, "hot5", "12M")
    wait_until(lambda: "24576" in vm.inside("cat /sys/block/sd*/size"), "the guest has the old size")
    for n in range(64):
        vm.call("disk.detach", disk=f"hot{n}")
    wait_until(lambda: vm.sd_count() == before, "disks stay in the guest")
    vm.ctl("vm", "pause", NAME)
    answer = vm.daemon.query("disk", "attach", NAME, vm.path("hot.vhd"), "--create", "4M", "--at",
                             "scsi2:0", "--name", "hot")
    demand(answer["guest"] == "unseen", f"a guest that stands has seen a disk: {answer['guest']}")
    vm.ctl("vm", "resume", NAME)
    wait_until(lambda: vm.sd_count() == before + 1, "the disk does not come when the guest goes on")
    vm.await_progress()


def power(vm):
    """Reset and reboot are no power-off; pause stands; the guest's power-off is seen."""
    vm.begin()
    resets = vm.show()["machine"]["resets"]
    vm.ctl("vm", "pause", NAME)
    demand(vm.state() == "paused" and vm.show()["on"], f"paused is '{vm.state()}'")
    vm.ctl("vm", "resume", NAME)
    vm.await_progress()
    vm.ctl("vm", "reset", NAME)
    demand(vm.state() == "running", f"after a reset it is '{vm.state()}'")
    wait_until(lambda: vm.show()["machine"]["resets"] == resets + 1, "the reset was not counted")
    vm.begin()
    vm.guest.send("reboot -f")
    wait_until(lambda: vm.show()["machine"]["resets"] == resets + 2, "the reboot was not seen")
    demand(vm.show()["on"] and vm.state() == "running", "a reboot switched the vm off")
    vm.begin()
    vm.ctl("vm", "shutdown", NAME)  # by the power button: no agent runs
    vm.await_state("off")
    demand(vm.end_of() == "power-off", f"a shutdown by the button ended by {vm.end_of()}")
    vm.begin()
    vm.guest.send("poweroff -f")
    vm.await_state("off")
    demand(vm.end_of() == "power-off" and not vm.show()["on"], f"power-off is '{vm.end_of()}'")
    vm.ctl("vm", "stop", NAME)
    vm.ctl("vm", "start", NAME)
    demand("already" in vm.ctl("vm", "start", NAME, status=3).err, "it was started twice")
    vm.ctl("vm", "stop", NAME)
    demand(vm.end_of() == "stopped" and vm.state() == "off", "stop is not seen as such")


def crash(vm):
    """A crashed kernel, and a killed QEMU: told apart from a power-off."""
    vm.begin()
    vm.guest.send("echo c > /proc/sysrq-trigger")
    vm.await_state("crashed")
    demand(vm.show()["on"], "a crashed guest's vm is off")
    demand("reset" in vm.ctl("vm", "resume", NAME, status=3).err, "a crashed guest can be resumed")
    vm.ctl("vm", "reset", NAME)
    vm.await_state("running")
    vm.begin()
    vm.kill("qemu")
    vm.await_state("off")
    demand(vm.end_of() == "crash" and not vm.show()["on"], f"a killed QEMU is '{vm.end_of()}'")
    demand("signal 9" in vm.show()["machine"]["last-end"]["message"], "the signal is not named")


def deaths(vm):
    """Supervisor, vmm-host, worker, broker: each dies under the guest, and the guest does not see it."""
    vm.begin()
    qemu = vm.process("qemu")

    def goes_on(who):
        vm.await_progress()
        wait_until(lambda: vm.state() == "running", f"{who} died, and the vm is '{vm.state()}'")
        demand(vm.process("qemu") == qemu, f"QEMU died with {who}")
        vm.ctl("vm", "pause", NAME)
        vm.ctl("vm", "resume", NAME)

    vm.kill("supervisor")
    goes_on("the supervisor")
    host = vm.kill("host")
    goes_on("vmm-host")
    wait_until(lambda: vm.process("host") not in (None, host), "no vmm-host was started again")
    os.kill(vm.daemon.worker(NAME), signal.SIGKILL)
    goes_on("the worker")
    vm.daemon.kill_broker()
    vm.await_progress()
    vm.daemon.start()
    wait_until(lambda: vm.show()["agent"], "the supervisor did not register with the new daemon")
    goes_on("the broker")
    vm.kill("supervisor")
    vm.kill("host")
    vm.kill("qemu")
    vm.await_state("off")
    demand(not vm.show()["on"], "nobody saw that QEMU ended with its supervisor")


def outage(vm):
    """The disks are away for longer than QEMU waits: the guest stands, and goes on by itself."""
    vm.begin()
    vm.daemon.kill_broker()
    for pid in vm.daemon.role("worker"):
        os.kill(pid, signal.SIGKILL)
    qmp = os.path.join(vm.daemon.state, "run/vmm")
    log = os.path.join(qmp, os.listdir(qmp)[0])
    demand(os.path.exists(log), "no folder of the vm")
    end = time.monotonic() + 90
    while "answers with an error" not in vm.daemon.tail():
        demand(time.monotonic() < end, f"no outage was seen\n{vm.daemon.tail()}")
        time.sleep(0.1)
    vm.daemon.start()
    wait_until(lambda: vm.show()["agent"] and vm.state() == "running",
               lambda: f"the guest does not go on: {vm.state()}", 90)
    vm.await_progress()


CASES = {"bad-input": bad_input, "display": display, "budget": budget, "memory": memory, "saved": saved,
         "agent": agent, "disks": disks, "power": power, "crash": crash, "deaths": deaths, "outage": outage}


if __name__ == "__main__":
    vmmlib.main("vmm", CASES, __doc__, without_guest=("bad-input", "display", "budget"))
