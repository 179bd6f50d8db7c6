#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""guest-mount - QEMU boots from, and works on, the file that vhdctl mount shows.

First a boot sector in a child of a fixed disk: it reads one sector, writes it to another and says what it
read. Then a Linux guest makes ext4 on DIR/disk and writes files for a while, past the host's page
cache and through it; each file must be what it was meant to be. At the end the images hold all of it,
and vhdctl check is content.

The guest is built in $VHDD_BUILD/guest (70 MB of downloads, once), or taken from $VHDD_GUEST; without
one the boot sector alone is tried. Exit status: 0 all is well, 1 it is not, 77 skipped."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guestlib  # noqa: E402
from guestlib import WAIT_S, fail, skip  # noqa: E402

WRITE_S = 10
TEXT = b"read from the third sector\n"

# Reads the third sector, writes it to the fourth, sends its text to the first serial port, and ends QEMU.
BOOT_SECTOR = """
        .code16
        .globl _start
_start: xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        mov $0x7c00, %sp
        xor %dh, %dh
        mov $0x8000, %bx
        mov $0x0201, %ax
        mov $0x0003, %cx
        int $0x13
        jc failed
        mov $0x0301, %ax
        mov $0x0004, %cx
        int $0x13
        jc failed
        mov $0x8000, %si
say:    lodsb
        test %al, %al
        jz done
        mov $0x3f8, %dx
        out %al, %dx
        jmp say
failed: mov $0x21, %al
        mov $0x3f8, %dx
        out %al, %dx
done:   mov $0xf4, %dx
        mov $0x10, %al
        out %al, %dx
        hlt
        .org 510
        .word 0xaa55
"""


class Mount(guestlib.Machine):
    def __init__(self, build, folder, guest):
        super().__init__(build, folder, guest)
        self.mnt = self.path("mnt")
        self.disk = os.path.join(self.mnt, "disk")
        self.pid = None
        os.mkdir(self.mnt)

    def mount(self, image):
        answer = self.run(self.vhdctl, "mount", "--quiet", "--json", "--writable", image, self.mnt)
        self.pid = json.loads(answer)["pid"]

    def unmount(self):
        self.run("umount", self.mnt)
        for _ in range(WAIT_S * 100):
            if self.status_of("kill", "-0", str(self.pid)) != 0:
                break
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as f:
                if ") Z " in f.read():
                    break
            time.sleep(0.01)
        else:
            fail("vhdfuse does not end")
        self.pid = None

    def end(self):
        super().end()
        if self.pid:
            self.status_of("umount", "-l", self.mnt)
            self.status_of("kill", "-KILL", str(self.pid))

    def make_boot_sector(self):
        source, binary = self.path("boot.s"), self.path("boot.bin")
        with open(source, "w", encoding="ascii") as f:
            f.write(BOOT_SECTOR)
        self.run("as", "--32", "-o", self.path("boot.o"), source)
        self.run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", binary,
                 self.path("boot.o"))
        with open(binary, "rb") as f:
            code = f.read()
        assert len(code) == 512, len(code)
        return code

    def boot(self):
        base, child = self.path("boot.vhd"), self.path("boot.avhd")
        self.run(self.vhdctl, "create", "--quiet", base, "--size", "8M", "--type", "fixed")
        self.mount(base)
        with open(self.disk, "r+b") as f:
            f.write(self.make_boot_sector())
            f.seek(1024)
            f.write(TEXT.ljust(512, b"\0"))
        self.unmount()
        self.run(self.vhdctl, "create", "--quiet", child, "--parent", base)
        self.mount(child)
        log = self.path("boot.log")
        code = subprocess.run(
            ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "32", "-nodefaults",
             "-no-user-config", "-display", "none", "-serial", f"file:{log}",
             "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
             "-drive", f"file={self.disk},format=raw,if=ide"], timeout=WAIT_S, check=False).returncode
        with open(log, "rb") as f:
            said = f.read()
        if code != 0x21 or said != TEXT:
            fail(f"the boot sector ended with {code} and said {said!r}")
        self.unmount()
        self.run(self.vhdctl, "check", child)
        self.run(self.vhdctl, "convert", "--quiet", child, self.path("boot.raw"))
        with open(self.path("boot.raw"), "rb") as f:
            f.seek(1536)
            if f.read(512) != TEXT.ljust(512, b"\0"):
                fail("what the boot sector wrote is not in the image")
        print("guest-mount: QEMU boots from the file, and writes to it")

    def work(self, cache):
        image = self.path(f"{cache}.avhd")
        self.run(self.vhdctl, "create", "--quiet", image, "--parent", self.path("base.vhd"))
        self.mount(image)
        direct = "on" if cache == "direct" else "off"
        self.start_guest(disk=f"driver=file,node-name=disk,filename={self.disk},cache.direct={direct},"
                              "discard=unmap,detect-zeroes=unmap")
        self.inside("/bin/mke2fs -q -t ext4 /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
        self.put_writer()
        self.start_writer(1)
        time.sleep(WRITE_S)
        n = self.stop_writer()
        self.check_files()
        self.end_guest()
        self.run("e2fsck", "-fn", self.disk)
        self.unmount()
        self.run(self.vhdctl, "check", image)
        print(f"guest-mount: {n} files ({cache})")


def main():
    build = os.environ["VHDD_BUILD"]
    guestlib.need_programs()
    if not os.access("/dev/fuse", os.W_OK) or not shutil.which("fusermount3"):
        skip("guest-mount: skipped: no FUSE")
    with tempfile.TemporaryDirectory(
        prefix="vhdd-guest-mount.", dir=os.environ.get("TMPDIR", "/tmp")
    ) as folder:
        mount = Mount(build, folder, None)
        try:
            if shutil.which("as") and shutil.which("ld"):
                mount.boot()
            mount.guest_folder = guestlib.find_guest(build)
            mount.run(mount.vhdctl, "create", "--quiet", mount.path("base.vhd"), "--size", "256M")
            mount.work("direct")
            mount.work("cached")
        finally:
            mount.end()


main()
