"""Make the registry follow the decision chain: the alias names the champion."""

from ray_distill.artifacts import Artifact, StudentRef
from ray_distill.errors import ChangedModel, ConfigError, PromotionError
from ray_distill.models.io.trained import open_trained
from ray_distill.promotion.chain import champion, lost_champion, read_chain
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages.evaluate import example_of

#: Tag of a version with the fingerprint of its student, by which the chain's champion is found.
FINGERPRINT = "student_fingerprint"


class AliasReport(Artifact):
    """A comparison of the alias with the chain, after any repair."""

    model: str
    alias: str
    champion: StudentRef | None
    """The student of the last PROMOTE."""
    version: str | None
    """The version that the alias names now."""
    repaired: str = ""
    """What was found and done; empty where nothing was."""
    wrong: str = ""
    """What was found and left as it is; empty where the alias agrees."""


def model_name(session: Session) -> str:
    """Return the name under which the registry has the campaign's students."""
    return session.config.gate.model_name or session.config.campaign


def tags_of(student: StudentRef, **more: str) -> dict[str, str]:
    """Return the tags of a student's version."""
    return {"student": student.to_json(), FINGERPRINT: student.fingerprint, **more}


def follow_chain(session: Session, *, move: bool) -> AliasReport:
    """Compare the alias with the chain's champion, and repair it.

    An alias that is absent is set. A champion that the registry has lost is logged and registered again from its
    folder. An alias is never deleted: a model's name may be shared by campaigns with chains of their own.

    Args:
        session: of the campaign.
        move: point an alias that names another version at the champion; else this is only reported.

    Raises:
        CorruptStore, PromotionError: the chain was altered, or the registry cannot be reached.
        RegistryRefused: the registry refuses a name.
        ChangedModel: the champion must be registered again, and its files are not those that were trained.
    """
    registry, name, alias = session.registry, model_name(session), session.config.gate.alias
    truth = champion(read_chain(session.url("promotion")))
    version = registry.alias(name, alias)
    found = _named(session, name, version)
    report = AliasReport(model=name, alias=alias, champion=truth, version=version)
    if truth is None:
        if version is None:
            return report
        wrong = (
            f"the alias {alias} of {name} names {found}, but this campaign's chain has promoted no student: "
            "`ray-distill promote` points it at one that passes; else delete the alias in the registry"
        )
        return report.with_changes(wrong=wrong)
    right = registry.find(name, FINGERPRINT, truth.fingerprint)
    if right is not None and right == version:
        return report
    if version is not None and not move:
        wrong = (
            f"the alias {alias} of {name} names {found}; the chain's champion is {truth.url}: "
            "`ray-distill promote --verify` points the alias at it"
        )
        return report.with_changes(wrong=wrong)
    again = right is None
    try:
        right = right or _register_again(session, name, truth)
    except ChangedModel as error:
        raise lost_champion(session.url("promotion"), error) from error
    registry.set_alias(name, alias, right)
    return report.with_changes(
        version=right,
        repaired=f"the alias {alias} of {name} named {found}; the chain's champion is {truth.url}: "
        f"it names version {right} now{', which was registered again' if again else ''}",
    )


def _named(session: Session, name: str, version: str | None) -> str:
    """Describe what the alias names."""
    if version is None:
        return "no version"
    text = session.registry.tags(name, version).get("student")
    if text is None:
        return f"version {version}, which no campaign registered"
    try:
        return f"version {version}, {StudentRef.from_json(text).url}"
    except ConfigError:
        return f"version {version}, whose tag `student` is no reference"


def _register_again(session: Session, name: str, student: StudentRef) -> str:
    with open_trained(student) as folder:
        uri = session.parent.model(
            folder,
            name="student",
            task=session.config.task,
            example=example_of(session.config, student.labels.snapshot),
            metrics={},
        )
    if uri is None:
        raise PromotionError("MLflow has not recorded the student's model yet; a warning above names the reason")
    return session.registry.register(uri, name=name, tags=tags_of(student, verdict="PROMOTE"))
