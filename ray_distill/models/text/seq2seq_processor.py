"""Tokenize sources and targets for the encoder and the decoder of a model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.models.text.chat import is_chat
from ray_distill.models.text.lm_processor import IntArray, fingerprint_tokens
from ray_distill.models.text.processors import ragged, read_tokenizer, refuse_short, text_limit
from ray_distill.snapshots.pairs import read_pair

#: Texts are tokenised together up to this many: a token takes some hundred bytes until it is an integer.
_TOGETHER = 64


@dataclass(frozen=True, kw_only=True)
class PairProcessor:
    """A tokenizer with its limits, and the decoder's start token. Made by `pair_processor`."""

    tokenizer: Any
    max_length: int
    """Tokens kept of a source, with those that the tokenizer adds."""
    target_length: int
    """Tokens kept of a target: a longer one is learnt as far as it goes, without an end."""
    start: int
    """The decoder's first token."""
    settings: LanguageConfig
    fingerprint: str
    """Fingerprint of everything that decides the tokens."""
    tokens_fingerprint: str
    """Fingerprint of vocabulary, rules, special tokens and start: what labels and a student must share."""

    def texts(self, texts: list[str]) -> Mapping[str, RaggedArray]:
        """Tokenise sources alone: ``input_ids`` int32, cut at ``max_length``."""
        return {"input_ids": self._ragged([self._cut(text, ids) for text, ids in self._sources(texts)])}

    def pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[Mapping[str, RaggedArray], dict[int, str]]:
        """Tokenise sources and targets.

        Returns:
            ``input_ids`` of the sources; ``target``, the tokens to predict, with the one that ends them; and
            ``decoder_input_ids``, the same one place later, the start token first; int32, without tokens where they
            cannot be used. And the reasons of those by their place.
        """
        found: list[tuple[list[int], list[int]]] = []
        reasons: dict[int, str] = {}
        for row, ((source, read), (_, written)) in enumerate(
            zip(self._sources(sources), self._tokenise(targets, target=True), strict=True)
        ):
            long = _long("source", read, self.max_length) or _long("target", written, self.target_length)
            if long and self.settings.long == "reject":
                reasons[row] = long
                found.append(([], []))
            else:
                found.append((self._cut(source, read), written[: self.target_length]))
        targets_of = [written for _, written in found]
        return {
            "input_ids": self._ragged([read for read, _ in found]),
            "target": self._ragged(targets_of),
            "decoder_input_ids": self._ragged([[self.start, *ids[:-1]] if ids else [] for ids in targets_of]),
        }, reasons

    def prompts(self, texts: Sequence[str]) -> tuple[list[IntArray], dict[int, str]]:
        """Return the tokens of the sources alone, as `pairs` has them.

        Args:
            texts: inputs of rows (`snapshots.pairs`), with a target or without.

        Returns:
            The tokens of every source in order, none where it cannot be used; and the reasons of those by their place.
        """
        sources: dict[int, str] = {}
        reasons: dict[int, str] = {}
        for row, text in enumerate(texts):
            try:
                sources[row] = read_pair(text).source
            except ValueError as why:
                reasons[row] = str(why)
                continue
            if not sources[row].strip():
                reasons[row] = "empty source"
        found = [np.zeros(0, np.int32)] * len(texts)
        for row, (source, ids) in zip(sources, self._sources(list(sources.values())), strict=True):
            long = _long("source", ids, self.max_length)
            if long and self.settings.long == "reject":
                reasons.setdefault(row, long)
            elif row not in reasons:
                found[row] = np.array(self._cut(source, ids), np.int32)
        return found, reasons

    def target(self, text: str) -> list[int]:
        """Return the tokens of one target, uncut, with the one that ends it."""
        ((_, found),) = self._tokenise([text], target=True)
        return list(found)

    def stops(self) -> frozenset[int]:
        """Return the tokens with which the tokenizer ends a target."""
        return _ends(self.tokenizer)

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, RaggedArray]:
        """Refuse: a tokenizer takes no images."""
        raise ModelError("this model has a tokenizer and takes texts, not images: the task and the model disagree")

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files; they carry ``max_length``."""
        self.tokenizer.save_pretrained(folder)

    def _sources(self, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        return self._tokenise([self.settings.prefix + text for text in texts], target=False)

    def _tokenise(self, texts: Sequence[str], *, target: bool) -> Iterator[tuple[str, list[int]]]:
        """Tokenise each text, uncut, and return texts with their tokens."""
        for start in range(0, len(texts), _TOGETHER):
            part = list(texts[start : start + _TOGETHER])
            found = self.tokenizer(
                **{"text_target" if target else "text": part},
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            yield from zip(part, found["input_ids"], strict=True)

    def _cut(self, source: str, ids: list[int]) -> list[int]:
        """Cut the end of a source that is too long, but keep the tokenizer's own last tokens."""
        if len(ids) <= self.max_length:
            return ids
        found: list[int] = self.tokenizer(
            source, padding=False, truncation=True, max_length=self.max_length, verbose=False
        )["input_ids"]
        return found

    def _ragged(self, rows: list[list[int]]) -> RaggedArray:
        return ragged(rows, pad=int(self.tokenizer.pad_token_id))


