# SPDX-License-Identifier: Apache-2.0
"""What a vm of the daemon must read as: its disks, its snapshots, in memory.

A sector has one value, or, after a write that was never answered, a trim, or a write beside a
snapshot that was being taken, one of several. Reading it settles which."""

SECTOR = 512
# What is compared at once. Most of it is as it is thought to be, and then no sector is looked at.
PIECE_SECTORS = 64
ZEROS = bytes(PIECE_SECTORS * SECTOR)


class Content:
    """The bytes of one disk at one time."""

    def __init__(self, size):
        self.data = bytearray(size)
        # A sector that was trimmed reads as it did or as zeros: such are many at a time.
        self.trimmed = bytearray(size // SECTOR)
        self.maybe = {}  # sector -> the set of values that it may have, for what else is uncertain

    def copy(self):
        other = Content(0)
        other.data, other.trimmed = bytearray(self.data), bytearray(self.trimmed)
        other.maybe = {sector: set(values) for sector, values in self.maybe.items()}
        return other

    def write(self, offset, payload):
        """A write that was answered."""
        self.data[offset : offset + len(payload)] = payload
        self._certain(offset // SECTOR, (offset + len(payload)) // SECTOR)

    def might(self, offset, payload):
        """A write that was not: each sector is old or new."""
        for at in range(0, len(payload), SECTOR):
            sector = (offset + at) // SECTOR
            new = bytes(payload[at : at + SECTOR])
            if sector in self.maybe or self.trimmed[sector] or new != self._value(sector):
                self.maybe.setdefault(sector, self._values(sector)).add(new)
                self.trimmed[sector] = 0

    def trim(self, offset, length):
        """One that was answered, or not: each sector is old or zero."""
        first, end = offset // SECTOR, (offset + length) // SECTOR
        self.trimmed[first:end] = b"\1" * (end - first)
        for sector in self._uncertain(first, end):
            self.maybe[sector].add(bytes(SECTOR))
            self.trimmed[sector] = 0

    def matches(self, offset, got):
        """None, or a sentence on the first sector that is not what it must be. Settles nothing."""
        return self._compare(offset, got, settle=False)

    def settle(self, offset, got):
        """As matches; what could have been several values is now this one."""
        return self._compare(offset, got, settle=True)

    def _value(self, sector):
        return bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])

    def _values(self, sector):
        """All that the sector may have."""
        if sector in self.maybe:
            return self.maybe[sector]
        return {self._value(sector)} | ({bytes(SECTOR)} if self.trimmed[sector] else set())

    def _uncertain(self, first, end):
        """The sectors from @first to before @end that are in maybe."""
        if len(self.maybe) < end - first:
            return [s for s in self.maybe if first <= s < end]
        return [s for s in range(first, end) if s in self.maybe]

    def _certain(self, first, end):
        self.trimmed[first:end] = bytes(end - first)
        for sector in self._uncertain(first, end):
            del self.maybe[sector]

    def _compare(self, offset, got, settle):
        first, end = offset // SECTOR, (offset + len(got)) // SECTOR
        wrong = []
        for start in range(first, end, PIECE_SECTORS):
            stop = min(start + PIECE_SECTORS, end)
            piece = got[start * SECTOR - offset : stop * SECTOR - offset]
            if not self._piece_fits(start, stop, piece):
                wrong += [s for s in range(start, stop)
                          if bytes(got[s * SECTOR - offset : (s + 1) * SECTOR - offset])
                          not in self._values(s)]
        if wrong:
            sector = wrong[0]
            at, values = sector * SECTOR - offset, sorted(self._values(sector))
            wanted = (f"instead of {values[0][:16].hex()}..." if len(values) == 1
                      else f"which is none of its {len(values)} possible values")
            return (f"sector {sector} reads {bytes(got[at : at + 16]).hex()}... {wanted} "
                    f"({len(wrong)} sectors are wrong)")
        if settle:
            self.write(offset, got)
        return None

    def _piece_fits(self, first, end, got):
        """Whether it is right as a whole; False: its sectors have to be looked at."""
        if got == self.data[first * SECTOR : end * SECTOR]:
            return True  # the value that it had is always one of those that it may have
        return (0 not in self.trimmed[first:end] and got == ZEROS[: len(got)]
                and not self._uncertain(first, end))


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
