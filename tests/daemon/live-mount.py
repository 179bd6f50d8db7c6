#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""live-mount - `vhdctl mount --live` shows what the daemon has, and what a guest has just written.

Vms, disks and snapshots come and go as files while it is mounted, those with odd names too. A byte that was
written over NBD is what a read of `now' gives, at once and every time; a snapshot's file stays as it was. Holes
are holes. It counts as no use: a vm that is off stays off, and goes back to a snapshot while its files are open.
The broker restarted, the worker killed, the daemon away: reads go on or fail with EIO, and work again. A snapshot
that is deleted while it is read harms nobody.
Needs /dev/fuse and the right to mount; else skipped."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

MIB = 1 << 20
SIZE = 8 * MIB
SOON_S = 10  # in which an event has to be seen
MOUNT_S = 30


class Live:
    """The mount, at folder/live; ended however the test goes."""

    def __init__(self, daemon, folder):
        self.daemon, self.path = daemon, os.path.join(folder, "live")
        os.mkdir(self.path)
        self.mounted = False

    def __enter__(self):
        answer = self.daemon.try_ctl("mount", "--live", self.path, "--control", self.daemon.control)
        if "/dev/fuse" in answer.err or "fusermount3" in answer.err:
            daemonlib.skip(f"nothing can be mounted here: {answer.err.strip()}")
        demand(answer.status == 0, f"{answer}")
        self.mounted = True
        return self

    def __exit__(self, *_):
        if self.mounted:
            subprocess.run([self.daemon.vhdctl, "umount", "--force", self.path], check=False,
                           stderr=subprocess.DEVNULL, timeout=MOUNT_S)

    def end(self):
        pid = self.server()
        self.daemon.ctl("umount", self.path)
        self.mounted = False
        demand(not os.path.exists(f"/proc/{pid}") or zombie(pid), "vhdfuse goes on after umount")
        demand(not os.listdir(self.path), "something is left in the folder")

    def server(self):
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if words[0] == b"vhdfuse" and self.path.encode() in words:
                return int(name)
        raise daemonlib.TestFailed("no vhdfuse serves the mount")

    def at(self, *names):
        return os.path.join(self.path, *names)

    def info(self):
        """@info.json; a new one may take its place between finding and opening it."""
        for _ in range(100):
            try:
                with open(self.at("@info.json"), encoding="utf-8") as f:
                    return json.load(f)
            except FileNotFoundError:
                time.sleep(0.01)
        raise daemonlib.TestFailed("there is no @info.json")

    def names(self, *folder):
        try:
            return set(os.listdir(self.at(*folder)))
        except FileNotFoundError:
            return None

    def shows(self, wanted, *folder):
        """Waits until the folder's names are these (None: there is no such folder)."""
        end = time.monotonic() + SOON_S
        while self.names(*folder) != wanted:
            demand(time.monotonic() < end,
                   f"'{'/'.join(folder)}' shows {self.names(*folder)}, and not {wanted}\n{self.daemon.tail()}")
            time.sleep(0.01)


def zombie(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def read(path, length=-1, at=0):
    with open(path, "rb", buffering=0) as f:
        f.seek(at)
        if length >= 0:
            return f.read(length)
        return f.readall()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def is_on(daemon, vm):
    return daemon.show("vm", vm)["on"]


def appear_and_go(daemon, live, folder):
    odd = "50% ä b"
    live.shows({"@info.json"})
    daemon.ctl("vm", "create", "web")
    daemon.ctl("vm", "create", odd)
    live.shows({"@info.json", "web", odd})
    daemon.ctl("disk", "attach", "web", os.path.join(folder, "a.vhd"), "--create", "8M", "--name", "a")
    daemon.ctl("disk", "attach", odd, os.path.join(folder, "o.vhd"), "--create", "8M", "--name", "d %41")
    live.shows({"a"}, "web")
    live.shows({"now"}, "web", "a")
    live.shows({"now"}, odd, "d %41")
    demand(len(read(live.at(odd, "d %41", "now"))) == SIZE, "an odd name's disk is not whole")
    daemon.ctl("snapshot", "take", odd, "é #1?")
    live.shows({"now", "@é #1?"}, odd, "d %41")
    demand(read(live.at(odd, "d %41", "@é #1?")) == bytes(SIZE), "an odd snapshot reads otherwise")
    with open(live.at(odd, "d %41", "@é #1?"), "rb", buffering=0) as f:
        f.read(4096)
        refused = daemon.ctl("snapshot", "rename", odd, "é #1?", "plain", status=3)
        demand("read by a client" in refused.err, f"an open file is no client: {refused}")
    daemon.ctl("snapshot", "rename", odd, "é #1?", "plain")
    live.shows({"now", "@plain"}, odd, "d %41")
    daemon.ctl("vm", "set", odd, "--name", "other")
    live.shows({"@info.json", "web", "other"})
    live.shows({"now", "@plain"}, "other", "d %41")
    demand(read(live.at("other", "d %41", "@plain")) == bytes(SIZE), "another name, other bytes")
    daemon.ctl("disk", "detach", "other", "d %41")
    live.shows({"@plain"}, "other", "d %41")
    daemon.ctl("snapshot", "delete", "other", "plain")
    live.shows(set(), "other")
    daemon.ctl("vm", "remove", "other")
    live.shows({"@info.json", "web"})
    demand(live.info()["daemon"]["connected"] is True, "@info.json does not say that the daemon is there")


def coherent(daemon, live, chance):
    """What a guest wrote is what is read, although it was read before, by one that has it open, too."""
    path = live.at("web", "a", "now")
    model = bytearray(SIZE)
    guest = daemon.connect("web/a")
    demand(os.stat(path).st_size == SIZE, "the size is another")
    with open(path, "rb", buffering=0) as held:
        for _ in range(150):
            at = chance.randrange(SIZE // 512) * 512
            length = min(chance.choice([512, 4096, 65536]), SIZE - at)
            data = chance.randbytes(length)
            guest.pwrite(data, at)
            model[at:at + length] = data
            held.seek(at)
            demand(held.read(length) == data, f"a read at {at} does not give what was just written")
        demand(read(path) == model, "the disk reads otherwise")
    daemonlib.leave(guest)
    return model


def snapshots(daemon, live, model, chance):
    daemon.ctl("snapshot", "take", "web", "one")
    live.shows({"now", "@one"}, "web", "a")
    one = live.at("web", "a", "@one")
    taken = digest(model)
    demand(digest(read(one)) == taken, "the snapshot is not the disk of its instant")
    demand(abs(os.stat(one).st_mtime - time.time()) < 60, "a snapshot's time is not its own")
    demand(abs(os.stat(live.at("web", "a", "now")).st_mtime - time.time()) < 60, "a live disk's is not now")
    guest = daemon.connect("web/a")
    data = chance.randbytes(MIB)
    guest.pwrite(data, 3 * MIB)
    model[3 * MIB:4 * MIB] = data
    daemonlib.leave(guest)
    demand(digest(read(one)) == taken, "a snapshot changed")
    demand(read(live.at("web", "a", "now")) == model, "the live disk reads otherwise")
    for write in (lambda: open(one, "r+b"), lambda: os.truncate(one, 0), lambda: os.unlink(one)):
        try:
            write()
        except OSError as e:
            demand(e.errno in (errno.EROFS, errno.EPERM, errno.EACCES), f"a change is refused with {e}")
        else:
            demand(False, "a snapshot can be changed")
    return taken


def holes(daemon, live, folder):
    daemon.ctl("disk", "attach", "web", os.path.join(folder, "h.vhd"), "--create", "64M", "--name", "h")
    live.shows({"now"}, "web", "h")
    guest = daemon.connect("web/h")
    guest.pwrite(b"x" * 65536, 32 * MIB)
    daemonlib.leave(guest)
    with open(live.at("web", "h", "now"), "rb", buffering=0) as f:
        data = os.lseek(f.fileno(), 0, os.SEEK_DATA)
        hole = os.lseek(f.fileno(), data, os.SEEK_HOLE)
        demand(30 * MIB <= data <= 32 * MIB < hole <= 34 * MIB, f"the data is at {data} to {hole}")
        try:
            more = os.lseek(f.fileno(), hole, os.SEEK_DATA)
            demand(False, f"there is data at {more}")
        except OSError as e:
            demand(e.errno == errno.ENXIO, f"no more data is {e}")
    copy = os.path.join(folder, "copy.raw")
    subprocess.run(["cp", live.at("web", "h", "now"), copy], check=True)
    demand(os.stat(copy).st_blocks * 512 < 4 * MIB, "a copy has no holes")
    demand(read(copy, 65536, 32 * MIB) == b"x" * 65536, "a copy reads otherwise")
    daemon.ctl("disk", "detach", "web", "h")
    live.shows(None, "web", "h")


def stays_off(daemon, live, taken):
    """Both files are open while the vm goes back: to do so it must be off."""
    with open(live.at("web", "a", "now"), "rb", buffering=0) as now, \
            open(live.at("web", "a", "@one"), "rb", buffering=0) as one:
        now.read(4096)
        one.read(4096)
        demand(not is_on(daemon, "web"), "reading files counts as the vm being on")
        daemon.ctl("snapshot", "apply", "web", "one")
        now.seek(0)
        demand(digest(now.readall()) == taken, "`now' is not what the vm went back to")
        demand(digest(read(live.at("web", "a", "now"))) == taken, "`now', opened anew, is not it either")
    demand(daemon.show("vm", "web")["clients"] == 0, "a connection is left after the last user")


