#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""snapshot-memory - snapshots together with a guest's memory, or with its file systems frozen.

Memory and disks belong together: a snapshot that was to have memory and has none is not there at all,
whoever died, and what the guest wrote meanwhile is. A memory is never gone on from over disks that have
moved on. A guest that was frozen or paused thaws and goes on in every case."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from agentlib import MEMORY, Agent, Refusal, Writer, wait_for  # noqa: E402
from daemonlib import demand  # noqa: E402

VERBS = ("pause", "resume", "save", "start", "stop", "freeze", "thaw")


def new_agent(daemon, behaviour=None, verbs=VERBS, timeout=5, on=True):
    return Agent(daemon.control, "web", behaviour, verbs=verbs, timeout=timeout, on=on)


def names(daemon):
    return [s["name"] for s in daemon.query("snapshot", "list", "web")]


def saved_files(folder):
    return sorted(os.path.join(path, f) for path, _, files in os.walk(folder) for f in files
                  if f == "memory")


def merged_back(daemon, depth=1):
    """The disk is as deep as it was, and no file is left over."""
    wait_for(lambda: daemon.show("disk", "web", "disk")["depth"] == depth,
             "its disks were not merged back")


def pauses(daemon, folder):
    """How long the guest stood still: the agent's word, else what the daemon saw."""
    def save(_agent, _request, fd):
        os.write(fd, MEMORY)
        return {"pause-us": 12345}

    agent = new_agent(daemon, {"save": save})
    got = daemon.query("snapshot", "take", "web", "told")
    demand(got["pause-us"] == 12345 and got["memory"] and got["consistency"] == "memory", f"{got}")
    agent.behaviour.clear()
    got = daemon.query("snapshot", "take", "web", "measured")
    demand(0 < got["pause-us"] < 30000000, f"{got}")
    text = daemon.ctl("snapshot", "take", "web", "shown").out
    demand("the guest stood still for" in text and "memory" in text, text)
    demand(agent.asked == ["pause", "save", "resume"] * 3, f"asked for {agent.asked}")
    # One that a person has paused stays so.
    agent.gone(daemon)
    agent = new_agent(daemon, {"describe": lambda *_: {"state": "paused"}}, verbs=VERBS + ("describe",))
    got = daemon.query("snapshot", "take", "web", "paused")
    demand(got["memory"] and "pause-us" not in got, f"{got}")
    demand(agent.asked == ["describe", "save"], f"asked for {agent.asked}")
    # Its file is another's to copy, once.
    out = os.path.join(folder, "out.memory")
    for path in saved_files(folder):
        with open(os.path.join(os.path.dirname(path), "settings.json"), encoding="utf-8") as f:
            demand([d["name"] for d in json.load(f)["disks"]] == ["disk"], f"{path}: without settings")
    daemon.ctl("snapshot", "memory", "web", "told", "--output", out, "--dry-run")
    demand(not os.path.exists(out), "a dry run made a file")
    daemon.ctl("snapshot", "memory", "web", "told", "--output", out)
    with open(out, "rb") as f:
        demand(f.read() == MEMORY, "what was copied is not the memory")
    refused = daemon.try_ctl("snapshot", "memory", "web", "told", "--output", out)
    demand(refused.status == 3 and "is there already" in refused.err, f"{refused}")
    demand(daemon.try_ctl("snapshot", "memory", "web", "told").status == 2, "no --output, and done")
    daemon.ctl("snapshot", "take", "web", "bare", "--disks-only")
    shown = daemon.show("snapshot", "web", "bare")
    demand(shown["consistency"] == "crash" and not shown["memory"], f"{shown}")
    refused = daemon.try_ctl("snapshot", "memory", "web", "bare", "--output", out + "2")
    demand(refused.status == 3 and "has no memory" in refused.err, f"{refused}")
    for name in ("told", "measured", "shown", "paused", "bare"):
        daemon.ctl("snapshot", "delete", "web", name, "--wait")
    merged_back(daemon)
    left = os.listdir(os.path.join(folder, "Snapshots"))
    demand(not left, f"left over: {left}")
    agent.gone(daemon)


