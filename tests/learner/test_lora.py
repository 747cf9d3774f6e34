from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM

from rllib_exit.learner.learner_group import load_policy
from rllib_exit.learner.lora import saved_config, sources
from rllib_exit.learner.module import CausalLMRLModule
from rllib_exit.learner.sharding.weights import collect_adapters
from rllib_exit.objective.packing import pack
from rllib_exit.settings import LoRASettings
from tests.learner.helpers import batch, make_groups, make_learner, update
from tests.learner.sharding.learners import Learners

LORA: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8.0, "kl_coeff": 0.1, "ref_update_rate": 0.0}


def logprobs(module: CausalLMRLModule, reference: bool = False) -> np.ndarray:
    [packed] = pack(batch(make_groups(np.random.default_rng(9)))[0].minibatches[0], 4096)
    with torch.no_grad():
        scores = (
            module.reference_logprobs([packed])[0] if reference else module.forward_train({"pack": packed})["logprobs"]
        )
    return scores.numpy()


def test_adapters_are_trained_and_merged_and_the_reference_is_the_model_without_them(tiny_model: str) -> None:
    plain, learner = make_learner(tiny_model), make_learner(tiny_model, **LORA)
    files = load_file(f"{tiny_model}/model.safetensors")
    base = logprobs(plain.language_model)
    # A new adapter changes nothing.
    np.testing.assert_allclose(logprobs(learner.language_model), base, atol=1e-6)
    weights = load(learner.language_model.get_state()["model"].tobytes())
    assert weights.keys() == files.keys() and all(torch.equal(w, files[name]) for name, w in weights.items())

    for seed in range(3):
        stats = update(learner, batch(make_groups(np.random.default_rng(seed)))[0])
    assert stats["kl"] > 0
    trained = logprobs(learner.language_model)
    assert np.abs(trained - base).max() > 1e-3
    np.testing.assert_allclose(logprobs(learner.language_model, reference=True), base, atol=1e-6)
    np.testing.assert_allclose(logprobs(learner.language_model), trained, atol=1e-7)  # they are back

    merged = load(learner.language_model.get_state()["model"].tobytes())
    peft_model: Any = copy.deepcopy(learner.language_model.model.module)
    by_peft = dict(peft_model.merge_and_unload().named_parameters())
    assert merged.keys() == by_peft.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, by_peft[name].detach(), atol=1e-7, rtol=1e-6)
    plain.language_model.model.module.load_state_dict(merged, strict=False)
    np.testing.assert_allclose(logprobs(plain.language_model), trained, atol=1e-5)


def test_what_engines_get_is_what_peft_loads(tiny_model: str, tmp_path: Path) -> None:
    learner = make_learner(tiny_model, **LORA)
    update(learner, batch(make_groups(np.random.default_rng(0)))[0])
    adapters = collect_adapters(learner.model, torch.float32)
    assert adapters is not None and len(adapters) == 2 * 7 * 2
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved_config(learner.model.module)))
    save_file(adapters, tmp_path / "adapter_model.safetensors")
    loaded: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path))
    ours = dict(learner.model.module.named_parameters())
    assert ours.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(p, ours[name]) for name, p in loaded.named_parameters())
    assert loaded.peft_config["default"].lora_alpha / loaded.peft_config["default"].r == 2.0


def test_a_checkpoint_holds_the_adapters_and_gives_the_merged_policy(tiny_model: str, tmp_path: Path) -> None:
    learners = Learners(tiny_model, **LORA)
    learners(batch(make_groups(np.random.default_rng(0))))
    checkpoint = learners.save(tmp_path)
    names = {name for file in tmp_path.rglob("*.safetensors") for name in load_file(file)}
    assert len(names) == 2 * 7 * 2 and all(".lora_" in name for name in names)
    restored = Learners(tiny_model, **LORA)
    restored.restore(checkpoint)

    merged = load(load_policy(checkpoint, tiny_model, "float32", LoRASettings(lora_r=4, lora_alpha=8.0)).tobytes())
    for group in (learners, restored):
        weights = load(group.collect_weights().tobytes())
        assert weights.keys() == merged.keys() and all(torch.equal(w, merged[name]) for name, w in weights.items())
    # What a run without adapters would hold in the same place loads into transformers.
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert merged.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", "q_project"])
def test_targets_that_are_no_linear_layer_or_the_output_layer_are_refused(target: str, tiny_model: str) -> None:
    with pytest.raises(ValueError, match=rf"lora_target_modules is \['{target}'\]: name linear layers"):
        make_learner(tiny_model, **LORA, lora_target_modules=[target])


def test_every_weight_of_an_adapted_model_is_made_of_its_base_and_its_adapter() -> None:
    layer = "base_model.model.model.layers.0.q_proj"
    adapter = (f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight")
    names = ["base_model.model.model.norm.weight", f"{layer}.base_layer.weight", f"{layer}.base_layer.bias", *adapter]
    assert sources(names) == {
        "model.norm.weight": ("base_model.model.model.norm.weight",),
        "model.layers.0.q_proj.weight": (f"{layer}.base_layer.weight", *adapter),
        "model.layers.0.q_proj.bias": (f"{layer}.base_layer.bias",),
    }
    assert sources(["model.norm.weight"]) == {"model.norm.weight": ("model.norm.weight",)}
