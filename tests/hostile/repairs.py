#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""repairs - what writes: serve and check --repair on images that mean harm, and intents that do.

serve refuses damage with one sentence and leaves the file alone. A repair either leaves it alone or keeps
every byte that it changes, and the command in the copy's head puts the file back to the bit. An intent
beside an image is obeyed only for files of the same folder, never through links, and cannot hold anybody
up. Exit status: 0, 1 something is wrong, 77 skipped."""

import glob
import os
import shutil
import struct
import subprocess

from hostilelib import BUILD, Hostile
from vhdmake import BLOCK_SIZE, FIXED, SECTOR, Vhd

FIRST = 2048 // SECTOR
STRIDE = BLOCK_SIZE // SECTOR + 1
INTENT = ".vhdd-intent"
XXH3SUM = os.path.join(BUILD, "tests", "hostile", "xxh3sum")


def damaged():
    """(what, image): each is refused by whatever reads the disk."""
    two = {0: 0x11, 1: 0x22}
    whole = Vhd(blocks=two).content()
    fixed = Vhd(kind=FIXED, size=4 * BLOCK_SIZE, data=(whole * 9)[:4 * BLOCK_SIZE]).content()
    yield "the tail is lost", whole[:-512]
    yield "the tail is tapdisk's mark", whole[:-512] + b"\xc7" * 512
    yield "the tail is torn", whole[:-200] + b"\x55" * 200
    yield "both sums wrong", b"".join((whole[:100], b"\x55", whole[101:-412], b"\x55", whole[-411:]))
    yield "v_poison", Vhd(footer={"cookie": b"v_poison"}).content()
    yield "a wrong header sum", Vhd(blocks=two, header_sum=7).content()
    yield "no header", Vhd(blocks=two, header={"cookie": b"xxxxxxxx"}).content()
    yield "the table over the header", Vhd(header={"table_offset": 512}).content()
    yield "the table is too short", Vhd(header={"max_table_entries": 1}).content()
    for place in (0, 3, 0xFFFFFFFE, FIRST, FIRST + 10, FIRST + STRIDE - 1, FIRST + 2 * STRIDE):
        yield "a block at sector %d" % place, Vhd(blocks=two, bat={1: place}).content()
    yield "all of them", Vhd(blocks=two, bat={1: FIRST, 2: 0, 3: 900000}).content()[:-512]
    yield "the last block is cut off", whole[:-(512 + 3 * SECTOR)] + Vhd().footer()
    yield "half of the file", whole[:len(whole) // 2]
    yield "a fixed disk with a guest's VHD in it", fixed[:-512]
    yield "the same, and a torn tail", fixed[:-460] + bytes(460)
    yield "a fixed disk that is too short", fixed[:BLOCK_SIZE] + fixed[-512:]
    yield "an empty file", b""
    yield "eight bytes", b"conectix"


class Repairs(Hostile):
    def __init__(self):
        super().__init__()
        self.image = self.path("it's.vhd")
        self.has_xxd = shutil.which("xxd") is not None
        if not self.has_xxd:
            print("repairs: no xxd here: whether the old bytes go back is not looked at")

    def place(self, content):
        with open(self.image, "wb") as out:
            out.write(content)

    def content(self):
        with open(self.image, "rb") as file:
            return file.read()

    def beside(self):
        """What lies beside the image, but for what the test itself put there."""
        return sorted(name for name in glob.glob(glob.escape(self.image) + "?*"))

    def serve(self, what):
        for options in ([], ["--read-only"], ["--scratch"]):
            self.refuses(what, self.image, ["serve", self.image, "--socket", self.path("s"), *options])
        if self.beside():
            self.complain("%s: serve left %s" % (what, self.beside()))

    def repair(self, what, content, *options):
        self.place(content)
        dry = self.unchanged([self.image],
                             lambda: self.run("check", "--repair", "--dry-run", *options, self.image), what)
        if dry.code not in (0, 1, 3) or self.beside():
            self.complain("%s: a dry run of check --repair %s" % (what, options), dry)
        run = self.run("check", "--repair", *options, self.image)
        if run.code not in (0, 1, 3):
            self.complain("%s: check --repair %s" % (what, options), run)
        kept = self.beside()
        if self.content() == content:
            if kept:
                self.complain("%s: nothing was changed, and beside it lies %s" % (what, kept), run)
            return
        if len(kept) != 1 or ".vhdd-repair-" not in kept[0]:
            self.complain("%s: changed, and the old bytes are in %s" % (what, kept), run)
            return
        after = self.run("check", self.image)
        if after.code == 0:
            self.reads(what, self.image, ["hash", self.image])
        self.put_back(what, content, kept[0])

    def put_back(self, what, content, kept):
        if self.has_xxd:
            with open(kept, encoding="utf-8") as text:
                command = [line[1:].strip() for line in text if "xxd -r" in line][0]
            subprocess.run(["sh", "-c", command], check=True)
            if self.content() != content:
                self.complain("%s: '%s' does not put it back" % (what, command))
        os.unlink(kept)


def damage(t):
    for what, content in damaged():
        t.place(content)
        t.serve(what)
        if "check" not in t.verbs:
            continue
        for options in ([], ["--use", "head"], ["--use", "tail"], ["--force"],
                        ["--force", "--use", "head"], ["--force", "--use", "tail"]):
            t.repair("%s, %s" % (what, " ".join(options)), content, *options)


def xxh3(data):
    done = subprocess.run([XXH3SUM], input=data, capture_output=True, check=True)
    return bytes.fromhex(done.stdout.decode().strip())


def intent(images, changes):
    data = b"vhddint1" + b"\x33" * 16 + struct.pack(">II", len(images), len(changes))
    for path in images:
        path = path.encode()
        data += bytes(32) + struct.pack(">H", len(path)) + path
    for image, offset, new, old in changes:
        data += struct.pack(">IIIIQ", image, len(new), len(old), 0, offset) + new + old
    return data + xxh3(data)


def intents(t):
    """In a folder that others may write to lies an intent that names our other files."""
    os.makedirs(t.path("in"))
    os.makedirs(t.path("out"))
    image, victim = t.path("in", "a.vhd"), t.path("out", "victim.vhd")
    Vhd(ident=1, blocks={0: 0x11}).write(image)
    Vhd(ident=2, blocks={0: 0x22}).write(victim)
    paths = ("../out/victim.vhd", victim, "link.vhd", "../in/../out/victim.vhd", "fifo.vhd", "sub")
    os.symlink(victim, t.path("in", "link.vhd"))
    os.mkfifo(t.path("in", "fifo.vhd"))
    os.makedirs(t.path("in", "sub"))
    with open(victim, "rb") as file:
        old = file.read(512)
    own = open(image, "rb").read(512)
    for path in paths:
        data = intent(["a.vhd", path], [(0, 0, own, own), (1, 0, b"\0" * 512, old)])
        # Beside the other one, too: a copy that is alone says nothing, and goes.
        for beside in (image, t.path("in", os.path.basename(path))):
            with open(beside + INTENT, "wb") as out:
                out.write(data)
        for args in (["hash", image], ["info", image], ["tree", t.path("in")], ["check", image]):
            run = t.unchanged([image, victim], lambda a=args: t.run(*a), path)
            if run.code not in (0, 1, 3):
                t.complain("an intent that names '%s': %s" % (path, args[0]), run)
        for args in (["serve", image, "--socket", t.path("s")], ["check", "--repair", image]):
            t.unchanged([victim], lambda a=args: t.refuses("an intent that names '%s'" % path, image, a),
                        path)
    os.unlink(image + INTENT)
    for what, make in (("a FIFO", os.mkfifo), ("a folder", os.mkdir),
                       ("a link", lambda path: os.symlink(victim, path))):
        make(image + INTENT)
        for args in (["hash", image], ["serve", image, "--socket", t.path("s")]):
            t.unchanged([image, victim], lambda a=args: t.refuses("an intent that is " + what, image, a),
                        what)
        if os.path.isdir(image + INTENT) and not os.path.islink(image + INTENT):
            os.rmdir(image + INTENT)
        else:
            os.unlink(image + INTENT)
    t.reads("without it", image, ["hash", image])


def main():
    t = Repairs()
    damage(t)
    intents(t)
    t.end()


main()
