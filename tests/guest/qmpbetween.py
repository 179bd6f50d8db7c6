#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""qmpbetween - stands between a supervisor and its QEMU's monitor, and kills one of the two at a step.

    qmpbetween.py FOLDER QEMU ARGUMENT...

Becomes QEMU, and leaves a process behind that listens where QEMU's monitor would, passes on what both sides
say, descriptors as well, and ends with QEMU. Each line about a snapshot is a step with a name: `stop>' is a
command before QEMU gets it, `stop<' its answer before the supervisor does, `RESUME!' an event; a second one of
the same name is `stop>2'. FOLDER/steps holds the names so far.

FOLDER/plan (JSON) says what is to happen, once: {"at": STEP, "kill": "qemu", "supervisor" or a pid}, and optionally
"after-ms": wait so long behind the step; "stopped": a pid that stands still from the step to the kill;
"bandwidth": bytes a second, in place of the supervisor's, for a save that takes a while. FOLDER/done
appears when it has happened."""

import array
import json
import os
import select
import signal
import socket
import struct
import sys
import time

COMMANDS = {"stop", "cont", "migrate-set-capabilities", "migrate-set-parameters", "getfd", "migrate",
            "migrate-incoming", "migrate_cancel", "quit"}
EVENTS = {"STOP", "RESUME", "MIGRATION"}
REAL = "qmp-real.sock"  # in QEMU's own folder, where its process was started


def become(folder, argv):
    """The first process: the listener is there before QEMU is."""
    at = next((i for i, word in enumerate(argv) if "path=qmp.sock" in word), None)
    if at is not None:
        argv[at] = argv[at].replace("path=qmp.sock", f"path={REAL}")
        for name in ("qmp.sock", REAL):
            if os.path.lexists(name):
                os.unlink(name)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("qmp.sock")
        listener.listen(4)
        qemu = os.getpid()
        if os.fork() == 0:
            os.set_inheritable(listener.fileno(), True)
            # Nothing of QEMU's: neither its lock, which tells that it lives, nor its name.
            for fd in range(3, 256):
                if fd != listener.fileno():
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            os.execv(sys.executable, [sys.executable, "-S", "-E", os.path.abspath(__file__), "--between", folder,
                                      str(listener.fileno()), str(qemu)])
        listener.close()
    os.execv(argv[0], argv)


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


class Between:
    """One connection of a supervisor's at a time."""

    def __init__(self, folder, listener, qemu):
        self.folder, self.listener, self.qemu = folder, listener, qemu
        self.qemu_fd = os.pidfd_open(qemu)
        self.names, self.plan, self.deadline = {}, None, None
        self.sides, self.buffers, self.fds, self.asked = {}, {}, {}, {}
        self.supervisor = None

    def path(self, name):
        return os.path.join(self.folder, name)

    # --- steps

    def look_at_plan(self):
        text = read(self.path("plan"))
        if text:
            os.unlink(self.path("plan"))
            self.plan, self.names = json.loads(text), {}
            with open(self.path("steps"), "w", encoding="ascii"):
                pass

    def step(self, name):
        """Whether the line is to be passed on."""
        self.look_at_plan()
        if self.plan is None:
            return True
        self.names[name] = self.names.get(name, 0) + 1
        n = self.names[name]
        name = name if n == 1 else f"{name}{n}"
        with open(self.path("steps"), "a", encoding="ascii") as f:
            f.write(name + "\n")
        if self.plan.get("at") != name:
            return True
        if self.plan.get("stopped"):
            os.kill(self.plan["stopped"], signal.SIGSTOP)
        if self.plan.get("after-ms") is not None:
            self.deadline = time.monotonic() + self.plan["after-ms"] / 1000
            return True
        is_ours = self.plan["kill"] in ("qemu", "supervisor")
        self.kill()
        return not is_ours

    def kill(self):
        plan, self.plan, self.deadline = self.plan, None, None
        pid = {"qemu": self.qemu, "supervisor": self.supervisor}.get(plan["kill"], plan["kill"])
        fd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [], 10)
        os.close(fd)
        if plan.get("stopped"):
            os.kill(plan["stopped"], signal.SIGCONT)
        with open(self.path("done.new"), "w", encoding="ascii") as f:
            f.write(f"{pid}\n")
        os.rename(self.path("done.new"), self.path("done"))

    def name_of(self, message, from_qemu):
        if not from_qemu:
            command = message.get("execute")
            if command in COMMANDS:
                self.asked[message.get("id")] = command
                return command + ">"
        elif message.get("event") in EVENTS:
            return message.get("data", {}).get("status", message["event"]) + "!"
        elif message.get("id") in self.asked:
            return self.asked.pop(message["id"]) + "<"
        return None

    def change(self, message):
        if message.get("execute") == "migrate-set-parameters" and (self.plan or {}).get("bandwidth"):
            message["arguments"]["max-bandwidth"] = self.plan["bandwidth"]
        return message

    # --- passing on

    def end_connection(self):
        for side in self.sides.values():
            side.close()
        self.sides, self.asked = {}, {}

    def accept(self):
        client, _ = self.listener.accept()
        self.end_connection()
        self.supervisor = struct.unpack("3i", client.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
        real = socket.socket(socket.AF_UNIX)
        while True:
            try:
                real.connect(REAL)
                break
            except OSError:
                if select.select([self.qemu_fd], [], [], 0.01)[0]:
                    sys.exit(0)
        self.sides = {"supervisor": client, "qemu": real}
        self.buffers, self.fds = {"supervisor": b"", "qemu": b""}, []

    def take(self, side):
        space = socket.CMSG_SPACE(16 * 4)
        try:
            data, ancillary, _, _ = self.sides[side].recvmsg(1 << 20, space)
        except OSError:
            data, ancillary = b"", ()
        for _, _, payload in ancillary:
            fds = array.array("i")
            fds.frombytes(payload[:len(payload) - len(payload) % 4])
            self.fds += list(fds)
        if not data:
            self.end_connection()
            return
        self.buffers[side] += data
        while self.sides and b"\n" in self.buffers[side]:
            line, _, self.buffers[side] = self.buffers[side].partition(b"\n")
            self.line(side, line)

    def line(self, side, line):
        message = json.loads(line)
        name = self.name_of(message, side == "qemu")
        fds, self.fds = (self.fds, []) if side == "supervisor" else ([], self.fds)
        if not name or self.step(name):
            line = json.dumps(self.change(message)).encode()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            to = self.sides["supervisor" if side == "qemu" else "qemu"]
            try:
                to.sendmsg([line + b"\r\n"], ancillary)
            except OSError:
                self.end_connection()
        for fd in fds:
            os.close(fd)

    def run(self):
        while True:
            wait = None if self.deadline is None else max(0, self.deadline - time.monotonic())
            ready = select.select([self.qemu_fd, self.listener, *self.sides.values()], [], [], wait)[0]
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.kill()
            if self.qemu_fd in ready:
                sys.exit(0)
            if self.listener in ready:
                self.accept()
                continue
            for side, sock in list(self.sides.items()):
                if sock in ready and self.sides.get(side) is sock:
                    self.take(side)


def main(argv):
    if argv[0] == "--between":
        Between(argv[1], socket.socket(fileno=int(argv[2])), int(argv[3])).run()
    elif len(argv) < 2:
        sys.exit(__doc__)
    else:
        become(argv[0], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
