from __future__ import annotations

import numba
import pytest

from castvision.data.synthetic import compiled


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refuse(*args: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(compiled.numba, "njit", refuse)
    assert compiled.entry_kernel(lambda value: value + 1)(2) == 3


def test_an_edit_anywhere_compiles_an_entry_kernel_anew() -> None:
    @compiled.entry_kernel
    def one(value: int, sources: int = compiled.SOURCES) -> int:
        return value

    assert one(3) == 3
    (signature,) = one.signatures
    assert str(compiled.SOURCES) in str(signature[1])  # the key of numba's cache
