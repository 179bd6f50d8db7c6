# SPDX-License-Identifier: Apache-2.0
"""What a vm of the daemon must read as: its disks, its snapshots, in memory.

A sector has one value, or, after a write that was never answered, a trim, or a write beside a
snapshot that was being taken, one of several. Reading it settles which."""

SECTOR = 512


class Content:
    """The bytes of one disk at one time."""

    def __init__(self, size):
        self.data = bytearray(size)
        self.maybe = {}  # sector -> the set of values that it may have

    def copy(self):
        other = Content(0)
        other.data = bytearray(self.data)
        other.maybe = {sector: set(values) for sector, values in self.maybe.items()}
        return other

    def write(self, offset, payload):
        """A write that was answered."""
        self.data[offset : offset + len(payload)] = payload
        for sector in self._uncertain(offset, len(payload)):
            del self.maybe[sector]

    def might(self, offset, payload):
        """A write that was not: each sector is old or new."""
        for at in range(0, len(payload), SECTOR):
            sector = (offset + at) // SECTOR
            new = bytes(payload[at : at + SECTOR])
            old = bytes(self.data[offset + at : offset + at + SECTOR])
            if sector in self.maybe or new != old:
                self.maybe.setdefault(sector, {old}).add(new)

    def might_zero(self, offset, length):
        self.might(offset, bytes(length))

    def matches(self, offset, got):
        """None, or a sentence on the first sector that is not what it must be. Settles nothing."""
        return self._compare(offset, got, settle=False)

    def settle(self, offset, got):
        """As matches; what could have been several values is now this one."""
        return self._compare(offset, got, settle=True)

    def _uncertain(self, offset, length):
        first, end = offset // SECTOR, (offset + length) // SECTOR
        if len(self.maybe) < end - first:
            return [s for s in self.maybe if first <= s < end]
        return [s for s in range(first, end) if s in self.maybe]

    def _compare(self, offset, got, settle):
        wanted = bytearray(self.data[offset : offset + len(got)])
        settled = []
        for sector in self._uncertain(offset, len(got)):
            at = sector * SECTOR - offset
            value = bytes(got[at : at + SECTOR])
            if value not in self.maybe[sector]:
                return (f"sector {sector} reads {value[:16].hex()}..., "
                        f"which is none of its {len(self.maybe[sector])} possible values")
            wanted[at : at + SECTOR] = value
            settled.append((sector, value))
        if wanted != got:
            at = next(i for i in range(0, len(got), SECTOR)
                      if wanted[i : i + SECTOR] != got[i : i + SECTOR])
            bad = sum(wanted[i : i + SECTOR] != got[i : i + SECTOR]
                      for i in range(0, len(got), SECTOR))
            return (f"sector {(offset + at) // SECTOR} reads {bytes(got[at : at + 16]).hex()}... "
                    f"instead of {bytes(wanted[at : at + 16]).hex()}... ({bad} sectors differ)")
        if settle:
            for sector, value in settled:
                self.data[sector * SECTOR : (sector + 1) * SECTOR] = value
                del self.maybe[sector]
        return None


class Disk:
    def __init__(self, name, at, content, file):
        self.name, self.at, self.content, self.file = name, at, content, file


class Snapshot:
    def __init__(self, parent, disks):
        self.parent, self.disks = parent, disks  # disks: {name: Disk}


class Vm:
    """One state of a vm. An operation on it answers the state after it and leaves this one be."""

    def __init__(self, name):
        self.name = name
        self.disks = {}
        self.snapshots = {}
        self.current = None
        self.undo = None  # the state that "snapshot undo" leads back to

    def next(self):
        other = Vm(self.name)
        other.disks, other.snapshots = dict(self.disks), dict(self.snapshots)
        other.current, other.undo = self.current, self.undo
        return other

    def frozen(self):
        """The disks as a snapshot taken now holds them."""
        return {d.name: Disk(d.name, d.at, d.content.copy(), None) for d in self.disks.values()}

    def thawed(self, snapshot):
        """New running disks over a snapshot's."""
        return {d.name: Disk(d.name, d.at, d.content.copy(), None)
                for d in self.snapshots[snapshot].disks.values()}

    def structure(self):
        """What the command line shows of it."""
        return {
            "snapshots": {name: s.parent for name, s in sorted(self.snapshots.items())},
            "current": self.current,
            "disks": {name: d.at for name, d in sorted(self.disks.items())},
        }

    def below(self, name):
        """The snapshot and all that descend from it."""
        found = {name}
        while True:
            more = {n for n, s in self.snapshots.items() if s.parent in found} - found
            if not more:
                return found
            found |= more

    # --- operations; each answers the state after it

    def take(self, name):
        after = self.next()
        after.snapshots[name] = Snapshot(self.current, self.frozen())
        after.current, after.undo = name, None
        return after

    def apply(self, name, save_current=None, keep=False):
        after = self.next()
        if save_current:
            after.snapshots[save_current] = Snapshot(self.current, self.frozen())
        after.disks = self.thawed(name)
        after.current = name
        after.undo = self if keep and not save_current else None
        return after

    def undone(self):
        after = self.next()
        after.disks, after.current = dict(self.undo.disks), self.undo.current
        after.undo = None
        return after

    def delete(self, name, subtree=False):
        after = self.next()
        gone = self.below(name) if subtree else {name}
        heir = self.snapshots[name].parent
        for one in gone:
            del after.snapshots[one]
        for other, s in after.snapshots.items():
            if s.parent in gone:
                after.snapshots[other] = Snapshot(heir, s.disks)
        if after.current in gone:
            after.current = heir
        after.undo = None
        return after

    def rename(self, old, new):
        after = self.next()
        after.snapshots = {
            (new if n == old else n): Snapshot(new if s.parent == old else s.parent, s.disks)
            for n, s in self.snapshots.items()
        }
        if after.current == old:
            after.current = new
        after.undo = None
        return after

    def attach(self, disk):
        after = self.next()
        after.disks[disk.name] = disk
        after.undo = None
        return after

    def detach(self, name):
        after = self.next()
        del after.disks[name]
        after.undo = None
        return after

    def first_free_place(self):
        taken = {d.at for d in self.disks.values()}
        return next(f"scsi0:{n}" for n in range(64) if f"scsi0:{n}" not in taken)
