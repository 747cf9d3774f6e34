"""Whether our grading of tool use is that of BFCL's own checker, on perturbed trajectories of its four categories.

    python benchmarks/bfcl_agreement.py

For every task the ground truth must have a reward of 1 and be accepted by the checker. Then it is perturbed: calls are
left out, repeated, swapped, moved to another request, changed in an argument, or added. ``official_accuracy`` must be
what the package's untouched checker says of the same calls, written as the text that it evaluates. A table says how
often the reward, which the paper defines in another way, agrees with it too.

Functions that the task does not offer are not called: the environment refuses them, while the package's executor knows
every function.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.base import Outcome, Task, TaskInstance  # noqa: E402
from envs.bfcl.apis import functions, offered  # noqa: E402
from envs.bfcl.env import BFCLEnv  # noqa: E402
from envs.bfcl.tasks import Category, load_tasks, not_offered  # noqa: E402
from envs.tool_use.calls import TASK_FINISHED, Call, format_calls  # noqa: E402
from tests.envs.bfcl import official  # noqa: E402

THREADS = 4
Calls = list[list[Call]]  # by request

_lock = Lock()  # the package keeps its objects as globals


def available(task: Task, request: int) -> set[str]:
    """The names of the functions that are offered with a request."""
    return set(offered(task.data["classes"], not_offered(task, request)))


def drop(calls: Calls, task: Task, rng: random.Random) -> None:
    request = rng.choice([made for made in calls if made])
    request.pop(rng.randrange(len(request)))


def silence(calls: Calls, task: Task, rng: random.Random) -> None:
    """No call for a request."""
    rng.choice([made for made in calls if made]).clear()


def repeat(calls: Calls, task: Task, rng: random.Random) -> None:
    request = rng.choice([made for made in calls if made])
    request.insert(rng.randrange(len(request) + 1), rng.choice(request))


def shuffle(calls: Calls, task: Task, rng: random.Random) -> None:
    rng.shuffle(rng.choice([made for made in calls if made]))


def move(calls: Calls, task: Task, rng: random.Random) -> None:
    """A call is made for another request, also for one that nothing fulfils."""
    request = rng.choice([made for made in calls if made])
    call = request.pop(rng.randrange(len(request)))
    target = rng.choice([i for i in range(len(calls)) if call.name in available(task, i)])
    calls[target].insert(rng.randrange(len(calls[target]) + 1), call)


def change(calls: Calls, task: Task, rng: random.Random) -> None:
    """Another value for an argument."""
    with_arguments = [(made, i) for made in calls for i, call in enumerate(made) if call.args]
    if not with_arguments:
        return
    request, i = rng.choice(with_arguments)
    name = rng.choice(list(request[i].args))
    old = request[i].args[name]
    new = {
        bool: lambda: not old,
        int: lambda: rng.choice([old + 1, float(old), -old]),
        float: lambda: old * 2,
        str: lambda: rng.choice([old.upper(), old + "x", ""]),
    }.get(type(old), lambda: None)()
    request[i] = Call(request[i].name, {**request[i].args, name: new})


def add(calls: Calls, task: Task, rng: random.Random) -> None:
    """A call that another task's ground truth makes."""
    i = rng.randrange(len(calls))
    names = available(task, i)
    calls[i].insert(rng.randrange(len(calls[i]) + 1), rng.choice([call for call in _pool() if call.name in names]))


@functools.cache
def _pool() -> list[Call]:
    """The calls of all ground truths."""
    return [call for task in load_tasks("all") for calls in task.data["ground_truth"] for call in calls]


PERTURBATIONS: Sequence[Callable[[Calls, Task, random.Random], None]] = (
    drop, silence, repeat, shuffle, move, change, add,
)  # fmt: skip


def perturbed(task: Task, seed: str) -> Calls:
    """The ground truth after one to three perturbations."""
    rng = random.Random(seed)
    calls = ground_truth(task)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if any(calls):
            rng.choice(PERTURBATIONS)(calls, task, rng)
    return calls


def ground_truth(task: Task) -> Calls:
    return [list(calls) for calls in task.data["ground_truth"]]


def play(env: BFCLEnv, task: Task, calls: Calls) -> Outcome:
    """Makes the calls of every request one at a time, then ends it."""
    env.reset(options={"instance": TaskInstance(task.id)})
    for made in calls:
        for response in (*map(format_calls, made), TASK_FINISHED):
            outcome: Outcome = env.step(response)[4]["outcome"]
    assert outcome.done
    return outcome


def untouched(task: Task, calls: Calls) -> bool:
    """What the package's checker says, given one call a step."""
    texts = [[f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.args.items())})" for c in made] for made in calls]
    with _lock:
        return official.verdict(task.id, texts, official.solutions()[task.id])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perturbations", type=int, default=4, help="trajectories of each task")
    parser.add_argument("--limit", type=int, help="the first N tasks of each category")
    args = parser.parse_args()
    functions()
    disagreements, total, start = [], 0, time.perf_counter()
    print("category      ground truth  perturbed  both  reward only  official only  neither  disagreements")
    for category in get_args(Category):
        tasks = load_tasks("all", category)[: args.limit]

        def judge(part: Sequence[Task], category: str = category) -> list[tuple[str, Calls, bool, bool, bool, bool]]:
            env = BFCLEnv(
                {"split": "all", "category": category, "requests": "all", "max_turns": 1000, "call_timeout_s": 60.0}
            )
            results = []
            for task in part:
                trajectories = [perturbed(task, f"{task.id}/{i}") for i in range(args.perturbations)]
                for i, calls in enumerate([ground_truth(task), *trajectories]):
                    outcome, verdict = play(env, task, calls), untouched(task, calls)
                    ours = bool(outcome.metrics["official_accuracy"])
                    results.append((task.id, calls, i == 0, bool(outcome.quality), ours, verdict))
            return results

        with ThreadPoolExecutor(THREADS) as threads:
            rows = [row for part in threads.map(judge, [tasks[i::THREADS] for i in range(THREADS)]) for row in part]
        right = sum(true and reward and ours and theirs for _, _, true, reward, ours, theirs in rows)
        pairs = Counter((reward, theirs) for _, _, true, reward, _, theirs in rows if not true)
        wrong = [(task_id, calls) for task_id, calls, _, _, ours, theirs in rows if ours != theirs]
        disagreements += wrong
        total += sum(pairs.values())
        print(
            f"{category:12}  {right:>5} of {len(tasks):<4}  {sum(pairs.values()):>9}  {pairs[True, True]:>4}  "
            f"{pairs[True, False]:>11}  {pairs[False, True]:>13}  {pairs[False, False]:>7}  {len(wrong):>13}",
            flush=True,
        )
    print(f"{len(disagreements)} disagreements in {total} trajectories, {time.perf_counter() - start:.0f} s")
    for task_id, calls in disagreements[:10]:
        print(f"  {task_id}: {calls}")
    sys.exit(bool(disagreements))


if __name__ == "__main__":
    main()
