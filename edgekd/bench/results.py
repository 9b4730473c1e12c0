"""From what a device answered to measurements, to the summary rows that tables and gates read, and to verdict words.

A measurement keeps what was asked for beside what was observed; a flag says what a reader must know before trusting it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from edgekd.artifact import Facts
from edgekd.bench import compare as comparing
from edgekd.bench import schedule, statistics
from edgekd.bench.devices import Device
from edgekd.bench.harness import Record
from edgekd.bench.subjects import Length, Subject
from edgekd.measurement import FLAGS, Measurement
from edgekd.recipe import Bench

SEED = 0  # of the bootstrap
OTHERS = 0.1  # share of all processors that other processes may use before a measurement is flagged
STABLE = 60  # stability score below which a measurement is flagged
MINIMAL_SECONDS = 0.2  # the kernel counts processor time in steps of 10 ms: too coarse for shorter blocks
COARSE = 20  # an inference shorter than this many ticks of the clock is not resolved
HOT = 45.0  # degrees Celsius of a battery, where a profile sets no limit: phones throttle about there

# What an artefact is meant to run on. The runner reports what it did run on.
BACKENDS = {"onnx": "CPUExecutionProvider", "litert": "XNNPACK", "executorch": "XnnpackBackend", "openvino": "CPU"}


def measurement(
    device: Device,
    threads: int,
    subject: Subject,
    length: Length,
    bench: Bench,
    record: Record,
    environment: Facts,
    judged: Facts,
) -> Measurement:
    """One subject at one length. ``judged``: its ``golden`` and ``test`` facts."""
    blocks = [_without_samples(block) for block in record.blocks]
    warmups = [block["warmup"] for block in blocks]
    protocol = {"warmup_runs", "warmup_seconds", "min_runs", "min_seconds", "max_seconds", "blocks"}
    requested = {
        "backend": backend(device, subject.runtime),
        "threads": threads,
        "length": length.name,
        "texts": len(length.rows[subject.name]),
        "synthetic": length.synthetic,
        "cpu_affinity": device.cpu_affinity,
        **bench.model_dump(include=protocol),
    }
    tokens = sorted({size for block in blocks for size in block["tokens"]})
    one = Measurement(
        target=subject.target,
        scheme=subject.scheme,
        artifact=subject.artifact,
        device=device.name,
        runtime=subject.runtime,
        threads=threads,
        tokens=length.tokens,
        requested=requested,
        observed={
            **record.observed,
            "tokens": tokens,
            "others_share": others_share(blocks),
            "energy_uj": energy_uj(record.blocks),
            **({"notes": record.notes} if record.notes else {}),
        },
        load_ns=tuple(record.load_ns),
        first_inference_ns=tuple(record.first_inference_ns),
        warmup={"runs": sum(w["runs"] for w in warmups), "seconds": sum(w["seconds"] for w in warmups)},
        latency_ns=tuple(tuple(block["samples_ns"]) for block in record.blocks),
        blocks=tuple(blocks),
        memory=record.memory,
        golden=judged.get("golden", {}),
        test=judged.get("test", {}),
        sustained=record.sustained,
        operators=tuple(record.operators),
        environment={**environment, "emulated": device.emulated},
        error=record.error,
    )
    return Measurement(**{**vars(one), "flags": tuple(flags(one, device))})


def backend(device: Device, runtime: str) -> str | None:
    """What a runtime is meant to run on there; None where that is left open."""
    return "wasm" if device.runner == "browser" else BACKENDS.get(runtime)


def _without_samples(block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name not in ("samples_ns", "schema", "version")}


def others_share(blocks: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of all processors that other processes (and other guests of the host) used during the blocks.

    None where the kernel does not tell, or tells too coarsely for so short a time.
    """
    wall = sum(block["wall_ns"] for block in blocks)
    busy = [block["machine_busy_ns"] for block in blocks]
    if wall < MINIMAL_SECONDS * 1e9 or None in busy:
        return None
    others = max(0, sum(busy) - sum(block["cpu_ns"] for block in blocks))
    return float(others / (wall * blocks[0]["cpus"]))


