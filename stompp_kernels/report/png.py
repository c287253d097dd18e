"""PNG files of figures, which may say what they were drawn from: a digest of the data, in a tEXt entry."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = "Data"
_COLOURS = 64  # lines, bars and their smoothed edges need no more
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_of(figure: Figure, **entries: str) -> bytes:
    """The figure as PNG with a palette, which takes a third of the bytes; ``entries`` are texts that the file holds."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, PngImagePlugin

    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    texts = PngImagePlugin.PngInfo()
    for key, text in entries.items():
        texts.add_text(key, text)
    png = io.BytesIO()
    picture = (
        Image.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE)
    )
    picture.save(png, "PNG", optimize=True, pnginfo=texts)
    return png.getvalue()


def rounded(value: Any) -> Any:
    """Numbers with six digits: sums and logarithms end differently from one Python to the next."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def digest(data: Any) -> str:
    """Hashes anything that JSON can hold."""
    return hashlib.sha256(json.dumps(rounded(data), sort_keys=True).encode()).hexdigest()


def texts(png: bytes) -> dict[str, str]:
    """The tEXt entries of a PNG file.

    Raises:
        ValueError: it is not a whole PNG file.
    """
    pairs = (content.split(b"\0", 1) for kind, content in _chunks(png) if kind == b"tEXt")
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in pairs}


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not png.startswith(SIGNATURE):
        raise ValueError("not a PNG file: its signature is missing")
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(png):
            raise ValueError("not a whole PNG file: it ends early")
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        yield kind, png[at + 8 : at + 8 + length]
        at += length + 12


def is_current(path: Path, data: Any | None) -> bool:
    """Whether a picture is the one of these data, whatever drew it; of no data (None) there must be none."""
    if data is None or not path.exists():
        return data is None and not path.exists()
    return texts(path.read_bytes()).get(KEY) == digest(data)
