"""Imports point one way: from a higher layer to a lower one, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rllib_exit", "rllib_exit_verifiers", "envs", "tuned_examples")
# From the top down. A module belongs to the first entry that its dotted name starts with, and may import what stands
# in its own entry's line or below it. Entries of one line do not import each other, but for those of one package.
LAYERS = """
rllib_exit.cli
tuned_examples rllib_exit.report rllib_exit.view
rllib_exit.__init__
rllib_exit.exit_loop
rllib_exit.grpo
rllib_exit.connectors rllib_exit.self_improvement rllib_exit.sft rllib_exit.weight_sync.transfers
rllib_exit.env_runners rllib_exit.learner
rllib_exit.embeddings rllib_exit.rollout_log rllib_exit.weight_sync
rllib_exit.curriculum rllib_exit.objective
rllib_exit rllib_exit_verifiers
envs
"""


def modules() -> dict[str, Path]:
    """The product's modules by dotted name."""
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports anywhere in it, those inside of functions and for types included."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        for target in found:
            # The tuned examples import each other as scripts do, by their bare names.
            for parent in (target, target.rpartition(".")[0], f"tuned_examples.{target.partition('.')[0]}"):
                if parent in MODULES and parent != name:
                    yield parent
                    break


def layer(name: str) -> tuple[int, str]:
    """The number of a module's layer, from the top, and the entry that it belongs to."""
    name = "rllib_exit.__init__" if name == "rllib_exit" else name
    entries = [(line, entry) for line, entries in enumerate(LAYERS.split("\n")) for entry in entries.split()]
    matching = [(line, entry) for line, entry in entries if name == entry or name.startswith(f"{entry}.")]
    return max(matching, key=lambda of: len(of[1]))


def test_no_circles() -> None:
    graph = {name: set(imports(name)) for name in MODULES}
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    line, entry = layer(name)
    for target in imports(name):
        target_line, target_entry = layer(target)
        assert target_line > line or target_entry == entry, f"{name} imports {target}, which is no lower layer"


def test_the_sandbox_imports_no_other_package_of_ours() -> None:
    """An interpreter without our dependencies can run it, as one for an unprivileged user does."""
    for name in MODULES:
        if name.startswith("envs.sandbox"):
            others = {target for target in imports(name) if not target.startswith("envs.sandbox")}
            assert not others, f"{name} imports {others}"
