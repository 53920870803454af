"""Tokenize texts or conversations for a language model, and mark the learnt tokens."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.models.text.chat import Template, is_chat, without_answer
from ray_distill.models.text.processors import read_tokenizer, text_limit, tokenizer_content
from ray_distill.tasks.inputs.conversation import ROLES, Conversation, Unfit, read_chat

#: Texts are tokenised together up to this many characters: a token takes some hundred bytes until it is an integer.
_TOGETHER = 1 << 22
#: A token is predicted from one before it.
_LEAST_TOKENS = 2

IntArray = npt.NDArray[np.int32]


class _Source(NamedTuple):
    """A text as it is tokenised, and the conversation it renders."""

    text: str
    conversation: Conversation | None = None


class _Tokens(NamedTuple):
    """Tokens of one text, and where each begins and ends in it."""

    ids: IntArray
    starts: IntArray
    ends: IntArray


@dataclass(frozen=True, kw_only=True)
class LanguageProcessor:
    """A tokenizer with its limit, and what is learnt of a text. Made by `language_processor`."""

    tokenizer: Any
    max_length: int
    settings: LanguageConfig
    fingerprint: str
    """Fingerprint of everything that decides the tokens, and which are learnt."""
    tokens_fingerprint: str
    """Fingerprint of vocabulary, rules, special tokens and, for chat, the template, which labels and student share."""

    @property
    def chat(self) -> bool:
        """Return whether a row is a conversation."""
        return is_chat(self.settings)

    def texts(self, texts: list[str]) -> Mapping[str, RaggedArray]:
        """Tokenise as plain text, whatever the format: ``input_ids`` int32, cut at ``max_length``."""
        return {"input_ids": self._ragged([tokens.ids[: self.max_length] for tokens in self._tokenise(texts, False)])}

    def language(self, texts: list[str]) -> tuple[Mapping[str, RaggedArray], dict[int, str]]:
        """Tokenise each text once, and mark what is learnt of it.

        Args:
            texts: plain, or conversations in JSON, by the settings.

        Returns:
            ``input_ids`` (int32) and ``answered`` (int8, one a token: 1 = it is to be predicted) of every text in
            order, without tokens where it cannot be used; and the reasons of those by their place.
        """
        sources, reasons = self._open(texts)
        tokens = self._tokenise([source.text for source in sources.values()], self.chat)
        empty = np.zeros(0, np.int32)
        found = [(empty, empty.astype(np.int8))] * len(texts)
        for row, one in zip(sources, tokens, strict=True):
            try:
                found[row] = self._mark(sources[row], one)
            except Unfit as why:
                reasons[row] = str(why)
        ids, answered = [ids for ids, _ in found], [mask for _, mask in found]
        return {"input_ids": self._ragged(ids), "answered": _ragged(answered, np.int8, pad=0)}, reasons

    def prompts(self, texts: list[str]) -> tuple[list[IntArray], dict[int, str]]:
        """Return prompts, uncut: a whole text, or a conversation before its last answer.

        Args:
            texts: plain, or conversations in JSON, by the settings.

        Returns:
            The tokens of every text in order, none where it is not a prompt; and the reasons of those by their place.
        """
        sources, reasons, chat = {}, {}, self.chat
        for row, text in enumerate(texts):
            try:
                sources[row] = self._template().prompt(without_answer(read_chat(text))) if chat else text
            except Unfit as why:
                reasons[row] = str(why)
        found = [np.zeros(0, np.int32)] * len(texts)
        for row, tokens in zip(sources, self._tokenise(list(sources.values()), chat), strict=True):
            # A tokenizer that ends every text with a token would have the model begin another one.
            ended = not chat and len(tokens.ids) and int(tokens.ids[-1]) == self.tokenizer.eos_token_id
            found[row] = tokens.ids[:-1] if ended else tokens.ids
            if not len(found[row]):
                reasons[row] = "no prompt: not one token"
        return found, reasons

    def stops(self) -> frozenset[int]:
        """Return the tokens that end an answer: of a text, and of a turn in a conversation."""
        found = set() if self.tokenizer.eos_token_id is None else {int(self.tokenizer.eos_token_id)}
        if self.chat:
            after = self.tokenizer(self._template().after_answer(), add_special_tokens=False)["input_ids"]
            found |= set(after[:1]) & set(self.tokenizer.all_special_ids)
        return frozenset(found)

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, RaggedArray]:
        """Refuse: a tokenizer takes no images."""
        raise ModelError("this model has a tokenizer and takes texts, not images: the task and the model disagree")

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files; they carry ``max_length`` and the chat template."""
        self.tokenizer.save_pretrained(folder)

    def _open(self, texts: list[str]) -> tuple[dict[int, _Source], dict[int, str]]:
        """Return the text of each row to tokenize, and the reasons of rejected rows."""
        if not self.chat:
            return {row: _Source(text) for row, text in enumerate(texts)}, {}
        template = self._template()
        sources: dict[int, _Source] = {}
        reasons: dict[int, str] = {}
        for row, text in enumerate(texts):
            try:
                conversation = read_chat(text)
                sources[row] = _Source(template.render(conversation), conversation)
            except Unfit as why:
                reasons[row] = str(why)
        return sources, reasons

    def _mark(self, source: _Source, tokens: _Tokens) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """Return the tokens that are kept, and which of them are learnt.

        Raises:
            Unfit: there are too many, or none is learnt.
        """
        length, kept = len(tokens.ids), min(len(tokens.ids), self.max_length)
        if length > kept and self.settings.long == "reject":
            raise Unfit(f"{length} tokens, more than the {self.max_length} of max_length")
        ids = tokens.ids[:kept]
        if source.conversation is None:
            answered = np.ones(kept, np.int8)
        else:
            until = int(tokens.ends[kept - 1]) if kept else 0
            wrote = np.zeros(len(source.text) + 1, np.int8)
            for start, end in self._template().spans(source.conversation, source.text, until):
                wrote[start:end] = 1
            answered = wrote[tokens.starts[:kept]]
        answered[:1] = 0  # nothing comes before it
        if source.conversation is not None and not answered.any():
            where = f"the first {kept} of its {length} tokens" if kept < length else "it"
            raise Unfit(f"nothing to learn: no message of {' or '.join(self.settings.roles)} in {where}")
        return ids, answered

    def _template(self) -> Template:
        return Template(tokenizer=self.tokenizer, roles=self.settings.roles)

    def _tokenise(self, texts: Sequence[str], chat: bool) -> Iterator[_Tokens]:
        """Tokenise each text, uncut. A rendered conversation has its special tokens already."""
        for part in _parts(texts):
            found = self.tokenizer(
                part,
                add_special_tokens=not chat,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=chat,
                verbose=False,
            )
            for row, ids in enumerate(found["input_ids"]):
                places = np.array(found["offset_mapping"][row] if chat else [], np.int32).reshape(-1, 2)
                yield _Tokens(ids=np.array(ids, np.int32), starts=places[:, 0], ends=places[:, 1])

    def _ragged(self, rows: Sequence[IntArray]) -> RaggedArray:
        """Return a ragged feature; padding is masked, because a model may have no token for it."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return _ragged(rows, np.int32, pad=next((int(token) for token in known if token is not None), 0))


def read_language_processor(folder: Path, model_config: Any, config: TeacherConfig) -> LanguageProcessor:
    """Read the processor of a causal language model.

    Errors as `read_tokenizer` and `language_processor`.
    """
    tokenizer = read_tokenizer(folder, config)
    limit = text_limit(tokenizer, model_config, config.max_length)
    if limit < _LEAST_TOKENS:
        raise ModelError(
            f"max_length {limit} leaves no token to predict from another: set it to {_LEAST_TOKENS} or more"
        )
    return language_processor(tokenizer, limit, config.language)


def language_processor(tokenizer: Any, max_length: int, settings: LanguageConfig) -> LanguageProcessor:
    """Wrap a transformers tokenizer for a language model.

    Args:
        tokenizer: of the checkpoint; it is copied.
        max_length: tokens kept of a text.
        settings: how a text becomes tokens, and which are learnt.

    Raises:
        ModelError: the format is chat, and it has no template or no character offsets.
        ConfigError: a role that there is not.
    """
    name, chat = type(tokenizer).__name__, is_chat(settings)
    unknown = sorted(set(settings.roles) - set(ROLES))
    if chat and unknown:
        raise ConfigError(f"language.roles names {', '.join(unknown)}: expected some of {', '.join(ROLES)}")
    if chat and not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {name} has no chat template: put chat_template.jinja beside the checkpoint's "
            "tokenizer, take an instruction-tuned checkpoint, or set labels.teacher.language.format: text"
        )
    if chat and not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer {name} has no character offsets of tokens, so that roles cannot be "
            "separated: it needs a tokenizer.json"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    tokens = fingerprint_tokens(tokenizer, chat=chat)
    learnt = {"format": settings.format, "long": settings.long, "roles": sorted(set(settings.roles)) if chat else []}
    return LanguageProcessor(
        tokenizer=tokenizer,
        max_length=max_length,
        settings=settings,
        tokens_fingerprint=tokens,
        fingerprint=fingerprint({"tokens": tokens, "max_length": max_length, "language": learnt}),
    )


def fingerprint_tokens(tokenizer: Any, *, chat: bool) -> str:
    """Return all that decides the tokens; padding is excluded, as it is masked."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return fingerprint(
        {
            "text": tokenizer_content(tokenizer),
            "special": special,
            "template": tokenizer.chat_template if chat else None,
        }
    )


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in order, in lists of a bounded number of characters, or of one text."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > _TOGETHER:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _ragged(rows: Sequence[npt.NDArray[Any]], kind: npt.DTypeLike, *, pad: int) -> RaggedArray:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return RaggedArray(
        values=np.concatenate([np.zeros(0, kind), *rows]).astype(kind, copy=False), offsets=offsets, pad=pad
    )
