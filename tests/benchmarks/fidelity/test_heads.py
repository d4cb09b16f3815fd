from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks.fidelity.heads import CELLS, _draw_earth, held_out, iou, main, read_mask, train_head
from benchmarks.fidelity.saliency import SaliencyDecoder


def test_a_mask_has_its_cells_in_the_order_of_the_picture(tmp_path):
    mask = np.zeros((2 * CELLS, 3 * CELLS), np.uint8)
    mask[CELLS, 2 * CELLS + 1] = 255  # second row of tokens, third column, first row of cells, second cell
    Image.fromarray(mask).save(tmp_path / "mask.png")
    cells = read_mask(tmp_path / "mask.png", (2, 3))
    assert cells.nonzero().tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_learns_what_tokens_say_and_is_scored_on_other_meridians(kind):
    torch.manual_seed(0)
    patches = torch.randn(6, 54, 8)
    patches[..., 0] = 2 * patches[..., 0].sign()
    truth = (patches[..., :1] > 0).expand(-1, -1, CELLS**2)
    head = train_head(patches, truth, kind)
    assert iou(head, patches, truth) > 0.9
    noise = torch.where(held_out(54)[None, :, None], torch.randn_like(patches), patches)
    assert iou(head, noise, truth) < 0.5  # the training meridians do not count
    assert held_out(18).tolist() == [False] * 12 + [True] * 6


def test_the_saliency_decoder_doubles_three_times():
    torch.manual_seed(0)
    widths = (384, 256, 128, 64)
    state = {}
    for i in (1, 2, 3):
        state |= {f"upconv{i}.weight": torch.randn(widths[i - 1], widths[i], 4, 4) * 0.05}
        state |= {f"upconv{i}.bias": torch.randn(widths[i])}
        state |= {
            f"bn{i}.{name}": torch.rand(widths[i]) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")
        }
    state |= {"final_conv.weight": torch.randn(1, 64, 1, 1) * 0.05, "final_conv.bias": torch.zeros(1)}
    patches = torch.randn(2, 3, 384)
    found = SaliencyDecoder(state)(patches)
    assert found.shape == (16, 24)
    x = patches.permute(2, 0, 1)[None]
    for i in (1, 2, 3):
        x = F.conv_transpose2d(x, state[f"upconv{i}.weight"], state[f"upconv{i}.bias"], stride=2, padding=1)
        mean, var = (state[f"bn{i}.{name}"][:, None, None] for name in ("running_mean", "running_var"))
        x = (x - mean) / (var + nn.BatchNorm2d(1).eps).sqrt()
        x = F.relu(x * state[f"bn{i}.weight"][:, None, None] + state[f"bn{i}.bias"][:, None, None])
    wanted = F.conv2d(x, state["final_conv.weight"], state["final_conv.bias"]).sigmoid()[0, 0]
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match="Missing key"):
        SaliencyDecoder({name: value for name, value in state.items() if name != "bn2.bias"})


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    assert main([]) == 2
    assert main(["--earth", str(tmp_path), "--weights", str(tmp_path / "no.onnx")]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["benchmark heads"] * 2


def test_scores_are_drawn(tmp_path):
    scores = {"linear": 0.9, "mlp": 0.95}
    row = {"setting": "full attention", "height": 1008, "own": scores, "full": scores, "crops": scores, "seconds": 1.0}
    _draw_earth(tmp_path / "heads.png", [row, {**row, "setting": "tiles"}, {**row, "height": 2016}])
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
