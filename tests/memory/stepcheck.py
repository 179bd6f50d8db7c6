# SPDX-License-Identifier: Apache-2.0
"""Holds each step that memory.show tells against formulae.py, and writes the steps down for plot.py."""
import json
import time

from formulae import BLOCK, exact_targets, pressure, status, targets, wanted


class StepFailed(Exception):
    pass


def demand(truth, sentence):
    if not truth:
        raise StepFailed(sentence)


class Steps:
    """What was seen of a run, one step of the balancer after the other."""

    def __init__(self, path=None):
        self.begun, self.last, self.steps = time.monotonic(), None, []
        self.file = open(path, "w", encoding="utf-8") if path else None

    def take(self, shown):
        """What memory.show answered. The same step twice is one."""
        number = shown["host"]["steps"]
        if number == self.last or number == 0:
            return None
        self.last = number
        check_step(shown)
        step = {"at": round(time.monotonic() - self.begun, 3), "host": shown["host"],
                "vms": shown["vms"]}
        self.steps.append(step)
        if self.file:
            self.file.write(json.dumps(step) + "\n")
            self.file.flush()
        return step

    def close(self):
        if self.file:
            self.file.close()


def check_step(shown):
    host = shown["host"]
    # Of those who are on, in the order of their ids: that settles who gets the last block.
    on = sorted((vm for vm in shown["vms"] if vm["on"] and vm["reckoned"]), key=lambda vm: vm["id"])
    vms = [dict(vm, assigned=vm["physical"], holds=vm["reckoned"]) for vm in on]
    expected, exact = targets(host["budget"], vms), exact_targets(host["budget"], vms)
    held = 0
    for vm, target, real in zip(vms, expected, exact):
        said = f"step {host['steps']}, budget {host['budget']}: {json.dumps(vm)}"
        demand(vm["target"] == target, f"{said}: its target is to be {target}")
        demand(vm["wanted"] == wanted(vm), f"{said}: wanted is {wanted(vm)}")
        demand((vm["pressure"] or 0) == pressure(vm), f"{said}: pressure is {pressure(vm)}")
        demand(vm["status"] == status(vm), f"{said}: status is {status(vm)}")
        demand(vm["startup"] <= vm["target"] <= vm["max"], f"{said}: out of its bounds")
        demand(vm["asked"] is None or vm["startup"] <= vm["asked"] <= vm["max"],
               f"{said}: asked for what is out of its bounds")
        demand(vm["demand"] is None or vm["demand"] >= vm["demand-now"],
               f"{said}: demand is to rise at once")
        if vm["reckoned"] == "follows" and vm["demand"] is not None:
            demand(abs(vm["target"] - real) < 2 * BLOCK, f"{said}: exactly {float(real)}")
        held += max(vm["physical"], vm["asked"] or 0)
    demand(held <= max(host["budget"], sum(vm["physical"] for vm in vms)),
           f"step {host['steps']}: {held} bytes are held or promised of {host['budget']}")
    demand(host["physical"] == sum(vm["physical"] for vm in vms), f"{host}: the sum is wrong")
    return vms
