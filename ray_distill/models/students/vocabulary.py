"""Choose the tokens that a student keeps, and cut its tokenizer and embeddings to them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from ray_distill.config.student import VocabularySettings
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.text.cut_tokenizer import TokenChoice, cut_tokenizer, token_choice
from ray_distill.models.text.processors import TextProcessor, offsets_positions, text_processor
from ray_distill.snapshots.manifest import Shard
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.inputs.modality import Inputs, Processor

Counts = npt.NDArray[np.int64]

#: Rows that are tokenised at a time.
ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """The tokens of the teacher that a student has."""

    ids: npt.NDArray[np.int64]
    """The teacher's id of each token of the student."""
    processor: TextProcessor
    """The teacher's, cut to these tokens."""
    overrides: Mapping[str, Any]
    """Fields of the transformers config that follow."""
    describe: Mapping[str, Any]
    """Facts for the model card."""

    def cut_embeddings(self, module: nn.Module) -> None:
        """Leave the embeddings of the kept tokens alone in a module, in place.

        Raises:
            ModelError: it embeds fewer tokens than its tokenizer has.
        """
        known: Any = module.get_input_embeddings()  # type: ignore[operator]
        if int(self.ids[-1]) >= known.weight.shape[0]:
            raise ModelError(
                f"student.model.vocabulary: the tokenizer has token ids up to {self.ids[-1]}, and the model embeds "
                f"{known.weight.shape[0]} tokens: save it after resize_token_embeddings({self.ids[-1] + 1})"
            )
        weights = known.weight.detach()[torch.from_numpy(self.ids)].clone()
        module.set_input_embeddings(nn.Embedding(len(weights), weights.shape[1], _weight=weights))  # type: ignore[operator]


def keep_tokens(
    settings: VocabularySettings, processor: Processor, model_config: Any, *, counts: Counts | None, url: str
) -> KeptTokens:
    """Return the tokens that a student keeps.

    Kept are always: special and other added tokens, single characters and bytes, and those that the transformers
    config names. Then the most frequent ones, of equally frequent ones the first, each with the tokens that its
    tokenizer merges it from.

    Args:
        settings: how many.
        processor: the teacher's.
        model_config: the student's transformers config, with the teacher's tokens.
        counts: how often each token of the teacher comes in the train texts, ``[V]``; None: not counted yet. Then a
            share keeps all tokens, and a number the first ones.
        url: of the teacher, for messages.

    Raises:
        ConfigError: the inputs are not texts, its tokenizer cannot be cut, or more tokens must stay than it allows.
    """
    processor = _of_texts(processor, url)
    if not isinstance(getattr(model_config, "vocab_size", None), int):
        raise ConfigError(
            f"student.model.vocabulary: the config of {url} ({type(model_config).__name__}) has no vocab_size that "
            "could be made smaller: set vocabulary to null"
        )
    choice = token_choice(processor.tokenizer, url)
    needed = _always(choice, processor, model_config)
    ids = _chosen(settings, choice, needed, counts)
    tokenizer = cut_tokenizer(processor.tokenizer, [int(index) for index in ids], url)
    new = {int(old): index for index, old in enumerate(ids)}
    return KeptTokens(
        ids=ids,
        processor=text_processor(tokenizer, processor.max_length),
        overrides={"vocab_size": len(ids), **_token_fields(model_config, new)},
        describe={"tokens": len(ids), "teacher_tokens": len(choice.tokens), **_covered(ids, choice, counts)},
    )


def token_bounds(processor: Processor, model_config: Any, url: str) -> tuple[int, int]:
    """Return how many tokens of a teacher must stay, and how many it has.

    Raises:
        ConfigError: the inputs are not texts, or no token can be left out of the tokenizer.
    """
    processor = _of_texts(processor, url)
    choice = token_choice(processor.tokenizer, url)
    return len(_always(choice, processor, model_config)), len(choice.tokens)


