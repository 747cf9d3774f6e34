"""What is installed is named with its hashes, and no code comes from where models and data come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "cpu.lock").read_text()
# Their CPU builds differ from place to place, or are not used: see the Makefile.
NOT_LOCKED = {"torch", "torchvision", "torchaudio", "torchcodec"}
UNSAFE = ("trust_remote_code", "allow_pickle=True", "weights_only=False")


def locked() -> dict[str, str]:
    found = re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;]+)(?: ;[^\\\n]*)? \\\n    --hash=sha256:[0-9a-f]{64}", LOCK, re.MULTILINE
    )
    return {str(canonicalize_name(name)): version for name, version in found}


def requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    found = []
    for requirement in map(Requirement, texts):
        found += requirements(*requirement.extras) if requirement.name == project["name"] else [requirement]
    return found


def test_the_lock_has_what_is_required_and_a_hash_for_all():
    versions = locked()
    assert len(versions) == len(re.findall("^[A-Za-z0-9].*==", LOCK, re.MULTILINE)) > 200
    assert NOT_LOCKED.isdisjoint(versions)
    for requirement in requirements("cpu", "dev"):
        if requirement.name not in NOT_LOCKED:
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    without_requirements = re.findall(r"^WITHOUT_REQUIREMENTS := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name, version in (text.split("==") for text in without_requirements[0].split()):
        assert versions[name] == version


def test_the_lock_names_no_place():
    assert "://" not in LOCK and " @ " not in LOCK and "\n-" not in LOCK


def test_nothing_that_is_read_is_run_unless_the_user_says_so():
    for package in ("rllib_exit", "envs", "tuned_examples", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            assert not [word for word in UNSAFE if word in text], file
