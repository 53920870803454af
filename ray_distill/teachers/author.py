"""The teacher as an author: texts that it writes behind prompts, greedily, by draws, or by beam search.

What is drawn belongs to a prompt, a candidate and a step (`draw.independent`), not to a batch.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList

from ray_distill.config import SequencesConfig, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels import rowids
from ray_distill.labels.checks import Rejects
from ray_distill.models.answers import reads_back, text_of
from ray_distill.models.forward import without_cache
from ray_distill.models.language import IntArray, LanguageProcessor
from ray_distill.models.load import load_model
from ray_distill.models.model import Model
from ray_distill.sequences.attempts import SCHEMA, rejected_table
from ray_distill.teachers.draw import independent, pick

Rows = npt.NDArray[np.int64]

#: ``(logits [N, V], step) -> chosen tokens [N]``; what must not be chosen has logit -inf.
Choose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts of some rows, encoded."""

    row_ids: rowids.RowIds
    texts: tuple[str, ...]
    """The rows' inputs."""
    tokens: tuple[IntArray, ...]
    rejected: Rejects
    """Rows of the input that are no prompts, with the reason."""

    def plan(self, batch: int) -> list[Rows]:
        """Rows of each batch: of like length, and a function of the prompts alone."""
        order = sorted(range(len(self.tokens)), key=lambda row: (len(self.tokens[row]), self.row_ids[row]))
        return [np.array(order[start : start + batch], np.int64) for start in range(0, len(order), batch)]


