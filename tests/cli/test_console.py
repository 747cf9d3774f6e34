from __future__ import annotations

from rllib_exit.cli.console import error_message


def test_messages_of_errors_in_workers():
    from ray.exceptions import RayTaskError

    from rllib_exit.grpo.algorithm import RolloutError

    inner = RolloutError("an episode failed\n\nTraceback ...")
    wrapped = RayTaskError("train", "Traceback ...", inner).as_instanceof_cause()
    assert error_message(wrapped) == "RolloutError: an episode failed"
    assert error_message(ValueError("lr is -1")) == "lr is -1"
