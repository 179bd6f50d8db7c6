#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""fuse-random.py - a disk that is mounted, used at random, and held against a model in memory.

Reads, writes, holes, zeros, mapped memory, syncs; through the disk's file and those of its partitions,
through the page cache and past it; with an umount or a kill -9 of vhdfuse now and then. After each step
what was read is what the model has; at the end the image holds the model, and is whole.

Usage: fuse-random.py [--operations N] [--seed N]
"""
import argparse
import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BUILD = os.environ["VHDD_BUILD"]
VHDCTL = os.path.join(BUILD, "vhdd/ctl/vhdctl")
SIZE = 24 << 20
PARTITIONS = {1: (1 << 20, 5 << 20), 2: (6 << 20, (9 << 20) + 4608)}
LONGEST = 600 << 10
PUNCH, ZERO = 3, 17  # FALLOC_FL_PUNCH_HOLE, _ZERO_RANGE; with _KEEP_SIZE

libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def vhdctl(*args):
    return subprocess.run([VHDCTL, *args], check=True, stdout=subprocess.PIPE).stdout


def wait_gone(pid):
    for _ in range(3000):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as f:
                if ") Z " in f.read():
                    return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    raise TimeoutError(f"vhdfuse ({pid}) does not end")


class Run:
    def __init__(self, folder, seed):
        self.random = random.Random(seed)
        self.folder = folder
        self.mnt = os.path.join(folder, "mnt")
        self.image = os.path.join(folder, "child.avhd")
        self.model = bytearray(SIZE)
        self.pid = None
        self.fds = {}
        self.map = None
        self.direct = mmap.mmap(-1, 1 << 20)
        os.mkdir(self.mnt)

    # --- mounting

    def make_images(self):
        base = os.path.join(self.folder, "base.vhd")
        vhdctl("create", "--quiet", "--size", str(SIZE), base)
        raw = os.path.join(self.folder, "base.raw")
        with open(raw, "wb") as f:
            f.truncate(SIZE)
        table = "label: dos\n" + "".join(
            f"start={start // 512}, size={size // 512}\n" for start, size in PARTITIONS.values())
        subprocess.run(["sfdisk", "-q", raw], input=table.encode(), check=True)
        with open(raw, "r+b") as f:
            self.model[:] = f.read()
        for _ in range(60):
            at, length = self.range(1 << 20, SIZE)
            self.model[at:at + length] = self.random.randbytes(length)
        self.image = base
        self.mount()
        self.write(self.fds["disk"], bytes(self.model), 0)
        self.unmount()
        self.image = os.path.join(self.folder, "child.avhd")
        vhdctl("create", "--quiet", "--parent", base, self.image)

    def mount(self):
        answer = vhdctl("mount", "--quiet", "--json", "--writable", self.image, self.mnt)
        self.pid = json.loads(answer)["pid"]
        self.open_all()

    def open_all(self):
        for name, path in [("disk", "disk"), ("1", "partitions/1"), ("2", "partitions/2")]:
            full = os.path.join(self.mnt, path)
            if os.path.exists(full):
                self.fds[name] = os.open(full, os.O_RDWR)
        self.fds["direct"] = os.open(os.path.join(self.mnt, "disk"), os.O_RDWR | os.O_DIRECT)
        self.map = mmap.mmap(self.fds["disk"], SIZE)

    def close_all(self):
        if self.map:
            self.map.close()
            self.map = None
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def unmount(self):
        self.close_all()
        subprocess.run(["umount", self.mnt], check=True)
        wait_gone(self.pid)
        self.pid = None

    def kill(self):
        """What was answered is in the image, though its server died."""
        os.kill(self.pid, signal.SIGKILL)
        wait_gone(self.pid)
        try:
            self.map.close()
        except OSError:
            pass
        self.map = None
        for fd in self.fds.values():
            try:
                os.close(fd)
            except OSError:
                pass
        self.fds = {}
        self.mount()

    # --- one step

    def range(self, low, high):
        """A place and a length, of whole sectors mostly."""
        length = min(int(2 ** self.random.uniform(0, 19.2)), LONGEST, high - low)
        at = self.random.randrange(low, high - length + 1)
        how = self.random.random()
        if how < 0.5:
            at, length = at // 4096 * 4096, max(4096, length // 4096 * 4096)
        elif how < 0.8:
            at, length = at // 512 * 512, max(512, length // 512 * 512)
        at = max(at, low)  # the table before it stays
        return at, min(length, high - at)

    def write(self, fd, data, at):
        view = memoryview(data)
        while view:
            n = os.pwrite(fd, view, at)
            view, at = view[n:], at + n

    def same(self, have, at, what):
        if have != self.model[at:at + len(have)]:
            for i, byte in enumerate(have):
                if byte != self.model[at + i]:
                    raise AssertionError(f"{what}: byte {at + i} is {byte}, not {self.model[at + i]}")

    def place(self):
        """A file, where it begins on the disk, its size. Sector 0 has the table, and stays."""
        name = self.random.choice(["disk", "disk", "1", "2"])
        start, size = PARTITIONS[int(name)] if name != "disk" else (0, SIZE)
        return name, start, size

    def data(self, length):
        how = self.random.random()
        if how < 0.1:
            return bytes(length)
        piece = self.random.randbytes(min(length, 4096))
        return (piece * (length // len(piece) + 1))[:length]

    def step(self):
        name, start, size = self.place()
        at, length = self.range(512 if start == 0 else 0, size)
        fd, on_disk = self.fds[name], start + at
        kind = self.random.random()
        if kind < 0.40:
            self.same(os.pread(fd, length, at), on_disk, f"read of {name}")
        elif kind < 0.70:
            data = self.data(length)
            self.write(fd, data, at)
            self.model[on_disk:on_disk + length] = data
        elif kind < 0.80:
            fallocate(fd, PUNCH if kind < 0.76 else ZERO, at, length)
            self.model[on_disk:on_disk + length] = bytes(length)
        elif kind < 0.86:
            self.step_direct(kind < 0.83)
        elif kind < 0.95:
            self.step_mapped(on_disk, length, kind < 0.91)
        elif kind < 0.97:
            self.step_seek(fd, start, size, at)
        elif kind < 0.985:
            os.fdatasync(fd)
        elif kind < 0.9995:
            self.same(os.pread(self.fds["disk"], 1 << 20, at), at, "read ahead")
        else:
            self.check_all()
            self.random.choice([self.again, self.kill])()

    def again(self):
        self.unmount()
        self.mount()

    def step_direct(self, is_read):
        at = self.random.randrange(1, SIZE // 4096) * 4096
        length = min(self.random.randrange(1, 64) * 4096, SIZE - at)
        fd = self.fds["direct"]
        if is_read:
            n = os.preadv(fd, [memoryview(self.direct)[:length]], at)
            self.same(self.direct[:n], at, "direct read")
            return
        data = self.data(length)
        self.direct[:length] = data
        assert os.pwritev(fd, [memoryview(self.direct)[:length]], at) == length
        self.model[at:at + length] = data

    def step_mapped(self, at, length, is_read):
        if is_read:
            self.same(self.map[at:at + length], at, "mapped memory")
            return
        data = self.data(length)
        self.map[at:at + length] = data
        # As with any two views of one disk: what is only in mapped memory is nowhere else yet.
        self.map.flush()
        self.model[at:at + length] = data

    def step_seek(self, fd, start, size, at):
        """A hole reads as zeros, and what is no hole is found."""
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            data = size
        assert not any(self.model[start + at:start + data]), "a hole over data"
        if data < size:
            hole = os.lseek(fd, data, os.SEEK_HOLE)
            assert data < hole <= size, (data, hole)

    def check_all(self):
        self.same(os.pread(self.fds["disk"], SIZE, 0), 0, "all of the disk")
        for number, (start, size) in PARTITIONS.items():
            self.same(os.pread(self.fds[str(number)], size, 0), start, f"all of partition {number}")

    def check_image(self):
        raw = os.path.join(self.folder, "result.raw")
        vhdctl("check", "--quiet", self.image)
        vhdctl("convert", "--quiet", self.image, raw)
        with open(raw, "rb") as f:
            self.same(f.read(), 0, "the image")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--operations", type=int,
                        default=100000 if os.environ.get("VHDD_LONG") else 25000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    if not os.access("/dev/fuse", os.W_OK) or not shutil.which("fusermount3"):
        print("fuse-random: skipped: no FUSE")
        sys.exit(77)
    if not shutil.which("sfdisk"):
        print("fuse-random: skipped: sfdisk is not installed")
        sys.exit(77)
    print(f"fuse-random: seed {options.seed}")
    folder = tempfile.mkdtemp(prefix="vhdd-fuse-random.", dir=os.environ.get("TMPDIR", "/tmp"))
    run = Run(folder, options.seed)
    try:
        run.make_images()
        run.mount()
        n = 0
        for n in range(options.operations):
            try:
                run.step()
            except Exception:
                print(f"fuse-random: at step {n}, seed {options.seed}", file=sys.stderr)
                raise
        run.check_all()
        run.unmount()
        run.check_image()
        print(f"fuse-random: {options.operations} steps, and the image holds what the model has")
    finally:
        if os.path.ismount(run.mnt) or run.pid:
            subprocess.run(["umount", "-l", run.mnt], check=False)
        if run.pid:
            try:
                os.kill(run.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(folder, ignore_errors=True)


main()