@dataclass(frozen=True, kw_only=True)
class Author:
    """A language model that writes; made by `open_author`."""

    model: Model
    processor: LanguageProcessor
    settings: SequencesConfig
    seed: int
    stops: tuple[int, ...]
    """Tokens that end a text."""

    def encode(self, rows: pa.Table) -> Prompts:
        """Prompts of rows (``row_id``, ``text``); those that leave no room for `new_tokens` go apart."""
        texts, ids = rows["text"].to_pylist(), rowids.to_numpy(rows["row_id"])
        tokens, reasons = self.processor.prompts(texts)
        room = self.processor.max_length - self.settings.new_tokens
        for row, found in enumerate(tokens):
            if len(found) > room:
                reasons[row] = (f"prompt too long: with sequences.new_tokens = {self.settings.new_tokens} the teacher "
                                f"reads {room} tokens of it")
        kept = [row for row in range(len(texts)) if row not in reasons]
        return Prompts(
            row_ids=ids[kept], texts=tuple(texts[row] for row in kept), tokens=tuple(tokens[row] for row in kept),
            rejected=[(bytes(rows["row_id"][row].as_py()), reason) for row, reason in sorted(reasons.items())])

    def write(self, prompts: Prompts, index: Rows) -> pa.Table:
        """All candidates of some prompts, written as one batch: `attempts.SCHEMA`.

        A prompt behind which the model has no finite distribution gets a reason instead.
        """
        chosen = [prompts.tokens[row] for row in index]
        with torch.inference_mode():
            tokens, logp = self._beams(chosen) if self.settings.method == "beam" else self._tokens(
                chosen, prompts.row_ids[index])
        parts = []
        for place, row in enumerate(index):
            own = slice(place * self.settings.candidates, (place + 1) * self.settings.candidates)
            parts.append(self._table(prompts, int(row), tokens[own], logp[own]))
        return pa.concat_tables(parts)

    def _table(
        self, prompts: Prompts, row: int, tokens: Sequence[IntArray], logp: Sequence[float]
    ) -> pa.Table:
        row_id, prompt = rowids.to_arrow(prompts.row_ids[row : row + 1])[0].as_py(), prompts.tokens[row]
        if not np.isfinite(logp).all():
            return rejected_table([(row_id, "distribution is NaN or infinite")])
        ended = [bool(len(one)) and int(one[-1]) in self.stops for one in tokens]
        said = [one[:-1] if over else one for one, over in zip(tokens, ended, strict=True)]
        texts = [text_of(self.processor, prompt, one) for one in said]
        same = [reads_back(self.processor, prompts.texts[row], text, prompt, one)
                for text, one in zip(texts, said, strict=True)]
        return pa.table({
            "row_id": [row_id] * len(tokens), "candidate": range(len(tokens)), "text": texts,
            "tokens": [len(one) for one in tokens], "log_probability": list(logp), "ended": ended,
            "same_tokens": same, "reason": [None] * len(tokens)}, schema=SCHEMA)

    def _tokens(self, prompts: Sequence[IntArray], ids: rowids.RowIds) -> tuple[list[IntArray], list[float]]:
        """One token after the other; each prompt's candidates stand behind one another."""
        count = self.settings.candidates
        repeated = [prompt for prompt in prompts for _ in range(count)]
        candidate = np.tile(np.arange(count, dtype=np.int32), len(prompts))
        step = _Step(self._choose(np.repeat(ids, count), candidate), len(self.processor.tokenizer))
        found = self._generate(repeated, step)
        tokens = [_until(row, self.stops) for row in found]
        logp_NL = torch.stack(step.logp, 1).double().cpu().numpy()
        return tokens, [float(logp[: len(one)].sum()) for one, logp in zip(tokens, logp_NL, strict=True)]

    def _choose(self, ids: rowids.RowIds, candidate: npt.NDArray[np.int32]) -> Choose:
        if self.settings.method == "greedy":
            return lambda logits_NV, _: logits_NV.argmax(-1)

        def drawn(logits_NV: Tensor, step: int) -> Tensor:
            points_N = torch.from_numpy(independent(ids, candidate, step=step, seed=self.seed))
            return pick(weights(logits_NV, self.settings), points_N.to(logits_NV.device)[:, None])[0][:, 0]

        return drawn

    def _beams(self, prompts: Sequence[IntArray]) -> tuple[list[IntArray], list[float]]:
        mask = _Known(len(self.processor.tokenizer))
        found = self._generate(prompts, mask, num_beams=self.settings.beams, early_stopping=False,
                               num_return_sequences=self.settings.candidates,
                               length_penalty=self.settings.length_penalty)
        tokens = [_until(row, self.stops) for row in found]
        before = [prompt for prompt in prompts for _ in range(self.settings.candidates)]
        return tokens, [self._log_probability(one, two) for one, two in zip(before, tokens, strict=True)]

    def _log_probability(self, prompt: IntArray, tokens: IntArray) -> float:
        """Of tokens behind a prompt: a beam search keeps its own scores, of which lengths have taken their share."""
        whole_1L = torch.from_numpy(np.concatenate([prompt, tokens]).astype(np.int64))[None].to(self._device)
        module = self.model.module
        logp_LV = module(input_ids=whole_1L, **without_cache(module)).logits[0, len(prompt) - 1 : -1].float()
        return float(logp_LV.log_softmax(-1).gather(-1, whole_1L[0, len(prompt) :, None]).double().sum())

    def _generate(self, prompts: Sequence[IntArray], step: LogitsProcessor, **options: Any) -> list[IntArray]:
        """Tokens behind each prompt, padded at the end; prompts are padded at their beginning."""
        longest, pad = max(map(len, prompts)), self._pad
        ids_NL = np.full((len(prompts), longest), pad, np.int64)
        mask_NL = np.zeros_like(ids_NL)
        for row, prompt in enumerate(prompts):
            ids_NL[row, longest - len(prompt) :], mask_NL[row, longest - len(prompt) :] = prompt, 1
        config = GenerationConfig(
            max_new_tokens=self.settings.new_tokens, do_sample=False, eos_token_id=list(self.stops) or None,
            pad_token_id=pad, **options)
        found = cast(Any, self.model.module).generate(
            input_ids=torch.from_numpy(ids_NL).to(self._device), generation_config=config,
            attention_mask=torch.from_numpy(mask_NL).to(self._device), logits_processor=LogitsProcessorList([step]))
        return list(found[:, longest:].cpu().numpy().astype(np.int32))

    @property
    def _pad(self) -> int:
        tokenizer = self.processor.tokenizer
        known = (tokenizer.pad_token_id, *self.stops)
        return next((int(token) for token in known if token is not None), 0)

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device


