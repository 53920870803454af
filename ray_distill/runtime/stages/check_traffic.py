"""Check the teacher on a sample of newer traffic, before its labels are stored."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.drift import MIN_ROWS
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.teacher_trust import TeacherTrust, TrustSample, compare_trust, mean_estimate
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.models.io.load import load_model
from ray_distill.models.io.trained import load_trained
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric

#: Rows that the sample is chosen from, as a multiple of it: where two in a hundred have labels, those fill it.
CHOICE = 50
#: Splits of the reference that no teacher's head was fitted on.
_REFERENCE = ("calibration", "test")


def check_traffic(
    config: Campaign,
    *,
    reference: SnapshotRef,
    current: SnapshotRef,
    units: Sequence[WorkUnit],
    head_url: str | None,
    champion: StudentRef | None,
) -> TeacherTrust | None:
    """Compare the teacher's answers to held-out rows of the reference and to new rows.

    Args:
        config: the campaign; ``drift.teacher_rows`` bounds both samples.
        reference: snapshot of the labels in use.
        current: snapshot of newer traffic.
        units: the rows of ``current`` that have no labels yet.
        head_url: the teacher's fitted head, if it has one.
        champion: the model in production, if there is one.

    Returns:
        None where no new row can be answered: all of them go to quarantine.

    Raises:
        EvaluationError: no row of the reference can be answered.
    """
    opened, most = open_snapshot(reference), config.drift.teacher_rows
    panel = _panel(config, opened, head_url, champion)
    known = pa.concat_tables([opened.read(split, columns=panel.columns) for split in _REFERENCE])
    before = _measure(config, panel, _labelled_first(known, most))
    rows = new_rows(open_snapshot(current), units, panel.columns, most=most)
    try:
        now = _measure(config, panel, rows)
    except EvaluationError:
        return None
    return compare_trust(before, now, config.drift, decisive=panel.task.answers.reads_labels())


def first_units(units: Sequence[WorkUnit], rows: int) -> Sequence[WorkUnit]:
    """Return the first units that have so many rows together, or all."""
    before = np.cumsum([0, *(len(unit.rows) for unit in units)])
    return units[: int(np.searchsorted(before[:-1], rows))]


def new_rows(opened: Snapshot, units: Sequence[WorkUnit], columns: Sequence[str], *, most: int) -> pa.Table:
    """Return up to ``most`` rows of the units.

    They are rows with labels, if these suffice to judge by, else the first rows.
    Ids are hashes of inputs, so the first rows are a random sample.
    """
    shards = {shard.name: shard for shard in opened.shards}
    labelled, first = list[tuple[str, int]](), list[tuple[str, int]]()
    for name in dict.fromkeys(unit.shard for unit in units):
        places = np.array([row for unit in units if unit.shard == name for row in unit.rows], np.int64)
        known_N = opened.read_shard(shards[name], ["label"])["label"].is_valid().to_numpy()
        labelled += [(name, int(row)) for row in places[known_N[places]][: most - len(labelled)]]
        first += [(name, int(row)) for row in places[: most - len(first)]]
        if len(labelled) == most:
            break
    chosen = labelled if len(labelled) >= MIN_ROWS else first
    tables = [
        opened.read_shard(shards[name], columns).take([row for shard, row in chosen if shard == name])
        for name in dict.fromkeys(shard for shard, _ in chosen)
    ]
    return pa.concat_tables(tables)


def _labelled_first(rows: pa.Table, most: int) -> pa.Table:
    """Return up to ``most`` rows, those with labels first."""
    if "label" not in rows.column_names:
        return rows.slice(0, most)
    return rows.take(np.argsort(~rows["label"].is_valid().to_numpy(), kind="stable")[:most])


def _panel(config: Campaign, opened: Snapshot, head_url: str | None, champion: StudentRef | None) -> Panel:
    """Return the teacher and, where there is one, the champion."""
    teacher = config.labels.teacher
    models = {"teacher": load_model(teacher, task=config.task, head_url=head_url)}
    if champion is not None:
        models["champion"] = load_trained(champion, teacher, task=config.task)
    return Panel(
        task=get_task(config.task),
        models=models,
        classes=opened.classes,
        batch=config.labels.resources.batch,
        bins=config.evaluation.bins,
        reference=None if champion is None else "teacher",
    )


def _measure(config: Campaign, panel: Panel, rows: pa.Table) -> TrustSample:
    """Measure the answers to the rows that every model can answer.

    Raises:
        EvaluationError: there are none.
    """
    answers, how = _answer(panel, rows), Resampling.of(config)
    family = panel.task.answers
    found = family.judge.measure(answers["teacher"], how)
    order = (family.headline, *family.metrics.names)
    quality = {name: found[name] for name in order if name in found and _is_share(family.metrics[name])}
    weight_N = np.asarray(answers["teacher"]["count"], np.float64)
    agreement = None
    if "champion" in answers:
        agreement = family.judge.measure(answers["champion"], how)["agreement"]
    return TrustSample(
        rows=len(weight_N),
        quality=quality,
        confidence=mean_estimate(family.judge.confidence(answers["teacher"]), weight_N),
        disagreement=None if agreement is None else _complement(agreement),
    )


def _answer(panel: Panel, rows: pa.Table) -> Mapping[str, pa.Table]:
    """Return answers by arm; rows without a finite answer are left out, found by halving.

    Labelling puts such rows into quarantine.
    """
    try:
        answers = panel.task.answers.judge.answer(panel, rows)
        for table in answers.values():
            panel.task.answers.judge.confidence(table)
        return answers
    except EvaluationError as error:
        if rows.num_rows <= 1:
            raise
        cause = error
    half, parts = rows.num_rows // 2, list[Mapping[str, pa.Table]]()
    for part in (rows.slice(0, half), rows.slice(half)):
        with contextlib.suppress(EvaluationError):
            parts.append(_answer(panel, part))
    if not parts:
        raise cause
    return {arm: pa.concat_tables([part[arm] for part in parts]) for arm in panel.models}


def _is_share(metric: Metric) -> bool:
    """Return whether a metric of quality lies between 0 and 1, and more is better."""
    return metric.better == "more" and metric.high == 1 and not metric.of_teacher


def _complement(share: Estimate) -> Estimate:
    return Estimate(value=1 - share.value, low=1 - share.high, high=1 - share.low, n=share.n)
