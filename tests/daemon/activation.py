#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""activation - the daemon as a service manager runs it, without one.

It gets listening sockets (named control and nbd), says READY=1 when both answer, keeps them over a
restart in place, under a client that notices nothing, says STOPPING=1 and ends with 0, and leaves the socket
files to whoever made them. As dist/systemd has it."""

import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

WAIT_S = 30


class Service(daemonlib.Daemon):
    """A daemon with sockets from outside and a manager to report to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.control = os.path.join(folder, "control.sock")
        self.environment["VHDD_CONTROL"] = self.control
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(os.path.join(folder, "notify"))
        self.manager.settimeout(WAIT_S)
        self.listeners = [self.listen(self.control), self.listen(self.socket)]

    @staticmethod
    def listen(path):
        s = socket.socket(socket.AF_UNIX)
        s.bind(path)
        s.listen(16)
        return s

    def launch(self):
        environment = dict(self.environment, NOTIFY_SOCKET=os.path.join(self.folder, "notify"),
                           LISTEN_FDS="2", LISTEN_FDNAMES="control:nbd")
        first, second = (s.fileno() for s in self.listeners)

        def place():
            # The sockets are descriptors 3 and 4, wherever they were.
            a, b = os.dup2(first, 100), os.dup2(second, 101)
            os.dup2(a, 3)
            os.dup2(b, 4)
            for fd in (a, b):
                os.close(fd)

        with open(self.log, "ab") as log:
            self.broker = subprocess.Popen(
                ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", self.vhdd, "--state-dir",
                 self.state], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                close_fds=False, preexec_fn=place,
            )
        return self

    def notified(self, word):
        """Waits until the manager hears it."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                if word in self.manager.recv(4096).decode().splitlines():
                    return
            except socket.timeout:
                break
        raise daemonlib.TestFailed(f"vhdd did not say {word}:\n{self.tail()}")


def test(folder):
    with Service(folder) as daemon:
        daemon.launch()
        daemon.notified("READY=1")
        # Ready means ready: nothing is tried twice.
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "disk.vhd"), "--name", "disk",
                   "--create", "4M")
        handle = daemon.connect("web/disk", timeout=0)
        handle.pwrite(b"a" * 512, 0)
        uri = daemon.query("disk", "uri", "web", "disk")["uri"]
        demand(daemonlib.percent(daemon.socket) in uri or daemon.socket in uri,
               f"the URI {uri} is not that of the socket it was given")
        demand(not os.path.exists(os.path.join(daemon.state, "control.sock")),
               "it made a control socket although it was given one")

        pid = daemon.broker.pid
        daemon.broker.send_signal(signal.SIGHUP)
        daemon.notified("READY=1")
        demand(daemon.query("status")["pid"] == pid, "a restart in place has another pid")
        handle.pwrite(b"b" * 512, 512)
        demand(handle.pread(1024, 0) == b"a" * 512 + b"b" * 512, "the client's disk has changed")
        daemonlib.leave(handle)
        daemonlib.leave(daemon.connect("web/disk", timeout=0))

        daemon.broker.send_signal(signal.SIGTERM)
        daemon.notified("STOPPING=1")
        demand(daemon.broker.wait(daemonlib.STOP_TIMEOUT_S) == 0, f"it ended badly\n{daemon.tail()}")
        for path in (daemon.control, daemon.socket):
            demand(os.path.exists(path), f"it removed '{path}', which is not its own")


if __name__ == "__main__":
    daemonlib.run("activation", test)
