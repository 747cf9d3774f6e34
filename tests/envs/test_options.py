from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from envs.bfcl.env import BFCLOptions
from envs.bridges.openenv_env import OpenEnvOptions
from envs.bridges.verifiers_env import VerifiersOptions
from envs.competition_math.env import CompetitionMathOptions
from envs.countdown.env import CountdownOptions
from envs.dataset.env import DatasetOptions
from envs.mle_bench.env import MLEBenchOptions
from envs.options import Options, PathText, validate
from envs.tool_use.mcp import MCPOptions
from envs.tool_use.own import ToolOptions

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


class Example(Options):
    limit: PositiveInt | None = Field(default=None, description="How many.")
    timeout_s: PositiveFloat = Field(default=5.0, description="How long.")
    split: Literal["train", "test"] = Field(default="train", description="Which.")
    names: tuple[str, ...] = Field(default=(), description="Whose.")
    file: PathText = Field(default="", description="Where.")


def test_none_counts_as_absent():
    assert Example.parse(None) == Example.parse({}) == Example.parse(dict.fromkeys(Example.model_fields)) == Example()


def test_values_of_numpy_paths_and_lists_are_taken():
    options = Example.parse({"limit": np.int64(3), "timeout_s": 2, "names": ["a"], "file": Path("/a")})
    assert options == Example(limit=3, timeout_s=2.0, names=("a",), file="/a")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"limits": 3}, "env_config has no option 'limits': use limit, timeout_s, .*Did you mean 'limit'?"),
        ({"limits": None}, "no option 'limits'"),
        ({"xyz": 3}, "no option 'xyz': use limit, timeout_s, split, names, file.$"),
        ({"limit": 0}, "^limit is 0: it must be greater than 0$"),
        ({"limit": "many"}, "^limit is 'many': it must be a valid integer"),
        ({"timeout_s": float("nan")}, "^timeout_s is nan: it must be a finite number$"),
        ({"split": "dev"}, "^split is 'dev': it must be 'train' or 'test'$"),
        ({"names": [1]}, "^names.0 is 1: it must be a valid string$"),
        ({"names": "abc"}, "^names is 'abc': it must be a valid tuple$"),
    ],
)
def test_what_cannot_be_used_is_named(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Example.parse(config)


def test_an_error_says_where():
    with pytest.raises(ValueError, match=r"^a\.yaml: limit is -1: it must be"):
        validate(Example, {"limit": -1}, "a.yaml: ")
    with pytest.raises(ValueError, match=r"^a\.yaml is 3: it must be a valid dictionary or instance of Example"):
        validate(Example, 3, "a.yaml: ")


@pytest.mark.parametrize(
    "options",
    [
        BFCLOptions,
        CompetitionMathOptions,
        CountdownOptions,
        DatasetOptions,
        MCPOptions,
        MLEBenchOptions,
        OpenEnvOptions,
        ToolOptions,
        VerifiersOptions,
    ],
)
def test_the_docs_list_every_option(options: type[Options]):
    assert all(field.description for field in options.model_fields.values())
    assert options.table() in PAGE.read_text(), f"docs/environments.md needs this table:\n{options.table()}"
