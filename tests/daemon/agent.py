#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""agent - the compute side of a vm, over the control socket.

A snapshot asks it to pause, to save the memory into a descriptor and to resume, in this order; an
apply asks it to stop, and to start from that memory. One that says no, that says nothing, or that
dies in the middle costs an error or the memory, never the disks' I/O: a client goes on writing and
flushing all the time."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from agentlib import MEMORY, Agent, Refusal, Writer, wait_for  # noqa: E402
from daemonlib import demand  # noqa: E402


def show(daemon):
    return daemon.query("vm", "show", "web")


def good_agent(daemon):
    agent = Agent(daemon.control, "web")
    demand(show(daemon)["on"] and show(daemon)["agent"] == "test agent", f"{show(daemon)}")
    taken = daemon.query("snapshot", "take", "web", "warm")
    demand(taken["memory"], f"no memory: {taken}")
    demand(agent.asked == ["pause", "save", "resume"], f"asked for {agent.asked}")
    agent.asked.clear()
    cold = daemon.query("snapshot", "take", "web", "cold", "--disks-only")
    demand(not cold["memory"] and agent.asked == [], f"{cold}, asked for {agent.asked}")
    daemon.ctl("vm", "pause", "web")
    daemon.ctl("vm", "resume", "web")
    demand(agent.asked == ["pause", "resume"], f"asked for {agent.asked}")
    agent.asked.clear()
    refused = daemon.try_ctl("vm", "reset", "web")
    demand(refused.status == 3 and "reset" in refused.err, f"{refused}")
    daemon.ctl("snapshot", "apply", "web", "warm")
    wait_for(lambda: "start" in agent.asked, f"asked for {agent.asked}")
    demand(agent.asked == ["stop", "start"], f"asked for {agent.asked}")
    wait_for(lambda: agent.restored is not None, "it got no memory to start from")
    demand(agent.restored == MEMORY, f"it got {agent.restored[:40]}")
    second = daemon.try_ctl("snapshot", "delete", "web", "warm")
    demand(second.status == 0, f"{second}")
    agent.gone(daemon)
    demand(not show(daemon)["on"], "on, and nobody is there")
    refused = daemon.try_ctl("vm", "start", "web")
    demand(refused.status == 3 and "no agent" in refused.err, f"{refused}")


def shutdown_timeout(daemon):
    """The agent is told the time, and waited for a little longer: its own word is what is said."""
    def late(_agent, request, _fd):
        time.sleep(1.5)  # longer than its time at the registration
        raise Refusal(f"no guest ends within {request['timeout']} s")

    agent = Agent(daemon.control, "web", {"shutdown": late}, timeout=1, verbs=("shutdown",))
    refused = daemon.try_ctl("vm", "shutdown", "web", "--timeout", "2m")
    demand(refused.status == 3 and "within 120 s" in refused.err, f"{refused}")
    for bad in ("0", "1.5", "2d"):
        demand(daemon.try_ctl("vm", "shutdown", "web", "--timeout", bad).status in (2, 3), f"taken: {bad}")
    demand(agent.asked == ["shutdown"], f"asked for {agent.asked}")
    agent.behaviour["shutdown"] = "good"
    daemon.ctl("vm", "shutdown", "web")
    demand("timeout" not in agent.requests[-1], f"a time that nobody named: {agent.requests[-1]}")
    agent.gone(daemon)


def bad_agent(daemon, verb, how, memory, taken):
    """One snapshot with an agent that behaves badly: the guest's I/O goes on all the while."""
    name = f"{verb} {how}"
    agent = Agent(daemon.control, "web", {verb: how}, timeout=1)
    writer = Writer(daemon.connect("web/disk"))
    writer.start()
    answer = daemon.try_ctl("snapshot", "take", "web", name, "--json")
    demand((answer.status == 0) == taken, f"{name}: {answer}")
    if taken:
        demand(answer.json()["memory"] == memory, f"{name}: {answer.out}")
    else:
        demand(answer.is_one_sentence() or answer.out, f"{name}: {answer}")
        names = [s["name"] for s in daemon.query("snapshot", "list", "web")]
        demand(name not in names, f"{name}: failed, and the snapshot is there")
    before = writer.n
    wait_for(lambda: writer.n > before + 2, f"{name}: the guest's I/O is held")
    demand(writer.worst < 5, f"{name}: the guest waited {writer.worst:.1f} s")
    writer.end()
    agent.gone(daemon)


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "disk.vhd"), "--name", "disk",
                   "--create", "16M")
        good_agent(daemon)
        shutdown_timeout(daemon)
        for how in ("no", "silent", "die"):
            bad_agent(daemon, "pause", how, memory=False, taken=False)
            bad_agent(daemon, "save", how, memory=False, taken=False)
            bad_agent(daemon, "resume", how, memory=True, taken=True)
        memories = [path for path, _, files in os.walk(folder) for f in files if f == "memory"]
        # Those of the three whose agent only did not resume; that of "warm" went with it.
        demand(len(memories) == 3, f"saved memory in {memories}")
        daemon.stop()
    print("agent: asked in order, waited for in bounds; the guest's I/O went on")


if __name__ == "__main__":
    daemonlib.run("agent", test)
