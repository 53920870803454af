"""What leaves the process has no secret in it, and is otherwise as it was."""

import json

import pytest

from ray_distill.redact import HIDDEN, is_secret, lasting, redact, redacted, secrets_in
from ray_distill.runtime.core import console
from ray_distill.tracking.records import clean_tags, flatten

CANARY = "c4n4ry-S3CRET"

PLACES = [
    f"postgresql://ann:{CANARY}@db.example/mlflow",
    f"https://user:{CANARY}@mlflow.example:5000/path",
    f"s3://key:{CANARY}@bucket/rows.parquet",
    f"https://x.example/rows.csv?X-Amz-Signature={CANARY}&X-Amz-Date=2026",
    f"https://x.example/rows.csv?X-Amz-Date=2026&x-amz-security-token={CANARY}",
    f"https://x.blob.example/c?sv=2026&sig={CANARY}",
    f"https://x.example/a?AWSAccessKeyId={CANARY}&Signature={CANARY}",
    f"https://x.example/a?access_token={CANARY}#part",
    f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={CANARY};EndpointSuffix=y",
    f"labels.teacher.arguments: {{'api_key': '{CANARY}', 'url': 'https://x'}}",
    f'{{"password": "{CANARY}", "rows": 3}}',
    f"call(api_key='{CANARY}', k=3)",
    f"HF_TOKEN={CANARY} is set",
    f"token={CANARY}",
    f"Authorization: Bearer {CANARY}12345",
    f"client_secret = {CANARY}",
    f"MLFLOW_TRACKING_PASSWORD={CANARY}",
    f"{{'OPENAI_API_KEY': '{CANARY}'}}",
]


@pytest.mark.parametrize("text", PLACES)
def test_a_secret_is_removed_from_every_place_that_has_one(text: str) -> None:
    """Its name and all around it stay, so that the reader sees which setting is meant."""
    shown = redact(text)
    assert CANARY not in shown and "…" in shown
    before, after = text.split(CANARY)[0], text.split(CANARY)[-1].removeprefix("12345")
    assert shown.startswith(before.rstrip("'\"")) and shown.endswith(after.lstrip("'\""))
    assert redact(shown) == shown


@pytest.mark.parametrize("token", ["AKIAIOSFODNN7EXAMPLE", "hf_" + "a" * 30, "ghp_" + "b" * 36, "sk-" + "c" * 40])
def test_a_token_that_is_recognisable_is_removed_wherever_it_stands(token: str) -> None:
    """Also without a name before it."""
    assert redact(f"cannot open {token} here") == "cannot open … here"


@pytest.mark.parametrize(
    "text",
    [
        "labels: a position takes 12.5 bytes a token: 82",
        "new_tokens=256, max_num_batched_tokens: 2048, tokens_per_second=3",
        "s3://bucket/a:b@c/rows.parquet",
        "file:///home/ann/rows.csv",
        "https://x.example/rows?version=3&design=4",
        "the tokenizer has 264 tokens; signal.k=64",
        "sqlite:////work/mlflow.db (tracking.uri)",
        "secretary: a class; password is a class too",
        "{'eos_token': '</s>', 'pad_token': None}, bos_token=<s>",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Words of the trade are no secrets."""
    assert redact(text) == text


def test_settings_with_a_secrets_name_are_hidden_whatever_their_value() -> None:
    """By the last part of the dotted name; MLflow's parameters, its tags, and lines on stderr."""
    assert is_secret("labels.teacher.arguments.api_key") and is_secret("AWS_SECRET_ACCESS_KEY")
    assert not any(map(is_secret, ("labels.signal.k", "evaluation.new_tokens", "tokens", "teacher.tokenizer", "key")))
    values = {"teacher": {"arguments": {"api_key": CANARY, "url": f"https://u:{CANARY}@x"}}, "k": 3}
    assert flatten(values) == {"teacher.arguments.api_key": "…", "teacher.arguments.url": "https://u:…@x", "k": "3"}
    assert clean_tags({"source": f"https://x?sig={CANARY}"}) == {"source": "https://x?sig=…"}


def test_the_items_of_a_list_have_the_name_of_the_list() -> None:
    """As the values of a sweep's grid have."""
    grid = {"labels.teacher.arguments.api_key": ["first-secret-1", "second-secret"], "seed": [1, 2]}
    assert redacted(grid) == {"labels.teacher.arguments.api_key": [HIDDEN, HIDDEN], "seed": [1, 2]}
    assert secrets_in(grid) == {"first-secret-1", "second-secret"}
    assert lasting({"api_key": ["old-secret-1"]}) == lasting({"api_key": ["new-secret-2"]})


def test_events_have_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in the sentence nor in the facts beside it."""
    console.report(f"snapshot: s3://k:{CANARY}@b", source=f"https://x?sig={CANARY}", rows=3)
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["source"], told["rows"]) == ("snapshot: s3://k:…@b", "https://x?sig=…", 3)


def test_passwords_of_uris_are_hidden() -> None:
    """Users, hosts and ports stay, as do texts without a password."""
    shown = "'postgres://me:…@db:5432/runs' and https://me:…@h, s3://key@b/a:b, http://h:80/x@y"
    given = shown.replace("…", "se:cret", 1).replace("…", "t")
    assert redact(given) == shown
