"""Check this machine and the services of a campaign; report problems and how to fix them.

Each check is one small function that returns one `Finding`. A check that cannot run reports this as its own warning or
failure, and the other checks still run.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ray_distill.cli.doctor_checks import (
    Finding,
    check_campaign,
    check_cluster,
    check_compiler,
    check_cores,
    check_device,
    check_disk,
    check_encoding,
    check_gpus,
    check_memory,
    check_ninja,
    check_packages,
    check_python,
    check_shared_memory,
    check_store,
    check_token,
    check_tracking,
)
from ray_distill.config import Campaign
from ray_distill.redact import redact
from ray_distill.tracking.place import Place, place_of


def diagnose(
    config: Campaign | None = None,
    *,
    store_url: str | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
) -> list[Finding]:
    """Check this machine and, if given, the label store, the tracking server and the cluster.

    Args:
        config: a campaign; all that its dry run checks, its store, tracking server and resources are checked too.
        store_url: label store to check instead of the config's.
        tracking_uri: tracking server to check instead of the config's.
        address: dashboard of a cluster, ``http://HEAD:8265``.
    """
    store = store_url or (config.store_url if config else None)
    place = None if config is None else _place(config)
    tracking = tracking_uri or (place.uri if place else None)
    output = config.output_url if config else "."
    checks: list[Callable[[], Finding]] = [] if config is None else [lambda: check_campaign(config)]
    checks += [
        check_python,
        check_packages,
        check_encoding,
        check_compiler,
        check_ninja,
        check_device,
        lambda: check_cores(config),
        lambda: check_gpus(config),
        check_memory,
        check_shared_memory,
        lambda: check_disk(output),
        lambda: check_token(os.environ),
    ]
    if address is not None:
        checks.append(lambda: check_cluster(address))
    if store is not None:
        checks.append(lambda: check_store(store))
    if tracking is not None:
        origin = "" if tracking_uri or place is None else place.uri_from or "tracking.uri is not set"
        checks.append(lambda: check_tracking(tracking, origin=origin))
    return [_shown(check()) for check in checks]


def _shown(found: Finding) -> Finding:
    """Return a finding without secrets."""
    return replace(found, found=redact(found.found), mend=found.mend and redact(found.mend))


def _place(config: Campaign) -> Place | None:
    return place_of(config.tracking, campaign=config.campaign, output_url=config.output_url)


def render(findings: Sequence[Finding]) -> str:
    """Format findings for a terminal: one line each, remedies below failures, a summary last."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.ok:<4}  {finding.name:<{width}}  {finding.found}")
        if finding.mend:
            lines.append(f"{'':<4}  {'':<{width}}  → {finding.mend}")
    return "\n".join([*lines, _summary(findings)])


def to_json(findings: Sequence[Finding]) -> str:
    """Return findings as one line of JSON: ``{"ok": no failure, "findings": [...]}``."""
    return json.dumps({"ok": healthy(findings), "findings": [asdict(finding) for finding in findings]})


def healthy(findings: Sequence[Finding]) -> bool:
    """Return whether no check failed; warnings do not count."""
    return all(finding.ok != "fail" for finding in findings)


def _summary(findings: Sequence[Finding]) -> str:
    failed = sum(finding.ok == "fail" for finding in findings)
    warned = sum(finding.ok == "warn" for finding in findings)
    return f"{len(findings)} checks: {failed} failed, {warned} warnings"