def killed_worker(daemon, live, taken):
    with open(live.at("web", "a", "now"), "rb", buffering=0) as f:
        f.read(4096)
        os.kill(daemon.worker("web"), signal.SIGKILL)
        f.seek(0)
        demand(digest(f.readall()) == taken, "reading does not go on after the worker was killed")


def restarted_broker(daemon, live, taken):
    with open(live.at("web", "a", "@one"), "rb", buffering=0) as f:
        f.read(4096)
        daemon.ctl("restart")
        f.seek(0)
        demand(digest(f.readall()) == taken, "reading does not go on after a restart")
        daemon.wait_ready()
        daemon.ctl("snapshot", "take", "web", "two")
        live.shows({"now", "@one", "@two"}, "web", "a")
        daemon.kill_broker()
        end = time.monotonic() + SOON_S
        while live.info()["daemon"]["connected"]:
            demand(time.monotonic() < end, "that the broker is away is not seen")
            time.sleep(0.01)
        demand("hint" in live.info()["daemon"], "@info.json has no hint")
        # Its workers are not, and a file that is open goes on.
        f.seek(0)
        f.read(4096)
        try:
            read(live.at("web", "a", "@two"), 4096)
            demand(False, "a file can be opened without a daemon")
        except OSError as e:
            demand(e.errno == errno.EIO, f"reading without a daemon fails with {e}")
        demand(live.names("web", "a") == {"now", "@one", "@two"}, "files are gone with the daemon")
    daemon.start()
    end = time.monotonic() + SOON_S
    while not live.info()["daemon"]["connected"]:
        demand(time.monotonic() < end, "that the broker is back is not seen")
        time.sleep(0.01)
    for name in ("now", "@one", "@two"):
        demand(digest(read(live.at("web", "a", name))) == taken, f"'{name}' reads otherwise after all that")


