"""Generate text with decoder-only and encoder-decoder models by one interface.

A generator needs no more of a model than its `GenerationFormat`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_distill.errors import ConfigError
from ray_distill.fingerprint import fingerprint
from ray_distill.models.text.decode import reads_back, text_of
from ray_distill.models.text.lm_processor import IntArray, LanguageProcessor
from ray_distill.models.text.seq2seq_processor import PairProcessor, own_tokens
from ray_distill.tasks.inputs.modality import Processor

Ids = npt.NDArray[np.int64]
#: Prompts of rows in their order, none where a row is no prompt; and the reasons of those by their place.
Prompted = tuple[list[IntArray], dict[int, str]]


class GenerationFormat(Protocol):
    """Convert between rows and the tokens of generation, for one kind of model."""

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of prompts and answers."""

    @property
    def pad(self) -> int:
        """Return the padding token."""

    @property
    def growing_input(self) -> str:
        """Return the name of the input that grows by each generated token."""

    @property
    def stops(self) -> frozenset[int]:
        """Return the tokens that end a text."""

    @property
    def bad_words(self) -> Sequence[Sequence[int]]:
        """Return sequences of tokens that must not be generated (``bad_words_ids``)."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the options of `generate` beside its inputs."""

    @property
    def token_fingerprint(self) -> str:
        """Return the fingerprint of tokens named in the generation settings alone; empty if none."""

    def prompts(self, texts: list[str], new_tokens: int) -> Prompted:
        """Return prompts of rows' inputs, for so many tokens to be written."""

    def inputs(self, prompts: Sequence[IntArray]) -> dict[str, Ids]:
        """Return padded inputs ``[N, L]``; the last column of the growing input is never padding."""

    def text(self, prompt: IntArray, tokens: IntArray) -> str:
        """Decode tokens without special ones."""

    def reads_back(self, row: str, answer: str, prompt: IntArray, tokens: IntArray) -> bool:
        """Return whether the row with its answer is tokenized to the generated tokens."""

    def require_room(self, new_tokens: int, url: str) -> None:
        """Refuse to write more than can be read again.

        Raises:
            ConfigError: there is no room for so many tokens.
        """


