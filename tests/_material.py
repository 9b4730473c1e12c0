"""What the tests are made of: where real data lie, and sentences that a tiny model learns in seconds."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Real data sets and teachers are not part of the project: point EDGEKD_SHARED at a folder with data/ and teachers/.
SHARED = Path(os.environ.get("EDGEKD_SHARED", ROOT.parent / "shared"))

WORDS = {
    "fruit": "apple banana cherry grape lemon mango peach plum",
    "metal": "copper iron nickel silver steel tin zinc bronze",
    "river": "amazon danube ganges nile rhine thames volga yukon",
}
FILLER = "please tell me more about the old and new kinds of this or that one in our long list of things".split()


def tiny_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of filler words around one or two words of a class, in a fixed order."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = list(WORDS)[number % len(WORDS)]
        words = chance.choices(FILLER, k=chance.randint(2, 9))
        words.insert(chance.randrange(len(words) + 1), chance.choice(WORDS[label].split()))
        rows.append((" ".join(words), label))
    return rows


def ask_bundle(bundle: Path, *texts: str) -> list[Any]:
    """What a bundle's own Python program answers, in a process that has nothing of edgekd's on its path."""
    code = (
        "import json, sys\nimport edgekd_app\n"
        "assert not any(name.split('.')[0] == 'edgekd' for name in sys.modules)\n"
        "sys.argv = ['app', *json.load(sys.stdin)]\nraise SystemExit(edgekd_app.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([str(bundle), *texts]),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(bundle / "python")},
        cwd=bundle,
    )
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]  # answers may hold other line ends


def write_csv(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> Path:
    """A CSV file with a header."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def in_two_processes(stage: str, recipe: Path, run: Path, timeout: float) -> Any:
    """What ``edgekd STAGE --json`` prints in two processes: one document, of the first one.

    By torchrun, as accelerate starts the processes of several GPUs; on CPUs it would start one.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgekd"]
    command += [stage, str(recipe), "--run-dir", str(run), "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
