"""Methods of a config that are made from groups of settings."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, Concatenate, Self, TypeVar, get_type_hints

from ray.rllib.utils.from_config import NotProvided as _NotProvided

from rllib_exit.settings_group import Settings, unknown_name

S = TypeVar("S")
# RLlib's mark for a setting that is left as it is; any type's default.
NotProvided: Any = _NotProvided


def fluent(
    *groups: type[Settings], extends: Callable[..., Any] | None = None, **names: str
) -> Callable[[Callable[..., None]], Callable[Concatenate[S, ...], S]]:
    """Makes a method that takes the fields of groups as its arguments, sets them and returns the config.

    Signature and docstring are made from the groups; the defaults there are those of a new config. The method's own
    body runs first, with the parameters that it names itself; these need not be given by name.

    Args:
        *groups: The groups.
        extends: A method of RLlib's that takes all other arguments.
        **names: The field of each argument that does not have its field's name.
    """
    argument_of = {name: argument for argument, name in names.items()}
    fields = {argument_of.get(name, name): name for group in groups for name in group.model_fields}
    infos = {name: info for group in groups for name, info in group.model_fields.items()}
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    rllib = list(inspect.signature(extends).parameters)[1:] if extends else []

    def decorate(method: Callable[..., None]) -> Callable[Concatenate[S, ...], S]:
        config, *own = inspect.signature(method).parameters
        arguments = sorted(fields, key=lambda argument: argument not in own)
        parameters = [Parameter(config, Parameter.POSITIONAL_OR_KEYWORD)]
        for argument in arguments:
            kind = Parameter.POSITIONAL_OR_KEYWORD if argument in own else Parameter.KEYWORD_ONLY
            info = infos[fields[argument]]
            default = NotProvided if info.is_required() else info.get_default()
            parameters.append(Parameter(argument, kind, default=default, annotation=hints[fields[argument]]))
        docs = [f"{argument}: {infos[fields[argument]].description}" for argument in arguments]
        if extends:
            parameters.append(Parameter("rllib", Parameter.VAR_KEYWORD, annotation=Any))
            docs.append(f"**rllib: RLlib's own arguments, see ``AlgorithmConfig.{method.__name__}``.")
        signature = Signature(parameters, return_annotation=Self)

        @functools.wraps(method)
        def set_fields(self: Any, *args: Any, **kwargs: Any) -> Any:
            for argument in kwargs:
                if argument not in (known := [*fields, *rllib]):
                    owner = f"{type(self).__name__}.{method.__name__}()"
                    raise TypeError(unknown_name(owner, "argument", argument, known))
            given = signature.bind_partial(self, *args, **kwargs).arguments
            method(self, **{argument: given[argument] for argument in own if argument in given})
            if extends:
                extends(self, **given.get("rllib", {}))
            for argument, name in fields.items():
                if given.get(argument, NotProvided) is not NotProvided:
                    setattr(self, name, given[argument])
            return self

        lines = [textwrap.fill(" ".join(doc.split()), 112, subsequent_indent=" " * 4) for doc in docs]
        doc = f"{inspect.getdoc(method)}\n\nWhat is not given stays as it is.\n\nArgs:\n"
        set_fields.__doc__ = doc + textwrap.indent("\n".join(lines), " " * 4)
        vars(set_fields).update(__signature__=signature, fields=fields)
        return set_fields

    return decorate
