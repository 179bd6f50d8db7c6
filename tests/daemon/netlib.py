# SPDX-License-Identifier: Apache-2.0
"""What tests of networks share: namespaces, and endpoints that speak ARP and ICMP.

A guest is a tap's descriptor and some lines of Python: it answers who asks for its address, answers
pings, and remembers each frame that it saw. The wire is a packet socket at the far end of an uplink.
The host is the kernel. Nothing here leaves the test's own network namespace."""

import array
import ctypes
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
BROADCAST = b"\xff" * 6
ARP, IPV4, VLAN = 0x0806, 0x0800, 0x8100
SOL_PACKET, PACKET_AUXDATA, VLAN_VALID = 263, 8, 1 << 4
TEST_TYPE = 0x88b5  # for experiments (IEEE 802)

libc = ctypes.CDLL(None, use_errno=True)


def enter_new_namespace():
    """From now on this process, and what it starts, has a network of its own. False: not allowed."""
    if libc.unshare(CLONE_NEWNET) != 0:
        return False
    ip("link", "set", "lo", "up")
    return True


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)


class Namespace:
    """Another network namespace, held by a descriptor."""

    def __init__(self):
        made = []

        def make():
            if libc.unshare(CLONE_NEWNET) == 0:
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        self._in_thread(make)
        self.fd = made[0]

    @staticmethod
    def _in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def run(self, work):
        """What work() answers in there; a thread of its own enters it, and ends."""
        answer = []

        def inside():
            if libc.setns(self.fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            answer.append(work())

        self._in_thread(inside)
        return answer[0]

    def ip(self, *arguments):
        self.run(lambda: ip(*arguments))

    def take(self, device):
        """Moves @device in here."""
        ip("link", "set", device, "netns", f"/proc/{os.getpid()}/fd/{self.fd}")


def mac_bytes(text):
    return bytes(int(part, 16) for part in text.split(":"))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff


def echo(kind, source, to, number, data=b"a ping of vhdd's"):
    icmp = struct.pack(">BBHHH", kind, 0, 0, number, 1) + data
    icmp = icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:]
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), number, 0, 64, 1, 0,
                       socket.inet_aton(source), socket.inet_aton(to))
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + icmp


def udp_checksum_is_right(packet):
    length = (packet[0] & 15) * 4
    udp = packet[length:struct.unpack(">H", packet[2:4])[0]]
    pseudo = packet[12:20] + struct.pack(">BBH", 0, 17, len(udp))
    return checksum(pseudo + udp) == 0


