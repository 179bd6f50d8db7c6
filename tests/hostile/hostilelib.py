# SPDX-License-Identifier: Apache-2.0
"""hostilelib - runs vhdctl on files that mean harm, and holds it to what it promises about them:

  - it ends by itself, soon, with an exit code of its own and never by a signal;
  - a refusal is one sentence on stderr that begins with "vhdctl: " (and a hint, indented);
  - it takes little memory, whatever the file claims;
  - the file is as it was;
  - nothing on the terminal but text."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile

BUILD = os.environ.get("VHDD_BUILD", "build")
VHDCTL = os.path.join(BUILD, "vhdd", "ctl", "vhdctl")
LIMIT_S = 20
MAX_RSS_KIB = 400 * 1024


def skip(why):
    print("%s: skipped: %s" % (os.path.basename(sys.argv[0]), why))
    sys.exit(77)


def is_sanitized():
    with open(VHDCTL, "rb") as program:
        return b"__asan_init" in program.read()


class Run:
    def __init__(self, code, out, err, rss_kib):
        self.code, self.out, self.err, self.rss_kib = code, out, err, rss_kib


class Hostile:
    """Counts what was tried and what went wrong; a folder of its own, removed at the end."""

    def __init__(self):
        if not os.access(VHDCTL, os.X_OK):
            skip("no vhdctl in '%s'" % BUILD)
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="vhdd-hostile-"))
        self.tried = self.failed = 0
        self.sanitized = is_sanitized()
        listing = subprocess.run([VHDCTL, "--help"], capture_output=True, text=True, check=True).stdout
        self.verbs = [line.split()[0] for line in listing.splitlines() if line.startswith("  ")]

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def complain(self, what, run=None):
        self.failed += 1
        print("FAILED: %s" % what)
        if run:
            print("  exit %d\n  stdout: %r\n  stderr: %r" % (run.code, run.out[:2000], run.err[:2000]))

    def run(self, *args, prefix=()):
        """A run of vhdctl, with what holds for each."""
        self.tried += 1
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        what = "vhdctl " + " ".join(args)
        try:
            done = subprocess.run([*prefix, VHDCTL, *args], stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            self.complain(what + ": does not end")
            return Run(-1, "", "", 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        run = Run(done.returncode, done.stdout.decode("utf-8", "replace"),
                  done.stderr.decode("utf-8", "replace"), after)
        if run.code not in (0, 1, 2, 3):
            self.complain(what + ": ended by a signal or a sanitizer", run)
        if after > MAX_RSS_KIB and after > before and not self.sanitized and not prefix:
            self.complain(what + ": took %d KiB of memory" % after, run)
        if any(ord(c) < 32 and c != "\n" for c in run.out + run.err):
            self.complain(what + ": control characters come through", run)
        return run

    def is_one_sentence(self, err):
        lines = [line for line in err.splitlines()
                 if not line.startswith("vhdctl: warning: ")]
        return (len(lines) in (1, 2) and lines[0].startswith("vhdctl: ") and len(lines[0]) > 20
                and (len(lines) == 1 or lines[1].startswith("        ")))

    def unchanged(self, paths, action, what):
        """Calls action() and sees that the files are as they were."""
        before = [(path, hashlib.sha256(open(path, "rb").read()).digest()) for path in paths]
        result = action()
        for path, digest in before:
            if hashlib.sha256(open(path, "rb").read()).digest() != digest:
                self.complain("%s: changed %s" % (what, path))
        return result

    def refuses(self, what, path, args, codes=(3,), words=None):
        run = self.unchanged([path], lambda: self.run(*args), what)
        if run.code not in codes:
            self.complain("%s: %s: exit %d" % (what, " ".join(args), run.code), run)
        elif run.code == 3 and not self.is_one_sentence(run.err):
            self.complain("%s: %s: not one sentence" % (what, " ".join(args)), run)
        elif run.code == 3 and words and words not in run.err:
            self.complain("%s: %s: does not say '%s'" % (what, " ".join(args), words), run)
        return run

    def reads(self, what, path, args):
        run = self.unchanged([path], lambda: self.run(*args), what)
        if run.code != 0:
            self.complain("%s: %s: exit %d" % (what, " ".join(args), run.code), run)
        return run

    def end(self):
        shutil.rmtree(self.folder)
        print("%d runs, %d wrong" % (self.tried, self.failed))
        sys.exit(1 if self.failed else 0)
