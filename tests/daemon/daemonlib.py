# SPDX-License-Identifier: Apache-2.0
"""What the daemon's tests share: a vhdd on a state directory of its own, vhdctl, NBD clients.

Everything is seen from outside: the command line and NBD, never the engine. A Daemon ends exactly
the processes that it started: each carries a mark in its environment, and is ended by its pid.
Run with Debian's own Python: libnbd's module belongs to it."""

import argparse
import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid

try:
    import nbd
except ImportError:
    print("skipped: libnbd's Python module (Debian: python3-libnbd) is not installed")
    sys.exit(77)

SOURCE = os.environ.get("VHDD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", "..")
)
MARK = "VHDD_TEST_MARK"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 40  # the daemon promises 30
CONNECT_TIMEOUT_S = 25
F_OFD_SETLK = 37
CTL_TIMEOUT_S = 90


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


class TestFailed(Exception):
    """What the test demands is not so; the sentence says what."""


def demand(truth, sentence):
    if not truth:
        raise TestFailed(sentence)


def need(*programs):
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program in programs:
        if not shutil.which(program):
            skip(f"{program} is not installed")


def find_programs():
    """(vhdd, vhdctl) of the build in $VHDD_BUILD."""
    build = os.environ.get("VHDD_BUILD") or os.path.join(SOURCE, "build")
    found = []
    for names in (("vhdd/vhdd", "vhdd/daemon/vhdd"), ("vhdd/ctl/vhdctl",)):
        paths = [os.path.join(build, name) for name in names]
        found += [next((p for p in paths if os.access(p, os.X_OK) and os.path.isfile(p)), None)]
        if not found[-1]:
            skip(f"no {os.path.basename(names[0])} in '{build}'")
    return found


def percent(text):
    """@text as it stands in a URI."""
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._~-"
    return "".join(chr(b) if b in safe else f"%{b:02X}" for b in text.encode())


def wait_for(attempt, error, timeout, sentence, tail):
    """Again every 10 ms while it is only @error."""
    end = time.monotonic() + timeout
    while True:
        try:
            return attempt()
        except error as e:
            if time.monotonic() > end:
                raise TestFailed(f"{sentence}: {e}\n{tail()}") from None
        time.sleep(0.01)


class Answer:
    """What a run of vhdctl gave."""

    def __init__(self, command, status, out, err):
        self.command, self.status, self.out, self.err = command, status, out, err

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError as e:
            raise TestFailed(f"{self}: stdout is no JSON: {e}") from None

    def is_one_sentence(self):
        """What is told on stderr is one line, and behind it at most what to do, set off by blanks."""
        lines = self.err.partition("\nTry `")[0].splitlines()
        return 1 <= len(lines) <= 3 and all(line.startswith("  ") for line in lines[1:])

    def __str__(self):
        return f"'{' '.join(self.command)}' ended with {self.status}: {self.err.strip()}"


class Call:
    """A request on the control socket that is under way, in the shape of a Popen of vhdctl: what takes
    0.4 ms instead of the 6 that a process takes."""

    def __init__(self, path, method, params):
        self.args = ["rpc", method, json.dumps(params, ensure_ascii=False)]
        self.got, self.status, self.result, self.error = b"", None, None, ""
        self.socket = socket.socket(socket.AF_UNIX)
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            self.socket.connect(path)
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as e:
            self._over(3, f"cannot speak to '{path}': {e}")

    def poll(self, timeout_s=0):
        """None, or what vhdctl would exit with."""
        end = time.monotonic() + timeout_s
        while self.status is None:
            if not select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
                break
            self._receive()
        return self.status

    def _receive(self):
        try:
            piece = self.socket.recv(1 << 16)
        except OSError as e:
            return self._over(3, f"the daemon is gone: {e}")
        if not piece:
            return self._over(3, "the daemon ended in the middle")
        self.got += piece
        if not self.got.endswith(b"\n"):
            return None
        answer = json.loads(self.got)
        if "error" in answer:
            return self._over(2 if answer["error"]["code"] == -32602 else 3,
                              answer["error"]["message"])
        self.result = answer["result"]
        return self._over(0)

    def _over(self, status, error=""):
        self.status, self.error = status, error
        self.socket.close()

    def answer(self):
        out = "" if self.result is None else json.dumps(self.result)
        return Answer(self.args, self.status, out, self.error)


