#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run commands in the test guest over its serial control channel.

    guestctl.py SOCKET COMMAND...     prints the output, exits with its status

As a module: Guest(path).run("uname -r") -> (status, text)."""
import itertools, os, socket, sys, time

class Guest:
    def __init__(self, path, timeout=60.0):
        end = time.monotonic() + timeout
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                break
            except OSError:
                s.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.sock, self.buf = s, b""
        self.ids = (f"{os.getpid()}.{n}" for n in itertools.count())
        self.seen_ready = False

    def line(self, end):
        while b"\n" not in self.buf:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer from the guest")
            self.sock.settimeout(left)
            try:
                got = self.sock.recv(65536)
            except socket.timeout:
                raise TimeoutError("no answer from the guest") from None
            if not got:
                raise EOFError("control channel closed")
            self.buf += got
        one, self.buf = self.buf.split(b"\n", 1)
        return one.decode(errors="replace").rstrip("\r")

    def ready(self, timeout=120.0):
        """Wait for the guest to come up.  The guest says READY once; if that
        was said to nobody, an empty command is answered all the same."""
        end = time.monotonic() + timeout
        while True:
            ident = next(self.ids)
            self.sock.sendall(f"{ident}\n".encode())
            step = min(end, time.monotonic() + 2)
            try:
                while True:
                    got = self.line(step)
                    if got == f"{ident}=0":
                        self.seen_ready = True
                        return self
            except TimeoutError:
                if time.monotonic() > end:
                    raise

    def send(self, command):
        ident = next(self.ids)
        self.sock.sendall(f"{ident} {command}\n".encode())
        return ident

    def reply(self, ident, timeout=60.0):
        end, out = time.monotonic() + timeout, []
        while True:
            got = self.line(end)
            if got.startswith(ident + ":"):
                out.append(got[len(ident) + 1:])
            elif got.startswith(ident + "="):
                return int(got[len(ident) + 1:] or 0), "\n".join(out)

    def run(self, command, timeout=60.0):
        assert "\n" not in command
        return self.reply(self.send(command), timeout)

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    status, text = Guest(sys.argv[1]).ready().run(" ".join(sys.argv[2:]))
    if text:
        print(text)
    sys.exit(status)
