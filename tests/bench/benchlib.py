# SPDX-License-Identifier: Apache-2.0
"""What the bench scripts share: servers that start and end, the load client, numbers."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

SOURCE = os.environ.get("VHDD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", "..")
)
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


# A time limit's SIGTERM ends the servers and removes the disks, as Ctrl-C does.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def skip(why):
    print(why)
    sys.exit(77)


def find_build():
    """The build folder: $VHDD_BUILD, else the first of the usual ones that has the programs."""
    names = ["build-release", "build-plain", "build"]
    candidates = [os.environ.get("VHDD_BUILD")] + [os.path.join(SOURCE, n) for n in names]
    for build in candidates:
        if build and os.path.exists(os.path.join(build, "tests/bench/nbdload")):
            return build
    sys.exit("no build with tests/bench/nbdload: build first, or set VHDD_BUILD")


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            skip(f"{program} is not installed")


class Server:
    """A server on a unix socket: begun by the constructor, ended by stop(); usable in `with`."""

    def __init__(self, name, command, path, export="", log=None):
        self.name, self.socket, self.export = name, path, export
        self.began = time.monotonic()
        self.log = open(log or os.devnull, "ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - self.began

    def _wait(self):
        end = self.began + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode} at its start")
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.settimeout(START_TIMEOUT_S)
                    s.connect(self.socket)
                    # The greeting: only now does it serve.
                    if s.recv(8) == b"NBDMAGIC":
                        return
                except (FileNotFoundError, ConnectionRefusedError):
                    pass
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not start in {START_TIMEOUT_S} s")
            time.sleep(0.002)

    def memory(self):
        """VmRSS and VmHWM in bytes."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii", errors="replace") as f:
            lines = dict(line.split(":", 1) for line in f if ":" in line)
        return {key: int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")}

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def load(build, server, **options):
    """Runs nbdload against the server; answers its numbers."""
    command = [os.path.join(build, "tests/bench/nbdload"), "--socket", server.socket]
    if server.export:
        command += ["--export", server.export]
    for key, value in options.items():
        command += ["--" + key.replace("_", "-")] + ([] if value is True else [str(value)])
    run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{server.name}: {' '.join(command)} ended with {run.returncode}")
    return json.loads(run.stdout)


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def show(value):
    """Three figures that mean something: 0.734, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(folder):
    """What the numbers were had on."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        model = next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), "?")
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "kernel": os.uname().release,
        "file-system": kind,
        "load-before": os.getloadavg()[0],
    }
