#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""networks - virtual switches: who can ping whom, as a table, in network namespaces of the test's own.

A frame that reaches whom it must not is as bad as one that is lost: a guest in another VLAN's traffic, a
host on a private switch, a host that is cut off from its own network because its uplink was taken. So
every pair of endpoints is asked, before and after each process that moves frames has died; what was
refused has left nothing half-made. Guests are taps with some lines of Python behind them."""

import os
import select
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
import netlib  # noqa: E402
from daemonlib import demand  # noqa: E402
from netlib import Endpoint, Host, Namespace, Supervisor, Table, Wire  # noqa: E402


class World:
    """A daemon with its vmm-host, vms that run as far as vmm-host can tell, and their cards."""

    def __init__(self, folder):
        vmm_host = os.path.join(os.environ.get("VHDD_BUILD", ""), "vmm-glue", "vmm-host")
        if not os.access(vmm_host, os.X_OK):
            daemonlib.skip("no vmm-host in this build")
        self.daemon = daemonlib.Daemon(folder, ["--vmm-command", vmm_host])
        self.run_dir = os.path.join(self.daemon.state, "run", "vmm")
        self.supervisors, self.guests = {}, {}

    def start(self):
        self.daemon.start()
        self.wait_ready()

    def wait_ready(self):
        daemonlib.wait_for(lambda: self.list_switches(), daemonlib.TestFailed, 30,
                           "vmm-host does not come", self.daemon.tail)

    def list_switches(self):
        return self.daemon.query("switch", "list")

    def add_vm(self, name, add="take"):
        vm = self.daemon.query("vm", "create", name)
        self.supervisors[name] = Supervisor(os.path.join(self.run_dir, vm["id"]), vm["id"], add)
        self.daemon.ctl("vm", "set", name, "--memory", "startup=64M")
        demand(self.supervisors[name].wait_linked(), f"vmm-host does not take vm '{name}'")
        return self.supervisors[name]

    def plug(self, vm, networks):
        """(answer's networks, descriptors of each) of a vm's cards; TestFailed with the sentence."""
        answer, fds = self.supervisors[vm].ask("plug", networks=networks)
        if "error" in answer:
            raise daemonlib.TestFailed(answer["error"]["message"])
        cards = []
        for network in answer["result"]["networks"]:
            n = network["descriptors"]
            cards.append((network, fds[:n]))
            for fd in fds[n:n + network["vhost"]]:
                os.close(fd)
            fds = fds[n + network["vhost"]:]
        return cards

    def guest(self, vm, address, **network):
        """A running guest with one card."""
        if vm not in self.supervisors:
            self.add_vm(vm)
        [(card, fds)] = self.plug(vm, [network])
        self.guests[vm] = Endpoint(vm, card["mac"], address, fds)
        return self.guests[vm]

    def pid(self, program):
        with open(os.path.join(self.run_dir, "ovs", program + ".pid"), encoding="ascii") as f:
            return int(f.read())

    def close(self):
        for guest in self.guests.values():
            guest.close()
        for supervisor in self.supervisors.values():
            supervisor.close()


def pairs(*groups):
    """Everybody in a group can ping everybody else in it."""
    return {(one, other) for group in groups for one in group for other in group if one != other}


def check(table, expected, what):
    found = table.find(expected)
    print(f"{what}:\n{table.text(found)}", flush=True)
    demand(found == expected, f"{what}: expected\n{table.text(expected)}")


# --- the whole picture


def make_switches(world, wire):
    daemon = world.daemon
    netlib.ip("link", "add", "up0", "type", "veth", "peer", "name", "wire0")
    netlib.ip("link", "set", "up0", "up")
    netlib.ip("addr", "add", "10.3.0.9/24", "dev", "up0")
    daemon.ctl("switch", "create", "lab", "--type", "private")
    daemon.ctl("switch", "create", "inside", "--type", "internal", "--host-address", "10.2.0.1/24")
    out = daemon.ctl("switch", "create", "lan", "--type", "external", "--uplink", "up0").out
    demand("10.3.0.9" in out, f"nobody says that the host's address is of no use now: {out}")
    # Its other end went to another machine, so to say, behind the switch's making.
    wire.take("wire0")
    wire.ip("link", "set", "wire0", "up")


def make_guests(world):
    world.guest("private1", "10.1.0.11", switch="lab")
    world.guest("private2", "10.1.0.12", switch="lab")
    world.guest("private10", "10.1.0.13", switch="lab", vlan=10)
    world.guest("inside1", "10.2.0.11", switch="inside")
    world.guest("inside10", "10.2.0.12", switch="inside", vlan=10)
    world.guest("ext1", "10.3.0.11", switch="lan")
    world.guest("ext10a", "10.3.0.12", switch="lan", vlan=10)
    world.guest("ext10b", "10.3.0.13", switch="lan", vlan=10, queues=4)
    world.guest("ext20", "10.3.0.14", switch="lan", vlan=20)


def who(world, wire):
    guests = world.guests
    host = [Host("host-inside", "10.2.0.1"), Host("host-uplink", "10.3.0.9")]
    wires = [Wire("wire", "5e:00:00:00:00:01", "10.3.0.21", wire, "wire0"),
             Wire("wire10", "5e:00:00:00:00:02", "10.3.0.22", wire, "wire0", 10),
             Wire("wire20", "5e:00:00:00:00:03", "10.3.0.23", wire, "wire0", 20)]
    return Table([*guests.values(), *host, *wires])


# The host is one machine: who reaches it reaches all its addresses. But not by the uplink.
EXPECTED = pairs(("private1", "private2"), ("inside1", "host-inside", "host-uplink"),
                 ("ext1", "wire"), ("ext10a", "ext10b", "wire10"), ("ext20", "wire20"))


def checksums(world, wire):
    """What the far end's kernel leaves to its network card is filled in when a guest gets it."""
    guest = world.guests["ext1"]
    wire.ip("addr", "add", "10.3.0.30/24", "dev", "wire0")

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"checksum me", ("10.3.0.11", 9))

    wire.run(send)
    demand(guest.wait(lambda: any(b"checksum me" in frame for frame in guest.seen), 20),
           "a datagram from the wire does not reach the guest")
    frame = next(frame for frame in guest.seen if b"checksum me" in frame)
    demand(netlib.udp_checksum_is_right(frame[14:]), "a datagram's checksum is not filled in")
    wire.ip("addr", "del", "10.3.0.30/24", "dev", "wire0")