def failed_saves(daemon, folder):
    """Undone, and the guest goes on. What it wrote since the switch is there."""
    for how, sentence in (("no", "does not want to"), ("silent", "within 1 s"), ("die", "went away")):
        agent = new_agent(daemon, {"save": how}, timeout=1)
        writer = Writer(daemon.connect("web/disk"))
        writer.start()
        got = daemon.try_ctl("snapshot", "take", "web", "never")
        demand(got.status == 3 and sentence in got.err and "was not taken" in got.err and
               got.is_one_sentence(), f"{how}: {got}")
        demand(names(daemon) == [], f"{how}: {names(daemon)}")
        demand(how == "die" or agent.asked == ["pause", "save", "resume"], f"asked for {agent.asked}")
        n = writer.n
        wait_for(lambda: writer.n > n + 3 or writer.error, f"{how}: the guest stands still")
        writer.end()
        merged_back(daemon)
        handle = daemon.connect("web/disk")
        demand(handle.pread(8, 4096) == writer.n.to_bytes(8, "little"), f"{how}: a write is lost")
        daemonlib.leave(handle)
        demand(not saved_files(folder), f"left over: {saved_files(folder)}")
        left = [f for f in os.listdir(folder) if f.endswith(".avhd")]
        demand(not left, f"{how}: left over: {left}")
        agent.gone(daemon)
    snapshots = os.path.join(folder, "Snapshots")
    demand(not os.path.isdir(snapshots) or os.listdir(snapshots) == [], "empty folders are left")


def successor(daemon):
    """The agent dies once its guest is paused, and another is there before the disks are switched: it may have let
    the guest go on, so its memory would be of another moment than the disks."""
    second = []

    def pause(agent, request, _fd):
        worker = daemon.worker("web")
        os.kill(worker, signal.SIGSTOP)
        try:
            agent.send("agent.reply", request=request["request"], result={})
            time.sleep(0.2)  # it is taken before the connection's end is
            agent.gone(daemon)
            second.append(new_agent(daemon))
        finally:
            os.kill(worker, signal.SIGCONT)
        raise OSError("it is gone")

    first = new_agent(daemon, {"pause": pause})
    got = daemon.try_ctl("snapshot", "take", "web", "never")
    demand(got.status == 3 and "went away" in got.err and got.is_one_sentence(), f"{got}")
    demand(first.requests[0].get("for") == "snapshot", f"{first.requests}")
    demand("save" not in second[0].asked, f"the second agent was asked for {second[0].asked}")
    demand(names(daemon) == [], f"{names(daemon)}")
    merged_back(daemon)
    second[0].gone(daemon)


def full_disk(daemon, folder):
    """No room for the memory."""
    mount = os.path.join(folder, "small")
    os.mkdir(mount)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount],
                      stderr=subprocess.DEVNULL).returncode:
        print("snapshot-memory: a full file system is not tried: it takes a mount")
        return

    def save(_agent, _request, fd):
        try:
            while True:
                os.write(fd, MEMORY)
        except OSError as e:
            raise Refusal(f"cannot write: {e.strerror}") from None

    try:
        daemon.ctl("vm", "set", "web", "--snapshot-dir", mount)
        agent = new_agent(daemon, {"save": save})
        got = daemon.try_ctl("snapshot", "take", "web", "never")
        demand(got.status == 3 and "No space left" in got.err and got.is_one_sentence(), f"{got}")
        demand(names(daemon) == [] and os.listdir(mount) == [], f"left over: {os.listdir(mount)}")
        merged_back(daemon)
        agent.behaviour.clear()
        daemon.ctl("snapshot", "take", "web", "fits")
        daemon.ctl("snapshot", "delete", "web", "fits", "--wait")
        merged_back(daemon)
        agent.gone(daemon)
    finally:
        daemon.ctl("vm", "set", "web", "--snapshot-dir", os.path.join(folder, "Snapshots"))
        subprocess.run(["umount", "-l", mount], check=True)


