"""Two runs against each other: what is called a regression, what is not, and what may not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import measurement
from edgekd.bench import compare
from edgekd.errors import EXIT_BAD_INPUT, BadInput
from edgekd.measurement import Measurement

CHANCE = np.random.default_rng(3)
REQUESTED = {
    "backend": "XNNPACK",
    "threads": 1,
    "length": "p50",
    "texts": 8,
    "cpu_affinity": None,
    "warmup_runs": 5,
    "warmup_seconds": 0.5,
    "min_runs": 100,
    "min_seconds": 3.0,
    "max_seconds": 30.0,
    "blocks": 3,
}
OBSERVED = {
    "backend": "XNNPACK",
    "threads": 1,
    "tokens": [14],
    "cpu_affinity": [0, 1],
    "versions": {"ai-edge-litert": "2.1"},
}
MIB = 1 << 20


def made(ms: float = 1.0, *, blocks: int = 3, runs: int = 400, noise: float = 0.01, **change: Any) -> Measurement:
    """A measurement of about ``ms``; keyword arguments replace fields, or entries of ``requested`` and ``observed``."""
    levels = ms * np.exp(CHANCE.normal(0, noise, blocks))
    latency = tuple(tuple(int(x) for x in CHANCE.lognormal(0, 0.02, runs) * level * 1e6) for level in levels)
    requested = {**REQUESTED, **{k: change.pop(k) for k in list(change) if k in REQUESTED and k != "threads"}}
    requested["blocks"] = blocks
    observed = {**OBSERVED, **change.pop("observed", {})}
    fields: dict[str, Any] = {
        "target": "litert",
        "scheme": "w8a8",
        "artifact": "d" * 64,
        "device": "local",
        "runtime": "litert",
        "threads": 1,
        "tokens": 14,
        "requested": requested,
        "observed": observed,
        "latency_ns": latency,
        "load_ns": tuple(int(x) for x in CHANCE.normal(5e6, 5e4, 3)),
        "first_inference_ns": (2_000_000,),
        "memory": {"peak_above_bytes": 20 * MIB},
        "environment": {"os": "Linux", "cpu": "some", "cores": 2, "load_average_before": [1, 2, 3]},
    }
    return Measurement(**{**fields, **change})


def only(a: Measurement, b: Measurement, **options: Any) -> dict[str, Any]:
    [row] = compare.compare([a], [b], **options)
    json.dumps(row, allow_nan=False)
    return dict(row)


def test_a_slower_run_is_a_regression() -> None:
    row = only(made(1.0), made(1.2))
    assert row["verdict"] == "slower" and row["regression"] and row["regressions"] == ["latency"]
    assert row["ratio"] == pytest.approx(1.2, rel=0.03) and row["interval"][0] < row["ratio"] < row["interval"][1]
    assert row["p"] < 1e-6 and row["interleaved"] is False and "not interleaved" in row["why"]
    assert row["old_ms"] == pytest.approx(1, rel=0.03) and row["runs"] == [1200, 1200]
    faster = only(made(1.2), made(1.0))
    assert faster["verdict"] == "faster" and not faster["regression"]


def test_a_sure_difference_within_the_threshold_is_none() -> None:
    row = only(made(1.0, noise=0), made(1.03, noise=0))
    assert row["verdict"] == "cannot tell" and not row["regression"] and row["p"] < 1e-6
    assert only(made(1.0, noise=0), made(1.03, noise=0), threshold=0.01)["verdict"] == "slower"


def test_an_interval_that_reaches_into_the_threshold_is_no_proof() -> None:
    old = made(1.0, noise=0)
    new = made(1.0, noise=0)
    late = Measurement(**{**vars(new), "latency_ns": (new.latency_ns[0], *(made(1.3, noise=0).latency_ns[:2]))})
    row = only(old, late)
    assert row["ratio"] > 1.2 and row["interval"][0] < 1.05
    assert row["verdict"] == "cannot tell" and not row["regression"]


@pytest.mark.parametrize("flag", ["loaded_machine", "too_few_runs"])
def test_a_doubtful_measurement_proves_nothing(flag: str) -> None:
    for row in (only(made(1.0), made(2.0, flags=(flag,))), only(made(1.0, flags=(flag,)), made(2.0))):
        assert row["verdict"] == "cannot tell" and not row["regression"]
        assert measurement.FLAGS[flag] in row["why"]
    assert only(made(1.0), made(2.0, flags=("governor",)))["regression"]


def test_an_emulated_processor_has_no_latency() -> None:
    row = only(made(1.0), made(2.0, flags=("emulated",)))
    assert row["verdict"] == "cannot tell" and "numerics only" in row["why"] and not row["regression"]


def test_one_block_does_not_tell() -> None:
    row = only(made(1.0, blocks=1), made(2.0, blocks=1))
    assert row["verdict"] == "cannot tell" and "single block" in row["why"]


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_unchanged_runs_are_rarely_called_regressions(noise: float) -> None:
    """40 pairs of runs of the same artefact, whose blocks differ by ``noise``."""
    false = sum(
        only(made(1.0, noise=noise, runs=60), made(1.0, noise=noise, runs=60))["regression"] for _ in range(100)
    )
    assert false <= 3


def test_twenty_percent_is_found() -> None:
    found = sum(only(made(1.0, noise=0.02, runs=60), made(1.2, noise=0.02, runs=60))["regression"] for _ in range(20))
    assert found >= 18


@pytest.mark.parametrize(
    ("old", "new", "word", "regression"),
    [
        (20 * MIB, 24 * MIB, "more", True),
        (20 * MIB, 20.5 * MIB, "same", False),
        (4 * MIB, 4.5 * MIB, "same", False),  # 12 %, but less than a MiB
        (24 * MIB, 20 * MIB, "less", False),
    ],
)
def test_memory(old: float, new: float, word: str, regression: bool) -> None:
    a, b = (made(memory={"peak_above_bytes": int(size)}) for size in (old, new))
    row = only(a, b)
    assert row["memory"]["verdict"] == word and row["memory"]["regression"] is regression
    assert row["regression"] is regression and row["regressions"] == ["memory"] * regression
    flagged = Measurement(**{**vars(b), "flags": ("memory_not_reset",)})
    assert only(a, flagged)["memory"]["verdict"] == "cannot tell"
    assert only(a, made(memory={}))["memory"] is None


def test_load_time() -> None:
    before, after = (made(load_ns=tuple(int(1e6 * x) for x in loads)) for loads in ((5, 5.1, 5.2), (7, 7.1, 6.9)))
    row = only(before, after)
    assert row["load"]["verdict"] == "slower" and row["regressions"] == ["load"]
    assert only(after, before)["load"]["verdict"] == "faster"
    mixed = made(load_ns=(5_150_000, 7_000_000, 7_100_000))  # one of the new ones is as fast as the old ones
    assert only(before, mixed)["load"]["verdict"] == "cannot tell"
    assert only(before, made(load_ns=(7_000_000,)))["load"]["verdict"] == "cannot tell"
    assert only(before, made(load_ns=()))["load"] is None


def test_energy_and_drift_where_there_are_any() -> None:
    row = only(made(), made())
    assert row["energy"] is None and row["drift"] is None
    row = only(made(observed={"energy_uj": 100.0}), made(observed={"energy_uj": 150.0}))
    assert row["energy"]["ratio"] == 1.5 and row["energy"]["verdict"] == "more" and not row["energy"]["regression"]

    one = made()
    object.__setattr__(one, "sustained", {"samples_ns": [10] * 50 + [12] * 50})
    assert compare.drift_of(one) == 1.2
    object.__setattr__(one, "sustained", {"samples_ns": [10] * 5})
    assert compare.drift_of(one) is None


@pytest.mark.parametrize(
    "change",
    [
        {"texts": 4},
        {"warmup_runs": 0},
        {"warmup_seconds": 0.0},
        {"min_runs": 10},
        {"min_seconds": 1.0},
        {"blocks": 10},
        {"cpu_affinity": [0]},
        {"backend": "CPUExecutionProvider"},
        {"tokens": 15},
        {"observed": {"backend": "reference kernels"}},
        {"observed": {"threads": 4}},
        {"observed": {"tokens": [64]}},
        {"observed": {"cpu_affinity": [0]}},
    ],
)
def test_another_protocol_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(compare.Mismatch, match="not measured in the same way") as error:
        compare.compare([made()], [made(**change)])
    assert error.value.exit_code == EXIT_BAD_INPUT
    assert "litert-w8a8 on local, 1 thread, p50" in str(error.value) and error.value.todo


def test_versions_and_machines_are_notes() -> None:
    row = only(made(), made(observed={"versions": {"ai-edge-litert": "2.2"}}, environment={"os": "Linux", "cores": 4}))
    assert row["notes"] == ["ai-edge-litert 2.1 and 2.2", "cores 2 and 4"]
    assert row["same_artifact"] is True and only(made(), made(artifact="e" * 64))["same_artifact"] is False


def test_nothing_in_common_is_refused() -> None:
    for other in (
        [],
        [made(scheme="fp32")],
        [made(device="pixel")],
        [made(threads=2)],
        [made(length="max")],
        [made(latency_ns=(), error="it crashed")],
    ):
        with pytest.raises(BadInput, match="nothing in common"):
            compare.compare([made()], other)
    with pytest.raises(BadInput, match="threshold"):
        compare.compare([made()], [made()], threshold=5)


def test_two_devices_are_compared_and_never_regress() -> None:
    phone = made(9.0, device="phone", cpu_affinity=[4], observed={"backend": "XNNPACK-arm", "cpu_affinity": [4]})
    row = only(made(1.0), phone, devices=True)
    assert row["device"] == "phone" and row["against"] == "local"
    assert row["verdict"] == "slower" and not row["regression"]
    with pytest.raises(compare.Mismatch):
        only(made(), made(device="phone", warmup_runs=1), devices=True)


def test_what_is_no_longer_there_is_told() -> None:
    crashed = made(scheme="fp32", latency_ns=(), error="it crashed")
    old = [made(), made(scheme="fp32"), made(length="max")]
    absent = compare.missing(old, [made(), crashed])
    assert absent == [
        "litert-fp32 on local, 1 thread, p50: it crashed",
        "litert-w8a8 on local, 1 thread, max: not there",
    ]
    rows = compare.compare(old, [made(), crashed])
    document = compare.document(rows, absent)
    assert document["regression"] is False and document["missing"] == absent and len(document["rows"]) == 1


# --- files ---


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    measurements = [made(), made(scheme="fp32")]
    (tmp_path / "run" / "bench").mkdir(parents=True)
    lines = tmp_path / "run" / "bench" / "measurements.jsonl"
    measurement.write(lines, measurements)
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(compare.baseline(measurements)))
    for path in (tmp_path / "run", lines, lines.parent):
        assert compare.read(path) == measurements
    one_line = tmp_path / "one.jsonl"
    measurement.write(one_line, measurements[:1])
    assert compare.read(one_line) == measurements[:1]
    assert [one.scheme for one in compare.read(file)] == ["w8a8", "fp32"]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("", "holds no measurements"),
        ("none", "no such file"),
        ("empty.jsonl", "holds no measurements"),
        ("broken.json", "not valid JSON"),
        ("bytes", "cannot be read"),
    ):
        with pytest.raises(BadInput, match=said) as error:
            compare.read(tmp_path / name)
        assert str(tmp_path) in str(error.value)


def test_a_baseline_is_small_and_compares_as_the_run_does() -> None:
    failed = made(latency_ns=(), error="it crashed", length="max")
    old, new = [made(1.0, runs=2000, blocks=10)], [made(1.2, runs=2000, blocks=10)]
    document = compare.baseline([*old, failed], created="2026-01-02T03:04:05Z")
    text = json.dumps(document)
    assert len(document["rows"]) == 1 and len(text) < 4000
    again = compare.from_baseline(json.loads(text))
    direct, kept = only(old[0], new[0]), only(again[0], new[0])
    for name in ("verdict", "regression", "runs", "memory", "notes", "same_artifact"):
        assert direct[name] == kept[name]
    assert kept["ratio"] == pytest.approx(direct["ratio"], rel=2e-3)
    assert kept["interval"] == pytest.approx(direct["interval"], abs=5e-3)
    assert kept["load"]["old"] == pytest.approx(direct["load"]["old"], rel=1e-3)
    assert compare.baseline(again)["rows"][0]["order_ns"] == document["rows"][0]["order_ns"]
    assert compare.baseline(again)["rows"][0]["runs"] == [2000] * 10
    assert only(again[0], again[0])["ratio"] == 1


def test_a_baseline_keeps_quantiles() -> None:
    one = made(runs=5001, blocks=2)
    [row] = compare.baseline([one])["rows"]
    for block, order in zip(one.latency_ns, row["order_ns"], strict=True):
        assert len(order) == 99 and order == sorted(order)
        assert order[0] == pytest.approx(min(block), rel=1e-3) and order[-1] == pytest.approx(max(block), rel=1e-3)
        assert np.median(order) == pytest.approx(np.median(block), rel=1e-3)
    assert row["p99_ns"] == pytest.approx(np.percentile(one.samples_ns(), 99), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema="edgekd/baseline/2"), "schema"),
        (lambda d: d.update(rows=[]), "no rows"),
        (lambda d: d["rows"].append(3), "row 2: is not an object"),
        (lambda d: d["rows"][0].pop("order_ns"), "order_ns"),
        (lambda d: d["rows"][0].pop("target"), "target"),
        (lambda d: d["rows"][0].update(order_ns=[[-1]]), "nanoseconds"),
        (lambda d: d["rows"][0].update(runs=[0]), "runs"),
    ],
)
def test_a_broken_baseline_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    document = json.loads(json.dumps(compare.baseline([made()])))
    change(document)
    (tmp_path / "b.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=said) as error:
        compare.read(tmp_path / "b.json")
    assert "b.json" in str(error.value)
    with pytest.raises(BadInput, match="no baseline"):
        compare.baseline([])


def test_doubt_of_interleaved_measurements_is_about_the_machine() -> None:
    unstable, loaded = made(flags=("unstable",)), made(flags=("loaded_machine", "unstable"))
    assert compare.doubt(unstable, interleaved=True) == ""
    assert compare.doubt(unstable, loaded, interleaved=True) == measurement.FLAGS["loaded_machine"]
    hot = made(flags=("loaded_machine", "hot"))
    assert compare.doubt(loaded, hot).count(";") == 1


def test_the_table_has_a_cell_for_every_column() -> None:
    columns, rows = compare.table(compare.compare([made()], [made(1.3)]))
    assert len(columns) == len(rows[0]) and "slower (regression)" in rows[0]