def spoofing(world):
    one, other = world.guests["private1"], world.guests["private2"]
    word = f"spoofed {os.urandom(4).hex()}"
    one.say(word, source=other.mac.replace("5a", "5e", 1))
    one.say(word + " too", source="5e:11:22:33:44:55")
    one.say("honest " + word)
    demand(other.hears("honest " + word), "an honest frame does not come")
    demand(not other.heard(word), "a frame with another's address is let through")


def hopping(world):
    """A guest writes a VLAN's tag into its frames itself."""
    untagged, ten, twenty = (world.guests[name] for name in ("ext1", "ext10a", "ext20"))
    other_ten, word = world.guests["ext10b"], f"hop {os.urandom(4).hex()}"
    untagged.say(word, vlan=10)
    untagged.say(word, vlan=20)
    untagged.say(word, vlan=4095)
    ten.say(word, vlan=20)
    ten.say(word, vlan=10)
    ten.say("honest " + word, vlan=0)
    demand(other_ten.hears("honest " + word), "an honest frame does not come")
    for guest in (ten, twenty, other_ten):
        demand(not guest.heard(word), f"{guest.name} hears who tags its own frames")


def allowed_spoofing(world):
    """A card that may is told by its settings, and a running one by changed settings."""
    world.add_vm("bridge")
    [(card, fds)] = world.plug("bridge", [{"switch": "lab", "mac-spoofing": True}])
    guest = Endpoint("bridge", card["mac"], "10.1.0.20", fds)
    guest.say("as another", source="5e:11:22:33:44:66")
    demand(world.guests["private1"].hears("as another"), "mac-spoofing=on lets nothing through")
    world.daemon.ctl("vm", "set", "bridge", "--network", f"lab:mac={card['mac']}")

    def dropped():
        world_shown = world.daemon.query("switch", "show", "lab")["ports"]
        demand(not [port for port in world_shown if port["mac-spoofing"]], "still allowed")

    daemonlib.wait_for(dropped, daemonlib.TestFailed, 20, "new settings do not come", str)
    guest.say("as a third", source="5e:11:22:33:44:77")
    guest.say("as itself")
    demand(world.guests["private1"].hears("as itself"), "it cannot send any more")
    demand(not world.guests["private1"].heard("as a third"), "it is let through as before")
    guest.close()


