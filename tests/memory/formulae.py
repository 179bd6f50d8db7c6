# SPDX-License-Identifier: Apache-2.0
"""Dynamic Memory's formulae once more, in exact rationals and in the words of docs/vmm.md, with nothing
taken from the code: sharing walks its rounds, one by one."""
from fractions import Fraction

BLOCK = 4 << 20
TRIAL = 16 << 20
FALL_MS = 30000


def demand_and_buffer(vm):
    return vm["demand"] + Fraction(vm["demand"] * vm["buffer"], 100)


def top(vm):
    return vm["startup"] + (vm["max"] - vm["startup"]) // BLOCK * BLOCK


def wanted(vm):
    """min(max, max(startup, demand + buffer)), upward to a whole block above startup; never past max.
    What it has, downward, is all that one wants which takes no more or says nothing; 16 MiB more is
    all that one wants which is on trial."""
    has = min(top(vm), vm["startup"] + max(0, vm["assigned"] - vm["startup"]) // BLOCK * BLOCK)
    if vm["demand"] is None:
        return has
    size = demand_and_buffer(vm)
    if vm["holds"] == "on-trial":
        size = min(size, has + TRIAL)
    size = min(vm["max"], max(vm["startup"], size))
    want = min(top(vm), vm["startup"] + -(-(size - vm["startup"]) // BLOCK) * BLOCK)
    return min(want, has) if vm["holds"] == "takes-no-more" else want


def kept(vm):
    if vm["holds"] == "gives-none" or vm["demand"] is None:
        return max(vm["startup"], vm["assigned"])
    return vm["startup"]


def share(rest, needs, weights):
    """Rounds: by weight among those who still need something, nobody above its need, again with what is
    left over."""
    have = [Fraction(0)] * len(needs)
    rest = Fraction(rest)
    while rest > 0:
        open_ = [i for i in range(len(needs)) if have[i] < needs[i]]
        if not open_:
            break
        total = sum(weights[i] for i in open_)
        over = Fraction(0)
        for i in open_:
            part = rest * weights[i] / total
            take = min(part, needs[i] - have[i])
            have[i] += take
            over += part - take
        if over == 0:
            break
        rest = over
    return have


def whole(exact):
    """Whole blocks: everybody's floor, and what remains by the largest fraction, the first of equals."""
    have = [int(x) for x in exact]
    left = int(sum(exact)) - sum(have)
    order = sorted(range(len(exact)), key=lambda i: (have[i] - exact[i], i))
    for i in order[:left]:
        have[i] += 1
    return have


def exact_targets(budget, vms):
    """In real numbers: what whole blocks make of it differs by less than one."""
    wants = [wanted(vm) for vm in vms]
    keeps = [kept(vm) for vm in vms]
    needs = [max(0, w - k) for w, k in zip(wants, keeps)]
    more = share(max(0, budget - sum(keeps)), needs, [vm["weight"] for vm in vms])
    return [k + m for k, m in zip(keeps, more)]


def targets(budget, vms):
    """What the balancer has to answer, to the byte."""
    wants = [wanted(vm) for vm in vms]
    keeps = [kept(vm) for vm in vms]
    needs = [-(-max(0, w - k) // BLOCK) for w, k in zip(wants, keeps)]
    rest = max(0, budget - sum(keeps)) // BLOCK
    more = whole(share(rest, needs, [vm["weight"] for vm in vms]))
    found = []
    for vm, want, keep, blocks in zip(vms, wants, keeps, more):
        size = vm["startup"] + (keep + blocks * BLOCK - vm["startup"]) // BLOCK * BLOCK
        found.append(min(size, top(vm), max(want, keep)))
    return found


def pressure(vm):
    if vm["demand"] is None or vm["assigned"] == 0:
        return 0
    return int(Fraction(100 * vm["demand"], vm["assigned"]) + Fraction(1, 2))


def status(vm):
    if vm["demand"] is None:
        return "unknown"
    if vm["assigned"] >= demand_and_buffer(vm):
        return "ok"
    return "low" if vm["assigned"] >= vm["demand"] else "warning"


def demands(stats):
    """The (now, slow) of each of one guest's statistics; slow in real numbers."""
    found, kept_least, strain, slow = [], None, Fraction(0), None
    swapped = faults = 0
    for s in stats:
        pace = Fraction(FALL_MS, FALL_MS + s["elapsed"])
        available = min(s["available"], s["total"])
        not_seen = min(max(0, s["given"] - s["total"]), s["startup"] // 2)
        strain *= pace
        if kept_least is not None and available < s["total"] // 5:
            strain += max(max(0, s["swapped-in"] - swapped),
                          4096 * max(0, s["major-faults"] - faults))
        strain = min(strain, s["total"] // 4)
        swapped, faults = s["swapped-in"], s["major-faults"]
        kept_least = not_seen if kept_least is None else min(kept_least, not_seen)
        now = (max(0, s["total"] - available - s["inflated"]) + kept_least
               + max(0, s["total"] // 20 - available) + strain)
        slow = now if slow is None or now >= slow else now + (slow - now) * pace
        found.append((now, slow))
    return found
