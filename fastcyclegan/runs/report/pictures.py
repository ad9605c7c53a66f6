"""The previews of a run, thinned and small enough to be part of a page."""

import base64
import io
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image

from fastcyclegan.data.images import BadImage, load_image
from fastcyclegan.runs.report.thinning import spread

MAX_PICTURES = 40
# All pictures of a page together, before base64 makes four bytes of three.
BUDGET_BYTES = 6_000_000
_WIDEST = 1280
_QUALITIES = (80, 60)
_NAME = re.compile(r"step-([0-9]{8,12})\.png")


@dataclass(frozen=True)
class Picture:
    """A preview as it goes into a page: after how many steps, the size of the file, a data URL."""

    step: int
    width: int
    height: int
    url: str


class Pictures:
    """Previews of a folder; each is read and made small once, as long as it stays as it is.

    Attributes:
        shown: at most ``limit`` of them, in the order of their steps.
        found: how many there are.
        unreadable: how many of those that would be shown cannot be read.
        read: how many files were decoded so far.
    """

    def __init__(self, folder: Path, limit: int = MAX_PICTURES) -> None:
        """``limit`` pictures may take BUDGET_BYTES * limit / MAX_PICTURES."""
        self.folder, self._limit = folder, limit
        self._budget = BUDGET_BYTES // MAX_PICTURES
        self.shown: list[Picture] = []
        self.found = self.unreadable = self.read = 0
        self._attempt = 0
        self._made: dict[tuple[str, int, int], Picture | None] = {}

    def refresh(self, last_step: int | None = None) -> None:
        """Make those that are missing, up to ``last_step``. Raises OSError."""
        names = list(self.folder.iterdir()) if self.folder.is_dir() else []
        found = [(int(m[1]), path) for path in names if (m := _NAME.fullmatch(path.name))]
        found = sorted(f for f in found if last_step is None or f[0] <= last_step)
        self.found = len(found)
        made = {}
        for step, path in spread(found, self._limit):
            status = path.lstat()
            key = path.name, status.st_mtime_ns, status.st_size
            made[key] = self._made[key] if key in self._made else self._make(step, path)
        self._made = made
        self.shown = [picture for picture in made.values() if picture]
        self.unreadable = len(made) - len(self.shown)

    def _make(self, step: int, path: Path) -> Picture | None:
        self.read += 1
        try:
            image = load_image(path, 3)
        except (BadImage, OSError):
            return None
        kind, data = self._small(image)
        url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return Picture(step, image.width, image.height, url)

    def _small(self, image: Image.Image) -> tuple[str, bytes]:
        """(media type, file) in at most the budget of one picture, without loss if possible."""
        if image.width * image.height <= self._budget * 4:
            data = _encoded(image, "PNG", optimize=True)
            if len(data) <= self._budget:
                return "image/png", data
        # What the picture before took is tried first: they are alike.
        for attempt in count(self._attempt):
            shrinks, quality = divmod(attempt, len(_QUALITIES))
            scale = min(1.0, _WIDEST / max(image.size)) * 0.8**shrinks
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
            data = _encoded(small, "WEBP", quality=_QUALITIES[quality], method=3)
            if len(data) <= self._budget:
                self._attempt = attempt
                return "image/webp", data
        raise AssertionError  # a picture of one pixel fits


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
