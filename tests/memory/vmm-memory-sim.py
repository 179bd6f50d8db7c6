#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-memory-sim - the balancer in a running vmm-host, over guests that are simulated.

A daemon and a vmm-host as they are; the supervisors are threads of this test, whose guests need memory by
curves, plug with a delay, have no driver, or do not give back. What could go wrong between the balancer's
numbers and a host: requests in the wrong order, so that more is handed out than there is; a new vmm-host
that takes memory away because it knows nothing yet; a guest without a driver that is asked for ever; a
setting that takes no effect. Each step is held against formulae.py."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))
import daemonlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from stepcheck import StepFailed, Steps  # noqa: E402

MIB, BLOCK = 1 << 20, 4 << 20
BUDGET = 2560 * MIB
KEPT = 48 * MIB  # what a guest's kernel takes before it counts
TICK_S = 0.25
SPEED = 128 * MIB  # that a guest plugs, or gives back, in a tick


class Guest(threading.Thread):
    """A supervisor with its guest: answers vmm-host at its socket, and tells each half second."""

    def __init__(self, path, startup, most, plugs=True, gives=True):
        super().__init__(daemon=True)
        self.startup, self.most, self.plugs, self.gives = startup, most, plugs, gives
        self.used, self.asked, self.plugged = 100 * MIB, startup, 0
        self.swapped, self.faults, self.requests = 0, 0, []
        self.path = path
        self.over, self.peer, self.got, self.on = False, None, b"", True
        self.answers = []  # to what it asked itself
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen()

    @property
    def assigned(self):
        return self.startup + self.plugged

    def run(self):
        next_s = time.monotonic()
        n = 0
        while not self.over:
            files = [self.listening] + ([self.peer] if self.peer else [])
            for file in select.select(files, [], [], max(0, next_s - time.monotonic()))[0]:
                self.serve(file)
            if time.monotonic() >= next_s:
                next_s += TICK_S
                n += 1
                self.live()
                if n % 2 == 0 and self.on:
                    self.tell()

    def serve(self, file):
        if file is self.listening:
            self.peer, self.got = self.listening.accept()[0], b""
            return
        try:
            piece = file.recv(65536)
        except OSError:  # vmm-host was killed
            piece = b""
        if not piece:
            self.peer = None
            return
        self.got += piece
        while b"\n" in self.got:
            line, _, self.got = self.got.partition(b"\n")
            self.answer(json.loads(line))

    def ask_to_start(self):
        """As a supervisor does before it starts a QEMU; answers the refusal, or None."""
        before = len(self.answers)
        self.send({"id": 1000 + before, "do": "plug", "networks": [], "startup": self.startup})
        daemonlib.wait_for(lambda: self.answers[before], IndexError, 10, "nobody says whether it may start",
                           lambda: "")
        return self.answers[before].get("error")

    def tell_state(self):
        self.send({"note": "state", "on": self.on, "running": self.on})

    def answer(self, message):
        if "do" not in message:
            self.answers.append(message)
            return
        if message.get("do") == "hello":
            result = {"on": self.on, "running": self.on}
        elif message.get("do") == "set-memory":
            self.asked = message["target"]
            self.requests.append((time.monotonic(), self.asked))
            result = {"target": self.asked}
        else:
            result = {}
        if "id" in message:
            self.send({"id": message["id"], "result": result})

    def send(self, message):
        try:
            if self.peer:
                self.peer.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.peer = None

    def live(self):
        """A quarter of a second of its life."""
        gap = self.asked - self.assigned
        if gap > 0 and self.plugs:
            self.plugged += min(gap, SPEED)
        elif gap < 0 and self.gives:
            self.plugged -= min(-gap, SPEED)
        if self.used > self.assigned - KEPT:
            self.swapped += 4 * MIB
            self.faults += 1000

    def tell(self):
        total = self.assigned - KEPT
        self.send({"note": "memory", "startup": self.startup, "max": self.most,
                   "actual": self.assigned, "plugged": self.plugged, "total": total,
                   "target": self.asked, "free": MIB, "available": max(3 * MIB, total - self.used),
                   "swap-in": self.swapped, "major-faults": self.faults})

    def end(self):
        self.over = True
        self.join()
        self.listening.close()
        if self.peer:
            self.peer.close()