def moving(world):
    """A running card goes to another VLAN, and to another switch, as a cable is pulled and plugged in."""
    guest = world.guests["private10"]
    world.daemon.ctl("vm", "set", "private10", "--network", f"lab:mac={guest.mac}")
    guest.forget()
    demand(guest.ping("10.1.0.11", until(20)), "VLAN 10 was left, and the others are not there")
    world.daemon.ctl("vm", "set", "private10", "--network", f"inside:mac={guest.mac}")
    guest.address = "10.2.0.13"
    guest.forget()
    demand(guest.ping("10.2.0.1", until(20)), "on the other switch the host is not there")
    world.daemon.ctl("vm", "set", "private10", "--network", f"lab:vlan=10,mac={guest.mac}")
    guest.address = "10.1.0.13"

    def back():
        ports = world.daemon.query("switch", "show", "lab")["ports"]
        demand([port for port in ports if port["vlan"] == 10], "it is not there")

    daemonlib.wait_for(back, daemonlib.TestFailed, 20, "back on the first switch", str)


def until(seconds):
    end = time.monotonic() + seconds
    return lambda: end


# --- what dies


def kill_and_wait(pid):
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    demand(select.select([fd], [], [], 30)[0], f"process {pid} does not die")
    os.close(fd)


def deaths(world, table):
    for program in ("ovs-vswitchd", "ovsdb-server"):
        kill_and_wait(world.pid(program))
        check(table, EXPECTED, f"after {program} was killed")
        spoofing(world)
    both = [world.pid(program) for program in ("ovsdb-server", "ovs-vswitchd")]
    for pid in both:
        kill_and_wait(pid)
    check(table, EXPECTED, "after both were killed")
    hopping(world)


def vmm_host_of(world):
    [pid] = [pid for pid, line in world.daemon.processes().items() if "vmm-host" in line.split()[0]]
    return pid


def new_vmm_host(world, table):
    """The next vmm-host finds switches and cards as they are, and what died without it being there."""
    supervisor = world.supervisors["private1"]
    hellos = supervisor.hellos
    vmm_host = vmm_host_of(world)
    vswitchd = world.pid("ovs-vswitchd")
    kill_and_wait(vmm_host)
    demand(supervisor.wait_linked(hellos=hellos + 1), "no new vmm-host comes")
    world.wait_ready()
    check(table, EXPECTED, "after vmm-host was killed")
    demand(world.pid("ovs-vswitchd") == vswitchd, "it has started a second ovs-vswitchd")
    vmm_host = vmm_host_of(world)
    os.kill(vmm_host, signal.SIGSTOP)  # it cannot see what comes
    guest = world.guests.pop("inside10")
    device = [port["device"] for port in shown_ports(world, "inside", vmm_host)
              if port["mac"] == guest.mac]
    guest.close()
    hellos = supervisor.hellos
    kill_and_wait(world.pid("ovs-vswitchd"))
    kill_and_wait(vmm_host)
    demand(supervisor.wait_linked(hellos=hellos + 1), "no new vmm-host comes")
    world.wait_ready()
    ports = world.daemon.query("switch", "show", "inside")["ports"]
    demand(not [port for port in ports if port["device"] in device], f"a dead guest's port: {ports}")
    spoofing(world)


def shown_ports(world, switch, stopped):
    """As vmm-host, which is @stopped, would show them."""
    os.kill(stopped, signal.SIGCONT)
    ports = world.daemon.query("switch", "show", switch)["ports"]
    os.kill(stopped, signal.SIGSTOP)
    return ports


# --- refusals


