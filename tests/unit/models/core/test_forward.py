"""Processors, the forward pass, and pooling."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ray_distill.errors import ModelError
from ray_distill.models.core.forward import as_tokens, forward, pool_hidden
from ray_distill.models.text.processors import image_processor, resized, text_limit, text_processor, to_channels
from ray_distill.testing.models import tiny_image_processor, tiny_text_processor, tiny_tokenizer


def test_texts_become_ragged_ids_cut_at_the_limit() -> None:
    """Each text its own length, long ones cut at the end with their closing token kept."""
    processor = tiny_text_processor(max_length=6)
    ids = processor.texts(["ab", "a" * 50])["input_ids"]
    tokenizer = tiny_tokenizer()
    assert ids.values.dtype == np.int32 and ids.offsets.tolist() == [0, 4, 10]
    assert tokenizer.convert_ids_to_tokens(ids.values[:4]) == ["[CLS]", "a", "##b", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids.values[4:])[-1] == "[SEP]"
    assert processor.texts([])["input_ids"].offsets.tolist() == [0]


def test_a_processor_keeps_its_fingerprint_when_used_saved_and_sent(tmp_path: Path) -> None:
    """Use leaves no trace in it, and it survives pickling (Ray sends it to other processes)."""
    for processor in (tiny_text_processor(), tiny_image_processor()):
        sent = pickle.loads(pickle.dumps(processor))
        assert sent.fingerprint == processor.fingerprint
    text = tiny_text_processor()
    text.texts(["abc"])
    assert text_processor(text.tokenizer, text.max_length).fingerprint == text.fingerprint
    assert tiny_text_processor(32).fingerprint != text.fingerprint
    assert resized(tiny_image_processor(28), 14).fingerprint == tiny_image_processor(14).fingerprint
    assert tiny_image_processor(channels=3).fingerprint != tiny_image_processor(channels=1).fingerprint


def test_segment_ids_are_given_only_where_they_are_not_all_zero() -> None:
    """BERT takes zeros for granted; a tokenizer that marks its texts with 1 gets its ids through."""
    assert set(tiny_text_processor().texts(["ab"])) == {"input_ids"}
    tokenizer = tiny_tokenizer()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A:1 [SEP]:1", special_tokens=[("[SEP]", tokenizer.sep_token_id)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    features = text_processor(tokenizer, 16).texts(["ab", "c"])
    assert features["token_type_ids"].values.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("limit", "positions", "kind", "asked", "expected"),
    [
        (512, 128, "bert", None, 128),
        (100, 128, "bert", None, 100),
        (10**30, 514, "roberta", None, 512),
        (512, 128, "bert", 20, 20),
        (10**30, None, "conv", 20, 20),
    ],
)
def test_the_token_limit_is_the_smaller_of_tokenizer_and_model(
    limit: int, positions: int | None, kind: str, asked: int | None, expected: int
) -> None:
    """Families that count positions from the padding id have fewer than their config says."""
    config = SimpleNamespace(max_position_embeddings=positions, model_type=kind, pad_token_id=1)
    assert text_limit(SimpleNamespace(model_max_length=limit), config, asked) == expected


def test_no_known_token_limit_is_an_error() -> None:
    """Nothing is guessed."""
    with pytest.raises(ModelError, match="set max_length"):
        text_limit(SimpleNamespace(model_max_length=10**30), SimpleNamespace(), None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28, 3), (40, 7, 1), (300, 200, 3), (1, 1, 3)])
def test_images_of_any_size_and_colour_fit_the_model(channels: int, shape: tuple[int, int, int]) -> None:
    """Grey and colour convert to the model's channels, any size to its size; values follow mean and deviation."""
    processor = tiny_image_processor(28, channels)
    values = processor.images([np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8)])["pixel_values"]
    assert values.values.shape == (2, channels, 28, 28) and values.values.dtype == np.float32
    assert values.offsets.tolist() == [0, 1, 2]
    assert np.allclose(values.values[0], 1) and np.allclose(values.values[1], -1)


def test_no_images_are_no_images() -> None:
    """An empty list gives features of no rows."""
    assert tiny_image_processor().images([])["pixel_values"].values.shape == (0, 1, 28, 28)


def test_grey_is_the_luma_pillow_computes() -> None:
    """Within rounding."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    assert np.abs(to_channels(pixels, 1)[..., 0].astype(int) - expected).max() <= 1
    with pytest.raises(ModelError, match="4 channels"):
        to_channels(np.zeros((2, 2, 4), np.uint8), 1)


def test_a_mean_that_cannot_be_spread_is_an_error() -> None:
    """Three different means say nothing about one grey channel."""
    inner = tiny_image_processor(channels=3).processor
    inner.image_mean = [0.485, 0.456, 0.406]
    with pytest.raises(ModelError, match="image_mean"):
        image_processor(inner, 1)


def test_a_processor_of_many_output_sizes_is_an_error() -> None:
    """Keeping the aspect ratio without a crop gives images that cannot be batched."""
    inner = tiny_image_processor().processor
    inner.size = {"shortest_edge": 28}
    with pytest.raises(ModelError, match="several sizes"):
        image_processor(inner, 1).images([np.zeros((28, 28, 1), np.uint8), np.zeros((28, 56, 1), np.uint8)])


HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])


def test_pooling_looks_only_at_real_tokens() -> None:
    """Mean and last skip padding, cls is the first, token keeps the real ones in order."""
    assert torch.equal(pool_hidden(HIDDEN, MASK, "mean"), torch.stack([HIDDEN[0, :2].mean(0), HIDDEN[1].mean(0)]))
    assert torch.equal(pool_hidden(HIDDEN, MASK, "cls"), HIDDEN[:, 0])
    assert torch.equal(pool_hidden(HIDDEN, MASK, "last"), torch.stack([HIDDEN[0, 1], HIDDEN[1, 3]]))
    assert torch.equal(pool_hidden(HIDDEN, MASK, "token"), torch.cat([HIDDEN[0, :2], HIDDEN[1]]))
    assert torch.equal(pool_hidden(HIDDEN, None, "last"), HIDDEN[:, 3])
    with pytest.raises(ModelError, match="mean, cls, last or token"):
        pool_hidden(HIDDEN, MASK, "max")


def test_every_shape_of_hidden_state_becomes_tokens() -> None:
    """Feature maps by place, row by row; vectors as one token; others are refused."""
    maps = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    assert torch.equal(as_tokens(maps)[0, 1], maps[0, :, 0, 1])
    assert as_tokens(torch.zeros(2, 3)).shape == (2, 1, 3)
    with pytest.raises(ModelError, match="has shape"):
        as_tokens(torch.zeros(2))


class _Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def forward(self, output_hidden_states: bool, **inputs: torch.Tensor) -> SimpleNamespace:
        states = (inputs["x"],) if output_hidden_states else None
        return SimpleNamespace(logits=inputs["x"], hidden_states=states, ids=inputs["ids"])


def test_inputs_take_the_modules_dtype_and_whole_numbers_stay() -> None:
    """Floating inputs are cast, ids are not; a layer that is not there is named."""
    batch = {"x": torch.ones(2, 3), "ids": torch.ones(2, 3, dtype=torch.int64)}
    output = forward(_Echo(), batch, [0])
    assert output.logits_BV.dtype == torch.bfloat16 and output.hidden[0].shape == (2, 1, 3)
    with pytest.raises(ModelError, match="no hidden state 1: it has 1"):
        forward(_Echo(), batch, [1])