class Host:
    """A daemon, a vmm-host, guests."""

    def __init__(self, folder, daemon):
        self.folder, self.daemon, self.guests, self.process = folder, daemon, {}, None
        self.run_dir = os.path.join(daemon.state, "run")
        self.steps = Steps(os.environ.get("VHDD_MEMORY_STEPS")
                           or os.path.join(folder, "steps.jsonl"))
        self.program = os.path.join(os.environ["VHDD_BUILD"], "vmm-glue", "vmm-host")
        self.log = open(os.path.join(folder, "vmm-host.log"), "ab")

    def add(self, name, memory, startup, most, on=True, **nature):
        self.daemon.ctl("vm", "create", name, "--memory", memory)
        path = os.path.join(self.run_dir, "vmm", self.daemon.show("vm", name)["id"],
                            "supervisor.sock")
        self.guests[name] = Guest(path, startup, most, **nature)
        self.guests[name].on = on
        self.guests[name].start()

    def start(self, budget=("--host-memory", str(BUDGET))):
        self.process = subprocess.Popen(
            [self.program, "--control", self.daemon.control, "--state-dir", self.daemon.state,
             "--run-dir", self.run_dir, *budget],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=self.daemon.environment)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.steps.last = None

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
            self.process.wait(30)
        for guest in self.guests.values():
            guest.end()
        self.steps.close()
        self.log.close()

    def shown(self):
        """memory.show, as soon as a vmm-host answers."""
        end = time.monotonic() + 30
        while True:
            got = self.daemon.finish(self.daemon.begin("memory.show"))
            if got.status == 0:
                return got.json()
            demand(time.monotonic() < end, f"{got}: no vmm-host answers\n{self.tail()}")
            time.sleep(0.02)

    def tail(self):
        with open(os.path.join(self.folder, "vmm-host.log"), encoding="utf-8") as f:
            return f.read()[-3000:]

    def watch(self):
        """Waits for the next step, checks it, and answers {name: vm}."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self.check_guests()
            step = self.steps.take(self.shown())
            if step:
                return {vm["vm"]: vm for vm in step["vms"]}
            time.sleep(0.05)
        raise daemonlib.TestFailed(f"no step of the balancer within 30 s\n{self.tail()}")

    def check_guests(self):
        """What the guests have in fact, not what anybody says about it."""
        have = {name: guest.assigned for name, guest in self.guests.items() if guest.on}
        demand(sum(have.values()) <= BUDGET, f"more is handed out than there is: {have}")
        for name in have:
            guest = self.guests[name]
            demand(guest.startup <= have[name] <= guest.most, f"'{name}' has {have[name]}")
            demand(all(guest.startup <= size <= guest.most for _, size in guest.requests),
                   f"'{name}' was asked for {guest.requests}")

    def watch_until(self, truth, limit_s, sentence):
        end = time.monotonic() + limit_s
        while True:
            vms = self.watch()
            if truth(vms):
                return vms
            demand(time.monotonic() < end, f"{sentence}: {json.dumps(vms)}\n{self.tail()}")

    def watch_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            vms = self.watch()
        return vms


def near(size, other, within=2 * BLOCK):
    return abs(size - other) <= within


def at_rest(host):
    def on(vms):
        return [vm for vm in vms.values() if vm["on"]]
    vms = host.watch_until(lambda vms: len(on(vms)) == 3 and all(vm["demand"] is not None for vm in on(vms)),
                           20, "guests tell, and nobody knows their demand")
    demand(all(vm["physical"] == vm["startup"] and vm["status"] == "ok" for vm in on(vms)),
           f"guests that need little have startup: {vms}")


def grow(host):
    """One needs more, and there is enough: it gets demand and buffer, and the old one asks in vain."""
    host.guests["heavy"].used = 700 * MIB
    host.guests["old"].used = 440 * MIB
    host.watch_until(lambda vms: vms["heavy"]["status"] == "ok" and
                     vms["heavy"]["physical"] >= 897 * MIB, 30, "'heavy' does not get its target")


def shortage(host):
    """Both need more than there is: what is above startup is 3 to 1."""
    host.guests["heavy"].used = 1700 * MIB
    host.guests["light"].used = 1700 * MIB
    rest = BUDGET - 3 * 512 * MIB

    def shared(vms):
        return near(vms["heavy"]["physical"], 512 * MIB + rest * 3 // 4) and \
            near(vms["light"]["physical"], 512 * MIB + rest // 4)
    vms = host.watch_until(lambda vms: shared(vms) and vms["old"]["refuses"], 60,
                           "the rest is not shared 3 to 1 while 'old' takes nothing")
    demand(vms["heavy"]["status"] == "warning" and vms["heavy"]["pressure"] > 100, f"{vms}")
    demand(vms["old"]["refuses"] == "takes-no-more", f"{vms['old']}")


def told(host):
    """Who does not follow is told, withdrawn, and left alone."""
    old = host.guests["old"]
    host.watch()
    demand(old.asked == old.startup, f"the request stands that was given up: {old.requests}")
    before = len(old.requests)
    text = host.daemon.ctl("memory").out
    demand("takes no more" in text, f"vhdctl memory does not say so:\n{text}")
    host.watch_for(8)
    demand(len(old.requests) == before, f"it is asked again at once: {old.requests[before:]}")


def a_new_vmm_host(host):
    """kill -9, and another one: guests keep what they have."""
    before = {name: guest.assigned for name, guest in host.guests.items()}
    n = {name: len(guest.requests) for name, guest in host.guests.items()}
    host.kill()
    host.start()
    host.watch_until(lambda vms: vms["heavy"]["demand"] is not None, 30, "they are not found again")
    host.watch_for(4)
    for name in ("heavy", "light"):
        guest = host.guests[name]
        demand(near(guest.assigned, before[name], 8 * BLOCK) and
               all(near(size, before[name], 8 * BLOCK) for _, size in guest.requests[n[name]:]),
               f"'{name}' had {before[name]}, has {guest.assigned}: {guest.requests[n[name]:]}")


def settings_live(host):
    """Weight, buffer, max at once; startup at the next start."""
    host.daemon.ctl("vm", "set", "light", "--memory", "weight=75")
    rest = BUDGET - 3 * 512 * MIB
    vms = host.watch_until(lambda vms: near(vms["heavy"]["physical"], 512 * MIB + rest // 2) and
                           near(vms["light"]["physical"], 512 * MIB + rest // 2), 30,
                           "a new weight takes no effect")
    demand(vms["light"]["max"] == 2048 * MIB, f"the other settings went: {vms['light']}")
    said = host.daemon.ctl("vm", "set", "light", "--memory", "startup=640M,max=768M").out
    demand("next start" in said, f"that startup waits is not said: {said}")
    vms = host.watch_until(lambda vms: vms["light"]["physical"] <= 768 * MIB, 30,
                           "a lower max takes no effect")
    demand(vms["light"]["startup"] == 512 * MIB and
           vms["light"]["next-startup"] == 640 * MIB, f"{vms['light']}")


def fall(host):
    """Need goes, and memory comes back, slowly."""
    host.guests["heavy"].used = 100 * MIB
    begun = time.monotonic()
    host.watch_until(lambda vms: vms["heavy"]["physical"] <= 900 * MIB, 90,
                     "memory that is not needed stays where it is")
    demand(time.monotonic() - begun > 5, "it is taken away at once")


def starts(host):
    """A start is refused when the startup memory of all that run would be more than the budget: also of one
    that was promised memory and does not run yet, and not of one that has ended, or did not start."""
    big, late = host.guests["big"], host.guests["late"]

    def refused(guest, *words):
        error = guest.ask_to_start()
        demand(error and error["code"] == "ENOMEM" and all(word in error["message"] for word in words),
               f"more is promised than there is: {error}")

    demand(big.ask_to_start() is None, "a vm that fits is refused")
    refused(late, "'late' starts with 800 MiB", "4 other vms with 2.2 GiB", "2.5 GiB (--host-memory)")
    big.send({"do": "unplug", "id": 1})  # QEMU did not start
    demand(late.ask_to_start() is None, "what did not start keeps its memory")
    late.on = True
    late.tell_state()
    host.watch_until(lambda vms: vms["late"]["on"], 30, "the vm does not run")
    refused(big, "4 other vms")
    late.on = False
    late.tell_state()
    host.watch_until(lambda vms: not vms["late"]["on"], 30, "the vm does not end")
    demand(big.ask_to_start() is None, "what has ended keeps its memory")


def the_hosts_own_budget(host):
    """Nobody said how much: what the host can give, and never all of it."""
    with open("/proc/meminfo", encoding="ascii") as f:
        total = int(f.readline().split()[1]) * 1024
    host.kill()
    host.start(budget=())
    host.watch_until(lambda vms: vms["light"]["demand"] is not None, 30, "they are not found again")
    said = host.steps.steps[-1]["host"]
    demand(said["budget-from"] == "host" and 0 < said["budget"] < total - 512 * MIB + BUDGET,
           f"of {total} bytes: {said}")


def no_word(host):
    """A supervisor that does not answer a new vmm-host, beside a QEMU that runs: its memory is not free."""
    big = host.guests["big"]
    host.kill()
    big.over = True  # nobody answers at its socket any more, and connections wait there
    big.join()
    with open(os.path.join(os.path.dirname(big.path), "qemu.pid"), "w", encoding="ascii") as f:
        with open("/proc/self/stat", encoding="ascii") as stat:
            f.write(f"{os.getpid()} {stat.read().rpartition(')')[2].split()[19]}\n")  # the test is its QEMU
    host.start()
    host.watch_until(lambda vms: vms["light"]["demand"] is not None, 30, "they are not found again")
    vms = host.watch_until(lambda vms: vms["big"]["on"], 10, "a QEMU that runs counts as none")
    demand(vms["big"]["physical"] >= big.startup, f"{vms['big']}")
    late = host.guests["late"].ask_to_start()
    demand(late and "4 other vms" in late["message"], f"its memory is given to another: {late}")


def check_metrics(host):
    text = host.daemon.ctl("metrics").out
    for name in ("vhdd_memory_budget_bytes 2684354560", 'vhdd_vm_memory_target_bytes{vm="light"}',
                 'vhdd_vm_memory_pressure_percent{vm="heavy"}', "vhdd_memory_operations_total"):
        demand(name in text, f"the metrics lack '{name}':\n{text}")


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        host = Host(folder, daemon)
        try:
            memory = "startup=512M,max=2G,weight="
            host.add("heavy", memory + "75", 512 * MIB, 2048 * MIB)
            host.add("light", memory + "25", 512 * MIB, 2048 * MIB)
            host.add("old", memory + "50", 512 * MIB, 2048 * MIB, plugs=False)
            for name in ("big", "late"):
                host.add(name, "startup=800M", 800 * MIB, 800 * MIB, on=False)
            host.start()
            for case in (at_rest, starts, grow, shortage, told, check_metrics, a_new_vmm_host,
                         settings_live, fall, no_word, the_hosts_own_budget):
                begun = time.monotonic()
                case(host)
                print(f"{case.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
            print(f"summary: memory: {len(host.steps.steps)} steps of a running vmm-host as computed")
        except StepFailed as e:
            raise daemonlib.TestFailed(f"{e}\n{host.tail()}") from None
        finally:
            host.end()
        daemon.stop()


if __name__ == "__main__":
    daemonlib.run("vmm-memory-sim", test)
