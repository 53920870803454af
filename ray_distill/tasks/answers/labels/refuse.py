"""Settings that multi-label models cannot serve."""

from ray_distill.config import Campaign
from ray_distill.labels.format.codecs import encodings


def refuse(config: Campaign) -> list[str]:
    """List the settings of language models, and those of one distribution over all classes."""
    given = {"student.training.packed": config.student.training.packed, "student.model.lora": config.student.model.lora}
    wrong = [
        f"{name}: only language models have it, and {config.task} is none; leave it out"
        for name, value in given.items()
        if value
    ]
    if config.sequences is not None:
        wrong.append(f"sequences: a teacher of {config.task} writes no texts; leave the section out")
    signal, mixture = config.labels.signal, config.student.mixture
    if signal.estimator != "dense":
        wrong.append(
            f"labels.signal.estimator is {signal.estimator}: each label has a probability of its own, so none can be "
            "left to the rest; set it to dense"
        )
    if signal.encoding not in encodings("bernoulli"):
        wrong.append(
            f"labels.signal.encoding is {signal.encoding}, which stores one distribution over all classes; "
            f"set it to {' or '.join(encodings('bernoulli'))}"
        )
    if mixture is not None and mixture.how == "average":
        wrong.append(
            "student.mixture.how is average, which is a mean of distributions over all classes; set it to source"
        )
    return wrong
