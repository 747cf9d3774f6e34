from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_exit.cli.config import check, load_file, override
from rllib_exit.grpo.config import GRPOConfig
from tests.cli.helpers import make_config


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("prompts_per_batch=3", "prompts_per_batch", 3),
        ("kl_coeff=0", "kl_coeff", 0),
        ("overlong_filtering=true", "overlong_filtering", True),
        ("overlong_filtering=True", "overlong_filtering", True),
        ("mismatch_clip=null", "mismatch_clip", None),
        ("mismatch_clip=None", "mismatch_clip", None),
        ("dtype=float32", "dtype", "float32"),
        ("model_name=org/name=x", "model_name", "org/name=x"),
        ("adam_betas=[0.9, 1e-1]", "adam_betas", [0.9, 0.1]),
        ("env_config={tasks: train}", "env_config", {"tasks": "train"}),
        ("env_config.limit=10", "env_config", {"limit": 10}),
        ("evaluation_config.env_config.limit=10", "evaluation_config", {"env_config": {"limit": 10}}),
    ],
)
def test_set_parses_literals(setting: str, name: str, value: Any):
    config = override(GRPOConfig(), [setting])
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_set_leaves_the_files_config_alone():
    config = GRPOConfig().environment(env_config={"limit": 1, "tasks": "train"})
    changed = override(config, ["env_config.limit=2", "env_config.split=test"])
    assert changed.env_config == {"limit": 2, "tasks": "train", "split": "test"}
    assert config.env_config == {"limit": 1, "tasks": "train"}


def test_set_strategy_takes_its_preset_whatever_the_order():
    config = override(GRPOConfig(), ["self_iteration_prob=0.25", "strategy=improve"])
    assert (config.strategy, config.self_iteration_prob, config.diversity_bonus) == ("improve", 0.25, False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prompts_per_bach=3", "did you mean prompts_per_batch"),
        ("iteration_prob=1", "self_iteration_prob"),
        ("lr", "key=value"),
        ("lr.x=3", "no dict"),
        ("env_config={a: [", "no JSON or YAML literal"),
        ("strategy=exot", "use one of grpo"),
    ],
)
def test_set_explains_mistakes(setting: str, said: str):
    with pytest.raises(ValueError) as error:
        override(GRPOConfig(), [setting])
    assert said in str(error.value)


def test_files_import_their_neighbours(tmp_path: Path, tiny_model: str):
    (tmp_path / "cli_neighbour.py").write_text("STOP = {'training_iteration': 2}")
    path = tmp_path / "example.py"
    path.write_text(
        "from cli_neighbour import STOP as stop\nfrom tests.cli.helpers import make_config\n"
        f"config = make_config({tiny_model!r})\n"
    )
    config, stop, _ = load_file(path)
    assert stop == {"training_iteration": 2}
    assert config.model_name == tiny_model


def test_an_evaluations_own_config_can_be_checked(tiny_model: str):
    config = make_config(tiny_model).evaluation(evaluation_interval=5)
    check(config)
    evaluation: Any = config.get_evaluation_config_object()
    check(evaluation)
    evaluation.temperature = -1
    with pytest.raises(ValueError, match="temperature is -1"):
        check(evaluation)


@pytest.mark.parametrize("own", ["envs/my_env.py", "envs.py"])
def test_an_envs_beside_the_file_is_named(own: str, tmp_path: Path) -> None:
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).touch()
    file = tmp_path / "train.py"
    file.write_text("from envs.my_env import MyEnv")
    with pytest.raises(ValueError, match=r"/envs(\.py)? and a package of rllib-exit have one name, `envs`: rename it"):
        load_file(file)
