from __future__ import annotations

import pytest

from envs.extras import extra


def test_a_missing_package_is_named_with_its_extra() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"^a letter needs ink: pip install 'rllib-exit\[ink\]'$"),
        extra("ink", "a letter needs ink"),
    ):
        raise ModuleNotFoundError("No module named 'ink.blue'", name="ink.blue")


def test_what_the_package_itself_lacks_is_told_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'water'$"), extra("ink", "a letter needs ink"):
        raise ModuleNotFoundError("No module named 'water'", name="water")
