#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""NBD clients on their way through the greeter, and what the metrics say of them.

What could go wrong: the greeter dies and takes clients with it, or nobody is answered any more; a crowd
that connects and says nothing keeps everybody out; a worker that has just died turns clients away who
would only have had to wait; the counters do not count."""

import os
import re
import signal
import socket
import sys
import time

import daemonlib
from daemonlib import demand, nbd

SIZE = 8 << 20
CROWD = 300
READS = 25
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\})? (\S+)')


def make_vm(daemon):
    daemon.ctl("vm", "create", "web")
    daemon.ctl("disk", "attach", "web", os.path.join(daemon.folder, "sys.vhd"), "--name", "sys",
               "--create", str(SIZE))


def the_greeter_may_die(daemon):
    """Who is served does not notice; who comes waits for the next one, and is not turned away."""
    served = daemon.connect("web/sys")
    served.pwrite(b"before", 0)
    for _ in range(5):
        greeters = daemon.role("greeter")
        demand(len(greeters) == 1, f"greeters: {greeters}")
        os.kill(greeters[0], signal.SIGKILL)
        handle = daemon.connect("web/sys")
        demand(handle.pread(6, 0) == b"before", "another disk")
        daemonlib.leave(handle)
        served.pwrite(b"before", 0)
        served.flush()
    daemonlib.leave(served)


def a_crowd_keeps_nobody_out(daemon):
    crowd = []
    for _ in range(CROWD):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10)
        s.connect(daemon.socket)
        crowd.append(s)
    begun = time.monotonic()
    handle = daemon.connect("web/sys")
    handle.pread(512, 0)
    took = time.monotonic() - begun
    demand(took < 5, f"a client waited {took:.1f} s behind {CROWD} silent ones")
    daemonlib.leave(handle)
    for s in crowd:
        s.close()


def what_is_not_there_is_refused(daemon):
    for name in ("web/none", "none/sys", "web", "", "/", "web/sys@nothing", "x" * 4096, "web/\n"):
        handle = nbd.NBD()
        handle.set_export_name(name)
        try:
            handle.connect_unix(daemon.socket)
        except nbd.Error:
            continue
        demand(False, f"'{name[:40]}' was served")


def a_worker_that_died_is_waited_for(daemon):
    for _ in range(3):
        os.kill(daemon.worker("web"), signal.SIGKILL)
        handle = nbd.NBD()
        handle.set_export_name("web/sys")
        # At the first try: the daemon holds the client until the next worker is there.
        handle.connect_unix(daemon.socket)
        demand(handle.pread(6, 0) == b"before", "an answered write is lost")
        daemonlib.leave(handle)
        # The next death is not to be soon after this one.
        time.sleep(1.1)


def samples(text):
    """{(name, labels): value} of an OpenMetrics text, each line of which is checked."""
    lines = text.splitlines()
    demand(lines[-1] == "# EOF", "the metrics do not end with # EOF")
    found = {}
    for line in lines[:-1]:
        if line.startswith(("# TYPE ", "# HELP ", "# UNIT ")):
            continue
        match = SAMPLE.fullmatch(line)
        demand(match, f"no sample: {line}")
        labels = tuple(sorted(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', match[2] or "")))
        demand((match[1], labels) not in found, f"twice: {line}")
        found[match[1], labels] = float(match[3])
    return found


def the_metrics_count(daemon):
    handle = daemon.connect("web/sys")

    def value(name, op, **more):
        labels = {"vm": "web", "disk": "sys", "op": op, **more}
        return now.get((name, tuple(sorted(labels.items()))), 0)

    now = samples(daemon.ctl("metrics").out)
    before = {op: value("vhdd_disk_requests_total", op) for op in ("read", "write", "flush")}
    bytes_before = value("vhdd_disk_bytes_total", "read")
    errors_before = value("vhdd_disk_errors_total", "read")
    for i in range(READS):
        handle.pread(65536, i * 4096)
    handle.pwrite(bytes(4096), 1 << 20)
    handle.flush()
    handle.set_strict_mode(0)
    try:
        handle.pread(512, SIZE)
        demand(False, "a read past the end was answered")
    except nbd.Error:
        pass
    # A reply reaches the client a little before it is counted.
    for _ in range(200):
        now = samples(daemon.ctl("metrics").out)
        if value("vhdd_disk_errors_total", "read") > errors_before:
            break
        time.sleep(0.02)
    demand(value("vhdd_disk_errors_total", "read") == errors_before + 1, "one error")
    demand(value("vhdd_disk_requests_total", "read") == before["read"] + READS + 1, "reads")
    demand(value("vhdd_disk_requests_total", "write") == before["write"] + 1, "writes")
    demand(value("vhdd_disk_requests_total", "flush") == before["flush"] + 1, "flushes")
    demand(value("vhdd_disk_bytes_total", "read") == bytes_before + READS * 65536, "bytes")

    buckets = sorted((float(dict(labels)["le"]), n) for (name, labels), n in now.items()
                     if name == "vhdd_disk_request_seconds_bucket" and ("op", "read") in labels)
    counts = [n for _, n in buckets]
    demand(len(counts) > 5 and counts == sorted(counts), f"buckets that do not grow: {buckets}")
    demand(counts[-1] == value("vhdd_disk_request_seconds_count", "read"), "the last has all")
    demand(counts[-1] == value("vhdd_disk_requests_total", "read"), "every request has a latency")
    demand(value("vhdd_disk_request_seconds_sum", "read") > 0, "reading takes time")
    daemonlib.leave(handle)


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        make_vm(daemon)
        the_greeter_may_die(daemon)
        a_crowd_keeps_nobody_out(daemon)
        what_is_not_there_is_refused(daemon)
        a_worker_that_died_is_waited_for(daemon)
        the_metrics_count(daemon)
        daemon.stop()


if __name__ == "__main__":
    sys.exit(daemonlib.run("greeter", test))
