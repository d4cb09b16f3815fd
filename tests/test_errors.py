from __future__ import annotations

import pytest

from castvision.errors import one_line


@pytest.mark.parametrize(
    ("error", "limit", "text"),
    [
        (ValueError("two\n  lines"), None, "two lines"),
        (ValueError(), None, "ValueError"),
        (ValueError("x" * 9), 9, "x" * 9),
        (ValueError("x" * 10), 9, "x" * 8 + "…"),
    ],
)
def test_any_error_is_one_line(error, limit, text):
    assert one_line(error, limit) == text
