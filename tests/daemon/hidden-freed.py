#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""hidden-freed - a snapshot that is deleted while it is read goes when nobody reads it any more.

Its reader reads on after the deletion. Then the worker is killed under it, so that nobody says that the
reader has gone: the snapshot's file is removed all the same. And the daemon says of each client that it
came and that it went."""

import json
import os
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

FREED_S = 30
SECTOR = b"frozen".ljust(512, b".")


def told_of_clients(daemon):
    """What `events` says while a client comes and goes."""
    said = []
    with socket.socket(socket.AF_UNIX) as events:
        events.settimeout(FREED_S)
        events.connect(daemon.control)
        events.sendall(b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{}}\n')
        with events.makefile() as lines:
            lines.readline()
            daemonlib.leave(daemon.connect("web/d"))
            while "gone" not in said:
                event = json.loads(lines.readline())["params"]
                if event["type"] == "client":
                    said.append(event["what"])
                    demand(event["vm"] == "web", f"a client's event: {event}")
    demand(said == ["connected", "served", "gone"], f"of a client is told {said}")


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "d.vhd"), "--name", "d",
                   "--create", "8M")
        told_of_clients(daemon)
        daemon.ctl("snapshot", "take", "web", "root")
        handle = daemon.connect("web/d")
        handle.pwrite(SECTOR, 0)
        handle.flush()
        daemonlib.leave(handle)
        daemon.ctl("snapshot", "take", "web", "tip")
        frozen = daemon.show("snapshot", "web", "tip")["disks"][0]["file"]
        reader = daemon.connect("web/d@tip")
        daemon.ctl("snapshot", "apply", "web", "root")
        daemon.ctl("snapshot", "delete", "web", "tip")
        demand(os.path.exists(frozen), "a snapshot that is read was removed")
        demand(reader.pread(512, 0) == SECTOR, "the reader reads something else now")

        pid = daemon.worker("web")
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + FREED_S
        while os.path.exists(frozen):
            demand(time.monotonic() < end, f"'{frozen}' is still there\n{daemon.tail()}")
            time.sleep(0.1)
        daemon.stop()


if __name__ == "__main__":
    daemonlib.run("hidden-freed", test)