def count_tokens(snapshot: Snapshot, shards: Iterable[Shard], processor: Processor, inputs: Inputs) -> Counts:
    """Return how often each token comes in the texts of some shards, ``[V]``.

    A text counts as often as it came; special tokens, which are always kept, do not count.
    In memory are one shard and the counts, whatever the number of rows.

    Raises:
        ConfigError: the inputs are not texts.
        SnapshotError, StorageError: the rows cannot be read.
    """
    processor = _of_texts(processor, "the teacher")
    size = max(processor.tokenizer.get_vocab().values()) + 1
    counts = np.zeros(size, np.int64)
    for shard in shards:
        table = snapshot.read_shard(shard, ["row_id", inputs.column, "count"])
        for start in range(0, table.num_rows, ROWS):
            counts += _count(table.slice(start, ROWS), processor, inputs, size)
    counts[processor.tokenizer.all_special_ids] = 0
    return counts


def _of_texts(processor: Processor, url: str) -> TextProcessor:
    if isinstance(processor, TextProcessor):
        return processor
    raise ConfigError(
        f"student.model.vocabulary is for classifiers of texts, and {url} has a {type(processor).__name__}: set it to "
        "null"
    )


def _count(rows: pa.Table, processor: TextProcessor, inputs: Inputs, size: int) -> Counts:
    encoded = inputs.encode(rows, processor)
    if not encoded.rows:
        return np.zeros(size, np.int64)
    places = pc.index_in(encoded.row_ids, value_set=rows["row_id"].combine_chunks())
    came = rows["count"].combine_chunks().take(places).to_numpy()
    tokens = encoded.features[inputs.answering]
    each = np.repeat(came, np.diff(tokens.offsets))
    return np.bincount(tokens.values, weights=each, minlength=size).astype(np.int64)


def _always(choice: TokenChoice, processor: TextProcessor, model_config: Any) -> set[int]:
    known = set(choice.tokens.values())
    named = {index for value in _ids_of(model_config).values() for index in value if index in known}
    # Position ids are counted from the padding id, so that one must stay where it is.
    before = range(processor.tokenizer.pad_token_id + 1) if offsets_positions(model_config) else ()
    return {*choice.always, *named, *(index for index in before if index in known)}


def _chosen(
    settings: VocabularySettings, choice: TokenChoice, needed: set[int], counts: Counts | None
) -> npt.NDArray[np.int64]:
    """Return the ids that are kept, ascending."""
    known, names = sorted(choice.tokens.values()), {index: token for token, index in choice.tokens.items()}
    if settings.tokens is not None and settings.tokens < len(needed):
        raise ConfigError(
            f"student.model.vocabulary.tokens: {settings.tokens:,} is too few, found {len(needed):,} tokens that must "
            f"stay (special tokens and single characters): set it to {len(needed):,} or more"
        )
    if counts is None and settings.keep is not None:
        return np.array(known, np.int64)
    came = np.zeros(known[-1] + 1, np.int64) if counts is None else counts
    most = len(known) if settings.tokens is None else settings.tokens
    required = math.inf if settings.keep is None else settings.keep * int(came.sum())
    kept, covered = set(needed), int(came[sorted(needed)].sum())
    for index in sorted(known, key=lambda index: (-came[index], index)):
        more = choice.closed(index, names) - kept
        if covered >= required or len(kept) + len(more) > most:
            break
        kept |= more
        covered += int(came[sorted(more)].sum())
    return np.array(sorted(kept), np.int64)


def _covered(ids: npt.NDArray[np.int64], choice: TokenChoice, counts: Counts | None) -> dict[str, float]:
    if counts is None or not counts.sum():
        return {}
    return {"share_of_train_tokens": round(float(counts[ids].sum() / counts.sum()), 6)}


def _token_fields(model_config: Any, new: Mapping[int, int]) -> dict[str, Any]:
    """Return the fields that name tokens, with the new ids."""
    found: dict[str, Any] = {}
    for field, ids in _ids_of(model_config).items():
        value = getattr(model_config, field)
        found[field] = [new.get(index) for index in ids] if isinstance(value, list) else new.get(ids[0])
    return found


def _ids_of(model_config: Any) -> dict[str, Sequence[int]]:
    """Return the token ids of each field of a transformers config that names some."""
    found = {key: value for key, value in model_config.to_dict().items() if key.endswith("_token_id")}
    ids = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    return {key: value for key, value in ids.items() if value and all(isinstance(index, int) for index in value)}
