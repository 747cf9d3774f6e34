"""The settings: one typed class for each group, which states every field's type, default, bounds and meaning once.

:class:`rllib_exit.grpo.config.GRPOConfig` has these fields as its attributes. Its methods, its checks, ``--set`` and
``docs/config.md`` derive from the classes. The curriculum's are in :mod:`rllib_exit.curriculum.exit`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rllib_exit.settings_group import Settings, check, use

Loss = Literal["grpo", "gspo", "cispo"]
LossAggregation = Literal["sequence_mean", "token_mean", "constant"]
MismatchMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

# With these values the engine samples from the very distribution that the learner computes.
WHOLE_DISTRIBUTION = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class LanguageModelSettings(Settings):
    """The language model that is trained."""

    model_name: str | None = None
    """A directory, a hub id, or ``bundled:smollm2-135m-instruct``."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The precision of the engine and of the learner's forward pass. The learner's weights and its optimizer's state
    are always float32."""
    max_model_len: PositiveInt = 4096
    """The most tokens of prompt and response together."""
    attn_implementation: str = "sdpa"
    """The learner's attention. With ``sdpa`` and ``flex_attention`` the rollouts of a group share their prompt in a
    pack. The mask of ``sdpa`` takes memory for T² pairs of tokens. ``flex_attention`` passes over what is masked, and
    needs a GPU. With ``flash_attention_2`` every rollout has its prompt."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the model's chat template. ``chat_template`` is another template, for a model that has none."""

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        check(self, "model_name", self.model_name is not None, "name a model with .language_model(...)")
        flash = self.attn_implementation.startswith("flash") and importlib.util.find_spec("flash_attn") is None
        mend = (
            "it needs the package flash-attn, which is not installed: use 'sdpa', or build it for this torch and CUDA"
        )
        check(self, "attn_implementation", not flash, mend)
        return self


class GenerationSettings(Settings):
    """How responses are sampled."""

    max_response_tokens: PositiveInt = 1024
    """The most tokens of one response."""
    temperature: NonNegativeFloat = 1.0
    """The sampling temperature. The learner uses the same tempered distribution. 0 is for evaluation only
    (``evaluation_config``)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The probability mass that is sampled from. It may be below 1 in evaluation only."""
    top_k: NonNegativeInt = 0
    """How many of the likeliest tokens are sampled from. 0 is no limit. It may be above 0 in evaluation only."""
    min_p: Fraction = 0.0
    """Tokens less likely than this share of the likeliest one's probability are left out. It may be above 0 in
    evaluation only."""
    repetition_penalty: PositiveFloat = 1.0
    """What the scores of tokens that were there before are divided by. It may differ from 1 in evaluation only."""
    stop: Annotated[tuple[Text, ...], Field(strict=False), use("a list of strings that are not empty")] = ()
    """Strings that end a response."""
    compact_history_chars: NonNegativeInt | None = None
    """Where a chat leaves no room for a response, its old messages are cut to so many characters, the oldest first,
    until there is room. With None the episode ends there."""
    engine_args: dict[str, Any] = {}
    """More arguments of ``vllm.AsyncEngineArgs``. ``max_num_seqs`` is ``num_envs_per_env_runner``, unless it stands
    here. An engine with ``tensor_parallel_size`` N needs ``num_gpus_per_env_runner=N``, which Ray gives it on one
    node."""
    generator_class: Annotated[Callable[..., Any], use("a callable that makes the engine")]
    """Makes the engine. It is called as :class:`VLLMGenerator` is."""
    weight_transfer: Literal["object_store", "nccl"] = "object_store"
    """How weights come from the learners: ``object_store``, through Ray's object store and shared memory, or
    ``nccl``, from GPU to GPU; see :mod:`rllib_exit.weight_sync.transfers`."""
    full_weights_interval: PositiveInt = 20
    """Through the object store go those bfloat16 weights that an update changed, as long as they are few. Every so many
    times all go, too, and an engine compares the two. 1 sends all of them every time."""


