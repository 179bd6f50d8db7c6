# SPDX-License-Identifier: Apache-2.0
"""What the merge-* scripts share: chains with much in them, merges that are run, watched and killed."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import benchlib  # noqa: E402

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB


def import_nbd():
    try:
        import nbd
    except ImportError:
        benchlib.skip("python3 has no libnbd")
    return nbd


def vhdctl():
    return os.path.join(benchlib.find_build(), "vhdd/ctl/vhdctl")


def parser(doc):
    """With what all of them take: --quick, --dir, --json, --help."""
    made = argparse.ArgumentParser(usage=doc.splitlines()[2].strip(), add_help=False)
    made.add_argument("--quick", action="store_true")
    made.add_argument("--dir", default=os.environ.get("TMPDIR") or "/var/tmp")
    made.add_argument("--json")
    made.add_argument("-h", "--help", action="store_true")
    return made


def parse(made, doc):
    args = made.parse_args()
    if args.help:
        print(doc)
        sys.exit(0)
    return args


def folder(args, name):
    return tempfile.TemporaryDirectory(prefix=f"vhdd-{name}.", dir=args.dir)


def finish(args, numbers):
    if args.json == "-":
        print(json.dumps(numbers, indent=1))
    elif args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(numbers, f, indent=1)


def need_space(where, bytes_needed):
    if shutil.disk_usage(where).free < bytes_needed + 2 * GIB:
        benchlib.skip(f"'{where}' has no {bytes_needed / GIB:.0f} GiB to spare")


def ctl(*words):
    """Runs vhdctl; answers its JSON if --json was among the words."""
    run = subprocess.run([vhdctl(), *words], stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"vhdctl {' '.join(words)} ended with {run.returncode}")
    return json.loads(run.stdout) if "--json" in words else None


def write_chain(path, pieces):
    """pieces: (offset, bytes), written through a server, flushed and closed."""
    nbd = import_nbd()
    sock = os.path.join(os.path.dirname(path), "fill.sock")
    command = [vhdctl(), "serve", "--quiet", "--socket", sock, path]
    with benchlib.Server("vhdctl serve", command, sock):
        handle = nbd.NBD()
        handle.connect_unix(sock)
        for offset, data in pieces:
            handle.pwrite(data, offset)
        handle.flush()
        handle.shutdown()


def stamped(number, size, base=bytearray(os.urandom(BLOCK))):
    """So many bytes that are like no others: random ones, told apart by the number in each page."""
    data = base[:size]
    for at in range(0, size, 4096):
        data[at:at + 8] = number.to_bytes(8, "big")
    return bytes(data)


def fill(path, size, spacing=1, first=0):
    """@size bytes of data in whole blocks, every @spacing-th block from @first."""
    write_chain(path, (((first + n * spacing) * BLOCK, stamped(n, BLOCK))
                       for n in range(size // BLOCK)))


def copy(source, to):
    """A copy of the folder with its holes. Locators are relative, so nothing needs to be relinked.
    Durable: nothing is left to be written back while something is measured."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "-r", "--sparse=always", source, to], check=True)
    os.sync()


def warm(path):
    with open(path, "rb", buffering=0) as f:
        buffer = bytearray(4 * MIB)
        while f.readinto(buffer):
            pass


def space(where):
    """Bytes that the files in the folder take."""
    total = 0
    with os.scandir(where) as entries:
        for entry in entries:
            try:
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def hash_of(path):
    return ctl("hash", "--json", path)["hash"]


class Merge:
    """vhdctl merge in the background. wait() answers its exit code (-9: killed), its JSON, what the
    kernel counted for it (/proc/PID/io) and how long it took."""

    def __init__(self, child, *options):
        self.out = tempfile.TemporaryFile()
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [vhdctl(), "merge", "--json", "--quiet", child, *options],
            stdout=self.out, stdin=subprocess.DEVNULL)
        self.io = {}

    def is_over(self):
        """Has it ended? Then its counters are read before it is forgotten."""
        if self.process.returncode is not None:
            return True
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return False
        self._reap()
        return True

    def kill(self):
        self.process.send_signal(signal.SIGKILL)

    def wait(self):
        if self.process.returncode is None:
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            self._reap()
        self.out.seek(0)
        text = self.out.read()
        return self.process.returncode, json.loads(text) if text else {}

    def _reap(self):
        self.seconds = time.monotonic() - self.began
        try:
            with open(f"/proc/{self.process.pid}/io", encoding="ascii") as f:
                self.io = {k: int(v) for k, v in (line.split(":") for line in f)}
        except OSError:
            pass
        self.process.wait()

    def must_succeed(self):
        code, answer = self.wait()
        if code != 0:
            raise RuntimeError(f"vhdctl merge ended with {code}")
        return answer