class Held:
    """A save that waits to be let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, _agent, _request, fd):
        os.write(fd, MEMORY)
        self.begun.set()
        self.go.wait(60)


def while_it_is_saved(daemon):
    """It may take minutes: the vm's worker dies and gets a successor, clients come, a disk comes and
    goes, another snapshot is taken. The one that is being saved is not seen."""
    held = Held()
    agent = new_agent(daemon, {"save": held}, timeout=60)
    call = daemon.begin("snapshot.take", vm="web", name="slow")
    demand(held.begun.wait(30), "nobody saves")
    demand(names(daemon) == [], "it is there before its memory is")
    demand(daemon.try_ctl("snapshot", "apply", "web", "slow").status == 3, "half a snapshot is applied")
    refused = daemon.try_ctl("snapshot", "take", "web", "second")
    demand(refused.status == 3 and "is being saved" in refused.err, f"{refused}")
    os.kill(daemon.worker("web"), signal.SIGKILL)
    handle = daemon.connect("web/disk")
    handle.pwrite(b"meanwhile" + bytes(503), 8192)
    handle.flush()
    daemon.ctl("snapshot", "take", "web", "beside", "--disks-only")
    demand(call.poll() is None, "it was not waited for")
    held.go.set()
    got = daemon.finish(call)
    demand(got.status == 0 and got.json()["memory"], f"{got}")
    demand(sorted(names(daemon)) == ["beside", "slow"], f"{names(daemon)}")
    demand(handle.pread(9, 8192) == b"meanwhile", "a write is lost")
    daemonlib.leave(handle)
    before = daemon.connect("web/disk@slow")
    demand(before.pread(9, 8192) == bytes(9), "the snapshot moved on with its disk")
    daemonlib.leave(before)
    for name in ("beside", "slow"):
        daemon.ctl("snapshot", "delete", "web", name, "--wait")
    merged_back(daemon)
    agent.gone(daemon)


def broker_dies(daemon, folder):
    """At each step: the next broker finds it whole, or undoes it."""
    for verb in ("pause", "save", "resume"):
        def die(agent, _request, fd, verb=verb):
            if verb == "save":
                os.write(fd, MEMORY)
            daemon.kill_broker()
            raise OSError("the broker is gone")

        agent = new_agent(daemon, {verb: die})
        handle = daemon.connect("web/disk")
        handle.pwrite(verb.encode() + bytes(512 - len(verb)), 0)
        got = daemon.try_ctl("snapshot", "take", "web", verb)
        demand(got.status == 3, f"{verb}: {got}")
        handle.pwrite(b"after" + bytes(507), 512)
        daemon.start()
        handle.flush()  # one behind a switch is answered when the catalog knows of it
        demand(handle.pread(len(verb), 0) == verb.encode(), f"{verb}: a write is lost")
        demand(handle.pread(5, 512) == b"after", f"{verb}: a write is lost")
        daemonlib.leave(handle)
        # Only once its memory is the snapshot's is it there.
        demand(names(daemon) == [], f"{verb}: {names(daemon)}")
        merged_back(daemon)
        demand(not saved_files(folder), f"{verb}: left over: {saved_files(folder)}")
        left = os.listdir(os.path.join(folder, "Snapshots"))
        demand(not left, f"{verb}: empty folders are left: {left}")
        agent.leave()


def quiesced(daemon):
    agent = new_agent(daemon)
    got = daemon.query("snapshot", "take", "web", "quiet", "--quiesce")
    demand(got["consistency"] == "filesystem" and not got["memory"], f"{got}")
    demand(agent.asked == ["freeze", "thaw"], f"asked for {agent.asked}")
    demand("quiesced" in daemon.ctl("snapshot", "list", "web").out, "the list does not show it")
    for how in ("no", "silent", "die"):
        agent.behaviour["freeze"] = how
        agent.asked.clear()
        got = daemon.try_ctl("snapshot", "take", "web", "never", "--quiesce")
        demand(got.status == 3 and names(daemon) == ["quiet"] and got.is_one_sentence(), f"{how}: {got}")
        # Whether it did, when it does not say, nobody knows.
        demand(how == "die" or agent.asked == ["freeze", "thaw"], f"{how}: asked for {agent.asked}")
    agent.gone(daemon)
    for how in ("no", "die"):
        agent = new_agent(daemon, {"thaw": how})
        daemon.ctl("snapshot", "take", "web", how, "--quiesce")
        agent.gone(daemon)
    # The worker dies under frozen file systems: they thaw, and it is one thing or the other.
    agent = new_agent(daemon)

    def freeze(*_):
        os.kill(daemon.worker("web"), signal.SIGKILL)

    agent.behaviour["freeze"] = freeze
    daemon.try_ctl("snapshot", "take", "web", "mortal", "--quiesce")
    demand(agent.asked.count("freeze") == agent.asked.count("thaw") >= 1, f"asked for {agent.asked}")
    agent.gone(daemon)
    agent = new_agent(daemon, verbs=("pause", "resume", "save"))
    got = daemon.try_ctl("snapshot", "take", "web", "never", "--quiesce")
    demand(got.status == 3 and "freeze" in got.err, f"{got}")
    agent.gone(daemon)
    # Nobody runs: nothing is to be frozen.
    got = daemon.query("snapshot", "take", "web", "off", "--quiesce")
    demand(got["consistency"] == "crash", f"{got}")
    for name in names(daemon):
        daemon.ctl("snapshot", "delete", "web", name, "--wait")
    merged_back(daemon)


def late_switch(daemon):
    """Frozen for longer than the agent's own timer lets: no snapshot of frozen file systems."""
    agent = new_agent(daemon, timeout=20)

    def freeze(*_):
        time.sleep(9.2)  # what a guest may take; the daemon's limit for it is 10 s

    agent.behaviour["freeze"] = freeze
    got = daemon.try_ctl("snapshot", "take", "web", "late", "--quiesce")
    demand(got.status == 3 and "before the guest's file systems thawed" in got.err, f"{got}")
    demand(names(daemon) == [] and agent.asked == ["freeze", "thaw"], f"{names(daemon)}, {agent.asked}")
    merged_back(daemon)
    agent.gone(daemon)


