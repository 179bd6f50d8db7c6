#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""random-run - vms, disks, snapshots and sudden deaths at random, against a model in memory.

    random-run.py [--seed N] [--steps N] [--runs N] [--jobs N] [--long] [--verbose]

Two vms of one to three disks each, driven from outside alone (NBD, and the control socket, by vhdctl or
spoken directly: that is ten times as quick). A step writes, trims,
zeroes, flushes, takes, applies, reverts, undoes, deletes, merges (live and deferred, slow, paused and
cancelled), renames, attaches, detaches, reconnects or
restarts; in the middle of it a worker, the greeter, the broker, or several of them may die by kill -9.

What it demands: an answered write is there, whatever died since; one that was not answered is old or
new, sector by sector; a trimmed sector is old or zero; clients of the other vm, and all clients when
only the broker dies, notice nothing; a control call that was cut off has left the state before it or
the state after it, and the test finds out which by asking, and from then on demands it. At the
end doctor names every file that belongs to nobody, and all of it survives a stop and a start.

  --seed   of the (first) run; printed for each
  --steps  in a run (default 250, with --long 3000)
  --runs   how many (default 2, with --long 200); one that fails does not keep the others from running
  --jobs   how many of them at a time (default 2)

Exit status: 0 as it must be, 1 not, 2 usage, 77 skipped."""

import argparse
import concurrent.futures
import contextlib
import os
import random
import re
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import daemonlib  # noqa: E402
from daemonlib import TestFailed, demand, nbd  # noqa: E402
import model  # noqa: E402

MIB = 1 << 20
POOL_SIZE = 8 * MIB
VHDCTL_SHARE = 0.15  # of the calls; the others take the socket itself
# Operands of vhdctl, for each method; what else is among the params is an option of the same name.
OPERANDS = {
    "snapshot.list": ["vm"], "snapshot.take": ["vm", "name"], "snapshot.rename": ["vm", "old", "new"],
    "snapshot.apply": ["vm", "name"], "snapshot.revert": ["vm"], "snapshot.undo": ["vm"],
    "snapshot.delete": ["vm", "name"], "disk.list": ["vm"], "disk.attach": ["vm", "file"],
    "disk.detach": ["vm", "disk"], "job.list": ["vm"], "job.pause": ["id"], "job.resume": ["id"],
    "job.cancel": ["id"], "job.limit": ["id", "rate"],
}
SNAPSHOT_MAX = 9
DETACHED_MAX = 4
MERGE_S = 60
NAMES = ["first", "second one", "nach dem Umbau", "ä ö ü", "50%", "it's", "v1.2", "+", "x=y&z", "雪"]


class Request:
    """One request of a client: what it does to the content, and whether it was answered."""

    def __init__(self, kind, offset=0, payload=b"", flags=0):
        self.kind, self.offset, self.payload, self.flags = kind, offset, payload, flags
        self.error = None  # None: under way; 0: done; else its errno

    def completed(self, error):
        self.error = error.value
        return 1

    def send(self, handle):
        # A payload must stay where it is until the answer: self keeps it.
        if self.kind == "write":
            handle.aio_pwrite(self.payload, self.offset, self.completed, self.flags)
        elif self.kind == "zero":
            handle.aio_zero(len(self.payload), self.offset, self.completed, self.flags)
        elif self.kind == "trim":
            handle.aio_trim(len(self.payload), self.offset, self.completed, self.flags)
        else:
            handle.aio_flush(self.completed)

    def note(self, content, certain):
        """Into the model."""
        if self.kind == "flush":
            return
        if self.kind == "trim" or self.kind == "zero" and not certain:
            content.trim(self.offset, len(self.payload))
        elif not certain:
            content.might(self.offset, self.payload)
        else:
            content.write(self.offset, self.payload)


class Client:
    """A client of one disk, with many requests in flight."""

    def __init__(self, daemon, vm, disk):
        self.vm, self.disk = vm, disk
        self.handle = daemon.connect(f"{vm}/{disk}")
        self.requests = []
        self.why = "it was told nothing"  # of its end

    def dead(self):
        return not self.handle or self.handle.aio_is_dead() or self.handle.aio_is_closed()

    def is_cut_off(self):
        """Asked over the wire: an idle client does not notice by itself."""
        try:
            self.handle.pread(512, 0)
        except nbd.Error as e:
            self.ended_with(e)
        return self.dead()

    def ended_with(self, error):
        """An error that only a connection's end may be."""
        self.why = str(error)
        demand(self.dead(), f"{self}: {error}")

    def send(self, request):
        self.requests.append(request)
        try:
            request.send(self.handle)
        except nbd.Error as e:
            self.ended_with(e)
            request.error = request.error or -1

    def drain(self, seconds=daemonlib.CONNECT_TIMEOUT_S):
        """Until each request is answered or the connection is gone."""
        end = time.monotonic() + seconds
        while any(r.error is None for r in self.requests):
            try:
                self.handle.poll(200)
            except nbd.Error as e:
                self.ended_with(e)
            if self.dead():
                for r in self.requests:
                    r.error = -1 if r.error is None else r.error
            demand(time.monotonic() < end,
                   f"{self}: {[r.kind for r in self.requests if r.error is None]} "
                   f"unanswered after {seconds} s")
        done, self.requests = self.requests, []
        for r in done:
            demand(r.error == 0 or self.dead(),
                   f"{self}: a {r.kind} at {r.offset} ended in {os.strerror(abs(r.error))}")
        return done

    def close(self, kindly=True):
        if kindly and not self.dead():
            daemonlib.leave(self.handle)
        self.handle = None

    def __str__(self):
        return f"client of {self.vm}/{self.disk}"


