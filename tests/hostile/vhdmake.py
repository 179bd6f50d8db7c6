# SPDX-License-Identifier: Apache-2.0
"""vhdmake - VHDs as no decent program writes them: every field can be set, and the checksums are right
all the same, so that it is the field that is judged.

    Vhd(parent=1, locators=[("W2ru", ".\\base.vhd")]).write(path)
    Vhd(header={"block_size": 0}).write(path)

Layout: footer copy 0, header 512, BAT 1536, locators from 2048 (1 KiB each), blocks, footer.
Sizes are bytes. An id is one byte, repeated."""

import struct

SECTOR = 512
BLOCK_SIZE = 65536
N_BLOCKS = 4
UNUSED = 0xFFFFFFFF
ONES = 0xFFFFFFFFFFFFFFFF
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4

FOOTER = [("cookie", "8s"), ("features", "I"), ("version", "I"), ("data_offset", "Q"),
          ("timestamp", "I"), ("creator_app", "4s"), ("creator_version", "I"),
          ("creator_os", "4s"), ("original_size", "Q"), ("current_size", "Q"),
          ("cylinders", "H"), ("heads", "B"), ("sectors_per_track", "B"), ("type", "I"),
          ("checksum", "I"), ("unique_id", "16s"), ("saved_state", "B"), ("reserved", "427s")]
HEADER = [("cookie", "8s"), ("data_offset", "Q"), ("table_offset", "Q"), ("version", "I"),
          ("max_table_entries", "I"), ("block_size", "I"), ("checksum", "I"),
          ("parent_id", "16s"), ("parent_timestamp", "I"), ("reserved_1", "I"),
          ("parent_name", "512s"), ("locators", "192s"), ("reserved_2", "256s")]


def pack(fields, values, fix_checksum):
    form = ">" + "".join(code for _, code in fields)
    values = dict(values)
    if fix_checksum:
        values["checksum"] = 0
        total = sum(struct.pack(form, *(values[name] for name, _ in fields)))
        values["checksum"] = ~total & 0xFFFFFFFF
    return struct.pack(form, *(values[name] for name, _ in fields))


class Vhd:
    """footer, header: fields to set. locators: (code, text or bytes[, {field: value}]). bat: entries, in
    place of those that blocks give. blocks: {number: byte that fills it}."""

    def __init__(self, ident=2, parent=None, kind=None, name="", size=BLOCK_SIZE * N_BLOCKS,
                 footer=None, header=None, locators=(), bat=None, blocks=None, head=None,
                 footer_sum=None, header_sum=None, tail=True, data=None):
        self.ident, self.parent, self.name, self.size = ident, parent, name, size
        self.kind = kind or (DYNAMIC if parent is None else DIFFERENCING)
        self.footer_fields, self.header_fields = footer or {}, header or {}
        self.locators, self.bat, self.blocks = locators, bat, blocks or {}
        self.head, self.tail, self.data = head, tail, data
        self.footer_sum, self.header_sum = footer_sum, header_sum

    def footer(self):
        values = {
            "cookie": b"conectix", "features": 2, "version": 0x10000,
            "data_offset": ONES if self.kind == FIXED else 512, "timestamp": 400000000,
            "creator_app": b"win ", "creator_version": 0x60001, "creator_os": b"Wi2k",
            "original_size": self.size % 2 ** 64, "current_size": self.size % 2 ** 64,
            "cylinders": 1, "heads": 4, "sectors_per_track": 17, "type": self.kind,
            "checksum": self.footer_sum or 0, "unique_id": bytes([self.ident]) * 16,
            "saved_state": 0, "reserved": b""}
        values.update(self.footer_fields)
        return pack(FOOTER, values, self.footer_sum is None)

    def locator_table(self):
        entries, texts, at = b"", [], 2048
        for code, text, *fields in self.locators:
            data = text
            if isinstance(text, str):
                data = text.encode("utf-16-le" if code.startswith("W2") else "utf-8")
            values = {"space": 1024, "length": len(data), "reserved": 0, "offset": at}
            values.update(fields[0] if fields else {})
            entries += struct.pack(">4sIIIQ", code.encode("latin-1"), values["space"],
                                   values["length"], values["reserved"], values["offset"])
            texts.append((at, data))
            at += 1024
        return entries, texts, at

    def sparse(self):
        entries, texts, at = self.locator_table()
        bat = [UNUSED] * min(max(self.size // BLOCK_SIZE, 1), 128)
        content = bytearray(at)
        for offset, data in texts:
            content[offset:offset + len(data)] = data
        for number, fill in sorted(self.blocks.items()):
            bat[number] = len(content) // SECTOR
            content += b"\xff" * SECTOR + bytes([fill]) * BLOCK_SIZE
        for number, place in (self.bat or {}).items():
            bat[number] = place
        values = {
            "cookie": b"cxsparse", "data_offset": ONES, "table_offset": 1536, "version": 0x10000,
            "max_table_entries": len(bat), "block_size": BLOCK_SIZE,
            "checksum": self.header_sum or 0, "parent_id": bytes([self.parent or 0]) * 16,
            "parent_timestamp": 0, "reserved_1": 0,
            "parent_name": self.name if isinstance(self.name, bytes)
            else self.name.encode("utf-16-be"), "locators": entries, "reserved_2": b""}
        values.update(self.header_fields)
        content[0:512] = self.footer() if self.head is None else self.head
        content[512:1536] = pack(HEADER, values, self.header_sum is None)
        table = struct.pack(">%dI" % len(bat), *bat)
        content[1536:1536 + len(table)] = table
        return bytes(content)

    def content(self):
        if self.kind == FIXED:
            body = self.data if self.data is not None else bytes(self.size)
        else:
            body = self.sparse()
        if self.tail is True:
            return body + self.footer()
        return body + (self.tail or b"")

    def write(self, path):
        with open(path, "wb") as out:
            out.write(self.content())
        return path
