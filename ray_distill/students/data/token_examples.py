"""Documents of a snapshot joined with their teacher labels, one position a token that is to be predicted.

Labels belong to (document, token), never to a place in a batch: batch size, packing and number of ranks may differ
between labelling and training.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import gather_ranges
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal, Vectors
from ray_distill.losses.base import LossBatch, SparseTargets
from ray_distill.models.core.model import Model
from ray_distill.students.data.examples import encode_sorted, hex_ids, is_in, positions_in
from ray_distill.students.modules.token_student_module import PLACES
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded, Ragged
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.packing import collate_packed
from ray_distill.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Usable documents of one split, ascending by row id. R documents; document r has the answered positions
    ``answered.values[answered.offsets[r]:answered.offsets[r+1]]``.
    """

    task: Task
    encoded: Encoded
    answered: Ragged
    """Where in each document a token is to be predicted."""
    truth: Ragged
    """The true tokens there."""
    stored: Index
    """``[R]``: row of ``distributions`` and ``hidden``; -1 = the teacher has not labelled the document."""
    distil: npt.NDArray[np.bool_]
    """``[R]``: the teacher may teach this document."""
    distributions: Distributions | DistributionParts | None
    hidden: Mapping[int, Vectors] = field(default_factory=dict)
    """Teacher states by stored layer, one a token of each labelled document."""
    packed: int = 0
    """Tokens of a sequence that documents are packed into; 0 = one document a sequence, padded."""

    @property
    def rows(self) -> int:
        """Number of documents, R."""
        return self.encoded.rows

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each document; of a pair those of the source and those the decoder reads."""
        return self.encoded.lengths

    @cached_property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """``[R]``: the true next tokens are known, as they are of every text."""
        return np.ones(self.rows, dtype=np.bool_)

    @property
    def widths(self) -> dict[int, int]:
        """Numbers of a teacher state by stored layer."""
        return {layer: hidden.values.shape[1] for layer, hidden in self.hidden.items()}

    def ids_of(self, rows: Index) -> list[str]:
        """Ids of documents in the snapshot, as hexadecimal text."""
        return hex_ids(self.encoded.row_ids, rows)

    def entropies(self) -> npt.NDArray[np.float64]:
        """``[R]``: the teacher's entropy in nats, the mean over a document's positions; NaN where it has none."""
        found = np.full(self.rows, np.nan)
        have = np.flatnonzero(self.stored >= 0)
        if self.distributions is None or len(have) == 0:
            return found
        offsets, flat = gather_ranges(self.distributions.row_offsets, self.stored[have])
        owner = np.repeat(np.arange(len(have)), np.diff(offsets))
        sums = np.bincount(owner, weights=self.distributions.entropy[flat], minlength=len(have))
        with np.errstate(invalid="ignore"):  # of a document without positions: 0 / 0
            found[have] = sums / np.diff(offsets)
        return found

    def states(self, rows: Index) -> dict[int, Vectors]:
        """Teacher states of documents the teacher has labelled, by stored layer."""
        return {layer: hidden.take(self.stored[rows]) for layer, hidden in self.hidden.items()}

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Everything is in memory."""

    def close(self) -> None:
        """There is nothing to end."""

    @property
    def drawn(self) -> bool:
        """Whether the teacher's classes were drawn."""
        return self.distributions is not None and self.distributions.drawn

    def batch(self, rows: Index, real: npt.NDArray[np.bool_] | None = None) -> tuple[Batch, LossBatch]:
        """Model inputs and what the losses see of the given documents: N answered positions, document by document."""
        offsets, flat = gather_ranges(self.answered.offsets, rows)
        position_N, owner_N = self.answered.values[flat].astype(np.int64), np.repeat(rows, np.diff(offsets))
        inputs, start_B = self._inputs(rows)
        places_N = np.repeat(start_B, np.diff(offsets)) + position_N
        weight_B = np.ones(len(rows), np.float32) if real is None else real.astype(np.float32)
        true_N = self.truth.values[flat].astype(np.int64)
        return {**inputs, PLACES: torch.from_numpy(places_N)}, LossBatch(
            labels_B=torch.from_numpy(true_N),
            targets=self._targets(rows, np.diff(offsets)),
            distil_B=torch.from_numpy(self.distil[owner_N]),
            example_weight_B=torch.from_numpy(np.repeat(weight_B, np.diff(offsets))),
            hidden={layer: self._states(states, owner_N, position_N) for layer, states in self.hidden.items()},
            row_B=torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(offsets))),
        )

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Mean mass of the stored classes at a declared temperature over the positions of labelled documents."""
        found = self.distributions
        assert found is not None
        _, flat = gather_ranges(found.row_offsets, self.stored[rows])
        column = found.temperatures.index(temperature)
        return float(np.mean(-np.expm1(found.log_tail[flat, column].astype(np.float64))))

    def _inputs(self, rows: Index) -> tuple[Batch, Index]:
        """Model inputs, and the flat place of each document's first token."""
        if self.packed:
            return collate_packed(self.encoded, rows, self.packed)
        inputs = self.task.inputs.collate(self.encoded, rows)
        return inputs, np.arange(len(rows), dtype=np.int64) * inputs[self.task.inputs.answering].shape[1]

    def _targets(self, rows: Index, counts_B: Index) -> SparseTargets | None:
        """Teacher distributions at the answered positions; documents it has not labelled get a harmless uniform one."""
        if self.distributions is None:
            return None
        have_B = self.stored[rows] >= 0
        found = self.distributions.take(self.stored[rows][have_B])
        have_N = np.repeat(have_B, counts_B)
        lengths = np.diff(found.entry_offsets)
        width = int(lengths.max(initial=1))
        matrix = bool(have_B.all()) and found.width > 0
        inside = None if matrix else np.arange(width) < lengths[:, None]

        def padded(values: npt.NDArray[Any], empty: Any, filler: Any) -> torch.Tensor:
            if inside is None:
                return torch.from_numpy(values.reshape(-1, width))
            spread = np.empty((len(have_N), width), values.dtype)
            spread[:] = filler
            own = np.full(inside.shape, empty, values.dtype)
            own[inside] = values
            spread[have_N] = own
            return torch.from_numpy(spread)

        def one_each(values: npt.NDArray[np.float32], filler: float) -> torch.Tensor:
            if matrix:
                return torch.from_numpy(values)
            spread = np.full((len(have_N), *values.shape[1:]), filler, values.dtype)
            spread[have_N] = values
            return torch.from_numpy(spread)

        draws = found.draws
        return SparseTargets(
            classes=found.classes,
            temperatures=found.temperatures,
            ids_NK=padded(found.ids, 0, np.arange(width)),
            logp_NK=padded(found.logp, -np.inf, -np.log(width)),
            log_tail_NT=one_each(found.log_tail, -np.inf),
            count_NK=None if draws is None else padded(draws.count, 0, 0),
            log_normaliser_N=None if draws is None else one_each(draws.log_normaliser, 0.0),
            draws=0 if draws is None else draws.number,
            exponent=1.0 if draws is None else draws.exponent,
        )

    def _states(self, hidden: Vectors, owner_N: Index, position_N: Index) -> torch.Tensor:
        """Teacher states at the answered positions ``[N, D]``; zeros where the document is not labelled."""
        have_N = self.stored[owner_N] >= 0
        states_ND = np.zeros((len(owner_N), hidden.values.shape[1]), np.float32)
        states_ND[have_N] = hidden.values[hidden.offsets[self.stored[owner_N[have_N]]] + position_N[have_N]]
        return torch.from_numpy(states_ND)


