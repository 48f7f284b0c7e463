"""A folder with a folder of images for each class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hivenode.data.info import MAX_LABEL, DataInfo
from hivenode.data.readers.raw import Raw, bounded
from hivenode.errors import InvalidInput, Unavailable
from hivenode.spec.data import DataSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_IMAGE_PIXELS = 64 << 20


def read(path: Path, spec: DataSpec) -> Raw:
    """Images scaled to data.size, 3 channels, uint8. Raises InvalidInput, Unavailable."""
    try:
        from PIL import Image
    except ImportError:
        raise Unavailable(
            "Folders of images need Pillow, which is not installed here.",
            fix="Install it: pip install 'hivenode[data]'.",
        ) from None
    kinds = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files = [(file, n) for n, folder in enumerate(kinds) for file in sorted(folder.iterdir()) if _is_image(file)]
    held = {number for _, number in files}
    if len(kinds) < 2 or len(held) < len(kinds):
        empty = next((folder.name for n, folder in enumerate(kinds) if n not in held), "")
        what = f"has no image in {empty}" if len(kinds) >= 2 else "has not a folder for each of two or more classes"
        raise InvalidInput(f"{path} {what}.", fix=f"Put {', '.join(SUFFIXES)} files into a folder for each class.")
    rows = np.stack([_pixels(Image, file, spec.size) for file, _ in files])
    names = tuple(folder.name[:MAX_LABEL] for folder in kinds)
    info = DataInfo(spec.source, len(rows), (3, spec.size, spec.size), len(names), names, "classification")
    return Raw(info, rows.reshape(len(rows), -1), np.array([number for _, number in files], np.int64))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def _pixels(image_module: Any, file: Path, size: int) -> Any:
    """(3, size, size) uint8."""
    bounded(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_module.open(file, formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_IMAGE_PIXELS:
                    raise ValueError(f"it has {opened.width}x{opened.height} pixels")
                scaled = opened.convert("RGB").resize((size, size), image_module.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise InvalidInput(f"{file} is not a usable image: {error}.", fix="Replace it or take it out.") from error
    return np.asarray(scaled, np.uint8).transpose(2, 0, 1)
