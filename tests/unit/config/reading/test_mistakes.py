"""All mistakes of a file at once, each with the nearest name and its line; none of them a consequence of another."""

from pathlib import Path

import pytest

from ray_distill.config import load_config
from ray_distill.config.load import open_document
from ray_distill.config.reading.mistakes import read
from ray_distill.errors import ConfigError

RIGHT = """\
campaign: c
task: text_classification
snapshot:
  source: s3://traffic/rows
labels:
  teacher: {model: "m:f"}
"""


def _wrong(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    heading, *lines = str(error.value).split("\n  ")
    assert heading == f"{path}: {len(lines)} wrong field(s)"
    return lines


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("gates: {}", "gates: unknown field; did you mean gate? [line 7]"),
        ("temperature: 2", "temperature: unknown field; `temperature` belongs in sequences [line 7]"),
        (
            "student: {epochs: 2}",
            "student.epochs: unknown field; `epochs` belongs in student.training or plan [line 7]",
        ),
        ("gate:", "gate: is empty: put settings below it, or leave it out for its default [line 7]"),
        ("sweep:", "sweep: is empty: put settings below it, or leave it out for its default [line 7]"),
        ("gate: 3", "gate: should be a section, with its settings below it; found 3 [line 7]"),
        ("seed:", "seed: is empty: give it a value, or leave it out for its default [line 7]"),
        ("seed: yes", "seed: yes is read as true, which is not allowed here [line 7]"),
        ("cost: {currency: no}", "cost.currency: no is read as false: put it into quotes, 'no' [line 7]"),
        ("cost: {currency: 2026-11-20}", "is read as a date: put it into quotes, '2026-11-20' [line 7]"),
        ("cost: {currency: 1e3}", "cost.currency: 1e3 is read as a number: put it into quotes, '1e3' [line 7]"),
        ("output: ${HOME}/out", "output: ${HOME} is not replaced: a campaign's file reads no variables"),
        ("output: ~/out", "output: ~ is not replaced"),
        ("tracking: {uri: 'http://$HOST'}", "tracking.uri: $HOST is not replaced"),
        ("student: {ceiling: '{{ data }}/rows'}", "student.ceiling: {{ data }} is not replaced"),
        ("student: {training: {schedule: cosin}}", "did you mean cosine?; found 'cosin' [line 7]"),
        ("gate: {alias: latest}", "gate.alias: MLflow reserves `latest`"),
        ("campaign: d", "campaign: is set twice, on line 1 and on line 7: leave one out [line 1]"),
        ("on: 1", "(whole file): has a field whose name YAML reads as true, as it does with yes, no, on, off and ~"),
        ("cost: {core_hour: '1'}", "cost.core_hour: is a text: write a number without quotes; found '1' [line 7]"),
        ("tracking: {enabled: 'yes'}", "tracking.enabled: is a text: write true or false without quotes; found 'yes'"),
        ("tracking: {enabled: 1}", "tracking.enabled: should be true or false; found 1 [line 7]"),
        (
            "seed: 9223372036854775808",
            "seed: should be a whole number of less than 2^63, of either sign; found one of 64 bits",
        ),
        (
            "student: {losses: {soft: {weight: -.inf}}}",
            "student.losses.soft.weight: input should be a finite number; found -inf",
        ),
        ("sequences: {temperature: 1e-300}", "sequences.temperature: is 1e-300, beyond the numbers of 32 bits"),
        ("output: memory://x", "output: memory:// is empty in every new process"),
        ("output: 'ftp://u:p@h/x'", "output: has a password, a key or a signature in it"),
        ("student: {losses: {soft: {weight: 0}}}", "student.losses: every loss has the weight 0"),
        ("student: {losses: {soft: {weight: {linear: [0, 0]}}}}", "student.losses: every loss has the weight 0"),
        ("student: {losses: {soft: {temperature: .nan}}}", "student.losses.soft.temperature: should be a finite"),
        ("tracking: {uri: 'sqlite:///~/x.db'}", "begins with ~, which is not replaced here: write the whole path"),
        ("output: '~ann/x'", "output: ~ann is not replaced"),
        ("student: {model: {arguments: {api_key: …}}}", "which stands for a secret that was removed from this file"),
        ("sweep: {grid: {student.epochs: []}}", "sweep.grid.student.epochs: tuple should have at least 1 item"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(tmp_path: Path, more: str, says: str) -> None:
    """Field, what was found, what is meant, and the line."""
    (line,) = _wrong(tmp_path, f"{RIGHT}{more}\n")
    assert says in line


def test_alternatives_of_a_field_are_one_mistake(tmp_path: Path) -> None:
    """A union's names are not fields of the file."""
    (line,) = _wrong(tmp_path, RIGHT.replace("s3://traffic/rows", "3.5"))
    assert line == "snapshot.source: 3.5 is read as a number: put it into quotes, '3.5' [line 4]"
    (line,) = _wrong(tmp_path, RIGHT.replace("s3://traffic/rows", "{a: b}"))
    assert line.startswith("snapshot.source: ") and " or " in line and line.endswith("[line 4]")


def test_mistakes_of_all_kinds_come_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    """A wrong type, an unknown name, and a rule over a section, which pydantic checks last."""
    text = RIGHT + "  signal: {k: none}\nstudent:\n  training: {epoch: 3}\ngate: {limits: {ece: {}}}\n"
    lines = _wrong(tmp_path, text.replace("rows\n", "rows\n  splits: {train: 0.9}\n"))
    assert [line.partition(":")[0] for line in lines] == [
        "snapshot.splits",
        "labels.signal.k",
        "student.training.epoch",
        "gate.limits.ece",
    ]
    assert "the four shares must sum to 1, found 1.05" in lines[0]


def test_no_mistake_is_a_consequence_of_another(tmp_path: Path) -> None:
    """A misspelt share leaves a default in its place, and a wrong one as well: neither makes the sum wrong."""
    splits = "rows\n  splits: {train: 0.8, valid: 0.1, test: 0.05}\n"
    assert len(_wrong(tmp_path, RIGHT.replace("rows\n", splits))) == 1
    splits = "rows\n  splits: {train: many, validation: 0.1}\n"
    assert len(_wrong(tmp_path, RIGHT.replace("rows\n", splits))) == 1
    assert _wrong(tmp_path, RIGHT.replace("model", "modle")) == [
        "labels.teacher.modle: unknown field; did you mean model? [line 6]"
    ]


def test_a_missing_field_has_the_line_of_its_section(tmp_path: Path) -> None:
    """A whole section may be missing too."""
    assert _wrong(tmp_path, RIGHT.replace('{model: "m:f"}', "{}")) == [
        "labels.teacher.model: is required but missing [line 6]"
    ]
    assert _wrong(tmp_path, "task: text_classification\n") == [
        "campaign: is required but missing",
        "snapshot: is required but missing",
        "labels: is required but missing",
    ]


def test_an_override_is_named_as_the_place(tmp_path: Path) -> None:
    """It replaces what the file has, mistakes included."""
    assert _wrong(tmp_path, RIGHT, "seed=yes") == ["seed: yes is read as true, which is not allowed here [--set]"]
    path = tmp_path / "c.yaml"
    path.write_text(f"{RIGHT}seed: 010\n")
    assert load_config(path, ("seed=10", "student.training.learning_rate=1e-3")).seed == 10


def test_a_repaired_campaign_tells_what_is_not_its_own(tmp_path: Path) -> None:
    """Further checks leave out what follows from a default or a placeholder."""
    path = tmp_path / "c.yaml"
    path.write_text(RIGHT.replace('{model: "m:f"}', "{}") + "gate: {limits: {acc: {min: 1}}, alias: latest}\n")
    reading = read(open_document(path))
    assert reading.config is not None and reading.config.gate.limits is not None
    assert set(reading.mistakes) == {"labels.teacher.model", "gate.alias"}
    assert reading.concerns("labels.teacher") and reading.concerns("gate.alias")
    assert not reading.concerns("gate.limits.acc")


def test_free_settings_keep_what_yaml_reads(tmp_path: Path) -> None:
    """Arguments, overrides and trials may have any value; texts may have what a shell would replace."""
    path = tmp_path / "c.yaml"
    path.write_text(
        RIGHT.replace('"m:f"', '"m:f", arguments: {flag: yes, rate: 1e-3, day: 2026-11-20}')
        + "evaluation: {prompts: ['costs $5 or ${x}', '~']}\nstudent: {model: {overrides: {dropout: 1e-1}}}\n"
        + "sequences: null\n"
    )
    config = load_config(path)
    assert config.labels.teacher.arguments["flag"] is True and config.labels.teacher.arguments["rate"] == 1e-3
    assert config.student.model.overrides == {"dropout": 0.1}


def test_thousands_of_mistakes_are_counted_and_some_are_explained(tmp_path: Path) -> None:
    """A file of another kind is refused in less than the time that suggestions for each name would take."""
    path = tmp_path / "c.yaml"
    path.write_text(RIGHT + "".join(f"k{number}: 1\n" for number in range(1000)))
    with pytest.raises(ConfigError, match="1000 wrong field") as error:
        load_config(path)
    assert len(str(error.value).splitlines()) == 102 and str(error.value).endswith("and 900 more")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("a." * 100 + "b=1", "names more than 50 sections"),
        ("labels.teacher.arguments=" + "[" * 400 + "]" * 400, "nested more than 50 deep"),
        ("seed=&a [*a]", "contain themselves"),
        (f"seed={'9' * 5000}", "more than 4,300 digits"),
    ],
)
def test_an_override_is_bounded_as_the_file_is(tmp_path: Path, override: str, says: str) -> None:
    """One line, of a length that a terminal shows."""
    path = tmp_path / "c.yaml"
    path.write_text(RIGHT)
    with pytest.raises(ConfigError, match=says) as error:
        load_config(path, (override,))
    assert len(str(error.value)) < 300
