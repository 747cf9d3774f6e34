from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.helpers import make_config, message, run, write_checkpoint


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_export_loads_with_transformers(checkpoint: Path, tmp_path: Path, tiny_model: str, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path / "model"
    result = run("export", checkpoint, directory, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == getattr(torch, dtype)
    before = load_file(f"{tiny_model}/model.safetensors")["model.norm.weight"]
    np.testing.assert_allclose(model.model.norm.weight.detach().float().numpy(), before + 1)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert [path.name for path in tmp_path.glob(".model*")] == []


def test_export_refuses_a_directory_with_files(checkpoint: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    assert run("export", checkpoint, tmp_path / "model").exit_code == 0  # empty
    assert "not empty" in message(run("export", checkpoint, tmp_path / "model"))


def test_export_refuses_weights_of_another_model(tmp_path: Path, tiny_model: str):
    path = write_checkpoint(tmp_path / "checkpoint", make_config(tiny_model), {"odd": np.zeros(2, np.float32)})
    assert "another model" in message(run("export", path, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_export_wants_a_known_dtype(checkpoint: Path, tmp_path: Path):
    assert "'int8'" in message(run("export", checkpoint, tmp_path / "model", "--dtype", "int8"))
