"""From texts to a trained language model in one process: real snapshot, label store and exported directories."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, StudentModel
from ray_distill.errors import ConfigError
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model
from tests.labs import language_store as lab
from tests.labs.training import TOLERANCE

ARMS = ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
#: How far labels of equal documents may lie apart: a batch's width decides the order in which products are summed.
BATCH_ROUNDING = 2e-5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two layers and its texts."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_causal_model(folder / "teacher", seed=1, initializer_range=0.5)
    lab.write_texts(folder / "texts.jsonl", lab.documents(80, seed=1))
    return folder


def config_of(home: Path, output: str, *, training: Mapping[str, Any] | None = None, **labels: Any) -> Campaign:
    return lab.config_of(
        home / output,
        home / "texts.jsonl",
        training=training,
        **{"teacher": {"model": str(home / "teacher")}, **labels},
    )


@pytest.fixture(scope="module")
def by_batch(home: Path) -> dict[int, LabelSetRef]:
    """The same texts labelled in batches of 8 and in batches of 3, in stores of their own."""
    return {batch: lab.labelled(config_of(home, f"batch-{batch}", resources={"batch": batch})) for batch in (8, 3)}


def test_labels_of_another_batch_differ_by_rounding(by_batch: dict[int, LabelSetRef]) -> None:
    """The same rows, positions and tokens; log-probabilities apart by no more than float32's rounding."""
    (ids, one), (other_ids, other) = (open_label_set(by_batch[batch]).read() for batch in (8, 3))
    assert ids.equals(other_ids) and one.distributions is not None and other.distributions is not None
    for name in ("row_offsets", "position", "entry_offsets", "ids"):
        np.testing.assert_array_equal(getattr(one.distributions, name), getattr(other.distributions, name), name)
    for name in ("logp", "log_tail", "entropy"):
        np.testing.assert_allclose(
            getattr(one.distributions, name), getattr(other.distributions, name), atol=BATCH_ROUNDING, err_msg=name
        )


def test_how_labels_were_taken_does_not_matter(home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path) -> None:
    """Labels of batches of 8 and of 3, each trained on padded in eights and packed in threes: one loss curve."""
    forms = {"padded": {"micro_batch": 8}, "packed": {"micro_batch": 3, "packed": 64}}
    curves = {}
    for batch, labels in by_batch.items():
        for form, training in forms.items():
            config = config_of(home, "unused", training=training)
            _, recorder = lab.train(config, labels, tmp_path / f"{batch}-{form}")
            curves[batch, form] = [recorder.curve[step]["loss"] for step in sorted(recorder.curve)]
    expected = curves[8, "padded"]
    assert len(expected) >= 4
    for crossed, curve in curves.items():
        assert curve == pytest.approx(expected, rel=TOLERANCE), crossed


def test_one_changed_document_is_labelled_alone(home: Path, tmp_path: Path) -> None:
    """The teacher is asked for its row only, and all rows of the newer texts can be read and trained on."""
    texts = lab.documents(40, seed=1)
    config = lab.config_of(
        tmp_path, lab.write_texts(tmp_path / "texts.jsonl", texts), teacher={"model": str(home / "teacher")}
    )
    first = lab.Labeller(config=config)
    before = first.label(freeze(config))
    assert len(first.asked) == 40
    lab.write_texts(tmp_path / "texts.jsonl", [*texts[:17], "a changed one", *texts[18:]])
    second = lab.Labeller(config=config)
    after = second.label(freeze(config))
    old, new = (set(open_label_set(ref).read()[0].to_pylist()) for ref in (before, after))
    assert second.asked == list(new - old) and len(second.asked) == 1 and len(new) == 40
    third = lab.Labeller(config=config)
    assert third.label(freeze(config)) == after and third.asked == []


