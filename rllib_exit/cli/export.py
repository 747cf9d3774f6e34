"""``rllib export``: writes a trained model in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rllib_exit.cli.console import Verbose, clear_errors, quiet, say
from rllib_exit.cli.runs import find_checkpoint, load_config, load_weights
from rllib_exit.files import atomic_directory, new_directory
from rllib_exit.models import save_model


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a directory above some: the newest is taken.")],
    directory: Annotated[Path, typer.Argument(help="New or empty directory for the model.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    verbose: Verbose = False,
) -> None:
    """Writes a trained model in Hugging Face format, for transformers, vLLM and the like."""
    with clear_errors(verbose):
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype is {dtype!r}: use bfloat16, float16 or float32")
        directory = new_directory(directory)
        quiet(verbose)
        path = find_checkpoint(checkpoint)
        model_path = load_config(path).model_path

        import torch
        from safetensors.torch import load
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        weights = load(load_weights(path).tobytes())
        parameters = dict(model.named_parameters())
        if weights.keys() != parameters.keys():
            odd = sorted(weights.keys() ^ parameters.keys())
            raise ValueError(f"{path} was trained on another model than {model_path}: {odd[:3]} are not in both")
        model.load_state_dict(weights, strict=False)
        with atomic_directory(directory) as staging:
            save_model(model, model_path, dtype, staging)
        say(f"exported {path} to {directory}")
