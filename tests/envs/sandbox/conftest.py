from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from envs.sandbox.sandbox import Run, SandboxUnavailableError, Tier
from tests.envs.sandbox.callers import Caller, UnprivilegedCaller, adopt_orphans

USERS = {"root": Caller, "nobody": UnprivilegedCaller} if os.geteuid() == 0 else {"user": Caller}


@dataclass(frozen=True)
class Sandbox:
    """One tier, called by one user.

    Attributes:
        data: The script's data, with ``train.csv``, which its user owns.
    """

    tier: Tier
    caller: Caller
    data: Path

    def run(self, script: str, **arguments: Any) -> Run:
        run = self.caller.run(script, **{"tier": self.tier, "data": self.data, **arguments})
        assert run.tier == self.tier
        return run


@pytest.fixture(scope="session")
def callers() -> Iterator[dict[str, Caller]]:
    base = Path(tempfile.mkdtemp(prefix="sandbox-tests-", dir="/tmp"))
    base.chmod(0o755)
    adopt_orphans(True)
    made = {}
    for user, kind in USERS.items():
        place = base / user
        (place / "tmp").mkdir(parents=True)
        made[user] = kind(place / "tmp")
        os.chown(place / "tmp", made[user].uid, -1)
    yield made
    for caller in made.values():
        caller.close()
    adopt_orphans(False)
    shutil.rmtree(base)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(f"{tier}-{user}", marks=[pytest.mark.full] if user == "nobody" else [])
        for tier in get_args(Tier)
        for user in USERS
    ],
)
def sandbox(request: pytest.FixtureRequest, callers: dict[str, Caller]) -> Sandbox:
    tier, user = request.param.split("-")
    caller = callers[user]
    try:
        caller.available_tier(tier)
    except SandboxUnavailableError as error:
        assert "a script in it ends" not in str(error), f"the tier runs here, but does not hold: {error}"
        pytest.xfail(f"the tier cannot run here: {error}")
    data = Path(caller.temporary).parent / tier
    data.mkdir(exist_ok=True)  # pytest makes a fixture anew when it comes back to a parameter
    (data / "train.csv").write_text("id,target\n1,2\n")
    os.chown(data / "train.csv", caller.uid, -1)
    return Sandbox(tier, caller, data)
