"""Read and validate the further label sets of a student's mixture."""

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, DistillError, StorageError
from ray_distill.labels.store.label_store import open_store
from ray_distill.storage import files


def mixed_labels(config: Campaign) -> tuple[LabelSetRef, ...]:
    """Return the label sets that ``student.mixture`` names, in its order.

    Raises:
        ConfigError: a file is missing or is not a reference of labels; the message names every such file.
    """
    found, wrong = list[LabelSetRef](), list[str]()
    for number, other in enumerate(config.student.mixture.others if config.student.mixture else ()):
        try:
            text = files.read_bytes(other.labels).decode(errors="replace")
            found.append(LabelSetRef.from_json(text))
        except StorageError as error:
            wrong.append(f"student.mixture.others.{number}.labels: {error}")
        except ConfigError as error:
            wrong.append(f"student.mixture.others.{number}.labels: {other.labels}: {error}")
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return tuple(found)


def check_mixture(config: Campaign) -> list[str]:
    """Return the errors of the mixture that can be found before labelling."""
    mixture, signal = config.student.mixture, config.labels.signal
    if mixture is None:
        return []
    try:
        manifests = [open_store(ref.store).manifest for ref in mixed_labels(config)]
    except DistillError as error:
        return [str(error)]
    wrong = []
    for number, manifest in enumerate(manifests):
        if manifest.task != config.task:
            wrong.append(
                f"student.mixture.others.{number}: labels of {manifest.task}, and the campaign is of {config.task}"
            )
    for name, estimator in (
        ("labels.signal.estimator", signal.estimator),
        *(
            (f"student.mixture.others.{number}", manifest.distributions.estimator)
            for number, manifest in enumerate(manifests)
        ),
    ):
        if mixture.how == "average" and estimator in ("sampled", "hybrid"):
            wrong.append(
                f"student.mixture.how: average, but {name} is {estimator}, and the mean of draws is not a "
                "distribution: use topk or dense, or mix by source"
            )
    return wrong


def temperatures_of(config: Campaign) -> tuple[float, ...]:
    """Return the temperatures that training may use.

    These are the stored temperatures; for a mean of truncated labels, only T = 1.
    """
    mixture, signal = config.student.mixture, config.labels.signal
    if mixture is None or mixture.how == "source":
        return signal.temperatures
    manifests = [open_store(ref.store).manifest for ref in mixed_labels(config)]
    if signal.estimator != "dense" or any(manifest.distributions.estimator != "dense" for manifest in manifests):
        return (1.0,)
    return tuple(
        t for t in signal.temperatures if all(t in manifest.distributions.temperatures for manifest in manifests)
    )
