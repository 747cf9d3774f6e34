import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import TaskInstance, Turn
from envs.dataset.env import DatasetEnv
from envs.dataset.rewards import exact_match

ROWS = [{"question": f"What is {i} + {i}?", "gold": 2 * i, "level": "easy"} for i in range(200)]
OPTIONS: dict[str, Any] = {"prompt": "question", "answer": "gold", "rewards": exact_match}


def make(**options: Any) -> DatasetEnv:
    return DatasetEnv({"data": ROWS, **OPTIONS, **options})


def test_every_kind_of_file_gives_the_same_tasks(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text(
        "question,gold,level\n" + "".join(f"{r['question']},{r['gold']},{r['level']}\n" for r in ROWS)
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_bytes((tmp_path / "x.jsonl").read_bytes())
    expected = make().tasks
    assert len(expected) == 200
    for name in ("x.jsonl", "x.parquet", "x.csv", "folder"):
        assert make(data=tmp_path / name).tasks == expected, name


def test_an_episode() -> None:
    env = make(system_prompt="Answer.", instruction="In digits.")
    check_env(env, skip_render_check=True)
    env.reset(options={"instance": TaskInstance("4")})
    assert env.messages() == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "What is 3 + 3?\n\nIn digits."},
    ]
    _, reward, done, _, _ = env.step("6")
    assert reward == 1 and done
    assert env.demonstration(env.task) == ["6"] and env.gold(env.task) == "6"
    assert make(answer="", rewards=lambda response, gold: 1.0).gold(env.task) is None


def test_several_rewards_are_a_weighted_mean_and_their_feedback_is_shown() -> None:
    def brief(response: str, level: str) -> tuple[float, str]:
        assert level == "easy"
        return 0.5, "Be brief."

    env = make(rewards=[(exact_match, 3), brief])
    env.reset(options={"instance": TaskInstance("4")})
    outcome = env.step("6")[4]["outcome"]
    assert outcome.quality == pytest.approx(3.5 / 4) and outcome.feedback == "Be brief."
    assert outcome.metrics == {"exact_match": 1.0, "brief": 0.5}
    env.reset(options={"instance": TaskInstance("4", iterate=Turn("7", "Be brief."), kind="improve")})
    assert "Be brief." in env.messages()[-1]["content"]


def test_rows_without_an_answer() -> None:
    env = make(answer="", rewards=lambda response, gold: float(response == str(gold)))
    env.reset(options={"instance": TaskInstance("4")})
    assert env.step("6")[1] == 1
    with pytest.raises(NotImplementedError):
        env.demonstration(env.task)


def test_the_splits_are_disjoint_and_do_not_depend_on_the_order() -> None:
    train, test, both = (make(split=split).tasks for split in ("train", "test", "all"))
    assert train | test == both and not train.keys() & test.keys() and 10 <= len(test) <= 35
    turned = make(split="test", data=ROWS[::-1])
    assert {task.prompt for task in turned.tasks.values()} == {task.prompt for task in test.values()}


def test_few_shot_rows_are_shown_and_are_no_tasks() -> None:
    env = make(few_shot=2, instruction="In digits.")
    assert "1" not in env.tasks and "2" not in env.tasks and len(env.tasks) == 198
    env.reset(options={"instance": TaskInstance("3")})
    assert [message["content"] for message in env.messages()] == [
        *("What is 0 + 0?\n\nIn digits.", "0", "What is 1 + 1?\n\nIn digits.", "2", "What is 2 + 2?\n\nIn digits."),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "text"}, "prompt is 'text': no such column in row 1 of data, which has question='What is 0"),
        ({"answer": "answer"}, "answer is 'answer': no such column in row 1 of data, which has .*gold='0'"),
        ({"data": [{"question": "Q", "gold": " "}]}, "data: column 'gold' of row 1 is empty"),
        ({"data": []}, "data: there are no rows"),
        ({"data": ROWS[:1], "split": "test"}, "split is 'test', which has none of 1 rows: change test_fraction"),
        ({"rewards": ()}, "rewards is .*: give at least one"),
        ({"rewards": [3]}, "reward is 3: use a function"),
        ({"promt": "question"}, "no option 'promt'.*Did you mean 'prompt'"),
        ({"test_fraction": 1}, "test_fraction is 1"),
        ({"few_shot": 1, "answer": ""}, "few_shot is 1 but answer is empty"),
    ],
)
def test_what_cannot_be_used(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="rewards is missing: set it"):
        DatasetEnv({"data": ROWS, "prompt": "question", "answer": "gold"})
    with pytest.raises(FileNotFoundError, match="no such file"):
        make(data="gone.jsonl")


def test_broken_csv_files(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("question,gold\nQ\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: its number of cells is not that of the header"):
        make(data=file)
    file.write_bytes(b"question,gold\n\xff,1\n")
    with pytest.raises(ValueError, match=r"x\.csv: not a readable CSV file"):
        make(data=file)
