from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from rllib_exit.cli import sweep_run, sweeps
from rllib_exit.cli.config import load_file
from rllib_exit.cli.sweep_run import RememberingASHA
from rllib_exit.cli.sweeps import PossibleVariants, Row, Sweep
from rllib_exit.cli.training import Training
from rllib_exit.scale import SCALE_VARIABLE
from tests.cli.helpers import make_config, message, run

CURRICULUM = {"buffer_size", "min_buffer_size", "self_iteration_prob", "divergence_prob"}
METRIC = "rollouts/quality_mean"
TUNE_CONFIG = tune.TuneConfig(metric=METRIC, mode="max")


def training(config: Any, stop: dict[str, Any]) -> Training:
    return Training(config, stop, Path("results"), checkpoint_freq=10, verbose=False)


def evaluated(evaluation_interval: int) -> Any:
    return make_config("m").evaluation(evaluation_interval=evaluation_interval)


def swept(model: str = "m", **spaces: Any) -> Any:
    config = make_config(model)
    for name, space in spaces.items():
        setattr(config, name, space)
    return config


# What is swept.


def test_search_spaces_are_found_wherever_they_are():
    config = swept(
        lr=tune.loguniform(1e-6, 1e-4),
        buffer_size=tune.grid_search([256, 512]),
        env_config={"num_tasks": tune.choice([2, 3])},
    )
    assert sweeps.search_spaces(config).keys() == {"lr", "buffer_size", "env_config/num_tasks"}
    assert not sweeps.search_spaces(make_config("m"))


def test_a_sweep_says_its_spaces_as_text_that_a_later_process_writes_alike():
    spaces = {
        "lr": tune.loguniform(1e-6, 1e-4),
        "kl_coeff": tune.grid_search([0.0, 0.1]),
        "min_buffer_size": tune.sample_from(lambda spec: 3),
    }
    sweep = Sweep.of(swept(**spaces), TUNE_CONFIG)
    assert sweep.spaces["lr"] == "float(1e-06, 0.0001)" and sweep.spaces["kl_coeff"] == "grid_search([0.0, 0.1])"
    spaces["min_buffer_size"] = tune.sample_from(lambda spec: 3)
    assert Sweep.of(swept(**spaces), TUNE_CONFIG) == sweep
    spaces["kl_coeff"] = tune.grid_search([0.0, 0.2])
    assert Sweep.of(swept(**spaces), TUNE_CONFIG) != sweep


@pytest.mark.parametrize("tune_config", [None, tune.TuneConfig(), tune.TuneConfig(metric="m")])
def test_a_sweep_needs_a_metric(tune_config: Any):
    with pytest.raises(ValueError, match=r"search spaces \(lr\).*metric="):
        Sweep.of(swept(lr=tune.uniform(0, 1)), tune_config)


def test_values_go_into_a_copy():
    config = swept(env_config={"a": 1, "b": {"c": 2}})
    changed = sweeps.with_values(config, {"lr": 0.5, "env_config/b/c": 3})
    assert (changed.lr, changed.env_config) == (0.5, {"a": 1, "b": {"c": 3}})
    assert config.lr != 0.5 and config.env_config == {"a": 1, "b": {"c": 2}}


