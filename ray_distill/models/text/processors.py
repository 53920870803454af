"""Wrap tokenizers and image processors as `Processor`, with content fingerprints.

Image processors run on Pillow and numpy; torchvision is never needed.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers  # its classes by full name: each is imported when it is used, which takes seconds

from ray_distill.config import TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.fingerprint import fingerprint, sha256
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.models.core.checkpoint_files import gguf_file
from ray_distill.storage.scratch import Scratch
from ray_distill.tasks.inputs import pixels
from ray_distill.tasks.inputs.pixels import Pixels

#: Files of which a tokenizer has at least one.
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
#: Above this, a tokenizer's limit means "none": transformers uses int(1e30).
_NO_LIMIT = 1_000_000
#: Families whose position ids start after the padding id, so that fewer tokens fit than positions exist.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "data2vec-text", "ibert")
#: Attributes of an image processor that record its origin, not what it does.
_ORIGIN = ("_processor_class", "_name_or_path", "name_or_path", "transformers_version")


@dataclass(frozen=True, kw_only=True)
class TextProcessor:
    """A tokenizer with its limit: texts longer than ``max_length`` tokens are cut at the end."""

    tokenizer: Any
    max_length: int
    segments: bool
    """Whether the model needs ``token_type_ids`` other than zero."""
    fingerprint: str

    def texts(self, texts: list[str]) -> Mapping[str, RaggedArray]:
        """Tokenise: ``input_ids`` int32, and ``token_type_ids`` where the model needs them."""
        found = (
            self.tokenizer(
                texts,
                truncation=True,
                max_length=self.max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=self.segments,
            )
            if texts
            else {"input_ids": []}
        )
        features = {"input_ids": ragged(found["input_ids"], pad=int(self.tokenizer.pad_token_id))}
        if self.segments:
            pad = int(self.tokenizer.pad_token_type_id)
            features["token_type_ids"] = ragged(found.get("token_type_ids", []), pad=pad)
        return features

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, RaggedArray]:
        """Refuse: a tokenizer takes no images."""
        raise ModelError("this model has a tokenizer and takes texts, not images: the task and the model disagree")

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files; they carry ``max_length``."""
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Resize, rescale and normalise images to one size, in the model's number of channels."""

    processor: Any
    channels: int
    fingerprint: str

    def texts(self, texts: list[str]) -> Mapping[str, RaggedArray]:
        """Refuse: an image processor takes no texts."""
        raise ModelError("this model has an image processor and takes images, not texts: task and model disagree")

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, RaggedArray]:
        """Prepare images ``[H, W, C]`` uint8 of any size: ``pixel_values`` float32 ``[R, C, H, W]``."""
        ready = [to_channels(image, self.channels) for image in images]
        # no images still have a shape, so that blocks of few rows and of none can be put together
        some = ready or [np.zeros((32, 32, self.channels), np.uint8)]
        found = self.processor(some, input_data_format="channels_last", do_convert_rgb=False)["pixel_values"]
        shapes = sorted({tuple(np.shape(values)) for values in found})
        if len(shapes) > 1:
            raise ModelError(
                f"the image processor gives images of several sizes ({shapes[0]}, {shapes[1]}): it must "
                "resize to one height and width, or crop; mend its preprocessor_config.json"
            )
        values = np.stack([np.asarray(value, np.float32) for value in found])[: len(ready)]
        return {"pixel_values": RaggedArray(values=values, offsets=np.arange(len(ready) + 1, dtype=np.int64))}

    def save(self, folder: Path) -> None:
        """Write the processor's file."""
        self.processor.save_pretrained(folder)


def read_tokenizer(folder: Path, config: TeacherConfig) -> Any:
    """Read a checkpoint's tokenizer, from the GGUF file where it has no other.

    Raises:
        ModelError: it has none, or one that cannot be read.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": config.trust_remote_code}
    if not any(any(folder.glob(name)) for name in _VOCABULARIES):
        options["gguf_file"] = gguf_file(folder)
        if options["gguf_file"] is None:  # transformers would make up an empty tokenizer
            raise ModelError(f"{config.model} has no tokenizer: none of {', '.join(_VOCABULARIES)} is there")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer of {config.model}: {error}") from error


def read_text_processor(folder: Path, model_config: Any, config: TeacherConfig) -> TextProcessor:
    """Read the processor of a text classifier; errors as `read_tokenizer` and `text_processor`."""
    tokenizer = read_tokenizer(folder, config)
    return text_processor(tokenizer, text_limit(tokenizer, model_config, config.max_length))


def read_image_processor(folder: Path, model_config: Any, config: TeacherConfig) -> ImageProcessor:
    """Read the processor of an image model.

    Raises:
        ModelError: it has none, or one that cannot be used.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"cannot load the image processor of {config.model}: {error}") from error
    return image_processor(processor, int(getattr(model_config, "num_channels", 3)))


