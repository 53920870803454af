"""Run models that answer once a row, over named classes, and tabulate their answers.

Answers are in the snapshot's order of classes; a family chooses what a table has of the logits (`Columns`). One row is
an example that all models accept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.config import Campaign
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Ints
from ray_distill.evaluation.predict.batches import Reduce, batches_of, run_batch, run_models
from ray_distill.evaluation.predict.panel import Extras, Panel, Run, Timed
from ray_distill.models.core.model import Model
from ray_distill.models.core.row_classes import listed
from ray_distill.tasks.encoded import Encoded

#: (panel, arm, its logits ``[N, V]``: float32, on the CPU, in the order of ``panel.classes``) -> a family's columns of
#: the N rows; metadata of the schema is kept.
Columns = Callable[[Panel, str, torch.Tensor], pa.Table]


def answer_rows(panel: Panel, rows: pa.Table, slices: Sequence[str] = (), *, columns: Columns) -> dict[str, pa.Table]:
    """Return by arm the answers to the rows that all models accept: `JudgeFacet.answer`.

    Tables are those of `join_predictions`, with the reference's columns where there is one.

    Raises:
        EvaluationError: models have other classes, or no row is accepted by all of them.
    """
    answers = predict_rows(panel, rows, columns=columns)
    rows = accepted_by_all(rows, (answer["row_id"].combine_chunks() for answer in answers.values()))
    if not rows.num_rows:
        raise EvaluationError("no row of the test split is accepted by all models: nothing can be compared")
    beside = None if panel.reference is None else answers[panel.reference]
    return {arm: join_predictions(rows, found, teacher=beside, slices=slices) for arm, found in answers.items()}


def answer_every_row(panel: Panel, rows: pa.Table, *, columns: Columns) -> dict[str, pa.Table]:
    """Return by arm the answers to all rows, without a reference: `JudgeFacet.answer_damaged`.

    Raises:
        EvaluationError: a model rejects a row.
    """
    return {arm: join_predictions(rows, found) for arm, found in predict_rows(panel, rows, columns=columns).items()}


def no_extras(panel: Panel, rows: pa.Table, config: Campaign) -> Extras:
    """Return nothing: such models are measured by their answers alone."""
    return Extras()


def no_remarks(answers: Mapping[str, pa.Table], names: Sequence[str]) -> list[str]:
    """Return nothing: the family has no findings of its own."""
    return []


def predict_rows(panel: Panel, rows: pa.Table, *, columns: Columns) -> dict[str, pa.Table]:
    """Predict the rows that each model accepts; models with the same processor share its work.

    Returns:
        By arm ``row_id`` and the family's columns.

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
            reduction=partial(_reduction, panel, orders, row_ids=encoded.row_ids, columns=columns),
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


def join_predictions(
    rows: pa.Table, predictions: pa.Table, *, teacher: pa.Table | None = None, slices: Sequence[str] = ()
) -> pa.Table:
    """Put predictions in the order of ``rows`` and add what measuring needs.

    Args:
        rows: snapshot rows: ``row_id``, ``count``, ``label`` where there is one, the slice columns.
        predictions: ``row_id`` and a family's columns, in any order.
        teacher: the teacher's predictions, whose columns become ``teacher_…``.
        slices: columns of ``rows`` to keep, by which quality is reported too.

    Returns:
        ``row_id``, the model's columns, ``count``, ``label``, the teacher's and the slice columns, where they exist.

    Raises:
        EvaluationError: a row without its prediction.
    """
    columns = {"row_id": rows["row_id"], **_in_order(rows, predictions, "model"), "count": rows["count"]}
    if "label" in rows.column_names:
        columns["label"] = rows["label"]
    if teacher is not None:
        columns |= {f"teacher_{name}": column for name, column in _in_order(rows, teacher, "teacher").items()}
    return pa.table(columns | {name: rows[name] for name in slices}, metadata=predictions.schema.metadata)


def _in_order(rows: pa.Table, predictions: pa.Table, who: str) -> dict[str, pa.ChunkedArray]:
    index = pc.index_in(rows["row_id"], value_set=predictions["row_id"].combine_chunks())
    if index.null_count:
        raise EvaluationError(
            f"the {who} gave no prediction for {index.null_count} of {rows.num_rows} rows: leave out "
            "the rows it rejected for all models, so that all are judged on the same"
        )
    return {name: predictions[name].take(index) for name in predictions.column_names if name != "row_id"}


def _class_order(model: Model, classes: Sequence[str]) -> Ints:
    missing, unknown = sorted(set(classes) - set(model.classes)), sorted(set(model.classes) - set(classes))
    if missing or unknown:
        raise EvaluationError(
            f"{model.url} and the snapshot have different classes: only the snapshot has {listed(missing)}, only the "
            f"model has {listed(unknown)}; name them alike (snapshot.classes, or the model's id2label)"
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


def _reduction(panel: Panel, orders: Mapping[str, Ints], index: Ints, *, row_ids: pa.Array, columns: Columns) -> Reduce:
    ids = row_ids.take(pa.array(index))

    def reduce(arm: str, logits_BV: torch.Tensor, _: torch.Tensor | None) -> pa.Table:
        return columns(panel, arm, _ordered(logits_BV, orders[arm])).add_column(0, "row_id", ids)

    return reduce


def _run(panel: Panel, model: Model, encoded: Encoded, order_V: Ints) -> Run:
    return lambda index: _ordered(run_batch(model, panel.task, encoded, index), order_V)


def _ordered(logits_BV: torch.Tensor, order_V: Ints) -> torch.Tensor:
    """Return float32 ``[B, V]`` on the CPU, in the requested order of classes."""
    return logits_BV[:, torch.from_numpy(order_V).to(logits_BV.device)].float().cpu()
