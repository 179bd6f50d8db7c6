# SPDX-License-Identifier: Apache-2.0
"""vhd.py - builds VHDs byte by byte, right ones and wrong ones.

Written from the specification and not with our own code, so that a mistake there is not made twice.
Sums are made last, so any field can be set to anything and still pass them.
"""
import struct

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
ONES = 0xFFFFFFFFFFFFFFFF
UNUSED = 0xFFFFFFFF
EPOCH = 946684800


def checksum(data, at):
    """The ones' complement of the sum of all bytes but the four at @at."""
    return ~(sum(data) - sum(data[at:at + 4])) & 0xFFFFFFFF


class Footer:
    SIZE = 512

    def __init__(self, kind, size, uuid=b'\x11' * 16):
        self.cookie = b'conectix'
        self.features = 2
        self.version = 0x10000
        self.data_offset = ONES if kind == FIXED else 512
        self.timestamp = 700000000
        self.app = b'win '
        self.app_version = 0xA0000
        self.os = b'Wi2k'
        self.original_size = size
        self.current_size = size
        self.geometry = (size // 512 // 17 // 4 & 0xFFFF, 4, 17)
        self.kind = kind
        self.uuid = uuid
        self.saved = 0
        self.hidden = 0
        self.reserved = b''
        self.sum = None
        self.sum_delta = 0

    def bytes(self):
        data = bytearray(self.cookie.ljust(8, b'\0')[:8])
        data += struct.pack('>IIQI', self.features, self.version, self.data_offset & ONES,
                            self.timestamp)
        data += self.app.ljust(4, b'\0') + struct.pack('>I', self.app_version)
        data += self.os.ljust(4, b'\0')
        data += struct.pack('>QQ', self.original_size & ONES, self.current_size & ONES)
        data += struct.pack('>HBB', *self.geometry)
        data += struct.pack('>II', self.kind, 0) + self.uuid
        data += bytes([self.saved, self.hidden]) + self.reserved
        data = data.ljust(512, b'\0')
        value = checksum(data, 64) if self.sum is None else self.sum
        data[64:68] = struct.pack('>I', (value + self.sum_delta) & 0xFFFFFFFF)
        return bytes(data)


class Header:
    SIZE = 1024

    def __init__(self, entries, block_size, table_offset=1536):
        self.cookie = b'cxsparse'
        self.next = ONES
        self.table_offset = table_offset
        self.version = 0x10000
        self.entries = entries
        self.block_size = block_size
        self.parent_id = b'\0' * 16
        self.parent_time = 0
        self.parent_name = b''
        self.locators = []  # (code, space, length, offset)
        self.sum_delta = 0

    def bytes(self):
        data = bytearray(self.cookie.ljust(8, b'\0'))
        data += struct.pack('>QQIIII', self.next & ONES, self.table_offset & ONES, self.version,
                            self.entries & UNUSED, self.block_size & UNUSED, 0)
        data += self.parent_id + struct.pack('>II', self.parent_time, 0)
        data += self.parent_name.ljust(512, b'\0')[:512]
        for code, space, length, offset in self.locators:
            data += code.ljust(4, b'\0') + struct.pack('>IIIQ', space & UNUSED, length & UNUSED, 0,
                                                       offset & ONES)
        data = data.ljust(1024, b'\0')
        data[36:40] = struct.pack('>I', (checksum(data, 36) + self.sum_delta) & 0xFFFFFFFF)
        return bytes(data)


class Image:
    """A dynamic or differencing image: everything can be changed before bytes() is asked for.

    entries: BAT entries by block. blocks: {block: byte that fills its data}, laid out on 4 KiB."""

    def __init__(self, kind=DYNAMIC, n_blocks=8, block_size=4096, blocks=None, uuid=b'\x11' * 16,
                 parent=None):
        self.block_size = block_size
        self.footer = Footer(kind, n_blocks * block_size, uuid)
        self.head = None  # another footer at the head
        self.header = Header(n_blocks, block_size)
        self.blocks = {0: 0x41, 1: 0x42} if blocks is None else blocks
        self.entries = {}  # overrides
        self.bitmaps = {}  # overrides
        self.extra = []  # (offset, bytes)
        self.tail = True
        self.head_copy = True
        self.cut = 0  # bytes to take off the end
        if kind == DIFFERENCING:
            self.set_parent(parent or Parent(b'\x22' * 16, 'parent.vhd'))

    def set_parent(self, parent):
        self.header.parent_id = parent.uuid
        self.header.parent_name = parent.name.encode('utf-16-be', 'surrogatepass')
        self.header.locators = []
        offset = 1536 + max(512, (self.header.entries * 4 + 511) // 512 * 512)
        for code, text in parent.locators:
            raw = text if isinstance(text, bytes) else text.encode('utf-16-le', 'surrogatepass')
            space = max(1024, (len(raw) + 511) // 512 * 512)
            self.header.locators.append((code, space, len(raw), offset))
            self.extra.append((offset, raw))
            offset += space
        self.metadata_end = offset

    def bytes(self):
        size_of_bitmap = max(512, (self.block_size // 4096 + 511) // 512 * 512)
        n = min(self.header.entries, 65536)
        table = [UNUSED] * n
        end = max(getattr(self, 'metadata_end', 0), 1536 + (n * 4 + 511) // 512 * 512)
        data = bytearray()

        def put(offset, raw):
            if len(data) < offset + len(raw):
                data.extend(b'\0' * (offset + len(raw) - len(data)))
            data[offset:offset + len(raw)] = raw

        for block, fill in self.blocks.items():
            place = (end + size_of_bitmap + 4095) // 4096 * 4096 - size_of_bitmap
            if block < n:
                table[block] = place // 512
            put(place, self.bitmaps.get(block, b'\xff' * size_of_bitmap))
            put(place + size_of_bitmap, bytes([fill]) * self.block_size)
            end = place + size_of_bitmap + self.block_size
        for block, entry in self.entries.items():
            table[block] = entry
        raw_table = b''.join(struct.pack('>I', entry) for entry in table)
        raw_table = raw_table.ljust((n * 4 + 511) // 512 * 512, b'\xff')
        footer = self.footer.bytes()
        if 0 < self.header.table_offset < 1 << 20:
            put(self.header.table_offset, raw_table)
        else:
            put(1536, raw_table)
        put(512, self.header.bytes())
        for offset, raw in self.extra:
            put(offset, raw)
        if self.head_copy:
            put(0, (self.head or self.footer).bytes())
        else:
            put(0, b'\0' * 512)
        if self.tail:
            place = (max(end, len(data)) + 512 + 4095) // 4096 * 4096 - 512
            put(place, footer)
        return bytes(data[:len(data) - self.cut])


class Parent:
    """What a child says about its parent."""

    def __init__(self, uuid, name, relative=None, absolute=None, locators=None):
        self.uuid = uuid
        self.name = name
        self.locators = locators
        if locators is None:
            self.locators = [(b'W2ru', relative if relative is not None else '.\\' + name)]
            if absolute is not None:
                self.locators.append((b'W2ku', absolute))


def fixed(size, fill=b'\0', footer=None):
    """A fixed disk."""
    data = (fill * (size // len(fill) + 1))[:size]
    return data + (footer or Footer(FIXED, size)).bytes()
