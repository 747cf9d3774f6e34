"""Your own data and reward: ``rllib train file tuned_examples/own_data.py``."""

from rllib_exit import GRPOConfig, math_reward

# Or a JSONL, Parquet or CSV file, a folder, or a data set of the Hugging Face Hub, by its name.
rows = [{"question": f"What is {a} + {b}?", "gold": a + b} for a in range(1, 20) for b in range(1, 20)]

config = (
    GRPOConfig()
    .dataset(rows, prompt="question", answer="gold")
    .reward(math_reward)  # or a function of yours: def reward(response, answer, **row) -> float
    .language_model("bundled:smollm2-135m-instruct", dtype="float32", max_model_len=512)
    .generation(max_response_tokens=32)
    .training(lr=3e-5, prompts_per_batch=8, rollouts_per_prompt=8, kl_coeff=0.0, max_tokens_per_micro_batch=1024)
    .curriculum("exit", buffer_size=32, min_buffer_size=8, diversity_metric="edit_distance")
)
stop = {"training_iteration": 10}
