#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""plot.py STEPS [OUT.svg] - a run of the balancer as a picture.

STEPS has one object a line: {"at": seconds, "host", "vms"} with what memory.show answered (stepcheck.py
writes it). A panel for each vm: what it has, needs and is to have, between startup and max; and one for
the host: what all have, within the budget."""
import json
import sys
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, HIGH, GAP, TOP, BOTTOM = 900, 70, 160, 150, 34, 40, 40
INK, GREY, LIGHT = "#222", "#999", "#ddd"
HAS, NEEDS, TARGET, SUMS = "#9ec5e8", "#c0392b", "#1b4f72", ["#9ec5e8", "#f5c99b", "#b7d8a8",
                                                             "#d7b7e0", "#f2b5b5", "#c9c9c9"]
MIB = 1 << 20


def read(path):
    with open(path, encoding="utf-8") as f:
        steps = [json.loads(line) for line in f]
    if len(steps) < 2:
        sys.exit(f"plot.py: '{path}' has {len(steps)} steps, too few for a picture")
    return steps


class Panel:
    """One picture's frame: seconds to the right, bytes upward."""

    def __init__(self, out, top, seconds, most, title):
        self.out, self.top, self.seconds, self.most = out, top, seconds, most
        self.out.append(f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>')
        step = self.grid_step(most / MIB)
        for i in range(int(most / MIB / step) + 1):
            y = self.y(i * step * MIB)
            self.out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                            f'stroke="{LIGHT}"/>')
            self.out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" '
                            f'fill="{GREY}">{i * step:g}</text>')

    @staticmethod
    def grid_step(mib):
        return next(step for step in (64, 128, 256, 512, 1024, 2048, 4096, 1 << 40)
                    if mib / step <= 5)

    def x(self, at):
        return LEFT + at / self.seconds * (WIDTH - LEFT - RIGHT)

    def y(self, size):
        return self.top + HIGH - size / self.most * HIGH

    def stairs(self, points):
        """A value holds until the next step: None is a gap."""
        path, last = [], None
        for at, size in points:
            if size is None:
                last = None
                continue
            x, y = self.x(at), self.y(size)
            path.append(f"M{x:.1f} {y:.1f}" if last is None else f"L{x:.1f} {last:.1f}L{x:.1f} {y:.1f}")
            last = y
        return "".join(path)

    def line(self, points, colour, width=1.5, dash=""):
        self.out.append(f'<path d="{self.stairs(points)}" fill="none" stroke="{colour}" '
                        f'stroke-width="{width}" stroke-dasharray="{dash}"/>')

    def area(self, lower, upper, colour):
        forth, back = self.stairs(upper), []
        below = None
        for at, size in lower:
            x, y = self.x(at), self.y(size)
            back.append((x, y if below is None else below))
            back.append((x, y))
            below = y
        text = "".join(f"L{x:.1f} {y:.1f}" for x, y in reversed(back))
        self.out.append(f'<path d="{forth}{text}Z" fill="{colour}" stroke="none"/>')

    def label(self, size, text, colour=GREY):
        self.out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{self.y(size) + 4:.1f}" '
                        f'fill="{colour}">{escape(text)}</text>')

    def seconds_axis(self):
        step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600)
                    if self.seconds / s <= 12)
        for i in range(int(self.seconds / step) + 1):
            x = self.x(i * step)
            self.out.append(f'<text x="{x:.1f}" y="{self.top + HIGH + 16}" text-anchor="middle" '
                            f'fill="{GREY}">{i * step} s</text>')


def series(steps, name, key):
    for step in steps:
        vm = next((vm for vm in step["vms"] if vm["vm"] == name), None)
        yield step["at"], vm[key] if vm and vm["reckoned"] else None


def draw_vm(out, top, steps, name, seconds):
    vms = [vm for step in steps for vm in step["vms"] if vm["vm"] == name and vm["reckoned"]]
    most = 1.08 * max(max(vm["max"], vm["demand"] or 0) for vm in vms)
    weights = sorted({vm["weight"] for vm in vms})
    panel = Panel(out, top, seconds, most,
                  f"{name}: weight {', then '.join(map(str, weights))}, in MiB")
    has = [(at, size or 0) for at, size in series(steps, name, "physical")]
    panel.area([(at, 0) for at, _ in has], has, HAS)
    panel.line(series(steps, name, "startup"), GREY, 1, "2 3")
    panel.line(series(steps, name, "max"), GREY, 1, "2 3")
    panel.line(series(steps, name, "demand"), NEEDS)
    panel.line(series(steps, name, "target"), TARGET, 1.5, "6 3")
    panel.label(vms[-1]["startup"], "startup")
    panel.label(vms[-1]["max"], "max")


def draw_host(out, top, steps, names, seconds):
    most = 1.08 * max(max(step["host"]["budget"], step["host"]["physical"]) for step in steps)
    panel = Panel(out, top, seconds, most, "the host: physical memory of all, in MiB")
    lower = [(step["at"], 0) for step in steps]
    for i, name in enumerate(names):
        has = [size or 0 for _, size in series(steps, name, "physical")]
        upper = [(at, below + size) for (at, below), size in zip(lower, has)]
        panel.area(lower, upper, SUMS[i % len(SUMS)])
        if has[-1]:
            panel.label((lower[-1][1] + upper[-1][1]) / 2, name, INK)
        lower = upper
    panel.line([(step["at"], step["host"]["budget"]) for step in steps], INK)
    panel.label(steps[-1]["host"]["budget"], "budget", INK)
    panel.seconds_axis()


def legend(out):
    x = WIDTH - RIGHT + 8
    for i, (what, colour, dash) in enumerate((("demand", NEEDS, ""), ("target", TARGET, "6 3"))):
        y = TOP + 62 + 18 * i
        out.append(f'<line x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}" stroke="{colour}" '
                   f'stroke-width="2" stroke-dasharray="{dash}"/>'
                   f'<text x="{x + 32}" y="{y + 4}">{what}</text>')
    y = TOP + 62 + 36
    out.append(f'<rect x="{x}" y="{y - 6}" width="26" height="12" fill="{HAS}"/>'
               f'<text x="{x + 32}" y="{y + 4}">physical</text>')


def picture(steps):
    names = list(dict.fromkeys(vm["vm"] for step in steps for vm in step["vms"] if vm["reckoned"]))
    begun, seconds = steps[0]["at"], steps[-1]["at"] - steps[0]["at"]
    steps = [dict(step, at=step["at"] - begun) for step in steps]
    out = []
    for i, name in enumerate(names):
        draw_vm(out, TOP + i * (HIGH + GAP), steps, name, seconds)
    draw_host(out, TOP + len(names) * (HIGH + GAP), steps, names, seconds)
    legend(out)
    height = TOP + (len(names) + 1) * (HIGH + GAP) + BOTTOM - GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'font-family="sans-serif" font-size="12" fill="{INK}">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(out)
            + "\n</svg>\n")


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    text = picture(read(sys.argv[1]))
    if len(sys.argv) == 3:
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            f.write(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
