"""The wheel and the source distribution hold what a user needs, and the wheel works where nothing else of us is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NEEDED = {
    *("tuned_examples/math_exit.py", "tuned_examples/math_common.py", "tuned_examples/data/gsm8k.jsonl"),
    *("envs/bfcl/split.json", "envs/mle_bench/synthetic_competitions/courier-delivery-times/config.yaml"),
    *("rllib_exit/bundled/countdown-1m/model.safetensors", "rllib_exit/report/templates/report.html"),
    *("rllib_exit/view/view.html", "rllib_exit/view/view.css", "rllib_exit/view/view.js"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("rllib_exit", "envs", "tuned_examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = (
        "import sys\nout = sys.argv[1]\nfrom setuptools import build_meta as b\nb.build_sdist(out)\nb.build_wheel(out)"
    )
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True)
    return out


def test_wheel_and_source_distribution_carry_examples_and_data(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as files:
        in_sdist = {name.partition("/")[2] for name in files.getnames()}
    assert in_wheel >= NEEDED and in_sdist >= NEEDED
    assert not [name for name in in_wheel if name.split("/")[0] in ("tests", "benchmarks", "docs")]


def test_an_installed_wheel_has_a_command_and_its_examples(built: Path, tmp_path: Path) -> None:
    [wheel], target, empty = built.glob("*.whl"), tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def rllib(*arguments: str) -> str:
        command = [str(target / "bin" / "rllib"), *arguments]
        return subprocess.run(command, env=environment, cwd=empty, check=True, capture_output=True, text=True).stdout

    assert rllib("--version").startswith("rllib-exit ")
    assert "own_data" in rllib("examples")
    rllib("examples", "copy", "gsm8k")
    assert (empty / "gsm8k.py").read_bytes() == (target / "tuned_examples" / "gsm8k.py").read_bytes()
    where = [sys.executable, "-c", "import rllib_exit; print(rllib_exit.__file__)"]
    found = subprocess.run(where, env=environment, cwd=empty, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(target)
