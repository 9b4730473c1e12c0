"""CPU seconds of `edgekd --help` and of a fully cached `edgekd ship --no-bench`.

    python benchmarks/start.py RECIPE RUN_DIR [--set A.B=VALUE ...]        (RUN_DIR: a run of that recipe made before)

Whole processes, user + system time as the operating system counts it, five runs each; prints all and the medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys


def cpu_seconds(command: list[str]) -> float:
    """User plus system seconds of one process and its children."""
    before = os.times()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    after = os.times()
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command} exited with {done.returncode}")
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    """Measure and print one JSON document."""
    recipe, run, *sets = sys.argv[1:]
    edgekd = [sys.executable, "-m", "edgekd"]
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "help": [*edgekd, "--help"],
        "cached ship": [*edgekd, "ship", recipe, "--run-dir", run, *sets, "--no-bench", "--json"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            found[name].append(round(cpu_seconds(command), 3))
    medians = {name: statistics.median(values) for name, values in found.items()}
    sys.stdout.write(json.dumps({"cpu_seconds": found, "median": medians}) + "\n")


if __name__ == "__main__":
    main()
