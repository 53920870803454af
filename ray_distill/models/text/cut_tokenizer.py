"""Cut a fast tokenizer to some of its tokens; plain transformers loads the result.

A text whose tokens are all kept is cut into the same tokens as before:

- WordPiece takes the longest piece that fits, and a piece that was the longest of all is the longest of fewer.
- Unigram takes the likeliest path, and a path of kept pieces that was the likeliest of all is the likeliest of fewer.
- BPE applies merges in their order. Every merge that made a kept token is kept, with the tokens between, so the same
  merges are applied in the same order.

A text with other tokens is cut into smaller kept pieces.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_distill.errors import ConfigError
from ray_distill.storage.scratch import Scratch

#: Files of a tokenizer beside ``tokenizer.json`` that list no tokens; the others are left out of the cut one.
_PLAIN_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

#: A token of a model to all tokens that it is merged from.
Parts = Callable[[str], frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How tokens are left out of a tokenizer's model."""

    tokens: Callable[[Mapping[str, Any]], Mapping[str, int]]
    """All tokens with their ids."""
    needed: Callable[[Mapping[str, Any]], Iterable[str]]
    """Tokens without which texts become unreadable, or other texts are cut in another way."""
    parts: Callable[[Mapping[str, Any]], Parts]
    cut: Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, Any]]
    """The model with the kept tokens under their new ids."""


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """The tokens of a tokenizer, and the rules by which some of them are kept."""

    tokens: Mapping[str, int]
    """Those of the model, and the added ones."""
    always: frozenset[int]
    """Added tokens, single characters and bytes."""
    added: frozenset[int]
    parts: Parts

    def closed(self, index: int, names: Mapping[int, str]) -> set[int]:
        """Return a token and the tokens that it is merged from."""
        return {index, *(self.tokens[part] for part in self.parts(names[index]))}


def token_choice(tokenizer: Any, url: str) -> TokenChoice:
    """Return the tokens of a tokenizer, and which of them must stay.

    Raises:
        ConfigError: no token can be left out of it.
    """
    content = _content(tokenizer, url)
    kind, model = _kind(content, url), content["model"]
    tokens = kind.tokens(model)
    added = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
    needed = {tokens[token] for token in kind.needed(model)}
    return TokenChoice(
        tokens={**tokens, **added},
        always=frozenset(needed | set(added.values())),
        added=frozenset(added.values()),
        parts=kind.parts(model),
    )


def cut_tokenizer(tokenizer: Any, kept: Sequence[int], url: str) -> Any:
    """Return a tokenizer with the tokens of the ids ``kept``, numbered in that order.

    Args:
        tokenizer: a fast tokenizer.
        kept: ascending ids, `TokenChoice.always` and the parts of each among them.
        url: of the model, for messages.

    Raises:
        ConfigError: no token can be left out of it.
    """
    content = _content(tokenizer, url)
    kind, new = _kind(content, url), {old: index for index, old in enumerate(kept)}
    own = {token: new[old] for token, old in kind.tokens(content["model"]).items() if old in new}
    changed = {
        **content,
        "model": kind.cut(content["model"], own),
        "added_tokens": [{**token, "id": new[token["id"]]} for token in content["added_tokens"]],
        "post_processor": _renumbered(content["post_processor"], new),
        "padding": None,
        "truncation": None,
    }
    found = _read_back(tokenizer, changed)
    expected = {token: new[old] for token, old in tokenizer.get_vocab().items() if old in new}
    if found.get_vocab() != expected or _content(found, url)["model"] != changed["model"]:
        raise ConfigError(
            f"student.model.vocabulary: {type(tokenizer).__name__} of {url} does not read its tokens from "
            "tokenizer.json alone, so none of them can be left out: set vocabulary to null"
        )
    return found


def _content(tokenizer: Any, url: str) -> dict[str, Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"student.model.vocabulary: tokens can be left out of a fast tokenizer, and {url} has a "
            f"{type(tokenizer).__name__} without tokenizer.json: set vocabulary to null, or save the teacher with a "
            "fast tokenizer"
        )
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def _kind(content: Mapping[str, Any], url: str) -> _Kind:
    name, model = content["model"]["type"], content["model"]
    affixes = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if name not in _KINDS or (name == "BPE" and affixes):
        found = f"{name} with {' and '.join(affixes)}" if name in _KINDS else name
        raise ConfigError(
            f"student.model.vocabulary: the tokenizer of {url} is {found}, and tokens can be left out of "
            "WordPiece, Unigram, and BPE without prefixes and suffixes: set vocabulary to null"
        )
    return _KINDS[name]


