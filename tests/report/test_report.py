from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from markupsafe import Markup

from envs.bfcl.env import BFCLEnv
from envs.mle_bench.env import MLEBenchEnv
from rllib_exit.report import page, report
from rllib_exit.report.figures import rendered
from rllib_exit.report.page import cells, printable, with_code
from rllib_exit.report.sources import Source
from tests.cli.helpers import message, run
from tests.report.runs_on_disk import evaluate, search, train


class Hashed:
    """Embeds by the letters of a text."""

    model = "letters"

    def embed(self, texts: Any) -> np.ndarray:
        return np.array([[text.count(letter) + 1 for letter in "aeiou0123456789"] for text in texts], np.float32)


class Page(HTMLParser):
    """The links, images, ids and text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values["href"] or ""] if tag == "a" else []
        self.images += [values["src"] or ""] if tag == "img" else []
        self.ids += [values["id"] or ""] if "id" in values else []
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(output: Path, name: str) -> list[dict[str, str]]:
    with open(output / "tables" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arithmetic by two strategies and two seeds, tool use by one, ML engineering on three tasks and on one."""
    root = tmp_path_factory.mktemp("runs")
    for strategy in ("grpo", "exit"):
        for seed in (0, 1):
            trial = train(root / f"{strategy}-seed{seed}" / "math", strategy, seed)
            evaluate(trial, steps=2)
    bfcl = {"split": "train", "classes": ["TradingBot"]}
    trial = train(root / "bfcl", "curriculum", 0, env=BFCLEnv, env_config=bfcl, iterations=6, task_ids=["a", "b", "c"])
    evaluate(trial, splits=["test"], metrics=True)
    competitions = [f"/nowhere/{name}" for name in ("one", "two", "three")]
    for name, names in (("three", competitions), ("alone", competitions[:1])):
        tasks = [Path(directory).name for directory in names]
        config = {"competitions": names}
        trial = train(root / name, "grpo", 0, env=MLEBenchEnv, env_config=config, task_ids=tasks, iterations=4)
    for competition in ("one", "unseen"):
        search(trial / "search" / competition, competition, trial=trial)
        search(root / "base" / competition, competition)
    return root


class FirstTwo:
    """In the place of UMAP, which takes half a minute to compile: test_instances.py has the true one."""

    def __init__(self, **settings: Any) -> None:
        assert settings["metric"] == "cosine"

    def fit_transform(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings[:, :2]


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    embedder: Any = Hashed()
    umap: Any = SimpleNamespace(UMAP=FirstTwo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", umap)
        assert report.write_report([runs], output, embedder=embedder) == output / "report.html"
    return output


def test_the_page_needs_nothing_from_elsewhere_and_every_link_leads_somewhere(written: Path):
    html = Page(written / "report.html")
    assert html.images and all(image.startswith("data:image/svg+xml;base64,") for image in html.images)
    assert len(set(html.ids)) == len(html.ids)
    assert "<a" not in html.text and "nan" not in html.text.split()
    for link in set(html.links):
        if link.startswith("#"):
            assert link[1:] in html.ids
        else:
            assert (written / unquote(link)).is_file(), link


def test_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "rendered", rendered)
    evaluate(train(tmp_path / "runs", "exit", 0, log=False), splits=["add1"], steps=2)
    html = Page(report.write_report([tmp_path / "runs"], tmp_path / "report"))
    drawn = list((tmp_path / "report" / "figures").iterdir())
    assert {file.stem for file in drawn} == {
        f"arithmetic-{name}" for name in ("self-improvement", "training", "curriculum", "distinct")
    }
    assert len(html.images) == len(drawn)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    assert all(b"<svg" in base64.b64decode(image.partition(",")[2]) for image in html.images)


def test_nothing_of_the_machine_is_copied(written: Path):
    for file in (written / "data").rglob("*.jsonl"):
        assert "a-machine" not in file.read_text() and "192.0.2.1" not in file.read_text()


def test_table_1_is_what_the_evaluations_say(written: Path, runs: Path):
    (exit_row,) = [row for row in rows(written, "table-1") if row["domain"] == "Arithmetic" and "ExIt" in row["method"]]
    first, gains = [], []
    for file in runs.glob("exit-seed*/**/evaluation.json"):
        by_split = json.loads(file.read_text())["splits"].values()
        means = np.mean([split["results"]["trained"]["accuracy"]["mean"] for split in by_split], axis=0)
        first.append(100 * means[0])
        gains.append(100 * (means[-1] - means[0]))
    assert len(first) == 2
    assert float(exit_row["initial"]) == pytest.approx(np.mean(first))
    assert float(exit_row["gain"]) == pytest.approx(np.mean(gains))
    assert float(exit_row["standard_error"]) == pytest.approx(np.std(first, ddof=1) / np.sqrt(2))
    assert exit_row["over"] == "2 training runs" and exit_row["tasks"] == "60"
    assert len(exit_row["files"].split()) == 2
    base = [row for row in rows(written, "table-1") if row["method"] == "Base model"]
    assert {row["domain"] for row in base} == {"Arithmetic", "Tool use", "ML engineering"}


def test_self_improvement_has_every_split_and_step(written: Path):
    shown = rows(written, "arithmetic-splits")
    assert {(row["split"], row["step"]) for row in shown} == {
        (split, str(k)) for split in ("add1", "sub", "mul1") for k in range(3)
    }

    def net_corrections(name: str) -> list[dict[str, str]]:
        return [row for row in rows(written, name) if "net corrections" in row["panel"] and row["step"] == "2"]

    for row in net_corrections("arithmetic-self-improvement"):
        parts = [r for r in net_corrections("arithmetic-splits") if r["method"] == row["method"]]
        assert len(parts) == 3
        assert float(row["mean"]) == pytest.approx(sum(float(r["mean"]) for r in parts))


def test_the_curriculum_is_what_the_results_say(written: Path, runs: Path):
    lines = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in runs.glob("exit-seed*/math/*/result.json")
    ]
    (row,) = [
        row
        for row in rows(written, "arithmetic-curriculum")
        if row["panel"] == "Self-iteration depth" and "ExIt" in row["method"] and row["iteration"] == "12"
    ]
    assert float(row["mean"]) == pytest.approx(np.mean([of_run[-1]["curriculum"]["depth_mean"] for of_run in lines]))
    assert "starting turn is 0 throughout" in Page(written / "report.html").text
    assert any(row["panel"] == "Starting turn" for row in rows(written, "tool-use-curriculum"))


