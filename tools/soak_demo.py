#!/usr/bin/env python
"""Run the web demo under several clients with good and bad uploads, and record its memory, its handles and its errors.

    python tools/soak_demo.py --minutes 60 --output benchmarks/results/soak_demo.json

Needs Linux and the extra ``demo``. The server is a process of its own, watched from outside; clients speak to it as
pages do. An error is an answer that is neither a result nor a refusal in one line, or a traceback of the server. The
time starts when every client has used every tab once: libraries are loaded then, and their first buffers made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
EVERY = 5.0
PAGES = 12
"""Rounds after which a client leaves its page and opens another."""


class Tally:
    """What happened, counted by all clients."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.errors: list[str] = []

    def call(self, name: str) -> None:
        """An endpoint was called."""
        with self.lock:
            self.calls[name] += 1

    def refusal(self, name: str) -> None:
        """A bad upload was refused as it should be."""
        with self.lock:
            self.refused[name] += 1

    def error(self, text: str) -> None:
        """Something that should not happen."""
        with self.lock:
            self.errors.append(" ".join(text.split())[:300])


def write_uploads(folder: Path) -> tuple[list[Path], list[Path]]:
    """Good and bad files.

    Returns:
        Images of several formats and sizes, and what must be refused.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    good, bad = [], []
    for number, (suffix, size) in enumerate(
        [("png", (300, 400)), ("jpg", (900, 700)), ("webp", (240, 500)), ("tif", (512, 512))]
    ):
        waves = np.sin(np.add.outer(np.arange(size[0]) / (20 + number), np.arange(size[1]) / 30))[..., None] * 80 + 128
        pixels = (waves + rng.normal(0, 10, (*size, 3))).clip(0, 255).astype(np.uint8)
        good.append(folder / f"photo_{number}.{suffix}")
        Image.fromarray(pixels).save(good[-1])
    whole = good[0].read_bytes()
    huge = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    header = b"IHDR" + huge
    bomb = whole[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    files = {
        "text.png": b"no picture at all\n", "empty.jpg": b"", "cut.png": whole[: len(whole) // 2],
        "flipped.png": whole[:200] + b"\xff" * 50 + whole[250:], "bomb.png": bomb, "program.exe": b"MZ" + bytes(100),
        "page.png": b"<script>alert(1)</script>", "raster.png": b"<VRTDataset rasterXSize='9' rasterYSize='9'/>",
    }  # fmt: skip
    for name, content in files.items():
        bad.append(folder / name)
        bad[-1].write_bytes(content)
    return good, bad


class Visitor:
    """One client.

    Args:
        address: Of the page.
        good: Files to upload.
        bad: Files to be refused.
        tally: What happens is counted there.
        seed: Of what the client chooses.
    """

    def __init__(self, address: str, good: list[Path], bad: list[Path], tally: Tally, seed: int) -> None:
        self.address, self.good, self.bad, self.tally = address, good, bad, tally
        self.draw = random.Random(seed)

    def page(self, work: Callable[[Any], None]) -> None:
        """Open a page, do something there, leave it."""
        from gradio_client import Client

        try:
            client = Client(self.address, verbose=False, download_files=False, httpx_kwargs={"timeout": 180})
        except Exception as error:
            self.tally.error(f"page: {type(error).__name__}: {error}")
            time.sleep(1)
            return
        try:
            work(client)
        finally:
            client.close()

    def warm_up(self) -> None:
        """Every tab once."""

        def work(client: Any) -> None:
            for number in range(len(tabs(self.draw))):
                use(client, self.tally, self.draw.choice(self.good), tabs(self.draw)[number])

        self.page(work)

    def visit(self, end: float) -> None:
        """Page after page until the time is over."""

        def work(client: Any) -> None:
            for _ in range(PAGES):
                if time.monotonic() >= end:
                    break
                self.one_round(client)

        while time.monotonic() < end:
            self.page(work)

    def one_round(self, client: Any) -> None:
        """A bad upload or a good one and what a visitor does with it."""
        from gradio_client import handle_file

        if self.draw.random() < 0.4:
            path = self.draw.choice(self.bad)
            if ask(client, self.tally, "upload", handle_file(path), expected="alert", told=path.name):
                self.tally.refusal(path.name)
            return
        photograph = self.draw.choice(self.good)
        use(client, self.tally, photograph, self.draw.choice(tabs(self.draw)))


def tabs(draw: random.Random) -> list[list[tuple[Any, ...]]]:
    """What a visitor does on each tab."""
    x, y = draw.random(), draw.random()
    return [
        [("features", 16 * draw.randint(8, 32)), ("similar", x, y)],
        [
            ("clusters", 16 * draw.randint(8, 24), draw.randint(1, 12)),
            ("weights", x, y, draw.randint(1, 12)),
            ("layer", 12),
        ],
        [("big", "features of the model", 256)],
        [("compare", 16 * draw.randint(8, 24))],
    ]


def use(client: Any, tally: Tally, photograph: Path, calls: list[tuple[Any, ...]]) -> None:
    """A good upload, and a tab."""
    from gradio_client import handle_file

    ask(client, tally, "upload", handle_file(photograph))
    for name, *arguments in calls:
        ask(client, tally, name, *arguments)


def ask(client: Any, tally: Tally, name: str, *arguments: Any, expected: str = "status", told: str = "") -> bool:
    """Call an endpoint and look at the line it answers with; whether it is as expected."""
    tally.call(name)
    try:
        answer = client.predict(*arguments, api_name=f"/{name}")
    except Exception as error:
        tally.error(f"{name} {told}: {type(error).__name__}: {error}")
        return False
    text = str(answer[0])
    if f'role="{expected}"' not in text:
        tally.error(f"{name} {told}: expected {expected}, got {text[:200]}")
        return False
    return True


def look(pid: int, folder: Path, start: float) -> dict[str, float]:
    """What the server holds now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    return {
        "seconds": round(time.monotonic() - start, 1),
        "rss_mb": round(int(values["VmRSS"]) * 1024 / 1e6, 1),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(values["Threads"]),
        "files": sum(len(names) for _, _, names in os.walk(folder)),  # folders may go meanwhile
    }


