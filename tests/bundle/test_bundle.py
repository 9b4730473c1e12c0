"""A bundle is whole, says where it comes from, answers as the run did, and is refused where it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _material import ask_bundle
from _run import Run

from edgekd import outcome
from edgekd.bundle import _native, stage
from edgekd.errors import BadInput


def test_a_bundle_tests_itself_and_answers_as_the_run_did(run: Run, tmp_path: Path) -> None:
    stage.make(run.app(), "linux", tmp_path / "app")
    [report] = ask_bundle(tmp_path / "app")
    assert report["passed"] and report["texts"] == 8 and report["wrong"] == [] and report["milliseconds"] > 0
    expected = run.expected()[:20]
    answers = ask_bundle(tmp_path / "app", *[text for text, _ in expected])
    for answer, (_, wanted) in zip(answers, expected, strict=True):
        assert [label for label, _ in answer] == [one["label"] for one in wanted]
        np.testing.assert_allclose([share for _, share in answer], [one["score"] for one in wanted], atol=1e-6)


def test_the_self_test_finds_another_model_and_another_tokenizer(run: Run, tmp_path: Path) -> None:
    for number, change in enumerate(("logits", "ids")):
        bundle = tmp_path / f"app{number}"
        stage.make(run.app(), "linux", bundle)
        golden = json.loads((bundle / "model" / "golden.json").read_text())
        if change == "logits":
            golden["outputs"]["logits"][2][0] += 3.0
        else:
            golden["inputs"]["input_ids"][2][1] += 1
        (bundle / "model" / "golden.json").write_text(json.dumps(golden))
        [report] = ask_bundle(bundle)
        assert not report["passed"]
        assert report["wrong"][0].startswith("text 3: " + {"logits": "an output is off", "ids": "token ids"}[change])
        assert stage.verify(bundle)["changed"] == ["model/golden.json"]


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        stage.make(run.app(), "linux", tmp_path / name)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_where_it_comes_from(run: Run, tmp_path: Path) -> None:
    stage.make(run.app(), "linux", tmp_path / "app")
    stated = json.loads((tmp_path / "app" / "bundle.json").read_text())
    provenance = stated["provenance"]
    assert provenance["teacher"] == "teacher" and provenance["tools"]["onnxruntime"]
    assert provenance["artifact"] == run.result.steps["export-onnx-w8a8"].digest
    assert stated["unverified"] == [] and stated["verdict"] == "pass"
    assert stated["runtime"]["package"] == "onnxruntime"
    assert {abi for abi, size in stated["runtime"]["bytes"].items() if size > 1e7} == {"x86_64", "aarch64"}
    sizes = {str(p.relative_to(tmp_path / "app")): p.stat().st_size for p in (tmp_path / "app").rglob("*.*")}
    assert sum(stated["parts"].values()) == sum(sizes.values()) - sizes["bundle.json"]
    assert str(run.folder) not in "".join(p.read_text(errors="replace") for p in (tmp_path / "app").rglob("*.json"))


def test_the_bill_of_materials_is_one(run: Run, tmp_path: Path) -> None:
    """Judged by CycloneDX's own validator."""
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    stage.make(run.app(), "linux", tmp_path / "app")
    text = (tmp_path / "app" / "bom.cdx.json").read_text()
    try:
        problem = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except Exception as error:  # its optional half
        pytest.skip(f"the validator is not complete: {error}")
    assert problem is None
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"type": "file"', '"type": 3'))