def refused(world, *arguments, status=3, says="", environment=None):
    before = state(world)
    if environment:
        saved, world.daemon.environment = world.daemon.environment, {
            **world.daemon.environment, **environment}
    try:
        answer = world.daemon.try_ctl(*arguments)
    finally:
        if environment:
            world.daemon.environment = saved
    demand(answer.status == status, f"{answer} (expected {status})")
    demand(answer.is_one_sentence(), f"{answer}: that is not one sentence")
    demand(says in answer.err, f"{answer}: it does not say '{says}'")
    demand(state(world) == before, f"{answer}: refused, and something is other than before")


def state(world):
    """All that a refusal must leave as it was."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = sorted(line.split()[1] for line in links.splitlines())
    return names, world.list_switches()


def bad_input(world):
    create = ("switch", "create")
    refused(world, *create, "lab", "--type", "private", says="already")
    refused(world, *create, "up0", "--type", "internal", says="network interface 'up0'")
    refused(world, *create, "x", "--type", "external", status=2, says="needs an uplink")
    refused(world, *create, "x", "--type", "private", "--uplink", "up0", status=2, says="external")
    refused(world, *create, "x", "--type", "internal", "--share-host", status=2, says="shared")
    refused(world, *create, "x", status=2, says="--type")
    refused(world, *create, "x", "--type", "bridged", status=2, says="private")
    for name in ("sixteen-bytes-xx", "a b", "a/b", "-x", ".", "ü", "ovs-x"):
        refused(world, *create, "--type", "private", "--", name, status=2)
    refused(world, *create, "x", "--type", "external", "--uplink", "nosuch0", says="'nosuch0'")
    refused(world, *create, "x", "--type", "external", "--uplink", "lo", status=2, says="loopback")
    refused(world, *create, "x", "--type", "external", "--uplink", "inside", says="already")
    refused(world, *create, "x", "--type", "external", "--uplink", "up0", "--force",
            says="uplink of the switch 'lan'")
    refused(world, *create, "x", "--type", "internal", "--host-address", "10.0.0.1", status=2,
            says="prefix")
    refused(world, *create, "x", "--type", "internal", "--host-vlan", "4095", status=2)
    refused(world, *create, "x", "--type", "private", "--host-vlan", "5", status=2, says="no port")
    refused(world, "switch", "show", "nosuch", says="no switch")
    refused(world, "switch", "set", "nosuch", "--type", "private", says="no switch")
    refused(world, "switch", "remove", "nosuch", says="no switch")
    refused(world, "switch", "remove", "lab", says="plugged into")
    refused(world, "switch", "set", "lab", "--uplink", "up0", status=2, says="external")
    bad_cards(world)


def bad_cards(world):
    attach = ("vm", "network", "attach")
    taken = world.guests["private2"].mac
    refused(world, *attach, "private1", "nosuch", says="no switch 'nosuch'")
    refused(world, *attach, "private1", "lab:mac=01:00:00:00:00:01", status=2, says="group")
    refused(world, *attach, "private1", "lab:mac=x", status=2)
    refused(world, *attach, "private1", "lab:vlan=4095", status=2)
    refused(world, *attach, "private1", "lab:queues=17", status=2)
    refused(world, *attach, "private1", f"lab:mac={taken}", says="private2")
    refused(world, *attach, "nosuch", "lab", says="nosuch")
    refused(world, "vm", "network", "detach", "private1", "00:11:22:33:44:55", says="no network card")
    refused(world, "vm", "network", "swap", "private1", "lab", status=2)
    for network, says in (({"switch": "nosuch", "mac": "5a:00:00:00:00:01"}, "no switch 'nosuch'"),
                          ({"switch": "lab", "mac": taken}, "in use"),
                          ({"switch": "lab", "mac": "5a:00:00:00:00:01", "queues": 99}, "queues"),
                          ({"switch": "lab", "mac": "5a:00:00:00:00:01", "vlan": 5000}, "VLAN")):
        before = state(world)
        answer, _ = world.supervisors["bridge"].ask("plug", networks=[network])
        demand(says in answer.get("error", {}).get("message", ""), f"{network}: {answer}")
        demand(state(world) == before, f"{network}: refused, and something is left of it")


def uplinks(world):
    """The host does not lose its network unasked."""
    create = ("switch", "create", "ext", "--type", "external", "--uplink", "up1")
    far = Namespace()
    make_uplink(far)
    ssh = {"SSH_CONNECTION": "10.4.0.2 40000 10.4.0.1 22"}
    refused(world, *create, says="connection you have come by", environment=ssh)
    refused(world, *create, says="connection you have come by",
            environment={"SSH_CONNECTION": "10.4.0.77 40000 192.0.2.1 22"})
    netlib.ip("route", "add", "default", "via", "10.4.0.2")
    refused(world, *create, says="default route")
    refused(world, "switch", "set", "lan", "--uplink", "up1", says="default route")
    answer = world.daemon.query(*create, "--dry-run", "--force")
    demand(any("10.4.0.1" in note for note in answer["notes"]), f"no word of the address: {answer}")
    demand("ext" not in [switch["name"] for switch in world.list_switches()], "a dry run made it")
    sharing(world, far, create)
    only_adapter(world, create)
    netlib.ip("link", "del", "up1")


def make_uplink(far):
    """up1, whose other end is another machine's."""
    netlib.ip("link", "add", "up1", "type", "veth", "peer", "name", "far1")
    far.take("far1")
    far.ip("link", "set", "far1", "up")
    netlib.ip("link", "set", "up1", "up")
    netlib.ip("addr", "add", "10.4.0.1/24", "dev", "up1")


