"""Write JSON objects with the digest of their content, which reveals a change.

A damaged file is often still valid JSON: with one other digit it would be read as another result. The digest covers the
parsed content, not the bytes. An object without a digest is read as it is: it was written by hand.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from ray_distill.artifacts import Document
from ray_distill.errors import DamagedFile, DistillError
from ray_distill.fingerprint import fingerprint
from ray_distill.storage import files

D = TypeVar("D", bound=Document)

#: Field of the digest.
SEAL = "content_digest"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as plain JSON values, with the digest of its content."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    return {**plain, SEAL: fingerprint(plain)}


def unsealed(value: Any, where: str, way_out: str) -> dict[str, Any]:
    """Return the content of an object that `sealed` returned.

    Args:
        value: parsed JSON.
        where: its URL, for errors.
        way_out: the end of the error's message: how to continue without this file.

    Raises:
        DamagedFile: it is not an object, or its content has another digest.
    """
    if not isinstance(value, dict):
        raise DamagedFile(f"{where} is damaged: expected a JSON object, found {type(value).__name__}; {way_out}")
    content = {name: item for name, item in value.items() if name != SEAL}
    if SEAL in value and (found := _digest(content)) != value[SEAL]:
        raise DamagedFile(
            f"{where} is damaged: its content has the digest {found}, it states {str(value[SEAL])[:80]}; {way_out}"
        )
    return content


def write_sealed(url: str, value: Mapping[str, Any]) -> None:
    """Write an object with its digest; errors as `files.write_json`."""
    files.write_json(url, sealed(value))


def read_sealed(url: str, way_out: str) -> dict[str, Any]:
    """Read the content of a file that `write_sealed` wrote.

    Raises:
        DamagedFile: as `unsealed`, or it is not JSON.
        StorageError: it cannot be read.
    """
    data = files.read_bytes(url)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{url} is damaged: expected JSON, found something else ({error}); {way_out}") from error
    return unsealed(value, url, way_out)


def read_document(kind: type[D], url: str, way_out: str) -> D:
    """Read a document that `write_sealed` wrote as JSON values.

    Raises:
        DamagedFile, StorageError: as `read_sealed`.
        DistillError: the kind's `refusal`: it is another document.
    """
    value = read_sealed(url, way_out)
    try:
        return kind.from_dict(value, url)
    except DistillError as error:
        raise type(error)(f"{error}; {way_out}") from error


def _digest(content: Mapping[str, Any]) -> str:
    try:
        return fingerprint(dict(content))
    except ValueError:  # NaN, an infinity, or half a character: nothing that was sealed
        return "none"