def trials(config: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """The values of every trial that the search makes."""
    from ray.tune.experiment import Experiment

    tune.register_trainable("nothing", lambda config: None)
    search = PossibleVariants(config, **kwargs)
    search.add_configurations([Experiment("x", "nothing", config=config.to_dict(), storage_path="/tmp")])
    values = []
    while (trial := search.next_trial()) is not None:
        values.append(trial.evaluated_params)
    assert search.is_finished()
    return values


def test_combinations_that_cannot_be_trained_are_left_out(capsys: pytest.CaptureFixture[str]):
    config = swept(buffer_size=tune.grid_search([3, 24]), min_buffer_size=tune.grid_search([3, 8]))
    pairs = [(values["buffer_size"], values["min_buffer_size"]) for values in trials(config)]
    assert sorted(pairs) == [(3, 3), (24, 3), (24, 8)]
    first = sweeps.check_variants(config)
    assert (first.buffer_size, first.min_buffer_size) == (3, 3)
    assert (
        "1 of 4 combinations: buffer_size is 3: nothing would ever be selected; use min_buffer_size (8)"
        in capsys.readouterr().out
    )


def test_a_sweep_without_any_possible_value_is_an_error():
    with pytest.raises(ValueError, match="rollouts_per_prompt is 1"):
        sweeps.check_variants(swept(rollouts_per_prompt=tune.grid_search([0, 1][::-1])))


def test_random_values_are_the_same_in_every_process():
    config = swept(lr=tune.loguniform(1e-6, 1e-4), kl_coeff=tune.grid_search([0.0, 0.1]))
    assert trials(config, random_state=3) == trials(config, random_state=3) != trials(config, random_state=4)


# Schedulers.


def trial(trial_id: str, directory: Path, status: str = "PENDING", checkpoint_at: int | None = None) -> Any:
    checkpoint = SimpleNamespace(metrics={"training_iteration": checkpoint_at}) if checkpoint_at else None
    path = directory / trial_id
    path.mkdir(exist_ok=True)
    return SimpleNamespace(
        trial_id=trial_id,
        status=status,
        path=str(path),
        latest_checkpoint_result=checkpoint,
        has_reported_at_least_once=(path / "result.json").exists(),
    )


def result(iteration: int, quality: float) -> dict[str, Any]:
    return {"training_iteration": iteration, "rollouts": {"quality_mean": quality}}


def asha(iterations: int = 9) -> Any:
    scheduler = sweep_run.make_scheduler("asha", training(make_config("m"), {"training_iteration": iterations}))
    assert scheduler.set_search_properties(METRIC, "max")
    return scheduler


def play(scheduler: Any, played: Any, quality: float, iterations: int = 9) -> int:
    """Trains a trial at a constant quality under a scheduler; how far it gets."""
    scheduler.on_trial_add(None, played)
    with open(Path(played.path) / "result.json", "a") as log:
        for i in range(1, iterations + 1):
            log.write(json.dumps(result(i, quality)) + "\n")
            if scheduler.on_trial_result(None, played, {"training_iteration": i, METRIC: quality}) == "STOP":
                return i
    return iterations


def test_asha_stops_poor_trials_at_a_ninth_of_the_iterations(tmp_path: Path):
    scheduler = asha()
    lengths = [play(scheduler, trial(f"t{i}", tmp_path), quality) for i, quality in enumerate([0.5, 0.1, 0.6, 0.2])]
    assert lengths == [9, 1, 9, 1]


def test_asha_remembers_in_a_resumed_sweep(tmp_path: Path):
    scheduler = asha()
    for i, quality in enumerate([0.5, 0.6]):
        play(scheduler, trial(f"t{i}", tmp_path), quality)
    resumed = asha()
    for i in range(2):
        resumed.on_trial_add(None, trial(f"t{i}", tmp_path, "TERMINATED"))
    assert play(resumed, trial("t2", tmp_path), 0.3) == 1
    # Without memory, the first trial after the kill would have nothing to be compared with.
    assert play(asha(), trial("t3", tmp_path), 0.3) == 9


def test_asha_judges_anew_what_was_lost_since_the_checkpoint(tmp_path: Path):
    for i in range(2):
        play(asha(), trial(f"t{i}", tmp_path), 0.5 + i / 10)
    lost = trial("t2", tmp_path, "PENDING")
    (Path(lost.path) / "result.json").write_text(json.dumps(result(1, 0.3)) + '\n{"training_it')
    sweep_run.mend_results(tmp_path)
    assert sweep_run.reported(Path(lost.path)) == [result(1, 0.3)]
    resumed = asha()
    for i in range(2):
        resumed.on_trial_add(None, trial(f"t{i}", tmp_path, "TERMINATED"))
    assert play(resumed, lost, 0.3) == 1
    kept = trial("t2", tmp_path, "PENDING", checkpoint_at=1)
    assert play(asha(), kept, 0.3) == 9


def test_schedulers_wait_for_evaluations():
    config: Any = make_config("m")
    config.evaluation_interval = 4
    scheduler = sweep_run.make_scheduler("asha", training(config, {"training_iteration": 20}))
    assert isinstance(scheduler, RememberingASHA) and [m for m, _ in scheduler._brackets[0]._rungs] == [12, 4]
    config.lr = tune.grid_search([1e-6, 1e-5])
    assert sweep_run.make_scheduler("pbt", training(config, {"training_iteration": 20}))._perturbation_interval == 4
    assert sweep_run.make_scheduler("none", training(config, {})) is None


def test_pbt_mutates_what_may_change_in_mid_run():
    config = swept(
        lr=tune.grid_search([1e-6, 1e-5]), self_iteration_prob=tune.uniform(0, 1), buffer_size=tune.choice([9])
    )
    scheduler = sweep_run.make_scheduler("pbt", training(config, {"training_iteration": 30}))
    assert isinstance(scheduler, PopulationBasedTraining)
    assert scheduler._hyperparam_mutations.keys() == {"lr", "self_iteration_prob"}
    assert scheduler._hyperparam_mutations["lr"] == [1e-6, 1e-5]


@pytest.mark.parametrize(
    ("name", "stop", "said"),
    [
        ("hyperband", {"training_iteration": 9}, "none, asha, pbt"),
        ("asha", {}, "--stop-iters"),
        ("pbt", {"training_iteration": 9}, "give a search space to one of lr"),
    ],
)
def test_schedulers_say_what_they_lack(name: str, stop: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        sweep_run.make_scheduler(name, training(swept(buffer_size=tune.choice([9])), stop))


def test_two_trials_share_a_gpu_by_fractions_in_their_placement_groups():
    config = swept(lr=tune.grid_search([1e-6, 1e-5]))
    config.learners(num_gpus_per_learner=0.25).env_runners(num_gpus_per_env_runner=0.25)
    request: Any = config.algo_class.default_resource_request(sweeps.check_variants(config).to_dict())
    assert request.required_resources["GPU"] == 0.5


# The ranking.


@pytest.mark.parametrize(("mode", "order"), [("max", "bac"), ("min", "cab")])
def test_ranks_the_best_first_and_what_has_no_score_last(mode: str, order: str):
    scores = {"n": float("nan"), "a": 0.2, "b": 0.3, "0": None, "c": 0.1}
    ranked = sweeps.rank([Row(name, {}, score, 1, "ended") for name, score in scores.items()], mode)
    assert "".join(row.trial_id for row in ranked) == order + "n0"


def test_a_failed_trial_is_last_whatever_its_score():
    rows = [Row("f", {}, 0.9, 1, "failed"), Row("0", {}, None, 1, "ended"), Row("a", {}, 0.2, 1, "ended")]
    assert "".join(row.trial_id for row in sweeps.rank(rows, "max")) == "a0f"


def fake_trial(trial_id: str, lr: float, score: float | None, iterations: int, status: str = "TERMINATED") -> Any:
    return SimpleNamespace(
        trial_id=trial_id,
        status=status,
        config={"lr": lr},
        last_result={"training_iteration": iterations} if iterations else None,
        metric_analysis={METRIC: {"last": score, "max": 1.0}} if score is not None else {},
        checkpoint=SimpleNamespace(path=f"/results/{trial_id}/checkpoint"),
    )


SWEEP = Sweep(METRIC, "max", {"lr": "grid_search([1e-06, 1e-05])"})
TRIALS = [fake_trial("t0", 1e-6, 0.25, 9), fake_trial("t1", 1e-5, 0.75, 9), fake_trial("t2", 1e-4, 0.1, 3),
          fake_trial("t3", 1e-3, 0.5, 2, "RUNNING"), fake_trial("t4", 1e-2, None, 0, "ERROR")]  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(SWEEP)))
    (tmp_path / "experiment_state-1.json").write_text("{}")
    monkeypatch.setattr(sweeps, "ExperimentAnalysis", lambda path: SimpleNamespace(trials=TRIALS))
    return tmp_path


