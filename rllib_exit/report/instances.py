"""The task instances that a run trained on: how many differ, and by how much (paper section 5.5).

An instance is told from others by its id in the log of rollouts: a digest of the task and the responses up to the
iterate. A *new* instance is one that the curriculum made: it has a history or an iterate.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rllib_exit.report.runs import Run

# At most so many instances of a run are embedded.
SAMPLE = 300


@dataclass(slots=True)
class Instance:
    """A task instance, and how it was trained on.

    Attributes:
        id: That of the log of rollouts.
        task_id: Its base task.
        starting_turn: t.
        depth: The number of self-iteration steps behind its iterate.
        first_iteration: When it was first rolled out.
        groups: How many groups were rolled out from it.
        quality: The mean quality of its rollouts.
    """

    id: str
    task_id: str
    starting_turn: int
    depth: int
    first_iteration: int
    iterated: bool
    groups: int = 0
    quality: float = 0.0

    @property
    def new(self) -> bool:
        """Whether the curriculum made it."""
        return self.iterated or self.starting_turn > 0


def instances(run: Run) -> list[Instance]:
    """The distinct task instances of a run, in the order in which they were first rolled out."""
    assert run.log is not None
    columns = ["iteration", "group_id", "task_id", "kind", "starting_turn", "depth", "instance_id", "quality"]
    found: dict[str, Instance] = {}
    groups: dict[str, set[str]] = {}
    qualities: dict[str, list[float]] = {}
    for row in run.log.read(columns=columns):
        # The base instance of a task and a replay from an empty history have the same id.
        name = row["instance_id"]
        if name not in found:
            found[name] = Instance(
                name, row["task_id"], row["starting_turn"], row["depth"], row["iteration"], row["kind"] != "base"
            )
        groups.setdefault(name, set()).add(row["group_id"])
        qualities.setdefault(name, []).append(row["quality"])
    for name, instance in found.items():
        instance.groups = len(groups[name])
        instance.quality = float(np.mean(qualities[name]))
    return list(found.values())


def sample(of: Sequence[Instance], size: int = SAMPLE, seed: int = 0) -> list[Instance]:
    """At most ``size`` of them, drawn uniformly, in their order."""
    if len(of) <= size:
        return list(of)
    return [of[i] for i in sorted(np.random.default_rng(seed).choice(len(of), size=size, replace=False))]


def task_prompts(run: Run) -> dict[str, str]:
    """The prompts of a run's base tasks, from its environment.

    Raises:
        ValueError: If the environment cannot be made here.
    """
    from rllib_exit.env_runners.environments import make_env

    file = run.trials[0] / "params.pkl"
    try:
        config = pickle.loads(file.read_bytes())
        env = make_env(config["env"], config["env_config"])
    except Exception as error:  # whatever an environment's constructor raises without its data
        raise ValueError(f"the run's environment cannot be made here ({type(error).__name__}: {error})") from error
    return {task.id: task.prompt for task in env.tasks.values()}


def texts(run: Run, of: Sequence[Instance], prompts: Mapping[str, str]) -> list[str]:
    """What tells instances apart to a reader, one text each.

    It is the iterate, if there is one, and then the request that it answers: the last turn's feedback, or the task's
    prompt. The iterate comes first, because embedders cut long texts.
    """
    import pyarrow.dataset as ds

    assert run.log is not None
    asked = {instance.id for instance in of}
    columns = ["instance_id", "task_id", "starting_turn", "iterate", "turns"]
    written: dict[str, str] = {}
    for row in run.log.read((ds.field("g") == 0) & ds.field("instance_id").isin(list(asked)), columns=columns):
        history = row["turns"][: row["starting_turn"]]
        request = (history[-1]["feedback"] or "") if history else prompts.get(row["task_id"], row["task_id"])
        iterate = [row["iterate"]["response"]] if row["iterate"] else []
        written.setdefault(row["instance_id"], "\n\n".join([*iterate, request]))
    return [written[instance.id] for instance in of]


def mean_distances(embeddings_NE: np.ndarray) -> tuple[float, float]:
    """The mean cosine and L2 distance between two embeddings of a set, over all pairs; scaled to unit length.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(embeddings_NE) < 2:
        raise ValueError("a distance needs two embeddings")
    unit = embeddings_NE / np.maximum(np.linalg.norm(embeddings_NE, axis=1, keepdims=True), 1e-12)
    cosine = np.clip((unit @ unit.T)[np.triu_indices(len(unit), k=1)], -1.0, 1.0)
    return float((1 - cosine).mean()), float(np.sqrt(2 - 2 * cosine).mean())


def umap_map(embeddings_NE: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) the UMAP of embeddings by cosine distance (McInnes et al., 2018).

    Raises:
        ValueError: If umap-learn is not installed, or there are too few.
    """
    if len(embeddings_NE) < 10:
        raise ValueError(f"a map needs at least 10 instances, there are {len(embeddings_NE)}")
    try:
        import umap
    except ImportError as error:
        raise ValueError(f"umap-learn cannot be loaded ({error}): run `pip install umap-learn`") from error
    neighbors = min(15, len(embeddings_NE) - 1)
    # The spectral start needs more points than dimensions of the graph's pieces.
    start = "spectral" if len(embeddings_NE) > 50 else "random"
    mapper = umap.UMAP(n_neighbors=neighbors, metric="cosine", init=start, random_state=seed, n_jobs=1)
    return np.asarray(mapper.fit_transform(embeddings_NE), dtype=float)
