"""One text a row, cut at the processor's limit."""

from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import Campaign
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.inputs.modality import Floats, Index, Inputs, Processor
from ray_distill.tasks.inputs.padding import pad_sequences, real_tokens
from ray_distill.tasks.inputs.rows import Unusable, encoded, one_row, sift
from ray_distill.tasks.inputs.text_corruptions import TEXT_CORRUPTIONS
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS

COLUMN = "text"
#: Characters of a text that are shown.
SHOWN_CHARACTERS = 2000


class Texts(Processor, Protocol):
    """A processor that reads texts; see `models.text.processors.TextProcessor`."""

    def texts(self, texts: list[str]) -> Mapping[str, RaggedArray]:
        """Tokenise texts: ``input_ids`` (int32), and whatever else the model takes."""


def encode(rows: pa.Table, processor: Processor) -> Encoded:
    """Tokenise; reject missing, blank and undecodable texts.

    Long ones are cut at the processor's limit.
    """
    texts, row_ids, rejected = sift(rows, COLUMN, read_text)
    return encoded(row_ids, dict(cast(Texts, processor).texts(texts)), rejected, processor)


def collate(encoded: Encoded, index: Index) -> Batch:
    """Return token ids int64 ``[B, L]`` and ``attention_mask``.

    Rows are padded at the end to the longest of the batch.
    """
    batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items()}
    return {**batch, "attention_mask": real_tokens(encoded.features["input_ids"], index)}


def example(processor: Processor) -> Encoded:
    """Encode a text of one letter."""
    return one_row(cast(Texts, processor).texts(["a"]))


def statistics(texts: pa.ChunkedArray) -> dict[str, Floats]:
    """Return characters, words and the share of characters outside ASCII of every text."""
    characters = pc.utf8_length(texts).to_numpy().astype(np.float64)
    non_ascii = characters - pc.utf8_length(pc.replace_substring_regex(texts, r"[^\x00-\x7F]", "")).to_numpy()
    return {
        "characters": characters,
        "words": pc.count_substring_regex(texts, r"\S+").to_numpy().astype(np.float64),
        "non_ascii_share": non_ascii / np.maximum(characters, 1),
    }


def show(data: bytes | None) -> str:
    """Return the beginning of a text; bytes that are not UTF-8 are marked."""
    text = (data or b"").decode("utf-8", errors="replace")
    more = len(text) - SHOWN_CHARACTERS
    return f"text: {text[:SHOWN_CHARACTERS]}" + (f"… and {more} more characters" if more > 0 else "")


def refuse_target(config: Campaign) -> list[str]:
    """Refuse a column of targets: these inputs have none."""
    if config.snapshot.columns.target is None:
        return []
    return [f"snapshot.columns.target: {config.task} writes no targets; leave it out"]


def read_text(data: bytes) -> str:
    """Decode one text.

    Raises:
        Unusable: it is not UTF-8, or blank.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise Unusable("empty text")
    return text


TEXT = Inputs(
    name="text",
    column=COLUMN,
    processor="ray_distill.models.text.processors:read_text_processor",
    encode=encode,
    collate=collate,
    example=example,
    statistics=statistics,
    show=show,
    answering="input_ids",
    corruptions=TEXT_CORRUPTIONS,
    views=TEXT_VIEWS,
    refuse=refuse_target,
)
