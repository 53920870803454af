"""A small text campaign that is run once, undisturbed, for the modules that look at its result or compare theirs.

Its units are small and its training is long, so that there is time to interrupt the same campaign midway.
"""

from dataclasses import dataclass
from pathlib import Path

from ray_distill.config import Campaign, load_config
from ray_distill.runtime import campaign
from tests.labs import campaign as lab

ROWS = 600


@dataclass(frozen=True, kw_only=True)
class WholeCampaign:
    """The campaign, and its result."""

    folder: Path
    """Has the teacher, the source and the output."""
    config: Campaign
    result: campaign.CampaignResult

    def write_copy(self, name: str) -> Path:
        """Write the same campaign with an output folder of this name; return its file."""
        return write(self.folder, name)


def run_whole(folder: Path) -> WholeCampaign:
    """Write teacher, source and configuration to a folder, and run the campaign to its verdict."""
    lab.write_teacher(folder / "teacher")
    lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=30))
    config = load_config(str(write(folder, "out")))
    return WholeCampaign(folder=folder, config=config, result=campaign.run(config))


def write(folder: Path, output: str) -> Path:
    """Write the campaign's file, named as its output folder."""
    value = lab.config_of(
        folder,
        folder / "rows.jsonl",
        {"model": str(folder / "teacher")},
        output=str(folder / output),
        labels__unit_rows=4,
        student__training__epochs=16,
    )
    return lab.write_config(folder / f"{output}.yaml", value)
