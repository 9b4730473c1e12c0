"""Images by their pixels, whatever file they came in; pixel values against transformers' formula in numpy."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd.errors import BadInput
from edgekd.tasks import image_classification as task


def file_of(pixels: np.ndarray, kind: str = "PNG", **options: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTImageProcessorPil

    made = tmp_path_factory.mktemp("processor")
    processor = ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    processor.save_pretrained(made)
    return made


def test_pixel_values_are_scaled_and_normalised_by_channel(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (found,) = task.encode(task.processor(folder), [{"image": file_of(pixels)}], 64)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert found["pixel_values"].dtype == np.float32
    np.testing.assert_allclose(found["pixel_values"], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_grey_images_get_three_channels_and_other_sizes_the_models(folder: Path) -> None:
    grey = np.full((20, 12), 51, np.uint8)
    (found,) = task.encode(task.processor(folder), [{"image": file_of(grey)}], 64)
    expected = np.broadcast_to(((0.2 - np.array([0.1, 0.2, 0.3])) / [0.5, 0.6, 0.7])[:, None, None], (3, 8, 8))
    np.testing.assert_allclose(found["pixel_values"], expected, rtol=1e-5, atol=1e-6)


def test_an_images_name_is_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    names = {
        task.sample_text({"image": image})
        for image in (file_of(pixels), file_of(pixels, compress_level=0), file_of(np.stack([pixels] * 3, -1)))
    }
    assert len(names) == 1
    other, turned = pixels.copy(), pixels.reshape(6, 4)
    other[0, 0] ^= 1
    assert names.isdisjoint({task.sample_text({"image": file_of(x)}) for x in (other, turned)})


def test_labels_by_name_and_files_that_are_images() -> None:
    image = file_of(np.zeros((2, 2), np.uint8))
    assert task.example({"image": image, "label": "cat"}, ["dog", "cat"]) == {"image": image, "label": 1}
    assert task.example({"image": image}, []) == {"image": image}
    for wrong in ("no base64!", base64.b64encode(b"text").decode(), ""):
        with pytest.raises(BadInput, match="no image"):
            task.example({"image": wrong, "label": "cat"}, ["dog", "cat"])


def test_a_text_model_is_refused() -> None:
    from transformers import BertConfig

    with pytest.raises(BadInput, match="not an image classifier"):
        task.labels(BertConfig(architectures=["BertForSequenceClassification"]), None)
