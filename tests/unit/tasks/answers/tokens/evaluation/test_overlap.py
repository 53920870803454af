"""ROUGE and chrF: the numbers of the packages that define them, by hand, with intervals over documents."""

import sys

import numpy as np
import pyarrow as pa
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.tasks.answers.tokens.evaluation.overlap import compare_overlap, measure_overlap

HOW = Resampling(seed=0, bootstrap=200)
REFERENCES = ["the cat sat on the mat", "an owl flew over the river at night", "rivers run", "so it goes"]
ANSWERS = ["the cat lay on a mat", "the owl flies at night", "a river runs", ""]


def table(answers, references, counts=None):
    return pa.table(
        {
            "row_id": pa.array([n.to_bytes(16, "big") for n in range(len(answers))], pa.binary(16)),
            "count": pa.array(counts or [1] * len(answers), pa.int64()),
            "written": pa.array(answers, pa.string()),
            "reference": pa.array(references, pa.string()),
        }
    )


def values(*args):
    return {name: item.value for name, item in measure_overlap(table(*args), HOW).items()}


def test_rouge_by_hand():
    """4 of 6 words in common; 1 of 5 pairs; the longest common subsequence is the cat … on … mat, 4 words."""
    found = values(["the cat lay on a mat"], ["the cat sat on the mat"])
    assert found["rouge1"] == pytest.approx(2 * (4 / 6) * (4 / 6) / (8 / 6))
    assert found["rouge2"] == pytest.approx(1 / 5)
    assert found["rouge_l"] == pytest.approx(4 / 6)


def test_chrf_by_hand():
    """`abc` against `abd`: 2 of 3 letters, 1 of 2 pairs, no triple, no longer ones: F2 of their mean is that mean."""
    assert values(["abc"], ["abd"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    precision, recall = (1 + 1) / 2, (2 / 4 + 1 / 3) / 2  # `ab` against `abcd`: orders 1 and 2 alone are in both
    assert values(["ab"], ["abcd"])["chrf"] == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_the_numbers_are_those_of_the_packages():
    """chrF of the corpus, and the mean F1 of the documents with stems compared; an empty answer counts as nothing."""
    found = values(ANSWERS, REFERENCES)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(ANSWERS, [REFERENCES]).score, rel=1e-9)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    for name, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[name] == pytest.approx(np.mean([item[theirs].fmeasure for item in scores]))


def test_the_same_text_is_perfect_and_another_is_nothing():
    """1 and 100, or 0 and 0, with intervals inside of what can be."""
    for answers, share in ((REFERENCES, 1.0), (["xyz"] * 4, 0.0)):
        found = measure_overlap(table(answers, REFERENCES), HOW)
        assert [found[name].value for name in ("rouge1", "rouge_l")] == [share, share]
        if share:
            assert found["chrf"].value == pytest.approx(100) and found["rouge2"].value == pytest.approx(1)
        assert all(
            0 <= item.low <= item.value <= item.high <= (100 if name == "chrf" else 1) for name, item in found.items()
        )


def test_a_document_weighs_its_count():
    """Seen three times is as if it stood there three times."""
    weighed = values(ANSWERS[:2], REFERENCES[:2], [3, 1])
    repeated = values([ANSWERS[0]] * 3 + [ANSWERS[1]], [REFERENCES[0]] * 3 + [REFERENCES[1]])
    assert weighed == pytest.approx(repeated)


def test_chrf_reads_any_script_and_rouge_only_its_own():
    """Where no reference has a word of ROUGE's, a zero would say that nothing was right."""
    found = values(["雪が降る"], ["雪が降った"])
    assert set(found) == {"chrf"} and found["chrf"] > 30


def test_intervals_are_over_documents_and_differences_are_paired():
    """A model always a little better has a narrow difference, whatever the documents are like."""
    rng = np.random.default_rng(0)
    words = np.array(["cat", "owl", "mat", "river", "night", "sat", "flew", "moon"])
    references = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    worse = [" ".join(reference.split()[: rng.integers(1, 9)]) for reference in references]
    better = [f"{answer} {reference.split()[-1]}" for answer, reference in zip(worse, references, strict=True)]
    ours, theirs = table(better, references), table(worse, references)
    alone, difference = measure_overlap(ours, HOW), compare_overlap(ours, theirs, HOW)
    assert set(alone) == set(difference)
    for name in ("rouge1", "chrf"):
        assert alone[name].low < alone[name].value < alone[name].high and alone[name].n == 60
        assert 0 < difference[name].low < difference[name].value
        assert difference[name].width < alone[name].width


def test_what_cannot_be_measured_is_said(monkeypatch):
    """No documents, a missing text, other documents, and packages that are not there."""
    whole = table(ANSWERS, REFERENCES)
    for predictions, why in (
        (whole.slice(0, 0), "no generated texts"),
        (table(["a", None], ["b", "c"]), "written is missing in 1 of 2"),
    ):
        with pytest.raises(EvaluationError, match=why):
            measure_overlap(predictions, HOW)
    with pytest.raises(EvaluationError, match="differ in row_id"):
        compare_overlap(whole, whole.take([1, 0, 2, 3]), HOW)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.helpers", None)
    with pytest.raises(EvaluationError, match=r"pip install 'ray-distill\[seq2seq\]'"):
        measure_overlap(whole, HOW)
