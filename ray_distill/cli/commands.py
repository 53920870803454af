"""The command line. Parsing imports nothing heavy; each command imports what it runs."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray_distill.errors import ConfigError, DistillError

if TYPE_CHECKING:
    from ray_distill.config import Campaign
    from ray_distill.labels.tools.live_agreement import Agreement

#: Exit statuses: an error of the user's or the machine's, and what a shell reports for Ctrl-C.
FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its result is the last line of stdout with ``--json``."""
    options = build_parser().parse_args(argv)
    try:
        status: int = options.command(options)
    except DistillError as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped: run the same command again and it goes on where it was\n")
        return INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="ray-distill",
        description="Distil a large teacher into a small student: freeze traffic, label it once, "
        "train from the labels, judge, decide.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _quickstart(commands)
    stages: list[tuple[str, str, Callable[[argparse.Namespace], int], dict[str, str]]] = [
        ("run", "the whole way from source to verdict; finished stages are skipped", run, {}),
        ("snapshot", "freeze the source", snapshot, {}),
        (
            "write",
            "let the teacher write behind prompts what is then labelled and learnt",
            write,
            {"snapshot": "SnapshotRef (JSON or file) of the prompts; default: the campaign's latest"},
        ),
        (
            "label",
            "let the teacher label what the store does not hold yet",
            label,
            {"snapshot": "SnapshotRef (JSON or file); default: the campaign's latest"},
        ),
        (
            "train",
            "train student and baselines from stored labels",
            train,
            {"labels": "LabelSetRef (JSON or file); default: the campaign's latest"},
        ),
        ("sweep", "train the students of the section sweep, several at a time, and compare them", sweep, {}),
        (
            "evaluate",
            "judge the student on the test split",
            evaluate,
            {"students": "students by arm, as `train` printed them; default: the campaign's latest"},
        ),
        (
            "promote",
            "decide, record, register",
            promote,
            {"report": "EvalReport (JSON or file); default: the campaign's latest"},
        ),
        (
            "relabel",
            "label the new rows of newer traffic and test for drift",
            relabel,
            {"source": "file, folder or glob; default: snapshot.source, read again"},
        ),
    ]
    for name, text, command, resolve_references in stages:
        _campaign_command(commands, name, text, command, resolve_references)
    _plan(commands)
    _audit(commands)
    _inspect(commands)
    _export(commands)
    _submit(commands)
    _doctor(commands)
    return parser


def _campaign_command(
    commands: Any, name: str, text: str, command: Callable[[argparse.Namespace], int], references: dict[str, str]
) -> None:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    for reference, meaning in resolve_references.items():
        parser.add_argument(f"--{reference}", help=meaning)
    if name == "train":
        parser.add_argument(
            "--resume",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="go on from finished arms and checkpoints; --no-resume trains anew",
        )
    parser.add_argument("--dry-run", action="store_true", help="check everything that can be checked, change nothing")
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=command, name=name)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the campaign's YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one field, e.g. labels.signal.k=64; may be repeated",
    )
    _json_argument(parser)


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")


