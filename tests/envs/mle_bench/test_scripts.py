"""Hand-written scripts, in the real sandbox: each improves on the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.base import Outcome, TaskInstance
from envs.mle_bench.env import MLEBenchEnv, Result

pytestmark = pytest.mark.slow

READ = """\
import numpy as np
import pandas as pd

train, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")
"""

URGENT = [
    'test["urgent"] = 0.5',
    'test["urgent"] = test["text"].str.count("!").rank(pct=True)',
    'test["urgent"] = test["text"].str.contains("down|deadline|losing|immediately|errors|missing").astype(float)',
    # Naive Bayes.
    """
def words(table):
    return table["text"].str.lower().str.findall(r"\\w+").explode()
labels = train["urgent"]
counts = pd.crosstab(words(train), labels.loc[words(train).index].to_numpy()) + 1
log_odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
test["urgent"] = words(test).map(log_odds).fillna(0).groupby(level=0).sum().rank(pct=True)
""",
]

MINUTES = [
    'test["minutes"] = 10',
    'test["minutes"] = train["minutes"].mean()',
    'test["minutes"] = 20 + 2 * test["distance_km"]',
    """
slope, level = np.polyfit(np.log(train["distance_km"]), np.log(train["minutes"]), 1)
test["minutes"] = np.exp(level + slope * np.log(test["distance_km"]))
""",
    """
def features(table):
    rush, kinds = table["hour"].isin([8, 9, 17, 18]), pd.get_dummies(table[["vehicle", "city"]])
    return np.column_stack([np.log1p(table["distance_km"]), table["weight_kg"], rush, kinds]).astype(float)
weights = np.linalg.lstsq(features(train), np.log(train["minutes"]), rcond=None)[0]
test["minutes"] = np.exp(features(test) @ weights)
""",
]


def answer(env: MLEBenchEnv, name: str, script: str) -> Outcome:
    env.reset(options={"instance": TaskInstance(name)})
    return env.step(f"```python\n{script}\n```")[4]["outcome"]


@pytest.mark.parametrize(("target", "scripts"), [("urgent", URGENT), ("minutes", MINUTES)])
def test_better_scripts_score_better(messages: Path, deliveries: Path, target: str, scripts: list[str]):
    env = MLEBenchEnv({"competitions": [messages, deliveries], "timeout_s": 120})
    name = messages.name if target == "urgent" else deliveries.name
    write = f'test[["id", "{target}"]].to_csv("submission.csv", index=False)'
    outcomes = [answer(env, name, f"{READ}{script}\n{write}") for script in scripts]
    assert all(outcome.metrics["scored"] for outcome in outcomes), outcomes
    qualities = [outcome.quality for outcome in outcomes]
    assert qualities == sorted(set(qualities))  # strictly rising
    assert qualities[-1] > 0.85
    # The simplest scripts have something to gain and, but for the sample submission, something to lose.
    assert qualities[1] > 0.3


def test_the_demonstrations_score(messages: Path, deliveries: Path):
    env = MLEBenchEnv({"competitions": [messages, deliveries]})
    for task in env.tasks.values():
        (response,) = env.demonstration(task)
        env.reset(options={"instance": TaskInstance(task.id)})
        outcome = env.step(response)[4]["outcome"]
        assert 0.5 < outcome.quality < 0.8, outcome.feedback


@pytest.mark.parametrize(
    ("script", "result", "feedback"),
    [
        ("x = = 1", Result.SYNTAX_ERROR, "SyntaxError: invalid syntax"),
        ("if True:\nx = 1", Result.SYNTAX_ERROR, "IndentationError: expected an indented block"),
        ("raise SyntaxError('mine')", Result.SCRIPT_FAILED, "SyntaxError: mine"),
        ("x = '\ud800'\nprint(y)", Result.SCRIPT_FAILED, "NameError: name 'y' is not defined"),
        ("open('data/../prepared/private/test.csv')", Result.SCRIPT_FAILED, "No such file"),
        ("open('data/test.csv', 'a')", Result.SCRIPT_FAILED, "open('data/test.csv', 'a')"),
        ("print('hello')", Result.NO_SUBMISSION, "hello"),
        ("import os; os.symlink('data/sample_submission.csv', 'submission.csv')", Result.NO_SUBMISSION, "without"),
        ("while True: print('x')", Result.TIMED_OUT, "stopped after 1 seconds"),
    ],
)
def test_scripts_that_do_not_score(deliveries: Path, script: str, result: Result, feedback: str):
    env = MLEBenchEnv({"competitions": deliveries, "timeout_s": 1 if result is Result.TIMED_OUT else 60})
    outcome = answer(env, deliveries.name, script)
    assert outcome.metrics[result] == 1.0, outcome.feedback
    assert outcome.feedback and feedback in outcome.feedback
    assert len(outcome.feedback) < 2200
