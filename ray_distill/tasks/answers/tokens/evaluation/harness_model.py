"""A loaded model behind the interface of lm-evaluation-harness.

This module is imported only where that package is installed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from ray_distill.errors import EvaluationError
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.tasks.answers.tokens.evaluation.predictions import LOGITS_BYTES
from ray_distill.tasks.answers.tokens.evaluation.side_by_side import greedy

#: Context, what is to follow it: tokens.
Pair = tuple[list[int], list[int]]
#: Tokens that are written where a task gives no number: as the harness's own models do.
MAX_TOKENS = 256


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Answer the harness's three kinds of request by `forward`, as `HFLM` does.

    No token is put before the text.
    """

    def __init__(self, model: Model, *, batch: int) -> None:
        super().__init__()
        if not isinstance(model.processor, LanguageProcessor):
            raise EvaluationError(f"evaluation.lm_eval: {model.url} has no tokenizer that could turn tokens into text")
        self.model, self.batch, self.limit = model, batch, model.processor.max_length
        self.tokenizer = model.processor.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.tokenizer.eos_token_id
        return int(found if found is not None else 0)

    @property
    def prefix_token_id(self) -> int:
        """Return the token to put before a text that has no context."""
        found = self.tokenizer.bos_token_id
        return int(found if found is not None else self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"]
        return ids

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, window by window."""
        return [sum(value for value, _ in self._score(self._windows(request.args[0]))) for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write greedy continuations, cut before the first of the strings that end them."""
        return [self._generate(*request.args) for request in requests]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score([(context, follows) for _, context, follows in requests])

    def _windows(self, text: str) -> list[Pair]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.limit, context_len=1
        )
        return [make_disjoint_window(window) for window in windows]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample"):
            raise EvaluationError("evaluation.lm_eval: a task that samples is not run; set do_sample: false")
        most = int(settings.get("max_gen_toks", MAX_TOKENS))
        ids = self.tok_encode(context)[-max(1, self.limit - most) :]
        found = greedy(self.model, ids, stops=frozenset([self.eot_token_id]), new_tokens=most)
        text = str(self.tokenizer.decode(found, skip_special_tokens=True))
        until = settings.get("until") or []
        for end in [until] if isinstance(until, str) else until:
            text = text.split(end)[0] if end else text
        return text

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Score pairs: log-likelihood of the continuation, and whether it is greedy at every token."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for places in self._batches(pairs):
            for place, scored in zip(places, self._run([pairs[place] for place in places]), strict=True):
                found[place] = scored
        return found

    def _batches(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """Yield places of pairs of similar length, the longest first, in batches of bounded logits."""
        lengths = [min(len(context) + len(follows), self.limit + 1) for context, follows in pairs]
        order = sorted(range(len(pairs)), key=lambda place: -lengths[place])
        start = 0
        while start < len(order):
            most = max(1, LOGITS_BYTES // (4 * self.model.vocabulary * max(1, lengths[order[start]])))
            stop = start + min(self.batch, most)
            yield order[start:stop]
            start = stop

    def _run(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        longest = max(len(follows) for _, follows in pairs)
        if longest > self.limit:
            raise EvaluationError(
                f"evaluation.lm_eval: an answer has {longest} tokens, and {self.model.url} reads "
                f"{self.limit}: its likelihood cannot be measured"
            )
        rows = [(context + follows)[-(self.limit + 1) :] for context, follows in pairs]
        width = max(len(row) for row in rows) - 1
        tokens_BL = torch.tensor([row[:-1] + [0] * (width - len(row) + 1) for row in rows])
        mask_BL = torch.tensor([[1] * (len(row) - 1) + [0] * (width - len(row) + 1) for row in rows])
        with torch.inference_mode():
            logits_BLV = forward(self.model.module, {"input_ids": tokens_BL, "attention_mask": mask_BL}).logits_BV
            return [
                _scored(logits_LV[: len(row) - 1], row, len(follows))
                for logits_LV, row, (_, follows) in zip(logits_BLV, rows, pairs, strict=True)
            ]


def _scored(logits_LV: Tensor, row: list[int], follows: int) -> tuple[float, bool]:
    logp_PV = logits_LV[len(row) - 1 - follows :].float().log_softmax(-1)
    true_P = torch.tensor(row[len(row) - follows :], device=logp_PV.device)
    return float(logp_PV.gather(-1, true_P[:, None]).sum()), bool((logp_PV.argmax(-1) == true_P).all())
