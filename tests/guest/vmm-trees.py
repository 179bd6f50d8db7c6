#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-trees - a guest of vmm-host's goes to and fro in its snapshot tree, and its exports run elsewhere.

    vmm-trees.py [CASE...]

How the guest is made and what runs in it: vmmlib.py. A moment is a name that the guest has in its memory and
on each of its disks; beside it each disk keeps the names of all moments before, one a slot. What could go
wrong: memory and disk of two moments, a branch that shows what was written on another one, a merge that loses
what a guest reads, a copy that stands on the original or cannot go on from the memory that came with it.
Cases (all without an argument): export tree
Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""


import itertools
import json
import os
import shutil
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vmmlib  # noqa: E402
from vmmlib import NAME, Vm, demand, wait_until  # noqa: E402

DISKS = {"data": "sda", "root": "sdb"}  # as the guest calls them
FILES = {"data": "data.vhd", "root": "root.vhd"}
SLOTS = ("a", "b", "later", "c", "d", "e", "f", "g")
LINE, SLOT = 64, 4096
NOW_AT, NOW_SLOTS, SLOTS_AT = 2048, 96, 4096  # in slots: the last moment from 8 MiB on, all of them from 16 MiB
BULK_MIB = 5
BULK = f"cat /bin/busybox /bin/busybox /bin/busybox | head -c {BULK_MIB << 20}"

# mark NAME SLOT: one line again and again, so that a piece of another moment is seen wherever it is.
MARK = f"""\
fill() {{
    yes "$1" | head -c $3 |
        dd of=/dev/$2 bs={SLOT} seek=$4 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null
}}
echo $1 > /tmp/moment
for d in {' '.join(DISKS.values())}; do
    line=$(printf '%-{LINE - 1}s' $1@$d)
    fill "$line" $d {NOW_SLOTS * SLOT} {NOW_AT} && fill "$line" $d {SLOT} $(({SLOTS_AT} + $2)) || exit 1
done
"""

# What the disks hold, past the guest's cache: each line, how often in a row. Zeros are empty lines.
SEEN = f"""\
look() {{ dd if=/dev/$1 bs={SLOT} skip=$2 count=$3 iflag=direct 2>/dev/null | tr '\\000' '\\n' | uniq -c; }}
for d in {' '.join(DISKS.values())}; do
    echo now $(look $d {NOW_AT} {NOW_SLOTS})
    echo slots $(look $d {SLOTS_AT} {len(SLOTS)})
done
"""


def put_scripts(vm):
    vm.put("/tmp/mark", MARK)
    vm.put("/tmp/seen", SEEN)


def mark(vm, name):
    vm.inside(f"sh /tmp/mark {name} {SLOTS.index(name)}")


def put_bulk(vm, at):
    """Some MiB from @at MiB on, so that a merge has something to do whatever its direction."""
    vm.inside(f"for d in {' '.join(DISKS.values())}; do {BULK} | "
              f"dd of=/dev/$d bs=1M seek={at} iflag=fullblock oflag=direct conv=notrunc || exit 1; done")


def check_bulk(vm, at):
    vm.inside(f"sum=$({BULK} | md5sum); for d in {' '.join(DISKS.values())}; do "
              f"[ \"$(dd if=/dev/$d bs=1M skip={at} count={BULK_MIB} iflag=direct | md5sum)\" = \"$sum\" ] || "
              "exit 1; done")


def expected(moments):
    """What SEEN says on a disk that went through @moments."""
    def lines(disk):
        held = [f"{m}@{disk}" if m in moments else "" for m in SLOTS]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(held)]
        return " ".join(f"{n * SLOT // (LINE if name else 1)} {name}".strip() for name, n in runs)

    return "\n".join(f"now {NOW_SLOTS * SLOT // LINE} {moments[-1]}@{disk}\nslots {lines(disk)}"
                     for disk in DISKS.values())


def check_disks(vm, *moments):
    got = vm.inside("sh /tmp/seen")
    demand(got == expected(moments), f"the disks of '{vm.name}' are not of {moments}:\n{got}\n"
                                     f"but should be\n{expected(moments)}\n{vm.daemon.tail()}")


def check(vm, *moments):
    """Memory and disks are of the last of @moments, which lead there, and the journal goes on."""
    memory = vm.inside("cat /tmp/moment")
    demand(memory == moments[-1], f"the memory of '{vm.name}' is of '{memory}', not of '{moments[-1]}'")
    check_disks(vm, *moments)
    vm.await_progress()


