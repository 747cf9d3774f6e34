"""Tools of your own: ``rllib train file tuned_examples/own_tools.py``."""

from rllib_exit import GRPOConfig, ToolEnv


class House:
    """The public methods are the tools; an object is the state of one episode."""

    def __init__(self, lit: list) -> None:
        self.lit = set(lit)

    def switch(self, room: str, on: bool) -> list:
        """Switches the lamp of a room on or off. Returns the rooms that are lit."""
        (self.lit.add if on else self.lit.discard)(room)
        return sorted(self.lit)


def check(house: House, wanted: list) -> float:
    return float(house.lit == set(wanted))


# A constructor and a check get the columns that they name. `calls` is a good episode, for the warm start.
rows = [
    {"prompt": f"Light the {room}.", "lit": lit, "wanted": [*lit, room], "calls": [{"name": "switch", "args": args}]}
    for room in ("kitchen", "hall", "bath", "cellar", "attic", "office", "garage", "garden")
    for args in [{"room": room, "on": True}]
    for lit in ([], ["porch"])
]

config = (
    GRPOConfig()
    .environment(ToolEnv, env_config={"tools": House, "check": check, "data": rows, "demonstration": "calls"})
    .language_model("bundled:smollm2-135m-instruct", dtype="float32", max_model_len=1024)
    .generation(max_response_tokens=40, stop=ToolEnv.stop)
    .warm_start(epochs=2, lr=1e-4, batch_size=8)
    .training(lr=1e-5, prompts_per_batch=4, rollouts_per_prompt=8, kl_coeff=0.0, max_tokens_per_micro_batch=1024)
    .curriculum("exit", buffer_size=64, min_buffer_size=8, diversity_metric="edit_distance")
)
stop = {"training_iteration": 5}
