#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bad_images - VHDs whose fields lie: sizes that overflow, tables beyond the file, blocks over each other.

Each with right checksums, so that it is the field that is judged. Every verb that reads must refuse
those that are damaged with one sentence, leave them as they were, and take neither time nor memory for
what they claim; those that are only odd must read. Exit status: 0, 1 something is wrong, 77 skipped."""

import os
import struct

from hostilelib import Hostile
from vhdmake import BLOCK_SIZE, FIXED, N_BLOCKS, SECTOR, Vhd

FIRST_BLOCK = 2048 // SECTOR
MIB = 1 << 20


class Images(Hostile):
    def __init__(self):
        super().__init__()
        self.image = self.path("image.vhd")

    def args_of(self, verb):
        if verb == "convert":
            return ["convert", self.image, self.path("copy.raw")]
        if verb == "compare":
            return ["compare", self.image, self.image]
        return [verb, self.image]

    def place(self, image):
        if isinstance(image, bytes):
            with open(self.image, "wb") as out:
                out.write(image)
        else:
            image.write(self.image)

    def bad(self, what, image, words=None):
        """Refused by all that read the disk; told by those that only look."""
        self.place(image)
        for verb in ("hash", "map", "convert"):
            self.refuses(what, self.image, self.args_of(verb), words=words)
            if os.path.exists(self.path("copy.raw")):
                self.complain("%s: convert left a file" % what)
                os.unlink(self.path("copy.raw"))
        self.writers_refuse(what)
        self.looked_at(what)
        if "check" in self.verbs:
            self.refuses(what, self.image, ["check", self.image], codes=(1, 3))

    def writers_refuse(self, what):
        """Verbs that would write to it, beside it, or for ever."""
        child = self.path("child-of-bad.vhd")
        self.refuses(what, self.image, ["create", child, "--parent", self.image])
        self.refuses(what, self.image, ["seal", self.image])
        if "serve" in self.verbs:
            self.refuses(what, self.image, ["serve", "--socket", self.path("socket"), self.image])
        for left in (child, self.image + ".vhdd-seal"):
            if os.path.exists(left):
                self.complain("%s: something was left: %s" % (what, left))
                os.unlink(left)

    def looked_at(self, what):
        for args in (["info", self.image], ["info", "--raw", self.image], ["tree", self.folder],
                     ["hash", "--force", self.image], ["map", "--force", self.image],
                     ["info", "--json", self.image], ["tree", "--json", self.folder]):
            self.unchanged([self.image], lambda a=args: self.run(*a), what)

    def good(self, what, image, expected=None):
        self.place(image)
        run = self.reads(what, self.image, self.args_of("hash"))
        if expected is not None:
            reference = self.path("reference.raw")
            with open(reference, "wb") as out:
                out.write(expected)
            other = self.run("hash", "--format", "raw", reference)
            if other.out.split()[:1] != run.out.split()[:1]:
                self.complain("%s: reads other bytes" % what, run)
        self.looked_at(what)


def footers(t):
    whole = Vhd(blocks={0: 0x11}).content()
    end = Vhd().footer()
    t.bad("an empty file", b"")
    t.bad("eight bytes", b"conectix")
    t.bad("511 bytes of nothing", b"\0" * 511)
    t.bad("only a cookie", b"conectix" + b"\0" * 504)
    t.bad("no footer at all", b"\x55" * 4096)
    t.bad("the tail is lost", whole[:-512])
    t.bad("the tail is zeros", whole[:-512] + b"\0" * 512)
    t.bad("tapdisk has it open", whole[:-512] + b"\xc7" * 512)
    t.bad("a wrong checksum", Vhd(footer_sum=0x12345678))
    t.bad("a resize of blktap was cut off",
          Vhd(footer={"cookie": b"v_poison"}))
    for kind in (0, 1, 5, 6, 7, 0xFFFFFFFF):
        t.bad("type %d" % kind, Vhd(footer={"type": kind}))
    for version in (0, 0x20000, 0xFFFFFFFF):
        t.bad("format version %#x" % version, Vhd(footer={"version": version}))
    for size in (1 << 63, (1 << 64) - 512, 513, 1 << 62, ((1 << 32) + 25) * 2 * MIB):
        t.bad("a disk of %d bytes" % size, Vhd(footer={"current_size": size}))
        t.bad("a fixed disk of %d bytes" % size, Vhd(kind=FIXED, footer={"current_size": size}))
    t.bad("a fixed disk whose file is too short", Vhd(kind=FIXED, footer={"current_size": MIB}))
    for offset in (0, 1, 511, 513, 1 << 62, (1 << 64) - 512, (1 << 64) - 1, len(whole)):
        t.bad("the header at %d" % offset, Vhd(footer={"data_offset": offset}))
    t.good("511 bytes of footer", whole[:-512] + end[:511],
           b"\x11" * BLOCK_SIZE + bytes(BLOCK_SIZE * 3))
    t.good("a null id", Vhd(ident=0))
    t.good("a future date", Vhd(footer={"timestamp": 0xFFFFFFFF}))
    t.good("reserved bytes", Vhd(footer={"reserved": b"\1" * 427}))
    t.good("no geometry", Vhd(footer={"cylinders": 0, "heads": 0, "sectors_per_track": 0}))
    t.good("another original size", Vhd(footer={"original_size": 1 << 40}))
    other = Vhd(blocks={0: 0x11}, footer={"original_size": 512}).footer()
    t.good("two footers that differ", other + whole[512:],
           b"\x11" * BLOCK_SIZE + bytes(BLOCK_SIZE * 3))


def headers(t):
    t.bad("a wrong header checksum", Vhd(header_sum=0x12345678))
    t.bad("no header cookie", Vhd(header={"cookie": b"cxspars3"}))
    for version in (0, 0x20000):
        t.bad("header version %#x" % version, Vhd(header={"version": version}))
    for size in (0, 1, 256, 511, 3 * MIB, 1 << 31, 0xFFFFFFFF, 1 << 29):
        t.bad("blocks of %d bytes" % size, Vhd(header={"block_size": size}))
    for n in (0, 1, N_BLOCKS - 1, 0xFFFFFFFF, 1 << 31, 5_000_000):
        t.bad("a table of %d entries" % n, Vhd(header={"max_table_entries": n}))
    for offset in (0, 256, 511, 512, 1024, 1537, 1 << 20, 1 << 62, (1 << 64) - 512):
        t.bad("the table at %d" % offset, Vhd(header={"table_offset": offset}))
    t.bad("a table and a size that agree on nothing",
          Vhd(footer={"current_size": 2040 << 30}, header={"max_table_entries": 16}))
    t.bad("a table of 16 MiB in a file of 3 KiB",
          Vhd(footer={"current_size": 2040 << 30},
              header={"max_table_entries": 4177920, "block_size": 512 << 10}))
    t.good("spare entries", Vhd(footer={"current_size": BLOCK_SIZE}))


def blocks(t):
    two = {0: 0x11, 1: 0x22}
    first = FIRST_BLOCK
    stride = BLOCK_SIZE // SECTOR + 1
    t.bad("two entries, one place", Vhd(blocks=two, bat={1: first}))
    t.bad("half over another", Vhd(blocks=two, bat={1: first + 10}))
    t.bad("its bitmap in another's last sector", Vhd(blocks=two, bat={1: first + stride - 1}))
    for place in (0, 1, 2, 3):
        t.bad("a block at sector %d" % place, Vhd(blocks=two, bat={1: place}))
    t.bad("a block that ends in the table", Vhd(blocks=two, footer={"data_offset": 512},
                                                bat={1: 1}))
    for place in (0xFFFFFFFE, 0x7FFFFFFF, first + 2 * stride, first + 2 * stride + 1, 900000):
        t.bad("a block at sector %d" % place, Vhd(blocks=two, bat={1: place}))
    whole = Vhd(blocks=two).content()
    t.bad("the file ends inside the last block", whole[:-(512 + 3 * SECTOR)] + Vhd().footer())
    t.good("blocks in the other order", Vhd(blocks=two, bat={0: first + stride, 1: first}),
           b"\x22" * BLOCK_SIZE + b"\x11" * BLOCK_SIZE + bytes(BLOCK_SIZE * 2))
    t.good("slack before the footer", whole[:-512] + b"\x33" * 4096 + Vhd().footer(),
           b"\x11" * BLOCK_SIZE + b"\x22" * BLOCK_SIZE + bytes(BLOCK_SIZE * 2))


def locators(t):
    Vhd(ident=1).write(t.path("base.vhd"))
    name = (".\\base.vhd").encode("utf-16-le")
    for what, fields in (("2 GiB long", {"length": 1 << 31}), ("64 KiB and one byte", {"length": 65537}),
                         ("at 2^63", {"offset": 1 << 63}), ("at the end of numbers", {"offset": (1 << 64) - 4}),
                         ("over the table", {"offset": 1536}), ("over the header", {"offset": 600}),
                         ("behind the file", {"offset": 1 << 30})):
        t.bad("a locator %s" % what, Vhd(parent=1, name="base.vhd",
                                         locators=[("W2ru", name, fields)]))
    t.bad("eight giant locators", Vhd(parent=1, locators=[("W2ru", name, {"length": 1 << 30})] * 8))
    t.good("an odd space", Vhd(parent=1, locators=[("W2ru", name, {"space": 77777})]))
    t.good("a space in sectors", Vhd(parent=1, locators=[("W2ru", name, {"space": 2})]))
    t.good("only a name", Vhd(parent=1, name="base.vhd"))
    os.unlink(t.path("base.vhd"))


def guests(t):
    """A guest can write a whole VHD into its own disk. It must stay a guest's disk."""
    size = 4 * BLOCK_SIZE
    secret = Vhd(ident=1, blocks={0: 0x53})
    secret.write(t.path("secret.vhd"))
    for what, head in (("a differencing head", Vhd(parent=1, locators=[("W2ru", ".\\secret.vhd")])),
                       ("a dynamic head", Vhd(blocks={0: 0x77})),
                       ("a footer", Vhd(kind=FIXED, size=MIB))):
        data = head.content()
        data = (data + bytes(size))[:size] if len(data) < size else data[:size]
        t.good("a fixed disk with %s" % what, Vhd(kind=FIXED, size=size, data=data), data)
        fixed = Vhd(kind=FIXED, size=size, data=data).content()
        t.bad("the same, its tail lost (%s)" % what, fixed[:-512])
        t.bad("the same, its tail torn (%s)" % what, fixed[:-512] + fixed[-512:-440] + bytes(440))
        t.bad("the same, its cookie lost (%s)" % what, fixed[:-512] + bytes(8) + fixed[-504:])
    for magic in (b"QFI\xfb\0\0\0\2", b"vhdxfile", b"KDMV\1\0\0\0", b"<<< Oracle VM VirtualBox Disk Image >>>"):
        data = magic + bytes(size - len(magic))
        t.good("a fixed disk with %r" % magic[:4], Vhd(kind=FIXED, size=size, data=data), data)
        with open(t.path("foreign.vhd"), "wb") as out:
            out.write(data)
        t.refuses("a file with %r" % magic[:4], t.path("foreign.vhd"), ["hash", t.path("foreign.vhd")])
    os.unlink(t.path("foreign.vhd"))
    os.unlink(t.path("secret.vhd"))


def batmaps(t):
    """tapdisk's batmap behind the table, whose fields lie."""
    def with_batmap(offset, sectors):
        content = bytearray(Vhd(footer={"creator_app": b"tap\0", "creator_version": 0x10003}).content())
        content[2048:2048] = struct.pack(">8sQIIIB", b"tdbatmap", offset, sectors, 0x10002, 0, 0).ljust(512, b"\0")
        return bytes(content)

    for offset, sectors in ((0, 1), (512, 1), (1536, 1), (1 << 62, 1), (2560, 0xFFFFFFFF), (7, 1)):
        t.place(with_batmap(offset, sectors))
        t.looked_at("a batmap at %d of %d sectors" % (offset, sectors))
        t.run("hash", t.image)


def main():
    t = Images()
    for case in (footers, headers, blocks, locators, guests, batmaps):
        case(t)
    t.end()


main()