def test_sweep_table_ranks_and_names_the_best(directory: Path):
    shown = run("sweep-table", directory).output
    rows = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[1:-1]] for row in rows] == [
        ["1", "t1", "1e-05", "0.75", "9", "ended"],
        ["2", "t3", "0.001", "0.5", "2", "unfinished"],
        ["3", "t0", "1e-06", "0.25", "9", "ended"],
        ["4", "t2", "0.0001", "0.1", "3", "stopped early"],
        ["5", "t4", "0.01", "", "0", "failed"],
    ]
    assert "best: lr=1e-05" in shown and "checkpoint: /results/t1/checkpoint" in shown
    assert f"--best-of {directory}" in shown.replace("\n", "")


def test_sweep_table_wants_a_sweep(tmp_path: Path):
    assert "holds no sweep" in message(run("sweep-table", tmp_path))
    (tmp_path / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(SWEEP)))
    assert "has written nothing yet" in message(run("sweep-table", tmp_path))


def test_the_best_values_are_taken_but_for_what_is_swept(directory: Path, capsys: pytest.CaptureFixture[str]):
    assert sweeps.best_values(make_config("m"), directory, []) == {"lr": 1e-5}
    assert "1 of its 5 trials have not ended" in capsys.readouterr().out
    assert sweeps.best_values(swept(lr=tune.grid_search([1.0])), directory, []) == {}


