"""Quality on corrupted inputs: every corruption of the task at every severity, the same damage for every model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.classification import Measure
from ray_distill.evaluation.measures.predictions import join_predictions
from ray_distill.fingerprint import fingerprint, fingerprint_bytes

if TYPE_CHECKING:
    from ray_distill.tasks.inputs.modality import Corruption

#: Corruption, then severity as text, then metric: the form of `ModelReport.robustness`.
Robustness = dict[str, dict[str, dict[str, Estimate]]]
#: (corrupted rows, one model's answers) -> what is measured.
Join = Callable[[pa.Table, pa.Table], pa.Table]


def corrupted_views(
    rows: pa.Table, corruptions: Mapping[str, "Corruption"], severities: Sequence[int], *, seed: int
) -> Iterator[tuple[str, int, pa.Table]]:
    """Yield (corruption, severity, corrupted rows): a function of rows, names and seed alone.

    Raises:
        EvaluationError: a corruption changed, dropped or reordered rows.
    """
    identity = fingerprint_bytes(b"".join(rows["row_id"].to_pylist()))
    for name in sorted(corruptions):
        for severity in severities:
            key = fingerprint({"rows": identity, "corruption": name, "severity": severity, "seed": seed})
            corrupted = corruptions[name](rows, severity, np.random.default_rng(int(key, 16)))
            if not corrupted["row_id"].equals(rows["row_id"]):
                raise EvaluationError(
                    f"the corruption {name} must keep rows and their order: {rows.num_rows} rows "
                    f"went in, {corrupted.num_rows} other ones came out"
                )
            yield name, severity, corrupted


def measure_robustness(
    rows: pa.Table,
    corruptions: Mapping[str, "Corruption"],
    severities: Sequence[int],
    *,
    predict: Callable[[pa.Table], Mapping[str, pa.Table]],
    measure: Measure,
    seed: int,
    bootstrap: int,
    bins: int,
    metrics: Sequence[str],
    join: Join = join_predictions,
) -> dict[str, Robustness]:
    """Accuracy and NLL (or other ``metrics``) of every model on every corrupted view of ``rows``, by arm.

    A view is made once for all models.

    Args:
        rows: snapshot rows: ``row_id``, the input, ``count``, ``label``.
        corruptions: by name.
        severities: 1 (mild) to 3 (strong).
        predict: rows -> by arm ``row_id``, ``logp``, for every row, or what ``join`` takes.
        measure: `Task.measure`.
        seed: of corruptions and resampling: equal seeds damage equal rows equally.
        bootstrap: resamples behind an interval.
        bins: passed on to ``measure``.
        metrics: those of ``measure`` that are kept.
        join: makes of a model's answers what ``measure`` reads.

    Raises:
        EvaluationError: a corruption or a model lost rows.
    """
    result: dict[str, Robustness] = {}
    for name, severity, corrupted in corrupted_views(rows, corruptions, severities, seed=seed):
        for arm, answers in predict(corrupted).items():
            measured = measure(join(corrupted, answers), seed=seed, bootstrap=bootstrap, bins=bins)
            by_severity = result.setdefault(arm, {}).setdefault(name, {})
            by_severity[str(severity)] = {metric: measured[metric] for metric in metrics if metric in measured}
    return result