def going_on(daemon):
    """Apply and start: memory and disks together, and never over disks that have moved on."""
    agent = new_agent(daemon)
    daemon.ctl("snapshot", "take", "web", "warm")
    # On: at once.
    got = daemon.query("snapshot", "apply", "web", "warm")
    demand(got["memory"] and not got["error"], f"{got}")
    wait_for(lambda: agent.restored == MEMORY, f"it started from {agent.restored}")
    disk = daemon.show("disk", "web", "disk")
    demand(agent.requests[-1]["disks"] == [{"id": disk["id"], "at": disk["at"]}], f"{agent.requests[-1]}")
    # Disks only: it starts from nothing.
    agent.restored = None
    got = daemon.query("snapshot", "apply", "web", "warm", "--disks-only")
    wait_for(lambda: agent.asked[-2:] == ["stop", "start"] and daemon.show("vm", "web")["on"],
             f"asked for {agent.asked}")
    demand(not got["memory"] and agent.restored is None and
           agent.requests[-1]["from-memory"] is False, f"{agent.requests[-1]}")
    # It cannot start: the apply is done, and says so; the next start goes on from the memory.
    agent.behaviour["start"] = "no"
    got = daemon.query("snapshot", "apply", "web", "warm")
    demand("does not want to" in got["error"], f"{got}")
    demand(daemon.show("vm", "web")["resumes-from"] == "warm", "the memory is forgotten")
    agent.behaviour.clear()
    daemon.ctl("vm", "start", "web")
    demand(agent.restored == MEMORY and daemon.show("vm", "web")["resumes-from"] is None,
           "it did not start from the memory")
    wait_for(lambda: daemon.show("vm", "web")["on"], "it is off")
    daemon.ctl("vm", "stop", "web")
    # Off: the next start, once.
    for what in ("start", "dies", "write", "attach", "resize"):
        wait_for(lambda: not daemon.show("vm", "web")["on"], "it is on")
        daemon.ctl("snapshot", "apply", "web", "warm")
        demand(daemon.show("vm", "web")["resumes-from"] == "warm", f"{what}: it is not said")
        agent.restored = None
        if what == "dies":
            agent.behaviour["start"] = "die"
            demand(daemon.try_ctl("vm", "start", "web").status == 3, "a dead agent started it")
            agent.gone(daemon)
            agent = new_agent(daemon, on=False)
        elif what == "write":
            handle = daemon.connect("web/disk")
            handle.pwrite(bytes(512), 0)
            daemonlib.leave(handle)
        elif what == "attach":
            daemon.ctl("disk", "attach", "web", os.path.join(daemon.folder, "more.vhd"), "--create", "8M")
            daemon.ctl("disk", "detach", "web", "more")
        elif what == "resize":
            daemon.ctl("disk", "resize", "web", "disk", "+1M", "--force")
        daemon.ctl("vm", "start", "web")
        demand((agent.restored == MEMORY) == (what == "start"), f"{what}: from {agent.restored}")
        demand(daemon.show("vm", "web")["resumes-from"] is None, f"{what}: it would be used twice")
        wait_for(lambda: daemon.show("vm", "web")["on"], "it is off")
        daemon.ctl("vm", "stop", "web")
    # A reader takes nothing away.
    wait_for(lambda: not daemon.show("vm", "web")["on"], "it is on")
    daemon.ctl("snapshot", "apply", "web", "warm")
    handle = daemon.connect("web/disk@now")
    handle.pread(512, 0)
    daemonlib.leave(handle)
    demand(daemon.show("vm", "web")["resumes-from"] == "warm", "a reader made it forget")
    daemon.ctl("snapshot", "delete", "web", "warm", "--wait")
    demand(daemon.show("vm", "web")["resumes-from"] is None, "from a snapshot that is gone")
    agent.gone(daemon)