def _quickstart(commands: Any) -> None:
    text = "distil a digit classifier, end to end, on this machine"
    parser = commands.add_parser("quickstart", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--output", default="distill/quickstart", help="folder for everything it makes")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--address", help="an existing Ray cluster; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=quickstart)


def _plan(commands: Any) -> None:
    text = "ask the teacher about a few rows: what labelling would take in bytes, hours and money, and which form fits"
    parser = commands.add_parser("plan", help=text, description=text[0].upper() + text[1:] + ".")
    _config_arguments(parser)
    parser.add_argument("--address", help="an existing Ray cluster (auto, ray://…); default: an embedded Ray")
    parser.set_defaults(command=plan, dry_run=False)


def _audit(commands: Any) -> None:
    text = "verify a label store: digests, coverage, duplicates, mass, orphans"
    parser = commands.add_parser("audit", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--snapshot", help="a snapshot that must be covered: its URL, or a SnapshotRef (JSON or file)")
    parser.add_argument("--clean", action="store_true", help="delete files that no record names and no labeller writes")
    parser.add_argument("--live", metavar="CONFIG", help="also label a sample again with the teacher of this campaign")
    parser.add_argument("--sample", type=int, default=64, help="rows of that sample (default: 64)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a field of CONFIG")
    parser.add_argument("--address", help="an existing Ray cluster for the teacher; default: an embedded Ray")
    _json_argument(parser)
    parser.set_defaults(command=audit)


def _inspect(commands: Any) -> None:
    text = "show one row of a label store: likeliest classes, mass of the rest, layers"
    parser = commands.add_parser("inspect", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("--row", required=True, help="id of the row, or the first digits of it")
    parser.add_argument("--snapshot", help="show text or image too: a snapshot's URL, or SnapshotRef (JSON or file)")
    _json_argument(parser)
    parser.set_defaults(command=inspect)


def _export(commands: Any) -> None:
    text = "write a label store as plain Parquet that any tool reads"
    parser = commands.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", help="URL of the label store")
    parser.add_argument("target", help="URL of a new folder")
    parser.add_argument("--hidden", action="store_true", help="hidden states too")
    _json_argument(parser)
    parser.set_defaults(command=export)


def _submit(commands: Any) -> None:
    text = "send a job to a Ray cluster, follow its log, return its exit status"
    parser = commands.add_parser("submit", help=text, description=text[0].upper() + text[1:] + ".")
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
    parser.set_defaults(command=submit)


def _doctor(commands: Any) -> None:
    text = "name what this machine or cluster lacks, and how to mend it"
    parser = commands.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("config", nargs="?", help="a campaign's YAML file, to check its store and tracking server too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one field")
    parser.add_argument("--address", help="a Ray cluster's dashboard that should answer")
    _json_argument(parser)
    parser.set_defaults(command=doctor)


def quickstart(options: argparse.Namespace) -> int:
    """`ray-distill quickstart`."""
    from ray_distill.cli import quickstart as example

    if options.dry_run:
        return _print_plan(options, example.plan(options.output))
    return _print(options, example.quickstart(options.output, options.address), example.show)


def run(options: argparse.Namespace) -> int:
    """`ray-distill run`."""
    from ray_distill.cli import render_results
    from ray_distill.runtime import campaign

    return _stage(options, lambda config: campaign.run(config), render_results.show_campaign)


def snapshot(options: argparse.Namespace) -> int:
    """`ray-distill snapshot`."""
    from ray_distill.runtime import campaign

    return _stage(options, campaign.snapshot)


def write(options: argparse.Namespace) -> int:
    """`ray-distill write`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return _stage(options, lambda config: campaign.write(config, resolve_references.prompts(config, options.snapshot)))


def label(options: argparse.Namespace) -> int:
    """`ray-distill label`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return _stage(options, lambda config: campaign.label(config, resolve_references.snapshot(config, options.snapshot)))


def train(options: argparse.Namespace) -> int:
    """`ray-distill train`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return _stage(
        options,
        lambda config: campaign.train(config, resolve_references.labels(config, options.labels), resume=options.resume),
    )


def sweep(options: argparse.Namespace) -> int:
    """`ray-distill sweep`."""
    from ray_distill.cli import render_results
    from ray_distill.runtime import campaign

    return _stage(options, campaign.sweep, render_results.show_sweep, campaign.plan_sweep)


def evaluate(options: argparse.Namespace) -> int:
    """`ray-distill evaluate`."""
    from ray_distill.cli import render_results, resolve_references
    from ray_distill.runtime import campaign

    return _stage(
        options,
        lambda config: campaign.evaluate(config, resolve_references.students(config, options.students)),
        render_results.show_report,
    )


def promote(options: argparse.Namespace) -> int:
    """`ray-distill promote`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return _stage(options, lambda config: campaign.promote(config, resolve_references.report(config, options.report)))


def relabel(options: argparse.Namespace) -> int:
    """`ray-distill relabel`."""
    from ray_distill.runtime import campaign

    return _stage(options, lambda config: campaign.relabel(config, options.source))


def plan(options: argparse.Namespace) -> int:
    """`ray-distill plan`."""
    from ray_distill.cli import render_plan
    from ray_distill.runtime.forecast import forecast

    return _stage(options, forecast.plan, render_plan.show_plan)


def audit(options: argparse.Namespace) -> int:
    """`ray-distill audit`: 0 if the store is sound, 1 if not."""
    from ray_distill.cli import render_results, resolve_references
    from ray_distill.labels.tools.audit import audit as audit_store

    pinned = options.snapshot and resolve_references.snapshot_to_audit(options.snapshot)
    report = audit_store(options.store, pinned, clean=options.clean)
    live = _audit_live(options) if options.live and report.ok else None
    if options.json:
        print(json.dumps(report.to_dict() | ({"live": live.to_dict()} if live else {})))
    else:
        print("\n".join([render_results.show_audit(report), *([render_results.show_agreement(live)] if live else [])]))
    return 0 if report.ok and (live is None or live.ok) else FAILED


def _audit_live(options: argparse.Namespace) -> "Agreement":
    """Label a sample again; what is damaged already is not worth a teacher's time."""
    from ray_distill.cli import resolve_references
    from ray_distill.config import load_config
    from ray_distill.runtime.core import connection, session
    from ray_distill.runtime.labelling import live_audit

    if options.sample < 1:
        raise ConfigError(f"--sample must be at least 1 row, found {options.sample}")
    config = session.absolute(load_config(options.live, tuple(options.set)))
    snapshot = resolve_references.snapshot(config, options.snapshot)
    with connection.connected(options.address):
        return live_audit.audit_live(config, options.store, snapshot, options.sample)


def inspect(options: argparse.Namespace) -> int:
    """`ray-distill inspect`."""
    from ray_distill.labels.tools.inspect import inspect_row, show_row

    report = inspect_row(options.store, options.row)
    if options.json:
        print(json.dumps(report.to_dict()))
        return 0
    shown = [show_row(report)]
    if options.snapshot:
        from ray_distill.cli import resolve_references
        from ray_distill.labels.tools.show_input import show_input

        shown.append(show_input(resolve_references.snapshot_to_audit(options.snapshot), report.row_id))
    print("\n".join(shown))
    return 0


def export(options: argparse.Namespace) -> int:
    """`ray-distill export`."""
    from dataclasses import asdict

    from ray_distill.labels.tools.export import export_store

    done = export_store(options.store, options.target, hidden=options.hidden)
    print(json.dumps(asdict(done)) if options.json else f"{done.rows:,} rows in {done.files:,} files under {done.url}")
    return 0


def submit(options: argparse.Namespace) -> int:
    """`ray-distill submit`: the job's own exit status."""
    from ray_distill.cli.submit import submit as send

    return send(
        job=options.job,
        config_path=options.config,
        address=options.address,
        overrides=options.set,
        arguments=options.argument,
        working_dir=options.working_dir,
        runtime_env=_runtime_env(options.runtime_env),
        metadata=dict(_pair(item) for item in options.metadata),
        ship_package=options.ship_package,
        follow=not options.no_follow,
        as_json=options.json,
    )


def doctor(options: argparse.Namespace) -> int:
    """`ray-distill doctor`: 0 if nothing fails."""
    from ray_distill.cli import doctor as examination

    config = _load(options) if options.config else None
    findings = examination.diagnose(config, address=options.address)
    print(examination.to_json(findings) if options.json else examination.render(findings))
    return 0 if examination.healthy(findings) else FAILED


def _stage(
    options: argparse.Namespace,
    command: "Callable[[Campaign], Any]",
    show: Callable[[Any], str] | None = None,
    plan_of: "Callable[[Campaign], list[str]] | None" = None,
) -> int:
    """Load the config, have Ray, run a stage, print its result."""
    from ray_distill.runtime import campaign
    from ray_distill.runtime.core import connection

    config = _load(options)
    if options.dry_run:
        return _print_plan(options, (plan_of or campaign.plan)(config))
    with connection.connected(options.address):
        result = command(config)
    return _print(options, result, show)


def _print(options: argparse.Namespace, result: Any, show: Callable[[Any], str] | None) -> int:
    from ray_distill.cli.job_entrypoint import to_json

    print(to_json(result) if options.json or show is None else show(result))
    return 0


def _print_plan(options: argparse.Namespace, lines: Sequence[str]) -> int:
    print(json.dumps({"plan": list(lines)}) if options.json else "\n".join(lines))
    return 0


def _load(options: argparse.Namespace) -> "Campaign":
    from ray_distill.config import load_config

    return load_config(options.config, tuple(options.set))


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--runtime-env must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--runtime-env must be a JSON object like {{"env_vars": {{}}}}, found {text[:80]}')
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--metadata needs name=value, found {text!r}")
    return name, value
