"""Whole files on local paths and fsspec URLs alike: read, write durably, create exclusively, list, copy.

Settings of a remote file system (endpoint, keys, region) come from the environment, the way its own client
reads them. Every failure is a StorageError that names the URL.
"""

import glob as globbing
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from fsspec.utils import glob_translate

from ray_distill.errors import StorageError
from ray_distill.storage import local, remote

T = TypeVar("T")
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file below a listed folder: its name relative to the folder, its size in bytes and its URL."""

    name: str
    size: int
    url: str


def join(url: str, *parts: str | int) -> str:
    """Join a URL or path and names below it with single slashes."""
    base = url if url == "/" else url.rstrip("/")
    names = [str(part).strip("/") for part in parts]
    return "/".join([base.rstrip("/"), *names]) if names else base


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine: no scheme, ``file://`` or ``local://``."""
    return remote.protocol(url) in ("file", "local")


def absolute(url: str) -> str:
    """A URL that means the same in every process: local paths are made absolute, other URLs stay."""
    return str(_path(url).absolute()) if is_local(url) else url


def read_bytes(url: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it does not exist or cannot be read.
    """
    if is_local(url):
        return _locally(url, "read it", lambda: _path(url).read_bytes())
    filesystem, path = remote.resolve(url)
    return bytes(remote.attempt(url, "read it", lambda: filesystem.cat_file(path)))


def read_many(urls: Sequence[str]) -> list[bytes]:
    """Read whole files of one file system, concurrently where it can; errors as `read_bytes`."""
    if not urls or is_local(urls[0]):
        return [read_bytes(url) for url in urls]
    filesystem, _ = remote.resolve(urls[0])
    paths = [filesystem._strip_protocol(url) for url in urls]
    # Of many requests one may fail each time: what failed is read again, not all of it.
    found = filesystem.cat_ranges(paths, None, None, on_error="return")
    return [bytes(data) if isinstance(data, bytes) else read_bytes(url) for url, data in zip(urls, found, strict=True)]


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file durably, with its parent folders; what was there is replaced.

    Raises:
        StorageError: rights, space or the connection.
    """
    if is_local(url):
        _locally(url, "write it", lambda: local.write(_path(url), data))
        return
    filesystem, path = remote.resolve(url)
    _make_parent(url, filesystem, path)
    remote.attempt(url, "write it", lambda: filesystem.pipe_file(path, data))


def create_exclusive(url: str, data: bytes) -> None:
    """Create a file of which one of many concurrent writers gets the name, whole or not at all.

    On a remote file system an answer may be lost and the request repeated, by the client library too; so a
    name that already holds exactly ``data`` counts as won. Writers that must be told apart put something
    unique into the data.

    Raises:
        AlreadyExists: the name is taken.
        StorageError: the file system has no exclusive create, or as `write_bytes`.
    """
    if is_local(url):
        _locally(url, "create it", lambda: local.create(_path(url), data))
        return
    filesystem, path = remote.resolve(url)
    if not remote.creates_exclusively(url, filesystem):
        raise StorageError(
            f"{url}: {remote.protocol(url)}:// cannot create a file exclusively, so two writers could overwrite "
            f"each other; use a local path or one of {', '.join(sorted(remote.OBJECT_STORES))}"
        )
    _make_parent(url, filesystem, path)
    remote.attempt(url, "create it", lambda: _create_or_recognise(filesystem, path, data))


def _create_or_recognise(filesystem: Any, path: str, data: bytes) -> None:
    try:
        filesystem.pipe_file(path, data, mode="create")
    except remote.failures() as error:
        if not remote.is_taken(error) or filesystem.cat_file(path) != data:
            raise


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return _locally(url, "look for it", lambda: _path(url).exists())
    filesystem, path = remote.resolve(url)
    return bool(remote.attempt(url, "look for it", lambda: filesystem.exists(path)))


def sizes(urls: Sequence[str]) -> list[int]:
    """Sizes in bytes of files of one file system.

    Raises:
        StorageError: one of them does not exist.
    """
    if not urls or is_local(urls[0]):
        return [_locally(url, "measure it", _path(url).stat).st_size for url in urls]
    filesystem, _ = remote.resolve(urls[0])
    return [_size(filesystem, url) for url in urls]


def _size(filesystem: Any, url: str) -> int:
    path = filesystem._strip_protocol(url)
    return int(remote.attempt(url, "measure it", lambda: filesystem.info(path)["size"]))


def modified(url: str) -> float:
    """When a file was last written, in seconds since the epoch."""
    if is_local(url):
        return _locally(url, "date it", _path(url).stat).st_mtime
    filesystem, path = remote.resolve(url)
    return float(remote.attempt(url, "date it", lambda: filesystem.modified(path)).timestamp())


def list_files(url: str, *, unfinished: bool = False) -> list[FileInfo]:
    """All files below a folder, at any depth, sorted by name; none where there is no folder.

    Args:
        url: the folder.
        unfinished: also what writes that were cut off left behind.
    """
    found = _list_local(url) if is_local(url) else _list_remote(url)
    if not unfinished:
        found = [item for item in found if not local.is_unfinished(item.name.rsplit("/", 1)[-1])]
    return sorted(found, key=lambda item: item.name)


def _list_local(url: str) -> list[FileInfo]:
    root = _path(url)
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            size = _size_if_there(path)
            if size is not None:
                relative = path.relative_to(root).as_posix()
                found.append(FileInfo(name=relative, size=size, url=join(url, relative)))
    return found


def _size_if_there(path: Path) -> int | None:
    """The size of a listed file, or None where another process has removed it since."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _list_remote(url: str) -> list[FileInfo]:
    filesystem, path = remote.resolve(url)
    try:
        found = remote.attempt(url, "list it", lambda: filesystem.find(path, detail=True))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    prefix = path.rstrip("/") + "/"
    return [
        FileInfo(name=name.removeprefix(prefix), size=int(info["size"]), url=join(url, name.removeprefix(prefix)))
        for name, info in found.items()
        if info["type"] == "file" and name.startswith(prefix)
    ]


def glob_files(pattern: str) -> list[FileInfo]:
    """The files that a file, a folder or a glob stands for, sorted by name; none where nothing matches.

    Names are relative to the folder, or to the part of a glob before its first wildcard. Folders that a glob
    matches stand for all files below them.
    """
    if not _MAGIC.isdisjoint(pattern) and not exists(pattern):
        return _glob(pattern)
    if _is_file(pattern):
        return [FileInfo(name=pattern.rstrip("/").rsplit("/", 1)[-1], size=sizes([pattern])[0], url=pattern)]
    return list_files(pattern)


def _glob(pattern: str) -> list[FileInfo]:
    base = "/".join(pattern.split("/")[: _first_magic(pattern)])
    if not is_local(pattern):
        return _glob_remote(base, pattern[len(base) + 1 :])
    found = {}
    for url in sorted(globbing.glob(str(_path(pattern)), recursive=True)):  # noqa: PTH207  (absolute or relative)
        for item in glob_files(url):
            name = item.url.removeprefix(base).lstrip("/")
            found[name] = FileInfo(name=name, size=item.size, url=item.url)
    return [found[name] for name in sorted(found)]


def _first_magic(pattern: str) -> int:
    return next(i for i, part in enumerate(pattern.split("/")) if not _MAGIC.isdisjoint(part))


def _glob_remote(base: str, pattern: str) -> list[FileInfo]:
    """Files below ``base`` that match, or lie in a folder that does; fsspec's own glob passes failed listings over."""
    matches = re.compile(glob_translate(pattern)).match
    return [
        item
        for item in list_files(base)
        if any(matches("/".join(item.name.split("/")[: at + 1])) for at in range(item.name.count("/") + 1))
    ]


def _is_file(url: str) -> bool:
    if is_local(url):
        return _path(url).is_file()
    filesystem, path = remote.resolve(url)
    try:
        return bool(remote.attempt(url, "look for it", lambda: filesystem.info(path)["type"] == "file"))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise


def delete(url: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing there is fine."""
    if is_local(url):
        _locally(url, "delete it", lambda: _delete_local(_path(url)))
        return
    filesystem, path = remote.resolve(url)
    try:
        remote.attempt(url, "delete it", lambda: filesystem.rm(path, recursive=True))
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def _delete_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_input(url: str) -> IO[bytes]:
    """Open a file for reading; seekable. Close it after use.

    Raises:
        StorageError: it cannot be opened. (Errors of later reads are OSErrors, of remote ones StorageErrors.)
    """
    if is_local(url):
        return _locally(url, "open it", lambda: _path(url).open("rb"))
    return remote.open_steadily(url)


def upload_folder(source: Path, url: str) -> None:
    """Copy every file below a local folder to a URL; each arrives whole, in the order of the names.

    Raises:
        StorageError: the folder is missing, or a file cannot be written.
    """
    if not source.is_dir():
        raise StorageError(f"{source}: cannot copy it: it is not a folder")
    for item in list_files(str(source)):
        _put(Path(item.url), join(url, item.name))


def _put(source: Path, url: str) -> None:
    if is_local(url):
        target = _path(url)
        _locally(url, "write it", lambda: _copy(lambda temporary: shutil.copyfile(source, temporary), target))
        return
    filesystem, path = remote.resolve(url)
    _make_parent(url, filesystem, path)
    remote.attempt(url, "write it", lambda: filesystem.put_file(str(source), path))


def download_folder(url: str, target: Path) -> Path:
    """Bring a folder to this machine and return where it is; a local folder is returned as it is.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    if is_local(url):
        if not _path(url).is_dir():
            raise StorageError(f"{url}: cannot read it: there is no such folder; check the path")
        return _path(url)
    found = list_files(url)
    if not found:
        raise StorageError(f"{url}: cannot read it: the folder is empty or missing; check the URL")
    for item in found:
        _get(item, target)
    return target


def _get(item: FileInfo, target: Path) -> None:
    if ".." in item.name.split("/"):
        raise StorageError(f"{item.url}: its name would leave the folder {target}; rename the object")
    filesystem, path = remote.resolve(item.url)
    remote.attempt(
        item.url,
        "read it",
        lambda: _copy(lambda temporary: filesystem.get_file(path, str(temporary)), target / item.name),
    )


def _copy(copy: Callable[[Path], Any], target: Path) -> None:
    """Fill a file by ``copy(temporary)`` so that its name never holds half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        copy(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(url: str) -> Any:
    """Read a JSON file.

    Raises:
        StorageError: it cannot be read, or is not JSON.
    """
    data = read_bytes(url)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{url}: expected JSON, found something else ({error}); restore the file") from error


def write_json(url: str, value: Any) -> None:
    """Write plain values as `json_bytes` gives them."""
    write_bytes(url, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Plain values as indented JSON, keys in the order given; equal values give equal bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _path(url: str) -> Path:
    return Path(url.removeprefix("file://").removeprefix("local://"))


def _locally(url: str, what: str, operation: Callable[[], T]) -> T:
    try:
        return operation()
    except OSError as error:
        raise remote.translate(error, url, what) from error


def _make_parent(url: str, filesystem: Any, path: str) -> None:
    """Make the folder of a file; object stores have none, and would take a bucket for one."""
    if remote.protocol(url) not in remote.OBJECT_STORES:
        parent = filesystem._parent(path)
        remote.attempt(url, "make its folder", lambda: filesystem.makedirs(parent, exist_ok=True))