def late_uplink(far, guest):
    """An adapter that is pulled, and comes again, is the switch's uplink as before, and not the host's."""
    netlib.ip("link", "del", "up1")
    make_uplink(far)
    netlib.ip("route", "add", "default", "via", "10.4.0.2")
    far.ip("addr", "add", "10.4.0.2/24", "dev", "far1")

    def guarded():
        shown = subprocess.run(["tc", "filter", "show", "dev", "up1", "ingress"], check=True,
                               capture_output=True, text=True).stdout
        demand(shown.strip(), "nothing keeps the host out")

    daemonlib.wait_for(guarded, daemonlib.TestFailed, 20, "the uplink is there again", str)
    endpoints = [guest, Host("host", "10.4.0.1"), Host("far", "10.4.0.2", far)]
    check(Table(endpoints), pairs(("shared", "far")), "the uplink was pulled and came again")


def sharing(world, far, create):
    """Shared, the host goes on using its address on the uplink; unshared again, nothing reaches it."""
    far.ip("addr", "add", "10.4.0.2/24", "dev", "far1")
    world.daemon.ctl(*create, "--share-host", "--host-address", "10.5.0.3/24")
    guest = world.guest("shared", "10.4.0.11", switch="ext")
    neighbour = world.guest("neighbour", "10.5.0.11", switch="ext")
    endpoints = [guest, neighbour, Host("host", "10.4.0.1"), Host("port", "10.5.0.3"),
                 Host("far", "10.4.0.2", far)]
    # The host speaks to the uplink's network by the uplink, and to the port's by the port.
    shared = pairs(("shared", "neighbour"), ("shared", "far"), ("host", "far"),
                   ("neighbour", "host", "port"))
    check(Table(endpoints), shared, "a shared uplink")
    world.daemon.ctl("switch", "set", "ext", "--no-share-host", "--force")
    endpoints = [guest, Host("host", "10.4.0.1"), Host("far", "10.4.0.2", far)]
    check(Table(endpoints), pairs(("shared", "far")), "the same uplink, not shared any more")
    late_uplink(far, guest)
    world.guests.pop("shared").close()
    world.guests.pop("neighbour").close()
    world.daemon.ctl("switch", "remove", "ext", "--force")
    endpoints = [Host("host", "10.4.0.1"), Host("far", "10.4.0.2", far)]
    check(Table(endpoints), pairs(("host", "far")), "the uplink is the host's again")


def only_adapter(world, create):
    world.daemon.ctl("switch", "remove", "lan", "--force")
    netlib.ip("link", "del", "up0")
    refused(world, *create, says="two are better")
    netlib.ip("route", "del", "default")
    answer = world.daemon.query(*create, "--dry-run")
    demand(any("two are better" in note for note in answer["notes"]), f"no advice: {answer}")


