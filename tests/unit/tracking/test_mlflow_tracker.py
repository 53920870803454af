"""Runs, models and the registry in a real MLflow on a SQLite file."""

import base64
import io
import json
import math
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ray_distill.config import StudentModel, parse_config
from ray_distill.errors import ConfigError, PromotionError
from ray_distill.models.core.forward import forward
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.runtime.core.session import open_session
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Dataset
from ray_distill.tracking.mlflow_registry import MlflowRegistry
from ray_distill.tracking.mlflow_tracker import MlflowTracker


@pytest.fixture
def tracker(db: str, tmp_path: Path) -> MlflowTracker:
    """A tracker on this test's database."""
    return MlflowTracker(db, "campaign", tmp_path / "spool")


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _runs(uri: str, experiment: str = "campaign") -> dict[str, Any]:
    client = _client(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_the_first_run_is_quiet_and_stays_in_its_folder(first_use: tuple[Path, str]) -> None:
    """Nothing is imported before it is needed, printed on the terminal, or left beside the database and artifacts."""
    folder, output = first_use
    assert output == ""
    assert [path.name for path in folder.iterdir()] == ["deep"]


def test_runs_nest_and_record(tracker: MlflowTracker) -> None:
    """Params, tags and metrics of every step arrive; a stage is a child of its campaign."""
    with tracker.run("campaign", tags={"stage": "campaign"}) as parent:
        parent.params({"student": {"epochs": 3}})
        with tracker.run("train", parent=parent.run_id) as run:
            for step in range(450):
                run.metrics({"loss/soft": 1.0 / (step + 1), "rate": 0.1}, step=step)
        parent.tags({"verdict": "PROMOTE", "title": "PROMOTE campaign", "description": "# Well done"})
    runs = _runs(tracker.uri)
    top, child = runs["PROMOTE campaign"], runs["train"]
    assert top.data.params == {"student.epochs": "3"}
    assert (top.data.tags["verdict"], top.data.tags["mlflow.note.content"]) == ("PROMOTE", "# Well done")
    assert child.data.tags["mlflow.parentRunId"] == top.info.run_id == parent.run_id
    assert {top.info.status, child.info.status} == {"FINISHED"}
    history = _client(tracker.uri).get_metric_history(child.info.run_id, "loss/soft")
    assert [point.step for point in history] == list(range(450))
    assert all(child.info.start_time <= point.timestamp <= child.info.end_time for point in history)


@pytest.mark.parametrize(("error", "status"), [(ValueError("no\nluck"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_the_status_follows_how_the_block_ends(tracker: MlflowTracker, error: BaseException, status: str) -> None:
    """An exception passes through; the run says what it was; a reopened run that succeeds forgets it."""
    with pytest.raises(type(error)), tracker.run("train") as run:
        run.metrics({"loss": 2.0})
        raise error
    found = _runs(tracker.uri)["train"]
    assert (found.info.status, found.data.metrics) == (status, {"loss": 2.0})
    assert found.data.tags.get("error") == ("ValueError: no luck" if status == "FAILED" else None)
    with tracker.run("train", run_id=run.run_id) as again:
        again.metrics({"loss": 1.0}, step=1)
        assert _runs(tracker.uri)["train"].info.status == "RUNNING"
    found = _runs(tracker.uri)["train"]
    assert again.run_id == run.run_id
    assert (found.info.status, found.data.metrics, found.data.tags.get("error")) == ("FINISHED", {"loss": 1.0}, None)


def test_a_run_that_is_gone_becomes_a_new_one(tracker: MlflowTracker, caplog: pytest.LogCaptureFixture) -> None:
    """Reopening a run of a deleted database, or a deleted run, is said and starts afresh."""
    with tracker.run("train", run_id="0" * 32) as run:
        run.metrics({"loss": 1.0})
    assert "has no run 000" in caplog.text
    _client(tracker.uri).delete_run(run.run_id)
    with tracker.run("train", run_id=run.run_id) as second:
        second.metrics({"loss": 3.0})
    assert _runs(tracker.uri)["train"].info.run_id == second.run_id != run.run_id


def test_a_deleted_experiment_is_restored(tracker: MlflowTracker, db: str, tmp_path: Path) -> None:
    """Deleting an experiment in the UI does not silence the next campaign."""
    with tracker.run("one"):
        pass
    client = _client(db)
    client.delete_experiment(client.get_experiment_by_name("campaign").experiment_id)
    with MlflowTracker(db, "campaign", tmp_path / "spool").run("two"):
        pass
    assert set(_runs(db)) == {"one", "two"}


def test_what_is_not_a_number_is_a_tag(tracker: MlflowTracker) -> None:
    """A metric that could not be measured is visible by name, and not as a number."""
    with tracker.run("evaluate") as run:
        run.metrics({"ece": math.nan, "nll": math.inf, "accuracy, top 1": 0.5})
    found = _runs(tracker.uri)["evaluate"].data
    assert found.metrics == {"accuracy_ top 1": 0.5}
    assert (found.tags["unmeasured.ece"], found.tags["unmeasured.nll"]) == ("nan", "inf")


def test_params_never_fail(tracker: MlflowTracker) -> None:
    """More than a batch, the same value twice, another value, a value beyond MLflow's limit."""
    with tracker.run("train") as run:
        run.params({str(index): index for index in range(250)} | {"long": "x" * 9000})
        run.params({"0": 0, "1": "other", "new": True})
    found = _runs(tracker.uri)["train"].data
    assert len(found.params) == 252 and found.params["1"] == "1" and found.params["new"] == "True"
    assert found.tags["param_conflict.1"] == "other (first recorded: 1)"


def test_a_dataset_carries_our_digest(tracker: MlflowTracker) -> None:
    """MLflow shows the store's own fingerprint; a digest longer than its column stands whole in the profile."""
    digest = "0123456789abcdef0123456789abcdef"
    long = f"sha256:{digest}{digest}"
    with tracker.run("train") as run:
        for name, value in (("snapshot", digest), ("labels", long)):
            run.dataset(
                Dataset(name=name, digest=value, source="s3://bucket/it", context="training", profile={"rows": 3})
            )
    inputs = {item.dataset.name: item for item in _runs(tracker.uri)["train"].inputs.dataset_inputs}
    assert inputs["snapshot"].dataset.digest == digest
    assert [(tag.key, tag.value) for tag in inputs["snapshot"].tags] == [("mlflow.data.context", "training")]
    assert inputs["labels"].dataset.digest == long[:36]
    assert json.loads(inputs["labels"].dataset.profile) == {"rows": 3, "digest": long}


def test_artifacts_lie_beside_the_database(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Files and folders are uploaded, a folder under its own name; the UI finds them beside the SQLite file."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.svg").write_text("<svg/>")
    with tracker.run("train") as run:
        run.artifact(tmp_path / "plots")
        run.artifact(tmp_path / "plots" / "loss.svg", "deep/er")
    client = _client(tracker.uri)
    assert [item.path for item in client.list_artifacts(run.run_id, "plots")] == ["plots/loss.svg"]
    assert [item.path for item in client.list_artifacts(run.run_id, "deep/er")] == ["deep/er/loss.svg"]
    assert (tmp_path / "mlartifacts" / run.run_id / "artifacts" / "deep" / "er" / "loss.svg").exists()


def test_a_record_that_is_refused_is_kept_and_work_goes_on(
    tracker: MlflowTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing artifact costs that artifact; one warning names it, the record is in rejected.jsonl."""
    with tracker.run("train") as run:
        run.artifact(tmp_path / "missing.html")
        run.artifact(tmp_path / "missing too.html")
        run.metrics({"loss": 1.0})
    assert _runs(tracker.uri)["train"].data.metrics == {"loss": 1.0}
    assert caplog.text.count("refused a record") == 1
    rejected = [json.loads(line) for line in (tmp_path / "spool" / "rejected.jsonl").read_text().splitlines()]
    assert [Path(item["path"]).name for item in rejected] == ["missing.html", "missing too.html"]
    assert tracker.flush() == 0


def test_a_store_mlflow_has_not_is_refused_by_name() -> None:
    """Plain folders, gone since MLflow 3, are a configuration error, not a spool that grows."""
    with pytest.raises(ConfigError, match=r"tracking\.uri: './mlruns'"):
        parse_config({"campaign": "c", "tracking": {"uri": "./mlruns"}})


def _text_model(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "good", "bad", "film"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
            id2label={0: "no", 1: "yes"},
            label2id={"no": 0, "yes": 1},
        )
    ).save_pretrained(folder)
    return folder


def _image_model(folder: Path, channels: int = 3) -> Path:
    ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    ).save_pretrained(folder)
    torch.manual_seed(0)
    ResNetForImageClassification(
        ResNetConfig(
            num_channels=channels,
            embedding_size=4,
            hidden_sizes=[4],
            depths=[1],
            layer_type="basic",
            id2label={0: "a", 1: "b", 2: "c"},
            label2id={"a": 0, "b": 1, "c": 2},
        )
    ).save_pretrained(folder)
    return folder


def _png(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 24), colour).save(file, "PNG")
    return file.getvalue()


def _load(tracker: MlflowTracker, uri: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(tracker.uri)
    return mlflow.pyfunc.load_model(uri)


def test_a_text_student_is_served_by_mlflow_alone(tracker: MlflowTracker, tmp_path: Path) -> None:
    """The logged model gives the checkpoint's own probabilities, has signature, example and metrics, and no pickle."""
    folder = _text_model(tmp_path / "student")
    with tracker.run("train") as run:
        uri = run.model(
            folder,
            name="student",
            task="text_classification",
            example="good film",
            metrics={"accuracy": 0.75, "ece": math.nan},
        )
        assert uri == run.model(folder, name="student", task="text_classification", example="good film", metrics={})
    assert uri is not None
    served = _load(tracker, uri)
    texts = ["good film", "bad " * 40]
    found = served.predict(pd.DataFrame({"text": texts}))
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    wanted = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits.softmax(-1)
    assert torch.allclose(torch.tensor(found["probabilities"].tolist()), wanted, atol=1e-6)
    assert found["label"].tolist() == [["no", "yes"][index] for index in wanted.argmax(-1)]
    assert found["probability"].tolist() == [max(row) for row in found["probabilities"]]
    assert len(served.predict(pd.DataFrame({"text": pd.Series([], dtype="str")}))) == 0
    assert served.metadata.get_input_schema().input_names() == ["text"]
    assert served.input_example["text"].tolist() == ["good film"]
    (model,) = _client(tracker.uri).search_logged_models(["2"])
    assert [(metric.key, metric.value) for metric in model.metrics] == [("accuracy", 0.75)]
    files = [path.name for path in tmp_path.glob("mlartifacts/models/**/*") if path.is_file()]
    assert {"served_model.py", "row_requests.py", "answer_requests.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pkl", ".bin", ".pt"))]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_student_takes_bytes_and_base64(tracker: MlflowTracker, tmp_path: Path, channels: int) -> None:
    """Both forms of an image give one answer; grey models convert; what is no image is refused by name."""
    folder = _image_model(tmp_path / "student", channels)
    with tracker.run("train") as run:
        uri = run.model(folder, name="student", task="image_classification", example=_png(), metrics={})
    assert uri is not None
    served = _load(tracker, uri)
    images = [_png(), _png((0, 255, 0))]
    found = served.predict(pd.DataFrame({"image": images}))
    again = served.predict(pd.DataFrame({"image": [base64.b64encode(image).decode() for image in images]}))
    assert found.equals(again)
    assert all(math.isclose(sum(row), 1) for row in found["probabilities"])
    assert set(found["label"]) <= {"a", "b", "c"}
    assert found["probabilities"][0] != found["probabilities"][1]
    (example,) = served.predict(served.input_example)["probabilities"]
    assert example == pytest.approx(found["probabilities"][0], abs=1e-6)
    with pytest.raises(ValueError, match="encoded images"):
        served.predict(pd.DataFrame({"image": [b"no image"]}))


def _encoded_images() -> dict[str, bytes]:
    """One photograph-like image in every kind of file that production sends."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    colour, exif = Image.fromarray(pixels[..., :3]), Image.Exif()
    exif[0x0112] = 6
    palette = colour.quantize(16)
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb": (colour, {}),
        "rgba": (Image.fromarray(pixels), {}),
        "grey": (colour.convert("L"), {}),
        "grey alpha": (colour.convert("LA"), {}),
        "palette": (palette, {"transparency": 3}),
        "bilevel": (colour.convert("1"), {}),
        "turned": (colour, {"exif": exif}),
        "deep": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
    }
    found = {}
    for name, (image, options) in saved.items():
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_serving_reads_images_as_training_did(tracker: MlflowTracker, tmp_path: Path, channels: int) -> None:
    """Alpha, palettes, 16 bits, EXIF turns, grey: the served model sees exactly what the task's own code sees."""
    folder = _image_model(tmp_path / "student", channels)
    with tracker.run("train") as run:
        uri = run.model(folder, name="student", task="image_classification", example=_png(), metrics={})
    assert uri is not None
    images = _encoded_images()
    served = _load(tracker, uri).predict(pd.DataFrame({"image": list(images.values())}))
    assert np.allclose(served["probabilities"].tolist(), _own_answer(folder, "image", list(images.values())), atol=1e-6)


def _own_answer(folder: Path, column: str, values: list[Any]) -> Any:
    """Probabilities by the project's own path: load_model, Task, forward."""
    task = get_task(f"{column}_classification")
    model = load_model(str(folder), task=task.name)
    ids = pa.array([index.to_bytes(16, "big") for index in range(len(values))], pa.binary(16))
    encoded = task.inputs.encode(pa.table({"row_id": ids, column: values}), model.processor)
    assert encoded.rejected == ()
    with torch.no_grad():
        return forward(model.module, task.inputs.collate(encoded, np.arange(len(values)))).logits_BV.softmax(-1).numpy()


FACTORY = """
import torch
from ray_distill.models.io.load import load_processor
from ray_distill.models.core.model import ModelParts

class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(8, 2)

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        logits = (self.table(input_ids) * attention_mask[..., None]).sum(1)
        return type("Output", (), {"logits": logits, "hidden_states": None})()

def build(tokenizer: str) -> ModelParts:
    return ModelParts(Bag(), load_processor(tokenizer, task="text_classification"), ("no", "yes"))
"""


def test_a_student_of_ones_own_code_is_served_where_the_code_is(
    tracker: MlflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module:function student is loaded by calling the function, and answers as it does here."""
    (tmp_path / "own_student.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = {"tokenizer": str(_text_model(tmp_path / "base"))}
    spec = StudentModel.model_validate({"from": "module", "model": "own_student:build", "arguments": arguments})
    folder = tmp_path / "student"
    save_model(load_model(spec, task="text_classification"), folder, card="# Own", metadata={})
    with tracker.run("train") as run:
        uri = run.model(folder, name="student", task="text_classification", example="good", metrics={})
    assert uri is not None
    texts = ["good film", "bad"]
    served = _load(tracker, uri).predict(pd.DataFrame({"text": texts}))
    assert np.allclose(served["probabilities"].tolist(), _own_answer(folder, "text", texts), atol=1e-6)


def test_a_model_of_an_unknown_task_is_a_config_error(tracker: MlflowTracker, tmp_path: Path) -> None:
    """What cannot be logged is refused before anything is written."""
    with tracker.run("train") as run:
        with pytest.raises(ConfigError, match="summarisation"):
            run.model(tmp_path, name="student", task="summarisation", example="x", metrics={})
        with pytest.raises(ConfigError, match="example"):
            run.model(tmp_path, name="student", task="text_classification", example=b"x", metrics={})


def test_the_registry_keeps_versions_tags_and_one_alias(tracker: MlflowTracker, tmp_path: Path) -> None:
    """Registering again is the same version; the alias loads the student; what does not exist is an error."""
    with tracker.run("train") as run:
        uri = run.model(
            _text_model(tmp_path / "student"), name="student", task="text_classification", example=["good"], metrics={}
        )
    assert uri is not None
    registry = MlflowRegistry(tracker.uri)
    assert registry.alias("intent", "champion") is None
    version = registry.register(uri, name="intent", tags={"student": "{}"})
    assert registry.register(uri, name="intent", tags={"report": "s3://r"}) == version == "1"
    assert registry.find("intent", "student", "{}") == "1"
    assert registry.find("intent", "student", "other") is registry.find("nobody", "student", "{}") is None
    registry.set_alias("intent", "champion", version)
    assert registry.alias("intent", "champion") == "1"
    assert registry.tags("intent", "1") == {"student": "{}", "report": "s3://r"}
    assert len(_load(tracker, "models:/intent@champion").predict(pd.DataFrame({"text": ["good"]}))) == 1
    with pytest.raises(PromotionError, match="version 9 of 'intent'|at version 9"):
        registry.set_alias("intent", "champion", "9")


def _closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _in_a_process_that_dies(work: Callable[[], None]) -> None:
    def run() -> None:
        work()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_a_campaign_recorded_offline_arrives_whole(
    db: str, tracker: MlflowTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver works without a server and is killed; the next one, with a server, writes everything once."""
    folder, report = _text_model(tmp_path / "student"), tmp_path / "report.html"
    with tracker.run("other"):
        pass

    def offline() -> None:
        away = MlflowTracker(f"http://127.0.0.1:{_closed_port()}", "campaign", tmp_path / "waiting")
        with away.run("campaign", tags={"stage": "campaign"}) as parent:
            (tmp_path / "id").write_text(parent.run_id)
            with away.run("train", parent=parent.run_id) as run:
                run.params({"epochs": 3})
                run.metrics({"loss": 0.5}, step=7)
                report.write_text("as reported")
                run.artifact(report)
                report.unlink()
                run.dataset(Dataset(name="d", digest="00ff", source="/x", context="training", profile={}))
                assert (
                    run.model(
                        folder, name="student", task="text_classification", example="good", metrics={"accuracy": 0.5}
                    )
                    is None
                )
        assert away.flush() > 5
        assert away.review_url() == away.uri

    _in_a_process_that_dies(offline)
    parent_id = (tmp_path / "id").read_text()
    assert parent_id.startswith("spooled-")
    shutil.rmtree(folder)
    back = MlflowTracker(db, "campaign", tmp_path / "waiting")
    assert back.flush() == 0 == back.flush()
    with back.run("campaign", run_id=parent_id) as parent, back.run("evaluate", parent=parent_id):
        parent.tags({"verdict": "HOLD"})
    runs = _runs(db)
    assert set(runs) == {"campaign", "train", "evaluate", "other"}
    top, child = runs["campaign"], runs["train"]
    assert top.data.tags["verdict"] == "HOLD" and parent.run_id == top.info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("train", "evaluate")} == {top.info.run_id}
    assert (child.data.params, child.data.metrics["loss"], child.info.status) == ({"epochs": "3"}, 0.5, "FINISHED")
    assert child.inputs.dataset_inputs[0].dataset.digest == "00ff"
    assert (tmp_path / "mlartifacts" / child.info.run_id / "artifacts" / "report.html").read_text() == "as reported"
    (model,) = _client(db).search_logged_models([child.info.experiment_id])
    assert len(_load(back, f"models:/{model.model_id}").predict(pd.DataFrame({"text": ["bad"]}))) == 1
    left = {path.name for path in (tmp_path / "waiting").iterdir()} - {"spool.db-shm", "spool.db-wal"}
    assert left == {"files", "replay.lock", "spool.db"}
    assert list((tmp_path / "waiting" / "files").iterdir()) == []
    assert caplog.text.count("is available again: wrote") == 1


def test_two_processes_that_wait_and_replay_at_once_record_everything_once(
    db: str, tracker: MlflowTracker, tmp_path: Path
) -> None:
    """Both share one spool, and both try to replay at the same moment when the server is back."""
    with tracker.run("other"):
        pass

    def offline(name: str) -> None:
        away = MlflowTracker(f"http://127.0.0.1:{_closed_port()}", "campaign", tmp_path / "waiting")
        with away.run(name) as run:
            for step in range(30):
                run.metrics({"loss": float(step)}, step=step)
                run.tags({f"step.{step}": name})

    def online(name: str) -> None:
        back = MlflowTracker(db, "campaign", tmp_path / "waiting")
        back.flush()
        with back.run(f"{name} again") as run:
            run.tags({"by": name})

    for work in (offline, online):
        processes = [multiprocessing.get_context("fork").Process(target=work, args=(name,)) for name in ("one", "two")]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
    assert MlflowTracker(db, "campaign", tmp_path / "waiting").flush() == 0
    experiment = _client(db).get_experiment_by_name("campaign").experiment_id
    found = [run.info.run_name for run in _client(db).search_runs([experiment])]
    assert sorted(found) == ["one", "one again", "other", "two", "two again"]
    for name in ("one", "two"):
        run = _runs(db)[name]
        history = _client(db).get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in history] == list(range(30))
        assert {run.data.tags[f"step.{step}"] for step in range(30)} == {name}
        assert run.info.status == "FINISHED"
    assert not (tmp_path / "waiting" / "rejected.jsonl").exists()


def test_the_runs_table_of_a_language_campaign_has_nll_and_kl(db: str, tmp_path: Path) -> None:
    """A campaign's session opens the experiment with the columns of its own task."""
    config = parse_config(
        {
            "campaign": "words",
            "task": "causal_lm",
            "output": str(tmp_path / "out"),
            "snapshot": {"source": str(tmp_path / "rows.jsonl")},
            "labels": {"teacher": {"model": "big"}},
            "tracking": {"uri": db},
        }
    )
    with open_session(config):
        tags = _client(db).get_experiment_by_name("words").tags
    shown = json.loads(tags["mlflow.sharedViewState.review"])["selectedColumns"]
    assert {"metrics.`nll`", "metrics.`teacher_nll`", "metrics.`kl_from_teacher`"} <= set(shown)
