from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny_models import make_tiny_model

# Examples are slow on a busy machine, which is no fault of theirs. `make test-all` asks for the second profile.
settings.register_profile("tests", deadline=None, max_examples=25)
settings.register_profile("full", deadline=None, max_examples=200)
settings.load_profile("tests")

# No test may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random two-layer Llama with tied embeddings, for transformers and vLLM."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with four logical CPUs and two sandbox slots, whose workers can import the tests."""
    import ray

    root = str(Path(__file__).parent.parent)
    ray.init(
        num_cpus=4,
        resources={"sandbox_slots": 2},
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}},
    )
    yield
    ray.shutdown()