def build_token_set(
    table: pa.Table,
    *,
    task: Task,
    processor: Processor,
    vocabulary: int,
    labels: tuple[pa.Array, Signal] | None,
    excluded: pa.Array | None = None,
    pool: str = "token",
    packed: int = 0,
    name: str = "train",
    part: bool = False,
) -> TokenSet:
    """Join documents of a snapshot (``row_id``, the task's input column) with their teacher labels.

    Args:
        table: the rows.
        task: encodes and collates.
        processor: the student's.
        vocabulary: number of classes of the student's head.
        labels: row ids and their signal, as a label set reads them; None = no teacher.
        excluded: ids of rows the teacher was trained on; it may not teach them.
        pool: how the signal's hidden states were pooled.
        packed: tokens of a packed sequence; 0 = padded.
        name: of the split, for messages.
        part: these are but some documents of the split: nothing is logged, and none need be usable.

    Raises:
        ConfigError: labels and student have different tokens, classes, or hidden states that are not one a token.
        TrainingError: no usable document is left.
    """
    encoded = encode_sorted(table, task, processor, name, part=part)
    answered = task.answers.store.positions(encoded)
    stored = positions_in(encoded.row_ids, labels)
    signal = Signal() if labels is None else labels[1]
    if DISTRIBUTIONS in signal.parts:
        _check_vocabulary(signal.distributions, vocabulary)
        _check_positions(signal.distributions, answered, stored, encoded)
    if signal.hidden and pool != "token":
        raise ConfigError(
            f"labels.hidden.pool is {pool}: a language model's states are matched token by token; label "
            "with pool: token, or leave the hidden loss out"
        )
    found = TokenSet(
        task=task,
        encoded=encoded,
        answered=answered,
        truth=task.answers.store.truth(encoded),
        stored=stored,
        packed=packed,
        distil=(stored >= 0) & ~is_in(encoded.row_ids, excluded),
        distributions=signal.distributions if DISTRIBUTIONS in signal.parts else None,
        hidden=signal.hidden,
    )
    if part:
        return found
    log.info(
        "%s split: %d documents, %d answered tokens, %d documents distilled",
        name,
        found.rows,
        len(answered.values),
        int(found.distil.sum()),
    )
    missing = int((stored < 0).sum())
    if labels is not None and missing:
        log.warning(
            "%d of %d %s documents have no teacher labels (quarantined, or labelled later than this label "
            "set): they are used only for their own text",
            missing,
            found.rows,
            name,
        )
    if labels is not None and len(labels[0]) and not found.distil.any() and name == "train":
        raise TrainingError(f"none of the {found.rows} usable rows of the train split has teacher labels")
    return found


