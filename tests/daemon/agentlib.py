# SPDX-License-Identifier: Apache-2.0
"""What the tests with an agent share: the compute side of a vm as the daemon sees it, and a guest that
writes all the time."""

import array
import json
import os
import socket
import threading
import time

import daemonlib
from daemonlib import demand

MEMORY = b"what the guest had in mind\n" * 1000


class Agent(threading.Thread):
    """Answers what it is asked, as @behaviour says: verb -> "good", "no", "silent", "die", or a function
    of the agent, the request and its descriptor (or None) that returns the result, raises Refusal, or
    does worse. @asked has the verbs in their order, @requests all that came with them."""

    def __init__(self, control, vm, behaviour=None, timeout=2, on=True,
                 verbs=("pause", "resume", "save", "start", "stop")):
        super().__init__(daemon=True)
        self.vm, self.behaviour = vm, behaviour or {}
        self.asked, self.requests, self.restored = [], [], None
        self.number = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(control)
        self.buffer = b""
        self.fds = []
        answer = self.call("agent.register", vm=vm, name="test agent", on=on, timeout=timeout,
                           verbs=list(verbs))
        demand("result" in answer, f"registering: {answer}")
        self.start()

    def send(self, method, **params):
        self.number += 1
        line = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.socket.sendall(json.dumps(line).encode() + b"\n")

    def receive(self):
        while b"\n" not in self.buffer:
            data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(4 * 8))
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(payload[:len(payload) - len(payload) % fds.itemsize])
                    self.fds += list(fds)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def call(self, method, **params):
        self.send(method, **params)
        while True:
            answer = self.receive()
            if answer is None or answer.get("id") == self.number:
                return answer

    def run(self):
        try:
            while True:
                message = self.receive()
                if message is None:
                    return
                if message.get("method") == "agent.request":
                    self.serve(message["params"], message.get("descriptors", 0))
        except OSError:
            pass

    def serve(self, params, descriptors):
        verb = params["verb"]
        self.asked.append(verb)
        self.requests.append(params)
        how = self.behaviour.get(verb, "good")
        fd = self.fds.pop(0) if descriptors else None
        try:
            if how == "die":
                self.leave()
            elif how == "no":
                raise Refusal("it does not want to")
            elif how != "silent":
                result = self.do(verb, fd) if how == "good" else how(self, params, fd)
                self.send("agent.reply", request=params["request"], result=result or {})
                if verb in ("stop", "start"):
                    self.send("agent.state", vm=self.vm, on=verb == "start")
        except Refusal as e:
            self.send("agent.reply", request=params["request"], error=str(e), hint="ask again")
        if fd is not None:
            os.close(fd)

    def do(self, verb, fd):
        """What a good one does."""
        if verb == "save":
            os.write(fd, MEMORY)
        if verb == "start" and fd is not None:
            self.restored = os.read(fd, len(MEMORY) + 1)
            try:
                os.write(fd, b"x")
                self.restored = b"the saved memory can be written to"
            except OSError:
                pass

    def gone(self, daemon):
        """Leaves, and waits until the daemon has seen it."""
        self.leave()
        wait_for(lambda: daemon.show("vm", self.vm)["agent"] is None, "the agent is still there")

    def leave(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Refusal(Exception):
    """An agent could not."""


class Writer(threading.Thread):
    """A guest that writes and flushes all the time; remembers how long it had to wait."""

    def __init__(self, handle):
        super().__init__(daemon=True)
        self.handle, self.ends = handle, False
        self.worst, self.error, self.n = 0.0, None, 0

    def run(self):
        try:
            while not self.ends:
                began = time.monotonic()
                self.n += 1
                self.handle.pwrite(self.n.to_bytes(8, "little") * 64, 4096)
                self.handle.flush()
                self.worst = max(self.worst, time.monotonic() - began)
        except daemonlib.nbd.Error as e:
            self.error = e

    def end(self):
        self.ends = True
        self.join(30)
        demand(self.error is None, f"the guest saw: {self.error}")
        daemonlib.leave(self.handle)


def wait_for(truth, sentence):
    end = time.monotonic() + 10
    while not truth():
        demand(time.monotonic() < end, sentence)
        time.sleep(0.02)
