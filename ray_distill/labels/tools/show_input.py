"""The input of one row, as a terminal can show it; the store itself holds no text and no image."""

import io

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.errors import SnapshotError
from ray_distill.labels.model import rowids
from ray_distill.snapshots.reader import open_snapshot

#: Characters of a text, and columns of an image, that are shown.
SHOWN_CHARACTERS, SHOWN_COLUMNS = 2000, 56

#: From dark to light.
_SHADES = " .:-=+*#%@"


def show_input(snapshot: SnapshotRef | str, row_id: str) -> str:
    """The text or image of a row, from the snapshot that holds it.

    Args:
        snapshot: where it was labelled from.
        row_id: 32 hexadecimal digits.

    Raises:
        SnapshotError: the snapshot does not hold the row.
    """
    opened, wanted = open_snapshot(snapshot), bytes.fromhex(row_id)
    for shard in opened.shards:
        table = opened.read_shard(shard, ["row_id", opened.input_column])
        at = rowids.find(np.array([wanted], dtype="S16"), rowids.to_numpy(table["row_id"]))[0]
        if at >= 0:
            data = table[opened.input_column].cast(pa.large_binary())[int(at)].as_py()
            return show_image(data) if opened.input_column == "image" else show_text(data)
    raise SnapshotError(f"{opened.ref.url}: the snapshot does not hold row {row_id}; name the one it was labelled from")


def show_text(data: bytes | None) -> str:
    """The beginning of a text; what is not UTF-8 is marked."""
    text = (data or b"").decode("utf-8", errors="replace")
    more = len(text) - SHOWN_CHARACTERS
    return f"text: {text[:SHOWN_CHARACTERS]}" + (f"… and {more} more characters" if more > 0 else "")


def show_image(data: bytes | None) -> str:
    """Size and mode of an image, and its shades of grey as characters, twice as wide as high."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data or b""))
        columns = min(2 * image.width, SHOWN_COLUMNS)
        small = image.convert("L").resize((columns, max(1, round(columns / 2 * image.height / image.width))))
    except (UnidentifiedImageError, OSError) as error:
        return f"image: {len(data or b'')} bytes that are no readable image ({error})"
    shades = np.asarray(small).astype(int) * (len(_SHADES) - 1) // 255
    lines = ["".join(_SHADES[shade] for shade in line).rstrip() for line in shades]
    return "\n".join([f"image: {image.width} × {image.height}, {image.mode}", "\n".join(lines).strip("\n")])
