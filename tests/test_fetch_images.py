from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("fetch_images", ROOT / "tools/fetch_images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tar(name: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"image"))
    return buffer.getvalue()


def _deb(content: bytes) -> bytes:
    parts = [("debian-binary", b"2.0"), ("data.tar.xz", content)]
    out = b"!<arch>\n"
    for name, part in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
    return out


@pytest.mark.parametrize("kind", ["deb", "tgz"])
def test_a_package_is_checked_and_its_files_written_flat(tool, tmp_path, kind):
    content = _deb(_tar("./at/sub/a.jpg", "w:xz")) if kind == "deb" else _tar("./at/sub/a.jpg", "w:gz")
    source = tool.Source((), hashlib.sha256(content).hexdigest(), "./at/", ("sub/a.jpg",))
    (tmp_path / "package").write_bytes(content)
    written = tool.unpack(source, tool.read_package(source, tmp_path / "package"), tmp_path / "out")
    assert written == [tmp_path / "out/a.jpg"]
    assert written[0].read_bytes() == b"image"


def test_another_package_is_refused_in_one_line(tool, tmp_path, capsys, monkeypatch):
    (tmp_path / "package").write_bytes(b"other")
    monkeypatch.setattr(sys, "argv", ["x", "earth", str(tmp_path / "out"), "--archive", str(tmp_path / "package")])
    assert tool.main() == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
