"""Modalities beyond encoding: statistics for drift tests, and inputs as a terminal shows them."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_distill.errors import EvaluationError
from ray_distill.tasks.inputs.image import IMAGE
from ray_distill.tasks.inputs.text import TEXT


def test_text_statistics():
    """Characters, words, and the share of characters outside ASCII."""
    found = TEXT.statistics(pa.chunked_array([["ab c", "häß", ""]]))
    assert {k: list(v) for k, v in found.items()} == {
        "characters": [4, 3, 0],
        "words": [2, 1, 0],
        "non_ascii_share": [0, 2 / 3, 0],
    }


def test_image_statistics():
    """Brightness, contrast, edges and pixels of encoded images."""
    grey = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    data = []
    for pixels in (grey, np.full((1, 3), 255, dtype=np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        data.append(buffer.getvalue())
    found = IMAGE.statistics(pa.chunked_array([data], pa.large_binary()))
    assert {k: list(v) for k, v in found.items()} == {
        "brightness": [0.5, 1],
        "contrast": [0.5, 0],
        "edges": [1, 0],
        "pixels": [4, 3],
    }
    with pytest.raises(EvaluationError, match="row 0 cannot be decoded"):
        IMAGE.statistics(pa.chunked_array([[b"no image"]], pa.large_binary()))


def test_a_text_and_an_image_are_shown_as_a_terminal_can():
    """A long text is cut and says by how much; an image is drawn in shades; what is neither says so."""
    assert TEXT.show("grüße".encode()) == "text: grüße"
    assert TEXT.show(b"x" * 2003).endswith("x… and 3 more characters")
    shades = np.zeros((8, 8), np.uint8)
    shades[:, 4:] = 255
    data = io.BytesIO()
    Image.fromarray(shades).save(data, "PNG")
    first, *lines = IMAGE.show(data.getvalue()).splitlines()
    assert first == "image: 8 × 8, L" and len(lines) == 8
    assert all(line.strip().endswith("@@@") and not line.startswith("@") for line in lines)
    assert "no readable image" in IMAGE.show(b"none")
