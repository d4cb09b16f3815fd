"""What a visitor's page holds on the server: one photograph and what was computed of it, gone when the page is left."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.data.reading.pixels import Pixels
    from castvision.visualization import ClusterMap
    from castvision.visualization.pictures import RGB

Point = tuple[float, float]
"""A place in a photograph: how far down and how far across, 0..1."""


_PAGE = "page_"


class Stopped(ValueError):
    """The visitor pressed Stop, or left."""


@dataclass
class Photograph:
    """An image a visitor chose.

    Attributes:
        path: The file, which tiled inference reads by windows.
        name: What the visitor calls it.
        size: (height, width) in pixels.
        pixels: At most a few thousand a side, (height', width', channels).
        picture: The same for the screen.
    """

    path: Path
    name: str
    size: tuple[int, int]
    pixels: Pixels
    picture: RGB


@dataclass
class Session:
    """One open page.

    Attributes:
        folder: For its files alone.
        photograph: The one chosen, None before.
        patches: Features as last computed, (rows, cols, C).
        prepared: The input that the cluster maps were made of.
        maps: Of all layers.
        point: Clicked last, on the Clusters tab.
        stop: Set by the Stop button and when the page is left.
    """

    folder: Path
    photograph: Photograph | None = None
    patches: Tensor | None = None
    prepared: Tensor | None = None
    maps: list[ClusterMap] = field(default_factory=list)
    point: Point | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def chosen(self) -> Photograph:
        """The photograph.

        Raises:
            ValueError: There is none yet.
        """
        if self.photograph is None:
            raise ValueError("expected a photograph, none is chosen yet; upload one or pick an example")
        return self.photograph

    def choose(self, photograph: Photograph) -> None:
        """Another photograph: what was computed of the last one is forgotten, and its file deleted."""
        last = self.photograph
        if last is not None and last.path != photograph.path and last.path.parent == self.folder:
            last.path.unlink(missing_ok=True)
        self.photograph = photograph
        self.patches, self.prepared, self.maps, self.point = None, None, [], None

    def check_stopped(self, done: int, total: int) -> None:
        """Told of progress: end the work if it is not wanted any more.

        Raises:
            Stopped: It is not.
        """
        if self.stop.is_set():
            raise Stopped(f"stopped after {done:,} of {total:,} tiles; nothing is kept")


class SessionStore:
    """Sessions by the name of their page, the one used longest ago dropped where there are too many.

    Args:
        root: Where their folders are made.
        most: Pages at once.
    """

    def __init__(self, root: Path, most: int = 16) -> None:
        self.root, self.most = root, most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Session:
        """The session of a page, a new one for a new page."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(Path(tempfile.mkdtemp(prefix=_PAGE, dir=self.root)))
            self._sessions.move_to_end(name)
            too_many = [key for key in self._sessions if key != name][: max(0, len(self._sessions) - self.most)]
            session, dropped = self._sessions[name], [self._sessions.pop(key) for key in too_many]
        for each in dropped:
            _end(each)
        return session

    def drop(self, name: str) -> None:
        """The page was left: its work ends, its files are deleted."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            _end(session)

    def __len__(self) -> int:
        return len(self._sessions)


def sweep(root: Path, seconds: float) -> None:
    """Delete what gradio left and has not touched for so long: its copies of uploads, and pictures that were shown.

    Args:
        root: All files of the demo; the folders of open pages are left alone.
        seconds: How long.
    """
    try:
        found = list(root.rglob("*"))
    except OSError:  # a folder went while it was listed: next time
        return
    for path in found:
        if path.relative_to(root).parts[0].startswith(_PAGE):
            continue
        try:
            if path.is_file() and time.time() - path.stat().st_ctime >= seconds:
                path.unlink()
                path.parent.rmdir()
        except OSError:  # gone already, or its folder holds more
            continue


def _end(session: Session) -> None:
    session.stop.set()
    shutil.rmtree(session.folder, ignore_errors=True)
