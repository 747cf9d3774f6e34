from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rllib_exit.checks import check_field, is_int, is_number


def test_a_bad_field_is_named_with_value_and_mend():
    check_field(SimpleNamespace(lr=1), "lr", True, "use 1")
    with pytest.raises(ValueError, match="lr is 'fast': use 1"):
        check_field(SimpleNamespace(lr="fast"), "lr", False, "use 1")


def test_integers_and_numbers():
    assert is_int(2, 2) and is_int(np.int64(2), 2) and not is_int(1, 2)
    assert not any(is_int(value, 0) for value in (True, 1.0, "1", None))
    assert is_number(0, 0, 1) and is_number(1.0, 0, 1) and is_number(np.float32(0.5), 0, 1)
    assert not any(is_number(value, 0, 1) for value in (-0.1, 1.1, True, "1", None))
    assert not is_number(float("nan")) and not is_number(float("inf"))