def test_what_a_sweep_took_from_another_is_taken_with_its_best(directory: Path):
    sweep = replace(SWEEP, taken={"kl_coeff": 0.01, "lr": 1.0})
    (directory / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(sweep)))
    assert sweeps.best_values(make_config("m"), directory, []) == {"kl_coeff": 0.01, "lr": 1e-5}


def test_what_is_set_is_not_taken(directory: Path):
    taken = {"kl_coeff": 0.01, "env_config/a": 1, "env_config/b": 2, "model_config": {"c": 3}}
    (directory / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(replace(SWEEP, taken=taken))))
    settings = ["lr=0.5", "env_config.a=2", "model_config.c=4"]
    assert sweeps.best_values(make_config("m"), directory, settings) == {"kl_coeff": 0.01, "env_config/b": 2}


@pytest.mark.parametrize("row", [Row("f", {}, 0.9, 1, "failed"), Row("n", {}, float("nan"), 1, "ended")])
def test_nothing_is_taken_from_what_failed_or_has_no_score(
    row: Row, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sweeps, "load_rows", lambda directory: ([row], SWEEP))
    with pytest.raises(ValueError, match="has a score"):
        sweeps.best_values(make_config("m"), directory, [])
    sweeps.say_best([row], SWEEP, directory)
    assert capsys.readouterr().out == "no trial has a score\n"


# The command.


@pytest.fixture
def sweep_file(tmp_path: Path, tiny_model: str) -> Path:
    path = tmp_path / "sweep.py"
    path.write_text(
        "from ray import tune\n"
        "from tests.cli.helpers import make_config\n"
        f"config = make_config({tiny_model!r}).training(lr=tune.grid_search([1e-6, 1e-5]))\n"
        "stop = {'training_iteration': 3}\n"
        f"tune_config = tune.TuneConfig(metric={METRIC!r}, mode='max')\n"
    )
    return path


