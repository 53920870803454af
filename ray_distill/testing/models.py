"""Tiny real checkpoints and fake teachers, for tests that must not wait for a model."""

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import transformers  # its classes by full name: importing them takes seconds, and the module teachers need but one
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from torch import Tensor, nn

from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.models.core.checkpoint_files import quiet
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.core.skipped_imports import without
from ray_distill.models.text.processors import ImageProcessor, TextProcessor, image_processor, text_processor
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import reduce_logits

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CAUSAL_SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>")
#: ChatML, with tools first and tool calls after the content.
_CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def example(model: Model) -> Batch:
    """Return one made-up example of a model's inputs, as a batch of one."""
    inputs = get_task(model.task).inputs
    return inputs.collate(inputs.example(model.processor), np.zeros(1, np.int64))


def tiny_tokenizer(max_length: int = 64) -> transformers.PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of single characters: it reads any English text."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*_SPECIAL, *string.punctuation, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_causal_tokenizer(max_length: int = 128) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes, as GPT-2's without merges: lossless on any text.

    It adds no token of its own to a text; it has bos, eos and pad, and a ChatML-like chat template.
    """
    pieces = [*_CAUSAL_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, begin, end, *chat = _CAUSAL_SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=chat,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_pair_tokenizer(max_length: int = 64) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes as ByT5's, with pad, eos and unk at 0, 1 and 2."""
    pieces = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_text_processor(max_length: int = 64) -> TextProcessor:
    """Return `tiny_tokenizer` as a processor."""
    return text_processor(tiny_tokenizer(max_length), max_length)


