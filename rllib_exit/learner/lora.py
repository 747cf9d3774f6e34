"""LoRA: low-rank adapters on frozen weights, by peft."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# How peft changes the names of a model's parameters.
_PREFIX = "base_model.model."
_BASE, _A, _B = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(model: nn.Module, *, r: int, alpha: float, target_modules: str | list[str]) -> nn.Module:
    """Freezes a model and adds trainable adapters, which change nothing yet.

    Args:
        model: A Hugging Face model.
        r: The adapters' rank.
        alpha: They are scaled by alpha / r.
        target_modules: The linear layers that get one, by the ends of their names, or ``"all-linear"``.

    Raises:
        ValueError: If a target is no linear layer, or the output layer.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=target_modules)  # type: ignore[arg-type]
    wanted = f"lora_target_modules is {target_modules!r}: name linear layers before the output layer"
    try:
        adapted: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{wanted}. {error}") from error
    parameters = dict(adapted.named_parameters())
    known = {part for parts in sources(parameters).values() for part in parts[1:]}
    if odd := [name for name, p in parameters.items() if p.requires_grad and name not in known]:
        raise ValueError(f"{wanted}; {odd[0].removeprefix(_PREFIX)} is of another kind")
    return adapted


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters.

    They are scaled by 0. peft's own switch also freezes them, which sharded parameters do not survive.
    """
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    scalings = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling.update(scaling)


def sources(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Which parameters each weight of the model is made of, by its Hugging Face name.

    Args:
        names: The parameters' names, of a model with or without adapters.

    Returns:
        ``(weight,)``, or ``(weight, A, B)`` where there is an adapter.
    """
    made_of: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            made_of[f"{layer.removeprefix(_PREFIX)}.weight"] = (name, layer + _A, layer + _B)
        elif not name.endswith((_A, _B)):
            made_of[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = (name,)
    return made_of


def merge(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """A weight (out, in) with its adapter (r, in) and (out, r)."""
    return (weight.float() + scaling * (lora_b.float() @ lora_a.float())).to(weight.dtype)


def merge_all(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The weights of a model, by Hugging Face name, with the adapters that a checkpoint holds."""
    merged = dict(weights)
    for name, lora_a in adapters.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            weight = f"{layer.removeprefix(_PREFIX)}.weight"
            merged[weight] = merge(merged[weight], lora_a, adapters[layer + _B], scaling)
    return merged


def saved_name(name: str) -> str:
    """What peft calls an adapter's parameter where it saves it."""
    return name.replace(".default.", ".")


def saved_config(module: Any) -> dict[str, Any]:
    """What of a model's ``adapter_config.json`` says how its adapters are applied."""
    config = module.peft_config["default"]
    return {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
    }


def scaling_of(module: nn.Module) -> float:
    """α / r of a model's adapters; 1 without any."""
    config = getattr(module, "peft_config", None)
    return config["default"].lora_alpha / config["default"].r if config else 1.0
