"""GRPO and its configuration. RLlib's configs name their algorithm; it is named here, where both are known."""

from rllib_exit.grpo.algorithm import GRPO
from rllib_exit.grpo.config import GRPOConfig

GRPOConfig.default_algo_class = GRPO

__all__ = ["GRPO", "GRPOConfig"]