def check_tree(vm, current, **parents):
    """The snapshots are those in @parents ({name: parent}), and the running state descends from @current."""
    tree = vm.daemon.query("snapshot", "tree", vm.name)
    listed = vm.daemon.query("snapshot", "list", vm.name)
    names = {s["id"]: s["name"] for s in tree["snapshots"]}
    got = {s["name"]: names.get(s["parent"]) for s in tree["snapshots"]}
    demand(got == parents, f"the tree is {got}, not {parents}")
    demand(names.get(tree["current"]) == current, f"current is {names.get(tree['current'])}, not {current}")
    demand([(s["name"], s["parent"], s["current"]) for s in listed] ==
           [(s["name"], s["parent"], s["name"] == current) for s in tree["snapshots"]],
           f"the list says {listed}, the tree {tree}")


def merges(vm, *states):
    """Its merges that are in one of @states."""
    return [job for job in vm.daemon.query("job", "list") if job["kind"] == "merge" and
            job["vm"] == vm.name and job["state"] in states]


def await_merged(vm):
    wait_until(lambda: not merges(vm, "waiting", "running", "paused"),
               lambda: f"the merges do not end: {vm.daemon.query('job', 'list')}\n{vm.daemon.tail()}")
    demand(not merges(vm, "failed"), f"{merges(vm, 'failed')}")


def depths(vm):
    return {disk: vm.daemon.show("disk", vm.name, disk)["depth"] for disk in DISKS}


def tree(vm):
    """To and fro between two branches, with deletions live, deferred, and overtaken by a start."""
    vm.begin()
    put_scripts(vm)
    mark(vm, "a")
    vm.ctl("snapshot", "take", NAME, "a")
    mark(vm, "b")
    vm.ctl("snapshot", "take", NAME, "b")
    mark(vm, "later")
    vm.await_progress()
    vm.apply("a")
    check(vm, "a")
    check_tree(vm, "a", begin=None, a="begin", b="a")
    mark(vm, "later")
    check(vm, "a", "later")
    vm.ctl("snapshot", "revert", NAME)
    vm.connect()
    check(vm, "a")
    check_tree(vm, "a", begin=None, a="begin", b="a")

    # The second branch, and one out of its middle while the guest runs.
    mark(vm, "c")
    vm.ctl("snapshot", "take", NAME, "c")
    mark(vm, "d")
    vm.ctl("snapshot", "take", NAME, "d")
    mark(vm, "later")
    check_tree(vm, "d", begin=None, a="begin", b="a", c="a", d="c")
    before = depths(vm)
    vm.ctl("snapshot", "delete", NAME, "c", "--wait")
    check(vm, "a", "c", "d", "later")
    check_tree(vm, "d", begin=None, a="begin", b="a", d="a")
    demand(depths(vm) == {disk: n - 1 for disk, n in before.items()}, f"{before} became {depths(vm)}")
    vm.apply("d")
    check(vm, "a", "c", "d")
    vm.apply("b")
    check(vm, "a", "b")
    check_tree(vm, "b", begin=None, a="begin", b="a", d="a")

    # Deferred: nothing moves as long as it is on, and all when it is off.
    mark(vm, "e")
    vm.ctl("snapshot", "take", NAME, "e")
    mark(vm, "later")
    before = depths(vm)
    vm.ctl("snapshot", "delete", NAME, "b", "--merge", "deferred")
    check_tree(vm, "e", begin=None, a="begin", d="a", e="a")
    check(vm, "a", "b", "e", "later")
    demand(len(merges(vm, "waiting")) == len(DISKS) and depths(vm) == before,
           f"a deferred merge has begun: {merges(vm, 'running', 'done')}")
    power_off(vm)
    await_merged(vm)
    demand(depths(vm) == {disk: n - 1 for disk, n in before.items()}, f"{before} became {depths(vm)}")
    vm.apply("e")
    check(vm, "a", "b", "e")
    vm.apply("d")
    check(vm, "a", "c", "d")

    # One that a start overtakes: it has begun, slowly, and goes on under the guest.
    put_bulk(vm, 20)
    mark(vm, "f")
    vm.ctl("snapshot", "take", NAME, "f")
    put_bulk(vm, 40)
    mark(vm, "g")
    vm.ctl("snapshot", "delete", NAME, "f", "--merge", "deferred")
    for job in merges(vm, "waiting"):
        vm.ctl("job", "limit", str(job["id"]), "16K")
    power_off(vm)
    wait_until(lambda: len(merges(vm, "running")) == len(DISKS),
               lambda: f"no merge begins when it is off: {vm.daemon.query('job', 'list')}")
    vmmlib.start(vm)
    vm.connect()
    put_scripts(vm)
    check_disks(vm, "a", "c", "d", "f", "g")
    running = merges(vm, "running")
    demand(len(running) == len(DISKS) and vm.show()["on"], f"no merge goes on under the guest: {running}")
    mark(vm, "later")
    for job in running:
        vm.ctl("job", "limit", str(job["id"]), "0")
    await_merged(vm)
    check_disks(vm, "a", "c", "d", "f", "g", "later")
    check_bulk(vm, 20)
    check_bulk(vm, 40)
    check_tree(vm, "d", begin=None, a="begin", d="a", e="a")

    # All of them go, under the guest: "a" first, on which two stand.
    for name in ("a", "e", "d", "begin"):
        vm.ctl("snapshot", "delete", NAME, name)
    await_merged(vm)
    check_disks(vm, "a", "c", "d", "f", "g", "later")
    vm.check()
    check_tree(vm, None)
    one_file_each(vm)


