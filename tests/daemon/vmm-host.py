#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-host - the command of --vmm-command, as the broker starts, watches and ends it.

One that is started twice would balance the same memory twice; one that is not found again by the next
broker would be started beside the old one; one that is not waited for would leave guests behind without
their disks. The vmm-host here is this file itself: it notes what it gets, takes the lock, registers,
and answers."""

import fcntl
import json
import os
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402

# --- the vmm-host


class Line:
    """A connection to the broker."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["VHDD_CONTROL"])
        self.file = self.socket.makefile("rb")

    def send(self, method, **params):
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError
        return json.loads(line)


def note(folder, **what):
    with open(os.path.join(folder, "host.notes"), "a", encoding="utf-8") as f:
        f.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


def answer(line, request):
    params = request["params"]
    if request["method"] == "memory.show":
        line.send("vmm.reply", request=request["request"],
                  result={"host": {"budget": int(os.environ["VHDD_HOST_MEMORY"])}, "vms": []})
    elif request["method"] == "switch.create" and params["name"] == "silent":
        pass
    elif request["method"] == "switch.create" and params["name"] == "dies":
        os._exit(7)
    elif request["method"] == "switch.create":
        line.send("vmm.reply", request=request["request"], error={
            "message": f"there is no interface '{params['uplink']}'", "code": "ENODEV",
            "hint": "ip link shows them"})
    else:
        line.send("vmm.reply", request=request["request"],
                  result={"socket": f"/run/{params['vm']}", "display": None})


def serve(folder):
    line = Line()
    line.send("vmm.register", timeout=1)
    while True:
        message = line.read()
        if message.get("method") == "vmm.request":
            answer(line, message["params"])
        elif message.get("id") == 1 and "error" in message:
            note(folder, refused=message["error"]["message"])


