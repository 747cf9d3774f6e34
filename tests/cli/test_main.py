from __future__ import annotations

import subprocess
import sys

from tests.cli.helpers import run


def test_help_is_quick_and_lists_the_commands():
    heavy = "{'ray', 'torch', 'transformers', 'vllm', 'matplotlib', 'numpy'}"
    code = f"import sys, rllib_exit.cli.main; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert all(command in run("--help").output for command in ("train", "evaluate", "export"))
    assert "--stop-iters" in run("train", "file", "--help").output
