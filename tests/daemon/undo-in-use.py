#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""undo-in-use - a disk does not come back to a vm while its file is another's.

An apply detaches a disk that was attached since and keeps its file. Whoever attaches that file to
another vm, and takes a snapshot there, has it frozen; an undo of the apply would make it a live disk
of the first vm again, and its writes would go into the other's snapshot. It is refused, nothing is
changed, and once the file is free again the undo works."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402


def disks(daemon, vm):
    return {(d["name"], d["file"]) for d in daemon.query("disk", "list", vm)}


def refused(daemon, sentence):
    """An undo that is refused and leaves both vms as they were, also when it is only asked."""
    before = disks(daemon, "one"), disks(daemon, "two")
    for options in (["--dry-run"], []):
        answer = daemon.ctl("snapshot", "undo", "one", *options, status=3)
        demand(sentence in answer.err, f"'{sentence}' is not said: {answer}")
    now = disks(daemon, "one"), disks(daemon, "two")
    demand(before == now, f"a refused undo changed {before} to {now}")


def test(folder):
    mine, shared = (os.path.join(folder, name) for name in ("mine.vhd", "shared.vhd"))
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "one")
        daemon.ctl("vm", "create", "two")
        daemon.ctl("disk", "attach", "one", mine, "--create", "8M")
        daemon.ctl("snapshot", "take", "one", "start")
        daemon.ctl("disk", "attach", "one", shared, "--create", "8M")
        daemon.ctl("snapshot", "apply", "one", "start", "--keep-discarded", "1h")
        daemon.ctl("disk", "attach", "two", shared)
        refused(daemon, "'two'")
        daemon.ctl("snapshot", "take", "two", "frozen")
        refused(daemon, "snapshot 'frozen'")
        client = daemon.connect("two/shared")
        daemon.ctl("snapshot", "delete", "two", "frozen", "--merge", "deferred")
        refused(daemon, "waits for a merge")
        daemonlib.leave(client)
        daemon.ctl("job", "wait")
        refused(daemon, "'two'")
        daemon.ctl("vm", "remove", "two")
        daemon.ctl("snapshot", "undo", "one")
        demand(("shared", shared) in disks(daemon, "one"), "the disk did not come back")
        daemon.stop()


if __name__ == "__main__":
    daemonlib.run("undo-in-use", test)
