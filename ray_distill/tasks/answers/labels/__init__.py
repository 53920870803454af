"""Any number of named labels for each row: one sigmoid a label.

Means over labels give every label the same weight; Micro-F1 gives it to every decision. A model decides on a set of
labels with its thresholds: a label applies where its probability is at least the threshold.
"""

from ray_distill.config.judge import Limit
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.metrics import Metric, MetricTable

LABELS = Answers(
    name="labels",
    package=__name__,
    truth="classes",
    rows="labelled rows",
    metrics=MetricTable(
        metrics=(
            Metric(name="map", heading="mAP", better="more", high=1.0),
            Metric(name="micro_f1", heading="Micro-F1", better="more", high=1.0),
            Metric(name="macro_f1", heading="Macro-F1", better="more", high=1.0),
            Metric(
                name="subset_accuracy", heading="Exact sets", short="Exact", better="more", high=1.0, proportion=True
            ),
            Metric(
                name="nll",
                heading="NLL, nats a label",
                short="NLL, nats",
                better="less",
                infinite="was certain of a wrong answer on some label",
            ),
            Metric(
                name="ece", heading="ECE, mean over labels", short="ECE", better="less", high=1.0, raised_by_noise=True
            ),
            Metric(
                name="agreement",
                heading="Same set as teacher",
                short="Agreement",
                better="more",
                high=1.0,
                proportion=True,
                of_teacher=True,
            ),
            Metric(
                name="kl_from_teacher",
                heading="KL from teacher, nats a label",
                short="KL, nats",
                better="less",
                of_teacher=True,
            ),
        )
    ),
    headline="map",
    spread=0.3,
    beside=("micro_f1", "ece", "agreement"),
    calibration="ece",
    limits={"map": Limit(relative=0.97, margin=0.01), "ece": Limit(teacher_margin=0.03)},
    robust=("map", "nll"),
)