def test_instances_are_counted_from_the_log(written: Path, runs: Path):
    (file,) = (written / "data").glob("arithmetic/exit-seed0/instances.csv")
    with open(file) as lines:
        counted = list(csv.DictReader(lines))
    (row,) = [row for row in rows(written, "arithmetic-distinct") if row["run"] == "exit-seed0"]
    assert len(counted) == int(float(row["instances"]))
    table = {row["method"]: row for row in rows(written, "arithmetic-distances-new")}
    assert list(table) == ["+ diversity (ExIt)"]  # GRPO makes no instances
    assert len(rows(written, "arithmetic-distances-all")) == 4


def test_numbers_from_a_log_lead_to_files_that_hold_them(written: Path):
    def read(file: Path) -> list[dict[str, str]]:
        with open(file) as lines:
            return list(csv.DictReader(lines))

    for name in ("distances-new", "distances-all"):
        for row in rows(written, f"arithmetic-{name}"):
            embedded = read(written / row["file"])
            assert len(embedded) == int(row["embedded"]) and all(line["text"] for line in embedded)
    points = [row for row in rows(written, "arithmetic-umap") if row["run"] == "exit-seed0"]
    texts = {row["instance"] for row in read(written / "data/arithmetic/exit-seed0/umap.csv")}
    assert points and {row["instance"] for row in points} <= texts
    alone = read(written / "data/ml-engineering/grpo-seed0-2/one-task.csv")
    assert alone and float(alone[0]["mean_quality"]) >= 0
    responses = [row["response"] for row in read(written / "data/arithmetic/exit-seed0/chains.csv")]
    assert responses == [row["response"] for row in rows(written, "arithmetic-chains")]


def test_every_trial_of_a_resumed_run_is_linked(tmp_path: Path):
    train(tmp_path / "runs", "exit", 0, trial="first", iterations=6)
    train(tmp_path / "runs", "exit", 0, trial="resumed", iterations=4, first=5)
    report.write_report([tmp_path / "runs"], tmp_path / "report")
    (row,) = rows(tmp_path / "report", "arithmetic-runs")
    assert [Path(file).parent.name for file in row["directories"].split()] == ["resumed", "first"]


def test_one_task_alone_is_compared_with_several(written: Path):
    methods = {row["method"] for row in rows(written, "ml-engineering-one-task")}
    assert methods == {"GRPO, alone", "GRPO, 3 tasks"}


def test_searches_are_split_by_what_was_trained_on(written: Path):
    assert {row["panel"] for row in rows(written, "ml-engineering-search")} == {"Training", "Held out"}
    assert [row["step"] for row in rows(written, "ml-engineering-search")][:8] == [str(k) for k in range(8)]
    best = [float(row["mean"]) for row in rows(written, "ml-engineering-search") if row["method"] == "Base model"]
    assert best[:8] == sorted(best[:8])