def _read_back(tokenizer: Any, content: Mapping[str, Any]) -> Any:
    """Return a tokenizer of the same class from other content."""
    with Scratch("vocabulary") as scratch:
        copy.deepcopy(tokenizer).save_pretrained(scratch.path)
        for path in scratch.path.iterdir():
            if path.name not in _PLAIN_FILES and path.is_file():
                path.unlink()
        (scratch.path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        settings = scratch.path / "tokenizer_config.json"
        known = json.loads(settings.read_text(encoding="utf-8"))
        known.pop("added_tokens_decoder", None)  # by the former ids
        settings.write_text(json.dumps(known), encoding="utf-8")
        return type(tokenizer).from_pretrained(scratch.path, local_files_only=True)


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """Return a post-processor with the new ids of the tokens that it adds."""
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in changed:
        changed["processors"] = [_renumbered(part, new) for part in changed["processors"]]
    if "special_tokens" in changed:
        changed["special_tokens"] = {
            name: {**token, "ids": [new[index] for index in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if key in changed:
            changed[key] = [changed[key][0], new[changed[key][1]]]
    return changed


def _alone(token: str) -> frozenset[str]:
    return frozenset()


def _word_pieces(model: Mapping[str, Any]) -> Iterable[str]:
    prefix = model["continuing_subword_prefix"]
    return [token for token in model["vocab"] if len(token.removeprefix(prefix)) == 1 or token == model["unk_token"]]


def _unigram_tokens(model: Mapping[str, Any]) -> Mapping[str, int]:
    return {piece: index for index, (piece, _) in enumerate(model["vocab"])}


def _unigram_needed(model: Mapping[str, Any]) -> Iterable[str]:
    """Return single characters and bytes, the unknown piece, and a least likely one.

    The score of an unknown character is derived from the least score.
    """
    least = min(model["vocab"], key=lambda entry: entry[1])[0]
    unknown = [] if model.get("unk_id") is None else [model["vocab"][model["unk_id"]][0]]
    return [least, *unknown, *(piece for piece, _ in model["vocab"] if _is_single(piece))]


def _cut_unigram(model: Mapping[str, Any], new: Mapping[str, int]) -> dict[str, Any]:
    unknown = model.get("unk_id")
    return {
        **model,
        "vocab": [entry for entry in model["vocab"] if entry[0] in new],
        "unk_id": None if unknown is None else new[model["vocab"][unknown][0]],
    }


def _bpe_needed(model: Mapping[str, Any]) -> Iterable[str]:
    return [token for token in model["vocab"] if _is_single(token) or token == model.get("unk_token")]


def _cut_bpe(model: Mapping[str, Any], new: Mapping[str, int]) -> dict[str, Any]:
    merges = [pair for pair in _merges(model) if pair[0] in new and pair[1] in new and pair[0] + pair[1] in new]
    return {**model, "vocab": dict(new), "merges": [list(pair) for pair in merges]}


def _bpe_parts(model: Mapping[str, Any]) -> Parts:
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}

    def parts(token: str) -> frozenset[str]:
        """Return what the merges make on the way to a token; nothing where they do not lead to it."""
        symbols, made = list(token), set(token)
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
            if pairs[best] not in ranks:
                return frozenset()
            symbols[best : best + 2] = ["".join(pairs[best])]
            made.add(symbols[best])
        return frozenset(made if made <= model["vocab"].keys() else ())

    return parts


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _is_single(token: str) -> bool:
    """Return whether a token is one character, or a byte such as ``<0x0A>``."""
    return len(token) == 1 or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))


_KINDS: Mapping[str, _Kind] = {
    "WordPiece": _Kind(
        tokens=lambda model: model["vocab"],
        needed=_word_pieces,
        parts=lambda model: _alone,
        cut=lambda model, new: {**model, "vocab": dict(new)},
    ),
    "Unigram": _Kind(tokens=_unigram_tokens, needed=_unigram_needed, parts=lambda model: _alone, cut=_cut_unigram),
    "BPE": _Kind(tokens=lambda model: model["vocab"], needed=_bpe_needed, parts=_bpe_parts, cut=_cut_bpe),
}