def read_pair_processor(folder: Path, model_config: Any, config: TeacherConfig) -> PairProcessor:
    """Read the processor of an encoder-decoder.

    Errors as `read_tokenizer`, `start_of` and `pair_processor`.
    """
    tokenizer = read_tokenizer(folder, config)
    limit, start = text_limit(tokenizer, model_config, config.max_length), start_of(model_config, config.model)
    return pair_processor(tokenizer, limit, config.language, start=start)


def pair_processor(tokenizer: Any, max_length: int, settings: LanguageConfig, *, start: int) -> PairProcessor:
    """Wrap a transformers tokenizer for an encoder-decoder.

    Args:
        tokenizer: of the checkpoint; it is copied.
        max_length: tokens kept of a source, and of a target where the settings name no other number.
        settings: of the campaign; conversations cannot be.
        start: what the decoder reads first (``decoder_start_token_id``).

    Raises:
        ModelError: it has no padding token, does not end a text, so that the end of a target would be unknown, or its
            special tokens fill a source or a target.
        ConfigError: the format is chat.
    """
    name = type(tokenizer).__name__
    if is_chat(settings):
        raise ConfigError(
            "labels.teacher.language.format: a source and a target are texts, not a conversation: leave "
            "it out, or take the task causal_lm"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer {name} has no padding token, so texts cannot be batched: set pad_token in its "
            "tokenizer_config.json, and pad_token_id in config.json"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    if not _ends(tokenizer):
        raise ModelError(
            f"the tokenizer {name} adds no end (eos_token or sep_token) to a text, so a student could not "
            "learn where a target ends: give its tokenizer.json a post_processor that does"
        )
    target_length = settings.target_length or max_length
    refuse_short(tokenizer, max_length, "max_length")
    refuse_short(tokenizer, target_length, "target_length")
    languages = [getattr(tokenizer, side, None) for side in ("src_lang", "tgt_lang")]
    tokens = fingerprint({"tokens": fingerprint_tokens(tokenizer, chat=False), "start": start, "languages": languages})
    limits = {"max_length": max_length, "target_length": target_length, "long": settings.long}
    return PairProcessor(
        tokenizer=tokenizer,
        max_length=max_length,
        target_length=target_length,
        start=start,
        settings=settings,
        tokens_fingerprint=tokens,
        fingerprint=fingerprint({"tokens": tokens, "prefix": settings.prefix, **limits}),
    )


def start_of(model_config: Any, url: str) -> int:
    """Return the token that a model's decoder reads first.

    Raises:
        ModelError: its config names none.
    """
    found = getattr(model_config, "decoder_start_token_id", None)
    if not isinstance(found, int):
        raise ModelError(
            f"{url} has no start token of its decoder: set decoder_start_token_id in config.json "
            "(seq2seq is for encoder-decoders such as T5, BART and Marian)"
        )
    return found


def own_tokens(module: Any) -> dict[str, Any]:
    """Return the generation settings on tokens that begin, end or never occur in a text.

    They belong to the weights; all others are a way to decode, which is a campaign's to choose.
    """
    names = ("forced_bos_token_id", "bad_words_ids", "eos_token_id")
    found = {name: getattr(getattr(module, "generation_config", None), name, None) for name in names}
    if found["eos_token_id"] is None:
        found["eos_token_id"] = getattr(getattr(module, "config", None), "eos_token_id", None)
    return found


def _ends(tokenizer: Any) -> frozenset[int]:
    """Return the end tokens that the tokenizer adds to a text."""
    known = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return frozenset(known & set(tokenizer(text_target="a", verbose=False)["input_ids"]))


def _long(what: str, ids: Sequence[int], limit: int) -> str:
    return f"a {what} of {len(ids)} tokens, more than the {limit} allowed" if len(ids) > limit else ""