def test_a_chain_begins_with_an_answer_and_goes_deeper(written: Path):
    by_chain: dict[str, list[dict[str, str]]] = {}
    for row in rows(written, "arithmetic-chains"):
        by_chain.setdefault(row["chain"], []).append(row)
    assert by_chain
    for chain in by_chain.values():
        assert chain[0]["kind"] == "base" and all(row["kind"] != "base" for row in chain[1:])
        iterations = [int(row["iteration"]) for row in chain]
        assert len(chain) > 1 and iterations == sorted(set(iterations))


def test_gaps_say_why(written: Path, tmp_path: Path):
    trial = train(tmp_path / "logged", "exit", 0, iterations=3)
    for file in (trial / "rollouts").glob("iteration-*"):  # as a log without its environment's tasks
        table = pq.read_table(file)
        pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", [[None] * len(table)]), file)
    report.write_report([tmp_path / "logged"], tmp_path / "report-logged", embedder=Hashed())  # type: ignore[arg-type]
    assert "exit-seed0 has no prompts" in Page(tmp_path / "report-logged" / "report.html").text
    train(tmp_path / "runs", "grpo", 0, log=False, iterations=2)
    report.write_report([tmp_path / "runs"], tmp_path / "report")
    text = Page(tmp_path / "report" / "report.html").text
    assert "train with --log-rollouts" in text and "run rllib evaluate DIR --baseline" in text
    assert not list((tmp_path / "report" / "figures").glob("*self-improvement*"))


def test_a_seed_that_comes_twice_is_named(tmp_path: Path):
    for experiment in ("a", "b"):
        train(tmp_path / "runs" / experiment, "grpo", 7, iterations=1)
    report.write_report([tmp_path / "runs"], tmp_path / "report")
    assert "GRPO: several runs have seed 7" in Page(tmp_path / "report" / "report.html").text


def test_the_copies_of_a_report_among_the_runs_do_not_count(tmp_path: Path):
    evaluate(train(tmp_path, "exit", 0, iterations=1), splits=["$a_1$"])
    for _ in range(2):
        report.write_report([tmp_path], tmp_path / "report")
        assert "1 training runs, 1 evaluations" in Page(tmp_path / "report" / "report.html").text


def test_the_command_writes_the_page(tmp_path: Path):
    train(tmp_path / "runs", "grpo", 0, iterations=2)
    result = run("report", tmp_path / "runs", "--output", tmp_path / "report", "--embedding-model", "none")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report" / "report.html").is_file()
    (tmp_path / "empty").mkdir()
    assert "nothing to report" in message(run("report", tmp_path / "empty", "--output", tmp_path / "r"))
    assert "is no directory" in message(run("report", tmp_path / "none", "--output", tmp_path / "r"))


def test_cells_link_to_their_files():
    one, two = Source("one", "data/1.csv", "../1.csv"), Source("two", "data/2.csv", "../2.csv")
    files = pd.Series([(one,), (one, two)], dtype=object)
    rows = pd.DataFrame({"name": ["a", "b"], "mean": [-1.5, np.nan], "error": [0.1, np.nan], "files": files})
    first, second = cells(rows, {"Mean": ("mean", "+.1f", "error")}, index="name", name="Name")["Mean"]
    assert isinstance(first, Markup) and first.endswith('href="data/1.csv" title="../1.csv">−1.5 ± 0.1</a>')
    assert re.findall('href="(.*?)"', second) == ["data/1.csv", "data/2.csv"] and second.startswith("— ")


def test_texts_are_safe_in_the_page():
    assert printable("a\x00\x1b[0m\ud800") == "a��[0m�"
    assert with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
    assert not re.search("<b>", with_code("<b>"))


def test_the_report_imports_nothing_that_trains():
    heavy = ("ray", "torch", "transformers", "vllm")
    trains = ("grpo", "learner", "connectors", "weight_sync")
    code = f"""
import sys
import rllib_exit.report.report
wrong = {{*{heavy}, *(f"rllib_exit.{{name}}" for name in {trains})}} & set(sys.modules)
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(tmp_path / "runs", "grpo", 0, iterations=1)
    monkeypatch.setitem(sys.modules, "umap", None)
    error = message(run("report", tmp_path / "runs", "--output", tmp_path / "report"))
    assert "umap" in error and "pip install 'rllib-exit[report]'" in error
    assert not (tmp_path / "report").exists()
