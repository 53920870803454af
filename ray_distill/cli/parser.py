"""Build the parser of `ray-distill` and run the chosen command. Parsing imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_distill.cli import commands
from ray_distill.errors import DistillError

if TYPE_CHECKING:
    from ray_distill.config import Campaign

#: Exit status that a shell reports for Ctrl-C.
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command that runs over a campaign's config; each has a job file in ``jobs/``."""

    name: str
    text: str
    command: "Callable[[Campaign, argparse.Namespace], Any]"
    #: Option that overrides the campaign's latest result, and its help.
    reference: tuple[str, str] | None = None
    #: Function of `commands` that renders the result; None prints JSON.
    show: str | None = None


STAGES = (
    Stage(
        name="run",
        text="run every stage from source to verdict; finished stages are skipped",
        command=commands.run,
        show="show_campaign",
    ),
    Stage(name="snapshot", text="freeze the source", command=commands.snapshot),
    Stage(
        name="write",
        text="let the teacher continue prompts; the result is then labelled and learnt",
        command=commands.write,
        reference=("snapshot", "SnapshotRef (JSON or file) of the prompts; default: the campaign's latest"),
    ),
    Stage(
        name="label",
        text="let the teacher label the rows that the store does not hold yet",
        command=commands.label,
        reference=("snapshot", "SnapshotRef (JSON or file); default: the campaign's latest"),
    ),
    Stage(
        name="train",
        text="train student and baselines from stored labels",
        command=commands.train,
        reference=("labels", "LabelSetRef (JSON or file); default: the campaign's latest"),
    ),
    Stage(
        name="sweep",
        text="train the students of the section sweep, several at a time, and compare them",
        command=commands.sweep,
        show="show_sweep",
    ),
    Stage(
        name="evaluate",
        text="judge the student on the test split",
        command=commands.evaluate,
        reference=("students", "students by arm, as `train` printed them (or a file); default: the campaign's latest"),
        show="show_report",
    ),
    Stage(
        name="promote",
        text="decide, record, register",
        command=commands.promote,
        reference=("report", "EvalReport (JSON or file); default: the campaign's latest"),
    ),
    Stage(
        name="relabel",
        text="label the new rows of newer traffic and test for drift",
        command=commands.relabel,
        reference=("source", "file, folder or glob; default: snapshot.source, read again"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its result is the last line of stdout with ``--json``."""
    options = build_parser().parse_args(argv)
    try:
        status: int = options.command(options)
    except DistillError as error:
        _end(f"error: {error}")
        return commands.FAILED
    except KeyboardInterrupt:
        _end("\nstopped: run the same command again and it goes on where it was")
        return INTERRUPTED
    return status


def _end(text: str) -> None:
    """Write the last line; stdout is flushed first, because the log of a cluster's job holds both streams."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="ray-distill",
        description="Distil a large teacher into a small student: freeze traffic, label it once, "
        "train from the labels, judge, decide.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _quickstart(subparsers)
    for stage in STAGES:
        _campaign_command(subparsers, stage)
    _plan(subparsers)
    _audit(subparsers)
    _inspect(subparsers)
    _export(subparsers)
    _submit(subparsers)
    _doctor(subparsers)
    return parser


def _campaign_command(subparsers: Any, stage: Stage) -> None:
    parser = subparsers.add_parser(
        stage.name, help=stage.text, description=stage.text[0].upper() + stage.text[1:] + "."
    )
    _config_arguments(parser)
    if stage.reference is not None:
        parser.add_argument(f"--{stage.reference[0]}", help=stage.reference[1])
    if stage.name == "train":
        parser.add_argument(
            "--resume",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="go on from finished arms and checkpoints; --no-resume trains anew",
        )
    parser.add_argument("--dry-run", action="store_true", help="check everything that can be checked, change nothing")
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=commands.campaign_stage, name=stage.name, stage=stage.command, show=stage.show)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, as a positional or as ``--config`` (what the files in ``jobs/`` receive), and ``--set``."""
    config = parser.add_mutually_exclusive_group(required=True)
    config.add_argument("config", nargs="?", default=argparse.SUPPRESS, help="the campaign's YAML file")
    config.add_argument("--config", dest="config", metavar="CONFIG", help="the same, as a job receives it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one field, e.g. labels.signal.k=64; may be repeated",
    )
    _json_argument(parser)


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="stdout holds one JSON object and nothing else")


def _quickstart(subparsers: Any) -> None:
    text = "distil a digit classifier, end to end, on this machine"
    parser = subparsers.add_parser("quickstart", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--output", default="distill/quickstart", help="folder for everything it makes")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--address", help="an existing Ray cluster; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=commands.quickstart)


def _plan(subparsers: Any) -> None:
    text = "ask the teacher about a few rows: what labelling would take in bytes, hours and money, and which form fits"
    parser = subparsers.add_parser("plan", help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=commands.plan, name="plan", dry_run=False)


def _audit(subparsers: Any) -> None:
    text = "verify a label store: digests, coverage, duplicates, mass, orphans"
    parser = subparsers.add_parser("audit", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--snapshot", help="a snapshot that must be covered: its URL, or a SnapshotRef (JSON or file)")
    parser.add_argument("--clean", action="store_true", help="delete files that no record names and no labeller writes")
    parser.add_argument("--live", metavar="CONFIG", help="also label a sample again with the teacher of this campaign")
    parser.add_argument("--sample", type=int, default=64, help="rows of that sample (default: 64)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a field of CONFIG")
    parser.add_argument("--address", help="an existing Ray cluster for the teacher; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=commands.audit)


def _inspect(subparsers: Any) -> None:
    text = "show one row of a label store: likeliest classes, mass of the rest, layers"
    parser = subparsers.add_parser("inspect", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--row", required=True, help="id of the row, or the first digits of it")
    parser.add_argument("--snapshot", help="show text or image too: a snapshot's URL, or SnapshotRef (JSON or file)")
    _json_argument(parser)
    parser.set_defaults(command=commands.inspect)


def _export(subparsers: Any) -> None:
    text = "write a label store as plain Parquet that any tool reads"
    parser = subparsers.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("target", help="URL of a new folder")
    parser.add_argument("--hidden", action="store_true", help="hidden states too")
    _json_argument(parser)
    parser.set_defaults(command=commands.export)


def _submit(subparsers: Any) -> None:
    text = "send a job to a Ray cluster, follow its log, return its exit status"
    parser = subparsers.add_parser("submit", help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    parser.add_argument("--job", default="pipeline", help="a file in jobs/ without its suffix (default: pipeline)")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the cluster's dashboard")
    parser.add_argument("--working-dir", default=".", help="the folder that holds jobs/")
    parser.add_argument("--runtime-env", default="{}", help="Ray runtime environment to add, as JSON")
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help="labels of the job")
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="TEXT",
        help="a further argument of the job, e.g. --argument=--snapshot --argument='{…}'",
    )
    parser.add_argument("--ship-package", action="store_true", help="send this ray_distill along")
    parser.add_argument("--no-follow", action="store_true", help="return once the job is accepted")
    parser.set_defaults(command=commands.submit)


def _doctor(subparsers: Any) -> None:
    text = "name what this machine or cluster lacks, and how to mend it"
    parser = subparsers.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("config", nargs="?", help="a campaign's YAML file, to check its store and tracking server too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one field")
    parser.add_argument("--address", help="a Ray cluster's dashboard that should answer")
    _json_argument(parser)
    parser.set_defaults(command=commands.doctor)
