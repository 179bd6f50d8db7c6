#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What could go wrong: the balancer's integers are not the formulae's numbers. Random hosts go through it
and through formulae.py, and every target, pressure, status and demand is compared."""
import json
import os
import random
import subprocess
import sys

from formulae import BLOCK, demands, exact_targets, kept, pressure, status, targets, wanted

MIB, GIB = 1 << 20, 1 << 30
HOLDS = ["follows", "on-trial", "takes-no-more", "gives-none"]
N_HOSTS, N_GUESTS = 2000, 300


class Drive:
    def __init__(self):
        path = os.path.join(os.environ["VHDD_BUILD"], "tests/memory/memory-drive")
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


def random_vm(rnd):
    startup = rnd.choice([512 * MIB, rnd.randrange(4, 2048) * MIB, 64 * MIB])
    vm = {
        "startup": startup,
        "max": startup + rnd.choice([0, rnd.randrange(8 * GIB), 4 * GIB, rnd.randrange(4 * MIB)]),
        "buffer": rnd.choice([20, 5, 0, rnd.randrange(2001)]),
        "weight": rnd.choice([50, 1, 100, rnd.randint(1, 100)]),
        "demand": rnd.choice([None, 0, startup]) if rnd.random() < 0.2 else rnd.randrange(6 * GIB),
        "holds": rnd.choice(HOLDS) if rnd.random() < 0.3 else "follows",
    }
    vm["assigned"] = startup + rnd.randrange((vm["max"] - startup) // BLOCK + 1) * BLOCK
    if rnd.random() < 0.1: # a balloon that gave way by itself, or a max that was lowered
        vm["assigned"] = max(4096, vm["assigned"] + rnd.randrange(-MIB, 64 * MIB) // 4096 * 4096)
    vm["asked"] = rnd.choice([0, vm["assigned"]])
    return vm


def check_host(drive, rnd):
    vms = [random_vm(rnd) for _ in range(rnd.randint(1, rnd.choice([3, 8, 60])))]
    room = sum(max(wanted(vm), kept(vm)) for vm in vms)
    budget = rnd.choice([room, rnd.randrange(room + GIB), int(room * rnd.uniform(0.4, 1.1))])
    answer = drive.ask({"budget": budget,
                        "vms": [dict(vm, holds=HOLDS.index(vm["holds"])) for vm in vms]})
    exact, expected = exact_targets(budget, vms), targets(budget, vms)
    # What one keeps that does not give can end within a block: then its share begins there.
    near = BLOCK * (2 + sum((kept(vm) - vm["startup"]) % BLOCK > 0 for vm in vms))
    for i, (vm, got) in enumerate(zip(vms, answer["vms"])):
        said = f"vm {i} of {json.dumps(vms)} in {budget}: {got}"
        assert got["wanted"] == wanted(vm), f"{said}, wanted {wanted(vm)}"
        assert got["target"] == expected[i], f"{said}, expected {expected[i]}"
        assert got["pressure"] == pressure(vm), f"{said}, pressure {pressure(vm)}"
        assert got["status"] == status(vm), f"{said}, status {status(vm)}"
        assert vm["startup"] <= got["target"] <= vm["max"], said
        if vm["holds"] == "follows" and vm["demand"] is not None:
            assert abs(got["target"] - exact[i]) < near, f"{said}, exactly {float(exact[i])}"
    return answer["short"]


def random_stats(rnd):
    startup = rnd.choice([256, 512, 1024]) * MIB
    keep = rnd.randrange(80 * MIB)
    stats, swapped, faults, plugged = [], 0, 0, 0
    for _ in range(rnd.randint(1, 60)):
        plugged = rnd.choice([plugged, rnd.randrange(1024) * BLOCK])
        seen = rnd.choice([plugged, rnd.randrange(plugged + 1)])
        swapped += rnd.choice([0, 0, rnd.randrange(8 * MIB)])
        faults += rnd.choice([0, 3, rnd.randrange(5000)])
        if rnd.random() < 0.02: # started anew
            swapped = faults = 0
        total = max(0, startup - keep) + seen
        available = rnd.choice([rnd.randrange(total + 1), rnd.randrange(total // 5 + 1)])
        stats.append({
            "startup": startup, "given": startup + plugged, "total": total, "available": available,
            "inflated": rnd.choice([0, rnd.randrange(total + 1)]), "swapped-in": swapped,
            "major-faults": faults, "elapsed": rnd.choice([1000, rnd.randrange(20000)]),
        })
    return stats


def check_guest(drive, rnd):
    stats = random_stats(rnd)
    answer = drive.ask({"stats": stats})["demands"]
    for i, (got, (now, slow)) in enumerate(zip(answer, demands(stats))):
        # The code rounds each fall down to a byte.
        assert abs(got["now"] - now) < i + 2, f"step {i} of {stats}: {got}, now {float(now)}"
        assert abs(got["slow"] - slow) < 2 * (i + 2), f"step {i} of {stats}: {got}, {float(slow)}"
    return len(stats)


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 2008
    rnd = random.Random(seed)
    drive = Drive()
    n_short = sum(check_host(drive, rnd) for _ in range(N_HOSTS))
    n_steps = sum(check_guest(drive, rnd) for _ in range(N_GUESTS))
    drive.end()
    assert n_short > N_HOSTS // 4, "too few hosts were short of memory to say anything"
    print(f"summary: memory: {N_HOSTS} hosts ({n_short} of them short) and {n_steps} demands "
          f"as computed in exact rationals (seed {seed})")


if __name__ == "__main__":
    main()
