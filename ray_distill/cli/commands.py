"""Run the commands of `ray-distill`. Each command imports its stage when it is called."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from ray_distill.errors import ConfigError
from ray_distill.redact import redact

if TYPE_CHECKING:
    from ray_distill.config import Campaign
    from ray_distill.labels.tools.live_agreement import Agreement

#: Exit status of an error in the input, the configuration or the machine.
FAILED = 1

#: Command of which several processes may work on one output: they share the units.
SHARING = "label"


def quickstart(options: argparse.Namespace) -> int:
    """Run `ray-distill quickstart`."""
    from ray_distill.cli import quickstart as example

    if options.dry_run:
        return _print_plan(options, example.plan(options.output))
    return _print(options, example.quickstart(options.output, options.address), example.show)


def campaign_stage(options: argparse.Namespace) -> int:
    """Run the parser's choice, ``options.stage``, and render its result with ``options.show``."""
    return _stage(options, lambda config: options.stage(config, options), options.show)


def run(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill run`."""
    from ray_distill.runtime import campaign

    return campaign.run(config)


def snapshot(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill snapshot`."""
    from ray_distill.runtime import campaign

    return campaign.snapshot(config)


def write(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill write`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return campaign.write(config, resolve_references.prompts(config, options.snapshot))


def label(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill label`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return campaign.label(config, resolve_references.snapshot(config, options.snapshot))


def train(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill train`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return campaign.train(config, resolve_references.labels(config, options.labels), resume=options.resume)


def sweep(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill sweep`."""
    from ray_distill.runtime import campaign

    return campaign.sweep(config)


def evaluate(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill evaluate`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    return campaign.evaluate(config, resolve_references.students(config, options.students))


def promote(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill promote`."""
    from ray_distill.cli import resolve_references
    from ray_distill.runtime import campaign

    if options.verify:
        return campaign.verify_alias(config)
    return campaign.promote(config, resolve_references.report(config, options.report))


def relabel(config: "Campaign", options: argparse.Namespace) -> Any:
    """Run `ray-distill relabel`."""
    from ray_distill.runtime import campaign

    return campaign.relabel(config, options.source)


def plan(options: argparse.Namespace) -> int:
    """Run `ray-distill plan`."""
    return _stage(options, _forecast, "show_plan")


def _forecast(config: "Campaign") -> Any:
    from ray_distill.runtime.forecast import forecast

    return forecast.plan(config)


def audit(options: argparse.Namespace) -> int:
    """Run `ray-distill audit`; return 0 if the store is sound, 1 if not."""
    from ray_distill.cli import render_results, resolve_references
    from ray_distill.labels.tools.audit import audit as audit_store

    pinned = options.snapshot and resolve_references.snapshot_to_audit(options.snapshot)
    report = audit_store(options.store, pinned, clean=options.clean, **({"most": math.inf} if options.yes else {}))
    live = _audit_live(options) if options.live and report.ok else None
    if options.json:
        print(json.dumps(report.to_dict() | ({"live": live.to_dict()} if live else {})))
    else:
        print("\n".join([render_results.show_audit(report), *([render_results.show_agreement(live)] if live else [])]))
    return 0 if report.ok and not report.too_many and (live is None or live.ok) else FAILED


def _audit_live(options: argparse.Namespace) -> "Agreement":
    """Label a sample again and compare; called only for stores without damage."""
    from ray_distill.cli import resolve_references
    from ray_distill.cli.campaign_file.load import load_campaign
    from ray_distill.runtime.core import connection, session
    from ray_distill.runtime.labelling import live_audit

    if options.sample < 1:
        raise ConfigError(f"--sample must be at least 1 row, found {options.sample}")
    config = session.absolute(load_campaign(options.live, options.set))
    snapshot = resolve_references.snapshot(config, options.snapshot)
    with connection.connected(options.address):
        return live_audit.audit_live(config, options.store, snapshot, options.sample)


def inspect(options: argparse.Namespace) -> int:
    """Run `ray-distill inspect`."""
    from ray_distill.labels.tools.inspect import inspect_row, show_row

    report = inspect_row(options.store, options.row)
    if options.json:
        print(json.dumps(report.to_dict()))
        return 0
    shown = [show_row(report)]
    if options.snapshot:
        from ray_distill.cli import resolve_references
        from ray_distill.labels.store.label_store import open_store
        from ray_distill.labels.tools.show_input import show_input
        from ray_distill.tasks.catalogue import get_task

        inputs = get_task(open_store(options.store).manifest.task).inputs
        shown.append(show_input(resolve_references.snapshot_to_audit(options.snapshot), report.row_id, inputs.show))
    print("\n".join(shown))
    return 0


def export(options: argparse.Namespace) -> int:
    """Run `ray-distill export`."""
    from dataclasses import asdict

    from ray_distill.labels.tools.export import export_store

    done = export_store(options.store, options.target, hidden=options.hidden)
    print(json.dumps(asdict(done)) if options.json else f"{done.rows:,} rows in {done.files:,} files under {done.url}")
    return 0


def submit(options: argparse.Namespace) -> int:
    """Run `ray-distill submit`; return the job's exit status."""
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
    """Run `ray-distill doctor`; return 0 if no check fails."""
    from ray_distill.cli import doctor as examination

    config = _load(options) if options.config else None
    findings = examination.diagnose(config, address=options.address)
    print(examination.to_json(findings) if options.json else examination.render(findings))
    return 0 if examination.healthy(findings) else FAILED


def schema(options: argparse.Namespace) -> int:
    """Run `ray-distill schema`."""
    from ray_distill.cli.campaign_file.schema import campaign_schema

    print(json.dumps(campaign_schema(), indent=1, ensure_ascii=False))
    return 0


def _stage(options: argparse.Namespace, command: "Callable[[Campaign], Any]", show: str | None) -> int:
    """Load the config, connect to Ray, run a stage and print its result.

    With ``--json`` the result is the only text on stdout. The config is loaded first, so that an invalid one is
    reported before slow imports.
    """
    from ray_distill.cli.campaign_file.load import located_errors

    config = _load(options)
    if options.dry_run:
        with located_errors(options.config, options.set):
            lines = _plan_of(options, config)
        return _print_plan(options, lines)
    from ray_distill.runtime.core import at_work, connection

    with (
        redirect_stdout(sys.stderr) if options.json else nullcontext(),
        at_work.working(config, f"ray-distill {options.name}", shared=options.name == SHARING),
        connection.connected(options.address),
        located_errors(options.config, options.set),
    ):
        result = command(config)
    return _print(options, result, None if show is None else _renderer(show))


def _plan_of(options: argparse.Namespace, config: "Campaign") -> list[str]:
    from ray_distill.runtime import dry_run

    return (dry_run.plan_sweep if options.name == "sweep" else dry_run.plan)(config)


def _renderer(name: str) -> Callable[[Any], str]:
    from ray_distill.cli import render_plan, render_results

    renderers: dict[str, Callable[[Any], str]] = {
        "show_campaign": render_results.show_campaign,
        "show_plan": render_plan.show_plan,
        "show_report": render_results.show_report,
        "show_sweep": render_results.show_sweep,
    }
    return renderers[name]


def _print(options: argparse.Namespace, result: Any, show: Callable[[Any], str] | None) -> int:
    print(to_json(result) if options.json or show is None else redact(show(result)), flush=True)
    return 0


def to_json(result: Any) -> str:
    """Return a stage's result as one line of strict JSON; a dict of artifacts keeps its keys."""
    if isinstance(result, dict):
        return json.dumps({key: json.loads(to_json(value)) for key, value in result.items()}, allow_nan=False)
    text: str = result.to_json()
    return text


def _print_plan(options: argparse.Namespace, plan: Sequence[str]) -> int:
    lines = [redact(line) for line in plan]
    print(json.dumps({"plan": list(lines)}) if options.json else "\n".join(lines))
    return 0


def _load(options: argparse.Namespace) -> "Campaign":
    from ray_distill.cli.campaign_file.load import load_campaign

    return load_campaign(options.config, options.set)


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--runtime-env must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--runtime-env must be a JSON object like {{"env_vars": {{}}}}, found {redact(text)[:80]}')
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--metadata needs name=value, found {text!r}")
    return name, value
