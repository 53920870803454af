"""Language models in a real MLflow: logged, loaded back, and writing what they write here."""

import json
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.text.prompts import given_prompt
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.answers.tokens.evaluation.generated_targets import write_targets
from ray_distill.tasks.answers.tokens.evaluation.side_by_side import write_side_by_side
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_seq2seq_model
from ray_distill.tracking.mlflow_tracker import MlflowTracker

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "yo"}

FACTORY = """
from types import SimpleNamespace
import torch
from ray_distill.models.core.model import ModelParts
from ray_distill.testing.models import tiny_causal_tokenizer
from ray_distill.models.text.processors import text_processor

class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=264)
        generator = torch.Generator().manual_seed(3)
        self.table = torch.nn.Parameter(torch.randn(264, 264, generator=generator))

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        return SimpleNamespace(logits=self.table[input_ids], hidden_states=None)

def build(weights: bool = True) -> ModelParts:
    return ModelParts(Table(), text_processor(tiny_causal_tokenizer(), 64), ())
"""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    folder = tmp_path_factory.mktemp("tracking")
    return MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", "campaign", folder / "spool")


def student_of(root: Path, model: str, **settings: Any) -> Path:
    """A student as training saves it."""
    spec = TeacherConfig(model=model, language=LanguageConfig(**settings))
    save_model(load_model(spec, task="causal_lm"), root / "student", card="# Tiny", metadata={})
    return root / "student"


def logged(tracker: MlflowTracker, folder: Path, example: str = "Once", task: str = "causal_lm") -> Any:
    import mlflow

    with tracker.run(f"train {folder}") as run:
        uri = run.model(folder, name="student", task=task, example=example, metrics={"nll": 2.5})
    assert uri is not None
    mlflow.set_tracking_uri(tracker.uri)
    return mlflow.pyfunc.load_model(uri)


def own_answers(folder: Path, texts: list[str], most: int) -> list[str]:
    """What the evaluation lets the saved student write."""
    model = load_model(str(folder), task="causal_lm")
    prompts = [given_prompt(text, model.processor) for text in texts]  # type: ignore[arg-type]
    return [item.answers["student"] for item in write_side_by_side({"student": model}, prompts, new_tokens=most)]


def test_a_model_of_texts_is_served_by_mlflow_alone(tracker: MlflowTracker, tmp_path: Path) -> None:
    """It goes on as in the evaluation, has signature, example, metrics and a limit to set, and holds no pickle."""
    folder = student_of(tmp_path, str(write_tiny_causal_model(tmp_path / "base", 0)))
    served, texts = logged(tracker, folder), ["Once upon", "Ünï 🎈", "a"]
    frame = pd.DataFrame({"text": texts})
    found = served.predict(frame, params={"max_new_tokens": 7})
    assert found["generated"].tolist() == own_answers(folder, texts, 7) and any(found["generated"])
    assert served.predict(frame)["generated"].tolist() == own_answers(folder, texts, 128)
    assert served.predict(frame.iloc[:1])["generated"].tolist() == served.predict(frame)["generated"].tolist()[:1]
    assert len(served.predict(pd.DataFrame({"text": pd.Series([], dtype="str")}))) == 0
    schema = served.metadata.signature
    assert (schema.inputs.input_names(), schema.outputs.input_names()) == (["text"], ["generated"])
    assert [(item.name, item.default) for item in schema.params] == [("max_new_tokens", 128)]
    assert served.input_example["text"].tolist() == ["Once"]
    kept = Path(tracker.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / "models"
    files = [path.name for path in kept.glob("**/*") if path.is_file()]
    assert {"served_model.py", "answer_requests.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pkl", ".bin", ".pt"))]
    requirements = next(kept.glob("**/requirements.txt")).read_text()
    assert "jinja2==" in requirements and "ray" not in requirements


