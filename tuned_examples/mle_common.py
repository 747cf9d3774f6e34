"""What the five ML engineering examples share: one configuration per scale, the strategy apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.mle_bench.env import MLEBenchEnv
from envs.mle_bench.synthetic import generate
from rllib_exit.files import make_once
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.models import cache_dir
from rllib_exit.scale import cpu_dtype, current_scale

# Where `mlebench prepare` puts competitions by default.
DATA = Path("~/.cache/mle-bench/data").expanduser()
TRAIN = ["detecting-insults-in-social-commentary", "spooky-author-identification", "random-acts-of-pizza"]
TEST = [
    "jigsaw-toxic-comment-classification-challenge",
    "nomad2018-predict-transparent-conductors",
    "aerial-cactus-identification",
]

# Table 6, where the strategies differ: size and minimum size of the buffer, divergence probability.
TABLE_6: dict[str, tuple[int, int, float]] = {
    "grpo": (24, 3, 0.0),  # has no buffer
    "curriculum": (3, 3, 0.0),
    "improve": (24, 8, 0.0),
    "diverge": (32, 8, 0.2),
    "exit": (24, 3, 0.5),
}


def make_config(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """The config and the stopping condition of a row of the paper's Table 1."""
    return cpu(strategy) if current_scale() == "cpu" else paper(strategy)


def paper(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """Table 6: DeepSeek-R1-Distill-Qwen-7B on three competitions, evaluated on three others.

    Prepare them first: ``mlebench prepare -c NAME``. Lengths, the number of iterations and the machines are ours,
    the paper gives none.
    """
    config = (
        base(strategy)
        .environment(MLEBenchEnv, env_config={"competitions": [str(DATA / name) for name in TRAIN]})
        .language_model("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", max_model_len=16384, gradient_checkpointing=True)
        .generation(max_response_tokens=8192)
        .training(lr=1e-6, kl_coeff=0.001, max_tokens_per_micro_batch=16384)
        # Takes 8192 tokens and knows code, as the paper's CodeXEmbed does, but is no code of the hub's to be run here.
        .curriculum(embedding_model="Alibaba-NLP/gte-modernbert-base")
        .learners(num_learners=8, num_gpus_per_learner=1)
        .env_runners(num_env_runners=4, num_gpus_per_env_runner=1)
        .self_improvement(steps=16)
        .evaluation(
            evaluation_interval=50,
            # The sampling that the model's generation_config asks for.
            evaluation_config=GRPOConfig.overrides(
                env_config={"competitions": [str(DATA / name) for name in TEST]}, temperature=0.6, top_p=0.95
            ),
        )
    )
    return config, {"training_iteration": 300}


def cpu(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """A small model on two competitions with made-up data.

    The bundled model writes no script that scores: warm it up first with ``rllib sft``, and give the result with
    ``--set model_name=DIR``, see docs/tutorials/ml_engineering.md.
    """
    competitions = cache_dir() / "competitions-v1"  # another number for other data
    make_once(competitions, generate)
    env_config = {
        "competitions": [str(path) for path in sorted(competitions.iterdir())],
        "timeout_s": 20,
        "memory_bytes": 2 << 30,
        "output_chars": 300,
    }
    config = (
        base(strategy)
        .environment(MLEBenchEnv, env_config=env_config)
        .language_model("bundled:smollm2-135m-instruct", dtype=cpu_dtype(), max_model_len=1536)
        .generation(max_response_tokens=160, engine_args={"max_num_seqs": 32})
        .training(lr=2e-5, kl_coeff=0.0, max_tokens_per_micro_batch=1536)
        .curriculum(embedding_model="bundled:all-minilm-l6-v2")
        .self_improvement(steps=2)
        .evaluation(
            evaluation_interval=None,
            # As above: a search at temperature 0 would repeat itself.
            evaluation_config=GRPOConfig.overrides(temperature=0.6, top_p=0.95),
        )
    )
    return config, {"training_iteration": 30}


def base(strategy: str) -> GRPOConfig:
    """What both scales have in common: the rest of Table 6."""
    buffer_size, min_buffer_size, divergence_prob = TABLE_6[strategy]
    return (
        GRPOConfig()
        .training(
            prompts_per_batch=4,
            rollouts_per_prompt=8,
            num_epochs=1,
            clip_param=0.2,
            ref_update_interval=100,
            ref_update_rate=0.5,
        )
        .curriculum(strategy, divergence_prob=divergence_prob, buffer_size=buffer_size, min_buffer_size=min_buffer_size)
        # A script has its own time limit, and may first wait for others to end.
        .fault_tolerance(env_timeout_s=None)
        .debugging(seed=0)
    )
