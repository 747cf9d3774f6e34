"""The API classes of the package ``bfcl-eval``: their documented functions, and objects of them.

Only the package's data files and the modules of these classes are used, because other modules write into
site-packages when they are imported.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "bfcl-eval==2026.3.23"

# Each class has a module, whose name is also that of the file with the docs of its functions.
API_CLASSES: Mapping[str, str] = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
# The calls of this class change nothing, so they need no replay. It also has every function that can take long.
STATELESS_CLASS = "MathAPI"


@dataclass(frozen=True, slots=True)
class Function:
    """A documented function.

    Attributes:
        api: The name of its class.
        doc: What the package says of it: ``name``, ``description``, ``parameters``, ``response``.
        signature: The arguments that it takes, without ``self``.
    """

    api: str
    doc: Mapping[str, Any]
    signature: inspect.Signature


def read_data(name: str) -> list[Any]:
    """The rows of one of the package's data files, which are JSON lines.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the tool-use tasks need bfcl-eval: pip install --no-deps {PACKAGE}")
    text = Path(spec.submodule_search_locations[0], "data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


@functools.cache
def functions() -> Mapping[str, Function]:
    """Every documented function by name. No two classes share a name."""
    found = {}
    for api, module in API_CLASSES.items():
        for doc in read_data(f"multi_turn_func_doc/{module}.json"):
            signature = inspect.signature(getattr(_api_class(api), doc["name"]))
            parameters = list(signature.parameters.values())[1:]
            found[doc["name"]] = Function(api, doc, signature.replace(parameters=parameters))
    return found


def offered(classes: Collection[str], excluded: Collection[str] = ()) -> Mapping[str, Function]:
    """The functions of some classes by name, without the excluded ones."""
    return {
        name: function for name, function in functions().items() if function.api in classes and name not in excluded
    }


def load(classes: Collection[str], config: Mapping[str, Any], long_context: bool = False) -> dict[str, Any]:
    """New API objects by class, in the state that a task's initial configuration describes.

    Args:
        classes: Their names.
        config: The configuration, by class.
        long_context: Whether they have more data than the task needs, and longer answers.
    """
    apis = {}
    for api in classes:
        apis[api] = _api_class(api)()
        if api != STATELESS_CLASS:
            # The objects keep and change what they are given.
            apis[api]._load_scenario(copy.deepcopy(config.get(api, {})), long_context=long_context)
    return apis


def methods(apis: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The objects' documented functions by name. Nothing else of the objects is ever called."""
    return {name: getattr(apis[function.api], name) for name, function in offered(apis).items()}


def same_state(apis: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether the public attributes of the objects are equal, class by class, as the official checker has it."""
    return all(
        getattr(api, name) == value
        for name_of_class, api in apis.items()
        for name, value in vars(others[name_of_class]).items()
        if not name.startswith("_")
    )


def _api_class(api: str) -> type:
    module = importlib.import_module(f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{API_CLASSES[api]}")
    return getattr(module, api)
