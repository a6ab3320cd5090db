"""Pictures of images, read for many requests at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

Picture = bytes | None

_TOGETHER = 256
_WEBP, _PNG, _JPEG = (b"RIFF", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def media_type(picture: bytes) -> str | None:
    """What a file is by its first bytes, of what a page shows; None for anything else.

    Example:
        >>> media_type(b"RIFF....WEBPVP8 "), media_type(b"<svg onload='...'>")
        ('image/webp', None)
    """
    if picture.startswith(_WEBP) and picture[8:12] == b"WEBP":
        return "image/webp"
    if picture.startswith(_PNG):
        return "image/png"
    return "image/jpeg" if picture.startswith(_JPEG) else None


class PictureDesk:
    """Hands out pictures by id. What is asked for while others are read waits, and is then read together.

    A page asks for each picture by itself, an archive answers a hundred as quickly as one.
    """

    def __init__(self, load: Callable[[list[str]], Sequence[Picture]]) -> None:
        """Hand out what `load` gives for ids: a picture, or None, for each."""
        self._load = load
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Picture]] = {}

    def picture(self, image_id: str) -> Picture:
        """The picture of an image; None where there is none.

        Raises:
            ArchiveError: it cannot be read.
        """
        with self._lock:
            asked = self._waiting.setdefault(image_id, Future())
        with self._reading:
            if not asked.done():
                self._read_waiting()
        return asked.result()

    def _read_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        names = list(waiting)
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]
            try:
                found = dict(zip(some, self._load(some), strict=True))
            except Exception:  # of one of them, which then tells it alone
                found = {}
            for name in some:
                if name in found:
                    waiting[name].set_result(found[name])
                else:
                    self._read_one(name, waiting[name])

    def _read_one(self, image_id: str, asked: Future[Picture]) -> None:
        try:
            asked.set_result(self._load([image_id])[0])
        except BaseException as error:
            asked.set_exception(error)
