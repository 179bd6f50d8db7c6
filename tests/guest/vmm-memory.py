#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-memory - two guests with different weights share the memory of a small host.

Real guests, under TCG: their balloons tell what they use, virtio-mem plugs and unplugs, and neither happens
at once or by our numbers. What could go wrong: a guest that fills its memory is killed for want of it
although there was more; the heavier one gets less; memory that one gives back does not reach the other;
a guest falls below its startup memory. Each step of the balancer is held against formulae.py."""

import json
import os
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for one in ("daemon", "memory", ""):
    sys.path.insert(0, os.path.join(HERE, "..", one) if one else HERE)
import daemonlib  # noqa: E402
import guestctl  # noqa: E402
import guestlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from stepcheck import StepFailed, Steps  # noqa: E402

MIB = 1 << 20
STARTUP, MOST, BUDGET = 256 * MIB, 1024 * MIB, 900 * MIB
WEIGHTS = {"heavy": 75, "light": 25}
GIVEN_WAY = 16 * MIB
WAIT_S = 300

# Fills memory to so many MiB, a bit at a time: as long as there is room, and no faster than it comes.
FILL = ("mount -o remount,size=90% /tmp; i=0; while [ $i -lt {n} ]; do"
        " a=$(sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo);"
        " if [ $a -gt 40000 ]; then dd if=/dev/zero of=/tmp/fill.$i bs=1M count=8 2>/dev/null || exit 1;"
        " i=$((i + 8)); mount -o remount,size=90% /tmp; else sleep 0.5; fi; done")


class Watcher(threading.Thread):
    """Looks at each step of the balancer, checks it, and keeps what it found for those who wait."""

    def __init__(self, daemon, steps):
        super().__init__(daemon=True)
        self.daemon_, self.steps, self.over = daemon, steps, False
        self.failed, self.changed, self.vms = None, threading.Condition(), {}

    def run(self):
        while not self.over:
            got = self.daemon_.finish(self.daemon_.begin("memory.show"))
            try:
                step = self.steps.take(got.json()) if got.status == 0 else None
            except StepFailed as e:
                self.failed = e
            self.check_bounds(step)
            with self.changed:
                if got.status == 0:
                    self.vms = {vm["vm"]: vm for vm in got.json()["vms"]}
                self.changed.notify_all()
            if self.failed:
                return
            time.sleep(0.2 if not step else 0.6)

    def check_bounds(self, step):
        """Of what the guests have, whatever was meant."""
        for vm in step["vms"] if step else []:
            if vm["reckoned"] and not STARTUP <= vm["physical"] <= MOST:
                self.failed = StepFailed(f"out of its bounds: {vm}")
        # A balloon gives way by itself before its guest kills a process: a little, until it is asked again.
        if step and step["host"]["physical"] > BUDGET + GIVEN_WAY:
            self.failed = StepFailed(f"more than the budget: {step['host']}")

    def wait_until(self, truth, sentence, limit_s=WAIT_S):
        end = time.monotonic() + limit_s
        with self.changed:
            while True:
                if self.failed:
                    raise self.failed
                if self.vms and truth(self.vms):
                    return self.vms
                demand(time.monotonic() < end, f"{sentence}: {json.dumps(self.vms)}")
                self.changed.wait(1)

    def end(self):
        self.over = True
        self.join()


class Guests:
    """The two vms, switched on."""

    def __init__(self, daemon, folder):
        self.daemon, self.channels = daemon, {}
        for name, weight in WEIGHTS.items():
            daemon.ctl(
                "vm", "create", name, "--memory",
                f"startup={STARTUP},max={MOST},buffer=20%,weight={weight}", "--cpus", "1",
                "--accel", "tcg", "--kernel", os.path.join(folder, "vmlinuz"),
                "--initrd", os.path.join(folder, "initramfs"),
                "--append", "console=tty0 panic=-1 guest.ctl=ttyS0")

    def start(self, name):
        def attempt():
            got = self.daemon.try_ctl("vm", "start", name)
            if got.status != 0:
                raise OSError(str(got))
        # Its supervisor registers soon after the vm was made.
        daemonlib.wait_for(attempt, OSError, 30, f"'{name}' does not start", self.daemon.tail)

    def connect(self, name):
        where = self.daemon.finish(self.daemon.begin("vm.console", vm=name)).json()["socket"]
        self.channels[name] = guestctl.Guest(where).ready(timeout=WAIT_S)

    def inside(self, name, command):
        status, text = self.channels[name].run(command, timeout=WAIT_S)
        demand(status == 0, f"in '{name}' `{command}' ended with {status}: {text}")
        return text

    def fill(self, name, mib):
        self.inside(name, f"({FILL.format(n=mib)}; echo $? > /run/filled) >/run/fill.log 2>&1 &")

    def meminfo(self, name):
        """{"MemTotal": bytes, ...} as the guest itself says it."""
        lines = self.inside(name, "grep -E '^Mem(Total|Available):' /proc/meminfo").splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}

    def no_kill(self):
        for name in self.channels:
            self.inside(name, "! dmesg | grep -i 'out of memory'")


def at_rest(guests, watcher):
    """What the balancer takes for the demand is what the guest itself says that it uses."""
    for name in WEIGHTS:
        said = guests.meminfo(name)
        used = STARTUP - said["MemAvailable"]
        vms = watcher.wait_until(
            lambda vms: abs(vms[name]["demand-now"] - used) < 24 * MIB, f"'{name}' uses {used}", 60)
        demand(vms[name]["status"] == "ok" and vms[name]["target"] == STARTUP, f"{vms[name]}")


def enough(guests, watcher):
    """One needs more, and there is room: it gets demand and buffer, and uses it."""
    guests.fill("heavy", 280)
    vms = watcher.wait_until(
        lambda vms: vms["heavy"]["physical"] >= 400 * MIB and vms["heavy"]["status"] == "ok",
        "'heavy' does not get what it needs")
    demand(vms["light"]["physical"] == STARTUP, f"'light' was not to change: {vms['light']}")
    seen = guests.meminfo("heavy")["MemTotal"]
    demand(seen > 300 * MIB, f"'heavy' sees {seen} bytes")


def shortage(guests, watcher):
    """Both need more than there is: 3 to 1 above startup."""
    rest = BUDGET - 2 * STARTUP
    guests.fill("light", 240)
    guests.fill("heavy", 400)

    def shared(vms):
        return all(abs(vms[name]["physical"] - STARTUP - rest * weight // 100) < 8 * MIB and
                   vms[name]["status"] != "ok" for name, weight in WEIGHTS.items())
    vms = watcher.wait_until(shared, "what is above startup is not shared 3 to 1")
    print(f"short: {({name: vm['physical'] // MIB for name, vm in vms.items()})} MiB of "
          f"{BUDGET // MIB}", flush=True)


def given_back(guests, watcher):
    """One needs no more: what it had reaches the other."""
    before = watcher.vms["light"]["physical"]
    guests.inside("heavy", "rm /tmp/fill.*")
    vms = watcher.wait_until(
        lambda vms: vms["heavy"]["physical"] <= STARTUP + 100 * MIB and
        vms["light"]["status"] == "ok", "what 'heavy' gives back does not reach 'light'")
    demand(vms["light"]["physical"] > before, f"'light' had {before}: {vms['light']}")
    demand(vms["heavy"]["physical"] >= STARTUP, f"{vms['heavy']}")


def test(folder):
    build = os.environ["VHDD_BUILD"]
    ready = guestlib.find_guest(build)
    host = os.path.join(build, "vmm-glue", "vmm-host")
    steps = Steps(os.environ.get("VHDD_MEMORY_STEPS") or os.path.join(folder, "steps.jsonl"))
    with daemonlib.Daemon(folder, ["--vmm-command", host, "--host-memory", str(BUDGET)]) as daemon:
        daemon.start()
        watcher = Watcher(daemon, steps)
        guests = Guests(daemon, ready)
        watcher.start()
        try:
            for name in WEIGHTS:
                guests.start(name)
            for name in WEIGHTS:
                guests.connect(name)
            watcher.wait_until(lambda vms: all(vm["demand"] is not None for vm in vms.values()),
                               "the guests' balloons tell nothing")
            for case in (at_rest, enough, shortage, given_back):
                begun = time.monotonic()
                case(guests, watcher)
                print(f"{case.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
            guests.no_kill()
        except StepFailed as e:
            raise daemonlib.TestFailed(f"{e}\n{daemon.tail()}") from None
        finally:
            watcher.end()
            steps.close()
        for name in WEIGHTS:
            daemon.ctl("vm", "stop", name)
        daemon.stop()
    print(f"summary: memory: {len(steps.steps)} steps over two guests as computed")


if __name__ == "__main__":
    guestlib.need_programs()
    daemonlib.run("vmm-memory", test)
