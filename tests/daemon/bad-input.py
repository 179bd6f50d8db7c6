#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""bad-input - what must be refused, is: with one clear sentence, and nothing is different afterwards.

Names that are paths, that no terminal shows, or that never end; exports that do not exist; writes to
the past; a control client that never says newline; a second daemon on the same state; an image that
QEMU has open; a disk that is full in the middle of a snapshot; somebody who may not ask at all.
After each: the same vms, disks, snapshots and files as before, and the daemon still answers."""

import os
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand, nbd  # noqa: E402

BAD_NAMES = {
    "a slash": "a/b", "a way up": "../up", "a step up": "..", "a folder": ".", "an at sign": "a@b",
    "a reserved word": "now", "a new line": "new\nline", "an escape": "red\x1b[31m", "a tab": "a\tb",
    "delete": "a\x7f", "nothing": "", "129 bytes": "x" * 129, "10,000 characters": "x" * 10000,
    "broken UTF-8": "\udcff\udcfe",
}
MIB = 1 << 20
NOBODY = 65534


class Scene:
    """A daemon with a vm of one disk and one snapshot, and what it looked like."""

    def __init__(self, folder):
        self.folder = folder
        self.disks = os.path.join(folder, "disks")
        os.mkdir(self.disks)
        self.daemon = daemonlib.Daemon(folder)
        self.cases = 0

    def begin(self):
        daemon = self.daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", self.file("disk.vhd"), "--name", "disk",
                   "--create", "16M")
        handle = daemon.connect("web/disk")
        handle.pwrite(b"old!" * 1024, 4096)
        handle.flush()
        daemonlib.leave(handle)
        daemon.ctl("snapshot", "take", "web", "good")
        self.before = self.state()

    def file(self, name):
        return os.path.join(self.disks, name)

    def state(self):
        """All that must not change."""
        def kept(rows, *keys):
            return [{key: row[key] for key in keys} for row in rows]

        daemon = self.daemon
        vms = daemon.query("vm", "list")
        return {
            "vms": kept(vms, "name", "id", "disks", "snapshots", "current"),
            "disks": [kept(daemon.query("disk", "list", vm["name"]),
                           "name", "id", "at", "file", "size") for vm in vms],
            "snapshots": [kept(daemon.query("snapshot", "list", vm["name"]),
                               "name", "id", "parent", "current") for vm in vms],
            "files": sorted(os.listdir(self.disks)),
            "jobs": daemon.query("job", "list"),
        }

    def unchanged(self, what):
        self.cases += 1
        after = self.state()
        demand(after == self.before, f"{what}: it was\n  {self.before}\nand is\n  {after}")

    def refused(self, what, status, *arguments):
        """vhdctl must end so, with one sentence, and leave everything as it was."""
        answer = self.daemon.finish(self.daemon.popen(*arguments))
        one_sentence(f"{what}: {answer}", answer, status)
        self.unchanged(what)
        return answer.err


def one_sentence(what, answer, status):
    demand(answer.status == status, f"{what} (expected {status})")
    demand(answer.err.strip(), f"{what}: nothing was said")
    demand(answer.is_one_sentence(), f"{what}: this is not one sentence")
    demand(len(answer.err) < 700, f"{what}: {len(answer.err)} characters are no sentence")
    demand(all(c.isprintable() or c == "\n" for c in answer.err),
           f"{what}: what was said has control characters in it: {answer.err!r}")


def bad_names(scene):
    for why, name in BAD_NAMES.items():
        for arguments in (["vm", "create", name],
                          ["vm", "set", "web", "--name", name],
                          ["disk", "attach", "web", scene.file("no.vhd"), "--create", "1M",
                           "--name", name],
                          ["snapshot", "take", "web", name],
                          ["snapshot", "rename", "web", "good", name]):
            scene.refused(f"{why} as a name", 2, *arguments)
    # What looks odd and is allowed is kept as it is.
    for name in ("..b", "a b", "ü", "x" * 128, "%41", "-dash"):
        scene.daemon.ctl("snapshot", "rename", "--", "web", "good", name)
        rows = scene.daemon.query("snapshot", "list", "web")
        demand([r["name"] for r in rows] == [name], f"'{name}' became {rows}")
        scene.daemon.ctl("snapshot", "rename", "--", "web", name, "good")
    scene.unchanged("odd names and back")


def bad_requests(scene):
    refused = scene.refused
    refused("a vm twice", 3, "vm", "create", "web")
    refused("a snapshot twice", 3, "snapshot", "take", "web", "good")
    refused("an unknown vm", 3, "snapshot", "take", "nobody", "x")
    refused("an unknown snapshot", 3, "snapshot", "apply", "web", "nothing")
    refused("an unknown disk", 3, "disk", "detach", "web", "nothing")
    refused("a missing file", 3, "disk", "attach", "web", scene.file("missing.vhd"))
    refused("a name that is taken", 3, "disk", "attach", "web", scene.file("no.vhd"), "--create",
            "1M", "--name", "disk")
    refused("a place that is taken", 3, "disk", "attach", "web", scene.file("no.vhd"), "--create",
            "1M", "--at", "scsi0:0")
    for place in ("scsi4:0", "scsi0:64", "ide2:0", "ide0:2", "scsi0", "sata0:0", "scsi0:-1"):
        refused(f"{place} as a place", 2, "disk", "attach", "web", scene.file("no.vhd"),
                "--create", "1M", "--at", place)
    refused("a size beyond what a VHD can be", 2, "disk", "attach", "web", scene.file("no.vhd"),
            "--create", "2041G")
    refused("a file that exists", 3, "disk", "attach", "web",
            scene.daemon.query("disk", "list", "web")[0]["file"], "--create", "1M", "--name", "b")
    with open(scene.file("text.vhd"), "w", encoding="ascii") as f:
        f.write("this is no disk\n" * 1000)
    scene.before["files"] = sorted(os.listdir(scene.disks))
    refused("a text as an image", 3, "disk", "attach", "web", scene.file("text.vhd"))
    refused("the same image twice", 3, "disk", "attach", "web",
            scene.daemon.query("disk", "list", "web")[0]["file"], "--name", "b")


def bad_clients(scene):
    daemon = scene.daemon
    for export in ("web/nothing", "nothing/disk", "web", "", "web/disk@nothing", "web/../web/disk",
                   "web/disk@good@good", "x" * 4000, "web/disk\n"):
        handle = nbd.NBD()
        handle.set_export_name(export)
        try:
            handle.connect_unix(daemon.socket)
            raise daemonlib.TestFailed(f"there is an export '{export[:40]}'")
        except nbd.Error as e:
            demand(str(e), "an unknown export is refused without a word")
    scene.unchanged("unknown exports")
    for export in ("web/disk@good", "web/disk@now"):
        handle = daemon.connect(export)
        demand(handle.is_read_only(), f"{export} says that it can be written")
        handle.set_strict_mode(0)
        before = handle.pread(8192, 0)
        for attempt in (lambda h: h.pwrite(b"new!" * 1024, 4096), lambda h: h.trim(4096, 4096),
                        lambda h: h.zero(4096, 4096)):
            try:
                attempt(handle)
                raise daemonlib.TestFailed(f"{export} took a write")
            except nbd.Error as e:
                demand(e.errnum in (1, 22, 30), f"a write to {export}: {e}")
        demand(handle.pread(8192, 0) == before, f"{export} has changed")
        daemonlib.leave(handle)
    scene.unchanged("writes to the past")


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS"))


def endless_line(scene):
    """100 MiB without a newline: refused long before its end, and not kept."""
    before, sent, heard = resident(scene.daemon.broker.pid), 0, b""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect(scene.daemon.control)
        try:
            while sent < 100 * MIB:
                sent += s.send(b"[" * 65536)
        except OSError:
            pass
        try:
            heard = s.recv(65536)
        except OSError:
            pass
    demand(sent < 100 * MIB, "a line of 100 MiB was taken")
    demand(not heard or b'"error"' in heard, f"the answer to a line without an end is {heard!r}")
    grown = resident(scene.daemon.broker.pid) - before
    demand(grown < 16 * MIB, f"a line without an end costs {grown} bytes")
    scene.unchanged("100 MiB without a newline")
    for text in (b"\0\0\0\n", b"{}\n", b"[1,2]\n", b'{"jsonrpc":"2.0","id":1,"method":5}\n',
                 b'{"jsonrpc":"2.0","id":1,"method":"status","params":[1]}\n', b"[" * 60000 + b"\n",
                 b'{"jsonrpc":"2.0","id":1,"method":"vm.create","params":{"vm":{"a":1}}}\n',
                 b'{"jsonrpc":"2.0","id":1,"method":"vm.create","params":{"vm":"a","b":1}}\n'):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)
            s.connect(scene.daemon.control)
            s.sendall(text)
            heard = s.recv(65536)
            demand(b'"error"' in heard, f"the answer to {text[:60]!r} is {heard!r}")
    scene.unchanged("what is no request")


def second_daemon(scene):
    daemon = scene.daemon
    other = subprocess.run(
        [daemon.vhdd, "--state-dir", daemon.state, "--control", daemon.control + "2",
         "--nbd-socket", daemon.socket + "2"], env=daemon.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
    )
    answer = daemonlib.Answer(["vhdd"], other.returncode, other.stdout, other.stderr)
    one_sentence("a second daemon", answer, 3)
    demand(str(daemon.broker.pid) in answer.err, f"{answer}: and does not say who is there")
    demand(daemon.broker.poll() is None, "the first daemon is gone")
    demand(not os.path.exists(daemon.control + "2"), "the second daemon left a socket")
    scene.unchanged("a second daemon")
    daemonlib.leave(daemon.connect("web/disk"))


def open_in_qemu(scene):
    if not shutil.which("qemu-storage-daemon"):
        return "without QEMU"
    file, taken = scene.file("qemu.vhd"), os.path.join(scene.folder, "qemu.pid")
    scene.daemon.ctl("create", "--quiet", file, "--size", "4M")
    scene.before["files"] = sorted(os.listdir(scene.disks))
    # A path in an environment without our mark: it is not the daemon's.
    qemu = subprocess.Popen(
        ["qemu-storage-daemon", "--pidfile", taken, "--blockdev",
         f"driver=file,node-name=f,filename={file},locking=on", "--blockdev",
         "driver=vpc,node-name=v,file=f", "--nbd-server",
         f"addr.type=unix,addr.path={scene.folder}/qemu.sock", "--export",
         "type=nbd,id=e,node-name=v,name=e,writable=on"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 20
        while not os.path.exists(taken):
            demand(qemu.poll() is None and time.monotonic() < end, "qemu-storage-daemon failed")
            time.sleep(0.01)
        said = scene.refused("an image that QEMU has open", 3, "disk", "attach", "web", file)
        demand("qemu.vhd" in said, f"the sentence does not name the file: {said}")
    finally:
        qemu.terminate()
        qemu.wait()
    # And the other way round: what we serve, QEMU cannot write to.
    ours = scene.daemon.query("disk", "list", "web")[0]["file"]
    done = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", ours], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    demand("lock" in done.stdout, f"QEMU opens for writing what we serve: {done.stdout}")
    scene.unchanged("QEMU and we")
    return "with QEMU"


def full_disk(scene):
    """No room for the snapshot's new images: no snapshot, and the disk goes on."""
    small = os.path.join(scene.folder, "small")
    os.mkdir(small)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", small],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if mounted.returncode != 0:
        return "without a full disk (it needs mount)"
    daemon, filler = scene.daemon, os.path.join(small, "filler")
    try:
        daemon.ctl("vm", "create", "tight")
        for disk in ("one", "two"):
            daemon.ctl("disk", "attach", "tight", os.path.join(small, disk + ".vhd"), "--name", disk,
                       "--create", "64K" if disk == "two" else "1M")
        handle = daemon.connect("tight/one")
        handle.pwrite(b"a" * 65536, 0)
        handle.flush()
        with open(filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass
        scene.before, files = scene.state(), sorted(os.listdir(small))
        said = scene.refused("a full disk", 3, "snapshot", "take", "tight", "never")
        demand("space" in said.lower(), f"the sentence does not say that it is full: {said}")
        demand(sorted(os.listdir(small)) == files,
               f"files were {files} and are {sorted(os.listdir(small))}")
        handle.pwrite(b"b" * 4096, 4096)
        demand(handle.pread(65536, 0) == b"a" * 4096 + b"b" * 4096 + b"a" * 57344,
               "the disk does not go on after a snapshot that failed")
        os.unlink(filler)
        daemon.ctl("snapshot", "take", "tight", "now there is room")
        daemonlib.leave(handle)
        daemon.ctl("vm", "remove", "tight")
    finally:
        daemon.end()
        subprocess.run(["umount", small], check=False)
    daemon.start()
    scene.before = scene.state()
    return "with a full disk"


def stranger(scene):
    """Who is neither root nor of the group gets a refusal that says so."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return "without a stranger (it needs root)"
    daemon = scene.daemon
    vhdctl = os.path.join(scene.folder, "vhdctl")
    shutil.copy(daemon.vhdctl, vhdctl)
    os.chmod(vhdctl, 0o755)
    for path in (scene.folder, daemon.state):
        os.chmod(path, 0o755)
    mode = os.stat(daemon.control).st_mode & 0o777
    # First as the daemon made it; then let anybody connect, and the daemon itself must refuse.
    for socket_mode in (mode, 0o666):
        os.chmod(daemon.control, socket_mode)
        done = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", vhdctl,
             "vm", "create", "stranger", "--control", daemon.control],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )
        answer = daemonlib.Answer(["vhdctl"], done.returncode, done.stdout, done.stderr)
        one_sentence(f"a stranger, socket {socket_mode:o}: {answer}", answer, 3)
        demand("group" in answer.err, f"{answer}: and does not say who may")
    os.chmod(daemon.control, mode)
    scene.unchanged("a stranger")
    return "with a stranger"


def test(folder):
    scene = Scene(folder)
    with scene.daemon:
        scene.begin()
        bad_names(scene)
        bad_requests(scene)
        bad_clients(scene)
        endless_line(scene)
        second_daemon(scene)
        done = [step(scene) for step in (open_in_qemu, full_disk, stranger)]
        scene.daemon.stop()
        print(f"summary: {scene.cases} refusals, each one sentence and nothing changed; "
              + ", ".join(done))


if __name__ == "__main__":
    daemonlib.run("bad-input", test)
