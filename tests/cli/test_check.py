from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen2Config
from typer.testing import CliRunner

from rllib_exit.cli import check
from rllib_exit.cli.check import Finding, findings_of
from rllib_exit.cli.main import app
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.models import COUNTDOWN, resolve_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The config and a tokenizer of a model of 7.6 billion parameters, without its weights."""
    directory = tmp_path_factory.mktemp("large")
    Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    ).save_pretrained(directory)
    AutoTokenizer.from_pretrained(resolve_model(COUNTDOWN)).save_pretrained(directory)
    return str(directory)


def make_config(model: str = COUNTDOWN, **env_config: Any) -> GRPOConfig:
    from envs.countdown.env import CountdownEnv

    return (
        GRPOConfig()
        .environment(CountdownEnv, env_config={"limit": 20, **env_config})
        .language_model(model, max_model_len=128)
        .generation(max_response_tokens=12)
        .training(max_tokens_per_micro_batch=8192)
        .curriculum("exit", diversity_metric="edit_distance")
    )


def found(config: GRPOConfig, tmp_path: Path, gpu_gb: float | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings_of(config, tmp_path, gpu_gb)}


def test_the_command_says_what_it_found(tmp_path: Path):
    file, options = str(ROOT / "tuned_examples" / "countdown_exit.py"), ["--scale", "cpu", "--json"]
    result = CliRunner().invoke(app, ["check", file, *options])
    assert result.exit_code == 0, result.output
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert {"settings", "environment", "canned episodes", "model", "prompts", "resources"} <= findings.keys()
    assert all(finding["good"] is not False for finding in findings.values())
    assert "280 tasks" in findings["environment"]["text"]

    result = CliRunner().invoke(app, ["check", file, *options, "--set", "max_model_len=15"])
    assert result.exit_code == 1
    prompts = next(finding for finding in json.loads(result.stdout) if finding["check"] == "prompts")
    assert not prompts["good"] and "raise max_model_len (15)" in prompts["text"]


@pytest.mark.parametrize(
    ("break_it", "at", "text"),
    [
        (lambda config: config.training(lr=-1), "settings", "lr is -1"),
        (lambda config: config.environment(env_config={"nubmers": 3}), "environment", "numbers"),
        (lambda config: config.language_model("no/such/model"), "model", "no/such/model"),
        (lambda config: config.generation(max_response_tokens=125), "prompts", "max_response_tokens (125)"),
        (lambda config: config.env_runners(num_env_runners=4000), "resources", "use fewer"),
    ],
)
def test_what_is_broken_is_named_with_its_mend(break_it: Any, at: str, text: str, tmp_path: Path):
    findings = found(break_it(make_config()), tmp_path)
    assert [name for name, finding in findings.items() if finding.good is False] == [at]
    assert text in findings[at].text


def on_gpus(config: GRPOConfig) -> GRPOConfig:
    config.learners(num_learners=8, num_gpus_per_learner=1).env_runners(num_env_runners=8, num_gpus_per_env_runner=1)
    return config.language_model(gradient_checkpointing=True)


def test_a_large_models_plan_fits_80_gb_only_if_it_is_sharded(large: str, tmp_path: Path):
    whole = found(on_gpus(make_config(large)), tmp_path, gpu_gb=80)
    assert not whole["learner's memory"].good and "shard with .fsdp2()" in whole["learner's memory"].text
    # The reference policy's 4 bytes a parameter are 30.5 GB, which eight learners share.
    assert "reference policy, float32 3.8" in whole["learner's memory"].text
    assert "reference" not in whole["learner's host memory"].text
    sharded = found(on_gpus(make_config(large)).fsdp2(), tmp_path, gpu_gb=80)
    assert sharded["learner's memory"].good and sharded["engine's memory"].good
    small = found(on_gpus(make_config(large)).fsdp2(), tmp_path, gpu_gb=16)
    assert not small["engine's memory"].good and "tensor_parallel_size" in small["engine's memory"].text


def test_a_learner_and_an_engine_on_one_gpu_must_both_find_room(large: str, tmp_path: Path):
    config = on_gpus(make_config(large)).fsdp2().colocate()
    config.learners(num_gpus_per_learner=0.5).env_runners(num_gpus_per_env_runner=0.5)
    shared = found(config, tmp_path, gpu_gb=80)["shared GPU"]
    # 16 bytes a parameter over 8 learners are 15.2 GB of the 73.6 that a plan may fill.
    assert not shared.good and "lower gpu_memory_utilization to 0.72" in shared.text
    config.generation(engine_args={"gpu_memory_utilization": 0.72})
    findings = found(config, tmp_path, gpu_gb=80)
    assert findings["shared GPU"].good and "sleeping engine, about 2" in findings["learner's memory"].text


def test_without_a_gpu_no_verdict_is_made_up(large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "_gpu_memory", lambda: None)
    findings = found(on_gpus(make_config(large)), tmp_path)
    assert findings["learner's memory"].good is None and "--gpu-gb" in findings["learner's memory"].text
    assert findings["driver"].good is not True


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e6}))
    disk = found(make_config(), tmp_path / "not" / "there")["disk"]
    assert disk.good is False and "choose another --results-dir" in disk.text


def test_a_bucket_has_room(tmp_path: Path):
    checks = [finding.check for finding in findings_of(make_config(), "s3://bucket/runs")]
    assert "disk" not in checks and "model" in checks
