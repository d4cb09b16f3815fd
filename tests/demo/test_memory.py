"""The server's memory does not grow with the pages that were open once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from demo import memory
from demo.sessions import SessionStore
from demo.studio import Studio


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_pieces_freed_between_others_go_back():
    """The C library keeps all below the last piece in use."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    size = 100_000  # each from the heap, not from the system
    pieces = [library.malloc(size) for _ in range(2000)]
    for piece in pieces:
        library.memset(piece, 1, size)
    full = resident()
    for piece in pieces[:-1]:
        library.free(piece)
    kept = resident()
    memory.give_back()
    assert full - kept < 0.1 * size * len(pieces)
    assert full - resident() > 0.8 * size * len(pieces)
    library.free(pieces[-1])


@pytest.mark.filterwarnings("default")  # of what gradio imports
def test_gradio_forgets_pages_as_the_demo_does(monkeypatch, tmp_path):
    """By itself it remembers 10,000, each with all settings of the page."""
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    import torch

    from castvision.inference.feature_model import FeatureModel
    from castvision.inference.predictor import load_parts
    from demo import app

    torch.manual_seed(0)
    studio = Studio(
        FeatureModel(load_parts("vit_tiny_patch16_224", attention="near_far")),
        "random", {}, {}, SessionStore(tmp_path, most=3),
    )  # fmt: skip
    pages = []
    build = app.build
    monkeypatch.setattr(app, "build", lambda studio: pages.append(build(studio)) or pages[-1])
    (tmp_path / "text.png").write_text("no picture")
    with app.served(studio) as address:
        for _ in range(5):
            visitor = client.Client(address, verbose=False, download_files=False)
            told = visitor.predict(client.handle_file(tmp_path / "text.png"), api_name="/upload")
            assert "alert" in str(told)
            visitor.close()
        assert len(pages[0].state_holder.session_data) == 3
