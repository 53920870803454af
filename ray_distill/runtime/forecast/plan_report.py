"""Define the forecast of a campaign as an artifact."""

from ray_distill.artifacts import Artifact, Number, SnapshotRef
from ray_distill.labels.sizing.forecast import Breakeven
from ray_distill.labels.sizing.options import Kept, Option
from ray_distill.runtime.forecast.stage_forecasts import StageForecast

#: Way out where the kept forecast is damaged.
FORECAST_LOST = "delete it, and the forecast is not compared with what followed; `ray-distill plan` makes a new one"


class PlanReport(Artifact):
    """The forecast of a campaign: labelling in detail, and every stage.

    Bytes are exact to a few percent; time, hours and money of labelling to ± ``time_error``, those of other stages to
    the range of the timed steps.
    """

    campaign: str
    snapshot: SnapshotRef
    store: str
    splits: dict[str, int]
    """Rows of the snapshot by split."""
    labelled: dict[str, int] = {}
    """Rows with a truth by split."""
    rows_total: int
    rows_reused: int
    """Rows labelled already, or in quarantine."""
    rows: int
    """Rows still to label."""
    units: int
    positions: int
    probed_rows: int
    probed_rejected: int
    bytes_labels: int
    bytes_hidden: dict[str, int]
    """Bytes of hidden states by layer."""
    bytes_a_position: Number
    """Bytes of labels per position."""
    seconds: Number
    """Seconds of the whole `label` stage."""
    seconds_once: Number
    """Part of ``seconds`` before the first unit and after the last one, independent of the number of units."""
    time_error: Number
    """Relative error that ``seconds``, the hours and ``money`` may have."""
    core_hours: Number
    accelerator_hours: Number
    money: Number
    currency: str
    rows_per_second: Number
    """Throughput of the rehearsed pipeline with the least number of actors."""
    target_nats: Number
    curve: tuple[Kept, ...] = ()
    smallest_k: int | None = None
    options: tuple[Option, ...] = ()
    """Ways to store a position, the configured one first."""
    recommended: Option | None = None
    ranks: dict[str, dict[str, int]] = {}
    """Principal components that keep a share of a layer's variance, by layer and share; also ``width``."""
    break_even: Breakeven | None = None
    student_parameters: int = 0
    """Parameters of the student; 0 where it was not made."""
    student: str = ""
    """Source of its weights; what chose its shape, and what was reached."""
    sweep: str = ""
    """Trials of the campaign's sweep and their cost; empty without one."""
    stages: tuple[StageForecast, ...] = ()
    """Forecasts of the stages, each beside what followed."""
    notes: tuple[str, ...] = ()

    @property
    def bytes_total(self) -> int:
        """Return the bytes of labels and hidden states."""
        return self.bytes_labels + sum(self.bytes_hidden.values())