def test_a_chat_model_answers_conversations_and_plain_words(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Both go through the checkpoint's template; an earlier answer, tools and contents in parts are understood."""
    folder = student_of(tmp_path, str(write_tiny_causal_model(tmp_path / "base", 1)), format="chat")
    tools = [{"type": "function", "function": {"name": "add"}}]
    texts = [
        "hi",
        json.dumps([ASK]),
        json.dumps([{**ASK, "content": [{"type": "text", "text": "hi"}]}]),
        json.dumps([ASK, SAY, ASK]),
        json.dumps({"messages": [ASK], "tools": tools}),
    ]
    served = logged(tracker, folder, example=texts[1])
    found = served.predict(pd.DataFrame({"text": texts}), params={"max_new_tokens": 9})["generated"].tolist()
    assert found == own_answers(folder, texts, 9)
    assert found[0] == found[1] == found[2] and len(set(found)) == 3
    with pytest.raises(ValueError, match="a conversation is a list of messages"):
        served.predict(pd.DataFrame({"text": ['{"prompt": "hi"}']}))


def test_a_checkpoint_s_own_sampling_settings_do_not_count(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Its generation config may sample and punish repetition: what is served is greedy, twice the same."""
    folder = student_of(tmp_path, str(write_tiny_causal_model(tmp_path / "base", 2)))
    wanted = own_answers(folder, ["Once upon"], 20)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    served = logged(tracker, folder)
    frame = pd.DataFrame({"text": ["Once upon"]})
    assert served.predict(frame, params={"max_new_tokens": 20})["generated"].tolist() == wanted


def test_what_cannot_be_written_is_refused(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Too long, empty, another column, no room, no string: each by name; an example must be text."""
    folder = student_of(tmp_path, str(write_tiny_causal_model(tmp_path / "base", 3)))
    served = logged(tracker, folder)
    for value, why in (("x" * 128, "128 tokens: from 1 to 127"), ("", "0 tokens")):
        with pytest.raises(ValueError, match=why):
            served.predict(pd.DataFrame({"text": [value]}))
    with pytest.raises(ValueError, match="at least 1"):
        served.predict(pd.DataFrame({"text": ["a"]}), params={"max_new_tokens": 0})
    assert len(served.predict(pd.DataFrame({"text": ["x" * 127]}))) == 1
    with tracker.run("train") as run, pytest.raises(ConfigError, match="example"):
        run.model(folder, name="student", task="causal_lm", example=b"x", metrics={})


def test_a_student_of_ones_own_code_writes_where_the_code_is(
    tracker: MlflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module:function student is loaded by calling the function, and goes on as it does here."""
    (tmp_path / "own_language.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = StudentModel.model_validate({"from": "module", "model": "own_language:build"})
    folder = tmp_path / "student"
    save_model(load_model(spec, task="causal_lm"), folder, card="# Own", metadata={})
    found = logged(tracker, folder).predict(pd.DataFrame({"text": ["Once"]}), params={"max_new_tokens": 6})
    assert found["generated"].tolist() == own_answers(folder, ["Once"], 6) and found["generated"][0]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_writes_targets(
    tracker: MlflowTracker, tmp_path: Path, architecture: Literal["t5", "bart"]
) -> None:
    """What is served is what the evaluation measured: prefix, limits and the tokens that begin and end a target."""
    spec = TeacherConfig(
        model=str(write_tiny_seq2seq_model(tmp_path / "base", 7, architecture=architecture)),
        max_length=12,
        language=LanguageConfig(prefix="say: ", target_length=9),
    )
    folder, sources = tmp_path / "student", ["one two", "x", "a source that is too long to be read"]
    save_model(load_model(spec, task="seq2seq"), folder, card="# Tiny", metadata={})
    rows = pa.table(
        {
            "row_id": pa.array([bytes([at] * 16) for at in range(3)], pa.binary(16)),
            "text": [pair_text(source, "yes") for source in sources],
            "count": [1, 1, 1],
        }
    )
    student = {"student": load_model(str(folder), task="seq2seq")}
    wanted = write_targets(student, rows, task=TASKS["seq2seq"], batch=1)
    found = logged(tracker, folder, task="seq2seq").predict(pd.DataFrame({"text": sources}))["generated"]
    assert found.tolist() == wanted["student"]["written"].to_pylist() and any(found)


def test_the_served_file_says_what_the_package_says() -> None:
    """It may not import the package: conversations are read by one file, and the default limit stands in both."""
    from ray_distill.tasks.answers.tokens import answer_requests, serve
    from ray_distill.tasks.inputs import conversation

    assert serve.SERVING.parts["conversation"] == Path(str(conversation.__file__))
    assert serve.SERVING.params["max_new_tokens"] == answer_requests.MAX_NEW_TOKENS
