"""References inside a folder are relative to it; all others stay as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.storage.portable import located, movable, portable

FOLDERS = st.sampled_from(["/a/out", "/a/out/", "s3://bucket/run", "/"])
PATHS = st.lists(st.sampled_from(["labels", "x.json", "a b", "ü"]), max_size=3).map("/".join)


@given(folder=FOLDERS, path=PATHS, other=st.sampled_from(["/a/output", "/b/out/x", "s3://bucket/runs", "text", ""]))
def test_a_moved_folder_refers_to_itself(folder: str, path: str, other: str) -> None:
    """What is written at one place and read at another names the same thing there; neighbours are not mistaken."""
    url = f"{folder.rstrip('/')}/{path}".rstrip("/") or "/"
    value = {"a": [url, other, 3, None], "b": {"c": url}}
    written = portable(value, folder)
    if folder != "/":
        assert written["a"][0].startswith("within:") and written["a"][1] == other
        moved = f"/new place/{path}".rstrip("/")
        assert located(written, "/new place") == {"a": [moved, other, 3, None], "b": {"c": moved}}
    assert located(written, folder) == value


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("/p/out", "/p/out/labels", "/p/teacher"), ("/q/out", "/q/out/labels", "/q/teacher")),
        (("s3://b/run/out", "s3://b/run/out/labels", "m:f"), ("s3://c/out", "s3://c/out/labels", "m:f")),
    ],
)
def test_settings_of_a_project_that_is_copied_whole_have_one_key(
    first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    """Output, labels in it, and the teacher beside it."""
    assert movable(list(first[1:]), first[0]) == movable(list(second[1:]), second[0])
    assert movable(["/elsewhere/teacher"], "/p/out") == ["/elsewhere/teacher"]
