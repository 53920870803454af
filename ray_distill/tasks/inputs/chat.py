"""One text or conversation a row, with a mark on each token that is to be predicted."""

from collections.abc import Mapping
from typing import Final, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow as pa

from ray_distill.config import Campaign
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.snapshots.sources.columns import Companions
from ray_distill.tasks.encoded import Batch, Encoded, Rejected
from ray_distill.tasks.inputs.conversation import BESIDE, PROMPT, Unfit, assemble, read_chat
from ray_distill.tasks.inputs.modality import Form, Index, Inputs, Processor
from ray_distill.tasks.inputs.padding import pad_sequences, real_tokens
from ray_distill.tasks.inputs.rows import encoded, sift
from ray_distill.tasks.inputs.text import COLUMN, Texts, example, read_text, refuse_target, show, statistics
from ray_distill.tasks.inputs.text_corruptions import TEXT_CORRUPTIONS

#: The form of a row that is a conversation, as ``labels.teacher.language.format`` names it.
CHAT: Final = "chat"
#: The feature that no model takes: 1 on each token that is to be predicted.
ANSWERED = "answered"


_WRITE = "write each row as a list of messages {role, content} in one column, and name that as snapshot.columns.text"
_CHAT_TOO = "with labels.teacher.language.format: chat"


def _why_no_conversation(text: str) -> str | None:
    try:
        read_chat(text)
    except Unfit as error:
        return f"{error}. labels.teacher.language.format is chat, so {_WRITE}"
    return None


#: Tools and the like beside the messages, and the usual forms of data sets for language models.
COMPANIONS = Companions(
    names=(*BESIDE, PROMPT),
    assemble=assemble,
    refuse=_why_no_conversation,
    forms={
        ("messages",): f"It has conversations: set snapshot.columns.text: messages, {_CHAT_TOO}",
        ("conversations",): f"It has conversations: set snapshot.columns.text: conversations, {_CHAT_TOO}",
        ("chosen", "rejected"): f"These are preferences: choose the answer, and {_WRITE}",
        (
            "instruction",
            "output",
        ): f"This is Alpaca's form: join instruction and input to a user's message, and {_WRITE}",
        ("prompt", "completion"): f"These are prompts and completions: for task seq2seq set snapshot.columns: {{text: "
        f"prompt, target: completion}}; else {_WRITE}",
    },
)


@runtime_checkable
class Language(Protocol):
    """A processor that reads conversations; see `models.text.lm_processor.LanguageProcessor`."""

    def language(self, texts: list[str]) -> tuple[Mapping[str, RaggedArray], dict[int, str]]:
        """Return ``input_ids`` and ``answered`` of every text, and why some are empty.

        The reasons are by the text's place.
        """


def encode(rows: pa.Table, processor: Processor) -> Encoded:
    """Tokenise to ``input_ids`` and ``answered``; reject texts without a learnable token.

    With a processor that reads plain texts only, all tokens but the first are to be predicted.
    """
    texts, row_ids, rejected = sift(rows, COLUMN, read_text)
    features, reasons = _tokens(texts, processor)
    lengths, learnt = np.diff(features["input_ids"].offsets), np.diff(answers(features[ANSWERED]).offsets)
    for row in np.flatnonzero((lengths < 2) | (learnt == 0)).tolist():
        reasons.setdefault(row, "fewer than two tokens" if lengths[row] < 2 else "nothing to learn")
    apart = tuple(Rejected(row_id=row_ids[row].as_py(), reason=reasons[row]) for row in sorted(reasons))
    found = encoded(row_ids, dict(features), rejected, processor)
    kept = found.take(np.setdiff1d(np.arange(len(texts)), sorted(reasons)).astype(np.int64))
    return Encoded(row_ids=kept.row_ids, features=kept.features, rejected=(*rejected, *apart))


def collate(encoded: Encoded, index: Index) -> Batch:
    """Return token ids int64 ``[B, L]`` and ``attention_mask``.

    Rows are padded at the end to the longest of the batch.
    """
    batch = {name: pad_sequences(feature, index) for name, feature in encoded.features.items() if name != ANSWERED}
    return {**batch, "attention_mask": real_tokens(encoded.features["input_ids"], index)}


def _example(processor: Processor) -> Encoded:
    """Encode a text of one letter, all of whose tokens but the first are to be predicted."""
    found = example(processor)
    ids = found.features["input_ids"]
    every = RaggedArray(values=np.ones(len(ids.values), np.int8), offsets=ids.offsets)
    return Encoded(row_ids=found.row_ids, features={**found.features, ANSWERED: every})


def answers(answered: RaggedArray) -> RaggedArray:
    """Return the tokens of each row that precede an answered one (int32, ascending).

    No token precedes a row's first.
    """
    lengths = np.diff(answered.offsets)
    within = np.arange(len(answered.values)) - np.repeat(answered.offsets[:-1], lengths)
    flat = np.flatnonzero((answered.values != 0) & (within > 0))
    offsets = np.searchsorted(flat, answered.offsets).astype(np.int64)
    return RaggedArray(values=(within[flat] - 1).astype(np.int32), offsets=offsets)


def _tokens(texts: list[str], processor: Processor) -> tuple[dict[str, RaggedArray], dict[int, str]]:
    if isinstance(processor, Language):
        features, reasons = processor.language(texts)
        return dict(features), dict(reasons)
    features = cast(Texts, processor).texts(texts)
    ids = features["input_ids"]
    return {**features, ANSWERED: RaggedArray(values=np.ones(len(ids.values), np.int8), offsets=ids.offsets)}, {}


def _form(config: Campaign) -> Form:
    return config.labels.teacher.language.format


def _is_chat(config: Campaign) -> bool:
    return _form(config) == CHAT


def _is_text(config: Campaign) -> bool:
    return not _is_chat(config)


def _refuse(config: Campaign) -> list[str]:
    settings = config.labels.teacher.language
    return refuse_target(config) + [
        f"labels.teacher.language.{name}: {config.task} has no sources and targets; leave it out"
        for name in ("prefix", "target_length")
        if getattr(settings, name)
    ]


TEXT_OR_CHAT = Inputs(
    name=CHAT,
    column=COLUMN,
    processor="ray_distill.models.text.lm_processor:read_language_processor",
    adapt="ray_distill.models.text.tokenizer_match:adapt_language",
    encode=encode,
    collate=collate,
    example=_example,
    statistics=statistics,
    show=show,
    answering="input_ids",
    corruptions=TEXT_CORRUPTIONS,
    form=_form,
    nested=_is_chat,
    companions=COMPANIONS,
    corruptible=_is_text,
    refuse=_refuse,
)
