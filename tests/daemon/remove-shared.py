#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""remove-shared - removing a vm with its files takes nothing that another vm keeps for an undo.

Both stand on one base image: one vm reads it, the other has a child of it. What the second one's apply
discarded, and keeps, is still there when the first one is removed, and the undo brings it back."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

SECTOR = b"kept".ljust(512, b".")


def test(folder):
    base, child = (os.path.join(folder, name) for name in ("base.vhd", "child.vhd"))
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("create", base, "--size", "8M")
        daemon.ctl("create", child, "--parent", base)
        daemon.ctl("vm", "create", "reader")
        daemon.ctl("disk", "attach", "reader", base, "--read-only")
        daemon.ctl("vm", "create", "writer")
        daemon.ctl("disk", "attach", "writer", child, "--name", "d")
        daemon.ctl("snapshot", "take", "writer", "s")
        handle = daemon.connect("writer/d")
        handle.pwrite(SECTOR, 0)
        handle.flush()
        daemonlib.leave(handle)
        daemon.ctl("snapshot", "apply", "writer", "s", "--keep-discarded", "1h")
        daemon.ctl("snapshot", "delete", "writer", "s")
        daemon.ctl("vm", "remove", "reader", "--delete-files")
        daemon.ctl("snapshot", "undo", "writer")
        handle = daemon.connect("writer/d")
        demand(handle.pread(512, 0) == SECTOR, "the undo brought back something else")
        daemonlib.leave(handle)
        daemon.stop()


if __name__ == "__main__":
    daemonlib.run("remove-shared", test)