def be_the_host(folder):
    directory = os.path.join(os.environ["VHDD_RUN_DIR"], "vmm")
    lock = os.open(os.path.join(directory, "host.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        note(folder, refused="the lock")
        sys.exit(4)

    def leave(*_):
        # The daemon answers to the last.
        last = Line()
        last.send("vm.list")
        note(folder, ended=len(last.read()["result"]))
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    note(folder, started={k: v for k, v in os.environ.items() if k.startswith("VHDD_")},
         descriptors=len(os.listdir("/proc/self/fd")), session=os.getsid(0) == os.getpid())
    while True:  # the broker may go, and another come
        try:
            serve(folder)
        except OSError:
            time.sleep(0.02)


# --- the test


def notes(daemon, key):
    try:
        with open(os.path.join(daemon.folder, "host.notes"), encoding="utf-8") as f:
            return [one for one in map(json.loads, f) if key in one]
    except FileNotFoundError:
        return []


def wait_for(truth, sentence):
    end = time.monotonic() + 30
    while not (found := truth()):
        demand(time.monotonic() < end, sentence)
        time.sleep(0.01)
    return found


def ask(daemon, method, **params):
    return daemon.finish(daemon.begin(method, **params))


def asked(daemon):
    """What memory.show says, as soon as a vmm-host answers."""
    def attempt():
        got = ask(daemon, "memory.show")
        return got.json() if got.status == 0 else None
    return wait_for(attempt, "no vmm-host answers")


def started(daemon, n):
    return wait_for(lambda: len(notes(daemon, "started")) >= n and notes(daemon, "started"),
                    f"it was not started {n} times")


def without_one(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        got = ask(daemon, "memory.show")
        demand(got.status == 3 and "no vmm-host runs" in got.err, f"{got}")
        daemon.stop()


def its_life(folder):
    command = f"{sys.executable} {os.path.abspath(__file__)} --host {folder}"
    options = ["--vmm-command", command, "--host-memory", "1G"]
    with daemonlib.Daemon(folder, options) as daemon:
        daemon.start()
        web = daemon.query("vm", "create", "web")["id"]
        demand(asked(daemon)["host"]["budget"] == 1 << 30, "the host's memory is not what was said")
        first = started(daemon, 1)[0]
        said = first["started"]
        demand(said["VHDD_CONTROL"] == daemon.control and said["VHDD_NBD_SOCKET"] == daemon.socket and
               said["VHDD_STATE_DIR"] == daemon.state, f"its environment: {said}")
        demand(first["session"] and first["descriptors"] <= 5, f"how it was started: {first}")

        # Questions: by name, refused with the host's own words, not answered, and cut off.
        got = ask(daemon, "vm.console", vm="web")
        demand(got.json()["socket"] == f"/run/{web}", f"{got.out}")
        got = ask(daemon, "vm.console", vm="nobody")
        demand(got.status == 3 and "nobody" in got.err, f"{got}")
        got = ask(daemon, "switch.create", name="lan", type="external", uplink="eth9")
        demand(got.status == 3 and got.err == "there is no interface 'eth9'", f"{got}")
        got = ask(daemon, "switch.create", name="silent", type="private")
        demand(got.status == 3 and "did not answer within 1 s" in got.err, f"{got}")
        got = ask(daemon, "switch.create", name="dies", type="private")
        demand(got.status == 3 and "went away" in got.err, f"{got}")

        # It died: another one comes. So after kill -9.
        second = started(daemon, 2)[1]
        asked(daemon)
        os.kill(second["pid"], signal.SIGKILL)
        third = started(daemon, 3)[2]
        asked(daemon)

        # Another broker finds it: after a restart, and after kill -9.
        daemon.ctl("restart")
        wait_for(lambda: "goes on: it is the one of before" in daemon.tail(400),
                 "a broker that was executed anew does not find it")
        daemon.wait_ready()
        asked(daemon)
        daemon.kill_broker()
        daemon.start()
        asked(daemon)
        demand(len(notes(daemon, "started")) == 3, "another one was started beside it")
        demand(not notes(daemon, "refused"), f"{notes(daemon, 'refused')}")

        # The adopted one is watched as a child is.
        os.kill(third["pid"], signal.SIGKILL)
        started(daemon, 4)
        asked(daemon)
        daemon.stop()
        ended = notes(daemon, "ended")
        demand(len(ended) == 1 and ended[0]["ended"] == 1, f"it was not waited for: {ended}")


def bad_commands(folder):
    with daemonlib.Daemon(folder, ["--vmm-command", "/nowhere/vmm-host"]) as daemon:
        daemon.start()
        wait_for(lambda: daemon.tail(400).count("it ended with status 127") >= 2,
                 "that there is no such program is not said")
        demand(daemon.tail(400).count("is started") < 12, "it is tried again without a pause")
        got = ask(daemon, "memory.show")
        demand(got.status == 3 and "does not run just now" in got.err, f"{got}")
        daemon.stop()


def two_daemons(folder):
    """Each has its own; one that is asked to end does not end the other's."""
    ones = []
    for name in ("left", "right"):
        inner = os.path.join(folder, name)
        os.mkdir(inner)
        command = f"{sys.executable} {os.path.abspath(__file__)} --host {inner}"
        memory = "1G" if name == "left" else "2G"
        ones.append(daemonlib.Daemon(inner, ["--vmm-command", command, "--host-memory", memory]))
    with ones[0] as left, ones[1] as right:
        left.start()
        right.start()
        demand(asked(left)["host"]["budget"] == 1 << 30, "the left one's is not its own")
        demand(asked(right)["host"]["budget"] == 2 << 30, "the right one's is not its own")
        left.stop()
        demand(len(notes(left, "ended")) == 1 and not notes(right, "ended"), "the wrong one ended")
        demand(asked(right)["host"]["budget"] == 2 << 30, "the right one's is gone")
        demand(len(notes(right, "started")) == 1, "the right one's was started anew")
        right.stop()


def silence(folder):
    """A socket that a service manager holds open for a daemon that is not there: vmm-host and its supervisors,
    the real ones, hear what else they are told."""
    real = os.path.join(os.environ["VHDD_BUILD"], "vmm-glue/vmm-host")
    with daemonlib.Daemon(folder, ["--vmm-command", real]) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "v", "--memory", "startup=64M", "--accel", "tcg")
        wait_for(lambda: daemon.show("vm", "v")["agent"], "the vm got no supervisor")
        ours = [pid for pid, line in daemon.processes().items() if line.split()[0].endswith("vmm-host")]
        demand(len(ours) == 2, f"vmm-host and a supervisor are {ours}")
        daemon.kill_broker()
        os.unlink(daemon.control)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(daemon.control)
            listener.listen(100)
            # Each of them has come, and waits for a word.
            callers = [listener.accept()[0] for _ in range(2)]
            host = next(pid for pid in ours if "--supervise" not in daemon.processes()[pid])
            os.kill(host, signal.SIGTERM)
            wait_for(lambda: not any(pid in daemon.processes() for pid in ours),
                     "vmm-host does not end while the daemon says nothing")
            for caller in callers:
                caller.close()
        os.unlink(daemon.control)


def test(folder):
    for name, case in (("none", without_one), ("life", its_life), ("bad", bad_commands), ("two", two_daemons),
                       ("silence", silence)):
        inner = os.path.join(folder, name)
        os.mkdir(inner)
        case(inner)
    print("vmm-host: one at a time, found again, asked, waited for")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        be_the_host(sys.argv[2])
    daemonlib.run("vmm-host", test)
