"""An environment of your own: ``rllib train file tuned_examples/own_env.py``."""

import re

from rllib_exit import GRPOConfig, Message, Outcome, SelfImprovementEnv, Task

WORDS = ["bread", "chair", "dream", "eagle", "flame", "grape", "house", "lemon"]


class FirstLetterEnv(SelfImprovementEnv):
    """Name the first letter of a word; shorter answers are better."""

    max_turns = 1

    def __init__(self, env_config: dict) -> None:
        super().__init__([Task(id=word, prompt=f"What is the first letter of '{word}'?") for word in WORDS])

    def prompt(self, task: Task) -> list[Message]:
        return [{"role": "user", "content": task.prompt}]

    def respond(self, task: Task, response: str) -> Outcome:
        letters = set(re.findall(r"\b[a-z]\b", response.lower()))  # those that stand alone
        right = letters == {task.id[0]}
        return Outcome(quality=1 / len(response.split()) if right else 0.0, feedback="Be brief.")


config = (
    GRPOConfig()
    .environment(FirstLetterEnv)
    .language_model("bundled:smollm2-135m-instruct", dtype="float32", max_model_len=512)
    .generation(max_response_tokens=16)
    .training(lr=3e-5, prompts_per_batch=8, rollouts_per_prompt=8, kl_coeff=0.0, max_tokens_per_micro_batch=512)
    .curriculum("exit", buffer_size=32, min_buffer_size=8, diversity_metric="edit_distance")
)
stop = {"training_iteration": 12}