def serve(folder: Path, model: str, log: Path) -> tuple[subprocess.Popen, str]:
    """Start the server and wait for its address."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-c",
        "import sys; from castvision_cli import main; sys.exit(main())",
        "demo",
        "--web",
        "--model",
        model,
    ]
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
    for _ in range(600):
        found = re.search(r"http://\S+", log.read_text(encoding="utf-8"))
        if found:
            return server, found.group()
        if server.poll() is not None:
            break
        time.sleep(0.2)
    server.kill()
    raise RuntimeError(f"expected the demo to start, got: {log.read_text(encoding='utf-8')[-500:]}")


def summary(samples: list[dict[str, float]]) -> dict[str, object]:
    """Medians of the first and the last tenth, and of the tenth after a fifth of the time; the range of all."""
    found: dict[str, object] = {}
    count, tenth = len(samples), max(1, len(samples) // 10)
    for name in ("rss_mb", "handles", "threads", "files"):
        values = [each[name] for each in samples]
        parts = {
            "first_tenth": values[:tenth],
            "third_tenth": values[count // 5 :][:tenth],
            "last_tenth": values[-tenth:],
        }
        medians = {part: statistics.median(of) for part, of in parts.items()}
        found[name] = {**medians, "least": min(values), "most": max(values)}
        if name == "rss_mb":
            found[name]["growth"] = round(medians["last_tenth"] / medians["first_tenth"] - 1, 4)
    return found


def together(work: list[Callable[[], None]]) -> list[threading.Thread]:
    """Start what all clients do."""
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for each in threads:
        each.start()
    return threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--clients", type=int, default=4, help="at once (default: 4)")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="as castvision demo --web takes it")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/soak_demo.json")
    arguments = parser.parse_args()
    tally, samples = Tally(), []
    with tempfile.TemporaryDirectory() as name:
        folder, inputs, log = Path(name) / "server", Path(name) / "inputs", Path(name) / "log.txt"
        folder.mkdir()
        inputs.mkdir()
        good, bad = write_uploads(inputs)
        server, address = serve(folder, arguments.model, log)
        visitors = [Visitor(address, good, bad, tally, seed) for seed in range(arguments.clients)]
        begun = time.monotonic()
        try:
            for each in together([visitor.warm_up for visitor in visitors]):
                each.join()
            start = time.monotonic()
            end = start + 60 * arguments.minutes
            clients = together([partial(visitor.visit, end) for visitor in visitors])
            while time.monotonic() < end and server.poll() is None:
                samples.append(look(server.pid, folder, start))
                time.sleep(EVERY)
            for each in clients:
                each.join(60)
            alive = server.poll() is None
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(120)
            except subprocess.TimeoutExpired:
                server.kill()
                code = None
        printed = log.read_text(encoding="utf-8")
        left = sum(1 for path in folder.rglob("*") if path.is_file())
    result = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "clients": arguments.clients,
        "model": arguments.model,
        "server_lived": alive,
        "exit_code_after_sigterm": code,
        "files_left": left,
        "calls": dict(sorted(tally.calls.items())),
        "refused": dict(sorted(tally.refused.items())),
        "errors": len(tally.errors) + printed.count("Traceback"),
        "error_texts": dict(Counter(tally.errors).most_common(20)),
        "tracebacks": printed.count("Traceback"),
        "warm_up": {"every_client_used": "every tab once", "seconds": round(start - begun, 1)},
        **summary(samples),
        "samples": samples[:: max(1, len(samples) // 120)],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if printed.count("Traceback"):
        print(printed[-4000:], file=sys.stderr)


if __name__ == "__main__":
    main()
