"""Writes ``docs/config.md``, the reference of all settings, from the classes that state them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from rllib_exit.grpo.config import GROUPS, GRPOConfig
from rllib_exit.settings_group import allowed_values

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Settings

The fields of `GRPOConfig`, which its methods and `--set FIELD=VALUE` set; RLlib's other fields are in RLlib's
documentation. `docs/config_page.py` writes this page from `rllib_exit/settings.py` and `rllib_exit/curriculum/exit.py`.
"""


def page() -> str:
    """The page in Markdown."""
    config = GRPOConfig()
    methods = [method for method in vars(GRPOConfig).values() if hasattr(method, "fields")]
    setters = {
        field: f"`.{method.__name__}({argument}=…)`" for method in methods for argument, field in method.fields.items()
    }
    lines = [HEAD]
    for group in GROUPS:
        heading, _, rest = _markdown(inspect.getdoc(group)).partition(". ")
        lines += [f"## {heading.rstrip('.')}\n", *([f"{rest}\n"] if rest else [])]
        lines += ["| Field | Set by | Values | Default | Meaning |", "|---|---|---|---|---|"]
        for name, field in group.model_fields.items():
            default = getattr(config, name)
            shown = f"`{default.__name__ if callable(default) else repr(default)}`"
            cells = [f"`{name}`", setters.get(name, ""), allowed_values(group, name), shown]
            lines.append(f"| {' | '.join([*cells, _markdown(field.description)])} |")
        lines.append("")
    return "\n".join(lines)


def _markdown(text: str | None) -> str:
    """Docstring markup as Markdown, on one line."""
    return re.sub(r"(:\w+:)?(`+)([^`]+)\2", r"`\3`", " ".join((text or "").split()))


if __name__ == "__main__":
    PAGE.write_text(page())
