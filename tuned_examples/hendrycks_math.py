"""Competition problems, the MATH data set: ``rllib train file tuned_examples/hendrycks_math.py``."""

from dataset_common import SMALL_DATA, make_config

from rllib_exit import math_reward
from rllib_exit.scale import current_scale

config, stop = make_config(max_response_tokens=64)
if current_scale() == "paper":
    boxed = r"Reason step by step, and put the final answer into \boxed{}."
    config.dataset("nlile/hendrycks-MATH-benchmark", prompt="problem", instruction=boxed, test_fraction=0.05)
else:
    config.dataset(SMALL_DATA / "math.jsonl", prompt="problem", test_fraction=0.2)
config.reward(math_reward)