# --- cards under running guests


def hot_cards(world):
    world.add_vm("hot")
    supervisor = world.supervisors["hot"]
    answer = world.daemon.query("vm", "network", "attach", "hot", "lab:queues=2")
    demand(answer["now"] and answer["network"]["mac"].startswith("5a:"), f"{answer}")
    [(network, fds)] = supervisor.taken
    demand(network["mac"] == answer["network"]["mac"] and len(fds) == 2, f"{network}, {fds}")
    guest = Endpoint("hot", network["mac"], "10.1.0.30", fds)
    demand(guest.ping("10.1.0.11", until(20)), "a card that came under the guest reaches nobody")
    settings = world.daemon.show("vm", "hot")["settings"]["networks"]
    demand(settings == [answer["network"]], f"the settings say {settings}")
    refused(world, "vm", "network", "attach", "hot", f"lab:mac={guest.mac}", says="hot")
    world.daemon.ctl("vm", "network", "detach", "hot", "lab")
    demand(supervisor.removed == [guest.mac], f"asked to remove {supervisor.removed}")
    demand(not [port for port in world.daemon.query("switch", "show", "lab")["ports"]
                if port["mac"] == guest.mac], "the card's port is still there")
    demand(world.daemon.show("vm", "hot")["settings"]["networks"] == [], "it is in the settings still")
    guest.close()
    supervisor.add = "unknown"
    answer = world.daemon.query("vm", "network", "attach", "hot", "lab")
    demand(not answer["now"], f"said to be there at once: {answer}")
    supervisor.add = "no"
    refused(world, "vm", "network", "attach", "hot", "lab", says="does not want to")
    kept = world.daemon.show("vm", "hot")["settings"]["networks"]
    demand(kept == [answer["network"]], f"the settings say {kept}")


def addresses_stay(world):
    """A card's address is in the settings as soon as it was needed, and no two have the same."""
    for vm, guest in world.guests.items():
        networks = world.daemon.show("vm", vm)["settings"]["networks"]
        demand([network["mac"] for network in networks] == [guest.mac], f"{vm}: {networks}")
    macs = [guest.mac for guest in world.guests.values()]
    demand(len(set(macs)) == len(macs), f"the same address twice: {macs}")


def the_end(world):
    """With the last switch our own Open vSwitch goes, and leaves nothing."""
    for switch in world.list_switches():
        world.daemon.ctl("switch", "remove", switch["name"], "--force")
    left = [line for line in world.daemon.processes().values() if "ovs" in line]
    demand(not left, f"no switch is left, and these are: {left}")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    left = [line.split()[1] for line in links.splitlines() if "vhdd" not in line.split()[1]]
    demand(left == ["lo:"], f"interfaces that nobody needs: {left}")
    demand(world.list_switches() == [], "switches of nowhere")


def test(folder):
    wire = Namespace()
    world = World(folder)
    with world.daemon:
        try:
            world.start()
            make_switches(world, wire)
            make_guests(world)
            table = who(world, wire)
            check(table, EXPECTED, "private, internal, external, two VLANs")
            addresses_stay(world)
            checksums(world, wire)
            spoofing(world)
            hopping(world)
            allowed_spoofing(world)
            moving(world)
            deaths(world, table)
            bad_input(world)
            hot_cards(world)
            new_vmm_host(world, table)
            for endpoint in table.endpoints:
                if isinstance(endpoint, Wire):
                    endpoint.close()
            uplinks(world)
            the_end(world)
            world.daemon.stop()
        finally:
            world.close()


if __name__ == "__main__":
    if os.geteuid() != 0:
        daemonlib.skip("network namespaces take root")
    daemonlib.need("ovs-vswitchd", "ovsdb-server", "ip", "tc")
    if not os.path.exists("/dev/net/tun"):
        daemonlib.skip("no /dev/net/tun")
    if not netlib.enter_new_namespace():
        daemonlib.skip("no network namespaces here")
    daemonlib.run("networks", test)
