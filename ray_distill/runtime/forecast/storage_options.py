"""Compare the forms in which a teacher's answer can be stored, on the same few rows.

A form is measured by its bytes and by the information that it loses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan

import numpy as np

from ray_distill.config import Campaign, SignalConfig
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import signal_of
from ray_distill.labels.sizing import options as choose
from ray_distill.labels.sizing.forecast import forecast_bytes, measure_sizes
from ray_distill.labels.sizing.options import Kept, Option
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.calibrate_store import fit_store
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest, Teacher
from ray_distill.teachers.engines import engine_of

#: Maximum positions, and minimum rows, on which the forms are compared.
COMPARED, COMPARED_ROWS = 2048, 4
#: Minimum number of classes for forms that draw: with fewer classes, storing all of them takes fewer bytes.
DRAWS_FROM = 64


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Result of the comparison."""

    curve: tuple[Kept, ...]
    smallest_k: int | None
    """The fewest classes within the target; None where the likeliest `choose.WIDE` are too few."""
    options: tuple[Option, ...]
    """The measured forms, the configured one first."""
    full: bool
    """Whether the comparison read every class."""
    mass: Mapping[str, float] = field(default_factory=dict)
    """Share of the teacher's mass that the configured classes have, by temperature; empty where classes are drawn."""


@dataclass(frozen=True, kw_only=True)
class _Some:
    """The rows on which forms are compared."""

    encoded: Encoded
    ids: RowIds
    """Ids of the rows with a usable answer, in the order of `wide`."""
    wide: Distributions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Inputs that the measurements of all forms share."""

    config: Campaign
    facts: TeacherFacts
    teacher: Teacher
    """Answers once for all forms, and once more for each form that draws."""
    units: Sequence[int]
    """Rows of each unit to label."""
    kept: float
    """Share of the rows that can be labelled."""
    positions: float
    """Mean positions per row."""


def compare(comparison: Comparison, encoded: Encoded) -> Forms:
    """Compare the configured form with other possible forms, on usable rows.

    There are none where the engine can give the teacher's distributions dense alone.
    """
    config = comparison.config
    classes, configured = make_manifest(config, comparison.facts).space.size, config.labels.signal
    given = engine_of(config.labels.teacher).estimators.get(get_task(config.task).answers.model.FAMILY, ())
    some = _some(comparison, encoded, classes, "topk" if "topk" in given else configured.estimator)
    if "topk" not in given:
        return Forms(curve=(), smallest_k=None, options=(_option(comparison, some, configured),), full=True)
    smallest = choose.smallest_k(some.wide, config.plan.target_nats)
    candidates = [
        configured,
        *(form for form in _forms(configured, classes, smallest) if form != configured and form.estimator in given),
    ]
    options = tuple(_option(comparison, some, form) for form in candidates)
    return Forms(
        curve=choose.curve(some.wide),
        smallest_k=smallest,
        options=options,
        full=choose.is_full(some.wide),
        mass={} if configured.drawn else choose.kept(some.wide, options[0].k or classes).mass,
    )


def _some(comparison: Comparison, encoded: Encoded, classes: int, estimator: str) -> _Some:
    """Return a random sample of the rows and their wide answer."""
    config = comparison.config
    rows = max(COMPARED_ROWS, int(COMPARED / max(comparison.positions, 1)))
    order = np.random.default_rng(config.seed).permutation(encoded.rows)[:rows].astype(np.int64)
    request = LabelRequest(
        estimator=estimator,
        temperatures=config.labels.signal.temperatures,
        k=classes if classes <= choose.DENSE_UP_TO else max(choose.WIDE, min(config.labels.signal.k, classes)),
    )
    row_ids, signal, _ = answer_all(comparison.teacher, encoded.take(order), request, config.labels.resources.batch)
    return _Some(encoded=encoded.take(order), ids=rowids.to_numpy(row_ids), wide=signal.distributions)


def _forms(configured: SignalConfig, classes: int, smallest: int | None) -> list[SignalConfig]:
    """Return the other forms to compare, all in the compact encoding."""
    changes: list[dict[str, object]] = []
    if classes <= choose.DENSE_UP_TO:
        changes.append({"estimator": "dense"})
    if smallest is not None and smallest < classes:
        changes.append({"estimator": "topk", "k": smallest})
    if configured.estimator == "topk" and configured.k < classes:
        changes.append({"estimator": "topk", "k": configured.k})
    if classes > DRAWS_FROM:
        changes += [{"estimator": "sampled"}, {"estimator": "hybrid", "k": min(configured.k, 16)}]
    return [configured.model_copy(update={"encoding": "compact", **change}) for change in changes]


def _option(comparison: Comparison, some: _Some, form: SignalConfig) -> Option:
    """Measure one form by encoding its shards."""
    config, units, kept = comparison.config, comparison.units, comparison.kept
    labels = config.labels.model_copy(update={"signal": form})
    manifest = make_manifest(config.model_copy(update={"labels": labels}), replace(comparison.facts, layers=()))
    spec = manifest.distributions
    drawn, width = spec.draws > 0, spec.k or spec.space.size
    if drawn or width > len(some.wide.ids) // len(some.wide.position):
        row_ids, signal, _ = answer_all(comparison.teacher, some.encoded, request_of(manifest), manifest.batch)
        ids = rowids.to_numpy(row_ids)
        exact = signal.distributions
    else:
        ids, exact = some.ids, choose.truncate(some.wide, width)
    found = fit_store(manifest, rowids.to_arrow(ids), signal_of(distributions=exact))
    sizes = measure_sizes(ids, signal_of(distributions=exact), manifest=manifest, fits=found.fits, units=units)
    labels_bytes, rows = forecast_bytes(sizes, units, kept).labels, max(sum(units) * kept, 1)
    added = float(found.measured["labels"]["nats"]["1"])
    return Option(
        estimator=form.estimator,
        encoding=form.encoding,
        k=spec.k,
        draws=spec.draws,
        bytes_a_position=labels_bytes / (rows * len(exact.position) / exact.rows),
        total_bytes=labels_bytes,
        nats=added + (0.0 if drawn or not spec.k else choose.kept(some.wide, spec.k).nats),
        noise=_noise(some.wide, form, spec.k, spec.draws),
    )


def _noise(wide: Distributions, form: SignalConfig, k: int, draws: int) -> float:
    """Return the noise of draws from the teacher's own distribution; NaN for other draws."""
    if not draws:
        return 0.0
    return choose.noise_of_draws(wide, k, draws) if form.exponent == 1 else nan