def test_verify_finds_every_change(run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "app"
    stage.make(run.app(), "linux", bundle)
    assert stage.verify(bundle)["passed"] and stage.verify(bundle)["signature"] == "none"
    model = bundle / "model" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    (bundle / "python" / "requirements.txt").unlink()
    (bundle / "python" / "more.py").write_text("")
    found = stage.verify(bundle)
    assert not found["passed"]
    assert (found["changed"], found["missing"], found["unknown"]) == (
        ["model/model.onnx"],
        ["python/requirements.txt"],
        ["python/more.py"],
    )
    with pytest.raises(BadInput, match="no bundle here"):
        stage.verify(tmp_path)


def test_a_signature_holds_and_breaks(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("model_signing.signing", reason="model-signing is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = []
    for name in ("mine", "other"):
        private = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        (tmp_path / f"{name}.key").write_bytes(
            private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
        keys.append(tmp_path / f"{name}.pub")
    stage.make(run.app(), "linux", tmp_path / "app", key=tmp_path / "mine.key")
    assert stage.verify(tmp_path / "app")["signature"] == "not checked"
    assert stage.verify(tmp_path / "app", keys[0])["signature"] == "valid"
    assert stage.verify(tmp_path / "app", keys[1])["signature"] == "wrong"
    (tmp_path / "app" / "README.md").write_text("another")
    found = stage.verify(tmp_path / "app", keys[0])
    assert found["signature"] == "wrong" and not found["passed"]
    with pytest.raises(BadInput, match="cannot be signed"):
        stage.make(run.app(), "linux", tmp_path / "unsigned", key=tmp_path / "mine.pub")
    assert not (tmp_path / "unsigned").exists()


@pytest.mark.parametrize(
    ("change", "platform", "told"),
    [
        ({"name": "My App"}, "linux", "no package name"),
        ({"target": "coreml"}, "linux", "linux has no library for the target coreml.*It takes"),
        ({"task": "image-classification"}, "linux", "no library for the task image-classification"),
        ({"tokenizer": "own"}, "linux", "no library for the tokenizer own"),
        ({"verdict": {"verdict": "fail", "reasons": ["p50 is 9"]}}, "linux", "did not pass the gate: p50 is 9"),
        ({"verdict": {"verdict": "failed", "reasons": []}}, "linux", "it was not verified"),
        ({}, "symbian", "unknown platform 'symbian'"),
    ],
)
def test_what_cannot_work_is_told_and_nothing_is_written(
    run: Run, change: dict[str, Any], platform: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=told):
        stage.make(run.app(**change), platform, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_and_a_missing_tokenizer_are_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        stage.make(run.app(), "linux", tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        stage.make(run.app(artifact=tmp_path / "bare"), "linux", tmp_path / "app")
    with pytest.raises(BadInput, match=r"no artefact 'onnx-w4'.*Known: onnx-fp32, onnx-w8a8"):
        outcome.app(run.result, "tiny", "onnx-w4")


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Precompiled"}]}, "normalizer Precompiled"),
        ("pre_tokenizer", {"type": "Digits"}, "pre-tokenizer Digits"),
        ("model", {"type": "WordLevel"}, "model WordLevel"),
        ("post_processor", {"type": "Sequence", "processors": [{"type": "Odd"}]}, "post-processor Odd"),
    ],
)  # fmt: skip
def test_a_tokenizer_without_a_native_core_is_told(run: Run, part: str, value: Any, told: str, tmp_path: Path) -> None:
    """And the tiny one, with the older spelling of its model too, has one; what C++ runs more is for boards alone."""
    tokenizer = json.loads((run.app().artifact / "tokenizer.json").read_text())
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer))
    _native.check(file, "android")
    tokenizer["model"].pop("type")
    file.write_text(json.dumps(tokenizer))
    _native.check(file, "android")
    file.write_text(json.dumps({**tokenizer, part: value}))
    with pytest.raises(BadInput, match=f"no native core runs the {told} on android"):
        _native.check(file, "android")
    if told.endswith("Precompiled"):
        _native.check(file, "linux")


def test_what_is_not_verified_says_so(run: Run, tmp_path: Path) -> None:
    failed = {"verdict": "fail", "reasons": ["accuracy drop is 0.3"], "checks": []}
    stage.make(run.app(verdict=failed), "linux", tmp_path / "app", allow_unverified=True)
    assert json.loads((tmp_path / "app" / "bundle.json").read_text())["unverified"] == ["accuracy drop is 0.3"]
    assert "**Not verified**" in (tmp_path / "app" / "README.md").read_text()
    assert stage.verify(tmp_path / "app")["unverified"] == ["accuracy drop is 0.3"]


def test_the_command_line(run: Run, edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = edgekd("bundle", str(run.folder), "--platform", "linux", "--out", str(tmp_path / "app"), "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["name"] == "tiny" and json.loads(made.out)["scheme"] == "w8a8"
    assert edgekd("bundle", "verify", str(tmp_path / "app")).code == 0
    (tmp_path / "app" / "app.json").write_text("{}")
    assert edgekd("bundle", "verify", str(tmp_path / "app")).code == 1
    again = edgekd("bundle", str(run.folder), "--platform", "linux", "--out", str(tmp_path / "app"))
    assert again.code == 2 and "exists already" in again.err
