"""What is said where a package of another library is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from envs.bridges.openenv_env import OpenEnv
from envs.bridges.verifiers_env import VerifiersEnv


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("verifiers", lambda: VerifiersEnv({"taskset": "gsm8k-v1"})),
        ("openenv", lambda: OpenEnv({"url": "http://localhost:1", "action": "message", "observation": "text"})),
        ("verifiers", lambda: importlib.import_module("rllib_exit_verifiers")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in (package, "rllib_exit_verifiers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it then fails as if it were not there
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'rllib-exit\[{package}\]'"):
        use()
