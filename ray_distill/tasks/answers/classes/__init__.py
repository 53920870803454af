"""One of several named classes for each row: a softmax over all of them."""

from ray_distill.config.judge import Limit
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.metrics import Metric, MetricTable

CLASSES = Answers(
    name="classes",
    package=__name__,
    rows="labelled rows",
    metrics=MetricTable(
        metrics=(
            Metric(name="accuracy", heading="Accuracy", better="more", high=1.0, proportion=True),
            Metric(name="macro_f1", heading="Macro-F1", better="more", high=1.0),
            Metric(name="nll", heading="NLL, nats", better="less", infinite="gave probability 0 to a true class"),
            Metric(name="ece", heading="ECE", better="less", high=1.0, raised_by_noise=True),
            Metric(
                name="agreement",
                heading="Agreement with teacher",
                short="Agreement",
                better="more",
                high=1.0,
                proportion=True,
                of_teacher=True,
            ),
            Metric(
                name="kl_from_teacher",
                heading="KL from teacher, nats",
                short="KL, nats",
                better="less",
                of_teacher=True,
            ),
        )
    ),
    headline="accuracy",
    spread=0.3,
    beside=("macro_f1", "ece", "agreement"),
    calibration="ece",
    limits={"accuracy": Limit(relative=0.97, margin=0.01), "ece": Limit(teacher_margin=0.05)},
    robust=("accuracy", "nll"),
)
