#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""hot-disks - disks that come and go while their vm is on.

The catalog and the guest must agree: a disk that the guest did not get is not attached, and its new file
is gone; one that the guest did not give up is not detached. What sits on IDE stays while the vm is
on. The agent here keeps a connection to each disk that it has, as a virtual machine does."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from agentlib import Agent  # noqa: E402
from daemonlib import demand  # noqa: E402

VERBS = ("start", "stop", "disk-add", "disk-remove", "disk-resize")


class Machine:
    """An agent whose disks are NBD connections."""

    def __init__(self, daemon, behaviour=None, verbs=VERBS, on=True, timeout=5):
        self.daemon, self.has = daemon, {}
        how = {"disk-add": self.add, "disk-remove": self.remove, **(behaviour or {})}
        self.agent = Agent(daemon.control, "web", how, verbs=verbs, on=on, timeout=timeout)

    def add(self, _agent, request, _fd):
        demand(request["socket"] == self.daemon.socket, f"{request}")
        self.has[request["disk"]["id"]] = self.daemon.connect(request["export"])
        return {"guest": "taken"}

    def remove(self, _agent, request, _fd):
        handle = self.has.pop(request["disk"]["id"], None)
        if handle:
            daemonlib.leave(handle)
        return {"guest": "taken"}

    def leave(self):
        self.agent.leave()
        for handle in self.has.values():
            daemonlib.leave(handle)
        self.agent.gone(self.daemon)


def names(daemon):
    return {disk["name"]: disk["at"] for disk in daemon.query("disk", "list", "web")}


def attach(daemon, name, *options, **more):
    file = os.path.join(daemon.folder, name + ".vhd")
    return daemon.try_ctl("disk", "attach", "web", file, "--name", name, "--create", "8M", *options,
                          "--json", **more)


def good(daemon):
    machine = Machine(daemon)
    for i in range(64):
        got = attach(daemon, f"d{i}")
        demand(got.status == 0 and got.json()["guest"] == "taken", f"{got}")
    disks = daemon.query("disk", "list", "web")
    demand(len(machine.has) == 64 and {d["id"] for d in disks} == set(machine.has) | {boot(disks)},
           f"the guest has {len(machine.has)} disks")
    demand({d["at"] for d in disks} >= {f"scsi0:{i}" for i in range(64)}, "they are elsewhere")
    for handle in machine.has.values():
        handle.pwrite(b"hot" * 1024 + b"!" * 1024, 0)
    for i in range(64):
        daemon.ctl("disk", "detach", "web", f"d{i}")
    demand(not machine.has and set(names(daemon)) == {"boot"}, f"left: {machine.has} {names(daemon)}")
    machine.leave()


def boot(disks):
    return next(disk["id"] for disk in disks if disk["name"] == "boot")


def bad_places(daemon):
    machine = Machine(daemon)
    wanted = {
        "ide0:1": "is on", "ide2:0": "no place", "scsi0:64": "no place", "scsi4:0": "no place",
        "ide0:0": "taken",
    }
    for at, sentence in wanted.items():
        got = attach(daemon, "misplaced", "--at", at)
        demand(got.status in (2, 3) and sentence in got.err, f"{at}: {got}")
    got = daemon.try_ctl("disk", "detach", "web", "boot")
    demand(got.status == 3 and "IDE" in got.err and got.is_one_sentence(), f"{got}")
    demand(machine.agent.asked == [], f"asked for {machine.agent.asked}")
    machine.leave()
    # Off: four, and no fifth.
    machine = Machine(daemon, on=False)
    for at in ("ide0:1", "ide1:0", "ide1:1"):
        got = attach(daemon, "at" + at.replace(":", ""), "--at", at)
        demand(got.status == 0 and "guest" not in got.json(), f"{got}")
    got = attach(daemon, "fifth", "--at", "ide1:1")
    demand(got.status == 3 and "at most 4 IDE disks" in got.err, f"{got}")
    for at in ("ide01", "ide10", "ide11"):
        daemon.ctl("disk", "detach", "web", "at" + at)
    demand(machine.agent.asked == [], f"asked for {machine.agent.asked}")
    machine.leave()
    demand(not os.path.exists(os.path.join(daemon.folder, "misplaced.vhd")), "a file was left")


def refused_add(daemon, how, sentence):
    """Not attached: no row, no file, no export; and the place and the name are free again."""
    machine = Machine(daemon, {"disk-add": how}, timeout=1)
    got = attach(daemon, "never")
    demand(got.status == 3 and sentence in got.err, f"{how}: {got}")
    demand(set(names(daemon)) == {"boot"}, f"{how}: {names(daemon)}")
    demand(not os.path.exists(os.path.join(daemon.folder, "never.vhd")), f"{how}: its file is there")
    if how == "silent":
        demand(machine.agent.asked == ["disk-add", "disk-remove"], f"asked for {machine.agent.asked}")
    # A file that was there before stays, and belongs to nobody.
    kept = os.path.join(daemon.folder, "kept.vhd")
    if machine.agent.is_alive() and how != "die":
        got = daemon.try_ctl("disk", "attach", "web", kept)
        demand(got.status == 3 and sentence in got.err, f"{how}: {got}")
        demand(os.path.exists(kept) and set(names(daemon)) == {"boot"}, f"{how}: {names(daemon)}")
    machine.leave()


