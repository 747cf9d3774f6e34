from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rllib_exit.cli.config import check, load_file, override
from rllib_exit.grpo.config import GRPOConfig
from tests.cli.helpers import DigitEnv, make_config


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


EVERYTHING = """
import dataclasses, enum, functools, typing
from typing import NamedTuple
from neighbour import SIGN
from tests.cli.helpers import DigitEnv, make_config

Name = typing.NewType("Name", str)
CACHE: dict[str, int] = {}

class Kind(enum.Enum):
    ONE = 1

class Pair(NamedTuple):
    kind: Kind

@dataclasses.dataclass(frozen=True)
class Row:
    pair: Pair

@functools.cache
def factorial(n: int) -> int:
    return n * factorial(n - 1) if n else 1

@functools.lru_cache(maxsize=3)
def row() -> Row:
    return Row(Pair(Kind.ONE))

def adder(a):
    return lambda b: a + b

class MyEnv(DigitEnv):
    @functools.cache
    def known(self, name: Name):
        return f"{factorial(4)} {adder(1)(2)} {row().pair.kind.name} {SIGN} {len(CACHE)}"

config = make_config(MODEL).environment(MyEnv)
"""


def test_a_file_may_define_anything_and_reaches_the_workers(tmp_path: Path, tiny_model: str) -> None:
    from ray import cloudpickle

    (tmp_path / "neighbour.py").write_text("import functools\nSIGN = '+'\n")
    file = tmp_path / "anything.py"
    file.write_text(EVERYTHING.replace("MODEL", repr(tiny_model)))
    config, _, _ = load_file(file)
    assert config.env is not None
    (tmp_path / "config.pkl").write_bytes(cloudpickle.dumps(config.env))  # pyright: ignore
    # A worker sends it on to others.
    script = (
        "import sys, pickle\nfrom ray import cloudpickle\nenv = pickle.load(open(sys.argv[1], 'rb'))\n"
        "env = pickle.loads(cloudpickle.dumps(env))({})\nprint(env.known('x'))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "config.pkl")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.stdout.splitlines()[:1] == ["24 3 ONE + 0"], result.stderr


def test_what_cannot_reach_the_workers_is_told(tmp_path: Path, tiny_model: str) -> None:
    file = tmp_path / "lock.py"
    file.write_text(
        "import threading\nfrom tests.cli.helpers import DigitEnv, make_config\nlock = threading.Lock()\n"
        "class MyEnv(DigitEnv):\n    def begin(self, task):\n        lock.acquire()\n"
        f"config = make_config({tiny_model!r}).environment(MyEnv)\n"
    )
    with pytest.raises(ValueError, match=r"lock\.py: its config cannot be sent to Ray's workers \(TypeError: .*lock"):
        load_file(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\nconfig = y\n", "broken.py:2: NameError: name 'y' is not defined"),
        ("x = 1\nconfig = (\n", "broken.py:2: SyntaxError: '(' was never closed"),
        ("import no_such_module", "broken.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from rllib_exit import GRPOConfig\nGRPOConfig().training(gama=1)", "broken.py:2: TypeError: .*no argument"),
    ],
)
def test_what_a_file_raises_is_told_in_one_line(
    tmp_path: Path, content: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(content)
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        load_file(Path("broken.py"))


class NoNumber(DigitEnv):
    def respond(self, task: Any, response: str) -> Any:
        return 1.0


class NoState(DigitEnv):
    def begin(self, task: Any) -> None:
        raise KeyError(task.id)


class NoText(DigitEnv):
    def prompt(self, task: Any) -> Any:
        return [{"role": "user", "content": 3}]


class NoEnv(DigitEnv):
    def __init__(self, config: dict[str, Any]) -> None:
        raise TypeError("no such thing")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (NoNumber, r"NoNumber fails in an episode tried out: TypeError: NoNumber.respond gave 1.0: it must be an Out"),
        (NoState, r"NoState fails in an episode tried out: KeyError: 't\d' \(test_config.py:\d+\)"),
        (NoText, r"prompt gave the content 3: it must be a text"),
        (NoEnv, r"env .*NoEnv.* cannot be made: TypeError: no such thing"),
    ],
)
def test_an_env_is_tried_out_before_a_model_is_loaded(env: Any, said: str, tiny_model: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(make_config(tiny_model).environment(env))


def test_the_mends_for_models(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json: give the directory of a model"):
        check(make_config(str(tmp_path)))
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template: use an instruction-tuned model, or give the template"):
        check(make_config(str(base)))
    config = make_config(str(base)).language_model(chat_template_kwargs={"chat_template": "{{ messages }}"})
    check(config)
