"""Secrets in every place where a user may put one, and a search for them in whatever a command leaves behind."""

import base64
import gzip
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pyarrow.parquet as pq

from ray_distill.models.core.model import ModelParts
from ray_distill.testing.models import tiny_text_model

#: Where a secret stands, by the name of its place: ``{}`` is the secret, ``HOST`` a server of the test's.
FIELDS: dict[str, tuple[str, str]] = {
    "password of a source": ("snapshot.source", "http://ann:{}@HOST/rows.jsonl"),
    "signature of S3": ("snapshot.exclude.0", "http://HOST/left_out.jsonl?X-Amz-Date=2026&X-Amz-Signature={}"),
    "session of S3": ("snapshot.exclude.1", "http://HOST/left_out.jsonl?x-amz-security-token={}&X-Amz-Signature=0"),
    "signature of Azure": ("snapshot.test.source", "http://HOST/test.jsonl?sv=2026&se=1&sig={}"),
    "token of a query": ("student.ceiling", "http://HOST/ceiling.jsonl?access_token={}#part"),
    "key of an engine": ("labels.teacher.arguments.api_key", "{}"),
    "token of a hub": ("labels.teacher.arguments.token", "{}"),
    "password": ("labels.teacher.arguments.password", "{}"),
    "secret": ("labels.teacher.arguments.secret", "{}"),
    "secret of storage": ("labels.teacher.arguments.options.storage.secret", "{}"),
    "key of an account": ("labels.teacher.arguments.options.storage.account_key", "{}"),
    "dotted key": ("labels.teacher.arguments.options.storage.fs_s3a_secret_key", "{}"),
    "connection string": (
        "labels.teacher.arguments.options.storage.connection_string",
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={};EndpointSuffix=y",
    ),
    "header": ("labels.teacher.arguments.options.headers.Authorization", "Bearer {}"),
    "header of a key": ("labels.teacher.arguments.options.headers.x-api-key", "{}"),
    "variable of a hub": ("labels.teacher.arguments.options.env_vars.HF_TOKEN", "{}"),
    "variable of S3": ("labels.teacher.arguments.options.env_vars.AWS_SECRET_ACCESS_KEY", "{}"),
    "variable of a session": ("labels.teacher.arguments.options.env_vars.AWS_SESSION_TOKEN", "{}"),
    "variable of an engine": ("labels.teacher.arguments.options.env_vars.OPENAI_API_KEY", "{}"),
    "database": ("labels.teacher.arguments.options.database", "postgresql://ann:{}@db.example/x"),
    "url in a list": ("labels.teacher.arguments.options.urls.0", "sftp://ann:{}@files.example/x"),
    "private key": (
        "labels.teacher.arguments.options.private_key",
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
    ),
    "secret of a client": ("labels.teacher.arguments.options.client_secret", "{}"),
    "credentials": ("labels.teacher.arguments.options.credentials", "{}"),
    "monitor of DeepSpeed": ("student.training.deepspeed.comet.api_key", "{}"),
    "shared access signature": ("student.training.deepspeed.own.shared_access_signature", "{}"),
}
#: Variables of the environment.
VARIABLES = {
    "MLFLOW_TRACKING_PASSWORD": "{}",
    "MLFLOW_TRACKING_TOKEN": "{}",
    "HF_TOKEN": "{}",
    "AWS_SECRET_ACCESS_KEY": "{}",
    "OPENAI_API_KEY": "{}",
    "all_proxy": "http://ann:{}@proxy.example:3128",
}
#: Places that are refused, or that only some commands have.
OTHERS = (
    *("tracking.uri", "tracking.registry_uri", "output", "labels.store", "--set", "--source", "--snapshot"),
    *("store of an audit", "address of a cluster", "--metadata", "--runtime-env", "--argument"),
)
SECRETS = {name: f"c4nary{number:02d}X7qpL9mRt2" for number, name in enumerate([*FIELDS, *VARIABLES, *OTHERS])}


