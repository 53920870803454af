"""Generate texts with the teacher, from prompts or sources: greedily, by draws, by beams.

A draw belongs to a prompt, a candidate and a step (`draw.independent`), not to a batch.
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
from transformers.generation import LogitsProcessor, LogitsProcessorList, NoBadWordsLogitsProcessor

from ray_distill.config import SequencesConfig, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.validity import Rejects
from ray_distill.models.core.forward import without_cache
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.text.generation import GenerationFormat, generation_format
from ray_distill.models.text.lm_processor import IntArray
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
        """Return the rows of each batch: similar in length, and a function of the prompts alone."""
        order = sorted(range(len(self.tokens)), key=lambda row: (len(self.tokens[row]), self.row_ids[row]))
        return [np.array(order[start : start + batch], np.int64) for start in range(0, len(order), batch)]


@dataclass(frozen=True, kw_only=True)
class Author:
    """A model that writes; made by `open_author`."""

    model: Model
    form: GenerationFormat
    settings: SequencesConfig
    seed: int

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return tuple(sorted(self.form.stops))

    def encode(self, rows: pa.Table) -> Prompts:
        """Encode prompts of rows (``row_id``, ``text``); unusable rows are returned with the reason."""
        texts, ids = rows["text"].to_pylist(), rowids.to_numpy(rows["row_id"])
        tokens, reasons = self.form.prompts(texts, self.settings.new_tokens)
        kept = [row for row in range(len(texts)) if row not in reasons]
        return Prompts(
            row_ids=ids[kept],
            texts=tuple(texts[row] for row in kept),
            tokens=tuple(tokens[row] for row in kept),
            rejected=[(bytes(rows["row_id"][row].as_py()), reason) for row, reason in sorted(reasons.items())],
        )

    def write(self, prompts: Prompts, index: Rows) -> pa.Table:
        """Write all candidates of some prompts as one batch: `attempts.SCHEMA`.

        A prompt behind which the model has no finite distribution gets a reason instead.
        """
        chosen = [prompts.tokens[row] for row in index]
        with torch.inference_mode():
            tokens, logp = (
                self._beams(chosen) if self.settings.method == "beam" else self._tokens(chosen, prompts.row_ids[index])
            )
        parts = []
        for place, row in enumerate(index):
            own = slice(place * self.settings.candidates, (place + 1) * self.settings.candidates)
            parts.append(self._table(prompts, int(row), tokens[own], logp[own]))
        return pa.concat_tables(parts)

    def _table(self, prompts: Prompts, row: int, tokens: Sequence[IntArray], logp: Sequence[float]) -> pa.Table:
        row_id, prompt = rowids.to_arrow(prompts.row_ids[row : row + 1])[0].as_py(), prompts.tokens[row]
        if not np.isfinite(logp).all():
            return rejected_table([(row_id, "distribution is NaN or infinite")])
        ended = [bool(len(one)) and int(one[-1]) in self.stops for one in tokens]
        written = [one[:-1] if over else one for one, over in zip(tokens, ended, strict=True)]
        texts = [self.form.text(prompt, one) for one in written]
        same = [
            self.form.reads_back(prompts.texts[row], text, prompt, one)
            for text, one in zip(texts, written, strict=True)
        ]
        return pa.table(
            {
                "row_id": [row_id] * len(tokens),
                "candidate": range(len(tokens)),
                "text": texts,
                "tokens": [len(one) for one in tokens],
                "log_probability": list(logp),
                "ended": ended,
                "same_tokens": same,
                "reason": [None] * len(tokens),
            },
            schema=SCHEMA,
        )

    def _tokens(self, prompts: Sequence[IntArray], ids: rowids.RowIds) -> tuple[list[IntArray], list[float]]:
        """Write one token after the other; each prompt's candidates are adjacent."""
        count = self.settings.candidates
        repeated = [prompt for prompt in prompts for _ in range(count)]
        candidate = np.tile(np.arange(count, dtype=np.int32), len(prompts))
        step = _Step(self._choose(np.repeat(ids, count), candidate), self.form)
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
        found = self._generate(
            prompts,
            _Known(self.form),
            num_beams=self.settings.beams,
            early_stopping=False,
            num_return_sequences=self.settings.candidates,
            length_penalty=self.settings.length_penalty,
        )
        tokens = [_until(row, self.stops) for row in found]
        before = [prompt for prompt in prompts for _ in range(self.settings.candidates)]
        return tokens, [self._log_probability(one, two) for one, two in zip(before, tokens, strict=True)]

    def _log_probability(self, prompt: IntArray, tokens: IntArray) -> float:
        """Score tokens behind a prompt; scores of a beam search include a length penalty."""
        inputs, module = self._inputs([prompt]), self.model.module
        del inputs["attention_mask"]  # one row: nothing is padded
        before = inputs[self.form.growing_input].shape[1]
        written_1L = torch.from_numpy(tokens.astype(np.int64))[None].to(self._device)
        inputs[self.form.growing_input] = torch.cat([inputs[self.form.growing_input], written_1L], 1)
        logp_LV = module(**inputs, **without_cache(module)).logits[0, before - 1 : -1].float().log_softmax(-1)
        return float(logp_LV.gather(-1, written_1L[0, :, None]).double().sum())

    def _generate(self, prompts: Sequence[IntArray], step: LogitsProcessor, **options: Any) -> list[IntArray]:
        """Generate the tokens written for each prompt, padded at the end."""
        inputs = self._inputs(prompts)
        config = GenerationConfig(
            max_new_tokens=self.settings.new_tokens,
            do_sample=False,
            eos_token_id=list(self.stops) or None,
            pad_token_id=self.form.pad,
            **self.form.options,
            **options,
        )
        found = cast(Any, self.model.module).generate(
            **inputs, generation_config=config, logits_processor=LogitsProcessorList([step])
        )
        return list(found[:, inputs[self.form.growing_input].shape[1] :].cpu().numpy().astype(np.int32))

    def _inputs(self, prompts: Sequence[IntArray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(ids_NL).to(self._device) for name, ids_NL in self.form.inputs(prompts).items()}

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device


def open_author(config: TeacherConfig, settings: SequencesConfig, *, task: str, seed: int) -> Author:
    """Load the teacher a config names, to write.

    Sampling, penalties and lengths of the checkpoint's own generation config are ignored, except tokens that belong to
    the weights (`own_tokens`): the campaign's settings decide.

    Raises:
        ModelError, StorageError: as `load_model`; or it is not a model of transformers that writes.
        ConfigError: as `load_model`; or `new_tokens` leaves no room.
    """
    model = load_model(config, task=task)
    module = model.module
    form = generation_format(module, model.processor)
    if form is None or not _generates(module):
        found = f"a {type(module).__name__} with a {type(model.processor).__name__}"
        raise ModelError(
            f"{model.url} cannot write: found {found}, expected a language model or an encoder-decoder of "
            "transformers with a tokenizer (leave sequences out to label the source's own texts)"
        )
    form.require_room(settings.new_tokens, model.url)
    module.generation_config = cast(Any, GenerationConfig())
    return Author(model=model, form=form, settings=settings, seed=seed)


def weights(logits_NV: Tensor, settings: SequencesConfig) -> Tensor:
    """Return unnormalised weights to draw tokens by ``[N, V]``: tempered, cut by top_k, top_p.

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
    """Forbid ids that the tokenizer lacks, and tokens that a model never writes."""

    def __init__(self, form: GenerationFormat):
        self._known = len(form.tokenizer)
        bad_words = [list(tokens) for tokens in form.bad_words if list(tokens) not in ([stop] for stop in form.stops)]
        self._forbidden = NoBadWordsLogitsProcessor(bad_words) if bad_words else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits with those ids at -inf."""
        known = torch.arange(scores.shape[-1], device=scores.device) < self._known
        found = scores.masked_fill(~known, -torch.inf)
        return found if self._forbidden is None else cast(Tensor, self._forbidden(input_ids, found))


class _Step(_Known):
    """Chooses a token itself and leaves no other; keeps its log-probability."""

    def __init__(self, choose: Choose, form: GenerationFormat):
        super().__init__(form)
        self._choose = choose
        self.logp: list[Tensor] = []
        """``[N]`` a step, by the model itself: neither tempered nor cut."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits of which only the chosen token's is finite."""
        chosen_N1 = self._choose(super().__call__(input_ids, scores), len(self.logp))[:, None]
        self.logp.append(scores.float().log_softmax(-1).gather(-1, chosen_N1)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen_N1, 0.0)


def _until(tokens: IntArray, stops: Sequence[int]) -> IntArray:
    """Return tokens up to the first that ends a text; tokens after it are padding."""
    ends = np.flatnonzero(np.isin(tokens, stops))
    return tokens[: ends[0] + 1] if len(ends) else tokens


def _generates(module: nn.Module) -> bool:
    found = getattr(module, "generate", None)
    return callable(found) and "generation_config" in inspect.signature(found).parameters
