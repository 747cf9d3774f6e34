from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from envs.base import TaskInstance

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_the_readmes_code_is_the_file_that_it_names() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks == [(ROOT / "tuned_examples" / "own_data.py").read_text()]


def test_the_readmes_data_set_works_and_its_config_is_valid() -> None:
    config = runpy.run_path(str(ROOT / "tuned_examples" / "own_data.py"))["config"]
    env = config.env(config.env_config)
    assert 300 < len(env.tasks) < 361
    env.reset(options={"instance": TaskInstance(next(iter(env.tasks)))})
    assert env.step(f"It is {env.demonstration(env.task)[0]}.")[1] == 1
    config.validate()


def test_the_tutorials_environment_works_and_its_config_is_valid() -> None:
    example = runpy.run_path(str(ROOT / "tuned_examples" / "own_env.py"))
    env = example["FirstLetterEnv"]({})
    for response, reward in {
        "c": 1,
        "It is c.": 1 / 3,
        "C!": 1,
        "b": 0,
        "The letter b of chair": 0,
        "Neither a nor c": 0,
        "chair": 0,
        "": 0,
    }.items():
        env.reset(options={"instance": TaskInstance("chair")})
        assert env.step(response)[1] == reward, response
    example["config"].validate()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))]
)
def test_every_path_in_a_page_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for path in re.findall(r"`((?:envs|rllib_exit|tuned_examples|benchmarks|docs|tests)/[\w/.]*)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path