def in_a_copy(daemon, folder):
    """Its disks have other ids than the memory that came along knows: its agent is told which is which.
    Beside that memory stand the settings, of the place where it is."""
    agent = new_agent(daemon)
    daemon.ctl("snapshot", "take", "web", "warm")
    daemon.ctl("vm", "stop", "web")
    wait_for(lambda: not daemon.show("vm", "web")["on"], "it is on")
    agent.gone(daemon)
    out, copied = os.path.join(folder, "out"), os.path.join(folder, "copied")
    files = daemon.query("vm", "export", "web", out)["files"]
    daemon.ctl("vm", "import", out, "--copy", "--to", copied, "--name", "copied")
    daemon.ctl("snapshot", "apply", "copied", "warm")
    agent = Agent(daemon.control, "copied", verbs=VERBS, on=False)
    daemon.ctl("vm", "start", "copied")
    disk = daemon.show("disk", "copied", "disk")
    demand(disk["id"] != daemon.show("disk", "web", "disk")["id"], "the copy of a disk has its id")
    demand(agent.restored == MEMORY and
           agent.requests[-1]["disks"] == [{"id": disk["id"], "at": disk["at"]}], f"{agent.requests[-1]}")
    for place, vm in ((out, "web"), (copied, "copied")):
        memory, = saved_files(place)
        beside = os.path.join(os.path.dirname(memory), "settings.json")
        demand(place != out or beside in files, f"{beside} is not among {files}")
        with open(beside, encoding="utf-8") as f:
            said, = json.load(f)["disks"]
        demand(said["id"] == daemon.show("disk", vm, "disk")["id"] and os.path.exists(said["file"]) and
               said["file"].startswith(place + "/"), f"{beside} says {said}")
    wait_for(lambda: daemon.show("vm", "copied")["on"], "it is off")
    daemon.ctl("vm", "stop", "copied")
    wait_for(lambda: not daemon.show("vm", "copied")["on"], "it is on")
    agent.leave()
    daemon.ctl("vm", "remove", "copied", "--delete-files")
    demand(not saved_files(copied) and not [f for _, _, names in os.walk(copied) for f in names],
           "a removed copy leaves files behind")
    daemon.ctl("snapshot", "delete", "web", "warm", "--wait")
    shutil.rmtree(out)


def what_would_be_lost(daemon):
    """--save-current of a vm that is on: with its memory, before it is stopped."""
    agent = new_agent(daemon)
    daemon.ctl("snapshot", "take", "web", "one")
    agent.asked.clear()
    got = daemon.query("snapshot", "apply", "web", "one", "--save-current", "two")
    demand(got["saved"] == "two" and got["snapshot"] == "one", f"{got}")
    demand(agent.asked == ["pause", "save", "resume", "stop", "start"], f"asked for {agent.asked}")
    demand(daemon.show("snapshot", "web", "two")["memory"], "without its memory")
    demand(daemon.query("snapshot", "tree", "web")["current"] == daemon.show("snapshot", "web", "one")["id"],
           "it stands elsewhere")
    agent.asked.clear()
    got = daemon.try_ctl("snapshot", "revert", "web", "--save-current", "two")
    demand(got.status == 3 and agent.asked == [], f"{got}, asked for {agent.asked}")
    daemon.ctl("snapshot", "revert", "web", "--save-current", "three")
    demand(daemon.query("snapshot", "tree", "web")["current"] == daemon.show("snapshot", "web", "one")["id"],
           "a revert goes to the snapshot that was made of what was lost")
    agent.gone(daemon)


def test(folder):
    with daemonlib.Daemon(folder) as daemon:
        daemon.start()
        daemon.ctl("vm", "create", "web")
        daemon.ctl("disk", "attach", "web", os.path.join(folder, "disk.vhd"), "--name", "disk",
                   "--create", "16M")
        pauses(daemon, folder)
        failed_saves(daemon, folder)
        successor(daemon)
        full_disk(daemon, folder)
        while_it_is_saved(daemon)
        broker_dies(daemon, folder)
        quiesced(daemon)
        late_switch(daemon)
        going_on(daemon)
        in_a_copy(daemon, folder)
        what_would_be_lost(daemon)
        daemon.stop()
    print("snapshot-memory: whole or not there, and the guest went on")


if __name__ == "__main__":
    daemonlib.run("snapshot-memory", test)