def tiny_image_processor(size: int = 28, channels: int = 1) -> ImageProcessor:
    """Return an image processor to a square, values in -1…1."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    half = [0.5] * channels
    inner = ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)
    return image_processor(inner, channels)


def write_tiny_text_model(folder: Path, classes: Sequence[str], seed: int, **overrides: Any) -> Path:
    """Write an untrained BERT classifier (2 layers, width 32) with its tokenizer.

    Args:
        folder: made if it is missing.
        classes: class names.
        seed: of the weights; equal seeds give equal files.
        overrides: fields of `BertConfig` to change.
    """
    tokenizer = tiny_tokenizer()
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.5,
    } | overrides
    config = transformers.BertConfig(**values, **_labels(classes))
    _write(folder, lambda: transformers.BertForSequenceClassification(config), seed)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_causal_model(folder: Path, seed: int, **overrides: Any) -> Path:
    """Write an untrained Llama (2 layers, width 32, untied) with `tiny_causal_tokenizer`.

    Its vocabulary of 264 exceeds the tokenizer's 261, as that of many models does.

    Args:
        folder: made if it is missing.
        seed: of the weights; equal seeds give equal files.
        overrides: fields of `LlamaConfig` to change.
    """
    tokenizer = tiny_causal_tokenizer()
    values = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | overrides
    config = transformers.LlamaConfig(**values)
    _write(folder, lambda: transformers.LlamaForCausalLM(config), seed)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_seq2seq_model(
    folder: Path, seed: int, *, architecture: Literal["t5", "bart"] = "t5", **overrides: Any
) -> Path:
    """Write an untrained encoder-decoder (2 layers each, width 32) with `tiny_pair_tokenizer`.

    Its vocabulary of 264 exceeds the tokenizer's 259, as that of many models does.

    Args:
        folder: made if it is missing.
        seed: of the weights; equal seeds give equal files.
        architecture: ``t5`` (relative positions, tied, scaled before the head) or ``bart`` (64 positions).
        overrides: fields of the config to change.
    """
    tokenizer = tiny_pair_tokenizer()
    shared = {"vocab_size": 264, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    t5 = {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    bart = {"bos_token_id": 0, "forced_eos_token_id": None, "max_position_embeddings": 64, "init_std": 0.2} | {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 4))
    }
    if architecture == "t5":
        config: Any = transformers.T5Config(**(shared | t5 | overrides))
        _write(folder, lambda: transformers.T5ForConditionalGeneration(config), seed)
    else:
        config = transformers.BartConfig(**(shared | bart | overrides))
        _write(folder, lambda: transformers.BartForConditionalGeneration(config), seed)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_image_model(
    folder: Path,
    classes: Sequence[str],
    seed: int,
    *,
    size: int = 28,
    channels: int = 1,
    architecture: Literal["vit", "resnet"] = "vit",
    **overrides: Any,
) -> Path:
    """Write an untrained image classifier (2 layers or stages) with its processor.

    Args:
        folder: made if it is missing.
        classes: class names.
        seed: of the weights; equal seeds give equal files.
        size: height and width of its input in pixels; a multiple of 7 for ``vit``.
        channels: 1 (grey) or 3.
        architecture: ``vit`` (token states) or ``resnet`` (feature maps, batch norm).
        overrides: fields of the config to change.
    """
    vit = {
        "image_size": size,
        "patch_size": 7,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    if architecture == "vit":
        config: Any = transformers.ViTConfig(**(vit | overrides), num_channels=channels, **_labels(classes))
        _write(folder, lambda: transformers.ViTForImageClassification(config), seed)
    else:
        config = transformers.ResNetConfig(**(resnet | overrides), num_channels=channels, **_labels(classes))
        _write(folder, lambda: transformers.ResNetForImageClassification(config), seed)
    tiny_image_processor(size, channels).save(folder)
    return folder


class TinyText(nn.Module):
    """A bag of token embeddings and a linear head; throws as long as the file ``fuse`` exists."""

    def __init__(self, classes: int, fuse: str | None):
        super().__init__()
        self.fuse = fuse
        self.embedding = nn.Embedding(len(tiny_tokenizer()), 16)
        self.head = nn.Linear(16, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Return logits ``[B, V]``; hidden states: embeddings ``[B, L, 16]``, mean ``[B, 16]``."""
        _check_fuse(self.fuse)
        tokens_BLD = self.embedding(input_ids)
        weight_BL1 = attention_mask.unsqueeze(-1).to(tokens_BLD.dtype)
        mean_BD = (tokens_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
        hidden = (tokens_BLD, mean_BD) if output_hidden_states else None
        return SimpleNamespace(logits=4 * self.head(mean_BD), hidden_states=hidden)


class TinyImage(nn.Module):
    """One convolution and a linear head; throws as long as the file ``fuse`` exists."""

    def __init__(self, classes: int, channels: int, fuse: str | None):
        super().__init__()
        self.fuse = fuse
        self.convolution = nn.Conv2d(channels, 8, kernel_size=5, stride=4)
        self.head = nn.Linear(8, classes)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Return logits ``[B, V]`` and one hidden state, the feature map ``[B, 8, H, W]``."""
        _check_fuse(self.fuse)
        maps_BCHW = self.convolution(pixel_values).relu()
        hidden = (maps_BCHW,) if output_hidden_states else None
        return SimpleNamespace(logits=4 * self.head(maps_BCHW.mean((2, 3))), hidden_states=hidden)


def tiny_text_model(classes: list[str], fuse: str | None = None) -> ModelParts:
    """Build a text classifier that throws while the file ``fuse`` exists.

    The file changes nothing of its fingerprint, so a finished store can be opened with a teacher that throws.
    """
    return ModelParts(module=TinyText(len(classes), fuse), processor=tiny_text_processor(), classes=tuple(classes))


def tiny_image_model(classes: list[str], size: int = 28, channels: int = 1, fuse: str | None = None) -> ModelParts:
    """Build an image classifier for ``module:function`` configs.

    ``fuse`` is as in `tiny_text_model`."""
    return ModelParts(
        module=TinyImage(len(classes), channels, fuse),
        processor=tiny_image_processor(size, channels),
        classes=tuple(classes),
    )


@dataclass(frozen=True, kw_only=True)
class FakeTeacher:
    """A teacher without a model: logits and hidden states are functions of the row id."""

    space: AnswerSpace
    width: int = 8
    layers: int = 2
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its settings."""
        names = [*self.space.names] or self.space.size
        return fingerprint({"fake": names, "width": self.width, "layers": self.layers, "seed": self.seed})

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        """Answer every row from its id."""
        ids = encoded.row_ids.to_pylist()
        logits_RV = 3 * self._numbers(ids, "logits", self.space.size)
        offsets = np.arange(len(ids) + 1, dtype=np.int64)
        hidden = {
            layer: Vectors(offsets=offsets, values=self._numbers(ids, f"layer {layer}", self.width))
            for layer in request.layers
        }
        return signal_of(
            distributions=reduce_logits(torch.from_numpy(logits_RV), request, encoded.row_ids), hidden=hidden
        )

    def _numbers(self, ids: Sequence[bytes], what: str, width: int) -> npt.NDArray[np.float32]:
        """Return normal numbers ``[R, width]``, each row from its id."""
        rows = np.zeros((len(ids), width), np.float32)
        for row, row_id in enumerate(ids):
            key = hashlib.sha256(f"{self.seed} {what} ".encode() + row_id).digest()
            rows[row] = np.random.default_rng(int.from_bytes(key[:8], "little")).standard_normal(width)
        return rows


@dataclass(frozen=True, kw_only=True)
class ThrowingTeacher:
    """A teacher with another's fingerprint that throws: proof that no work was left."""

    fingerprint: str
    space: AnswerSpace

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        """Raise instead of answering."""
        raise AssertionError(f"the throwing teacher had to label {encoded.rows} rows")


def _check_fuse(fuse: str | None) -> None:
    if fuse is not None and Path(fuse).exists():
        raise RuntimeError(f"the teacher was called although {fuse} exists")


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def _write(folder: Path, build: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), quiet(), without("deepspeed"):
        torch.manual_seed(seed)
        build().save_pretrained(folder)
