"""The options of an environment: each is stated once, with its type, its default, its bounds and what it does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

T = TypeVar("T")

PathText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A path as text, which may be given as a :class:`pathlib.Path`."""


class Options(BaseModel):
    """The options of one environment, which RLlib calls its ``env_config``.

    A subclass has one field for each option. Its ``description`` is what the docs say of the option.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> Self:
        """Checks the options that are given. An option that is None counts as absent.

        Raises:
            ValueError: If an option is unknown or has an impossible value.
        """
        given = {name: value for name, value in (config or {}).items() if value is not None}
        if unknown := [name for name in config or {} if name not in cls.model_fields]:
            close = difflib.get_close_matches(str(unknown[0]), cls.model_fields, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"env_config has no option {unknown[0]!r}: use {', '.join(cls.option_names())}.{hint}")
        return validate(cls, given)

    @classmethod
    def option_names(cls) -> list[str]:
        """The options: those that the class states itself come before those that it inherits."""
        return sorted(cls.model_fields, key=lambda name: name not in inspect.get_annotations(cls))

    @classmethod
    def table(cls) -> str:
        """The options as a Markdown table."""
        fields = [(name, cls.model_fields[name]) for name in cls.option_names()]
        rows = [f"| `{name}` | {_default(field)} | {field.description} |" for name, field in fields]
        return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else "" if field.default is None else f"`{field.default!r}`"


def validate(kind: type[T], value: Any, where: str = "") -> T:
    """The object of a pydantic type that a value describes.

    Args:
        kind: A pydantic model or dataclass.
        value: Usually a mapping with its fields.
        where: What the names of the fields are shown after in an error: ``"FILE: "``, ``"OPTION."``.

    Raises:
        ValueError: If the value does not fit. The message names the field, its value and what it must be.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        name = where + ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"{name} is missing: set it") from None
        mend = first["msg"].replace("Input should be", "it must be").removeprefix("Value error, ")
        raise ValueError(f"{name.rstrip('.: ')} is {first['input']!r}: {mend}") from None