def energy_uj(blocks: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean microjoules of an inference (of the whole package or device); None where the device does not tell."""
    used = [block["energy"]["uj"] for block in blocks if block.get("energy")]
    runs = sum(len(block["samples_ns"]) for block in blocks)
    return float(sum(used) / runs) if runs and len(used) == len(blocks) else None


def flags(one: Measurement, device: Device | None = None) -> list[str]:
    """What a reader must know before trusting it; names from ``measurement.FLAGS``. None for a failed one."""
    if one.error:
        return []
    observed, requested, around = one.observed, one.requested, one.environment
    backend, wanted, samples = observed.get("backend"), requested["backend"], one.samples_ns()
    limit = (device.limits.temperature_c if device else None) or HOT
    tick = observed.get("clock_resolution_ns") or 0
    tests = {
        "too_few_runs": len(samples) < requested["min_runs"],
        "loaded_machine": (observed.get("others_share") or 0) > OTHERS,
        "backend_differs": None not in (wanted, backend) and not _same_backend(str(wanted), str(backend)),
        "threads_differ": observed.get("threads", one.threads) != one.threads,
        "unstable": statistics.stability(samples) < STABLE,
        "governor": around.get("governor") == "powersave",
        "throttled": bool(around.get("thermal_status")) or bool(around.get("thermal_status_after")),
        "hot": max(around.get("temperature_c") or 0, around.get("temperature_c_after") or 0) > limit,
        "on_battery": around.get("on_battery") is True,
        "coarse_clock": bool(samples) and statistics.percentile(samples, 50) < COARSE * tick,
        "memory_not_reset": one.memory.get("peak_reset") is False,
        "synthetic_inputs": requested.get("synthetic") is True,
        "emulated": around.get("emulated") is True,
        "own_attention": "attention" in observed,
        "golden_differs": one.golden.get("agreement", 1) < 1,
    }
    return [name for name, is_so in tests.items() if is_so]


def _same_backend(wanted: str, found: str) -> bool:
    """``found`` may name several (LiteRT's delegates) or say more (``wasm-simd-threaded``)."""
    return any(one == wanted or one.startswith(f"{wanted}-") for one in found.split(", "))


def summarise(one: Measurement, device: Device | None = None) -> Facts:
    """One row for tables and gates, times in milliseconds, memory in 10^6 bytes above the idle process.

    ``p50_ms`` is the median of the block medians and ``p50_ci_ms`` its 95 % bootstrap interval; ``p90_ms``
    and ``p99_ms`` are of all samples. A failed measurement has None in their places, and its error.
    """
    samples = one.samples_ns() if one.error is None else []
    interval = statistics.median_interval(one.latency_ns, seed=SEED) if samples else None
    peak, energy = one.memory.get("peak_above_bytes"), comparing.energy_of(one)
    return {
        "target": one.target,
        "scheme": one.scheme,
        "device": one.device,
        "threads": one.threads,
        "tokens": one.tokens,
        "fed_tokens": list(one.observed.get("tokens", [])),
        "length": one.requested.get("length"),
        "p50_ms": _ms(statistics.block_median(one.latency_ns)) if samples else None,
        "p50_ci_ms": [_ms(bound) for bound in interval] if interval else None,
        "p90_ms": _ms(statistics.percentile(samples, 90)) if samples else None,
        "p99_ms": _ms(statistics.percentile(samples, 99)) if samples else None,
        "runs": comparing.runs_of(one) if samples else 0,
        "load_ms": _ms(median(one.load_ns)) if one.load_ns else None,
        "first_ms": _ms(median(one.first_inference_ns)) if one.first_inference_ns else None,
        "peak_mb": round(peak / 1e6, 3) if peak is not None else None,
        "energy_mj": round(energy / 1e3, 4) if energy is not None and samples else None,
        "curve": [[_ms(ns), share] for ns, share in statistics.curve(samples)] if samples else None,
        "stability": round(statistics.stability(samples), 1) if samples else None,
        "drift": comparing.drift_of(one),
        "backend": one.observed.get("backend"),
        "versions": dict(one.observed.get("versions", {})),
        "golden": dict(one.golden),
        "test": dict(one.test),
        "emulated": one.environment.get("emulated") is True,
        "limits": device.limits.model_dump(exclude_none=True, exclude={"temperature_c"}) if device else {},
        "flags": list(one.flags),
        "error": one.error,
    }


def _ms(ns: float) -> float:
    return round(ns / 1e6, 5)


def compare(measurements: Sequence[Measurement]) -> list[Facts]:
    """Each quantized artefact against the float artefact of the same target, device, threads and length."""
    good = {(m.target, m.scheme, m.device, m.threads, m.tokens): m for m in measurements if m.error is None}
    rows = []
    for (target, scheme, device, threads, tokens), one in good.items():
        sibling = good.get((target, "fp32", device, threads, tokens))
        if scheme == "fp32" or sibling is None:
            continue
        doubt = comparing.doubt(one, sibling, interleaved=True)
        found = statistics.compare(one.latency_ns, sibling.latency_ns, doubt=doubt)
        emulated = one.environment.get("emulated") is True
        rows.append(
            {
                "target": target,
                "scheme": scheme,
                "against": "fp32",
                "device": device,
                "threads": threads,
                "tokens": tokens,
                "length": one.requested.get("length"),
                "verdict": "cannot tell" if emulated else found.verdict,
                "ratio": round(found.ratio, 4),
                "p": found.p,
                "why": FLAGS["emulated"] if emulated else found.why,
            }
        )
    return rows


def golden(subject: Subject, record: Record, task: Any) -> Facts:
    """How far the device's answers to the golden inputs are from the Program's; {} where there are none."""
    if not record.golden:
        return {}
    import numpy as np

    expected = [np.array(logits, np.float32) for _, logits in schedule.golden_rows(subject)]
    answers = [np.array(one, np.float32) for one in record.golden]
    if [a.shape for a in answers] != [b.shape for b in expected]:
        return {"samples": len(expected), "agreement": 0.0, "error": "outputs of another shape than the Program's"}
    found: dict[str, Any] = {
        "samples": len(expected),
        "max_abs_delta": max(float(np.abs(a - b).max()) for a, b in zip(answers, expected, strict=True)),
    }
    same_N = task.agree(answers, expected)  # tokens stand for units here
    return found if same_N is None else {**found, "agreement": float(np.mean(same_N))}


def test(
    subject: Subject,
    record: Record,
    task: Any,
    encoded: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
) -> Facts:
    """The test split as the device answered it: metrics, and agreement with the Program; {} where not asked."""
    if len(record.test) < len(examples) or not examples:
        return {}
    import numpy as np

    from edgekd.outputs import read_outputs

    outputs = [task.take(np.array(logits, np.float32), row) for logits, row in zip(record.test, encoded, strict=True)]
    found: dict[str, Any] = {"samples": len(outputs), "metrics": task.metrics(outputs, examples)}
    if subject.reference is None:
        return found
    program = read_outputs(subject.reference)
    pairs = list(zip(outputs, program, strict=True))
    if task.PER_UNIT:  # one of the two may have been cut earlier
        pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in pairs]
    same_N = task.agree(*map(list, zip(*pairs, strict=True)))
    found["identical"] = float(np.mean([np.array_equal(a, b) for a, b in pairs]))
    return found if same_N is None else {**found, "agreement": float(np.mean(same_N))}
