"""State what is measured on a snapshot before a student is made of its teacher."""

from dataclasses import dataclass

from ray_distill.config import StudentModel
from ray_distill.models.students.importance import LayerChoice
from ray_distill.models.students.vocabulary import Counts
from ray_distill.models.students.width import WidthScores


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements by which a student keeps parts of its teacher; None: not measured."""

    counts: Counts | None = None
    """How often each token of the teacher comes in the train texts, ``[V]``."""
    layers: LayerChoice | None = None
    """The layers that are kept by their importance."""
    width: WidthScores | None = None
    """Sizes of the teacher's activations."""


#: For checks and forecasts that precede the measurements: a student is then built with stand-ins of the same kind.
NOTHING_MEASURED = Measured()


def needs_measuring(config: StudentModel) -> bool:
    """Return whether measurements decide how the student is built."""
    return config.kept_tokens is not None or config.layers == "importance" or config.source == "teacher_width"
