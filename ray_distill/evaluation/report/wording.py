"""What the review page shows of classifiers and of language models, and how it says it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_distill.artifacts import EvalReport
from ray_distill.tasks.answers.classes import CLASSES as CLASS_ANSWERS
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words of a page about models of one kind."""

    compared: tuple[str, ...]
    """The metrics of the table of differences."""
    headline: str
    """The metric that decides: of the first figure, of robustness and of slices."""
    axis: str
    """What the headline is called on an axis."""
    explained: str = ""
    """What a reader must know of the quality table."""
    pair: tuple[str, str]
    """The figures of the section on mistakes."""
    mistakes: str
    """Its heading."""
    top: str
    """What a confidence is of."""
    rate: str
    """The heading of examples a second."""
    speed: str
    """How latency and throughput were measured."""
    rows: str
    slices: str
    captions: Mapping[str, str]
    """By figure."""
    tiles: tuple[Mapping[str, str], ...]
    """The first tiles: of each the name by metric, of which the first that was measured is shown."""


_CALIBRATED = (
    "{} against confidence; on the dashed line a model is calibrated. Below: how often the student is how confident."
)
_LOSS = "Training loss by step. Arms minimise different losses: compare shapes, not heights."

CLASSES = Wording(
    compared=("accuracy", "macro_f1", "nll", "ece", "agreement", "kl_from_teacher"),
    headline="accuracy",
    axis="accuracy",
    pair=("confusion", "reliability"),
    mistakes="Where it errs, and whether it knows",
    top="class",
    rate="Throughput, examples/s",
    speed="latency of single requests, throughput of batches.",
    rows="Rows",
    slices="Accuracy, slices of at least 30 rows.",
    captions={
        "accuracy": "Accuracy of every model on the same rows.",
        "confusion": "The student's predictions, per cent of each true class.",
        "reliability": _CALIBRATED.format("Accuracy"),
        "robustness": "Accuracy on corrupted inputs, the same damage for every model; severity 0 is the clean test "
        "split.",
        "loss": _LOSS,
    },
    tiles=({"accuracy": "accuracy", "agreement": "agreement"},),
)

LANGUAGE = Wording(
    # Without perplexity, which says what NLL says, and accuracy, which says what agreement does: more do not fit.
    compared=("nll", "ece", "agreement", "kl_from_teacher", "entropy_gap", "tail_mass_gap"),
    headline="nll",
    axis="NLL, nats a token",
    explained="Means are over tokens, intervals over documents. A gap is what a model has more than the teacher, of "
    "entropy or of probability outside the teacher's 64 likeliest tokens: 0 is best.",
    pair=("positions", "reliability"),
    mistakes="How far it is from its teacher, and whether it knows",
    top="token",
    rate="Throughput, documents/s",
    speed="latency of reading a single document, throughput of batches; padding is no token. Nothing is written.",
    rows="Documents",
    slices="NLL in nats a token, slices of at least 30 documents.",
    captions={
        "nll": "NLL of every model on the same tokens: lower is better.",
        "positions": "Distance from the teacher by position in the document: KL, entropy gap, tail-mass gap.",
        "reliability": _CALIBRATED.format("Next-token accuracy"),
        "robustness": "NLL on corrupted texts, the same damage for every model. Damaged text has other tokens than the "
        "clean one at severity 0: compare models, not severities.",
        "loss": _LOSS,
    },
    tiles=({"nll": "NLL, nats a token"}, {"kl_from_teacher": "KL from teacher, nats"}),
)


def wording(report: EvalReport) -> Wording:
    """The words for the models of this report."""
    return CLASSES if get_task(report.task).answers is CLASS_ANSWERS else LANGUAGE
