"""Point 7: streams that cannot be written, Ctrl-C at any import, outputs of any kind, and wrong command lines."""

import subprocess
import sys
from collections.abc import Callable

from tests.labs.hostile.ground import Ran, Site
from tests.labs.hostile.tries import Try

SECRET = "c4nary99X7qpL9mRt2"
#: Commands that end soon, as a shell has them.
COMMANDS = ("schema", "--help", "--version", "plan --help", "quickstart --dry-run", "promote {config} --dry-run")
INSPECT = "inspect {store} --row {row}"
#: What is done to the streams, the exit statuses that are right, and what stderr says.
STREAMS = {
    "> /dev/full": ((1,), "error: stdout cannot be written (No space left on device)"),
    "| true": ((0, 1), ""),
    ">&-": ((0,), ""),
    "2> /dev/full": ((0,), ""),
    "2>&-": ((0,), ""),
}
#: Modules whose import is interrupted, from the first to the slowest.
MODULES = ("argparse", "ray_distill.redact", "pydantic", "yaml", "numpy", "torch", "transformers")

_INTERRUPTED = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and "ray_distill.cli" in sys.modules:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
sys.meta_path.insert(0, Interrupt())
sys.modules.pop("argparse", None)
sys.argv = ["ray-distill", "run", {config!r}, "--dry-run"]
runpy.run_module("ray_distill.cli", run_name="__main__")
"""
#: Outputs, and what their refusal says behind the field's name.
OUTPUTS = {
    "https://host/out": "https:// cannot create a file exclusively",
    "ftp://host/out": "ftp:// cannot create a file exclusively",
    "zip://out::/tmp/a.zip": "zip:// cannot create a file exclusively",
    "simplecache::s3://bucket/out": "simplecache:// cannot create a file exclusively",
    "unheard://of": "not a usable URL",
}
#: Wrong command lines with a secret, and what is said of them.
LINES = (
    (("run", "{config}", f"--tracking.uri=http://u:{SECRET}@h"), "unrecognized arguments"),
    (("run", "{config}", f"http://u:{SECRET}@h/x.yaml"), "unrecognized arguments"),
    ((f"postgres://u:{SECRET}@h/db",), "invalid choice"),
    (("audit", "x", "--sample", f"http://u:{SECRET}@h"), "invalid int value"),
    (("run", "{config}", "--config", f"s3://u:{SECRET}@h/x.yaml"), "not allowed with"),
)


def _in_a_shell(command: str, streams: str) -> Callable[[Site, Ran], None]:
    statuses, says = STREAMS[streams]

    def check(site: Site, ran: Ran) -> None:
        values = {"config": site.config}
        if command is INSPECT:
            import pyarrow.parquet as pq

            snapshot = site.one("snapshots/*/data/train-*.parquet")
            row = pq.read_table(snapshot, columns=["row_id"]).column(0)[0].as_py().hex()
            values |= {"store": site.one("**/store.json").parent, "row": row}
        line = f"set -o pipefail; {sys.executable} -m ray_distill.cli {command.format(**values)} {streams}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=site.root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in statuses, f"{done.returncode}: {done.stderr[-500:]}"
        assert "Traceback" not in done.stderr + done.stdout
        assert "Exception ignored" not in done.stderr
        assert says in done.stderr, done.stderr[-500:]

    return check


def _interrupted(module: str) -> Callable[[Site, Ran], None]:
    def check(site: Site, ran: Ran) -> None:
        code = _INTERRUPTED.format(module=module, config=str(site.config))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=site.root, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 130, f"{done.returncode}: {done.stderr[-500:]}"
        assert done.stderr.strip().splitlines()[-1] == "stopped: run the same command again to continue"
        assert "Traceback" not in done.stderr

    return check


def _shows_none(site: Site, ran: Ran) -> None:
    assert SECRET not in ran.stdout + ran.stderr


TRIES = (
    *(
        Try(point=7, name=f"{command} {streams}", command=("schema",), status=0, check=_in_a_shell(command, streams))
        for number, command in enumerate((*COMMANDS, INSPECT))
        for streams in [*STREAMS][: 5 if number < 3 else 2]
    ),
    *(
        Try(
            point=7, name=f"Ctrl-C at the import of {module}", command=("schema",), status=0, check=_interrupted(module)
        )
        for module in MODULES
    ),
    *(
        Try(
            point=7,
            name=f"{field}={url} in a dry run",
            command=("run", "{config}", "--dry-run", "--set", f"{field}={url}"),
            says=f"{field}: .*{says}",
        )
        for field in ("output", "labels.store")
        for url, says in OUTPUTS.items()
    ),
    *(
        Try(
            point=7,
            name=f"a secret in the {number}. wrong command line: {says}",
            command=line,
            status=2,
            says=says,
            check=_shows_none,
        )
        for number, (line, says) in enumerate(LINES, 1)
    ),
)
