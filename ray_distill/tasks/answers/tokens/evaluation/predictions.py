"""Run language models over documents, and keep sums a document, never a distribution.

All models run on the same batches.

The models share the tokens: the first one's processor encodes, the others must have its vocabulary and rules. Beside a
teacher, its logits of a batch are compared with each model's a few hundred positions at a time, so that there are never
more than two models' logits of one batch at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats, Ints
from ray_distill.evaluation.predict.batches import Reduce, batches_of, run_batch, run_models
from ray_distill.evaluation.predict.panel import Panel, Run, Timed
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.models.core.model import Model
from ray_distill.models.text.tokenizer_match import token_count, tokens_of
from ray_distill.tasks.answers.tokens.evaluation.measures import TAIL_TOP, is_sum, sum_by_document
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task

#: Most float32 logits of one batch, bytes; a longer document is a batch of its own.
LOGITS_BYTES = 1 << 29
#: Log-probabilities compared at once, a model: 341 positions of SmolLM2's 49,152 tokens.
CHUNK_ELEMENTS = 1 << 24


def predict_documents(panel: Panel, rows: pa.Table, keep: Sequence[str] = ()) -> dict[str, pa.Table]:
    """Sum every model's answers in the usable documents, for `measures.measure`.

    Args:
        panel: models of one tokenizer, the reference among them.
        rows: ``row_id``, the input, ``count``.
        keep: other columns of ``rows`` to carry over, of other names than the sums.

    Returns:
        By arm, one row a document: the same documents in the order of ``rows``.

    Raises:
        EvaluationError: tokens or vocabularies differ, no document can be used, a column to keep has a sum's name, or
            a model answers NaN.
    """
    if taken := sorted(filter(is_sum, keep)):
        raise EvaluationError(
            f"the column {taken[0]} cannot be a slice of a language model's evaluation, which has a "
            "column of this name itself: rename it where the rows come from"
        )
    encoded = encode_for_all(panel.models, rows, task=panel.task)
    tables = run_models(
        panel.models,
        panel.task,
        encoded,
        token_batches(panel, encoded),
        reduction=lambda index: _reduction(panel, encoded.take(index)),
        reference=panel.reference,
    )
    place = pc.index_in(encoded.row_ids, value_set=rows["row_id"].cast(pa.binary(16)).combine_chunks())
    known = {name: rows[name].take(place) for name in ("row_id", "count", *keep)}
    return {
        arm: pa.table(known | dict(zip(table.column_names, table.columns, strict=True)))
        for arm, table in tables.items()
    }


def time_documents(panel: Panel, rows: pa.Table) -> Timed:
    """Prepare to time every model over the documents that all can use.

    Their mean length makes tokens a second of documents.

    Padding does not count. A batch whose logits would take too much memory is run in parts.

    Raises:
        EvaluationError: as `encode_for_all`.
    """
    encoded = encode_for_all(panel.models, rows, task=panel.task)

    def run_of(model: Model) -> Run:
        def run(index: Ints) -> object:
            parts = token_batches(panel, encoded, index)
            return [run_batch(model, panel.task, encoded, part)[:, -1].cpu() for part in parts]

        return run

    length = float(_lengths(panel, encoded).mean())
    return Timed(
        runs={arm: run_of(model) for arm, model in panel.models.items()},
        examples=encoded.rows,
        rates={"tokens_per_second": length},
    )


def token_batches(panel: Panel, encoded: Encoded, index: Ints | None = None) -> Iterator[Ints]:
    """Yield rows in batches of similar length whose float32 logits stay under `LOGITS_BYTES`.

    The rows are all, or those of ``index``.
    """
    most = max(1, LOGITS_BYTES // (4 * next(iter(panel.models.values())).vocabulary))
    return batches_of(_lengths(panel, encoded), batch=panel.batch, most=most, index=index)


def encode_for_all(models: Mapping[str, Model], rows: pa.Table, *, task: Task) -> Encoded:
    """Encode features that suit every model.

    They are of the first model's processor, cut to the shortest limit of all.

    Raises:
        EvaluationError: the models differ in tokens or vocabulary, or no document can be used.
    """
    check_alike(models)
    encoded = task.inputs.encode(rows, next(iter(models.values())).processor)
    encoded = _cut(encoded, min(getattr(model.processor, "max_length", np.inf) for model in models.values()))
    answers = task.answers.store.positions(encoded) if encoded.rows else None
    encoded = encoded.take(np.flatnonzero(np.diff(answers.offsets))) if answers is not None else encoded
    if not encoded.rows:
        why = encoded.rejected[0].reason if encoded.rejected else "nothing in them is to be predicted"
        raise EvaluationError(f"none of the {rows.num_rows} documents can be used by {', '.join(models)}: {why}")
    return encoded


def check_alike(models: Mapping[str, Model]) -> None:
    """Refuse models of other tokens than the first, or with fewer classes than tokens.

    Their likelihoods are of other events.

    Raises:
        EvaluationError: names both.
    """
    first, *others = models.values()
    for model in others:
        if tokens_of(model.processor) != tokens_of(first.processor):
            raise EvaluationError(
                f"{model.url} and {first.url} have different tokenizers (vocabulary, special tokens or chat template), "
                "so a token of one is none of the other's: judge models of one tokenizer, and start a campaign of "
                "another name for another"
            )
    shared, tokens = shared_vocabulary(models), token_count(first.processor)
    # A tokenizer may have more tokens than its own model, which then never reads them.
    if shared < min(tokens, max(model.vocabulary for model in models.values())):
        narrow = min(models.values(), key=lambda model: model.vocabulary)
        raise EvaluationError(
            f"{narrow.url} answers over {narrow.vocabulary} tokens, fewer than the {tokens} of the tokenizer: give it "
            f"the vocab_size of {first.url}, {first.vocabulary}"
        )


def shared_vocabulary(models: Mapping[str, Model]) -> int:
    """Return the number of tokens that all models answer over: the least.

    Vocabularies of one tokenizer may be padded differently. All models are measured over the shared classes, each by
    its distribution given one of these.
    """
    return min(model.vocabulary for model in models.values())


def _lengths(panel: Panel, encoded: Encoded) -> Ints:
    lengths: Ints = np.diff(encoded.features[panel.task.inputs.answering].offsets)
    return lengths


def _reduction(panel: Panel, part: Encoded) -> Reduce:
    """Return what sums a model's logits of one batch of documents."""
    store = panel.task.answers.store
    answers = store.positions(part)
    document_P = np.repeat(np.arange(part.rows), np.diff(answers.offsets))
    position_P = answers.values.astype(np.int64)
    true_P = store.truth(part).values.astype(np.int64)
    shared = shared_vocabulary(panel.models)

    def sums(arm: str, logits_BLV: Tensor, beside_BLV: Tensor | None) -> pa.Table:
        beside = None if beside_BLV is None else beside_BLV[..., :shared]
        values = _values(logits_BLV[..., :shared], beside, document_P=document_P, position_P=position_P, true_P=true_P)
        if np.isnan(values["confidence"]).any():
            raise EvaluationError(
                f"{panel.models[arm].url} answers with NaN: its weights are damaged or overflow in its dtype"
            )
        return pa.table(
            sum_by_document(values, document_P=document_P, position_P=position_P, documents=part.rows, bins=panel.bins)
        )

    return sums


