#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""parent_paths - a child says where its parent lies, and the child comes from an enemy.

Every verb that reads is run on children whose eight locators and name point out of their folder, at
devices, FIFOs, links, themselves. Each must be refused with one sentence; strace shows that nothing outside
was opened; and what is right must still be found. Exit status: 0, 1 something is wrong, 77 skipped."""

import os
import shutil
import subprocess

from hostilelib import BUILD, Hostile
from vhdmake import Vhd

READERS = ("hash", "map", "convert")


class Paths(Hostile):
    def __init__(self):
        super().__init__()
        os.makedirs(self.path("in", "sub"))
        os.makedirs(self.path("out"))
        # What lies outside has the right id: only the rule about places keeps it out.
        self.secret = Vhd(ident=1, blocks={0: 0x53}).write(self.path("out", "secret.vhd"))
        self.child = self.path("in", "child.vhd")
        self.strace = self.find_strace()
        self.plugin = self.find_plugin()

    def find_plugin(self):
        plugin = os.path.join(BUILD, "nbd", "plugin", "nbdkit-vhd-plugin.so")
        if os.path.exists(plugin) and shutil.which("nbdkit") and shutil.which("nbdinfo") \
                and not self.sanitized:
            return os.path.abspath(plugin)
        print("parent_paths: no nbdkit, or a plugin that it cannot load: the plugin is not tried")
        return None

    def plugin_refuses(self, what, forbidden):
        """The same rules hold in another process, which opens chains by itself."""
        if not self.plugin:
            return
        log = self.path("trace")
        trace = [self.strace, "-f", "-y", "-s", "4096", "-e", "trace=%file", "-o", log] \
            if self.strace and forbidden else []
        done = subprocess.run([*trace, "nbdkit", "-U", self.path("nbdkit.sock"), self.plugin, self.child, "--run",
                               'nbdinfo --size "$uri"'], capture_output=True, text=True, timeout=20,
                              check=False)
        self.tried += 1
        if done.returncode == 0 or "nbdkit: " not in done.stderr:
            self.complain("%s: the plugin: exit %d: %s" % (what, done.returncode, done.stderr))
        for line in open(log, encoding="utf-8", errors="replace") if trace else ():
            if "execve(" not in line and any(word in line for word in forbidden):
                self.complain("%s: the plugin reaches outside: %s" % (what, line.strip()))
                break

    def find_strace(self):
        strace = shutil.which("strace")
        if strace and subprocess.run([strace, "-f", "-o", "/dev/null", "true"],
                                     capture_output=True, check=False).returncode == 0:
            # The sanitizer's look for leaks cannot run in a process that is traced.
            os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
            return strace
        print("parent_paths: no strace here, or it may not trace: what is opened is not looked at")
        return None

    def args_of(self, verb, *options):
        if verb == "convert":
            return ["convert", self.child, self.path("in", "copy.raw"), *options]
        return [verb, self.child, *options]

    def opened(self, args):
        """Paths that vhdctl opened, or tried to, or asked about."""
        log = self.path("trace")
        self.run(*args, prefix=(self.strace, "-f", "-y", "-s", "4096", "-e", "trace=%file", "-o", log))
        with open(log, encoding="utf-8", errors="replace") as lines:
            return [line for line in lines if "execve(" not in line]

    def stays_inside(self, what, forbidden):
        """No system call about files mentions what is forbidden, not even to look whether it is there."""
        if not self.strace:
            return
        for args in (self.args_of("hash"), self.args_of("info", "--chain"), ["tree", self.child]):
            for line in self.opened(args):
                if any(word in line for word in forbidden):
                    self.complain("%s: %s reaches outside: %s" % (what, args[0], line.strip()))
                    break

    def refused(self, what, vhd, words=None, forbidden=()):
        vhd.write(self.child)
        for verb in READERS:
            self.refuses(what, self.child, self.args_of(verb), words=words)
            if os.path.exists(self.path("in", "copy.raw")):
                self.complain("%s: convert left a file" % what)
                os.unlink(self.path("in", "copy.raw"))
        self.refuses(what, self.child, self.args_of("info", "--chain"))
        if "serve" in self.verbs:  # which would write, too
            self.refuses(what, self.child, ["serve", "--socket", self.path("socket"), self.child])
        # Without --chain it tells what the file says, and opens nothing else.
        self.reads(what, self.child, self.args_of("info"))
        self.refuses(what, self.child, ["tree", self.child], codes=(1,))
        self.stays_inside(what, forbidden)
        self.plugin_refuses(what, forbidden)

    def found(self, what, vhd, *options):
        vhd.write(self.child)
        self.reads(what, self.child, self.args_of("hash", *options))


def locators(*texts, code="W2ru"):
    return [(code, text) for text in texts]


def places(t):
    """Out of the folder, by every way that is known."""
    out = "..\\out\\secret.vhd"
    windows = t.secret.replace("/", "\\")
    out_words = (t.path("out"),)

    t.refused("relative, out of the folder", Vhd(parent=1, locators=locators(out)),
              "--image-root", out_words)
    t.refused("relative, by slashes", Vhd(parent=1, locators=locators("../out/secret.vhd")),
              "--image-root", out_words)
    t.refused("relative, mixed", Vhd(parent=1, locators=locators(".\\sub\\..\\../out/secret.vhd")),
              "--image-root", out_words)
    t.refused("absolute", Vhd(parent=1, locators=locators(t.secret, code="W2ku")), None, out_words)
    t.refused("absolute, backslashes", Vhd(parent=1, locators=locators(windows, code="W2ku")), None,
              out_words)
    t.refused("a URL", Vhd(parent=1, locators=locators("file://" + t.secret, code="MacX")), None,
              out_words)
    t.refused("a URL, escaped", Vhd(parent=1, locators=locators("file://./%2e%2e/out/secret.vhd",
                                                               code="MacX")), None, out_words)
    t.refused("the header's name", Vhd(parent=1, name=out), None, out_words)
    t.refused("the header's name, absolute", Vhd(parent=1, name=t.secret), None, out_words)
    t.refused("ANSI", Vhd(parent=1, locators=locators(out, code="Wi2r")), None, out_words)
    t.refused("all eight slots", Vhd(parent=1, locators=[
        ("W2ru", out), ("W2ku", t.secret), ("Wi2r", out), ("Wi2k", t.secret),
        ("MacX", "file://" + t.secret), ("Mac ", t.secret), ("Xxxx", t.secret),
        ("W2ru", "../out/secret.vhd")]), None, out_words)
    # The same chain is right when the user allows the place.
    t.found("allowed", Vhd(parent=1, locators=locators(out)), "--image-root", t.path("out"))
    t.found("named", Vhd(parent=1, locators=locators(out)), "--parent", t.secret)


def targets(t):
    for text in ("..\\..\\..\\..\\..\\..\\..\\etc\\shadow", "../../../../../../etc/shadow",
                 ".\\../\\..\\/../../../etc/shadow"):
        t.refused("shadow by " + text, Vhd(parent=1, locators=locators(text)), None, ("etc/shadow",))
    for text in ("/etc/shadow", "\\etc\\shadow", "/proc/self/root/etc/shadow",
                 "/proc/self/fd/0", "/dev/sda", "/dev/zero"):
        name = text.replace("\\", "/").rsplit("/", 1)[1]
        t.refused("absolute " + text, Vhd(parent=1, locators=locators(text, code="W2ku")), None,
                  ("/etc/" + name, "/root/etc", "/dev/" + name, "self/fd/0"))
    for text in ("\\\\server\\share\\secret.vhd", "\\\\?\\C:\\secret.vhd", "C:\\secret.vhd",
                 "C:secret.vhd", "\\\\.\\PhysicalDrive0", "//server/share/secret.vhd"):
        t.refused("foreign " + text, Vhd(parent=1, locators=locators(text, code="W2ku")), None,
                  ("server", "PhysicalDrive0\"") if "server" in text else ())


def texts(t):
    Vhd(ident=1).write(t.path("in", "base.vhd"))
    for what, text in (("a data stream", ".\\base.vhd::$DATA"), ("trailing dots", ".\\base.vhd.."),
                       ("a NUL", ".\\base.vhd\0.txt"), ("an escape", ".\\\x1b[2Jbase.vhd"),
                       ("a newline", ".\\a\nvhdctl: all is well"), ("nothing", ""),
                       ("only dots", "..\\..\\.."), ("a folder", ".\\sub"),
                       ("a name that is too long", ".\\" + "x" * 300),
                       ("4000 folders up", "..\\" * 100 + "x")):
        t.refused(what, Vhd(parent=1, locators=locators(text)))
    t.refused("half a surrogate", Vhd(parent=1, locators=[("W2ru", b".\0\\\0\x00\xd8x\0")]))
    t.refused("an odd length", Vhd(parent=1, locators=[("W2ru", b".\0\\\0b\0a")]))
    t.refused("no UTF-8", Vhd(parent=1, locators=[("MacX", b"file://./\xff\xfe")]))
    t.refused("a name that is half a surrogate", Vhd(parent=1, name=b"\xd8\x00" * 256))
    t.found("the honest name beside it", Vhd(parent=1, locators=locators(".\\base.vhd")))
    os.unlink(t.path("in", "base.vhd"))


def kinds_of_files(t):
    os.mkfifo(t.path("in", "fifo"))
    os.symlink(t.secret, t.path("in", "link"))
    os.symlink(t.path("out"), t.path("in", "folder-link"))
    with open(t.path("in", "text"), "w", encoding="ascii") as out:
        out.write("root:x:0:0:root:/root:/bin/sh\n" * 100)
    open(t.path("in", "empty"), "wb").close()
    out_words = (t.path("out"),)
    t.refused("a FIFO", Vhd(parent=1, locators=locators(".\\fifo")), "FIFO")
    t.refused("a link out", Vhd(parent=1, locators=locators(".\\link")), "symbolic link")
    t.refused("a folder that is a link", Vhd(parent=1, locators=locators(".\\folder-link\\secret.vhd")),
              "symbolic link")
    t.refused("a text", Vhd(parent=1, locators=locators(".\\text")))
    t.refused("an empty file", Vhd(parent=1, locators=locators(".\\empty")))
    Vhd(ident=9).write(t.path("in", "other"))
    t.refused("another id", Vhd(parent=1, locators=locators(".\\other")), "09090909-0909")
    t.refused("a raw parent by locator", Vhd(parent=0, locators=locators(".\\text")), "raw")
    run = t.run(*t.args_of("hash"))
    if "root:" in run.out + run.err:
        t.complain("the text of a file came through", run)
    # As root: a device node in the folder is looked at and never opened.
    try:
        os.mknod(t.path("in", "device"), 0o644 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        return
    t.refused("a device node", Vhd(parent=1, locators=locators(".\\device")), "device", out_words)


def loops(t):
    t.refused("its own parent", Vhd(ident=2, parent=2, locators=locators(".\\child.vhd")), "itself")
    Vhd(ident=2, parent=2, locators=locators(".\\hard.vhd")).write(t.child)
    os.link(t.child, t.path("in", "hard.vhd"))
    t.refuses("itself by a hard link", t.child, t.args_of("hash"), words="itself")
    os.unlink(t.path("in", "hard.vhd"))
    for n in (2, 64):
        for i in range(1, n):
            Vhd(ident=2 + i, parent=2 + (i + 1) % n, locators=locators(
                ".\\child.vhd" if i == n - 1 else ".\\ring%d.vhd" % (i + 1))).write(
                    t.path("in", "ring%d.vhd" % i))
        t.refused("a ring of %d" % n, Vhd(ident=2, parent=3, locators=locators(".\\ring1.vhd")), "loop")
        for i in range(1, n):
            os.unlink(t.path("in", "ring%d.vhd" % i))
    # Two children of one file by two names are no loop.
    Vhd(ident=1, blocks={0: 7}).write(t.path("in", "base.vhd"))
    os.link(t.path("in", "base.vhd"), t.path("in", "base2.vhd"))
    Vhd(ident=3, parent=1, locators=locators(".\\base2.vhd")).write(t.path("in", "middle.vhd"))
    t.found("a diamond", Vhd(ident=2, parent=3, locators=locators(".\\middle.vhd")))


def main():
    t = Paths()
    for case in (places, targets, texts, kinds_of_files, loops):
        case(t)
    t.end()


main()
