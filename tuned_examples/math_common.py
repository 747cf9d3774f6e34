"""What the five competition-math examples share: one configuration per scale, the strategy apart."""

from __future__ import annotations

from typing import Any

from envs.competition_math.env import CompetitionMathEnv
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import cpu_dtype, current_scale

# The paper's test splits (section 5.1).
TEST_SPLITS = ["math500", "amc12", "aime24", "aime25", "minerva", "olympiadbench"]
# Arithmetic that the small model can learn: sums of single digits, differences up to 20.
LEVELS = ["add1", "sub"]
# Held-out problems of these levels, and of two that are not trained on.
TEST_LEVELS = [*LEVELS, "add21", "mul1"]


def make_config(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """The config and the stopping condition of a row of the paper's Table 1."""
    return cpu(strategy) if current_scale() == "cpu" else paper(strategy)


def paper(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """Table 4: Llama-3.2-3B-Instruct on 1280 problems, an epoch every 10 iterations."""
    config = (
        GRPOConfig()
        .environment(CompetitionMathEnv, env_config={"tasks": "train"})
        .language_model("meta-llama/Llama-3.2-3B-Instruct", max_model_len=8192, gradient_checkpointing=True)
        .generation(max_response_tokens=2048)
        .training(
            lr=1e-6,
            prompts_per_batch=128,
            rollouts_per_prompt=8,
            num_epochs=1,
            clip_param=0.2,
            kl_coeff=0.001,
            ref_update_interval=100,
            ref_update_rate=1.0,
            max_tokens_per_micro_batch=16384,
        )
        .curriculum(
            strategy,
            buffer_size=512,
            min_buffer_size=128,
            # A BERT fine-tuned on academic mathematics (section 5.2).
            embedding_model="math-similarity/Bert-MLM_arXiv-MP-class_zbMath",
        )
        .learners(num_learners=1, num_gpus_per_learner=1)
        .env_runners(num_env_runners=1, num_gpus_per_env_runner=1)
        .self_improvement(steps=4, splits={name: {"tasks": name} for name in TEST_SPLITS})
        .evaluation(
            evaluation_interval=10,
            evaluation_config=GRPOConfig.overrides(env_config={"tasks": "val_math100"}, temperature=0.6, top_p=0.9),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 500}


def cpu(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """A small model on arithmetic, which it can learn within minutes on two cores."""
    config = (
        GRPOConfig()
        .environment(CompetitionMathEnv, env_config={"tasks": "arithmetic", "split": "train", "levels": LEVELS})
        .language_model("bundled:smollm2-135m-instruct", dtype=cpu_dtype(), max_model_len=512)
        .generation(max_response_tokens=24, engine_args={"max_num_seqs": 128})
        .training(
            lr=4e-5,
            lr_warmup_steps=3,
            lr_decay_steps=37,
            prompts_per_batch=16,
            rollouts_per_prompt=8,
            kl_coeff=0.0,
            max_tokens_per_micro_batch=512,
        )
        .curriculum(
            strategy,
            buffer_size=64,
            min_buffer_size=16,
            embedding_model="bundled:all-minilm-l6-v2",
        )
        .self_improvement(steps=4, splits={level: {"levels": [level], "limit": None} for level in TEST_LEVELS})
        .evaluation(
            evaluation_interval=10,
            evaluation_config=GRPOConfig.overrides(
                env_config={"tasks": "arithmetic", "split": "test", "levels": LEVELS, "limit": 96}, temperature=0.0
            ),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 40}