class Endpoint(threading.Thread):
    """Speaks on a medium: descriptors of frames. Ends with close()."""

    def __init__(self, name, mac, address, fds, vlan=0):
        super().__init__(daemon=True)
        self.name, self.mac, self.address, self.fds, self.vlan = name, mac, address, list(fds), vlan
        self.bytes = mac_bytes(mac)
        self.changed = threading.Condition()
        self.seen = []  # frames, without tags, that came in our VLAN
        self.neighbours, self.answers = {}, set()
        self.number = 0
        self.wake_read, self.wake_write = os.pipe()
        self.start()

    # --- the medium

    def receive(self, fd):
        """A frame and its VLAN; None: one that does not count."""
        return os.read(fd, 65536), 0

    def transmit(self, frame):
        os.write(self.fds[0], frame)

    def send(self, to, kind, payload, source=None, vlan=None):
        vlan = self.vlan if vlan is None else vlan
        tag = struct.pack(">HH", VLAN, vlan) if vlan else b""
        frame = to + (source or self.bytes) + tag + struct.pack(">H", kind) + payload
        self.transmit(frame.ljust(60, b"\0"))

    # --- what it hears

    def run(self):
        while True:
            ready = select.select([*self.fds, self.wake_read], [], [])[0]
            if self.wake_read in ready:
                return
            for fd in ready:
                try:
                    got = self.receive(fd)
                except OSError:
                    return
                if got:
                    self.hear(*got)

    def hear(self, frame, vlan):
        kind, payload = struct.unpack(">H", frame[12:14])[0], frame[14:]
        if frame[6:12] == self.bytes or vlan != self.vlan:
            return
        with self.changed:
            self.seen.append(frame)
            self.changed.notify_all()
        if kind == ARP and len(payload) >= 28:
            self.hear_arp(payload)
        elif kind == IPV4 and frame[:6] == self.bytes:
            self.hear_ip(frame[6:12], payload)

    def hear_arp(self, arp):
        operation, sender, source, target = (
            struct.unpack(">H", arp[6:8])[0], arp[8:14], arp[14:18], arp[24:28])
        if target != socket.inet_aton(self.address):
            return
        with self.changed:
            self.neighbours[socket.inet_ntoa(source)] = sender
            self.changed.notify_all()
        if operation == 1:
            self.send_arp(2, sender, socket.inet_ntoa(source), sender)

    def hear_ip(self, sender, packet):
        if packet[9] != 1 or packet[16:20] != socket.inet_aton(self.address):
            return
        icmp = packet[(packet[0] & 15) * 4:struct.unpack(">H", packet[2:4])[0]]
        source = socket.inet_ntoa(packet[12:16])
        if icmp[0] == 8:
            number = struct.unpack(">H", icmp[4:6])[0]
            self.send(sender, IPV4, echo(0, self.address, source, number, icmp[8:]))
        elif icmp[0] == 0:
            with self.changed:
                self.answers.add(source)
                self.changed.notify_all()

    # --- what it says

    def send_arp(self, operation, to, address, target=b"\0" * 6):
        self.send(to, ARP, struct.pack(">HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, self.bytes,
                                       socket.inet_aton(self.address), target,
                                       socket.inet_aton(address)))

    def wait(self, truth, timeout):
        with self.changed:
            return self.changed.wait_for(truth, timeout)

    def ping(self, address, until):
        """Whether there comes an answer before time.monotonic() is @until()."""
        with self.changed:
            self.answers.discard(address)
        while address not in self.answers:
            if time.monotonic() > until():
                return False
            to = self.neighbours.get(address)
            if to:
                self.number += 1
                self.send(to, IPV4, echo(8, self.address, address, self.number))
                self.wait(lambda: address in self.answers, 0.2)
            else:
                self.send_arp(1, BROADCAST, address)
                self.wait(lambda: address in self.neighbours, 0.2)
        return True

    def forget(self):
        with self.changed:
            self.neighbours.clear()
            self.answers.clear()
            self.seen.clear()

    def say(self, word, source=None, vlan=None):
        """A frame to everybody that only says @word."""
        self.send(BROADCAST, TEST_TYPE, word.encode(), source and mac_bytes(source), vlan)

    def heard(self, word):
        with self.changed:
            return any(frame[14:14 + len(word)] == word.encode() for frame in self.seen)

    def hears(self, word, timeout=20):
        return self.wait(lambda: self.heard(word), timeout)

    def close(self):
        """As a guest that ends: the device is gone with its descriptors."""
        os.write(self.wake_write, b"x")
        self.join()
        for fd in (*self.fds, self.wake_read, self.wake_write):
            os.close(fd)


class Wire(Endpoint):
    """The network behind an uplink, in one VLAN: a packet socket on @device in @namespace."""

    def __init__(self, name, mac, address, namespace, device, vlan=0):
        def open_it():
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            s.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            s.bind((device, 0))
            return s

        self.socket = namespace.run(open_it)
        super().__init__(name, mac, address, [self.socket.fileno()], vlan)

    def receive(self, fd):
        """The kernel takes the tag off, and tells it beside the frame."""
        frame, ancillary, _, address = self.socket.recvmsg(65536, socket.CMSG_SPACE(20))
        if address[2] == socket.PACKET_OUTGOING:
            return None
        vlan = 0
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", data[:20])
                vlan = tci & 0xfff if status & VLAN_VALID else 0
        return frame, vlan

    def transmit(self, frame):
        self.socket.send(frame)

    def close(self):
        os.write(self.wake_write, b"x")
        self.join()
        self.socket.close()


class Host:
    """The kernel's own stack: in this namespace, or in another one."""

    def __init__(self, name, address, namespace=None):
        self.name, self.address, self.namespace = name, address, namespace

    def ping(self, address, until):
        def inside():
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
                s.settimeout(0.2)
                s.bind((self.address, 0))
                while time.monotonic() <= until():
                    packet = echo(8, self.address, address, os.getpid() & 0xffff)[20:]
                    try:
                        s.sendto(packet, (address, 0))
                        again = time.monotonic() + 0.2
                        while time.monotonic() < again: # others' answers come here, too
                            data, (source, _) = s.recvfrom(65536)
                            if source == address and data[(data[0] & 15) * 4] == 0:
                                return True
                    except OSError:  # nobody answers, or there is no way
                        time.sleep(0.01)
                return False

        return self.namespace.run(inside) if self.namespace else inside()

    def forget(self):
        def inside():
            subprocess.run(["ip", "neigh", "flush", "all"], check=False, stderr=subprocess.DEVNULL)

        if self.namespace:
            self.namespace.run(inside)
        else:
            inside()