def power_off(vm):
    vm.guest.send("poweroff -f")
    vm.await_state("off")
    vm.disconnect()


def one_file_each(vm):
    for disk, file in FILES.items():
        shown = vm.daemon.show("disk", vm.name, disk)
        demand(shown["file"] == vm.path(file) and shown["depth"] == 1, f"{shown}")
    left = [os.path.join(path, f) for path, _, files in os.walk(vm.folder) for f in files
            if f.endswith(".avhd") or f in ("memory", "settings.json")]
    demand(not left, f"left over: {left}")


class Imported(Vm):
    """A vm out of @source: a copy in a folder of its name, or @moved, where it lies."""

    def __init__(self, vm, name, source, moved=False):
        super().__init__(vm.daemon, source if moved else vm.path(name), name)
        how = ("--move",) if moved else ("--copy", "--to", self.folder)
        answer = vm.daemon.query("vm", "import", source, "--name", name, *how)
        self.id, self.failed = self.show()["id"], None
        demand(self.id == answer["id"], f"{answer}, and the vm {self.show()}")

    def boot(self, *moments):
        """From its disks; @moments: what they went through."""
        vmmlib.start(self)
        self.connect()
        self.put("/tmp/seen", SEEN)
        check_disks(self, *moments)
        self.check()

    def boot_safely(self, *moments):
        """On a thread: what is wrong is in .failed."""
        try:
            self.boot(*moments)
        except Exception as e:  # a thread's failure is the test's
            self.failed = e

    def stop(self):
        self.disconnect()
        self.ctl("vm", "stop", self.name)
        demand(not self.show()["on"], f"'{self.name}' was stopped and is on")

    def check_own(self):
        """Nothing of it lies in another vm's folder."""
        for disk in DISKS:
            for layer in self.daemon.show("disk", self.name, disk)["layers"]:
                demand(layer["file"].startswith(self.folder + "/"), f"'{self.name}' stands on {layer}")


def go_on(vm, *moments):
    """Its next start is from memory."""
    wait_until(lambda: vm.show()["agent"], f"vm '{vm.name}' got no supervisor")
    vm.ctl("vm", "start", vm.name)
    vm.connect()
    check(vm, *moments)


