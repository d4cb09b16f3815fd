"""Files reach a hub by huggingface_hub's own functions; the hub here is a server of this test."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from castvision.export.hub import check_repository, push


class Hub(BaseHTTPRequestHandler):
    """Answers what making a repository and one commit ask for; keeps the files."""

    def __init__(self, files: dict[str, bytes], asked: list[str], is_open: bool, *args: Any) -> None:
        self.files, self.asked, self.is_open = files, asked, is_open
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self.answer({"id": "me/flowers", "sha": "0" * 40, "siblings": [], "private": False, "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"POST {self.path.split('?')[0]} {self.headers.get('Authorization')}")
        if not self.is_open:
            self.answer({"error": "no"}, 403)
        elif self.path.endswith("/api/repos/create"):
            self.answer({"url": f"http://{self.headers['Host']}/me/flowers", "id": "me/flowers", "name": "me/flowers"})
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/me/flowers/commit/0",
                }
            )
        else:
            self.answer({})


@pytest.fixture(params=[True])
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    files: dict[str, bytes] = {}
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files, asked, request.param))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield files, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_folder_becomes_one_commit(hub: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    files, asked = hub
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# flowers\n")
    assert "me/flowers" in push(tmp_path, "me/flowers")
    assert files == {"config.json": b"{}", "README.md": b"# flowers\n"}
    posts = [line for line in asked if line.startswith("POST") and "/commit/" in line]
    assert posts == ["POST /api/models/me/flowers/commit/main Bearer hf_secret"]


@pytest.mark.parametrize("hub", [False], indirect=True)
def test_a_refusal_is_told_with_the_way_out(hub: tuple[dict[str, bytes], list[str]], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConnectionError, match=r"cannot push to 'me/flowers' at http://127.*hf auth login") as caught:
        push(tmp_path, "me/flowers")
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)
    assert hub[0] == {}


@pytest.mark.parametrize("name", ["flowers", "me/a b", "a/b/c", ""])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match="expected USER/NAME"):
        check_repository(name)