class TrainingSettings(Settings):
    """Batches, objective and optimizer."""

    lr: NonNegativeFloat = 1e-6
    """The learning rate, after warmup and before decay."""
    prompts_per_batch: PositiveInt = 128
    """P, the task instances of an iteration."""
    rollouts_per_prompt: Annotated[int, Field(ge=2), use("at least 2 rollouts, for a group-relative advantage")] = 8
    """G, the group size."""
    refill_zero_variance: NonNegativeInt = 0
    """How many times ``prompts_per_batch`` further prompts may be selected, at most, in place of those whose group has
    nothing to teach; see :func:`rllib_exit.objective.scoring.num_to_refill`. 0 trains on what was selected first."""
    num_epochs: PositiveInt = 1
    """The passes over an iteration's batch."""
    minibatch_size: PositiveInt | None = None
    """The rollouts of one optimizer step. None is the whole batch."""
    max_tokens_per_micro_batch: PositiveInt = 8192
    """The tokens of one forward and backward pass. It changes nothing but memory and speed."""
    streamed_update: bool = False
    """Whether the learners work on groups that are in while others are still rolled out. Their gradients add up, and
    make one step when all are in: it is the same update. It needs one epoch and one minibatch."""
    clip_param: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """ε of Eq. 4."""
    clip_param_high: PositiveFloat | None = None
    """ε above a ratio of 1, if it differs."""
    kl_coeff: NonNegativeFloat = 0.001
    """β of Eq. 4. 0 keeps no reference policy."""
    ref_update_interval: PositiveInt = 100
    """The iterations between updates of the reference policy."""
    ref_update_rate: Fraction = 1.0
    """a in ref ← a·θ + (1 − a)·ref."""
    normalize_std: bool = True
    """Whether advantages are divided by the group's standard deviation (Eq. 3)."""
    loss: Loss = "grpo"
    """What is maximised: see ``LOSSES`` in :mod:`rllib_exit.objective.loss`. The paper's is ``grpo`` (Eq. 4)."""
    loss_aggregation: LossAggregation = "sequence_mean"
    """``sequence_mean`` (GRPO), ``token_mean`` (DAPO) or ``constant`` (Dr. GRPO)."""
    mismatch_clip: PositiveFloat | None = 2.0
    """The bound of the importance weight of learner against engine. None is no weight."""
    mismatch_mode: MismatchMode = "token_truncate"
    """Whether that weight is a token's or a whole sequence's, and whether a weight above the bound is truncated to it,
    or its tokens are masked."""
    overlong_filtering: bool = False
    """Whether responses that the token limit cut, or that end invalidly, have no loss."""
    lr_warmup_steps: NonNegativeInt = 0
    """The updates over which the learning rate rises linearly."""
    lr_decay_steps: Annotated[PositiveInt | None, use("None or a number of updates, 1 or more")] = None
    """The updates after the warmup over which the learning rate falls linearly to 0, where it stays. With None it does
    not fall."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    adam_betas: Annotated[tuple[Beta, Beta], Field(strict=False), use("two numbers in [0, 1)")] = (0.9, 0.999)
    """AdamW's β₁ and β₂."""
    grad_clip: PositiveFloat | None = 1.0
    """The largest norm of the gradient. None is no limit."""
    learner_threads: PositiveInt | None = None
    """The CPU threads of a learner. None is all cores."""


class WarmStartSettings(Settings):
    """A supervised phase on the environment's demonstrations before the first iteration; the paper has none."""

    warm_start_epochs: NonNegativeInt = 0
    """The passes over the demonstrations. 0 is no warm start."""
    warm_start_lr: PositiveFloat = 2e-5
    """The highest learning rate."""
    warm_start_batch_size: PositiveInt = 16
    """The demonstrations of one update."""
    warm_start_env_config: dict[str, Any] = {}
    """What the environment of the demonstrations has in place of ``env_config``'s options."""


class DeepSpeedSettings(Settings):
    """How DeepSpeed's ZeRO shards."""

    zero_stage: Annotated[int, Field(ge=0, le=3), use("0, 1, 2 or 3")] = 2
    """What a learner holds only its share of: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 parameters
    too."""
    offload_optimizer: bool = False
    """Whether the optimizer's state is kept in host memory and updated there."""
    zero_optimization: dict[str, Any] = {}
    """More of DeepSpeed's ``zero_optimization`` section, such as bucket sizes."""


class ShardingSettings(DeepSpeedSettings):
    """What the learners hold of the model: see :mod:`rllib_exit.learner.sharding.sharded_model`."""

    sharding: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """The back end, which the methods ``ddp()``, ``fsdp2()`` and ``deepspeed()`` choose."""

    @model_validator(mode="after")
    def _has_something_to_offload(self) -> Self:
        offloads = self.sharding == "deepspeed" and self.offload_optimizer
        mend = "there is nothing to offload at zero_stage 0: use a higher one"
        check(self, "offload_optimizer", self.zero_stage > 0 or not offloads, mend)
        return self


ENGINE_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM keeps room for."""


class LoRASettings(Settings):
    """Low-rank adapters (LoRA) that are trained in place of the weights."""

    lora_r: PositiveInt | None = None
    """The adapters' rank. None trains the weights themselves."""
    lora_alpha: PositiveFloat = 16.0
    """Adapters are scaled by alpha / r."""
    lora_target_modules: Annotated[str | list[str], use("'all-linear' or a list of the ends of names")] = "all-linear"
    """The linear layers that get an adapter, by the ends of their names, or ``all-linear``."""
    lora_sync: Literal["adapters", "merged"] = "adapters"
    """What engines get after an update: the ``adapters`` alone, which vLLM applies beside the weights, or all weights
    with the adapters ``merged``."""

    @property
    def sends_adapters(self) -> bool:
        """Whether engines get adapters alone."""
        return self.lora_r is not None and self.lora_sync == "adapters"