def export(vm):
    """Exports of a running vm, of one that is off, of a snapshot, of the settings alone: each is imported,
    and its guest sees what it should."""
    vm.begin()
    put_scripts(vm)
    mark(vm, "a")
    vm.ctl("snapshot", "take", NAME, "a")
    mark(vm, "b")
    live, off, flat, bare = (vm.path(name) for name in ("live", "off", "flat", "bare"))
    answer = vm.ctl("vm", "export", NAME, live, status=3)
    demand("--live" in answer.err and answer.is_one_sentence() and not os.path.exists(live), f"{answer}")
    before = depths(vm)
    vm.ctl("vm", "export", NAME, live, "--live")
    vm.ctl("vm", "export", NAME, bare, "--config-only")
    await_merged(vm)  # what it was frozen with
    vm.ctl("snapshot", "export", NAME, "a", flat)
    check(vm, "a", "b")
    check_tree(vm, "a", begin=None, a="begin")
    demand(depths(vm) == before, f"an export has left its snapshot behind: {depths(vm)}, not {before}")
    mark(vm, "later")
    vm.ctl("vm", "pause", NAME)
    refuse_imports(vm, live, bare)

    one, two = Imported(vm, "one", live), Imported(vm, "two", live)
    then = Imported(vm, "then", flat, moved=True)
    demand(len({vm.show()["id"], one.id, two.id, then.id}) == 4, "vms share an id")
    for copy in (one, two):
        check_tree(copy, "a", begin=None, a="begin")
        check_settings(copy)
    check_tree(then, None)

    # From their disks, at once: what the vm was when it was exported, and what it was at the snapshot.
    boots = [threading.Thread(target=copy.boot_safely, args=moments) for copy, moments in
             ((one, ("a", "b")), (then, ("a",)))]
    for thread in boots:
        thread.start()
    for thread in boots:
        thread.join()
    for copy in (one, then):
        demand(copy.failed is None, f"'{copy.name}': {copy.failed}")
        copy.check_own()
    then.stop()
    one.stop()

    # From the memory that came along. One of them is exported once more when it is to go on from memory, and
    # its vm comes back as what it was.
    two.ctl("snapshot", "apply", "two", "a")
    go_on(two, "a")
    mark(two, "c")
    check(two, "a", "c")
    two.check_own()
    one.ctl("snapshot", "apply", "one", "a")
    one.ctl("vm", "export", "one", off)
    refused = vm.ctl("vm", "import", off, "--move", "--name", "moved", status=3)
    demand(one.id in refused.err and "already" in refused.err, f"{refused}")
    one.ctl("vm", "remove", "one", "--delete-files")
    moved = Imported(vm, "moved", off, moved=True)
    demand(moved.id == one.id, "a vm that was moved has another id")
    check_tree(moved, "a", begin=None, a="begin")
    check_settings(moved)
    demand(moved.show()["resumes-from"] == "a", f"{moved.show()}")
    go_on(moved, "a")
    moved.check_own()
    moved.apply("begin")
    moved.await_progress()

    vm.ctl("vm", "resume", NAME)
    check(vm, "a", "b", "later")
    for copy in (then, two, moved):
        if copy.show()["on"]:
            copy.stop()
        copy.ctl("vm", "remove", copy.name, "--delete-files")
    check(vm, "a", "b", "later")
    vm.apply("a")
    check(vm, "a")
    vm.ctl("snapshot", "delete", NAME, "a", "--wait")
    # What stood at the bottom where the user had put it is his.
    for folder, kept in ((one.folder, []), (two.folder, []), (flat, FILES.values()), (off, FILES.values())):
        left = [f for _, _, files in os.walk(folder) for f in files]
        demand(sorted(left) == sorted(kept), f"a removed vm leaves in {folder}: {left}")
    for folder in (live, bare, flat, off):
        shutil.rmtree(folder)


def refuse_imports(vm, live, bare):
    """What is there twice, and settings without the images that they name."""
    refused = vm.ctl("vm", "import", live, "--move", "--name", "moved", status=3)
    demand(vm.show()["id"] in refused.err and "--copy" in refused.err, f"{refused}")
    demand(os.listdir(bare) == [f"{NAME}.vhdd.json"], f"the settings alone are {os.listdir(bare)}")
    for how in ("--copy", "--move"):
        refused = vm.ctl("vm", "import", bare, how, "--name", "bare", status=3)
        demand(refused.is_one_sentence() and vm.folder in refused.err, f"{refused}")


def check_settings(vm):
    """Beside each memory stand the settings, and the disks where they are now."""
    disks = {disk["id"]: disk["name"] for disk in vm.daemon.query("disk", "list", vm.name)}
    memories = [os.path.join(path, "settings.json") for path, _, files in os.walk(vm.folder)
                if "memory" in files]
    demand(len(memories) == 2, f"'{vm.name}' has {memories}")
    for path in memories:
        demand(os.path.exists(path), f"there is no {path}")
        with open(path, encoding="utf-8") as f:
            said = json.load(f)
        demand({disk["id"]: disk["name"] for disk in said["disks"]} == disks and
               all(os.path.exists(disk["file"]) and disk["file"].startswith(vm.folder + "/")
                   for disk in said["disks"]) and said["settings"] == vm.show()["settings"],
               f"{path} says {said}, and the vm has {disks}")


CASES = {"export": export, "tree": tree}


if __name__ == "__main__":
    vmmlib.main("vmm-trees", CASES, __doc__)
