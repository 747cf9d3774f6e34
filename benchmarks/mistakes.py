"""How long a new user's mistakes take to be told, and what is said: the table of ``docs/troubleshooting.md``.

    python benchmarks/mistakes.py [WORDS...]

With words, only the mistakes that have one of them in their names are made. The seconds are those of the command's CPU
time, which on an idle machine are about those of the clock; that the command starts is a part of them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RLLIB = [sys.executable, "-c", "from rllib_exit.cli.main import main; main()"]
MODEL = "bundled:countdown-1m"

# What a file begins with, and a whole one that is right.
HEAD = """
import functools
from rllib_exit import GRPOConfig, Message, Outcome, SelfImprovementEnv, Task, exact_match

class MyEnv(SelfImprovementEnv):
    max_turns = 1
    def __init__(self, env_config):
        super().__init__([Task("a", "1 2 make 3"), Task("b", "1 3 make 4")])
    def prompt(self, task):
        return [{"role": "user", "content": task.prompt}]
    def respond(self, task, response):
        return Outcome(float("+" in response), "no")
"""
CONFIG = f"""
config = (GRPOConfig().environment(MyEnv)
    .language_model("{MODEL}", dtype="float32", max_model_len=128)
    .generation(max_response_tokens=8).training(lr=1e-4, prompts_per_batch=2, rollouts_per_prompt=2, kl_coeff=0.0)
    .curriculum("exit", buffer_size=8, min_buffer_size=2, diversity_metric="edit_distance"))
stop = {{"training_iteration": 1}}
"""
GOOD = HEAD + CONFIG
DATA = GOOD + 'config.dataset("rows.jsonl", prompt="question", answer="gold").reward(exact_match)\n'
FILE = ["train", "file", "train.py", "--scale", "cpu"]
ROWS = ["train", "--dataset", "rows.jsonl", "--prompt", "question", "--answer", "gold", "--scale", "cpu"]

# By what is wrong: the file's text, and the command.
MISTAKES: dict[str, tuple[str, list[str]]] = {
    "a file that does not exist": (GOOD, ["train", "file", "trian.py"]),
    "`rllib train FILE` without `file`": (GOOD, ["train", "train.py"]),
    "a data set that does not exist": (GOOD, ["train", "--dataset", "row.jsonl", "--reward", "math"]),
    "a wrong option of the command": (GOOD, [*FILE, "--stop-iter", "3"]),
    "a syntax error in the file": (GOOD + "config = (\n", FILE),
    "an error at the file's top level": (GOOD + "confg.training(lr=1)\n", FILE),
    "a file without `config`": (HEAD, FILE),
    "an argument of a method that does not exist": (GOOD + "config.training(learning_rate=1e-5)\n", FILE),
    "a setting of RLlib's that means nothing here": (GOOD + "config.training(gamma=0.9)\n", FILE),
    "`--set` of a name that does not exist": (GOOD, [*FILE, "--set", "prompt_per_batch=4"]),
    "`--set model=foo`": (GOOD, [*FILE, "--set", "model=foo"]),
    "a value that cannot be": (GOOD, [*FILE, "--set", "rollouts_per_prompt=1"]),
    "minibatches of no rollouts": (GOOD, [*FILE, "--set", "minibatch_size=0"]),
    "a model path that does not exist": (GOOD, [*FILE, "--set", "model_name=models/mine"]),
    "a directory that holds no model": (GOOD, [*FILE, "--set", "model_name=."]),
    "a base model without a chat template": (GOOD, [*FILE, "--set", "model_name=base"]),
    "a wrong column": (GOOD, [*ROWS[:-4], "--answer", "answers", "--reward", "math", "--model", MODEL]),
    "a broken row": (GOOD, ["train", "--dataset", "broken.jsonl", *ROWS[3:], "--reward", "math", "--model", MODEL]),
    "a reward's name that does not exist": (GOOD, [*ROWS, "--reward", "exact", "--model", MODEL]),
    "a reward that asks for a column that is not there": (
        DATA + "config.reward(lambda response, golden: 1.0)\n",
        FILE,
    ),
    "a reward that is no number": (DATA + "config.reward(lambda response: 'good')\n", FILE),
    "an env that raises in `begin`": (
        HEAD + "    def begin(self, task):\n        self.state[task.id] = 0\n" + CONFIG,
        FILE,
    ),
    "an env whose `respond` gives a number": (GOOD.replace('Outcome(float("+" in response), "no")', "1.0"), FILE),
    "an env without `respond`": (GOOD.replace("def respond", "def reply"), FILE),
    "a stop condition that is no number": (GOOD + 'stop = {"training_iteration": "1"}\n', FILE),
    "a stop condition on a metric that does not exist": (GOOD + 'stop = {"rollouts/reward_mean": 0.5}\n', FILE),
    "a cached function at the file's top level (no mistake)": (
        GOOD.replace("class MyEnv", "@functools.cache\ndef plus():\n    return '+'\n\nclass MyEnv").replace(
            '"+" in', "plus() in"
        ),
        FILE,
    ),
    "an open file or lock that the env uses": (
        "import threading\nlock = threading.Lock()\n" + GOOD.replace('"no")', "str(lock))"),
        FILE,
    ),
    "a folder `envs` of one's own": (GOOD, ["train", "file", "own/train.py", "--scale", "cpu"]),
    "more GPUs than there are": (GOOD + "config.learners(num_learners=1, num_gpus_per_learner=1)\n", FILE),
    "a resume from where nothing is": (GOOD, [*FILE, "--resume", "results/none"]),
}


def main() -> None:
    """Prints the table."""
    print("| mistake | seconds | message |\n|---|---|---|", flush=True)
    for name, (text, command) in MISTAKES.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory() as directory:
            write_files(Path(directory), text)
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run = subprocess.run(
                [*RLLIB, *command], cwd=directory, env=environment, capture_output=True, text=True, check=False
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        said = " ".join(run.stderr.translate(str.maketrans("╭╮╰╯│─|", "       ")).split()).replace(directory, "…")
        said = said.rpartition(" Error ")[2] if run.returncode else "none: it trains"
        print(f"| {name} | {seconds:.1f} | {said[:400]} |", flush=True)


def write_files(directory: Path, text: str) -> None:
    """Writes what the commands are run on."""
    (directory / "train.py").write_text(text)
    rows = [json.dumps({"question": f"What is {i} + 1?", "gold": i + 1}) for i in range(40)]
    (directory / "rows.jsonl").write_text("\n".join(rows))
    (directory / "broken.jsonl").write_text("\n".join([*rows, '{"question": "What is']))
    (directory / "own" / "envs").mkdir(parents=True)
    (directory / "own" / "envs" / "mine.py").touch()
    (directory / "own" / "train.py").write_text("from envs.mine import MyEnv\n" + text)
    (directory / "base").mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (directory / "base" / name).write_text("{}")


if __name__ == "__main__":
    main()
