"""Runs the notebooks in ``docs/notebooks`` and writes into them what their cells print and draw, without a kernel."""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import inspect
import io
import json
from pathlib import Path
from typing import Any

import matplotlib

NOTEBOOKS = Path(__file__).with_name("notebooks")


def run(notebook: Path) -> dict[str, Any]:
    """The notebook with new outputs: texts that its cells print, and figures that they leave open.

    A cell may use `await`, as in Jupyter. A figure's title is what is read to those who do not see it.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    content = json.loads(notebook.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        code = compile("".join(cell["source"]), f"{notebook.name}:{number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(printed):
            if inspect.iscoroutine(result := eval(code, names)):
                asyncio.run(result)
        cell["outputs"] = []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        for figure in map(plt.figure, plt.get_fignums()):
            picture = io.BytesIO()
            # Without the version of matplotlib in it, which would make another file of the same picture.
            figure.savefig(picture, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
            data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
            alt = {"alt": figure.axes[0].get_title()}
            cell["outputs"].append({"output_type": "display_data", "data": data, "metadata": alt})
        plt.close("all")
    return content


if __name__ == "__main__":
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        file.write_text(json.dumps(run(file), indent=1, ensure_ascii=False) + "\n")
