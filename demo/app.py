#!/usr/bin/env python
"""The web demo's server: this machine's own address alone, no request to any other, nothing kept."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation
    from castvision_cli.web_demo import main

    sys.exit(main())

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from .page import CSS, build
from .sessions import SessionStore, sweep
from .studio import Studio, find_examples, load_backbone, load_segmenters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ONLY_HERE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_SWEPT_EVERY, _KEPT = 30.0, 600.0
_HEADERS = {
    "content-security-policy": _ONLY_HERE,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class OnlyHere:
    """Tells browsers, with every answer, to load nothing from elsewhere and to keep nothing.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def make_studio(
    root: Path,
    model: str,
    *,
    weights: str | Path | None = None,
    attention: str | None = None,
    segmenters: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> Studio:
    """Load what all pages share.

    Args:
        root: A folder for the pages' files.
        model: See `castvision_demo.studio.load_backbone`.
        weights: Likewise.
        attention: Likewise.
        segmenters: Checkpoints.
        examples: Photographs or folders of them.

    Returns:
        The studio.

    Raises:
        ValueError: A model, a checkpoint or a photograph that cannot be used; FileNotFoundError and TypeError likewise.
    """
    backbone, told = load_backbone(model, weights, attention=attention)
    return Studio(backbone, told, load_segmenters(segmenters), find_examples(examples), SessionStore(root))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for all files of the demo, gradio's own too; it is deleted at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="castvision_demo_", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


@contextmanager
def served(
    studio: Studio, *, listen: str = "127.0.0.1", port: int | None = None, megabytes: int = 200
) -> Iterator[str]:
    """Serve a studio's page for as long as the context lasts.

    Args:
        studio: What is shown.
        listen: Address of this machine; any but the loopback's lets others in.
        port: Which; None = the first free one from 7860 on.
        megabytes: Largest upload.

    Yields:
        The page's address.

    Raises:
        OSError: The port is taken.
    """
    quiet: dict[str, Any] = {"share": False, "quiet": True, "ssr_mode": False, "mcp_server": False, "pwa": False}
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none to be fetched
    page = build(studio)
    try:
        _, address, _ = page.launch(
            server_name=listen, server_port=port, prevent_thread_lock=True, max_file_size=megabytes * 1_000_000,
            app_kwargs={"middleware": [Middleware(OnlyHere)]}, footer_links=[], run_history=False, show_error=False,
            enable_monitoring=False, css=CSS, theme=theme, state_session_capacity=studio.store.most, **quiet,
        )  # fmt: skip
    except OSError as error:
        if port is None:
            raise
        raise OSError(
            f"expected a free port, got {port}, which cannot be served; name another, or leave it out"
        ) from error
    over = threading.Event()

    def keep_clean() -> None:
        while not over.wait(_SWEPT_EVERY):
            sweep(studio.store.root, _KEPT)

    threading.Thread(target=keep_clean, daemon=True).start()
    try:
        yield str(address)
    finally:
        over.set()
        page.close(verbose=False)