def filled(name: str, text: str, host: str = "") -> str:
    """Return the text of a place with its secret."""
    return text.replace("{}", SECRETS[name]).replace("HOST", host)


def put_secrets(value: dict[str, Any], host: str) -> dict[str, Any]:
    """Set every field of `FIELDS` in a campaign's values."""
    for name, (path, text) in FIELDS.items():
        *parents, last = path.split(".")
        section: Any = value
        for part, following in zip(parents, [*parents[1:], last], strict=True):
            section = section.setdefault(part, [] if following.isdigit() else {})
        if last.isdigit():
            section.append(filled(name, text, host))
        else:
            section[last] = filled(name, text, host)
    return value


def write_inputs(folder: Path) -> None:
    """Write the sources of `campaign`: rows, and those that it excludes, tests with, and measures a ceiling with.

    One row of each cannot be used: its file is named in quarantine.
    """
    folder.mkdir()
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(400)]
    parts = {"rows": rows[:300], "left_out": rows[10:20], "test": rows[300:], "ceiling": rows[:200]}
    for name, part in parts.items():
        lines = [json.dumps(row) for row in part]
        text = "\n".join([*lines, '{"text": " ", "label": "a"}'])
        (folder / f"{name}.jsonl").write_text(f"{text}\n", encoding="utf-8")


def campaign(output: Path, host: str) -> dict[str, Any]:
    """Return a campaign with every secret; its sources are at a host."""
    value: dict[str, Any] = {
        "campaign": "canary",
        "task": "text_classification",
        "output": str(output),
        "snapshot": {"columns": {"label": "label"}, "classes": ["a", "b"], "test": {}, "max_bad_fraction": 0.1},
        "labels": {"teacher": {"model": "tests.labs.canary:teacher", "arguments": {"classes": ["a", "b"]}}},
        "student": {
            "model": {"from": "module", "model": "ray_distill.testing.models:tiny_text_model"},
            "training": {"epochs": 2, "learning_rate": 1e-3, "global_batch": 32, "micro_batch": 32, "engine": "torch"},
        },
        "tracking": {"uri": "none"},
        "gate": {"beat": []},
    }
    return put_secrets(value, host)


def variables() -> dict[str, str]:
    """Return the variables of `VARIABLES` with their secrets."""
    return {name: filled(name, text) for name, text in VARIABLES.items()}


def teacher(
    classes: list[str],
    api_key: str = "",
    token: str = "",
    password: str = "",
    secret: str = "",
    options: Mapping[str, Any] | None = None,
) -> ModelParts:
    """Return a tiny model, as a function does that reads its weights from elsewhere with these secrets."""
    return tiny_text_model(classes)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Write no log: it would have the secrets of the test's own requests."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to any user and with any signature; yield host and port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A secret in a file."""

    place: str
    file: Path
    around: str


def leaks(*folders: Path, skip: tuple[Path, ...] = ()) -> list[Leak]:
    """Return the secrets in the files below some folders: plain, as in URLs, and in base64, also in packed files."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path not in skip:
                content = b"\n".join([str(path).encode(), *_contents(path)])
                found += [Leak(place=name, file=path, around=around) for name, around in _in(content)]
    return found


def _in(content: bytes) -> Iterator[tuple[str, str]]:
    for name, secret in SECRETS.items():
        for form in _forms(secret):
            if (at := content.find(form)) >= 0:
                yield name, content[max(0, at - 60) : at + 60].decode(errors="replace")


def _forms(secret: str) -> set[bytes]:
    """Return a secret as bytes: in base64 at each place it may have among other bytes."""
    coded = {base64.b64encode(b"x" * before + secret.encode())[4 if before else 0 : -4] for before in range(3)}
    return {secret.encode(), quote(secret, safe="").encode(), quote_plus(secret).encode(), *coded}


def _contents(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as packed:
            for name in packed.namelist():
                yield name.encode() + b"\n" + packed.read(name)
    elif data.startswith(b"PAR1") and data.endswith(b"PAR1"):
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode()
        yield repr(table.to_pylist()).encode()
