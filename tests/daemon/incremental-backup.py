#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""incremental-backup - a backup is the last one plus what changed since, and nothing else moves.

Full copies of snapshot A; then only the extents that the NBD context vhdd:changed:A names are read,
out of snapshot B, and put over the copy: that is B, to the byte (the same hash), and no more than
1.1 times the bytes that were written has moved. "snapshot diff" names the same ranges; so does the
live disk's context; and once more from B to C, also after the snapshot between was deleted."""

import hashlib
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

DISK = 64 << 20
MOST = 1.1


def write_some(daemon, chance, base):
    """Writes that change what is there, at places of 4 KiB; answers how many bytes they changed."""
    handle = daemon.connect("web/disk")
    places = set()
    for _ in range(120):
        pieces = chance.choice([1, 1, 1, 4, 16, 64])
        first = chance.randrange(DISK // 4096 - pieces)
        handle.pwrite(chance.randbytes(pieces * 4096), first * 4096)
        places.update(range(first, first + pieces))
    if not base:
        # An odd sector, and one that is written twice.
        handle.pwrite(chance.randbytes(512), 512 * 77)
        handle.pwrite(chance.randbytes(512), 512 * 77)
        places.add(512 * 77 // 4096)
    handle.flush()
    daemonlib.leave(handle)
    return len(places) * 4096


def changed_by_nbdinfo(daemon, export, since):
    """[(start, length)] that nbdinfo shows as changed in @export since the snapshot."""
    done = subprocess.run(
        ["nbdinfo", "--json", f"--map=vhdd:changed:{since}", daemon.uri(export)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
    )
    demand(done.returncode == 0, f"nbdinfo: {done.stderr}")
    return [(e["offset"], e["length"]) for e in json.loads(done.stdout) if e["type"] & 1]


def joined(extents):
    """Sorted, and neighbours made one."""
    found = []
    for start, length in sorted(map(tuple, extents)):
        if found and found[-1][0] + found[-1][1] == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def copy_whole(daemon, export):
    handle = daemon.connect(export)
    content = bytearray(daemonlib.read_all(handle))
    daemonlib.leave(handle)
    return content


def copy_changed(daemon, backup, export, extents):
    """Puts the extents of @export over the backup; answers how many bytes moved."""
    handle = daemon.connect(export)
    for start, length in extents:
        for at in range(start, start + length, 1 << 20):
            piece = min(1 << 20, start + length - at)
            backup[at : at + piece] = handle.pread(piece, at)
    daemonlib.leave(handle)
    return sum(length for _, length in extents)


def one_increment(daemon, backup, since, now, changed):
    extents = joined(changed_by_nbdinfo(daemon, f"web/disk@{now}", since))
    diff = daemon.query("snapshot", "diff", "web", "disk", "--from", since, "--to", now)
    demand(joined(diff["extents"]) == extents,
           f"from {since} to {now}: snapshot diff and the NBD context differ")
    demand(diff["changed"] == sum(length for _, length in extents),
           f"snapshot diff counts {diff['changed']} bytes")
    moved = copy_changed(daemon, backup, f"web/disk@{now}", extents)
    wanted = hashlib.sha256(copy_whole(daemon, f"web/disk@{now}")).hexdigest()
    demand(hashlib.sha256(backup).hexdigest() == wanted,
           f"the backup of {since} with what changed is not {now}")
    demand(moved <= changed * MOST,
           f"from {since} to {now} {changed} bytes changed and {moved} moved")
    return moved


def test(folder):
    chance = random.Random(3)
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "disk.vhd"), "--name", "disk",
                   "--create", str(DISK))
        write_some(daemon, chance, base=True)
        daemon.ctl("snapshot", "take", "web", "monday")
        backup = copy_whole(daemon, "web/disk@monday")

        changed = write_some(daemon, chance, base=False)
        live = joined(changed_by_nbdinfo(daemon, "web/disk", "monday"))
        daemon.ctl("snapshot", "take", "web", "tuesday evening")
        moved = one_increment(daemon, backup, "monday", "tuesday evening", changed)
        frozen = joined(changed_by_nbdinfo(daemon, "web/disk@tuesday evening", "monday"))
        demand(live == frozen, "the live disk named other ranges than the snapshot taken then")

        # Two steps at once, over a snapshot that is gone meanwhile.
        older = copy_whole(daemon, "web/disk@tuesday evening")
        more = write_some(daemon, chance, base=False)
        daemon.ctl("snapshot", "take", "web", "between")
        more += write_some(daemon, chance, base=False)
        daemon.ctl("snapshot", "take", "web", "friday")
        daemon.ctl("snapshot", "delete", "web", "between")
        moved += one_increment(daemon, older, "tuesday evening", "friday", more)

        # Nothing changed: nothing to move.
        daemon.ctl("snapshot", "take", "web", "saturday")
        nothing = changed_by_nbdinfo(daemon, "web/disk@saturday", "friday")
        demand(not nothing, f"nothing was written, and {nothing} changed")
        # All there is at all, when there is no older one.
        diff = daemon.query("snapshot", "diff", "web", "disk", "--to", "monday")
        demand(diff["from"] is None and diff["changed"] > 0, "a first backup would be empty")
        daemon.stop()
        print(f"summary: {changed + more} bytes changed, {moved} moved "
              f"({moved / (changed + more):.3f}), same hashes")


if __name__ == "__main__":
    daemonlib.need("nbdinfo")
    daemonlib.run("incremental", test)