def test_every_arm_is_a_standard_transformers_directory(
    home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path
) -> None:
    """Plain transformers loads each, with the tokenizer; so do we, with what a text is to it."""
    refs, recorder = lab.train(config_of(home, "unused"), by_batch[8], tmp_path, ARMS)
    assert sorted(refs) == sorted(ARMS) == sorted(recorder.by_arm)
    for arm, ref in refs.items():
        plain = AutoModelForCausalLM.from_pretrained(ref.url)
        words = transformers.AutoTokenizer.from_pretrained(ref.url)
        ids = torch.tensor([words("some text").input_ids])
        ours = load_model(ref.url, task="causal_lm")
        assert (
            ours.vocabulary == 264
            and ours.processor.fingerprint == load_model(str(home / "teacher"), task="causal_lm").processor.fingerprint
        )
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, ours.module(ids).logits)
        last = recorder.by_arm[arm][max(recorder.by_arm[arm])]
        assert {"validation_nll", "validation_kl"} <= set(last)
        assert "over 264 tokens" in (tmp_path / arm / "README.md").read_text()


def test_adapters_are_merged_into_the_exported_student(
    home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path
) -> None:
    """Embeddings and head are the teacher's bit for bit; every linear layer has learnt; no adapter is left."""
    config = config_of(home, "unused")
    model = StudentModel.model_validate({"from": "teacher_layers", "keep": 2, "lora": {"rank": 4}})
    config = config.model_copy(update={"student": config.student.model_copy(update={"model": model})})
    refs, _ = lab.train(config, by_batch[8], tmp_path)
    found, teacher = (
        AutoModelForCausalLM.from_pretrained(url).state_dict() for url in (refs["student"].url, home / "teacher")
    )
    assert set(found) == set(teacher)
    for name, value in found.items():
        assert torch.equal(value, teacher[name]) == ("proj" not in name), name


def test_a_student_that_lets_documents_see_each_other_is_not_packed(
    home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path
) -> None:
    """Bloom knows no position ids: packed is refused with what to do; padded it trains, its tied head fused."""
    words = tiny_causal_tokenizer()
    bloom = transformers.BloomConfig(vocab_size=264, hidden_size=32, n_layer=1, n_head=2, pad_token_id=0)
    transformers.BloomForCausalLM(bloom).save_pretrained(tmp_path / "bloom")
    words.save_pretrained(tmp_path / "bloom")
    model = StudentModel.model_validate({"from": "checkpoint", "model": str(tmp_path / "bloom")})

    def train(packed: int) -> Any:
        config = config_of(home, "unused", training={"packed": packed})
        config = config.model_copy(update={"student": config.student.model_copy(update={"model": model})})
        return lab.train(config, by_batch[8], tmp_path / "out")

    with pytest.raises(
        ConfigError,
        match=r"student\.training\.packed: BloomForCausalLM would let documents of one row "
        r"see each other.*: set it to 0",
    ):
        train(64)
    _, recorder = train(0)
    assert recorder.curve[max(recorder.curve)]["loss"] < recorder.curve[1]["loss"]


def test_labels_of_another_tokenizer_are_refused(home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path) -> None:
    """The teacher's folder got another tokenizer since it labelled: what is to be done stands in the error."""
    shutil.copytree(home / "teacher", tmp_path / "teacher")
    other = tiny_causal_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    other.save_pretrained(tmp_path / "teacher")
    config = config_of(home, "unused", teacher={"model": str(tmp_path / "teacher")})
    with pytest.raises(ConfigError, match="has another tokenizer or chat template .* than the labels of .*teacher"):
        lab.train(config, by_batch[8], tmp_path / "out")


def test_a_limit_that_has_changed_is_refused(home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path) -> None:
    """Documents would be cut elsewhere than where they were labelled."""
    config = config_of(home, "unused", teacher={"model": str(home / "teacher"), "max_length": 20})
    with pytest.raises(ConfigError, match="was labelled at other tokens than the student has: .* max_length"):
        lab.train(config, by_batch[8], tmp_path / "out")


def test_a_temperature_nobody_declared_is_refused(home: Path, by_batch: dict[int, LabelSetRef], tmp_path: Path) -> None:
    """The declared ones are named before anything is trained."""
    config = config_of(home, "unused")
    hot = {"soft": config.student.losses["soft"].model_copy(update={"temperature": 3.0})}
    config = config.model_copy(update={"student": config.student.model_copy(update={"losses": hot})})
    with pytest.raises(ConfigError, match="temperature 3 is not declared by the labels"):
        lab.train(config, by_batch[8], tmp_path / "out")