@pytest.mark.usefixtures("no_ray")
def test_train_explains_mistakes_in_a_sweep(
    sweep_file: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    results = tmp_path / "results"
    assert "use none, asha, pbt" in message(run("train", "file", sweep_file, "--scheduler", "x"))
    assert "holds no sweep" in message(run("train", "file", sweep_file, "--resume", tmp_path))
    (results / "sweep").mkdir(parents=True)
    (results / "sweep" / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(SWEEP)))
    assert "written nothing" in message(run("train", "file", sweep_file, "--resume", results / "sweep"))
    monkeypatch.setattr(sweeps, "load_rows", lambda directory: ([], SWEEP))
    assert "--resume" in message(run("train", "file", sweep_file, "--results-dir", results))
    said = message(run("train", "file", sweep_file, "--resume", results / "sweep", "--set", "kl_coeff=0.1", "--set",
                       'lr={"grid_search": [1]}'))  # fmt: skip
    assert "grid_search([1])" in said
    monkeypatch.setattr(sweeps, "best_values", lambda *args: {"kl_coeff": 0.5})
    another = Sweep(METRIC, "max", {"lr": "grid_search([1e-06, 1e-05])"}, {"kl_coeff": 0.1})
    monkeypatch.setattr(sweeps, "load_rows", lambda directory: ([], another))
    (results / "sweep" / sweeps.SWEEP_FILE).write_text(json.dumps(asdict(another)))
    said = message(run("train", "file", sweep_file, "--resume", results / "sweep", "--best-of", tmp_path))
    assert "taken {'kl_coeff': 0.1}, and this command has {'kl_coeff': 0.5}" in said
    assert "no search space" in message(run("train", "file", file, "--scheduler", "asha"))
    assert "nothing to rank" in message(run("train", "file", file, "--set", 'lr={"grid_search": [1]}'))


def test_the_metric_has_to_be_there():
    progress = sweep_run.SweepProgress(SWEEP, training(evaluated(2), {"training_iteration": 9}))
    shown = SimpleNamespace(trial_id="t0", evaluated_params={"lr": 1.0})
    progress.on_trial_result(1, [], shown, {"training_iteration": 1, "rollouts": {"return_mean": 0.5}})
    with pytest.raises(ValueError, match="rollouts/return_mean"):
        progress.on_trial_result(2, [], shown, {"training_iteration": 2, "rollouts": {"return_mean": 0.5}})
    progress.on_trial_result(3, [], shown, result(3, 0.5))
    progress.on_trial_result(4, [], shown, {"training_iteration": 4, "rollouts": {"return_mean": 0.5}})


def test_a_resumed_sweep_waits_for_the_next_evaluation():
    progress = sweep_run.SweepProgress(SWEEP, training(evaluated(10), {"training_iteration": 20}))
    shown = SimpleNamespace(trial_id="t0", evaluated_params={"lr": 1.0})
    progress.on_trial_result(1, [], shown, {"training_iteration": 11, "rollouts": {"return_mean": 0.5}})
    with pytest.raises(ValueError, match="rollouts/return_mean"):
        progress.on_trial_result(2, [], shown, {"training_iteration": 20, "rollouts": {"return_mean": 0.5}})


def test_trials_have_to_be_evaluated_before_they_end():
    config: Any = make_config("m").evaluation(evaluation_interval=10)
    sweep = Sweep("evaluation/accuracy/step_0", "max", {})
    with pytest.raises(ValueError, match=r"after 5 iterations.*evaluation_interval is 10.*--stop-iters to 10"):
        sweep_run.check_metric(training(config, {"training_iteration": 5}), sweep)
    sweep_run.check_metric(training(config, {"training_iteration": 10}), sweep)
    sweep_run.check_metric(training(config, {}), sweep)
    sweep_run.check_metric(training(config, {"training_iteration": 5}), SWEEP)
    never: Any = make_config("m").evaluation(evaluation_interval=None)
    with pytest.raises(ValueError, match=r"evaluation_interval is None: set it"):
        sweep_run.check_metric(training(never, {"training_iteration": 5}), sweep)
    sweep_run.check_metric(training(never, {"training_iteration": 5}), SWEEP)


def checkpointed(trial_id: str, directory: Path, status: str, *names: str) -> Any:
    """A trial with checkpoints, the newest one last."""
    made = trial(trial_id, directory, status)
    for name in names:
        (Path(made.path) / name).mkdir()
    made.checkpoint = SimpleNamespace(path=f"{made.path}/{names[-1]}")
    return made


