#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""remove-shared - removing a vm or a snapshot takes nothing that somebody else still needs.

Two vms stand on one base image: one vm reads it, the other has a child of it. What the second one's
apply discarded, and keeps, is still there when the first one is removed, and the undo brings it back.
The same of a child that is detached just then: what it stands on stays. And of one that an apply
detached after it had been saved in a snapshot, when that snapshot goes, and its vm."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

SECTOR = b"kept".ljust(512, b".")


def detached(folder):
    """The base was made by the daemon for the vm that goes; a file that is nobody's disk stands on it."""
    base, child = (os.path.join(folder, name) for name in ("made.vhd", "on-it.vhd"))
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "a")
        daemon.ctl("vm", "create", "b")
        daemon.ctl("disk", "attach", "a", base, "--create", "8M")
        daemon.ctl("snapshot", "take", "a", "s")
        daemon.ctl("create", child, "--parent", base)
        daemon.ctl("disk", "attach", "b", child, "--name", "d")
        daemon.ctl("disk", "detach", "b", "d")
        daemon.ctl("vm", "remove", "a", "--delete-files")
        daemon.ctl("disk", "attach", "b", child, "--name", "d")
        daemonlib.leave(daemon.connect("b/d"))
        daemon.stop()


def saved_and_detached(folder):
    """The disk's file is frozen in the snapshot that was saved, and kept as its owner's beyond it."""
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "a")
        daemon.ctl("snapshot", "take", "a", "empty")
        daemon.ctl("disk", "attach", "a", os.path.join(folder, "d.vhd"), "--create", "8M")
        handle = daemon.connect("a/d")
        handle.pwrite(SECTOR, 0)
        daemonlib.leave(handle)
        daemon.ctl("snapshot", "take", "a", "below")
        file = daemon.show("disk", "a", "d")["file"]
        daemon.ctl("snapshot", "apply", "a", "empty", "--save-current", "saved")
        daemon.ctl("snapshot", "delete", "a", "below")
        daemon.ctl("snapshot", "delete", "a", "saved")
        daemon.ctl("info", "--chain", "--quiet", file)
        daemon.ctl("disk", "attach", "a", file, "--name", "again")
        # As a disk it is merged with what the deleted snapshot left below it.
        daemon.ctl("job", "wait")
        file = daemon.show("disk", "a", "again")["file"]
        daemon.ctl("disk", "detach", "a", "again")
        daemon.ctl("vm", "remove", "a", "--delete-files")
        daemon.ctl("vm", "create", "b")
        daemon.ctl("disk", "attach", "b", file, "--name", "d")
        handle = daemon.connect("b/d")
        demand(handle.pread(512, 0) == SECTOR, "the disk that was kept reads something else")
        daemonlib.leave(handle)
        daemon.stop()


def test(folder):
    for one in (kept_for_undo, detached, saved_and_detached):
        part = os.path.join(folder, one.__name__)
        os.mkdir(part)
        one(part)


def kept_for_undo(folder):
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
