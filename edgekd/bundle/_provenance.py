"""Where a bundle comes from and what is in it: digests, a bill of materials, a signature, and the check of them all.

``bundle.json`` has the SHA-256 of every file. The bill of materials is CycloneDX 1.6 with a model card
(https://cyclonedx.org/docs/1.6/json/); the signature is OpenSSF Model Signing's, over the whole folder. Nothing in a
bundle depends on when or where it was made: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.artifact import Facts, sha256_file
from edgekd.bundle._contract import App
from edgekd.errors import BadInput, Environment

SCHEMA = "edgekd/bundle/1"
MANIFEST, BOM, SIGNATURE = "bundle.json", "bom.cdx.json", "model.sig"
UNSEALED = frozenset({MANIFEST, SIGNATURE})  # what cannot hold its own digest
SPACE = uuid.UUID("6a6f3c1e-5d0b-5a39-9c57-3f6a2f9d8f10")  # of the serial numbers


def text(value: Any) -> bytes:
    """JSON as every file of a bundle has it."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def manifest(
    app: App,
    platform: str,
    place: str | None,
    digests: Mapping[str, str],
    parts: Mapping[str, int],
    runtime: Facts,
    unverified: bool,
) -> Facts:
    """``bundle.json``."""
    return {
        "schema": SCHEMA,
        "name": app.name,
        "platform": platform,
        "task": app.task,
        "target": app.target,
        "scheme": app.scheme,
        "verdict": app.verdict["verdict"],
        "unverified": list(app.verdict["reasons"]) or ["the run's gate was not passed"] if unverified else [],
        "provenance": dict(app.provenance),
        "licenses": licenses(app),
        "parts": dict(parts),
        "runtime": dict(runtime),
        "place": place,
        "files": dict(sorted(digests.items())),
    }


def licenses(app: App) -> list[dict[str, Any]]:
    """Of what the bundle holds. edgekd cannot know the model's: the recipe may state it, and it says whose apply."""
    return [
        {"part": "library", "license": "Apache-2.0"},
        {
            "part": "model",
            "license": app.provenance["license"],
            "note": f"distilled from {app.provenance['teacher']}: the licences of teacher and data apply",
        },
    ]


def parts(sizes: Mapping[str, int], place: str | None, beside: Sequence[str] = ()) -> dict[str, int]:
    """Bytes that the bundle adds to an app, by part; the runtime's package comes on top. Code is its source.

    Where ``place`` is None there is no code: all but the papers is the model. What lies in the folders ``beside`` does
    not end in an app.
    """
    found = {"model": 0, "tokenizer": 0, "code": 0, "tests and papers": 0}
    inside = f"{place}/model/" if place else "model/" if place == "" else ""
    papers = {f"{inside}golden.json", "README.md", BOM}
    for name, size in sizes.items():
        outside = any(name.startswith(f"{folder}/") for folder in beside)
        if name in papers or outside or (place is not None and "/" not in name and name != "app.json"):
            kind = "tests and papers"
        elif name.startswith(inside):
            kind = "tokenizer" if "token" in name or "vocab" in name else "model"
        else:
            kind = "code"
        found[kind] += size
    return found


def bom(app: App, digests: Mapping[str, str], runtime: str) -> dict[str, Any]:
    """The bill of materials: the model as a component, the libraries and the runtime it needs."""
    files = [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in sorted(digests.items())
    ]
    metrics = [
        {"type": name, "value": str(value)}
        for name, value in sorted(app.measured.get("metrics", {}).items())
        if isinstance(value, int | float)
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": app.name,
        "version": app.scheme,
        "description": f"{app.task}, {app.target}, {app.scheme}",
        **({"licenses": [{"license": {"name": app.provenance["license"]}}]} if app.provenance["license"] else {}),
        "modelCard": {
            "modelParameters": {"task": app.task, "approach": {"type": "supervised"}},
            "quantitativeAnalysis": {"performanceMetrics": metrics},
        },
        "pedigree": {"ancestors": [{"type": "machine-learning-model", "name": str(app.provenance["teacher"])}]},
        "components": files,
    }
    code = {"type": "library", "name": "edgekd", "version": app.provenance["edgekd"]}
    packages = [{"type": "library", "name": runtime, "scope": "required"}]
    seed = hashlib.sha256(text([app.settings, dict(digests)])).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(SPACE, seed)}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "bundle", "name": app.name}},
        "components": [model, {**code, "licenses": [{"license": {"id": "Apache-2.0"}}]}, *packages],
    }


def sign(folder: Path, key: Path) -> None:
    """Write the signature with an elliptic-curve private key (PEM); raises Environment or BadInput."""
    signing, hashing = _library("signing"), _library("hashing")
    signature = folder / SIGNATURE
    files = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    try:
        signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(files).sign(folder, signature)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"the bundle cannot be signed with this key ({error})", where=str(key)) from None


def check(folder: Path, public_key: Path | None) -> Facts:
    """What is wrong with a bundle: ``changed``, ``missing``, ``unknown``, ``signature``; raises BadInput for none."""
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(stated["files"]) if stated["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no bundle here ({error})", where=str(folder)) from None
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - UNSEALED
    changed = [name for name in sorted(there & set(files)) if sha256_file(folder / name) != files[name]]
    found = {
        "changed": changed,
        "missing": sorted(set(files) - there),
        "unknown": sorted(there - set(files)),
        "unverified": list(stated.get("unverified", [])),
        "signature": _signature(folder, public_key),
    }
    wrong = bool(changed or found["missing"] or found["unknown"]) or found["signature"] in ("wrong", "missing")
    return {**found, "passed": not wrong}


def _signature(folder: Path, public_key: Path | None) -> str:
    """``valid``, ``wrong``, ``missing`` (a key was given), ``none``, or ``not checked`` (there is one, and no key)."""
    signed = (folder / SIGNATURE).is_file()
    if public_key is None:
        return "not checked" if signed else "none"
    if not signed:
        return "missing"
    verifying = _library("verifying")
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, folder / SIGNATURE)
    except FileNotFoundError as error:
        raise BadInput(f"the key cannot be read ({error})", where=str(public_key)) from None
    except Exception:  # the library has no exception of its own: a signature that raises is none
        return "wrong"
    return "valid"


def _library(name: str) -> Any:
    import importlib
    import importlib.util

    if importlib.util.find_spec("model_signing") is None:
        raise Environment("the package 'model-signing' is missing", todo="pip install 'edgekd[sign]'.")
    return importlib.import_module(f"model_signing.{name}")