def check_tokens(teacher: Mapping[str, Any], model: Model) -> None:
    """Refuse a student whose tokenizer is not the one the labels were taken with.

    Args:
        teacher: of the store's manifest; its ``tokens`` is the fingerprint of the teacher's tokenizer and template.
        model: the student.

    Raises:
        ConfigError: says how to proceed.
    """
    wanted, found = teacher.get("tokens"), getattr(model.processor, "tokens_fingerprint", None)
    if wanted and found and wanted != found:
        raise ConfigError(
            f"the student {model.url} has another tokenizer or chat template ({found[:19]}…) than the labels of "
            f"{teacher.get('model', 'the teacher')} ({wanted[:19]}…), and distributions over other tokens teach it "
            "nothing. Start the student from the teacher's config or layers, save the teacher's tokenizer beside the "
            "student, or let the teacher write the texts and train on those with hard labels"
        )


def _check_vocabulary(found: Distributions, vocabulary: int) -> None:
    if found.classes != vocabulary:
        raise ConfigError(
            f"the labels are distributions over {found.classes} tokens, the student's head has {vocabulary}: a student "
            "must have the teacher's tokenizer and vocabulary; start it from the teacher's config or layers, or label "
            "with a teacher of the student's family"
        )


def _check_positions(found: Distributions, answered: Ragged, stored: Index, encoded: Encoded) -> None:
    """Refuse labels that were taken at other tokens than the student is asked at."""
    have = np.flatnonzero(stored >= 0)
    ours, ours_at = gather_ranges(answered.offsets, have)
    theirs, theirs_at = gather_ranges(found.row_offsets, stored[have])
    wrong = np.flatnonzero(np.diff(ours) != np.diff(theirs))
    if not len(wrong):
        apart = np.flatnonzero(answered.values[ours_at] != found.position[theirs_at])
        wrong = np.searchsorted(ours, apart[:1], side="right") - 1
    if not len(wrong):
        return
    row = int(have[wrong[0]])
    raise ConfigError(
        f"row {encoded.row_ids[row].as_py().hex()} was labelled at other tokens than the student has: tokenizer, "
        "template, roles or max_length have changed since; train with those of the labels, or label again"
    )
