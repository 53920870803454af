"""A driver for `tests.labs.training_kills`: trains pickled jobs on a cluster, one after the other.

Each line of stdin is JSON: ``job`` (a pickled TrainingJob), ``curve`` (where its metrics go, a line a step). Each is
answered by a line of stdout: ``done`` and the students' references, or ``failed`` and the error.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

from ray_distill.errors import DistillError
from ray_distill.runtime.core import connection
from ray_distill.runtime.training.launch import train_ranks
from ray_distill.students.telemetry.curves import CurveReader


def train(order: dict[str, Any]) -> str:
    """Carry out one order; the answer."""
    job = pickle.loads(Path(order["job"]).read_bytes())
    curve = Path(order["curve"])

    reader = CurveReader(job.output)

    def keep() -> None:
        with curve.open("a", encoding="utf-8") as file:
            for metrics in reader.new():
                file.write(json.dumps({"step": metrics.step, **metrics.values}) + "\n")

    try:
        refs = train_ranks(job, job.config.student.training, on_poll=keep)
        keep()
    except DistillError as error:
        return "failed " + json.dumps(str(error))
    return "done " + json.dumps([ref.to_dict() for ref in refs])


if __name__ == "__main__":
    with connection.connected(sys.argv[1]):
        for line in sys.stdin:
            sys.stdout.write(f"\n{train(json.loads(line))}\n")
            sys.stdout.flush()
