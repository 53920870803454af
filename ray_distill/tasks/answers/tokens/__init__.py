"""The next token at each answered position: a softmax over a vocabulary."""

from math import inf

from ray_distill.config.judge import Limit
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.metrics import Metric, MetricTable

TOKENS = Answers(
    name="tokens",
    package=__name__,
    metrics=MetricTable(
        metrics=(
            Metric(name="nll", heading="NLL, nats", better="less"),
            Metric(name="perplexity", heading="Perplexity", decimals=1, better="less", low=1.0),
            Metric(name="accuracy", heading="Next-token accuracy", better="more", high=1.0),
            Metric(name="ece", heading="ECE", better="less", high=1.0),
            Metric(name="agreement", heading="Agreement with teacher", better="more", high=1.0),
            Metric(name="kl_from_teacher", heading="KL from teacher, nats", better="less"),
            Metric(name="entropy_gap", heading="Entropy gap, nats", better="zero", low=-inf),
            Metric(name="tail_mass_gap", heading="Tail-mass gap", better="zero", low=-1.0, high=1.0),
        )
    ),
    headline="nll",
    # 0.9 of the teacher's NLL is a ninth more of it: DistilGPT2's own loss of likelihood against GPT-2, roughly.
    limits={"nll": Limit(relative=0.9, margin=0.01), "kl_from_teacher": Limit(margin=0.01), "ece": Limit(max=0.1)},
    robust=("nll", "kl_from_teacher"),
)
