"""The words of the golden run of pairs, without the download."""

from pathlib import Path

import pytest

from ray_distill.config import load_config
from ray_distill.examples import phonemes
from ray_distill.models.io.load import load_model
from ray_distill.tasks.catalogue import get_task

LINES = """
a.m. EY2 EH1 M
abbot AE1 B AH0 T
abbot(2) AE1 B AA0 T # rare
'tis T IH1 Z
d'artagnan D AH0 R T AE1 NG Y AH0 N # name, french
""".strip()


def test_the_first_pronunciation_of_plain_words_counts() -> None:
    """Stress, comments, alternatives and words that begin with no letter are left out."""
    assert list(phonemes.read_words(LINES)) == [
        ("a.m.", "EY EH M"),
        ("abbot", "AE B AH T"),
        ("d'artagnan", "D AH R T AE NG Y AH N"),
    ]


def test_a_letter_and_a_phoneme_are_a_token_each() -> None:
    """No word and no pronunciation has unknown tokens, and what is written reads as the dictionary has it."""
    reads = phonemes.tokenizer()
    for word, spoken in phonemes.read_words(LINES):
        source, target = reads(word)["input_ids"], reads(text_target=spoken)["input_ids"]
        assert len(source) == len(word) + 1 and len(target) == len(spoken.split()) + 1
        assert reads.unk_token_id not in source + target
        assert reads.decode(target, skip_special_tokens=True) == spoken


def test_a_teacher_is_trained_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of it, from the columns that the golden config names."""
    config = load_config(Path(__file__).parents[3] / "jobs/configs/phonemes.yaml")
    names, words = (config.snapshot.columns.text, config.snapshot.columns.target), list(phonemes.read_words(LINES))
    phonemes.write_rows(tmp_path / "rows.parquet", words)
    monkeypatch.setattr(phonemes, "TEACHER_STEPS", 2)
    model = load_model(str(phonemes.train_teacher(tmp_path / "rows.parquet", tmp_path / "t", seed=0)), task="seq2seq")
    assert names == ("word", "phonemes") and model.vocabulary == len(phonemes.tokenizer())
    assert get_task(config.task).name == "seq2seq"
    assert dict(config.student.model.overrides) == phonemes.STUDENT_OVERRIDES