def checkpoints_of(made: Any) -> list[str]:
    return sorted(path.name for path in Path(made.path).iterdir())


def test_a_trial_keeps_its_newest_checkpoint_once_tune_has_written_that_it_ended(tmp_path: Path):
    names = ["checkpoint_000000", "checkpoint_000001"]
    ended, going = (checkpointed(status, tmp_path, status, *names) for status in ("TERMINATED", "RUNNING"))
    failed = checkpointed("ERROR", tmp_path, "ERROR", *names)
    callback = sweep_run.NewestCheckpoints()
    callback.on_step_end(1, [ended, going, failed])
    # Tune writes down that it ended; a kill before the writing is done would still need the older one.
    assert callback.get_state() is None and checkpoints_of(ended) == names
    callback.on_step_end(2, [ended, going, failed])
    assert callback.get_state() is None and checkpoints_of(ended) == names[1:]
    assert checkpoints_of(going) == checkpoints_of(failed) == names


def test_a_checkpoint_that_another_trial_begins_from_is_kept(tmp_path: Path):
    donor = checkpointed("t0", tmp_path, "TERMINATED", "checkpoint_000000", "checkpoint_000001")
    copied = checkpointed("t1", tmp_path, "PAUSED", "checkpoint_000000")
    copied.checkpoint = SimpleNamespace(path=f"{donor.path}/checkpoint_000000")
    sweep_run.delete_older_checkpoints([donor], [donor, copied])
    assert len(checkpoints_of(donor)) == 2


# The tuned examples.


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize(
    ("name", "swept_fields", "metric", "counts"),
    [
        ("math_sweep", {"lr", "kl_coeff"}, "evaluation/accuracy/step_0", (6, 9)),
        ("math_exit_sweep", {"lr", *CURRICULUM}, "evaluation/accuracy/step_0", (54, 108)),
        ("bfcl_sweep", {"lr", "kl_coeff"}, "evaluation/accuracy/step_0", (6, 12)),
        ("bfcl_exit_sweep", {"lr", *CURRICULUM}, "curriculum/starting_turn_plateau", (54, 108)),
        ("mle_sweep", {"lr", "kl_coeff", "ref_update_rate"}, "evaluation/improvement", (18, 27)),
        # No minimum of 8 in a buffer of 3.
        ("mle_exit_sweep", {"lr", *CURRICULUM}, "evaluation/improvement", (189, 189)),
    ],
)
def test_the_sweeps_of_the_paper(
    name: str,
    swept_fields: set[str],
    metric: str,
    counts: tuple[int, int],
    scale: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(SCALE_VARIABLE, scale)
    config, stop, tune_config = load_file(Path("tuned_examples") / f"{name}.py")
    sweep = Sweep.of(config, tune_config)
    assert sweep.spaces.keys() == swept_fields and sweep.metric == metric
    assert sweep_run.make_scheduler("asha", training(config, stop)) and sweep_run.make_scheduler(
        "pbt", training(config, stop)
    )
    sweep_run.check_metric(training(config, stop), sweep)
    values = trials(config)
    assert len(values) == counts[scale == "paper"] and not any(sweeps.mistake(config, v) for v in values)
    if scale == "paper" and name == "bfcl_exit_sweep":
        assert {v["min_buffer_size"] for v in values if v["buffer_size"] == 100} == {100}
        assert {v["min_buffer_size"] for v in values if v["buffer_size"] == 640} == {320}


def test_a_trial_goes_on_from_its_checkpoint_not_from_its_last_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    progress = sweep_run.SweepProgress(SWEEP, training(evaluated(1), {"training_iteration": 9}))
    for checkpoint_at in (None, 2):
        restored = trial("t0", tmp_path, checkpoint_at=checkpoint_at)
        restored.last_result, restored.evaluated_params = result(3, 0.5), {"lr": 1.0}
        progress.on_trial_start(1, [], restored)
    assert capsys.readouterr().out == "t0 lr=1: begins\nt0 lr=1: goes on after iteration 2\n"