def deleted_while_open(daemon, live, taken):
    with open(live.at("web", "a", "@two"), "rb", buffering=0) as f:
        f.read(4096)
        answer = daemon.try_ctl("snapshot", "delete", "web", "two")
        demand(answer.status == 0, f"a snapshot that is read cannot be deleted: {answer}")
        live.shows({"now", "@one"}, "web", "a")
        f.seek(0)
        try:
            demand(digest(f.read(SIZE)) == taken, "a deleted snapshot reads as something else")
        except OSError as e:
            demand(e.errno == errno.EIO, f"a deleted snapshot fails with {e}")
    # One of the same name is another.
    guest = daemon.connect("web/a")
    guest.pwrite(b"new" * 512, 0)
    daemonlib.leave(guest)
    daemon.ctl("snapshot", "take", "web", "two")
    live.shows({"now", "@one", "@two"}, "web", "a")
    demand(read(live.at("web", "a", "@two"), 1536) == b"new" * 512, "an old snapshot of the same name is shown")
    daemon.ctl("job", "wait")


def test(folder):
    if not os.path.exists("/dev/fuse"):
        daemonlib.skip("no /dev/fuse")
    chance = random.Random(5)
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        with Live(daemon, folder) as live:
            appear_and_go(daemon, live, folder)
            model = coherent(daemon, live, chance)
            holes(daemon, live, folder)
            snapshots(daemon, live, model, chance)
            daemon.ctl("snapshot", "delete", "web", "one")
            live.shows({"now"}, "web", "a")
            taken = snapshots(daemon, live, model, chance)
            stays_off(daemon, live, taken)
            killed_worker(daemon, live, taken)
            restarted_broker(daemon, live, taken)
            deleted_while_open(daemon, live, taken)
            live.end()
        daemon.stop()


if __name__ == "__main__":
    daemonlib.run("live-mount", test)
