"""Settings that classifiers cannot serve."""

from ray_distill.config import Campaign


def refuse(config: Campaign) -> list[str]:
    """List the settings that only language models have."""
    given = {"student.training.packed": config.student.training.packed, "student.model.lora": config.student.model.lora}
    written = config.sequences is not None
    return [f"sequences: a teacher of {config.task} writes no texts: leave the section out"] * written + [
        f"{name}: only language models have it, and {config.task} is none; leave it out"
        for name, value in given.items()
        if value
    ]
