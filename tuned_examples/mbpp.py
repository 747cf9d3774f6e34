"""Small Python programs with unit tests, MBPP: ``rllib train file tuned_examples/mbpp.py``.

Programs run in the sandbox.
"""

from dataset_common import SMALL_DATA, make_config

from envs.tables import rows
from rllib_exit import code_reward
from rllib_exit.scale import current_scale


def unit_tests(response: str, test_list: list[str]) -> tuple[float, str]:
    """A row's tests are in its column ``test_list``."""
    return code_reward(response, test_list)


config, stop = make_config(max_response_tokens=96)
if current_scale() == "paper":
    data = rows("google-research-datasets/mbpp", config="full")
else:
    data = rows(str(SMALL_DATA / "code.jsonl"))
# The problems do not say what the function is called; a test does.
problems = [{**row, "prompt": f"{row['text']}\nIt has to pass this test: {row['test_list'][0]}"} for _, row in data]
config.dataset(problems, answer="code", instruction="Answer with the program alone.", test_fraction=0.2)
config.reward(unit_tests)
