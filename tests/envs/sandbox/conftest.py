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
from tests.envs.sandbox.callers import SECRET, Caller, UnprivilegedCaller, adopt_orphans

USERS = {"root": Caller, "nobody": UnprivilegedCaller} if os.geteuid() == 0 else {"user": Caller}


@dataclass(frozen=True)
class Sandbox:
    """One tier, called by one user, and places outside that everyone may use.

    Attributes:
        outside: A directory that its user owns, with ``secret.txt``; not in the script's sight.
        data: The script's data, with ``train.csv``; ``private/answers.csv`` lies beside it.
    """

    tier: Tier
    caller: Caller
    outside: Path
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
    os.environ["PARENT_SECRET"] = SECRET
    made = {}
    for user, kind in USERS.items():
        place = base / user
        (place / "tmp").mkdir(parents=True)
        made[user] = kind(place / "tmp")
        os.chown(place / "tmp", made[user].uid, -1)
    yield made
    for caller in made.values():
        caller.close()
    del os.environ["PARENT_SECRET"]
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
    place = Path(caller.temporary).parent / tier
    outside, data = place / "outside", place / "competition" / "public"
    for directory in (outside, data, data.parent / "private"):
        directory.mkdir(parents=True, exist_ok=True)  # pytest makes a fixture anew when it comes back to a parameter
    for file, content in (
        (outside / "secret.txt", "secret"),
        (data / "train.csv", "id,target\n1,2\n"),
        (data.parent / "private" / "answers.csv", "id,answer\n1,2\n"),
    ):
        file.write_text(content)
        file.chmod(0o666)
        os.chown(file, caller.uid, -1)
    outside.chmod(0o777)
    os.chown(outside, caller.uid, -1)
    return Sandbox(tier, caller, outside, data)
