"""The conformance suite of tasks: tests that every task in the catalogue passes.

Users run it on tasks of their own.

`ray_distill/README.md` shows how.

May import everything except the runtime's use of Ray, and tracking.
"""

from collections.abc import Callable, Mapping

from ray_distill.testing.tasks import inputs, judge, learn, page, serve, settings, store
from ray_distill.testing.tasks.answered import class_answers, continuations
from ray_distill.testing.tasks.case import TaskCase

#: Checks by name; each raises AssertionError where the task does not conform.
CHECKS: Mapping[str, Callable[[TaskCase], None]] = {
    "encoding": inputs.check_encoding,
    "rejection": inputs.check_rejection,
    "collation": inputs.check_collation,
    "example": inputs.check_example,
    "views": inputs.check_views,
    "corruptions": inputs.check_corruptions,
    "positions": store.check_positions,
    "reduction": store.check_reduction,
    "storing": store.check_storing,
    "step": learn.check_step,
    "weights": learn.check_weights,
    "temperature": learn.check_confidence,
    "answers": judge.check_answers,
    "measures": judge.check_measures,
    "parts": judge.check_parts,
    "comparison": judge.check_comparison,
    "reference": judge.check_reference,
    "confidence": judge.check_confidence,
    "trivial": judge.check_trivial,
    "wording": page.check_wording,
    "page": page.check_page,
    "served": serve.check_served,
    "serving_example": serve.check_serving_example,
    "metrics": settings.check_metrics,
    "refusal": settings.check_refusal,
}

__all__ = ["CHECKS", "TaskCase", "class_answers", "continuations"]