def open_author(config: TeacherConfig, settings: SequencesConfig, *, seed: int) -> Author:
    """Load the teacher a config names, to write.

    What the checkpoint's own generation config says of sampling, penalties and lengths does not count, but for the
    tokens that end a text: the campaign's settings alone decide.

    Raises:
        ModelError, StorageError: as `load_model`; or it is no language model of transformers.
        ConfigError: as `load_model`; or `new_tokens` leaves no room for a prompt.
    """
    model = load_model(config, task="causal_lm")
    module, processor = model.module, model.processor
    if not isinstance(processor, LanguageProcessor) or not _generates(module):
        found = f"a {type(module).__name__} with a {type(processor).__name__}"
        raise ModelError(f"{model.url} cannot write: found {found}, "
                         "expected a causal language model of transformers with a tokenizer (leave sequences out to "
                         "label the source's own texts)")
    if settings.new_tokens >= processor.max_length:
        raise ConfigError(f"sequences.new_tokens is {settings.new_tokens}, but the teacher {model.url} reads "
                          f"{processor.max_length} tokens, prompt included: lower it, or raise "
                          "labels.teacher.max_length where the model allows")
    stops = processor.stops() | _stops_of(getattr(module, "generation_config", None))
    module.generation_config = cast(Any, GenerationConfig())
    return Author(model=model, processor=processor, settings=settings, seed=seed, stops=tuple(sorted(stops)))


def weights(logits_NV: Tensor, settings: SequencesConfig) -> Tensor:
    """What tokens are drawn by, ``[N, V]``, unnormalised: tempered, then cut to `top_k`, then to `top_p`.

    Tokens as likely as the last of `top_k` are kept with it. `top_p` (Holtzman et al., The curious case of neural text
    degeneration, 2020) keeps the fewest likeliest tokens that have that share of what `top_k` left.
    """
    p_NV = (logits_NV.float() / settings.temperature).softmax(-1)
    if settings.top_k is not None and settings.top_k < p_NV.shape[-1]:
        least_N1 = p_NV.topk(settings.top_k, -1).values[:, -1:]
        p_NV = torch.where(p_NV >= least_N1, p_NV, 0.0)
    if settings.top_p < 1:
        sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
        mass_NV = sorted_NV.cumsum(-1, dtype=torch.float64)
        enough_NV = mass_NV - sorted_NV >= settings.top_p * mass_NV[:, -1:]
        p_NV = p_NV.scatter(-1, order_NV, torch.where(enough_NV, 0.0, sorted_NV))
    return p_NV


class _Known(LogitsProcessor):  # type: ignore[misc]
    """Forbids the ids that a vocabulary has beyond its tokenizer's."""

    def __init__(self, known: int):
        self._known = known

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits with those ids at -inf."""
        known = torch.arange(scores.shape[-1], device=scores.device) < self._known
        return scores.masked_fill(~known, -torch.inf)


class _Step(_Known):
    """Chooses a token itself and leaves no other; keeps its log-probability."""

    def __init__(self, choose: Choose, known: int):
        super().__init__(known)
        self._choose = choose
        self.logp: list[Tensor] = []
        """``[N]`` a step, by the model itself: neither tempered nor cut."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits of which only the chosen token's is finite."""
        chosen_N1 = self._choose(super().__call__(input_ids, scores), len(self.logp))[:, None]
        self.logp.append(scores.float().log_softmax(-1).gather(-1, chosen_N1)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen_N1, 0.0)


def _until(tokens: IntArray, stops: Sequence[int]) -> IntArray:
    """Tokens up to the first that ends a text; what stands behind it pads."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    return tokens[: ends[0] + 1] if len(ends) else tokens


def _generates(module: nn.Module) -> bool:
    found = getattr(module, "generate", None)
    return callable(found) and "generation_config" in inspect.signature(found).parameters


def _stops_of(config: Any) -> set[int]:
    found = getattr(config, "eos_token_id", None)
    return set() if found is None else {int(token) for token in (found if isinstance(found, list) else [found])}
