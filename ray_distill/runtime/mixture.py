"""The label sets that a student learns from beside its campaign's own."""

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, StorageError
from ray_distill.storage import files


def mixed_labels(config: Campaign) -> tuple[LabelSetRef, ...]:
    """The label sets that ``student.mixture`` names, in its order.

    Raises:
        ConfigError: a file is missing, or holds no reference of labels; every one that is wrong is named.
    """
    found, wrong = list[LabelSetRef](), list[str]()
    for number, other in enumerate(config.student.mixture.others if config.student.mixture else ()):
        try:
            text = files.read_bytes(other.labels).decode(errors="replace")
            found.append(LabelSetRef.from_json(text))
        except (ConfigError, StorageError) as error:
            wrong.append(f"student.mixture.others.{number}.labels: {other.labels}: {error}")
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return tuple(found)


def check_mixture(config: Campaign) -> list[str]:
    """What is wrong with the mixture, as far as it is known before anything is labelled."""
    mixture, signal = config.student.mixture, config.labels.signal
    if mixture is None:
        return []
    wrong = []
    try:
        mixed_labels(config)
    except ConfigError as error:
        wrong.append(str(error))
    if mixture.how == "average" and signal.estimator in ("sampled", "hybrid"):
        wrong.append(f"student.mixture.how: average, but labels.signal.estimator is {signal.estimator}, and the mean "
                     "of draws is no distribution: take topk or dense, or mix by source")
    return wrong


def temperatures_of(config: Campaign) -> tuple[float, ...]:
    """Temperatures that training may use: those that are stored, but T = 1 alone of a mean of truncated labels."""
    mixture, signal = config.student.mixture, config.labels.signal
    averaged = mixture is not None and mixture.how == "average"
    return (1.0,) if averaged and signal.estimator != "dense" else signal.temperatures
