"""VECA-like attention: patches see cores, cores see all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.peers.veca import Veca
from tests.peers.cases import check_definition, make_case, over


def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
    return torch.stack([over(each, k[:p], v[:p]) for each in q[p:]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cores", [1, 5])
def test_definition(cores: int, masked: bool) -> None:
    check_definition(Veca(2, 4), rows, make_case(prefix=cores, masked=masked))


def test_no_patch_reaches_a_patch_but_through_the_next_layer() -> None:
    case = make_case(prefix=3)
    before = case.run(Veca(2, 4))
    with torch.no_grad():
        case.k[:, 10] += 1
        case.v[:, 10] += 1
    after = case.run(Veca(2, 4))
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert not torch.equal(before[:, :3], after[:, :3])


def test_without_cores_it_is_refused() -> None:
    with pytest.raises(ValueError, match="reg_tokens"):
        make_case(prefix=0).run(Veca(2, 4))
