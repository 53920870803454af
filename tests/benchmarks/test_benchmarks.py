"""Each benchmark runs once, small, and prints its ratio; the numbers themselves are for people."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_the_codec_is_smaller_than_nested_lists():
    """Both ratios are printed, and it takes less than half of the baseline's bytes."""
    done = subprocess.run([sys.executable, FOLDER / "bench_codec.py", "--positions", "8000"], capture_output=True,
                          text=True, timeout=300, check=True)
    speed = re.search(r"([\d.]+)x nested lists", done.stdout)
    size = re.search(r"nats, ([\d.]+) of its", done.stdout)
    assert speed, done.stdout
    assert size and float(size[1]) < 0.5, done.stdout
