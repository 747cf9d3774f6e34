"""What the five tool-use examples share: one configuration per scale, the strategy apart."""

from __future__ import annotations

from typing import Any, get_args

from envs.bfcl.env import BFCLEnv
from envs.bfcl.tasks import Category
from envs.tool_use.calls import STOP
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.scale import cpu_dtype, current_scale

# The APIs with the shortest schemas, each on its own: 52 of the 200 tasks.
CPU_CLASSES = ["GorillaFileSystem", "TradingBot", "VehicleControlAPI"]

# Table 5, where the strategies differ: learning rate, buffer size, self-iteration and divergence probability.
TABLE_5: dict[str, tuple[float, int, float, float]] = {
    "grpo": (1e-6, 320, 0.0, 0.0),
    "curriculum": (5e-7, 320, 0.2, 0.0),
    "improve": (5e-7, 640, 0.5, 0.0),
    "diverge": (5e-7, 640, 0.5, 0.2),
    "exit": (1e-6, 640, 0.5, 0.5),
}


def make_config(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """The config and the stopping condition of a row of the paper's Table 1."""
    return cpu(strategy) if current_scale() == "cpu" else paper(strategy)


def paper(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """Table 5: Qwen2.5-7B-Instruct on the first requests of 100 tasks, 10 turns each.

    Two epochs per batch, the normalised objective (Dr. GRPO) and overlong filtering. Evaluated on all
    requests of the held-out tasks, with up to 60 turns and 16 self-improvement steps on every turn.
    """
    lr, buffer_size, self_iteration_prob, divergence_prob = TABLE_5[strategy]
    config = (
        GRPOConfig()
        .environment(BFCLEnv, env_config={"split": "train"})
        .language_model("Qwen/Qwen2.5-7B-Instruct", max_model_len=32768, gradient_checkpointing=True)
        .generation(max_response_tokens=1024, stop=STOP)
        .training(
            lr=lr,
            prompts_per_batch=16,
            rollouts_per_prompt=8,
            num_epochs=2,
            clip_param=0.2,
            kl_coeff=0.001,
            ref_update_interval=100,
            ref_update_rate=1.0,
            normalize_std=False,
            loss_aggregation="constant",
            overlong_filtering=True,
            max_tokens_per_micro_batch=32768,
        )
        .curriculum(
            strategy,
            self_iteration_prob=self_iteration_prob,
            divergence_prob=divergence_prob,
            buffer_size=buffer_size,
            min_buffer_size=320,
            embedding_model="sentence-transformers/all-MiniLM-L6-v2",
        )
        # 122 GB of weights, gradients and moments: too much for one GPU.
        .fsdp2()
        .learners(num_learners=8, num_gpus_per_learner=1)
        .env_runners(num_env_runners=8, num_gpus_per_env_runner=1)
        # Nearly all responses of an evaluation are those of further steps.
        .self_improvement(steps=16, interval=3, splits={name: {"category": name} for name in get_args(Category)})
        .evaluation(
            evaluation_interval=50,
            # The sampling that the model's generation_config asks for.
            evaluation_config=GRPOConfig.overrides(
                env_config={"split": "test", "requests": "all"}, temperature=0.7, top_p=0.8, top_k=20
            ),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 300}


def cpu(strategy: str) -> tuple[GRPOConfig, dict[str, Any]]:
    """A small model on the tasks of one API each, with short schemas.

    The bundled model hardly ever solves such a task, and is warmed up on demonstrations first. Within an hour it
    learns the tasks of a single API, ``--set 'env_config.classes=[TradingBot]'``, see ``docs/learning.md``.
    """
    _, _, self_iteration_prob, divergence_prob = TABLE_5[strategy]
    config = (
        GRPOConfig()
        .environment(BFCLEnv, env_config={"split": "train", "classes": CPU_CLASSES, "schemas": "short"})
        .language_model("bundled:smollm2-135m-instruct", dtype=cpu_dtype(), max_model_len=2048)
        .generation(max_response_tokens=96, stop=STOP, engine_args={"max_num_seqs": 64})
        .warm_start(epochs=4, lr=1e-4, batch_size=8)
        .training(
            lr=1.5e-5,
            lr_warmup_steps=2,
            lr_decay_steps=60,
            prompts_per_batch=12,
            rollouts_per_prompt=8,
            kl_coeff=0.0,
            normalize_std=False,
            loss_aggregation="constant",
            overlong_filtering=True,
            max_tokens_per_micro_batch=2048,
        )
        .curriculum(
            strategy,
            self_iteration_prob=self_iteration_prob,
            divergence_prob=divergence_prob,
            buffer_size=64,
            min_buffer_size=8,
            embedding_model="bundled:all-minilm-l6-v2",
        )
        .self_improvement(steps=2)
        .evaluation(
            evaluation_interval=None,
            evaluation_config=GRPOConfig.overrides(
                env_config={"split": "test", "classes": CPU_CLASSES, "schemas": "short"}, temperature=0.0
            ),
        )
        .debugging(seed=0)
    )
    return config, {"training_iteration": 40}
