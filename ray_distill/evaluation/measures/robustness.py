"""Measure quality on corrupted inputs: every corruption of the task at every severity.

Every model reads the same damaged inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Measure, Resampling
from ray_distill.fingerprint import fingerprint, fingerprint_bytes

if TYPE_CHECKING:
    from ray_distill.tasks.inputs.modality import Corruption

#: Corruption, then severity as text, then metric: the form of `ModelReport.robustness`.
Robustness = dict[str, dict[str, dict[str, Estimate]]]


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
    answer: Callable[[pa.Table], Mapping[str, pa.Table]],
    measure: Measure,
    how: Resampling,
    metrics: Sequence[str],
) -> dict[str, Robustness]:
    """Measure every model on every corrupted view of ``rows``, by arm.

    A view is made once for all models.

    Args:
        rows: snapshot rows: ``row_id``, the input, ``count`` and the truth.
        corruptions: by name.
        severities: 1 (mild) to 3 (strong).
        answer: rows -> by arm what ``measure`` reads.
        measure: the family's measures.
        how: seed of corruptions and resampling, number of resamples: equal seeds damage equal rows equally.
        metrics: those of ``measure`` that are kept.

    Raises:
        EvaluationError: a corruption or a model lost rows.
    """
    result: dict[str, Robustness] = {}
    for name, severity, corrupted in corrupted_views(rows, corruptions, severities, seed=how.seed):
        for arm, answers in answer(corrupted).items():
            measured = measure(answers, how)
            by_severity = result.setdefault(arm, {}).setdefault(name, {})
            by_severity[str(severity)] = {metric: measured[metric] for metric in metrics if metric in measured}
    return result
