"""Read, write, create exclusively, list and copy whole files on local paths and fsspec URLs.

The client of a remote file system reads its settings (endpoint, keys, region) from the environment. Every
failure raises a StorageError that names the URL.
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
    """A file in a listed folder: its name relative to the folder, its size in bytes and its URL."""

    name: str
    size: int
    url: str


def join(url: str, *parts: str | int) -> str:
    """Join a URL or path and the names below it with single slashes."""
    base = url if url == "/" else url.rstrip("/")
    names = [str(part).strip("/") for part in parts]
    return "/".join([base.rstrip("/"), *names]) if names else base


def is_local(url: str) -> bool:
    """Return whether a URL is a path on this machine: no scheme, ``file://`` or ``local://``."""
    return remote.protocol(url) in ("file", "local")


def absolute(url: str) -> str:
    """Make a local path absolute, for use in any process; return other URLs unchanged."""
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
    """Read whole files, concurrently where supported; errors as in `read_bytes`.

    All files belong to one file system.
    """
    if not urls or is_local(urls[0]):
        return [read_bytes(url) for url in urls]
    filesystem, _ = remote.resolve(urls[0])
    paths = [filesystem._strip_protocol(url) for url in urls]
    # Among many requests one may fail each time: only the files that failed are read again.
    found = filesystem.cat_ranges(paths, None, None, on_error="return")
    return [bytes(data) if isinstance(data, bytes) else read_bytes(url) for url, data in zip(urls, found, strict=True)]


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file durably, with its parent folders; an existing file is replaced.

    Raises:
        StorageError: permissions, space or the connection do not allow it.
    """
    if is_local(url):
        _locally(url, "write it", lambda: local.write(_path(url), data))
        return
    filesystem, path = remote.resolve(url)
    _make_parent(url, filesystem, path)
    remote.attempt(url, "write it", lambda: filesystem.pipe_file(path, data))


def create_exclusive(url: str, data: bytes) -> None:
    """Create a file completely or not at all; exactly one of many concurrent writers succeeds.

    On a remote file system a response may be lost and the request repeated, also by the client library. An
    existing file with exactly ``data`` as content therefore counts as created by this call. Writers that must be
    distinguished put something unique into the data.

    Raises:
        AlreadyExists: the name is taken.
        StorageError: the file system has no exclusive create, or as in `write_bytes`.
    """
    if is_local(url):
        _locally(url, "create it", lambda: local.create(_path(url), data))
        return
    remote.require_exclusive(url)
    filesystem, path = remote.resolve(url)
    _make_parent(url, filesystem, path)
    remote.attempt(url, "create it", lambda: _create_or_recognise(filesystem, path, data))


def _create_or_recognise(filesystem: Any, path: str, data: bytes) -> None:
    try:
        filesystem.pipe_file(path, data, mode="create")
    except remote.failures() as error:
        if not remote.is_taken(error) or filesystem.cat_file(path) != data:
            raise


def exists(url: str) -> bool:
    """Return whether a file or folder exists."""
    if is_local(url):
        return _locally(url, "check it", lambda: _path(url).exists())
    filesystem, path = remote.resolve(url)
    return bool(remote.attempt(url, "check it", lambda: filesystem.exists(path)))


def sizes(urls: Sequence[str]) -> list[int]:
    """Return the sizes in bytes of files of one file system.

    Raises:
        StorageError: one of the files does not exist.
    """
    if not urls or is_local(urls[0]):
        return [_locally(url, "measure it", _path(url).stat).st_size for url in urls]
    filesystem, _ = remote.resolve(urls[0])
    return [_size(filesystem, url) for url in urls]


def _size(filesystem: Any, url: str) -> int:
    path = filesystem._strip_protocol(url)
    return int(remote.attempt(url, "measure it", lambda: filesystem.info(path)["size"]))


def modified(url: str) -> float:
    """Return when a file was last written, in seconds since the epoch."""
    if is_local(url):
        return _locally(url, "date it", _path(url).stat).st_mtime
    filesystem, path = remote.resolve(url)
    return float(remote.attempt(url, "date it", lambda: filesystem.modified(path)).timestamp())


def list_files(url: str, *, unfinished: bool = False, follow: bool = False) -> list[FileInfo]:
    """List all files below a folder, at any depth, sorted by name; none without the folder.

    Args:
        url: the folder.
        unfinished: list the temporary files of interrupted writes too.
        follow: go into linked folders too; a link to a folder above itself is left out.

    Raises:
        StorageError: ``follow``, and a link points to nothing.
    """
    found = _list_local(url, follow) if is_local(url) else _list_remote(url)
    if not unfinished:
        found = [item for item in found if not local.is_unfinished(item.name.rsplit("/", 1)[-1])]
    return sorted(found, key=lambda item: item.name)


def _list_local(url: str, follow: bool) -> list[FileInfo]:
    root = _path(url)
    found = []
    for folder, inner, names in os.walk(root, followlinks=follow):
        if follow:
            inner[:] = [name for name in inner if not local.is_loop(Path(folder, name))]
        for name in names:
            path = Path(folder, name)
            size = local.size_if_there(path)
            if size is None and follow and path.is_symlink():
                raise StorageError(
                    f"{path} is a link to {path.readlink()}, which does not exist; remove or mend the link"
                )
            if size is not None:
                relative = path.relative_to(root).as_posix()
                found.append(FileInfo(name=relative, size=size, url=join(url, relative)))
    return found


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


def glob_files(pattern: str, *, follow: bool = False) -> list[FileInfo]:
    """List the files that a file, a folder or a glob names, sorted by name; possibly none.

    Names are relative to the folder, or to the part of a glob before its first wildcard. A folder that a glob
    matches contributes all files below it. ``follow`` is as in `list_files`.
    """
    if not _MAGIC.isdisjoint(pattern) and not exists(pattern):
        return _glob(pattern, follow)
    if _is_file(pattern):
        return [FileInfo(name=pattern.rstrip("/").rsplit("/", 1)[-1], size=sizes([pattern])[0], url=pattern)]
    return list_files(pattern, follow=follow)


def _glob(pattern: str, follow: bool) -> list[FileInfo]:
    base = "/".join(pattern.split("/")[: _first_magic(pattern)])
    if not is_local(pattern):
        return _glob_remote(base, pattern[len(base) + 1 :])
    found = {}
    for url in sorted(globbing.glob(str(_path(pattern)), recursive=True)):  # noqa: PTH207  (absolute or relative)
        for item in glob_files(url, follow=follow):
            name = item.url.removeprefix(base).lstrip("/")
            found[name] = FileInfo(name=name, size=item.size, url=item.url)
    return [found[name] for name in sorted(found)]


def _first_magic(pattern: str) -> int:
    return next(i for i, part in enumerate(pattern.split("/")) if not _MAGIC.isdisjoint(part))


def _glob_remote(base: str, pattern: str) -> list[FileInfo]:
    """List files below ``base`` that match, or whose folder matches.

    fsspec's own glob ignores failed listings.
    """
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
        return bool(remote.attempt(url, "check it", lambda: filesystem.info(path)["type"] == "file"))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise


def delete(url: str) -> None:
    """Delete a file, or a folder with all its content; a missing one is not an error."""
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
    """Open a seekable file for reading; the caller closes it.

    Raises:
        StorageError: the file cannot be opened. (Later reads raise OSError; of remote files, StorageError.)
    """
    if is_local(url):
        return _locally(url, "open it", lambda: _path(url).open("rb"))
    return remote.open_with_retries(url)


def upload_folder(source: Path, url: str) -> None:
    """Copy every file below a local folder to a URL, each as a whole, sorted by name.

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
    """Download a folder and return its local path; a local folder is not copied.

    Raises:
        StorageError: the folder does not exist or cannot be read.
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
    """Write a file with ``copy(temporary)`` and rename it; readers never see a partial file."""
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
        StorageError: the file cannot be read or is not JSON.
    """
    data = read_bytes(url)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{url}: expected JSON, found something else ({error}); restore the file") from error


def write_json(url: str, value: Any) -> None:
    """Write plain values as JSON, formatted by `json_bytes`."""
    write_bytes(url, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Encode values as indented JSON, keys in the given order; equal values give equal bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _path(url: str) -> Path:
    return Path(url.removeprefix("file://").removeprefix("local://"))


def _locally(url: str, what: str, operation: Callable[[], T]) -> T:
    try:
        return operation()
    except OSError as error:
        raise remote.translate(error, url, what) from error


def _make_parent(url: str, filesystem: Any, path: str) -> None:
    """Create the folder of a file; not on object stores, which would create a bucket instead."""
    if remote.protocol(url) not in remote.OBJECT_STORES:
        parent = filesystem._parent(path)
        remote.attempt(url, "create its folder", lambda: filesystem.makedirs(parent, exist_ok=True))