def refused_remove(daemon, how, sentence):
    """Not detached: it serves on."""
    machine = Machine(daemon)
    demand(attach(daemon, "stays").status == 0, "cannot attach")
    machine.agent.behaviour["disk-remove"] = how
    if how == "silent":
        machine.leave()
        machine = Machine(daemon, {"disk-remove": how}, timeout=1)
        machine.has[next(d["id"] for d in daemon.query("disk", "list", "web")
                         if d["name"] == "stays")] = daemon.connect("web/stays")
    got = daemon.try_ctl("disk", "detach", "web", "stays")
    demand(got.status == 3 and sentence in got.err and got.is_one_sentence(), f"{how}: {got}")
    demand(how != "no" or "\n        ask again" in got.err, f"the agent's hint is lost: {got}")
    demand(set(names(daemon)) == {"boot", "stays"}, f"{how}: {names(daemon)}")
    for handle in machine.has.values():
        handle.pwrite(b"x" * 512, 0)
    machine.leave()
    machine = Machine(daemon)
    daemon.ctl("disk", "detach", "web", "stays")
    os.unlink(os.path.join(daemon.folder, "stays.vhd"))
    machine.leave()


def somebody_elses(daemon):
    """Who is not the guest has it open: the guest gets it back. With --force he is cut off."""
    machine = Machine(daemon)
    demand(attach(daemon, "shared").status == 0, "cannot attach")
    other = daemon.connect("web/shared")
    got = daemon.try_ctl("disk", "detach", "web", "shared")
    demand(got.status == 3 and "in use" in got.err, f"{got}")
    demand(machine.agent.asked == ["disk-add", "disk-remove", "disk-add"],
           f"asked for {machine.agent.asked}")
    demand(len(machine.has) == 1, "the guest did not get it back")
    machine.agent.behaviour["disk-remove"] = "no"
    daemon.ctl("disk", "detach", "web", "shared", "--force")
    demand(set(names(daemon)) == {"boot"}, f"{names(daemon)}")
    machine.has.clear()
    machine.leave()
    del other


def without_the_verb(daemon):
    """Whoever runs it adds it by hand."""
    machine = Machine(daemon, verbs=("start", "stop"))
    got = attach(daemon, "byhand")
    demand(got.status == 0 and "guest" not in got.json(), f"{got}")
    demand(machine.agent.asked == [], f"asked for {machine.agent.asked}")
    daemon.ctl("disk", "detach", "web", "byhand")
    machine.leave()


def unseen(daemon):
    def add(*_):
        return {"guest": "unseen"}

    machine = Machine(daemon, {"disk-add": add})
    got = daemon.ctl("disk", "attach", "web", os.path.join(daemon.folder, "slow.vhd"), "--create", "8M")
    demand("the guest has not taken it yet" in got.out, f"{got.out}")
    daemon.ctl("disk", "detach", "web", "slow")
    machine.leave()


def boot_rule(daemon):
    """A vm that is run here boots from IDE."""
    daemon.ctl("vm", "create", "scsi", "--memory", "startup=256M")
    daemon.ctl("disk", "attach", "scsi", os.path.join(daemon.folder, "scsi.vhd"), "--create", "8M")
    agent = Agent(daemon.control, "scsi", on=False)
    got = daemon.try_ctl("vm", "start", "scsi")
    demand(got.status == 3 and "boots from IDE" in got.err and got.is_one_sentence(), f"{got}")
    demand(agent.asked == [], f"asked for {agent.asked}")
    daemon.ctl("disk", "attach", "scsi", os.path.join(daemon.folder, "ide.vhd"), "--create", "8M",
               "--at", "ide0:0")
    daemon.ctl("vm", "start", "scsi")
    demand(agent.asked == ["start"], f"asked for {agent.asked}")
    agent.leave()


def killed(daemon):
    """The broker dies while the agent is asked. It is attached, and a guest that was not given it finds
    it in the list when its agent registers again."""
    def die(_agent, _request, _fd):
        daemon.kill_broker()
        raise OSError

    machine = Machine(daemon, {"disk-add": die})
    got = attach(daemon, "orphan")
    demand(got.status == 3, f"{got}")
    daemon.start()
    demand(set(names(daemon)) == {"boot", "orphan"}, f"{names(daemon)}")
    machine = Machine(daemon)
    daemon.ctl("disk", "detach", "web", "orphan")
    machine.leave()


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        demand(attach(daemon, "boot", "--at", "ide0:0").status == 0, "cannot attach")
        good(daemon)
        bad_places(daemon)
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "kept.vhd"), "--create", "8M")
        daemon.ctl("disk", "detach", "web", "kept")
        for how, sentence in (("no", "does not want to"), ("silent", "within 1 s"),
                              ("die", "went away")):
            refused_add(daemon, how, sentence)
            refused_remove(daemon, how, sentence)
        somebody_elses(daemon)
        without_the_verb(daemon)
        unseen(daemon)
        boot_rule(daemon)
        killed(daemon)
        daemon.stop()
    print("hot-disks: catalog and guest agree, whatever an agent did")


if __name__ == "__main__":
    daemonlib.run("hot-disks", test)