class Table:
    """Who can ping whom. All ask at once; those that are expected to get an answer have @limit seconds, and the
    others five times as long as the slowest of those took, at least one second."""

    def __init__(self, endpoints, limit=30):
        self.endpoints, self.limit = endpoints, limit

    def find(self, expected):
        begun, waiting, lock = time.monotonic(), set(expected), threading.Lock()
        end = [begun + self.limit]
        found = set()

        def ask(one, other):
            pair = (one.name, other.name)
            if one.ping(other.address, lambda: end[0]):
                with lock:
                    found.add(pair)
                    waiting.discard(pair)
                    if not waiting:
                        now = time.monotonic()
                        end[0] = min(end[0], now + max(1, 5 * (now - begun)))

        for one in self.endpoints:
            one.forget()
        if not waiting:
            end[0] = begun + 2
        threads = [threading.Thread(target=ask, args=(one, other), daemon=True)
                   for one in self.endpoints for other in self.endpoints if one is not other]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def text(self, pairs):
        names = [one.name for one in self.endpoints]
        width = max(map(len, names))
        lines = [" " * width + "  " + "  ".join(name.ljust(width) for name in names)]
        for one in names:
            cells = ["-" if one == other else "ok" if (one, other) in pairs else "no"
                     for other in names]
            lines.append(one.ljust(width) + "  " + "  ".join(cell.ljust(width) for cell in cells))
        return "\n".join(line.rstrip() for line in lines)


class Supervisor(threading.Thread):
    """Stands in for the supervisor of a vm: listens where vmm-host looks for one, says that its guest runs,
    and asks for network cards. @add: what it does with "network-add": "take", "no" or "unknown"."""

    def __init__(self, folder, vm_id, add="take"):
        super().__init__(daemon=True)
        self.id, self.add = vm_id, add
        self.taken = []  # (network, descriptors) of network-add
        self.removed = []
        self.changed = threading.Condition()
        self.connection, self.answers, self.number, self.hellos = None, {}, 0, 0
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.path = os.path.join(folder, "supervisor.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.start()

    def run(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            self.serve(connection)

    def serve(self, connection):
        buffer, fds = b"", []
        with self.changed:
            self.connection = connection
        while True:
            try:
                data, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(32 * 4))
            except OSError:
                data, ancillary = b"", []
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    got = array.array("i")
                    got.frombytes(payload[:len(payload) - len(payload) % got.itemsize])
                    fds += list(got)
            if not data:
                with self.changed:
                    self.connection = None
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                message = json.loads(line)
                n = message.get("descriptors", 0)
                self.take(connection, message, [fds.pop(0) for _ in range(n)])

    def take(self, connection, message, fds):
        if "do" not in message:
            if "id" in message:
                with self.changed:
                    self.answers[message["id"]] = (message, fds)
                    self.changed.notify_all()
            return
        verb, answer = message["do"], {"id": message["id"], "result": {}}
        if verb == "hello":
            answer["result"] = {"on": True, "running": True}
        elif verb == "network-add" and self.add == "take":
            self.taken.append((message["network"], fds))
        elif verb == "network-remove" and self.add == "take":
            self.removed.append(message["mac"])
        elif verb.startswith("network-"):
            unknown = self.add == "unknown"
            for fd in fds:
                os.close(fd)
            answer = {"id": message["id"], "error": {
                "message": "the guest does not want to", "code": "ENOSYS" if unknown else "EIO"}}
        connection.sendall(json.dumps(answer).encode() + b"\n")
        with self.changed:
            self.hellos += verb == "hello"
            self.changed.notify_all()
        if verb == "end":
            connection.shutdown(socket.SHUT_RDWR)

    def wait_linked(self, timeout=30, hellos=1):
        with self.changed:
            return self.changed.wait_for(
                lambda: self.connection is not None and self.hellos >= hellos, timeout)

    def ask(self, verb, timeout=30, **members):
        """(answer, descriptors)"""
        with self.changed:
            self.number += 1
            number = self.number
            connection = self.connection
        connection.sendall(json.dumps({"id": number, "do": verb, **members}).encode() + b"\n")
        with self.changed:
            if not self.changed.wait_for(lambda: number in self.answers, timeout):
                raise TimeoutError(f"vmm-host does not answer '{verb}'")
            return self.answers.pop(number)

    def close(self):
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
