"""Make up rows, and the labels that the campaign's store would have of them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import Offsets, RaggedArray
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.models.core.model import Model
from ray_distill.runtime.labelling.batching import request_of
from ray_distill.runtime.model_checks.sizes import LOGITS
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.encoded import TOKEN_IDS, Encoded
from ray_distill.tasks.task import Task
from ray_distill.teachers.reduce import Places

#: Tokens of a made-up row.
LONGEST = 512
#: Width of a teacher's states where it is unknown.
WIDTH = 16


def made_up_rows(task: Task, student: Model, rows: int) -> Encoded:
    """Return rows: the modality's example, and in every second row its longest text."""
    one = task.inputs.example(student.processor)
    tokens = min(int(getattr(student.processor, "max_length", 0) or 0), LONGEST)
    tokens = min(tokens, max(LOGITS // (student.class_count * rows), 2))
    both = [one, _lengthened(one, tokens)]
    features = {name: _joined([both[row % 2].features[name] for row in range(rows)]) for name in one.features}
    ids = pa.array([number.to_bytes(16, "big") for number in range(rows)], pa.binary(16))
    return Encoded(row_ids=ids, features=features)


def _lengthened(one: Encoded, tokens: int) -> Encoded:
    """Repeat the tokens of a row up to a length, in all features that have as many."""
    lengths = {len(one.features[name].values) for name in TOKEN_IDS if name in one.features}
    features = {
        name: feature if len(feature.values) not in lengths else _repeated(feature, tokens)
        for name, feature in one.features.items()
    }
    return replace(one, features=features)


def _repeated(feature: RaggedArray, tokens: int) -> RaggedArray:
    if len(feature.values) >= tokens:
        return feature
    values = np.resize(feature.values, (tokens, *feature.values.shape[1:]))
    return replace(feature, values=values, offsets=np.array([0, tokens], np.int64))


def _joined(parts: list[RaggedArray]) -> RaggedArray:
    offsets = np.concatenate([[0], np.cumsum([len(part.values) for part in parts])]).astype(np.int64)
    return replace(parts[0], values=np.concatenate([part.values for part in parts]), offsets=offsets)


def made_up_truth(answers: Answers, encoded: Encoded) -> pa.Table:
    """Return true labels as a snapshot has them: the first class, or no column."""
    labels = {"class": pa.array([0] * encoded.rows, pa.int32()), "classes": pa.array([[0]] * encoded.rows)}
    column = labels.get(answers.truth)
    known = {"row_id": encoded.row_ids}
    return pa.table(known if column is None else {**known, "label": column})


def made_up_signal(
    task: Task, manifest: StoreManifest, encoded: Encoded, widths: tuple[int, ...] | None
) -> Signal | None:
    """Return labels of the rows: random logits reduced as the teacher's are, and random states.

    None where the store would have a state a token, and inputs have no tokens.
    """
    generator = torch.Generator().manual_seed(0)
    positions, request = task.answers.store.positions(encoded), request_of(manifest)
    logits_PV = torch.randn(len(positions.values), manifest.space.size, generator=generator)
    places = Places(row_offsets=positions.offsets, position=positions.values, logits=None)
    distributions = task.answers.model.reduce(logits_PV, request, encoded.row_ids, places)
    offsets = _state_offsets(task, manifest, encoded)
    if offsets is None:
        return None
    hidden = {}
    for layer, spec in manifest.hidden.items():
        width = spec.rank or (widths[layer] if widths is not None else WIDTH)
        values = torch.randn(int(offsets[-1]), width, generator=generator).numpy()
        hidden[layer] = Vectors(offsets=offsets, values=values)
    return signal_of(distributions=distributions, hidden=hidden)


def _state_offsets(task: Task, manifest: StoreManifest, encoded: Encoded) -> Offsets | None:
    """Return where each row's states begin: one a row, or one a token."""
    if not manifest.hidden or manifest.pool != "token":
        return np.arange(encoded.rows + 1, dtype=np.int64)
    name = next((name for name in (task.inputs.answering, *TOKEN_IDS) if name in encoded.features), None)
    return None if name is None else encoded.features[name].offsets
