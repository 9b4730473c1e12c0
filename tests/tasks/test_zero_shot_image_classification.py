"""Recall and the contrastive loss against their definitions in numpy; rows of a pair; what is refused."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.errors import BadInput
from edgekd.tasks import _parts
from edgekd.tasks import zero_shot_image_classification as task


def image(shade: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), shade, np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def rows(texts: list[str], shades: list[int] | None = None) -> list[dict]:  # type: ignore[type-arg]
    made = [{"image": image(shade), "text": text} for shade, text in zip(shades or range(99), texts, strict=False)]
    return task.expand([task.example(one, []) for one in made], None, 64)  # type: ignore[return-value]


def test_a_pair_is_two_rows_that_name_themselves_and_stay_together() -> None:
    made = rows(["a cat", "a dog"])
    assert [task.part_of(row) for row in made] == ["image", "text", "image", "text"]
    assert task.targets(made) == ["a cat", "a cat", "a dog", "a dog"]
    assert task.group_text(made[0]) == task.group_text(made[1]) == task.sample_text(made[0]) != task.group_text(made[2])
    assert task.sample_text(made[1]) == "a cat"
    assert [task.sample_text(row) for row in _parts.mine(_parts.Part(task, "text"), made)] == ["a cat", "a dog"]
    assert _parts.places(_parts.Part(task, "image"), made) == [0, 2] and _parts.places(task, made) == [0, 1, 2, 3]


def test_recall_counts_different_texts_and_images_once() -> None:
    units = np.eye(4)
    texts, shades = ["a cat", "a dog", "a cat", "a bird"], [1, 2, 3, 1]  # the first image has two texts
    cat, dog, bird = units[:3]
    outputs = np.stack([2 * cat, cat, bird, dog, cat + 0.1 * dog, cat, 2 * cat, bird])
    found = task.metrics(outputs, rows(texts, shades))
    # Images: 1 -> a cat (right), 2 -> a bird (wrong), 3 -> a cat (right). Texts: a cat -> 1, the others -> not theirs.
    assert found == {"image_to_text": pytest.approx(2 / 3), "text_to_image": pytest.approx(1 / 3)}
    better = outputs.copy()
    better[2] = dog
    assert task.metrics(better, rows(texts, shades))["image_to_text"] == 1.0
    assert task.metrics(outputs, rows(texts, shades), better)["teacher_agreement"] == pytest.approx(2 / 3)
    assert task.metrics(outputs, rows(texts, shades), outputs[:, :3])["teacher_agreement"] == 1.0  # of another width


def test_over_one_text_a_class_recall_is_accuracy() -> None:
    chance = np.random.default_rng(0)
    prompts = chance.normal(size=(5, 8))
    classes = np.array([*range(5), *chance.integers(0, 5, 35)])
    images = prompts[classes] + 1.5 * chance.normal(size=(40, 8))
    outputs = np.stack([images, prompts[classes]], 1).reshape(80, 8)
    cosines = images @ prompts.T / np.linalg.norm(prompts, axis=1)
    accuracy = (cosines.argmax(1) == classes).mean()
    assert 0.3 < accuracy < 1
    found = task.metrics(outputs, rows([f"a photo of {label}" for label in classes]))
    assert found["image_to_text"] == pytest.approx(accuracy)


def test_the_loss_is_clips_where_texts_differ_and_shares_targets_where_they_do_not() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(8, 5, requires_grad=True)
    images, texts = outputs[::2], outputs[1::2]
    logits = images @ texts.T
    own = torch.arange(4)
    cross = torch.nn.functional.cross_entropy
    plain = (cross(logits, own) + cross(logits.T, own)) / 2
    assert task.hard_loss(outputs, [*"aabbccdd"]).item() == pytest.approx(plain.item(), rel=1e-6)
    shared = torch.eye(4)
    shared[0, 2] = shared[2, 0] = 1
    shared /= shared.sum(1, keepdim=True)
    both = (cross(logits, shared) + cross(logits.T, shared)) / 2
    found = task.hard_loss(outputs, [*"aabbaadd"])
    assert found.item() == pytest.approx(both.item(), rel=1e-6) != pytest.approx(plain.item(), rel=1e-3)
    found.backward()
    assert outputs.grad.isfinite().all() and outputs.grad.any()


def test_what_is_refused() -> None:
    from transformers import CLIPConfig, SiglipConfig

    assert task.labels(CLIPConfig(), None) == []
    with pytest.raises(BadInput, match="siglip model, not CLIP"):
        task.labels(SiglipConfig(), None)
    with pytest.raises(BadInput, match="has no labels"):
        task.labels(CLIPConfig(), ["cat", "dog"])
    with pytest.raises(BadInput, match="without a text"):
        task.example({"image": image(1), "text": " "}, [])
    with pytest.raises(BadInput, match="no image"):
        task.example({"image": "no base64!", "text": "a cat"}, [])
