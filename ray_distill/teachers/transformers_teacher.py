"""The teacher engine for transformers checkpoints and ``module:function`` models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.config import TeacherConfig
from ray_distill.errors import TeacherRefused
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.models.core.forward import States, forward, forward_body, pool_hidden
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.layers import resolve_layers
from ray_distill.teachers.reduce import Places
from ray_distill.teachers.states import reduce_states


@dataclass(frozen=True, kw_only=True)
class TransformersTeacher:
    """Answers with a loaded model; one call is one batch."""

    model: Model
    task: Task

    @property
    def fingerprint(self) -> str:
        """Fingerprint of weights, dtype, head and processor."""
        return self.model.fingerprint

    @property
    def space(self) -> AnswerSpace:
        """Classes in the order of the logits."""
        return self.model.space

    @property
    def tokens(self) -> str | None:
        """Fingerprint of a language model's tokens; None for other tasks."""
        return getattr(self.model.processor, "tokens_fingerprint", None)

    @property
    def states(self) -> int:
        """Number of hidden states, found by running the model once."""
        return len(self.model.widths)

    @property
    def describe(self) -> Mapping[str, Any]:
        """Architecture, size and source."""
        return self.model.describe

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        """Answer for every row of ``encoded``, in order, as one batch.

        A row whose answer is not finite is returned as it is, for the writer to put in quarantine.

        Raises:
            TeacherRefused: a layer, pooling or estimator that this teacher cannot give.
        """
        _check(self.model, request)
        if not encoded.rows:
            return self._nothing(request, encoded)
        with torch.inference_mode():
            distributions, states = self._answer(encoded, request)
            hidden = {layer: _pooled(states, layer, request) for layer in request.layers}
        return signal_of(distributions=distributions, hidden=hidden)

    def _answer(self, encoded: Encoded, request: LabelRequest) -> tuple[Distributions, States]:
        """Run the model; a separable head sees the answered tokens alone, by slices."""
        batch = self.task.inputs.collate(encoded, np.arange(encoded.rows, dtype=np.int64))
        answered, apart = self.task.answers.store.positions(encoded), self.model.apart
        if apart is None:
            output = forward(self.model.module, batch, request.layers)
            logits = output.logits_BV / self.model.temperature
            return self._distributions(logits, answered, request, encoded.row_ids), output
        body, head = apart
        states = forward_body(body, head, batch, request.layers)
        places = Places(row_offsets=answered.offsets, position=answered.values, logits=None)
        flat = torch.from_numpy(_flat(answered, states.last_BLD.shape[1])).to(states.last_BLD.device)
        reduce = self.task.answers.model.reduce
        return reduce_states(
            states.last_BLD.flatten(0, 1)[flat], head, request, encoded.row_ids, places=places, reduce=reduce
        ), states

    def _distributions(
        self, logits: Tensor, answered: RaggedArray, request: LabelRequest, row_ids: pa.Array
    ) -> Distributions:
        """Reduce logits ``[B, V]``, or ``[B, L, V]`` at the answered tokens (padding at the end)."""
        reduce = self.task.answers.model.reduce
        if logits.ndim == 2:
            return reduce(logits, request, row_ids)
        places = Places(row_offsets=answered.offsets, position=answered.values, logits=_flat(answered, logits.shape[1]))
        return reduce(logits.flatten(0, 1), request, row_ids, places)

    def _nothing(self, request: LabelRequest, encoded: Encoded) -> Signal:
        """Return the answer for no rows; many models cannot run on an empty batch."""
        start = np.zeros(1, np.int64)
        widths = {layer: self.model.widths[layer] for layer in request.layers} | {
            layer: basis_DR.shape[1] for layer, (_, basis_DR) in request.bases.items()
        }
        hidden = {
            layer: Vectors(offsets=start, values=np.zeros((0, width), np.float32)) for layer, width in widths.items()
        }
        none = self.task.answers.model.reduce(torch.zeros(0, self.model.class_count), request, encoded.row_ids)
        return signal_of(distributions=none, hidden=hidden)


def open_teacher(config: TeacherConfig, *, task: str, head_url: str | None = None) -> TransformersTeacher:
    """Load the teacher a config names.

    Raises:
        ModelError, ConfigError, StorageError: as `load_model`.
    """
    return TransformersTeacher(model=load_model(config, task=task, head_url=head_url), task=get_task(task))


def _check(model: Model, request: LabelRequest) -> None:
    if not request.layers:
        return
    resolve_layers(request.layers, len(model.widths))
    if model.states.spatial and request.pool in ("cls", "last"):
        raise TeacherRefused(
            f"the hidden states of {model.url} are feature maps and have no {request.pool} token: "
            "set labels.hidden.pool to mean or token"
        )


def _flat(answered: RaggedArray, length: int) -> npt.NDArray[np.int64]:
    """Return the index of each answered token in a flattened batch ``[B, L]``."""
    row = np.repeat(np.arange(len(answered.offsets) - 1), np.diff(answered.offsets))
    return np.asarray(row * length + answered.values, np.int64)


def _pooled(output: States, layer: int, request: LabelRequest) -> Vectors:
    """Pool and project one layer's states on the device, then copy them as float32 to the host."""
    states_BLD = output.hidden[layer]
    values_ND = pool_hidden(states_BLD.float(), output.mask_BL, request.pool)
    if layer in request.bases:
        mean_D, basis_DR = (torch.from_numpy(array).to(values_ND.device) for array in request.bases[layer])
        values_ND = (values_ND - mean_D) @ basis_DR
    lengths = np.ones(len(states_BLD), np.int64) if request.pool != "token" else _lengths(states_BLD, output.mask_BL)
    return Vectors(offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), values=values_ND.cpu().numpy())


def _lengths(states_BLD: Tensor, mask_BL: Tensor | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if mask_BL is None or states_BLD.shape[1] == 1:
        return np.full(len(states_BLD), states_BLD.shape[1], np.int64)
    return mask_BL.sum(1).cpu().numpy().astype(np.int64)
