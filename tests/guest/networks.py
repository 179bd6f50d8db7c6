#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""networks - a Linux guest on virtual switches: a card with two queues, cards that come and go under it,
saved memory that finds its cards again.

The frames' ways are tests/daemon/networks.py's business; here it is QEMU's half: descriptors that arrive in
it, queues that the guest sees, PCI slots that stay the same. Everything is in a network namespace of its own.
The guest is built in $VHDD_BUILD/guest (70 MB of downloads, once), or taken from $VHDD_GUEST.
Exit status: 0 as it must be, 1 not, 77 skipped."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../daemon")]
import daemonlib  # noqa: E402
import guestctl  # noqa: E402
import guestlib  # noqa: E402
import netlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from guestlib import WAIT_S  # noqa: E402

VM = "web"


class Guest:
    """The vm, and a shell in it by its console."""

    def __init__(self, daemon):
        self.daemon, self.shell = daemon, None

    def connect(self):
        if self.shell:
            self.shell.sock.close()
        def ask():
            answer = self.daemon.finish(self.daemon.begin("vm.console", vm=VM))
            demand(answer.status == 0, f"{answer}")
            return answer.json()["socket"]

        # vmm-host hears of the start from the supervisor, a moment later.
        socket = daemonlib.wait_for(ask, daemonlib.TestFailed, WAIT_S, "a console", self.daemon.tail)
        self.shell = guestctl.Guest(socket).ready(timeout=WAIT_S)

    def run(self, command):
        status, text = self.shell.run(command, timeout=WAIT_S)
        demand(status == 0, f"in the guest '{command}' ended with {status}: {text}\n{self.daemon.tail()}")
        return text

    def device_of(self, mac):
        """The guest's name for that card, when it is there."""
        return self.run(f"n=0; while ! grep -l {mac} /sys/class/net/*/address; do sleep 0.1; "
                        f"n=$((n + 1)); [ $n -lt {WAIT_S * 9} ] || exit 1; done").split("/")[4]

    def set_up(self, mac, address):
        device = self.device_of(mac)
        self.run(f"ip addr add {address}/24 dev {device}; ip link set {device} up")
        return device

    def pings(self, address):
        self.run(f"n=0; while ! ping -c 1 -W 1 {address} >/dev/null; do n=$((n + 1)); "
                 f"[ $n -lt {WAIT_S} ] || exit 1; done")


def slot_of(guest, device):
    return guest.run(f"basename $(readlink -f /sys/class/net/{device}/device/..)").strip()


def start(daemon, guest):
    folder = guestlib.find_guest(os.environ["VHDD_BUILD"])
    daemon.ctl("switch", "create", "inside", "--type", "internal", "--host-address", "10.2.0.1/24")
    daemon.ctl("switch", "create", "other", "--type", "internal", "--host-address", "10.3.0.1/24")
    daemon.ctl("vm", "create", VM, "--memory", "startup=256M", "--accel", "tcg", "--cpus", "2",
               "--display", "none", "--network", "inside:queues=2",
               "--kernel", os.path.join(folder, "vmlinuz"),
               "--initrd", os.path.join(folder, "initramfs"), "--append", "panic=-1 guest.ctl=ttyS0")
    wait_linked(daemon)
    daemon.ctl("vm", "start", VM)
    guest.connect()


def wait_linked(daemon):
    """The vm has an agent: its supervisor."""
    def linked():
        demand(daemon.show("vm", VM)["agent"], "no supervisor")

    daemonlib.wait_for(linked, daemonlib.TestFailed, WAIT_S, "the vm's supervisor", daemon.tail)


def cards_of(daemon):
    return daemon.show("vm", VM)["settings"]["networks"]


def queues(daemon, guest):
    [card] = cards_of(daemon)
    device = guest.set_up(card["mac"], "10.2.0.11")
    guest.pings("10.2.0.1")
    seen = guest.run(f"ls /sys/class/net/{device}/queues").split()
    demand({"rx-0", "rx-1", "tx-0", "tx-1"} <= set(seen), f"the guest sees the queues {seen}")
    return device


def hot(daemon, guest):
    answer = daemon.query("vm", "network", "attach", VM, "other:queues=2")
    demand(answer["now"], f"{answer}")
    mac = answer["network"]["mac"]
    guest.set_up(mac, "10.3.0.11")
    guest.pings("10.3.0.1")
    third = daemon.query("vm", "network", "attach", VM, "other:vlan=7")["network"]["mac"]
    guest.device_of(third)
    daemon.ctl("vm", "network", "detach", VM, mac)
    guest.run(f"! grep -l {mac} /sys/class/net/*/address")
    demand([card["mac"] for card in cards_of(daemon)].count(mac) == 0, "it is in the settings still")
    fourth = daemon.query("vm", "network", "attach", VM, "other")["network"]["mac"]
    guest.set_up(fourth, "10.3.0.12")
    guest.pings("10.3.0.1")
    return third, fourth


def saved(daemon, guest, macs):
    """The memory knows its cards by slot; they are there again, and go on."""
    before = {mac: slot_of(guest, guest.device_of(mac)) for mac in macs}
    demand(len(set(before.values())) == len(macs), f"slots {before}")
    daemon.ctl("vm", "save", VM)
    demand(not daemon.query("switch", "show", "other")["ports"], "saved, and still plugged in")
    daemon.ctl("vm", "start", VM)
    guest.connect()
    after = {mac: slot_of(guest, guest.device_of(mac)) for mac in macs}
    demand(before == after, f"cards at {before} are at {after}")
    guest.pings("10.2.0.1")
    guest.pings("10.3.0.1")


def test(folder):
    vmm_host = os.path.join(os.environ["VHDD_BUILD"], "vmm-glue", "vmm-host")
    with daemonlib.Daemon(folder, ["--vmm-command", vmm_host]) as daemon:
        daemon.start()
        daemonlib.wait_for(lambda: daemon.query("switch", "list"), daemonlib.TestFailed, WAIT_S,
                           "vmm-host does not come", daemon.tail)
        guest = Guest(daemon)
        start(daemon, guest)
        queues(daemon, guest)
        print("a card with two queues: the guest pings the host", flush=True)
        macs = [cards_of(daemon)[0]["mac"], *hot(daemon, guest)]
        print("cards came and went under the guest", flush=True)
        saved(daemon, guest, macs)
        print("saved memory found its cards", flush=True)
        daemon.ctl("vm", "stop", VM)
        demand(not daemon.query("switch", "show", "inside")["ports"], "off, and still plugged in")
        daemon.stop()


if __name__ == "__main__":
    if os.geteuid() != 0:
        daemonlib.skip("network namespaces take root")
    daemonlib.need("qemu-system-x86_64", "ovs-vswitchd", "ovsdb-server", "ip")
    if not os.path.exists("/dev/net/tun"):
        daemonlib.skip("no /dev/net/tun")
    guestlib.find_guest(os.environ["VHDD_BUILD"])  # the network is still the machine's
    if not netlib.enter_new_namespace():
        daemonlib.skip("no network namespaces here")
    daemonlib.run("networks", test)