def _values(
    logits_BLV: Tensor, teacher_BLV: Tensor | None, *, document_P: Ints, position_P: Ints, true_P: Ints
) -> dict[str, Floats]:
    """Run `compare_positions` on all positions, chunk by chunk; return float64 ``[P]``."""
    chunk, parts = max(1, CHUNK_ELEMENTS // logits_BLV.shape[-1]), []
    for start in range(0, len(document_P), chunk):
        rows, places, true = (
            torch.from_numpy(item[start : start + chunk]).to(logits_BLV.device)
            for item in (document_P, position_P, true_P)
        )
        teacher_PV = None
        if teacher_BLV is not None:
            teacher_PV = teacher_BLV[rows.to(teacher_BLV.device), places.to(teacher_BLV.device)].to(logits_BLV.device)
        with torch.inference_mode():
            parts.append(compare_positions(logits_BLV[rows, places], teacher_PV, true))
    return {name: torch.cat([part[name].double().cpu() for part in parts]).numpy() for name in parts[0]}


def compare_positions(logits_PV: Tensor, teacher_PV: Tensor | None, true_P: Tensor) -> dict[str, Tensor]:
    """Return the float32 values ``[P]`` that `sum_by_document` sums.

    They are of a model, compared with its teacher where there is one.

    Args:
        logits_PV: the model's.
        teacher_PV: the teacher's, at the same positions; None without one.
        true_P: the true next tokens.
    """
    logq_PV = logits_PV.float().log_softmax(-1)
    q_PV = logq_PV.exp()
    first_P = logits_PV.argmax(-1)  # of the logits: rounding makes equal probabilities of unequal ones
    found = {
        "nll": -logq_PV.gather(-1, true_P[:, None])[:, 0],
        "correct": first_P == true_P,
        "confidence": q_PV.amax(-1).clamp(max=1.0),
        "entropy": _entropy(q_PV, logq_PV),
    }
    if teacher_PV is None:
        return found
    logp_PV = teacher_PV.float().log_softmax(-1)
    p_PV = logp_PV.exp()
    # A class to which the teacher gives no probability adds nothing, whatever the model gives it.
    terms_PV = torch.where(p_PV > 0, p_PV * (logp_PV - logq_PV), 0.0)
    top_PK, ids_PK = p_PV.topk(min(TAIL_TOP, p_PV.shape[-1]), dim=-1)
    return found | {
        "kl_from_teacher": terms_PV.sum(-1).clamp(min=0.0),
        "agreement": first_P == teacher_PV.argmax(-1),
        "teacher_entropy": _entropy(p_PV, logp_PV),
        "tail_gap": top_PK.sum(-1) - q_PV.gather(-1, ids_PK).sum(-1),
    }


def _entropy(p_PV: Tensor, logp_PV: Tensor) -> Tensor:
    return -torch.where(p_PV > 0, p_PV * logp_PV, 0.0).sum(-1)


def _cut(encoded: Encoded, longest: float) -> Encoded:
    """Return the first tokens of every row, in all its features."""
    features = {}
    for name, feature in encoded.features.items():
        lengths = np.diff(feature.offsets)
        within: npt.NDArray[Any] = np.arange(len(feature.values)) - np.repeat(feature.offsets[:-1], lengths)
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, longest))]).astype(np.int64)
        features[name] = RaggedArray(values=feature.values[within < longest], offsets=offsets, pad=feature.pad)
    return Encoded(row_ids=encoded.row_ids, features=features, rejected=encoded.rejected)