@dataclass(frozen=True, kw_only=True)
class CausalFormat:
    """The format of a decoder-only model, which continues its prompt."""

    processor: LanguageProcessor
    stops: frozenset[int]
    token_fingerprint: str = ""
    growing_input: str = "input_ids"
    bad_words: Sequence[Sequence[int]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of prompts and answers."""
        return self.processor.tokenizer

    @property
    def pad(self) -> int:
        """Return the padding token, or else any other, because padding is masked."""
        known = (self.tokenizer.pad_token_id, *sorted(self.stops))
        return next((int(token) for token in known if token is not None), 0)

    def prompts(self, texts: list[str], new_tokens: int) -> Prompted:
        """Return prompts, uncut; reject one that leaves no room for the answer."""
        tokens, reasons = self.processor.prompts(texts)
        room = self.processor.max_length - new_tokens
        for row, found in enumerate(tokens):
            if len(found) > room:
                reasons[row] = (
                    f"prompt too long: with sequences.new_tokens = {new_tokens} the teacher reads {room} tokens of it"
                )
        return tokens, reasons

    def inputs(self, prompts: Sequence[IntArray]) -> dict[str, Ids]:
        """Return prompts padded at the beginning."""
        return _padded(prompts, self.pad, left=True)

    def text(self, prompt: IntArray, tokens: IntArray) -> str:
        """Return what the tokens add to the prompt's text; see `decode.text_of`."""
        return text_of(self.processor, prompt, tokens)

    def reads_back(self, row: str, answer: str, prompt: IntArray, tokens: IntArray) -> bool:
        """See `decode.reads_back`."""
        return reads_back(self.processor, row, answer, prompt, tokens=tokens)

    def require_room(self, new_tokens: int, url: str) -> None:
        """Require room for prompt and answer, which are read together.

        ConfigError if nothing is left for a prompt.
        """
        if new_tokens >= self.processor.max_length:
            raise ConfigError(
                f"sequences.new_tokens is {new_tokens}, but the teacher {url} reads "
                f"{self.processor.max_length} tokens, prompt included: lower it, or raise "
                "labels.teacher.max_length where the model allows"
            )


@dataclass(frozen=True, kw_only=True)
class Seq2SeqFormat:
    """The format of an encoder-decoder, which generates the target of a source."""

    processor: PairProcessor
    stops: frozenset[int]
    begin: tuple[int, ...]
    """The decoder's first inputs: its start, and a token that every target of the model begins with (a language)."""
    bad_words: Sequence[Sequence[int]] = ()
    token_fingerprint: str = ""
    growing_input: str = "decoder_input_ids"

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of sources and targets."""
        return self.processor.tokenizer

    @property
    def pad(self) -> int:
        """Return the tokenizer's padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the start token, which `generate` would search even where it is given."""
        return {"decoder_start_token_id": self.processor.start}

    def prompts(self, texts: list[str], new_tokens: int) -> Prompted:
        """Return sources as labelling reads them; they use no room of what is written."""
        return self.processor.prompts(texts)

    def inputs(self, prompts: Sequence[IntArray]) -> dict[str, Ids]:
        """Return sources padded at their end, and the beginning of every target."""
        begin_NL = np.tile(np.array(self.begin, np.int64), (len(prompts), 1))
        return {**_padded(prompts, self.pad, left=False), self.growing_input: begin_NL}

    def text(self, prompt: IntArray, tokens: IntArray) -> str:
        """Return the target alone."""
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def reads_back(self, row: str, answer: str, prompt: IntArray, tokens: IntArray) -> bool:
        """Return whether the target's tokens are those that were written, and then its end."""
        wrote, found = [*self.begin[1:], *tokens.tolist()], self.processor.target(answer)
        return found[: len(wrote)] == wrote and bool(self.stops & set(found[len(wrote) : len(wrote) + 1]))

    def require_room(self, new_tokens: int, url: str) -> None:
        """Require room for a whole target; ConfigError if fewer tokens of it are read."""
        room = self.processor.target_length - len(self.begin) + 1
        if new_tokens > room:
            raise ConfigError(
                f"sequences.new_tokens is {new_tokens}, but of a target of the teacher {url} {room} "
                "tokens are learnt: lower it, or raise labels.teacher.language.target_length where the "
                "model allows"
            )


def generation_format(module: Any, processor: Processor) -> GenerationFormat | None:
    """Return the generation format of a model; None if its processor encodes no texts.

    Args:
        module: with the generation settings that its checkpoint came with, of which only tokens count: those that end
            a text, and of an encoder-decoder also those that begin a target or are never in one.
        processor: of the model.
    """
    if not isinstance(processor, LanguageProcessor | PairProcessor):
        return None
    settings = own_tokens(module)
    ends, first, bad_words = (settings[name] for name in ("eos_token_id", "forced_bos_token_id", "bad_words_ids"))
    more = frozenset(_listed(ends)) - processor.stops()
    if isinstance(processor, LanguageProcessor):
        return CausalFormat(
            processor=processor, stops=processor.stops() | more, token_fingerprint=_digest(sorted(more))
        )
    return Seq2SeqFormat(
        processor=processor,
        stops=processor.stops() | more,
        bad_words=bad_words or (),
        begin=(processor.start, *_listed(first)),
        token_fingerprint=_digest(sorted(more), _listed(first), bad_words or []),
    )


def _listed(tokens: int | list[int] | None) -> list[int]:
    return [] if tokens is None else [int(token) for token in (tokens if isinstance(tokens, list) else [tokens])]


def _digest(*tokens: Any) -> str:
    return fingerprint(list(tokens)) if any(tokens) else ""


def _padded(prompts: Sequence[IntArray], pad: int, *, left: bool) -> dict[str, Ids]:
    """Return ``input_ids`` and ``attention_mask``."""
    longest = max(map(len, prompts))
    ids_NL = np.full((len(prompts), longest), pad, np.int64)
    mask_NL = np.zeros_like(ids_NL)
    for row, prompt in enumerate(prompts):
        own = slice(longest - len(prompt), None) if left else slice(len(prompt))
        ids_NL[row, own], mask_NL[row, own] = prompt, 1
    return {"input_ids": ids_NL, "attention_mask": mask_NL}
