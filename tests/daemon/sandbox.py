#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""sandbox - what reads images and talks to clients can reach nothing else.

A worker parses what a guest may have written, the greeter what anybody on the network may say. Both
run without privileges, under seccomp, and open no file by name from the moment they serve (seen by
strace); a worker's descriptors are its images, its sockets and its redo files, and nothing else of
this machine."""

import os
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

# Calls that reach a file by its name.
BY_NAME = ("open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,"
           "symlinkat,mkdir,mkdirat,mknod,mknodat,execve,execveat,chmod,fchmodat,truncate,mount,ptrace")


def status_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def check_privileges(role, pid):
    status = status_of(pid)
    demand(status["Seccomp"] == "2", f"the {role} runs without a seccomp filter")
    demand(status["NoNewPrivs"] == "1", f"the {role} could gain privileges")
    demand(int(status["CapEff"], 16) == 0, f"the {role} has capabilities {status['CapEff']}")
    demand(int(status["CapPrm"], 16) == 0, f"the {role} may take capabilities {status['CapPrm']}")
    if os.geteuid() == 0:
        demand("0" not in status["Uid"].split(), f"the {role} runs as root")


def check_descriptors(role, pid, allowed):
    """Each open descriptor is of a kind or a folder that it may have."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        fits = re.match(r"(socket:|pipe:|anon_inode:|/dev/null|/memfd:|/dev/shm/vhdd|/run/vhdd/)",
                        target) or any(target.startswith(a) for a in allowed)
        demand(fits, f"the {role} has '{target}' open")


def traced(pids, folder, during):
    """The calls by name that these processes made while during() ran."""
    log = os.path.join(folder, "strace.log")
    command = ["strace", "-f", "-qq", "-o", log, "-e", "trace=" + BY_NAME]
    command += [word for pid in pids for word in ("-p", str(pid))]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 10
        while any(status_of(pid)["TracerPid"] == "0" for pid in pids):
            if tracer.poll() is not None or time.monotonic() > end:
                daemonlib.skip(f"strace cannot attach: {tracer.communicate()[1].strip()[-200:]}")
            time.sleep(0.01)
        during()
    finally:
        if tracer.poll() is None:
            tracer.terminate()
        tracer.communicate()
    with open(log, encoding="utf-8", errors="replace") as f:
        return [line.strip() for line in f if re.search(r"\w+\(", line)]


def work(daemon):
    """What a worker does all day: clients, writes, flushes, snapshots, a new disk."""
    handle = daemon.connect("web/disk")
    for number in range(40):
        handle.pwrite(bytes([number]) * 4096, number * 100000 // 512 * 512)
    handle.flush()
    daemon.ctl("snapshot", "take", "web", "one")
    handle.pwrite(b"x" * 4096, 0)
    daemon.ctl("disk", "attach", "web", os.path.join(daemon.folder, "more.vhd"), "--name", "more",
               "--create", "4M")
    old = daemon.connect("web/disk@one")
    demand(old.pread(1, 0) == b"\0", "the snapshot does not read what it holds")
    daemonlib.leave(old)
    more = daemon.connect("web/more")
    more.pwrite(b"y" * 4096, 0)
    more.flush()
    daemonlib.leave(more)
    daemonlib.leave(handle)


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "disk.vhd"), "--name", "disk",
                   "--create", "16M")
        daemonlib.leave(daemon.connect("web/disk"))
        workers, greeters = daemon.role("worker"), daemon.role("greeter")
        demand(len(workers) == 1 and len(greeters) == 1,
               f"the workers are {workers}, the greeters {greeters}")
        images = os.path.join(folder, "")
        for role, pid in (("worker", workers[0]), ("greeter", greeters[0])):
            check_privileges(role, pid)
            check_descriptors(role, pid, [images, daemon.log] if role == "worker" else
                              [daemon.log, daemon.socket])
        calls = traced(workers + greeters, folder, lambda: work(daemon))
        demand(not calls, "calls that name a file:\n  " + "\n  ".join(calls[:10]))
        # The catalog is the broker's alone.
        for name in os.listdir(f"/proc/{workers[0]}/fd"):
            target = os.readlink(f"/proc/{workers[0]}/fd/{name}")
            demand("catalog" not in target, f"the worker has '{target}' open")
        daemon.stop()


if __name__ == "__main__":
    daemonlib.need("strace")
    daemonlib.run("sandbox", test)
