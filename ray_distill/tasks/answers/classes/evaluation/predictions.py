"""Run classifiers over snapshot rows, and return log-probabilities of every class.

One row is an example that all models accept.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Ints
from ray_distill.evaluation.predict.batches import Reduce, batches_of, run_batch, run_models
from ray_distill.evaluation.predict.panel import Panel, Run, Timed
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Encoded


def predict_rows(panel: Panel, rows: pa.Table) -> dict[str, pa.Table]:
    """Predict the rows that each model accepts; models with the same processor share its work.

    Returns:
        By arm ``row_id`` and ``logp``: natural logs (float32) of every class, in the order of ``panel.classes``.

    Raises:
        EvaluationError: a model has other classes, or accepts no row.
    """
    orders = class_orders(panel)
    found: dict[str, pa.Table] = {}
    for models, encoded in _by_processor(panel, rows):
        found |= run_models(
            models,
            panel.task,
            encoded,
            batches_of(_lengths(encoded), batch=panel.batch),
            reduction=partial(_reduction, orders, encoded.row_ids),
        )
    return {arm: found[arm] for arm in panel.models}


def time_rows(panel: Panel, rows: pa.Table) -> Timed:
    """Prepare every model over the rows that all models accept.

    Raises:
        EvaluationError: as `predict_rows`.
    """
    orders, groups = class_orders(panel), _by_processor(panel, rows)
    ids = accepted_by_all(rows, (encoded.row_ids for _, encoded in groups))["row_id"].cast(pa.binary(16))
    runs: dict[str, Run] = {}
    for models, encoded in groups:
        kept = encoded.take(np.asarray(pc.index_in(ids.combine_chunks(), value_set=encoded.row_ids), np.int64))
        runs |= {arm: _run(panel, model, kept, orders[arm]) for arm, model in models.items()}
    return Timed(runs={arm: runs[arm] for arm in panel.models}, examples=len(ids))


def class_orders(panel: Panel) -> dict[str, Ints]:
    """Return, by arm, the model's class id of each of the panel's classes, ``[V]``.

    Raises:
        EvaluationError: a model has other classes.
    """
    return {arm: _class_order(model, panel.classes) for arm, model in panel.models.items()}


def accepted_by_all(rows: pa.Table, accepted: Iterable[pa.Array]) -> pa.Table:
    """Return the rows whose ids are among all of those accepted, in their order."""
    for ids in accepted:
        rows = rows.filter(pc.is_in(rows["row_id"].cast(pa.binary(16)), value_set=ids))
    return rows


def log_probabilities(logits_NV: torch.Tensor, row_ids: pa.Array) -> pa.Table:
    """Return one row an example: ``row_id``, and ``logp`` as a list of V float32 natural logs."""
    logp_NV = logits_NV.detach().float().log_softmax(-1).cpu().numpy()
    rows, classes = logp_NV.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(classes))
    logp = pa.ListArray.from_arrays(offsets, pa.array(logp_NV.reshape(-1)))
    return pa.table({"row_id": row_ids, "logp": logp})


def join_predictions(
    rows: pa.Table, predictions: pa.Table, *, teacher: pa.Table | None = None, slices: Sequence[str] = ()
) -> pa.Table:
    """Put predictions in the order of ``rows`` and add what measuring needs.

    Args:
        rows: snapshot rows: ``row_id``, ``count``, ``label`` where there is one, the slice columns.
        predictions: ``row_id`` and ``logp``, in any order.
        teacher: the teacher's predictions, which become ``teacher_logp``.
        slices: columns of ``rows`` to keep, by which quality is reported too.

    Returns:
        ``row_id``, ``logp``, ``count``, ``label``, ``teacher_logp``, and the slice columns, where they exist.

    Raises:
        EvaluationError: a row without its prediction.
    """
    columns = {"row_id": rows["row_id"], "logp": _in_order(rows, predictions, "model"), "count": rows["count"]}
    if "label" in rows.column_names:
        columns["label"] = rows["label"]
    if teacher is not None:
        columns["teacher_logp"] = _in_order(rows, teacher, "teacher")
    return pa.table(columns | {name: rows[name] for name in slices})


def _in_order(rows: pa.Table, predictions: pa.Table, who: str) -> pa.ChunkedArray:
    index = pc.index_in(rows["row_id"], value_set=predictions["row_id"].combine_chunks())
    if index.null_count:
        raise EvaluationError(
            f"the {who} gave no prediction for {index.null_count} of {rows.num_rows} rows: leave out "
            "the rows it rejected for all models, so that all are judged on the same"
        )
    return predictions["logp"].take(index)


def _class_order(model: Model, classes: Sequence[str]) -> Ints:
    missing, unknown = sorted(set(classes) - set(model.classes)), sorted(set(model.classes) - set(classes))
    if missing or unknown:
        raise EvaluationError(
            f"{model.url} and the snapshot have different classes: only the snapshot has {missing[:5]}, only the model "
            f"has {unknown[:5]}; name them alike (snapshot.classes, or the model's id2label)"
        )
    return np.array([model.classes.index(name) for name in classes], dtype=np.int64)


def _by_processor(panel: Panel, rows: pa.Table) -> list[tuple[dict[str, Model], Encoded]]:
    """Encode the rows once a processor, for the models that have it.

    Raises:
        EvaluationError: a model accepts no row.
    """
    groups: dict[str, dict[str, Model]] = {}
    for arm, model in panel.models.items():
        groups.setdefault(model.processor.fingerprint, {})[arm] = model
    return [(models, _encode(panel, next(iter(models.values())), rows)) for models in groups.values()]


def _encode(panel: Panel, model: Model, rows: pa.Table) -> Encoded:
    encoded = panel.task.inputs.encode(rows, model.processor)
    if not encoded.rows:
        reason = encoded.rejected[0].reason if encoded.rejected else "there are none"
        raise EvaluationError(f"{model.url} accepts none of the {rows.num_rows} rows: {reason}")
    return encoded


def _lengths(encoded: Encoded) -> Ints:
    lengths: Ints = np.max([np.diff(feature.offsets) for feature in encoded.features.values()], axis=0)
    return lengths


def _reduction(orders: Mapping[str, Ints], row_ids: pa.Array, index: Ints) -> Reduce:
    ids = row_ids.take(pa.array(index))
    return lambda arm, logits_BV, _: log_probabilities(_ordered(logits_BV, orders[arm]), ids)


def _run(panel: Panel, model: Model, encoded: Encoded, order_V: Ints) -> Run:
    return lambda index: _ordered(run_batch(model, panel.task, encoded, index), order_V)


def _ordered(logits_BV: torch.Tensor, order_V: Ints) -> torch.Tensor:
    """Return float32 ``[B, V]`` on the CPU, in the requested order of classes."""
    return logits_BV[:, torch.from_numpy(order_V).to(logits_BV.device)].float().cpu()
