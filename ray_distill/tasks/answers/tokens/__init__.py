"""The next token at each answered position: a softmax over a vocabulary."""

from math import inf

from ray_distill.config.judge import Limit
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.metrics import Metric, MetricTable, efficiency

#: Positions (tokens from the document's first, 0) by which some metrics are reported too.
POSITION_BUCKETS = ("0_15", "16_63", "64_255", "256_1023", "1024_up")

_QUALITY = (
    Metric(name="nll", heading="NLL, nats", better="less", infinite="gave probability 0 to a true token"),
    Metric(name="perplexity", heading="Perplexity", decimals=1, better="less", low=1.0),
    Metric(name="accuracy", heading="Next-token accuracy", short="Accuracy", better="more", high=1.0),
    Metric(name="ece", heading="ECE", better="less", high=1.0, raised_by_noise=True),
    Metric(
        name="agreement", heading="Agreement with teacher", short="Agreement", better="more", high=1.0, of_teacher=True
    ),
    Metric(
        name="kl_from_teacher",
        heading="KL from teacher, nats",
        short="KL, nats",
        better="less",
        of_teacher=True,
        buckets=POSITION_BUCKETS,
    ),
    Metric(
        name="entropy_gap",
        heading="Entropy gap, nats",
        better="zero",
        low=-inf,
        of_teacher=True,
        buckets=POSITION_BUCKETS,
    ),
    Metric(
        name="tail_mass_gap",
        heading="Tail-mass gap",
        better="zero",
        low=-1.0,
        high=1.0,
        of_teacher=True,
        buckets=POSITION_BUCKETS,
    ),
)

#: Metrics of the texts that models write, where there is a reference.
WRITTEN = MetricTable(
    metrics=(
        Metric(name="exact_match", heading="Exact match", better="more", high=1.0),
        Metric(name="word_error_rate", heading="Word error rate", better="less"),
        Metric(name="rouge1", heading="ROUGE-1", better="more", high=1.0),
        Metric(name="rouge2", heading="ROUGE-2", better="more", high=1.0),
        Metric(name="rouge_l", heading="ROUGE-L", better="more", high=1.0),
        Metric(name="chrf", heading="chrF", decimals=1, better="more", high=100.0),
    )
)

#: Metrics of lm-evaluation-harness, ``lm_eval_<task>_<metric>``: more is better, except of perplexities and bits.
BENCHMARK_PREFIX = "lm_eval_"
_HARNESS = (
    Metric(name=f"{BENCHMARK_PREFIX}*perplexity", heading="Perplexity", better="less"),
    Metric(name=f"{BENCHMARK_PREFIX}*bits_per_byte", heading="Bits a byte", better="less"),
    Metric(name=f"{BENCHMARK_PREFIX}*", heading="Benchmark", better="more", low=-inf),
)

TOKENS = Answers(
    name="tokens",
    package=__name__,
    truth="none",
    rows="documents",
    metrics=MetricTable(metrics=(*_QUALITY, *WRITTEN.metrics)),
    efficiency=efficiency("documents", Metric(name="tokens_per_second", heading="Tokens/s", decimals=0, better="more")),
    benchmarks=MetricTable(metrics=_HARNESS),
    headline="nll",
    spread=0.4,
    beside=("kl_from_teacher", "ece", "agreement"),
    calibration="ece",
    # 0.9 of the teacher's NLL is a ninth more of it: DistilGPT2's own loss of likelihood against GPT-2, roughly.
    limits={
        "nll": Limit(relative=0.9, margin=0.01),
        "kl_from_teacher": Limit(margin=0.01),
        "ece": Limit(teacher_margin=0.02),
    },
    robust=("nll", "kl_from_teacher"),
)
