"""Build the parser of `ray-distill` and run a command. Parsing imports no slow module."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ray_distill.cli import INTERRUPTED, STOPPED, commands
from ray_distill.cli.last_resort import ReaderGone, guarded_streams, last_resort, secrets_of
from ray_distill.errors import DistillError, OutputError
from ray_distill.redact import hiding, secrets_in
from ray_distill.storage.proxies import keep_loopback_direct

if TYPE_CHECKING:
    from ray_distill.config import Campaign

#: Failures of a named file that its owner can mend, wherever a library or this package meets them.
_OF_THE_MACHINE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    }
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command that runs a stage of a campaign; each has a job file in ``jobs/``."""

    name: str
    text: str
    command: "Callable[[Campaign, argparse.Namespace], Any]"
    #: Name of the option that replaces the campaign's latest result, and its help.
    reference: tuple[str, str] | None = None
    #: Name of the function that renders the result; None prints JSON.
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
        text="let the teacher continue prompts; labelling and training use the result",
        command=commands.write,
        reference=("snapshot", "SnapshotRef (JSON or file) of the prompts; default: the campaign's latest"),
    ),
    Stage(
        name="label",
        text="let the teacher label the rows that are not in the store yet",
        command=commands.label,
        reference=("snapshot", "SnapshotRef (JSON or file); default: the campaign's latest"),
    ),
    Stage(
        name="train",
        text="train the student and its baselines from stored labels",
        command=commands.train,
        reference=("labels", "LabelSetRef (JSON or file); default: the campaign's latest"),
    ),
    Stage(
        name="sweep",
        text="train the students of the section sweep, several at the same time, and compare them",
        command=commands.sweep,
        show="show_sweep",
    ),
    Stage(
        name="evaluate",
        text="evaluate the student on the test split",
        command=commands.evaluate,
        reference=("students", "students by arm, as `train` printed them (or a file); default: the campaign's latest"),
        show="show_report",
    ),
    Stage(
        name="promote",
        text="decide on the student, record the decision and register the model",
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
    """Run one command; with ``--json`` its result is the last line of stdout."""
    given = list(sys.argv[1:] if argv is None else argv)
    with guarded_streams(), hiding(secrets_of(os.environ) | secrets_in(given)):
        try:
            status = _run(given)
            sys.stdout.flush()
        except DistillError as error:
            _end(f"error: {error}")
            return commands.FAILED
        except ReaderGone:  # `head`, for example, has read enough
            return commands.FAILED
    return status


def _run(argv: Sequence[str]) -> int:
    command = "ray-distill"
    try:
        options = build_parser().parse_args(argv)
        command = getattr(options, "name", options.command.__name__)
        keep_loopback_direct()
        return int(options.command(options))
    except (DistillError, ReaderGone):
        raise
    except SystemExit:  # of a help, or of wrong arguments
        sys.stdout.flush()
        raise
    except KeyboardInterrupt:
        _end(STOPPED)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort
        if isinstance(error, OSError) and error.filename and error.errno in _OF_THE_MACHINE:
            from ray_distill.storage.remote import translate

            raise translate(error, str(error.filename), "use it") from error
        _end(last_resort(command, error))
        return commands.FAILED


def _end(text: str) -> None:
    """Write the last line to stderr, after flushing stdout.

    The log of a cluster's job contains both streams.
    """
    with suppress(OutputError, ReaderGone):
        sys.stdout.flush()
    sys.stderr.write(text + "\n")


class _Version(argparse.Action):
    """Print the version; it takes a moment to find."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            found = metadata.version("ray-distill")
        except metadata.PackageNotFoundError:  # sent to a cluster with a job
            found = "(not installed)"
        sys.stdout.write(f"{parser.prog} {found}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ray-distill",
        description="Distil a large teacher into a small student: freeze traffic, label it once, "
        "train from the labels, evaluate, decide.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
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
    _schema(subparsers)
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
            help="continue from finished arms and checkpoints; --no-resume starts again",
        )
    if stage.name == "promote":
        parser.add_argument(
            "--verify",
            action="store_true",
            help="decide nothing: compare the alias with the decision chain, and point it at the champion",
        )
    parser.add_argument("--dry-run", action="store_true", help="check all that can be checked, change nothing")
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=commands.campaign_stage, name=stage.name, stage=stage.command, show=stage.show)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set`` and the config, as a positional or as ``--config``, which jobs receive."""
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
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def _quickstart(subparsers: Any) -> None:
    text = "distil a digit classifier, end to end, on this machine"
    parser = subparsers.add_parser("quickstart", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--output", default="distill/quickstart", help="folder for all files of the quickstart")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    parser.add_argument("--address", help="an existing Ray cluster; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=commands.quickstart)


def _plan(subparsers: Any) -> None:
    text = "forecast the bytes, hours and money of labelling from a few rows, and compare ways to store the labels"
    parser = subparsers.add_parser("plan", help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=commands.plan, name="plan", dry_run=False)


def _audit(subparsers: Any) -> None:
    text = "verify a label store: digests, coverage, duplicates, mass, orphans"
    parser = subparsers.add_parser("audit", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--snapshot", help="a snapshot that must be covered: its URL, or a SnapshotRef (JSON or file)")
    parser.add_argument(
        "--clean", action="store_true", help="delete files that no record names and no labeller is writing"
    )
    parser.add_argument("--yes", action="store_true", help="with --clean: delete them even where they are many")
    parser.add_argument("--live", metavar="CONFIG", help="also label a sample again with the teacher of this campaign")
    parser.add_argument("--sample", type=int, default=64, help="number of rows in that sample (default: 64)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a field of CONFIG")
    parser.add_argument("--address", help="an existing Ray cluster for the teacher; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=commands.audit)


def _inspect(subparsers: Any) -> None:
    text = "show one row of a label store: most likely classes, mass of the rest, layers"
    parser = subparsers.add_parser("inspect", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--row", required=True, help="id of the row, or its first digits")
    parser.add_argument("--snapshot", help="show the input too: a snapshot's URL, or a SnapshotRef (JSON or file)")
    _json_argument(parser)
    parser.set_defaults(command=commands.inspect)


def _export(subparsers: Any) -> None:
    text = "write a label store as plain Parquet, readable by other tools"
    parser = subparsers.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("target", help="URL of a new folder")
    parser.add_argument("--hidden", action="store_true", help="export hidden states too")
    _json_argument(parser)
    parser.set_defaults(command=commands.export)


def _submit(subparsers: Any) -> None:
    text = "send a job to a Ray cluster, follow its log, return its exit status"
    parser = subparsers.add_parser("submit", help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    parser.add_argument("--job", default="pipeline", help="a file in jobs/ without its suffix (default: pipeline)")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the cluster's dashboard")
    parser.add_argument("--working-dir", default=".", help="the folder that contains jobs/")
    parser.add_argument("--runtime-env", default="{}", help="Ray runtime environment to add, as JSON")
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help="labels of the job")
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="TEXT",
        help="a further argument of the job, e.g. --argument=--snapshot --argument='{…}'",
    )
    parser.add_argument(
        "--ship-package", action="store_true", help="send this installation of ray_distill with the job"
    )
    parser.add_argument("--no-follow", action="store_true", help="return once the job is accepted")
    parser.set_defaults(command=commands.submit)


def _doctor(subparsers: Any) -> None:
    text = "report what this machine or cluster lacks, and how to fix it"
    parser = subparsers.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("config", nargs="?", help="a campaign's YAML file, to check its store and tracking server too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one field")
    parser.add_argument("--address", help="dashboard of a Ray cluster to check")
    _json_argument(parser)
    parser.set_defaults(command=commands.doctor)


def _schema(subparsers: Any) -> None:
    text = "print the JSON schema of a campaign's file, by which editors complete and check it"
    parser = subparsers.add_parser("schema", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=commands.schema)
