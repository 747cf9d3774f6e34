"""Grade-school word problems, GSM8K: ``rllib train file tuned_examples/gsm8k.py``."""

from dataset_common import SMALL_DATA, make_config

from rllib_exit import math_reward
from rllib_exit.scale import current_scale


def final_answer(response: str, answer: str) -> float:
    """The data set's answer is a solution that ends with ``#### NUMBER``."""
    return math_reward(response, answer.rpartition("####")[2].strip())


config, stop = make_config(max_response_tokens=64)
if current_scale() == "paper":
    config.dataset("openai/gsm8k", data_config="main", prompt="question", test_fraction=0.05)
else:
    config.dataset(SMALL_DATA / "gsm8k.jsonl", prompt="question", test_fraction=0.2)
config.reward(final_answer)