class Daemon:
    """A vhdd with its state in @folder/state. Usable in `with`; the folder stays."""

    def __init__(self, folder, options=(), prefix=()):
        self.vhdd, self.vhdctl = find_programs()
        self.folder, self.options, self.prefix = folder, list(options), list(prefix)
        self.state = os.path.join(folder, "state")
        self.control = os.path.join(self.state, "control.sock")
        self.socket = os.path.join(folder, "nbd.sock")
        self.log = os.path.join(folder, "vhdd.log")
        self.mark = uuid.uuid4().hex
        self.environment = dict(os.environ, VHDD_CONTROL=self.control, **{MARK: self.mark})
        self.broker = None
        self.ids = {}  # of vms
        os.makedirs(self.state, mode=0o700, exist_ok=True)

    # --- its processes

    def command(self):
        return self.prefix + [self.vhdd, "--state-dir", self.state, "--control", self.control,
                              "--nbd-socket", self.socket] + self.options

    def launch(self):
        """The broker's process, without waiting for it."""
        with open(self.log, "ab") as log:
            self.broker = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment,
            )
        return self

    def start(self):
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self):
        """Until the control socket answers."""
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            demand(self.broker.poll() is None,
                   f"vhdd ended with {self.broker.returncode} at its start:\n{self.tail()}")
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.settimeout(START_TIMEOUT_S)
                    s.connect(self.control)
                    s.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}\n')
                    if s.recv(1):
                        return
                except OSError:
                    pass
            demand(time.monotonic() < end, f"vhdd does not answer:\n{self.tail()}")
            time.sleep(0.005)

    def stop(self):
        """SIGTERM: everything ends, and well."""
        self.broker.send_signal(signal.SIGTERM)
        try:
            status = self.broker.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TestFailed(f"vhdd did not end in {STOP_TIMEOUT_S} s:\n{self.tail()}") from None
        demand(status == 0, f"vhdd ended with {status}:\n{self.tail()}")
        left = self.processes()
        demand(not left, f"vhdd ended and left processes behind: {left}")

    def kill_broker(self):
        """kill -9, and no successor yet."""
        demand(self.broker.poll() is None,
               f"vhdd ended by itself with {self.broker.returncode}:\n{self.tail()}")
        self.broker.kill()
        self.broker.wait()

    def processes(self):
        """{pid: command line} of all that carries our mark, the broker included."""
        found = {int(name): self.look_at(name) for name in os.listdir("/proc") if name.isdigit()}
        return {pid: line for pid, line in found.items() if line}

    def look_at(self, pid):
        """The command line of a process that carries our mark and lives, else None."""
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if f"{MARK}={self.mark}".encode() not in f.read().split(b"\0"):
                    return None
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
                state = f.read().rpartition(")")[2].split()[0]
        except OSError:
            return None
        return None if state in "ZX" else line

    def role(self, role):
        """The pids of the broker's helpers: role is worker, greeter or resolver."""
        return [pid for pid, line in self.processes().items() if f"--{role}" in line.split()]

    def worker(self, vm):
        """The pid of the vm's worker, or None."""
        if vm not in self.ids:
            self.ids[vm] = self.show("vm", vm)["id"]
        try:
            with open(os.path.join(self.state, "run", self.ids[vm] + ".pid"), encoding="ascii") as f:
                pid = int(f.read().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if self.look_at(pid) else None

    def end(self):
        """Nothing that we started is left, however the test went."""
        for _ in range(100):
            pids = self.processes()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if self.broker:
                self.broker.wait()
            if not pids:
                return
            time.sleep(0.02)

    def tail(self, n=25):
        """The end of its log; that clients come and go is left out."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as f:
                return "".join([line for line in f if ": client " not in line][-n:])
        except FileNotFoundError:
            return ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    # --- vhdctl

    def popen(self, *arguments):
        return subprocess.Popen(
            [self.vhdctl, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", env=self.client_environment(),
        )

    def client_environment(self):
        # vhdctl is ours too, and short-lived: without the mark it is not taken for the daemon's.
        return {key: value for key, value in self.environment.items() if key != MARK}

    def begin(self, method, **params):
        """A request of the control API itself; finish() takes it as it takes a popen()."""
        return Call(self.control, method, params)

    def finish(self, process):
        if isinstance(process, Call):
            demand(process.poll(CTL_TIMEOUT_S) is not None,
                   f"'{process.args}' was not answered in {CTL_TIMEOUT_S} s\n{self.tail()}")
            return process.answer()
        try:
            out, err = process.communicate(timeout=CTL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise TestFailed(f"'{' '.join(process.args[1:])}' did not end in {CTL_TIMEOUT_S} s"
                             f"\n{self.tail()}") from None
        return Answer(["vhdctl", *process.args[1:]], process.returncode, out, err)

    def try_ctl(self, *arguments):
        """Runs vhdctl; any status is an answer."""
        answer = self.finish(self.popen(*arguments))
        demand(answer.status in (0, 1, 2, 3), f"{answer}: no status of ours")
        return answer

    def ctl(self, *arguments, status=0):
        answer = self.try_ctl(*arguments)
        demand(answer.status == status, f"{answer} (expected {status})\n{self.tail(8)}")
        return answer

    def query(self, *arguments):
        return self.ctl(*arguments, "--json").json()

    def show(self, kind, *names):
        return self.query(kind, "show", *names)

    # --- NBD

    def connect(self, export, timeout=CONNECT_TIMEOUT_S):
        """A client of @export. What is only not there yet is tried again until @timeout."""
        def attempt():
            handle = nbd.NBD()
            handle.add_meta_context("base:allocation")
            handle.set_export_name(export)
            handle.connect_unix(self.socket)
            return handle

        return wait_for(attempt, nbd.Error, timeout, f"cannot connect to '{export}'", self.tail)

    def reader(self, export):
        return wait_for(lambda: Reader(self.socket, export), OSError, CONNECT_TIMEOUT_S,
                        f"cannot connect to '{export}'", self.tail)

    def uri(self, export):
        return f"nbd+unix:///{percent(export)}?socket={percent(self.socket)}"


class Reader:
    """A client of our own that reads and does nothing else. When an answer is not what it must be,
    it shows the bytes, where libnbd says no more than that they are wrong."""

    IHAVEOPT, OPT_REPLY, SIMPLE, STRUCTURED = (
        0x49484156454F5054, 0x3E889045565A9, 0x67446698, 0x668E33EF)
    OPT_GO, OPT_STRUCTURED_REPLY = 7, 8

    def __init__(self, path, export):
        self.export, self.cookie = export, 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(CONNECT_TIMEOUT_S)
        self.socket.connect(path)
        demand(self._take(8) == b"NBDMAGIC", f"'{export}': no NBD server speaks here")
        magic, _ = struct.unpack(">QH", self._take(10))
        demand(magic == self.IHAVEOPT, f"'{export}': the greeting holds {magic:016x}")
        self.socket.sendall(struct.pack(">I", 3))
        self._option(self.OPT_STRUCTURED_REPLY, b"")
        name = export.encode()
        info = self._option(self.OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        self.size = next(struct.unpack(">Q", text[2:10])[0] for text in info
                         if text[:2] == b"\0\0")

    def _take(self, n):
        got = bytearray(n)
        view, done = memoryview(got), 0
        while done < n:
            more = self.socket.recv_into(view[done:])
            if not more:
                raise ConnectionError(f"'{self.export}' ended after {done} of {n} bytes")
            done += more
        return got

    def _option(self, option, data):
        self.socket.sendall(struct.pack(">QII", self.IHAVEOPT, option, len(data)) + data)
        told = []
        while True:
            magic, of, kind, length = struct.unpack(">QIII", self._take(20))
            demand(magic == self.OPT_REPLY and of == option,
                   f"'{self.export}': an option is answered with {magic:016x} {of}")
            text = bytes(self._take(length))
            if kind == 1:
                return told
            if kind & 1 << 31:
                raise ConnectionError(f"'{self.export}': {text.decode(errors='replace')}")
            told.append(text)

    def _show(self, what, at, head):
        self.socket.settimeout(1)
        more = b""
        try:
            more = self.socket.recv(4096)
        except OSError:
            pass
        raise TestFailed(f"'{self.export}' answers a read at {at} with {what}: {bytes(head).hex()}, "
                         f"then {more.hex()}")

    def read(self, length, at):
        self.cookie += 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, self.cookie, at, length))
        got, have, done = bytearray(length), 0, False
        while not done:
            head = self._take(20)
            magic, flags, kind, cookie, n = struct.unpack(">IHHQI", head)
            if magic != self.STRUCTURED or cookie != self.cookie or n > length + 8:
                self._show("what is no reply to it", at, head)
            done, text = flags & 1, self._take(n)
            if kind in (1, 2) and n >= 8:
                start = struct.unpack(">Q", text[:8])[0] - at
                size = n - 8 if kind == 1 else struct.unpack(">I", text[8:])[0]
                if kind == 1:
                    got[start : start + size] = text[8:]
                have += size
            elif kind != 0:
                self._show(f"chunk {kind}, {bytes(text)}", at, head)
        demand(have == length == len(got), f"'{self.export}': {have} of {length} bytes came")
        return got

    def close(self):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        self.socket.close()


def leave(handle):
    """Ends a client as a kind one does. (An unkind one only drops its handle: that closes it.)"""
    try:
        handle.shutdown()
    except nbd.Error:
        pass


def keep_writers_out(file):
    """As a QEMU does that reads the open file: bytes 100 (it reads) and 201 (nobody writes) are locked."""
    for at in (100, 201):
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, at, 1, 0))


def read_all(handle, size=None, piece=1 << 20):
    size = handle.get_size() if size is None else size
    return b"".join(handle.pread(min(piece, size - at), at) for at in range(0, size, piece))


def temporary(name):
    """A folder for a test: on the machine's own file system unless TMPDIR says otherwise."""
    return tempfile.TemporaryDirectory(prefix=f"vhdd-{name}-")


def run(name, test):
    """Runs test(folder) and turns its end into an exit status."""
    # A time limit's SIGTERM ends everything and removes the folder, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    find_programs()
    with temporary(name) as folder:
        try:
            test(folder)
        except TestFailed as e:
            print(f"{name}: {e}", file=sys.stderr)
            if os.environ.get("VHDD_KEEP"):
                kept = shutil.copytree(folder, tempfile.mkdtemp(prefix="vhdd-kept-") + "/all",
                                       ignore=shutil.ignore_patterns("*.sock"))
                print(f"{name}: its files are in {kept}", file=sys.stderr)
            sys.exit(1)


def run_cases(name, description, case_class, cases):
    """The command line of a test that is made of cases, and its end. Each case gets its own
    case_class(folder, name, chance, long), which has a daemon, over() when it went well, and close()."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--long", action="store_true", default=bool(os.environ.get("VHDD_LONG")))
    parser.add_argument("--only", choices=[one.__name__ for one in cases])
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)

    def test(folder):
        print(f"seed {seed}")
        for one in cases:
            if not options.only or one.__name__ == options.only:
                run_case(folder, one)

    def run_case(folder, one):
        begun = time.monotonic()
        case = case_class(folder, one.__name__, random.Random(f"{seed} {one.__name__}"), options.long)
        try:
            one(case)
            case.over()
        except TestFailed as e:
            raise TestFailed(f"{one.__name__} (seed {seed}): {e}") from None
        finally:
            if os.environ.get("VHDD_KEEP"):
                case.daemon.end()
            else:
                case.close()
        print(f"{one.__name__}: {time.monotonic() - begun:.1f} s", flush=True)

    run(name, test)
