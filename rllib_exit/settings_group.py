"""What all groups of settings are made of: typed fields, and messages that name the field, the value and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema, field_validator


def use(words: str) -> WithJsonSchema:
    """Says what a type takes where its bounds alone do not say it well."""
    return WithJsonSchema({"use": words})


class Settings(BaseModel):
    """Settings that belong together. They are checked when they are made, and never change.

    NumPy's integers and numbers may stand where Python's may. True and False are no integers, NaN and infinity are no
    numbers.

    Raises:
        ValueError: Names the field, its value and what to use instead, in one line.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if own := first.get("ctx", {}).get("error"):  # of check()
                raise ValueError(str(own)) from None
            name = str(first["loc"][0])
            if name not in type(self).model_fields:
                raise ValueError(unknown_name(type(self).__name__, "field", name, type(self).model_fields)) from None
            raise ValueError(f"{name} is {values.get(name)!r}: use {allowed_values(type(self), name)}") from None

    @field_validator("*", mode="before")
    @classmethod
    def _numpy_to_python(cls, value: Any) -> Any:
        import numpy as np  # not at the top: `rllib --help` needs no settings and has to be quick

        return value.item() if isinstance(value, np.generic) else value

    @classmethod
    def of(cls, config: Any) -> Self:
        """The group's part of a config that has its fields as attributes."""
        return cls(**{name: getattr(config, name) for name in cls.model_fields})

    def replace(self, **changes: Any) -> Self:
        """A copy with other values for some fields."""
        return type(self)(**{**dict(self), **changes})


def check(settings: Any, name: str, good: bool, mend: str) -> None:
    """Raises a ValueError that names the field, its value and the mend, unless the value is good."""
    if not good:
        raise ValueError(f"{name} is {getattr(settings, name)!r}: {mend}")


def unknown_name(owner: str, kind: str, name: str, names: Iterable[str]) -> str:
    """Says that there is no such name, and which ones may be meant, the closest first."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3) or [other for other in names if name in other][:3]
    return f"{owner} has no {kind} {name!r}; " + (
        f"did you mean {' or '.join(close)}?" if close else "see docs/config.md for all of them"
    )


def allowed_values(group: type[Settings], name: str) -> str:
    """What a field takes, in words, such as ``None or an integer of 1 or more``."""
    return _in_words(group.model_json_schema()["properties"][name])


_NOUNS = {
    "null": "None",
    "boolean": "True or False",
    "string": "a string",
    "object": "a dict with strings as keys",
    "integer": "an integer",
    "number": "a number",
}


def _in_words(schema: dict[str, Any]) -> str:
    if "use" in schema:
        return schema["use"]
    if "anyOf" in schema:
        null_first = sorted(schema["anyOf"], key=lambda option: option.get("type") != "null")
        return " or ".join(map(_in_words, null_first))
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return repr(schema["const"])
    noun = _NOUNS[schema["type"]]
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if high is not None or below is not None:
        left, right = f"({above}" if low is None else f"[{low}", f"{below})" if high is None else f"{high}]"
        return f"{noun} in {left}, {right}"
    if above is not None and schema["type"] == "integer":
        low = above + 1
    return f"{noun} of {low} or more" if low is not None else f"{noun} above {above}" if above is not None else noun
