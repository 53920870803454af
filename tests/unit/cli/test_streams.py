"""Ends of a command that no stage foresees: Ctrl-C while modules are imported, and outputs that cannot be written."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["argparse", "pydantic"])
def test_ctrl_c_during_the_imports_ends_in_one_line(module: str) -> None:
    """The exit status is a shell's for Ctrl-C, and there is no traceback."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r} and 'ray_distill.cli' in sys.modules:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it in its background
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.modules.pop('argparse', None)\n"
        "sys.argv = ['ray-distill', 'schema']\n"
        "runpy.run_module('ray_distill.cli', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nstopped: run the same command again to continue\n")


def test_the_version_is_printed() -> None:
    """It is an option before the command, as in other programs."""
    done = subprocess.run(
        [sys.executable, "-m", "ray_distill.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ray-distill 0.")