def text_processor(tokenizer: Any, max_length: int) -> TextProcessor:
    """Wrap a transformers tokenizer.

    Raises:
        ModelError: it has no padding token, or its special tokens fill a text.
    """
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} has no padding token, so texts cannot be batched: "
            "set pad_token in its tokenizer_config.json, and pad_token_id in config.json"
        )
    refuse_short(tokenizer, max_length, "max_length")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    segments = _needs_segments(tokenizer)
    return TextProcessor(
        tokenizer=tokenizer,
        max_length=max_length,
        segments=segments,
        fingerprint=_tokenizer_fingerprint(tokenizer, max_length, segments),
    )


def image_processor(processor: Any, channels: int) -> ImageProcessor:
    """Wrap a transformers image processor (Pillow) for a model with ``channels`` channels.

    Raises:
        ModelError: its mean or standard deviation are of another number of channels and not all equal.
    """
    processor = copy.deepcopy(processor)
    for name in ("image_mean", "image_std"):
        value = getattr(processor, name, None)
        if value is not None and np.size(value) != channels:
            setattr(processor, name, _spread(name, list(np.atleast_1d(value)), channels))
    return ImageProcessor(processor=processor, channels=channels, fingerprint=_image_fingerprint(processor, channels))


def resized(processor: ImageProcessor, size: int) -> ImageProcessor:
    """Return the same processing to a square of ``size`` pixels."""
    inner = copy.deepcopy(processor.processor)
    inner.size = {"height": size, "width": size}
    if getattr(inner, "crop_size", None) is not None:
        inner.crop_size = {"height": size, "width": size}
    return image_processor(inner, processor.channels)


def text_limit(tokenizer: Any, config: Any, max_length: int | None) -> int:
    """Return the tokens kept of a text: as requested, else the tokenizer's or model's limit.

    Raises:
        ModelError: more was requested than the model has positions, or no limit is known.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and offsets_positions(config):
        positions -= (config.pad_token_id or 0) + 1
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise ModelError(f"max_length {max_length} is more than the {positions} positions the model has")
        return max_length
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < _NO_LIMIT]
    if not limits:
        raise ModelError("neither the tokenizer nor the model has a maximum length: set max_length")
    return int(min(limits))


def offsets_positions(config: Any) -> bool:
    """Return whether a model's position ids start after the id of its padding token."""
    return getattr(config, "model_type", "") in _OFFSET_POSITIONS


def refuse_short(tokenizer: Any, length: int, setting: str) -> None:
    """Refuse a length that special tokens alone fill: a tokenizer then truncates nothing.

    Raises:
        ModelError: there is no room for a token of the text.
    """
    special = int(tokenizer.num_special_tokens_to_add(pair=False))
    if length <= special:
        raise ModelError(
            f"{setting} {length} leaves no room for a text: the tokenizer adds {special} special token(s) to each; set "
            f"{setting} to {special + 1} at the least"
        )


def to_channels(image: Pixels, channels: int) -> Pixels:
    """Convert ``[H, W, C]`` between grey and colour.

    Raises:
        ModelError: from or to other numbers of channels than 1 and 3.
    """
    try:
        return pixels.to_channels(image, channels)
    except ValueError as error:
        raise ModelError(str(error)) from error


def ragged(rows: list[list[int]], *, pad: int) -> RaggedArray:
    """Return the token ids of many rows as one int32 feature."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter((item for row in rows for item in row), dtype=np.int32, count=int(offsets[-1]))
    return RaggedArray(values=values, offsets=offsets, pad=pad)


def _needs_segments(tokenizer: Any) -> bool:
    """Return whether a single text gets a segment id except 0, the default of models."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return any(tokenizer("a", padding=False, return_token_type_ids=True)["token_type_ids"])


def _spread(name: str, values: list[float], channels: int) -> list[float]:
    if len(set(values)) > 1:
        raise ModelError(
            f"the image processor's {name} has {len(values)} channels and the model {channels}: "
            "set it for the model's channels in preprocessor_config.json"
        )
    return [float(values[0])] * channels


def _tokenizer_fingerprint(tokenizer: Any, max_length: int, segments: bool) -> str:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return fingerprint(
        {
            "text": tokenizer_content(tokenizer),
            "special": special,
            "class": type(tokenizer).__name__,
            "max_length": max_length,
            "segments": segments,
        }
    )


def tokenizer_content(tokenizer: Any) -> Any:
    """Return vocabulary and rules; truncation and padding are settings of a call."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        return {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    with Scratch("tokenizer") as scratch:
        tokenizer.save_pretrained(scratch.path)
        files = sorted(path for path in scratch.path.rglob("*") if path.is_file() and path.suffix != ".json")
        return {path.name: sha256(path.read_bytes()) for path in files} | {"vocab": tokenizer.get_vocab()}


def _image_fingerprint(processor: Any, channels: int) -> str:
    content = {key: value for key, value in json.loads(processor.to_json_string()).items() if key not in _ORIGIN}
    return fingerprint({"image": content, "channels": channels})
