"""Variants whose weights others trained: timm's configuration and keys; loading from a folder and from a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg, save_for_hf

import castvision
from castvision.models.recipe import Recipe, build
from castvision.models.weights import explained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

assert castvision.__version__
NAMES = timm.list_models("cast_vit*", pretrained=True, exclude_filters="*.pathfinder*")  # those are our own
ONE_OF_EACH = [
    "cast_vit_tiny_patch16_224.augreg_in21k_ft_in1k", "cast_vit_small_patch14_reg4_dinov2.lvd142m",
    "cast_vit_small_patch16_dinov3.lvd1689m", "cast_vit_base_patch16_siglip_224.webli",
]  # fmt: skip
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3}


def test_those_asked_for_are_there() -> None:
    sizes = ("small", "base", "large")
    wanted = {f"cast_vit_{s}_patch14{form}_dinov2.lvd142m" for s in sizes for form in ("", "_reg4")}
    wanted |= {f"cast_vit_{s}_patch16_dinov3.lvd1689m" for s in sizes}
    wanted |= {f"cast_vit_{s}_patch16_224.augreg_in21k_ft_in1k" for s in ("tiny", "small", "base")}
    assert wanted | {"cast_vit_base_patch16_siglip_224.webli"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_and_keys_are_timms(name: str) -> None:
    ours, theirs = get_pretrained_cfg(name), get_pretrained_cfg(name.removeprefix("cast_"))
    for key in ("hf_hub_id", "mean", "std", "interpolation", "crop_pct", "input_size", "license", "num_classes"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.hf_hub_id and ours.license and not ours.url
    model, twin = (timm.create_model(each, device="meta") for each in (name, name.removeprefix("cast_")))
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, twin)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_options_are_those_for_pretrained_weights_and_can_be_given(name: str) -> None:
    options = timm.create_model(name, device="meta").blocks[0].attn.options
    assert (options.summaries, options.cluster_factor, options.anchors) == ("query_weighted", 2.0, 144)
    given = timm.create_model(name, device="meta", anchors=3, num_clusters=7).blocks[0].attn.options
    assert (given.anchors, given.num_clusters, given.summaries) == (3, 7, "query_weighted")
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(name, device="meta", not_an_argument=1)


def test_models_to_be_trained_from_nothing_keep_their_options() -> None:
    model = timm.create_model("cast_vit_tiny_patch16_224", device="meta")
    assert model.pretrained_cfg["tag"] == "untrained"
    assert (model.blocks[0].attn.options.summaries, model.blocks[0].attn.options.anchors) == ("mean", 0)
    with pytest.raises(ValueError, match=r"no weights of its own; name those .*224\.augreg_in21k_ft_in1k$"):
        timm.create_model("cast_vit_tiny_patch16_224", pretrained=True)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_weights_of_timms_model_from_a_file(name: str, tmp_path: Path) -> None:
    """As the hub's file would be loaded; with M = N the outputs are timm's."""
    twin = timm.create_model(name.removeprefix("cast_"), **SMALL).eval()
    save_file(twin.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    rows, cols = twin.patch_embed.grid_size
    arguments = {**SMALL, "num_clusters": rows * cols, "pretrained_cfg_overlay": overlay}
    model = timm.create_model(name, pretrained=True, **arguments).eval()
    x = torch.randn(1, 3, *twin.pretrained_cfg["input_size"][1:])
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
    arguments["num_clusters"] = 9
    other = timm.create_model(name, pretrained=True, features_only=True, out_indices=[0], **arguments)
    assert other(x[..., :96, :64])[0].shape[:2] == (1, 48)
    with pytest.raises(ValueError, match="got those of another architecture") as caught:
        timm.create_model(name, pretrained=True, **{**arguments, "embed_dim": 96})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_saved_as_a_folder_and_loaded_again(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, **SMALL, num_classes=3, anchors=5).eval()
    save_for_hf(model, tmp_path, model_args={**SMALL, "anchors": 5})
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 150, 200)
    torch.testing.assert_close(again(x), model(x))
    assert again.blocks[0].attn.options == model.blocks[0].attn.options


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks when it fetches one file of a public or gated repository."""

    def __init__(self, files: dict[str, bytes], *arguments: Any) -> None:
        self.files = files
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        content = self.files.get(self.path)
        gated = "/timm/vit_large" in self.path
        self.send_response(401 if gated else 200 if content is not None else 404)
        error = "GatedRepo" if gated else "EntryNotFound"
        for key, value in {
            "X-Repo-Commit": "0" * 40, "ETag": '"abc"', "Content-Length": str(len(content or b"")),
            **({} if content is not None else {"X-Error-Code": error, "X-Error-Message": error}),
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        return content or b""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub with the weights of a small AugReg model."""
    twin = timm.create_model("vit_tiny_patch16_224", **SMALL)
    with torch.no_grad():
        twin.cls_token.fill_(0.25)
    save_file(twin.state_dict(), tmp_path / "model.safetensors")
    repository = "/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main"
    files = {f"{repository}/model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SOURCE = """
import json, timm, castvision
told = []
for name, more in json.loads('''{cases}'''):
    try:
        told.append(float(timm.create_model(name, pretrained=True, **more).cls_token.mean()))
    except Exception as error:
        told.append(f"{{type(error).__name__}}: {{error}}")
print(json.dumps(told))
"""


def ask(endpoint: str, folder: Path, *cases: tuple[str, dict[str, Any]], offline: str = "0") -> list[Any]:
    """The mean class token of each model made in a fresh process, or what it said instead."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = offline
    source = SOURCE.format(cases=json.dumps(cases))
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    told: list[Any] = json.loads(result.stdout.splitlines()[-1])
    return told


def test_from_a_hub_and_without_one(hub: str, tmp_path: Path) -> None:
    tiny, large = "cast_vit_tiny_patch16_224.augreg_in21k_ft_in1k", "cast_vit_large_patch16_dinov3"
    got, misfit, gated = ask(hub, tmp_path / "a", (tiny, SMALL), (tiny, {**SMALL, "depth": 2}), (large, {"depth": 1}))
    assert got == 0.25
    assert misfit.startswith("ValueError: expected weights of cast_vit_tiny") and "\n" not in misfit
    assert gated.startswith("ConnectionError: the weights of cast_vit_large_patch16_dinov3 are gated: accept their")
    assert "https://huggingface.co/timm/vit_large_patch16_dinov3.lvd1689m" in gated and "hf auth login" in gated
    (unreached,) = ask(hub, tmp_path / "b", (tiny, SMALL), offline="1")
    assert unreached.startswith("ConnectionError: cannot get the weights") and "pretrained_cfg_overlay" in unreached
    assert "\n" not in unreached


def test_without_a_network_what_was_fetched_serves_and_the_rest_is_said_at_once(hub: str, tmp_path: Path) -> None:
    tiny, gone = "cast_vit_tiny_patch16_224.augreg_in21k_ft_in1k", "http://127.0.0.1:9"
    assert ask(hub, tmp_path, (tiny, SMALL)) == [0.25]
    kept, missing = ask(gone, tmp_path, (tiny, SMALL), ("cast_vit_small_patch14_dinov2", {"depth": 1}))
    assert kept == 0.25
    assert missing.startswith("ConnectionError: cannot get the weights of cast_vit_small_patch14_dinov2 from https://")
    assert "refused" in missing and "traffic" not in missing, "asked once, instead of for a minute"


def test_a_client_that_gets_no_answer_is_explained_and_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castvision.models.weights._trouble_reaching_hub", lambda: None)
    unanswered = type("ConnectError", (Exception,), {"__module__": "httpx2"})
    with pytest.raises(
        ConnectionError, match=r"from https://huggingface\.co/timm/vit_small_patch14_dinov2\.lvd142m: no"
    ):
        with explained("vit_small_patch14_dinov2"):
            raise unanswered("no answer")
    with pytest.raises(KeyError), explained("vit_small_patch14_dinov2"):
        raise KeyError("another")


def test_a_recipe_says_it_too(tmp_path: Path) -> None:
    recipe = Recipe("classification", "vit_tiny_patch16_224", 2, model_kwargs={"attention": "near_far", **SMALL})
    save_file(build(recipe).state_dict(), tmp_path / "model.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}, "pretrained": True}
    changed = Recipe(
        recipe.task, recipe.model_name, 2, model_kwargs={**recipe.model_kwargs, **overlay, "embed_dim": 96}
    )
    with pytest.raises(ValueError, match="got those of another architecture"):
        build(changed)