class ExecutionSettings(Settings):
    """How generation and learning share time and GPUs."""

    max_policy_lag: NonNegativeInt = 0
    """The most updates between the weights that a rollout began with and those that are trained on it. 0 is
    synchronous training. ``asynchronous()`` sets it."""
    colocated: bool = False
    """Whether every learner shares a GPU with an env runner. ``colocate()`` sets it."""


class FaultToleranceSettings(Settings):
    """What is done about what hangs or dies."""

    env_timeout_s: PositiveFloat | None = 900.0
    """The longest that making, resetting or stepping an environment may take, in seconds. After that the episode is
    run once more, in another environment. None is no limit."""
    generation_timeout_s: PositiveFloat | None = 1800.0
    """The longest that a response, or loading new weights, may take, in seconds. After that the engine counts as hung,
    and its env runner is restarted. None is no limit."""
    env_runner_timeout_s: PositiveFloat | None = 60.0
    """The longest that an env runner may give no sign of life, in seconds. After that it counts as lost, and is
    restarted. It is no limit of a rollout. None waits for ever."""
    sync_timeout_s: PositiveFloat | None = 120.0
    """The longest that a broadcast of weights by NCCL may take, in seconds. After that the learners count as hung, and
    training goes on from the last checkpoint. None is no limit."""
    learner_timeout_s: PositiveFloat | None = 25.0
    """The longest that a learner may give no sign of life while the others wait for it, in seconds. After that all end,
    and training goes on from the last checkpoint. It is no limit of an update. None waits for ever."""
    save_in_background: bool = False
    """Whether training goes on while a checkpoint that Tune asks for is written. Tune then takes it for whole too
    early, so let it keep at least two; ``rllib train`` does that, and turns this on for runs, not for sweeps."""


class DiversitySettings(Settings):
    """How the diversity bonus (Eq. 6) compares the solutions of a group."""

    diversity_metric: Literal["embedding", "edit_distance"] = "embedding"
    """``embedding`` (Eq. 6) or ``edit_distance``."""
    embedding_model: str | None = None
    """A sentence-transformers model: a directory, a hub id or ``bundled:all-minilm-l6-v2``."""
    num_embedders: NonNegativeInt = 0
    """The processes that embed while rollouts are under way, each with a CPU. With 0 the driver's process embeds."""
    num_gpus_per_embedder: NonNegativeFloat = 0
    """The GPUs of an embedder, or its part of one."""


class SelfImprovementSettings(Settings):
    """K-step self-improvement (section 5.3), which evaluation reports."""

    self_improvement_steps: NonNegativeInt = 4
    """K."""
    self_improvement_interval: PositiveInt = 1
    """The evaluations of training from one that takes all K steps to the next. Those between are of the first answer
    alone, which is a small part of the work."""
    greedy_search: bool = False
    """Whether, in MLE-bench, every step improves on the best script so far or debugs the last one (section 5.2),
    instead of improving the latest iterate. The accuracy after a step is then that of the best script."""
    splits: Annotated[dict[str, dict[str, Any]], use("a dict of dicts, such as {'aime24': {'tasks': 'aime24'}}")] = {}
    """What ``rllib evaluate --split NAME`` evaluates on: by name, what the split's ``env_config`` has in place of what
    the evaluation's has."""


class ReportingSettings(Settings):
    """What is reported."""

    log_rollouts: bool = False
    """Whether every rollout is written to a Parquet file per iteration, under ``rollouts/`` in the trial's directory;
    see :mod:`rllib_exit.rollout_log`."""
    log_tokens: bool = True
    """Whether such a log has the tokens too, with the log-probabilities of engine and learner."""

    @property
    def with_tokens(self) -> bool:
        """Whether tokens are logged."""
        return self.log_rollouts and self.log_tokens


class RLlibSettings(Settings):
    """RLlib's own settings with bounds of ours. RLlib's methods set them, such as ``.learners(num_learners=…)``."""

    env_config: dict[str, Any] = {}
    """The environment's options."""
    num_env_runners: NonNegativeInt = 1
    """The env runners, each with an engine."""
    num_envs_per_env_runner: PositiveInt = 256
    """The most episodes that an env runner has under way at once."""
    num_cpus_per_env_runner: NonNegativeFloat = 1
    """The CPUs that Ray reserves for an env runner."""
    num_gpus_per_env_runner: NonNegativeFloat = 0
    """The GPUs of an env runner's engine, or its part of one."""
    num_learners: NonNegativeInt = 0
    """The learners. With 0 the learner is in the driver's process."""
    num_cpus_per_learner: NonNegativeFloat | Literal["auto"] = "auto"
    """The CPUs that Ray reserves for a learner."""
    num_gpus_per_learner: NonNegativeFloat = 0
    """The GPUs of a learner, or its part of one."""
    evaluation_interval: PositiveInt | None = None
    """The iterations between evaluations. None is no evaluation."""
    evaluation_num_env_runners: NonNegativeInt = 0
    """The env runners that only evaluate. With 0 evaluation runs on the training's."""
    seed: NonNegativeInt | None = None
    """The seed of all that is random. None takes another one in every run."""