class Killer(threading.Thread):
    """Kills what it is told to after a while; brings a killed broker back after another while."""

    def __init__(self, daemon, what, vm, delay, pause):
        super().__init__()
        self.daemon, self.what, self.vm, self.delay, self.pause = daemon, what, vm, delay, pause
        self.problem = None
        self.broker_died = "broker" in what

    def run(self):
        time.sleep(self.delay)
        try:
            pids = []
            if "worker" in self.what:
                pids += [self.daemon.worker(self.vm)]
            if "greeter" in self.what:
                pids += self.daemon.role("greeter")
            if "broker" in self.what:
                self.daemon.kill_broker()
            for pid in pids:
                if pid:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            if "broker" in self.what:
                time.sleep(self.pause)
                self.daemon.launch()
        except Exception as e:  # a thread's failure is the test's
            self.problem = e

    def over(self):
        self.join()
        if self.problem:
            raise self.problem
        if self.broker_died:
            self.daemon.wait_ready()


class Run:
    def __init__(self, folder, seed, steps, verbose):
        self.folder, self.seed, self.steps, self.verbose = folder, seed, steps, verbose
        self.chance = random.Random(seed)
        self.pool = self.chance.randbytes(POOL_SIZE)
        self.daemon = daemonlib.Daemon(folder)
        self.vms, self.clients, self.detached, self.kept = {}, {}, {}, {}
        # Images of disks that were their owner's for a while. Of these a file that the owner made stays when
        # the vm has no use for it any more, and nobody needs to name it.
        self.handed_back = set()
        # Lines of what came before.
        self.log_shown = 10000 if os.environ.get("VHDD_KEEP") else 25
        self.came_back = set()  # (vm, disk): detached, kept, and attached again
        self.made = self.kills = self.requests = self.step = 0
        self.log = []

    # --- what is said

    def say(self, text):
        line = f"{self.step}: {text}"
        self.log.append(line)
        if self.verbose:
            print(line, flush=True)

    def fresh(self, kind):
        self.made += 1
        return f"{kind}{self.made}"

    def fresh_snapshot(self):
        self.made += 1
        return f"{self.chance.choice(NAMES)} {self.made}"

    def bytes(self, length):
        """Such as no other write has: what is cut out of the pool at another place is different."""
        at = self.chance.randrange(POOL_SIZE - length)
        return self.pool[at : at + length]

    # --- calls

    def begin_call(self, method, **params):
        if self.chance.random() >= VHDCTL_SHARE:
            return self.daemon.begin(method, **params)
        arguments = method.split(".") + [str(params.pop(key)) for key in OPERANDS[method]]
        for key, value in params.items():
            arguments += [f"--{key}"] + ([] if value is True else [str(value)])
        return self.daemon.popen(*arguments, "--json")

    def query(self, method, **params):
        answer = self.daemon.finish(self.begin_call(method, **params))
        demand(answer.status == 0, f"{answer}\n{self.daemon.tail(8)}")
        return answer.json()

    # --- the model's view and the daemon's

    def structure(self, vm):
        """What the daemon says, in the model's words."""
        rows = self.query("snapshot.list", vm=vm)
        by_id = {row["id"]: row["name"] for row in rows}
        current = [row["name"] for row in rows if row["current"]]
        demand(len(current) <= 1, f"snapshot list of {vm} has several current: {current}")
        disks = self.query("disk.list", vm=vm)
        return {
            "snapshots": {r["name"]: by_id.get(r["parent"]) if r["parent"] else None
                          for r in sorted(rows, key=lambda r: r["name"])},
            "current": current[0] if current else None,
            "disks": {d["name"]: d["at"] for d in sorted(disks, key=lambda d: d["name"])},
        }

    def check_structure(self, vm):
        wanted, got = self.vms[vm].structure(), self.structure(vm)
        demand(wanted == got, f"{vm} is\n  {got}\ninstead of\n  {wanted}")

    def read(self, export):
        if self.chance.random() < 0.25:
            handle = self.daemon.connect(export)
            data = daemonlib.read_all(handle)
            daemonlib.leave(handle)
            return data
        reader = self.daemon.reader(export)
        data = b"".join(reader.read(min(MIB, reader.size - at), at)
                        for at in range(0, reader.size, MIB))
        reader.close()
        return data

    def ask(self, vm, before, after):
        """After a call that was cut off: which of the two is it?"""
        structure = self.structure(vm)
        fits = [s for s in (before, after) if s.structure() == structure]
        demand(fits, f"{vm} was cut off between\n  {before.structure()}\nand\n  "
                     f"{after.structure()}\nand is neither:\n  {structure}")
        if len(fits) == 1:
            return fits[0]
        live = {name: self.read(f"{vm}/{name}") for name in before.disks}
        complaints = []
        for state in fits:
            wrong = [f"{name}: {why}" for name, data in live.items()
                     if (why := state.disks[name].content.matches(0, data))]
            if not wrong:
                return state
            complaints += wrong
        raise TestFailed(f"{vm} holds neither what it held before nor after: {complaints}")

    def settle(self, export, disk):
        why = disk.content.settle(0, self.read(export))
        if why:
            raise TestFailed(f"{export}: {why}\n{self.picture(export, why)}")

    def picture(self, export, why):
        """Of a difference: which layer the sector comes from, which images there are, and what is being merged."""
        lines = []
        try:
            at = int(re.search(r"sector (\d+)", why)[1]) * model.SECTOR
            handle = nbd.NBD()
            for context in ("base:allocation", "vhdd:depth"):
                handle.add_meta_context(context)
            handle.set_export_name(export)
            handle.connect_unix(self.daemon.socket)
            low = max(0, at - 16 * model.SECTOR)
            handle.block_status(32 * model.SECTOR, low, lambda context, offset, entries, error:
                                lines.append(f"{context} from sector {offset // model.SECTOR}: {entries}"))
            again = bytes(handle.pread(model.SECTOR, at))
            lines.append(f"read again: {again[:16].hex()}...")
            for vm, state in self.vms.items():
                lines += [f"{vm}: {self.query('job.list', vm=vm, all=True)}"]
                lines += [f"{vm}/{name}: {self.files(vm)[name]}" for name in state.disks]
        except (nbd.Error, TestFailed) as e:
            lines.append(f"(no more can be told: {e})")
        return "\n".join(lines)

    def verify_disks(self, vm):
        state = self.vms[vm]
        for disk in state.disks.values():
            self.settle(f"{vm}/{disk.name}", disk)

    def verify_snapshot(self, vm, name):
        for disk in self.vms[vm].snapshots[name].disks.values():
            self.settle(f"{vm}/{disk.name}@{name}", disk)

    def check_jobs(self):
        """Nothing here is a reason for a job to fail; one that did, and began again since, is in the log."""
        with open(self.daemon.log, encoding="utf-8", errors="replace") as f:
            failed = [line for line in f if re.search(r"job \d+ failed", line)]
        demand(not failed, f"a job failed: {failed}")

    def verify(self, vm, all_of_it=True):
        self.check_jobs()
        self.check_structure(vm)
        self.verify_disks(vm)
        names = sorted(self.vms[vm].snapshots)
        if not all_of_it:
            names = self.chance.sample(names, min(2, len(names)))
        for name in names:
            self.verify_snapshot(vm, name)

    # --- deaths

    def killer(self, vm, probability=0.12):
        """A death at a moment of the near future, or None."""
        if self.chance.random() >= probability:
            return None
        what = self.chance.choice(["worker"] * 4 + ["broker"] * 4 + ["worker broker", "greeter"])
        longest = self.chance.choice([0.002, 0.01, 0.03])
        killer = Killer(self.daemon, what.split(), vm, self.chance.uniform(0, longest),
                        self.chance.uniform(0, 0.05))
        self.say(f"kill -9 {what} of {vm} after {killer.delay * 1000:.1f} ms")
        self.kills += 1
        killer.start()
        return killer

    def nobody_noticed(self, killed, vm):
        """Clients of vms whose worker was not killed are still there, and read."""
        for client in self.clients.values():
            if "worker" in killed and client.vm == vm:
                continue
            demand(not client.dead(), f"{client} was cut off by the death of {killed} of {vm}: "
                                      f"{client.why}")
            try:
                got = client.handle.pread(4096, 0)
            except nbd.Error as e:
                raise TestFailed(f"{client} after the death of {killed} of {vm}: {e}") from None
            why = self.vms[client.vm].disks[client.disk].content.settle(0, got)
            demand(not why, f"{client}: {why}")

    def after_death(self, killer, vm):
        killer.over()
        self.nobody_noticed(killer.what, vm)
        for key, client in list(self.clients.items()):
            if client.is_cut_off():
                client.close(kindly=False)
                del self.clients[key]

    # --- requests

    def client(self, vm, disk):
        key = (vm, disk)
        if key not in self.clients:
            self.clients[key] = Client(self.daemon, vm, disk)
        return self.clients[key]

    def leave(self, vm, disk=None):
        for key in [k for k in self.clients if k[0] == vm and disk in (None, k[1])]:
            self.clients.pop(key).close()

    def requests_for(self, size, count):
        """Requests that do not overlap: the order in which they are done is not known."""
        taken, found = [], []
        for _ in range(count):
            kind = self.chance.choices(["write", "trim", "zero", "flush"], [60, 8, 8, 6])[0]
            if kind == "flush":
                found.append(Request("flush"))
                continue
            sectors = self.chance.choice([1, 1, 8, 8, 8, 8, 3, 3, 64, 64, 200, 2048])
            if kind != "write" and self.chance.random() < 0.3:
                # A whole block.
                length = self.chance.choice([MIB // 2, 2 * MIB])
                offset = self.chance.randrange(max(1, size // length)) * length
                length = min(length, size - offset)
            else:
                length = sectors * model.SECTOR
                offset = self.chance.randrange((size - length) // model.SECTOR + 1) * model.SECTOR
            if any(offset < end and start < offset + length for start, end in taken):
                continue
            taken.append((offset, offset + length))
            flags = nbd.CMD_FLAG_FUA if self.chance.random() < 0.15 else 0
            if kind == "zero" and self.chance.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            payload = self.bytes(length) if kind == "write" else bytes(length)
            found.append(Request(kind, offset, payload, flags))
        return found

    def batch(self, vm, contents_beside=None):
        """Requests on some disks of the vm, all at once; then the model follows."""
        state = self.vms[vm]
        names = sorted(n for n in state.disks
                       if (vm, n) in self.clients and not self.clients[vm, n].dead())
        for name in names:
            for request in self.requests_for(len(state.disks[name].content.data),
                                             self.chance.randint(1, 12)):
                self.clients[vm, name].send(request)
        unanswered = []
        for name in names:
            client, content = self.clients[vm, name], state.disks[name].content
            for request in client.drain():
                self.requests += 1
                if contents_beside and name in contents_beside:
                    request.note(contents_beside[name].content, certain=False)
                request.note(content, certain=request.error == 0)
                if request.error != 0:
                    unanswered.append((name, request))
        return unanswered

    def replay(self, vm, unanswered):
        """As QEMU does after a reconnect: what was not answered is sent again."""
        for name, request in unanswered:
            client = self.client(vm, name)
            again = Request(request.kind, request.offset, request.payload, request.flags)
            client.send(again)
            demand(client.drain()[0].error == 0, f"{client}: its replay was cut off")
            again.note(self.vms[vm].disks[name].content, certain=True)

    def step_requests(self, vm):
        for name in self.vms[vm].disks:
            if self.chance.random() < 0.7:
                self.client(vm, name)
        killer = self.killer(vm, 0.04)
        unanswered = []
        for _ in range(self.chance.choice([1, 1, 2, 4]) if not killer else 8):
            unanswered += self.batch(vm)
        if killer:
            self.after_death(killer, vm)
            if self.chance.random() < 0.7:
                self.replay(vm, unanswered)
            self.verify_disks(vm)

    # --- control calls

    def control(self, vm, after, method, deadly=True, during=None, **params):
        """A call that leads from the vm's state to @after, unless something dies in the middle."""
        before = self.vms[vm]
        process = self.begin_call(method, vm=vm, **params)
        killer = self.killer(vm) if deadly else None
        if during:
            during(process)
        answer = self.daemon.finish(process)
        if killer:
            killer.over()
        self.say(f"{answer}")
        if answer.status == 0:
            self.vms[vm] = after
        else:
            demand(killer and answer.status == 3, f"{answer}\n{self.daemon.tail(8)}")
            self.vms[vm] = self.ask(vm, before, after)
        self.check_structure(vm)
        if killer:
            self.after_death(killer, vm)
            self.verify(vm, all_of_it=False)
        return self.vms[vm] is after

    def step_take(self, vm):
        if len(self.vms[vm].snapshots) >= SNAPSHOT_MAX:
            return self.step_delete(vm)
        name = self.fresh_snapshot()
        after = self.vms[vm].take(name)
        unanswered = []

        def write_meanwhile(process):
            beside = after.snapshots[name].disks
            while process.poll() is None:
                unanswered.extend(self.batch(vm, beside))
                select.select([], [], [], 0.0005)

        if self.chance.random() < 0.7:
            for disk in self.vms[vm].disks:
                self.client(vm, disk)
        self.control(vm, after, "snapshot.take", name=name, during=write_meanwhile)
        self.replay(vm, unanswered)
        if self.chance.random() < 0.3 and name in self.vms[vm].snapshots:
            self.verify_snapshot(vm, name)

    def step_apply(self, vm):
        state = self.vms[vm]
        if not state.snapshots:
            return self.step_take(vm)
        self.leave(vm)
        name = self.chance.choice(sorted(state.snapshots))
        save = self.fresh_snapshot() if self.chance.random() < 0.2 else None
        keep = not save and self.chance.random() < 0.5
        options = {"save-current": save} if save else {"keep-discarded": 86400} if keep else {}
        dropped = self.files(vm)
        after = state.apply(name, save, keep)
        # Disks attached since are detached, and their files kept. Those that were saved first are frozen
        # in the saved snapshot: they stay when it goes, and are nobody's then.
        if self.control(vm, after, "snapshot.apply", name=name, **options):
            for disk in set(state.disks) - set(after.disks):
                file = self.leaf_now(dropped[disk])
                self.handed_back.update(dropped[disk])
                if save:
                    self.kept[file] = (disk, dropped[disk])
                else:
                    self.detached[file] = state.disks[disk].content
        # One that came back with its snapshot is the vm's again, and may be merged with what it stands on.
        self.kept = {file: kept for file, kept in self.kept.items() if kept[0] not in self.vms[vm].disks}
        self.verify_disks(vm)

    def step_revert(self, vm):
        state = self.vms[vm]
        self.leave(vm)
        if not state.current:
            answer = self.daemon.try_ctl("snapshot", "revert", vm)
            demand(answer.status == 3, f"{answer}: there is nothing to revert to")
            return
        if set(state.disks) != set(state.snapshots[state.current].disks):
            return
        self.control(vm, state.apply(state.current), "snapshot.revert")
        self.verify_disks(vm)

    def step_undo(self, vm):
        state = self.vms[vm]
        if not state.undo or set(state.undo.disks) != set(state.disks):
            return
        self.leave(vm)
        self.control(vm, state.undone(), "snapshot.undo")
        self.verify_disks(vm)

    def step_delete(self, vm):
        state = self.vms[vm]
        if not state.snapshots:
            return
        name = self.chance.choice(sorted(state.snapshots))
        subtree = self.chance.random() < 0.2
        options = {"subtree": True} if subtree else {}
        if self.chance.random() < 0.3:
            options["merge"] = "deferred"
        if self.chance.random() < 0.15:
            options["push"] = True
        self.control(vm, state.delete(name, subtree), "snapshot.delete", name=name, **options)
        # These disks are small: a merge of theirs is seen only when it is slow.
        if self.chance.random() < 0.6:
            for job in self.open_jobs(vm):
                self.call_job("job.limit", job, rate=self.chance.choice([200_000, 1_000_000]))

    def open_jobs(self, vm):
        return [job for job in self.query("job.list", vm=vm) if job["state"] != "done"]

    def call_job(self, method, job, **params):
        """It may be done, and forgotten, by now."""
        answer = self.daemon.finish(self.begin_call(method, id=job["id"], **params))
        demand(answer.status == 0 or "is done" in answer.err or "no job" in answer.err
               or "does not run" in answer.err, f"{answer}")

    def step_job(self, vm):
        # Now and then one of those that nobody waits for: the seals.
        jobs = self.query("job.list", vm=vm, all=True) if self.chance.random() < 0.3 else []
        jobs = [job for job in jobs if job["state"] != "done"] or self.open_jobs(vm)
        if not jobs:
            return
        job = self.chance.choice(jobs)
        method, params = self.chance.choice([
            ("job.pause", {}), ("job.cancel", {}), ("job.resume", {}), ("job.resume", {}),
            ("job.limit", {"rate": 0}), ("job.limit", {"rate": 500_000})])
        self.say(f"{method} {job['id']} {params}")
        killer = self.killer(vm)
        if killer:
            self.daemon.finish(self.begin_call(method, id=job["id"], **params))
            self.after_death(killer, vm)
            self.verify(vm, all_of_it=False)
        else:
            self.call_job(method, job, **params)

    def stop_merges(self, vm):
        """Those that wait, too: one that ends lets the next one begin."""
        for _ in range(3):
            for job in self.open_jobs(vm):
                if job["state"] in ("running", "paused", "failed") or \
                        job["state"] == "waiting" and not job["stuck"]:
                    self.call_job("job.cancel", job)

    def end_merges(self, vm):
        """Whatever was stopped is asked for again; nobody is there; then nothing is left to merge but what
        waits for what does not come by itself."""
        self.leave(vm)
        end = time.monotonic() + MERGE_S
        while True:
            jobs = [job for job in self.open_jobs(vm) if not job["stuck"]]
            if not jobs:
                return
            # What is in the hands of another vm's merge comes after that.
            for job in jobs + [job for other in self.vms if other != vm
                               for job in self.open_jobs(other)]:
                if job["state"] in ("paused", "cancelled", "failed"):
                    demand(job["state"] != "failed", f"a merge failed: {job}")
                    self.call_job("job.resume", job)
                elif job["limit"]:
                    self.call_job("job.limit", job, rate=0)
            demand(time.monotonic() < end,
                   f"merges do not end: {jobs}; all: {[job for one in self.vms for job in self.open_jobs(one)]}")
            time.sleep(0.05)

    def delete_all(self, vm):
        """After the last snapshot is gone and merged, each disk is one file, unless a disk that was detached
        stands on one of its images."""
        self.end_merges(vm)
        name = self.fresh_snapshot()
        self.control(vm, self.vms[vm].take(name), "snapshot.take", deadly=False, name=name)
        self.control(vm, self.vms[vm].apply(name), "snapshot.revert", deadly=False)
        for name in sorted(self.vms[vm].snapshots):
            self.control(vm, self.vms[vm].delete(name), "snapshot.delete", deadly=False, name=name)
        self.end_merges(vm)
        # What was kept when its disk left is its owner's: if it comes back, no merge removes it.
        if not self.open_jobs(vm):
            for disk in self.query("disk.list", vm=vm):
                demand(disk["depth"] == 1 or (vm, disk["name"]) in self.came_back,
                       f"after the last delete a disk is {disk}")
        self.verify(vm)

    def step_rename(self, vm):
        state = self.vms[vm]
        if not state.snapshots:
            return
        old, new = self.chance.choice(sorted(state.snapshots)), self.fresh_snapshot()
        self.control(vm, state.rename(old, new), "snapshot.rename", old=old, new=new)

    def step_attach(self, vm):
        state = self.vms[vm]
        if len(state.disks) >= 3:
            return self.step_detach(vm)
        name, at = self.fresh("d"), state.first_free_place()
        options = {}
        if self.detached and self.chance.random() < 0.5:
            file = self.chance.choice(sorted(self.detached))
            content = self.detached[file]
        else:
            file, content, options = self.new_image()
        disk = model.Disk(name, at, content, file)
        if file in self.detached:
            # A merge may have an image in hand that it stands on; that would be refused.
            for other in self.vms:
                self.stop_merges(other)
        done = self.control(vm, state.attach(disk), "disk.attach", file=file, name=name, **options)
        if done:
            if file in self.detached:
                self.came_back.add((vm, name))
            self.detached.pop(file, None)
            if not options:
                # The user's own: with --push its content can go up, and it is nobody's disk any more.
                self.handed_back.add(file)
        elif os.path.exists(file) and file not in self.detached:
            # Made beforehand, and not attached: nobody's.
            demand(not options or self.is_named_by_doctor(file),
                   f"an attach that was cut off left '{file}', and doctor does not say so")
            os.unlink(file)

    def new_image(self):
        """(file, content, more params of attach)"""
        file = os.path.join(self.folder, self.fresh("disk") + ".vhd")
        size = self.chance.choice([1, 1, 2, 2, 3, 4, 6]) * MIB
        kind = self.chance.choice(["attach", "plain", "small-blocks", "fixed"])
        if kind == "attach":
            return file, model.Content(size), {"create": size}
        options = {"plain": [], "small-blocks": ["--block-size", "512K"],
                   "fixed": ["--type", "fixed"]}[kind]
        self.daemon.ctl("create", "--quiet", file, "--size", str(size), *options)
        return file, model.Content(size), {}

    def files(self, vm):
        """The images of each disk, the leaf first. A merge may end at any time: what the leaf was is then in
        the next one that is still there."""
        return {name: [layer["file"] for layer in self.daemon.show("disk", vm, name)["layers"]]
                for name in self.vms[vm].disks}

    def leaf_now(self, files):
        return next(file for file in files if os.path.exists(file))

    def step_detach(self, vm):
        state = self.vms[vm]
        if len(state.disks) < 2 or len(self.detached) >= DETACHED_MAX:
            return
        name = self.chance.choice(sorted(state.disks))
        if state.disks[name].at.startswith("ide"):
            self.leave(vm)
        self.leave(vm, name)
        files = self.files(vm)[name]
        if self.control(vm, state.detach(name), "disk.detach", disk=name):
            self.handed_back.update(files)
            self.detached[self.leaf_now(files)] = state.disks[name].content

    def step_reconnect(self, vm):
        self.leave(vm)
        for disk in self.vms[vm].disks:
            self.client(vm, disk)

    def step_read(self, vm):
        for (of, disk), client in self.clients.items():
            if of != vm:
                continue
            content = self.vms[vm].disks[disk].content
            for _ in range(8):
                length = self.chance.choice([1, 8, 64, 1024]) * model.SECTOR
                offset = self.chance.randrange((len(content.data) - length) // model.SECTOR + 1)
                offset *= model.SECTOR
                why = content.settle(offset, client.handle.pread(length, offset))
                demand(not why, f"{client}: {why}")

    def step_refused(self, vm):
        """What must be refused, and change nothing."""
        state = self.vms[vm]
        wrong = [["snapshot", "apply", vm, "no such one"], ["snapshot", "delete", vm, "no such one"],
                 ["disk", "detach", vm, "no such one"], ["snapshot", "take", "no such vm", "x"]]
        if state.snapshots:
            one = self.chance.choice(sorted(state.snapshots))
            wrong += [["snapshot", "take", vm, one], ["snapshot", "rename", vm, "no such one", one]]
        if state.disks:
            disk = self.chance.choice(sorted(state.disks))
            file = os.path.join(self.folder, "never.vhd")
            wrong += [["disk", "attach", vm, file, "--name", disk, "--create", "1M"]]
        answer = self.daemon.ctl(*self.chance.choice(wrong), status=3)
        demand(answer.is_one_sentence(), f"{answer}: one sentence was promised")
        demand(not os.path.exists(os.path.join(self.folder, "never.vhd")),
               f"{answer}: and made the file all the same")
        self.check_structure(vm)

    def step_restart(self, vm):
        how = self.chance.choice(["restart", "restart", "kill", "stop"])
        self.say(how)
        if how == "restart":
            self.daemon.ctl("restart")
            self.daemon.wait_ready()
        elif how == "kill":
            self.daemon.kill_broker()
            for one in self.vms:
                self.batch_without_broker(one)
            self.daemon.start()
        else:
            for one in self.vms:
                self.leave(one)
            self.daemon.stop()
            self.daemon.start()
        self.nobody_noticed([how], vm)
        self.verify(vm, all_of_it=False)

    def batch_without_broker(self, vm):
        if any(k[0] == vm for k in self.clients):
            unanswered = self.batch(vm)
            demand(not unanswered, f"{vm}: a client was cut off while there was no broker")

    def is_named_by_doctor(self, file):
        return os.path.basename(file) in self.everything_named()

    # --- the whole

    def everything_named(self):
        """All files that the daemon knows of, and those that doctor found, as one text."""
        doctor = self.daemon.try_ctl("doctor", "--json")
        demand(doctor.status in (0, 1), f"{doctor}")
        said = [doctor.out, self.daemon.ctl("job", "list", "--json").out]
        for vm, state in self.vms.items():
            said.append(self.daemon.ctl("disk", "list", vm, "--json").out)
            said += [self.daemon.ctl("disk", "show", vm, d, "--json").out for d in state.disks]
            said += [self.daemon.ctl("snapshot", "show", vm, s, "--json").out
                     for s in state.snapshots]
        return "\n".join(said)

    def in_catalog(self):
        """All that the catalog holds; the daemon has ended. Images that are kept for an undo are in no
        list that it prints."""
        catalog = os.path.join(self.daemon.state, "catalog.sqlite")
        with contextlib.closing(sqlite3.connect(catalog)) as db:
            return "\n".join(db.iterdump())

    def check_orphans(self, named):
        images = [f for f in os.listdir(self.folder) if f.endswith((".vhd", ".avhd"))]
        # A disk that was detached is its owner's again, with all that it stands on. A merge that had begun
        # may end: what was kept is then in the next file.
        theirs = list(self.detached)
        for disk, files in self.kept.values():
            there = [file for file in files if os.path.exists(file)]
            demand(there, f"of '{disk}', which was to be kept, no file is left: {files}")
            theirs.append(there[0])
        for file in theirs:
            demand(os.path.exists(file), f"'{file}', which was to be kept, is gone")
            named += self.daemon.ctl("info", "--chain", "--json", "--image-root", self.folder, file).out
        lost = [f for f in images if f not in named and
                not (f.endswith(".vhd") and os.path.join(self.folder, f) in self.handed_back)]
        if lost:
            # How they came to be nobody's is long ago.
            self.log_shown = len(self.log)
        demand(not lost, f"files that nobody names, doctor neither: {lost}; kept: {self.kept}; "
               f"detached: {sorted(self.detached)}")

    def check_seals(self):
        """Whatever there is, is right; the daemon has ended."""
        for file in sorted(os.listdir(self.folder)):
            demand(not file.endswith(".vhdd-seal.new"), f"half a seal is left: '{file}'")
            if file.endswith(".vhdd-seal"):
                image = os.path.join(self.folder, file[:-len(".vhdd-seal")])
                answer = self.daemon.try_ctl("check", "--deep", "--json", image)
                demand(answer.status == 0 and "seal-" not in answer.out, f"{answer}: {answer.out}")

    def check_detached(self):
        for file, content in self.detached.items():
            raw = os.path.join(self.folder, "detached.raw")
            self.daemon.ctl("convert", "--quiet", "--force", file, raw, "--type", "raw",
                            "--image-root", self.folder)
            with open(raw, "rb") as f:
                why = content.matches(0, f.read())
            os.unlink(raw)
            demand(not why, f"'{file}', which was detached: {why}")

    STEPS = {
        step_requests: 60, step_read: 8, step_take: 9, step_apply: 3, step_revert: 2,
        step_undo: 3, step_delete: 5, step_job: 4, step_rename: 2, step_attach: 3, step_detach: 2,
        step_reconnect: 3, step_refused: 2, step_restart: 0.8,
    }

    def begin(self):
        self.daemon.start()
        for vm in ("web", "data base"):
            self.daemon.ctl("vm", "create", vm)
            self.vms[vm] = model.Vm(vm)
            for _ in range(self.chance.randint(1, 3)):
                self.step_attach(vm)

    def go(self):
        try:
            self.begin()
            for self.step in range(1, self.steps + 1):
                vm = self.chance.choice(sorted(self.vms))
                step = self.chance.choices(list(self.STEPS), list(self.STEPS.values()))[0]
                step(self, vm)
                if self.step % 100 == 0:
                    self.verify(vm)
            for vm in self.vms:
                self.verify(vm)
            for vm in self.vms:
                self.delete_all(vm)
            named = self.everything_named()
            for vm in self.vms:
                self.leave(vm)
            self.daemon.stop()
            self.check_orphans(named + self.in_catalog())
            self.check_seals()
            self.check_detached()
            self.daemon.start()
            for vm in self.vms:
                self.verify(vm)
            self.daemon.stop()
        except (TestFailed, nbd.Error, OSError) as e:
            story = "\n  ".join(self.log[-self.log_shown:])
            raise TestFailed(f"--seed {self.seed} --steps {self.steps}, step {self.step}: {e}\n"
                             f"what came before:\n  {story}\nvhdd said:\n{self.daemon.tail()}"
                             ) from None
        finally:
            for client in self.clients.values():
                client.close(kindly=False)
            self.daemon.end()


def parse():
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[2].strip(), add_help=False)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    args = parser.parse_args()
    if args.help:
        print(__doc__)
        sys.exit(0)
    args.long = args.long or bool(os.environ.get("VHDD_LONG"))
    args.steps = args.steps or (3000 if args.long else 250)
    args.jobs = args.jobs or 2
    args.runs = args.runs or (1 if args.seed is not None else 200 if args.long else 2)
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 31)
    return args


def run_one(args):
    """In this process; ends it if there is a difference."""
    def one(folder):
        begun = time.monotonic()
        run = Run(folder, args.seed, args.steps, args.verbose)
        run.go()
        print(f"summary: --seed {args.seed}: {args.steps} steps, {run.requests} requests, "
              f"{run.kills} deaths by kill -9, no difference, {time.monotonic() - begun:.0f} s")

    print(f"--seed {args.seed} --steps {args.steps}", flush=True)
    daemonlib.run("random", one)


class Runs:
    """Several runs, each in a process of its own with a daemon of its own, some at a time."""

    def __init__(self, args):
        self.args, self.running, self.stopping = args, set(), False
        self.lock = threading.Lock()

    def one(self, seed):
        """(requests, deaths), or None: it failed, and said why."""
        command = [sys.executable, os.path.abspath(__file__), "--seed", str(seed), "--runs", "1",
                   "--steps", str(self.args.steps)] + ["--verbose"] * self.args.verbose
        with self.lock:
            if self.stopping:
                return None
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True, errors="replace")
            self.running.add(process)
        out = process.communicate()[0]
        with self.lock:
            self.running.remove(process)
            print(out, end="", flush=True)
        told = re.search(r"^summary: .* (\d+) requests, (\d+) deaths", out, re.M)
        return (int(told[1]), int(told[2])) if told and process.returncode == 0 else None

    def stop(self, *_):
        """A time limit's SIGTERM: each run ends what it started."""
        self.stopping = True
        for process in list(self.running):
            process.terminate()

    def go(self):
        signal.signal(signal.SIGTERM, self.stop)
        seeds = range(self.args.seed, self.args.seed + self.args.runs)
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            told = list(pool.map(self.one, seeds))
        failed = [f"--seed {seed}" for seed, one in zip(seeds, told) if not one]
        if failed:
            sys.exit(f"random: {len(failed)} of {self.args.runs} runs failed: {' '.join(failed)}")
        print(f"summary: {self.args.runs} random runs of {self.args.steps} steps, "
              f"{sum(requests for requests, _ in told)} requests, "
              f"{sum(deaths for _, deaths in told)} deaths by kill -9, no difference")


def main():
    args = parse()
    if args.runs == 1:
        run_one(args)
    else:
        daemonlib.find_programs()
        Runs(args).go()


if __name__ == "__main__":
    main()
