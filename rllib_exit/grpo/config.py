"""The configuration of GRPO and ExIt; the defaults are the paper's (appendix A, Table 4)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided as _NotProvided

from rllib_exit.checks import check_field, close_fields, is_int, is_number
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig
from rllib_exit.models import resolve_model
from rllib_exit.objective.loss import LossAggregation

# RLlib's mark for a setting that is left as it is; any type's default.
NotProvided: Any = _NotProvided


class GRPOConfig(AlgorithmConfig):
    """Configures :class:`rllib_exit.grpo.algorithm.GRPO`.

    Example:
        >>> config = (
        ...     GRPOConfig()
        ...     .environment(CompetitionMathEnv, env_config={"tasks": "train"})
        ...     .language_model("meta-llama/Llama-3.2-3B-Instruct")
        ...     .curriculum("exit")
        ...     .training(lr=1e-6, prompts_per_batch=128, rollouts_per_prompt=8)
        ... )
    """

    # RLlib also takes schedules here; ours are lr_warmup_steps and lr_decay_steps.
    lr: float

    def __init__(self, algo_class: type | None = None) -> None:
        if algo_class is None:
            from rllib_exit.grpo.algorithm import GRPO as algo_class  # noqa: N811
        super().__init__(algo_class=algo_class)

        # The language model.
        self.model_name: str | None = None
        self.dtype = "bfloat16"
        self.max_model_len = 4096
        self.attn_implementation = "sdpa"
        self.gradient_checkpointing = False
        self.chat_template_kwargs: dict[str, Any] = {}

        # Generation.
        self.max_response_tokens = 1024
        self.temperature = 1.0
        self.top_p = 1.0
        self.top_k = 0
        self.stop: tuple[str, ...] = ()
        self.compact_history_chars: int | None = None
        self.engine_args: dict[str, Any] = {}
        self.generator_class: Callable[..., Any] = vllm_generator

        # Training.
        self.lr = 1e-6
        self.prompts_per_batch = 128
        self.rollouts_per_prompt = 8
        self.num_epochs = 1
        self.minibatch_size = None
        self.max_tokens_per_micro_batch = 8192
        self.clip_param = 0.2
        self.clip_param_high: float | None = None
        self.kl_coeff = 0.001
        self.ref_update_interval = 100
        self.ref_update_rate = 1.0
        self.normalize_std = True
        self.loss_aggregation: LossAggregation = "sequence_mean"
        self.mismatch_clip: float | None = 2.0
        self.overlong_filtering = False
        self.lr_warmup_steps = 0
        self.lr_decay_steps: int | None = None
        self.weight_decay = 0.0
        self.adam_betas = (0.9, 0.999)
        self.grad_clip = 1.0
        self.learner_threads: int | None = None

        # The learners.
        self.sharding = "ddp"
        self.zero_stage = 2
        self.offload_optimizer = False
        self.zero_optimization: dict[str, Any] = {}
        self.lora_r: int | None = None
        self.lora_alpha = 16.0
        self.lora_target_modules: str | list[str] = "all-linear"

        self.max_policy_lag = 0
        self.weight_transfer = "object_store"
        self.colocated = False

        # The curriculum.
        self.strategy = "exit"
        self.self_iteration_prob = CurriculumConfig().self_iteration_prob
        self.divergence_prob = CurriculumConfig().divergence_prob
        self.buffer_size = CurriculumConfig().buffer_size
        self.min_buffer_size = CurriculumConfig().min_buffer_size
        self.inverse_temperature = CurriculumConfig().inverse_temperature
        self.expansions_per_group = CurriculumConfig().expansions_per_group
        self.learnability = CurriculumConfig().learnability
        self.staleness_coeff = CurriculumConfig().staleness_coeff
        self.self_iteration = True
        self.diversity_bonus = True
        self.diversity_metric = "embedding"
        self.embedding_model: str | None = None

        # Evaluation.
        self.self_improvement_steps = 4
        self.splits: dict[str, dict[str, Any]] = {}
        self.greedy_search = False

        # Reporting.
        self.log_rollouts = False

        # What RLlib's defaults assume of small, fast policies does not hold for language models.
        from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner

        self.env_runner_cls = LLMEnvRunner
        self.num_env_runners = 1
        self.num_envs_per_env_runner = 256
        self.create_local_env_runner = False
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._dont_auto_sync_env_runner_states = True
        self.episodes_to_numpy = False
        self.sample_timeout_s = None
        self.evaluation_sample_timeout_s = 1e9
        self.delay_between_env_runner_restarts_s = 0
        self.restart_failed_env_runners = True
        self.env_timeout_s: float | None = 900.0
        self.generation_timeout_s: float | None = 1800.0

    def language_model(
        self,
        model: str = NotProvided,
        *,
        dtype: str = NotProvided,
        max_model_len: int = NotProvided,
        attn_implementation: str = NotProvided,
        gradient_checkpointing: bool = NotProvided,
        chat_template_kwargs: dict[str, Any] = NotProvided,
    ) -> Self:
        """Sets the language model that is trained.

        Args:
            model: A directory, a hub id, or ``bundled:smollm2-135m-instruct``.
            dtype: ``"bfloat16"`` or ``"float32"``: of the engine and of the learner's forward pass. The
                learner's weights and its optimizer's state are always float32.
            max_model_len: The most tokens of prompt and response together.
            attn_implementation: Of the learner: ``"sdpa"``, where rollouts of one group share their
                prompt in a pack, or ``"flash_attention_2"``.
            gradient_checkpointing: Recompute activations in the backward pass.
            chat_template_kwargs: Variables of the model's chat template.
        """
        return self._set(
            model_name=model,
            dtype=dtype,
            max_model_len=max_model_len,
            attn_implementation=attn_implementation,
            gradient_checkpointing=gradient_checkpointing,
            chat_template_kwargs=chat_template_kwargs,
        )

    def generation(
        self,
        *,
        max_response_tokens: int = NotProvided,
        temperature: float = NotProvided,
        top_p: float = NotProvided,
        top_k: int = NotProvided,
        stop: Sequence[str] = NotProvided,
        compact_history_chars: int | None = NotProvided,
        engine_args: dict[str, Any] = NotProvided,
        generator_class: Callable[..., Any] = NotProvided,
        weight_transfer: str = NotProvided,
    ) -> Self:
        """Sets how responses are sampled.

        Args:
            max_response_tokens: The most tokens of one response.
            temperature: Of training's samples; the learner uses the same tempered distribution.
            top_p: Below 1 in evaluation only (``evaluation_config``).
            top_k: Above 0 in evaluation only.
            stop: Strings that end a response.
            compact_history_chars: Where a chat leaves no room for a response, its old messages are cut to so many
                characters, the oldest first, until it does. None: the episode ends there.
            engine_args: More arguments of ``vllm.AsyncEngineArgs``. An engine with ``tensor_parallel_size`` N needs
                ``num_gpus_per_env_runner=N``, which Ray gives it on one node.
            generator_class: Makes the engine, called as :class:`VLLMGenerator` is.
            weight_transfer: How weights come from the learners: ``"object_store"``, through Ray's object store and
                shared memory, or ``"nccl"``, from GPU to GPU; see :mod:`rllib_exit.weight_sync.transfers`.
        """
        return self._set(
            max_response_tokens=max_response_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
            compact_history_chars=compact_history_chars,
            engine_args=engine_args,
            generator_class=generator_class,
            weight_transfer=weight_transfer,
        )

    def training(
        self,
        *,
        prompts_per_batch: int = NotProvided,
        rollouts_per_prompt: int = NotProvided,
        max_tokens_per_micro_batch: int = NotProvided,
        clip_param: float = NotProvided,
        clip_param_high: float | None = NotProvided,
        kl_coeff: float = NotProvided,
        ref_update_interval: int = NotProvided,
        ref_update_rate: float = NotProvided,
        normalize_std: bool = NotProvided,
        loss_aggregation: str = NotProvided,
        mismatch_clip: float | None = NotProvided,
        overlong_filtering: bool = NotProvided,
        lr_warmup_steps: int = NotProvided,
        lr_decay_steps: int | None = NotProvided,
        weight_decay: float = NotProvided,
        adam_betas: tuple[float, float] = NotProvided,
        learner_threads: int | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training; ``lr``, ``num_epochs``, ``minibatch_size`` and ``grad_clip`` are RLlib's own.

        Args:
            prompts_per_batch: P, task instances per iteration.
            rollouts_per_prompt: G, the group size.
            max_tokens_per_micro_batch: Tokens of one forward and backward pass. Changes nothing but
                memory and speed.
            clip_param: ε of Eq. 4.
            clip_param_high: ε above 1, if it differs.
            kl_coeff: β of Eq. 4; 0 keeps no reference policy.
            ref_update_interval: Iterations between updates of the reference policy.
            ref_update_rate: a in ref ← a·θ + (1 − a)·ref.
            normalize_std: Divide advantages by the group's standard deviation (Eq. 3).
            loss_aggregation: ``"sequence_mean"`` (GRPO), ``"token_mean"`` (DAPO) or ``"constant"`` (Dr. GRPO).
            mismatch_clip: Truncates the importance weight of learner against engine; None for no weight.
            overlong_filtering: No loss for responses that the token limit cut or that end invalidly.
            lr_warmup_steps: Updates over which the learning rate rises linearly.
            lr_decay_steps: Updates after these over which it falls linearly to 0, where it then stays; None: it
                does not fall.
            weight_decay: AdamW's.
            adam_betas: AdamW's.
            learner_threads: CPU threads of a learner; None for all cores.
            **kwargs: RLlib's own training settings.
        """
        super().training(**kwargs)
        return self._set(
            prompts_per_batch=prompts_per_batch,
            rollouts_per_prompt=rollouts_per_prompt,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            clip_param=clip_param,
            clip_param_high=clip_param_high,
            kl_coeff=kl_coeff,
            ref_update_interval=ref_update_interval,
            ref_update_rate=ref_update_rate,
            normalize_std=normalize_std,
            loss_aggregation=loss_aggregation,
            mismatch_clip=mismatch_clip,
            overlong_filtering=overlong_filtering,
            lr_warmup_steps=lr_warmup_steps,
            lr_decay_steps=lr_decay_steps,
            weight_decay=weight_decay,
            adam_betas=adam_betas,
            learner_threads=learner_threads,
        )

    def ddp(self) -> Self:
        """Has every learner hold the whole model, its gradients and AdamW's moments. This is the default.

        ``.learners(num_learners=…, num_gpus_per_learner=…)`` says how many learners there are. See
        :mod:`rllib_exit.learner.sharding.sharded_model` for the back ends, which change memory and speed but
        not the training.
        """
        return self._set(sharding="ddp")

    def fsdp2(self) -> Self:
        """Has every learner hold its share of each parameter, gradient and moment, by torch's ``fully_shard``."""
        return self._set(sharding="fsdp2")

    def deepspeed(
        self,
        *,
        zero_stage: int = NotProvided,
        offload_optimizer: bool = NotProvided,
        zero_optimization: dict[str, Any] = NotProvided,
    ) -> Self:
        """Shards by DeepSpeed's ZeRO.

        Args:
            zero_stage: What a learner holds only its share of: 0 nothing, 1 the optimizer's state, 2 (the
                default) gradients too, 3 parameters too.
            offload_optimizer: Keep the optimizer's state in host memory and update it there.
            zero_optimization: More of DeepSpeed's ``zero_optimization`` section, such as bucket sizes.
        """
        return self._set(
            sharding="deepspeed",
            zero_stage=zero_stage,
            offload_optimizer=offload_optimizer,
            zero_optimization=zero_optimization,
        )

    def lora(
        self, *, r: int | None = NotProvided, alpha: float = NotProvided, target_modules: str | list[str] = NotProvided
    ) -> Self:
        """Trains low-rank adapters (LoRA) in place of the weights.

        The engine gets the weights with the adapters merged. The reference policy is the model without them, so
        it cannot follow the policy: set ``ref_update_rate=0`` or ``kl_coeff=0``. A checkpoint holds the adapters
        alone.

        Args:
            r: The adapters' rank; None trains the weights themselves.
            alpha: Adapters are scaled by alpha / r.
            target_modules: The linear layers that get one, by the ends of their names, or ``"all-linear"``.
        """
        return self._set(lora_r=r, lora_alpha=alpha, lora_target_modules=target_modules)

    def asynchronous(self, *, max_policy_lag: int = 1) -> Self:
        """Has generation go on while the learner updates.

        The prompts of up to ``max_policy_lag`` iterations are selected, and their rollouts begun, ahead of the
        iteration that trains on them. What is trained on is what was selected, in that order, however long it took.

        Args:
            max_policy_lag: The most updates between the weights that a rollout began with and those that are
                trained on it. 0 is synchronous training, the default.
        """
        return self._set(max_policy_lag=max_policy_lag)

    def colocate(self) -> Self:
        """Has every learner share a GPU with an env runner, whose engine sleeps while the learners work.

        Set as many learners as env runners, each with a part of a GPU, such as ``num_gpus_per_learner=0.5`` and
        ``num_gpus_per_env_runner=0.5``. The parts only say who shares; how much memory the engine takes is its
        ``gpu_memory_utilization``. They share a node and a GPU where Tune runs the algorithm, as ``rllib train`` does.
        """
        return self._set(colocated=True)

    def fault_tolerance(
        self,
        *,
        env_timeout_s: float | None = NotProvided,
        generation_timeout_s: float | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets what is done about what hangs or dies.

        Args:
            env_timeout_s: The longest that making, resetting or stepping an environment may take; after that
                the episode is run once more, in another environment. None for no limit.
            generation_timeout_s: The longest that a response, or loading new weights, may take; after that the
                engine counts as hung, and its env runner is restarted. None for no limit.
            **kwargs: RLlib's own settings: ``env_runner_restore_timeout_s`` is how long a run without any env
                runner waits for one to come back.
        """
        super().fault_tolerance(**kwargs)
        return self._set(env_timeout_s=env_timeout_s, generation_timeout_s=generation_timeout_s)

    def curriculum(
        self,
        strategy: str = NotProvided,
        *,
        self_iteration_prob: float = NotProvided,
        divergence_prob: float = NotProvided,
        buffer_size: int = NotProvided,
        min_buffer_size: int = NotProvided,
        inverse_temperature: float = NotProvided,
        expansions_per_group: int = NotProvided,
        learnability: str = NotProvided,
        staleness_coeff: float = NotProvided,
        diversity_metric: str = NotProvided,
        embedding_model: str = NotProvided,
    ) -> Self:
        """Sets the task curriculum (paper section 4).

        Args:
            strategy: A row of Table 1: ``"grpo"``, ``"curriculum"``, ``"improve"``, ``"diverge"`` or
                ``"exit"``. It sets what follows to its preset; give it first, or with what differs.
            self_iteration_prob: Probability that a prompt is selected from the task buffer.
            divergence_prob: Probability that a self-iteration step becomes a divergence step.
            buffer_size: The task buffer's capacity.
            min_buffer_size: Nothing is selected while the buffer holds fewer instances.
            inverse_temperature: α: instances are drawn in proportion to their score to this power.
            expansions_per_group: Rollouts of a group that enter the buffer.
            learnability: What instances are kept and drawn by: ``"variance"`` (the paper's),
                ``"expected_improvement"`` or ``"regret"``; see :mod:`rllib_exit.curriculum.learnability`.
            staleness_coeff: The share of selections that is drawn by how long ago an instance was selected.
            diversity_metric: ``"embedding"`` (Eq. 6) or ``"edit_distance"``.
            embedding_model: A sentence-transformers model: directory, hub id or ``bundled:all-minilm-l6-v2``.
        """
        if strategy is not NotProvided:
            if strategy not in STRATEGIES:
                raise ValueError(f"strategy is {strategy!r}: use one of {', '.join(STRATEGIES)}")
            preset = STRATEGIES[strategy]
            self._set(
                strategy=strategy,
                self_iteration_prob=preset.self_iteration_prob,
                divergence_prob=preset.divergence_prob,
                self_iteration=preset.self_iteration,
                diversity_bonus=preset.diversity_bonus,
            )
        return self._set(
            self_iteration_prob=self_iteration_prob,
            divergence_prob=divergence_prob,
            buffer_size=buffer_size,
            min_buffer_size=min_buffer_size,
            inverse_temperature=inverse_temperature,
            expansions_per_group=expansions_per_group,
            learnability=learnability,
            staleness_coeff=staleness_coeff,
            diversity_metric=diversity_metric,
            embedding_model=embedding_model,
        )

    def self_improvement(
        self,
        *,
        steps: int = NotProvided,
        greedy_search: bool = NotProvided,
        splits: dict[str, dict[str, Any]] = NotProvided,
    ) -> Self:
        """Sets K-step self-improvement (paper section 5.3), which evaluation reports.

        It runs on the training env runners, or, if ``evaluation_num_env_runners`` is above 0, on those.
        ``evaluation_config`` overrides environment and sampling.

        Args:
            steps: K.
            greedy_search: In MLE-bench, every step improves on the best script so far or debugs the last one
                (section 5.2), instead of the latest iterate; the accuracy after a step is that of the best script.
            splits: What ``rllib evaluate --split NAME`` evaluates on: by name, what the split's ``env_config`` has
                in place of what the evaluation's has.
        """
        return self._set(self_improvement_steps=steps, greedy_search=greedy_search, splits=splits)

    def reporting(self, *, log_rollouts: bool = NotProvided, **kwargs: Any) -> Self:
        """Sets what is reported.

        Args:
            log_rollouts: Write every rollout to a Parquet file per iteration, under ``rollouts/`` in the trial's
                directory; see :mod:`rllib_exit.rollout_log`.
            **kwargs: RLlib's own reporting settings.
        """
        super().reporting(**kwargs)
        return self._set(log_rollouts=log_rollouts)

    def _set(self, **settings: Any) -> Self:
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def curriculum_config(self) -> CurriculumConfig:
        """The curriculum's part of this config."""
        return CurriculumConfig(
            self_iteration_prob=self.self_iteration_prob,
            divergence_prob=self.divergence_prob,
            buffer_size=self.buffer_size,
            min_buffer_size=self.min_buffer_size,
            inverse_temperature=self.inverse_temperature,
            expansions_per_group=self.expansions_per_group,
            learnability=self.learnability,
            staleness_coeff=self.staleness_coeff,
            self_iteration=self.self_iteration,
            diversity_bonus=self.diversity_bonus,
        )

    @property
    def engine_size(self) -> int:
        """How many workers an engine has, each with a GPU if there are any."""
        return math.prod(self.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))

    @property
    def all_engine_args(self) -> dict[str, Any]:
        """``engine_args`` and what other settings ask of the engine."""
        args: dict[str, Any] = {}
        if self.engine_size > 1:
            # Processes below the env runner; inside of Ray vLLM would make actors, outside of what Ray gave it.
            args["distributed_executor_backend"] = "mp"
        if self.weight_transfer == "nccl":
            args["weight_transfer_config"] = {"backend": "nccl"}
        if self.colocated:
            args["enable_sleep_mode"] = True
        return {**args, **self.engine_args}

    @property
    def model_path(self) -> str:
        """The local directory of the model."""
        assert self.model_name is not None, "validate() checks it"
        return resolve_model(self.model_name)

    def validate(self) -> None:
        """Checks everything that needs no model or data.

        Raises:
            ValueError: Names the field, its value and the mend.
        """
        self._validate_types()
        super().validate()
        self._check("model_name", isinstance(self.model_name, str), "name a model with .language_model(...)")
        self._check("dtype", self.dtype in ("float32", "bfloat16"), "use 'float32' or 'bfloat16'")
        for name in ("max_model_len", "max_response_tokens", "prompts_per_batch", "max_tokens_per_micro_batch"):
            self._check(name, is_int(getattr(self, name), 1), "use an integer of 1 or more")
        for name in ("num_epochs", "ref_update_interval", "num_envs_per_env_runner", "self_improvement_steps"):
            low = 0 if name == "self_improvement_steps" else 1
            self._check(name, is_int(getattr(self, name), low), f"use an integer of {low} or more")
        self._check(
            "rollouts_per_prompt",
            is_int(self.rollouts_per_prompt, 2),
            "a group-relative advantage needs at least 2 rollouts",
        )
        self._check(
            "max_response_tokens",
            self.max_response_tokens < self.max_model_len,
            f"it must leave room for a prompt in max_model_len ({self.max_model_len})",
        )
        self._check(
            "minibatch_size",
            self.minibatch_size is None or is_int(self.minibatch_size, 1),
            "use None (the whole batch) or a number of rollouts",
        )
        self._check(
            "compact_history_chars",
            self.compact_history_chars is None or is_int(self.compact_history_chars, 0),
            "use None or a number of characters",
        )
        self._check(
            "lr_decay_steps",
            self.lr_decay_steps is None or is_int(self.lr_decay_steps, 1),
            "use None or a number of updates",
        )
        for name in ("kl_coeff", "weight_decay", "lr_warmup_steps", "temperature"):
            self._check(name, is_number(getattr(self, name), 0), "use a number of 0 or more")
        self._check("clip_param", is_number(self.clip_param) and 0 < self.clip_param < 1, "use a number in (0, 1)")
        for name in ("clip_param_high", "mismatch_clip", "grad_clip", "env_timeout_s", "generation_timeout_s"):
            value = getattr(self, name)
            self._check(name, value is None or (is_number(value) and value > 0), "use None or a number above 0")
        self._check("ref_update_rate", is_number(self.ref_update_rate, 0, 1), "use a number in [0, 1]")
        self._validate_learners()
        self._check(
            "splits",
            isinstance(self.splits, dict) and all(isinstance(options, dict) for options in self.splits.values()),
            "use a dict of env_config overrides by name, such as {'aime24': {'tasks': 'aime24'}}",
        )
        self._check("max_policy_lag", is_int(self.max_policy_lag, 0), "use an integer of 0 or more")
        self._check(
            "mismatch_clip",
            self.mismatch_clip is not None or self.max_policy_lag == 0,
            "asynchronous training needs importance weights: use a number above 0, such as 2.0",
        )
        choices = ("sequence_mean", "token_mean", "constant")
        self._check("loss_aggregation", self.loss_aggregation in choices, f"use one of {', '.join(choices)}")
        self._check("top_p", is_number(self.top_p, 0, 1) and self.top_p > 0, "use a number in (0, 1]")
        self._check("top_k", is_int(self.top_k, 0), "use an integer of 0 or more; 0 is no limit")
        if not self.in_evaluation:
            self._check("temperature", self.temperature > 0, "training samples: use a temperature above 0")
            mend = "training samples from the whole distribution; set it in evaluation_config only"
            self._check("top_p", self.top_p == 1, f"use 1: {mend}")
            self._check("top_k", self.top_k == 0, f"use 0: {mend}")
        self.curriculum_config().validate()
        metrics = ("embedding", "edit_distance")
        self._check("diversity_metric", self.diversity_metric in metrics, f"use one of {', '.join(metrics)}")
        if self.diversity_bonus and self.diversity_metric == "embedding":
            self._check(
                "embedding_model",
                isinstance(self.embedding_model, str),
                "the diversity bonus embeds solutions: name a model, or use diversity_metric='edit_distance'",
            )
        if self.greedy_search:
            from envs.mle_bench.env import MLEBenchEnv

            mle_bench = isinstance(self.env, type) and issubclass(self.env, MLEBenchEnv)
            self._check("greedy_search", mle_bench, f"env is {self.env!r}: only MLE-bench has it, use False")
        self._validate_placement()
        self._validate_evaluation()

    def _validate_types(self) -> None:
        """Checks what RLlib's checks take for granted, or have no good answer for, and what nothing else checks."""
        self._check("lr", is_number(self.lr, 0), "use a number of 0 or more")
        for name in (
            "gradient_checkpointing", "normalize_std", "overlong_filtering", "offload_optimizer", "colocated",
            "greedy_search", "log_rollouts",
        ):  # fmt: skip
            self._check(name, isinstance(getattr(self, name), bool), "use True or False")
        for name in ("chat_template_kwargs", "engine_args", "zero_optimization", "env_config"):
            self._check(name, isinstance(getattr(self, name), dict), "use a dict")
        low = 0 if self.in_evaluation else 1
        self._check("num_env_runners", is_int(self.num_env_runners, low), f"use an integer of {low} or more")
        for name in ("evaluation_num_env_runners", "num_learners"):
            self._check(name, is_int(getattr(self, name), 0), "use an integer of 0 or more")
        for name in ("num_cpus_per_env_runner", "num_gpus_per_env_runner", "num_gpus_per_learner"):
            self._check(name, is_number(getattr(self, name), 0), "use a number of 0 or more")
        self._check(
            "num_cpus_per_learner",
            self.num_cpus_per_learner == "auto" or is_number(self.num_cpus_per_learner, 0),
            "use a number of 0 or more, or 'auto'",
        )
        for name, low in (("seed", 0), ("evaluation_interval", 1), ("learner_threads", 1)):
            value = getattr(self, name)
            self._check(name, value is None or is_int(value, low), f"use None or an integer of {low} or more")
        self._check(
            "evaluation_config", isinstance(self.evaluation_config, dict | AlgorithmConfig | None), "use a dict"
        )
        self._check(
            "stop",
            isinstance(self.stop, list | tuple) and all(isinstance(text, str) and text for text in self.stop),
            "use a list of strings that are not empty",
        )
        self._check("generator_class", callable(self.generator_class), "use what makes the engine, a callable")
        self._check(
            "adam_betas",
            isinstance(self.adam_betas, list | tuple)
            and len(self.adam_betas) == 2
            and all(is_number(beta, 0) and beta < 1 for beta in self.adam_betas),
            "use two numbers in [0, 1)",
        )
        self._check("attn_implementation", isinstance(self.attn_implementation, str), "use a name, such as 'sdpa'")
        modules = [self.lora_target_modules] if isinstance(self.lora_target_modules, str) else self.lora_target_modules
        self._check(
            "lora_target_modules",
            isinstance(modules, list) and all(isinstance(module, str) for module in modules),
            "use 'all-linear' or a list of the ends of names",
        )
        self._check("strategy", self.strategy in list(STRATEGIES), f"use one of {', '.join(STRATEGIES)}")

    def _validate_evaluation(self) -> None:
        if self.in_evaluation:
            return
        for name in self.evaluation_config if isinstance(self.evaluation_config, dict) else ():
            if not hasattr(self, name):
                close = " or ".join(close_fields(self, name)) or "a field of GRPOConfig"
                raise ValueError(f"evaluation_config has {name!r}, which is no field: use {close}")
        evaluation: Any = self.get_evaluation_config_object()
        try:
            evaluation.validate()
        except ValueError as error:
            raise ValueError(f"evaluation_config: {error}") from error

    def _validate_placement(self) -> None:
        gpus, learner_gpus = self.num_gpus_per_env_runner or 0, self.num_gpus_per_learner or 0
        self._check(
            "num_gpus_per_env_runner",
            gpus == self.engine_size if gpus >= 1 else self.engine_size == 1 or gpus == 0,
            f"an engine with these engine_args has {self.engine_size} workers, and each needs a GPU of its own",
        )
        ways = ("object_store", "nccl")
        self._check("weight_transfer", self.weight_transfer in ways, f"use one of {', '.join(ways)}")
        if self.weight_transfer == "nccl":
            self._check("num_gpus_per_env_runner", gpus >= 1, "weight_transfer='nccl' needs whole GPUs")
            self._check("num_gpus_per_learner", learner_gpus >= 1, "weight_transfer='nccl' needs whole GPUs")
            self._check("num_learners", is_int(self.num_learners, 1), "weight_transfer='nccl' needs 1 or more")
        if self.colocated and not self.in_evaluation:
            mend = "colocated, learner and env runner share a GPU: use parts that add up to 1, such as 0.5 and 0.5"
            self._check("num_gpus_per_env_runner", gpus > 0 and learner_gpus > 0 and gpus + learner_gpus == 1, mend)
            self._check(
                "num_env_runners",
                self.num_env_runners == self.num_learners,
                f"colocated, each shares a GPU with a learner: use as many as num_learners ({self.num_learners})",
            )
            self._check("max_policy_lag", self.max_policy_lag == 0, "colocated, engines and learners take turns: use 0")
            self._check(
                "evaluation_num_env_runners",
                self.evaluation_num_env_runners == 0,
                "colocated, evaluation runs on the training's engines: use 0",
            )

    def _validate_learners(self) -> None:
        choices = ("ddp", "fsdp2", "deepspeed")
        self._check("sharding", self.sharding in choices, f"use one of {', '.join(choices)}")
        self._check("zero_stage", is_int(self.zero_stage, 0, 3), "use 0, 1, 2 or 3")
        if self.sharding == "deepspeed":
            self._check(
                "zero_stage",
                self.zero_stage > 0 or self.dtype != "bfloat16",
                "DeepSpeed's bfloat16 needs float32 masters, which it has from stage 1: use 1, 2, 3 or .ddp()",
            )
            self._check(
                "offload_optimizer",
                self.zero_stage > 0 or not self.offload_optimizer,
                "there is nothing to offload at zero_stage 0: use a higher one",
            )
            if importlib.util.find_spec("deepspeed") is None:
                raise ValueError("sharding is 'deepspeed', which is not installed: run `pip install deepspeed==0.19.8`")
        self._check("lora_r", self.lora_r is None or is_int(self.lora_r, 1), "use None or an integer of 1 or more")
        self._check("lora_alpha", is_number(self.lora_alpha) and self.lora_alpha > 0, "use a number above 0")
        self._check(
            "ref_update_rate",
            self.lora_r is None or self.kl_coeff == 0 or self.ref_update_rate == 0,
            "with LoRA the reference policy is the model without adapters, which cannot follow: use 0",
        )

    _check = check_field

    def get_default_learner_class(self) -> type:
        from rllib_exit.learner.torch_learner import GRPOTorchLearner

        return GRPOTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_exit.learner.module import CausalLMRLModule

        return RLModuleSpec(
            module_class=CausalLMRLModule,
            model_config={
                "model": self.model_name,
                "dtype": self.dtype,
                "temperature": self.temperature,
                "attn_implementation": self.attn_implementation,
                "gradient_checkpointing": self.gradient_checkpointing,
                "reference": self.kl_coeff > 0,
                "lora": self.lora_arguments,
            },
        )

    @property
    def lora_arguments(self) -> dict[str, Any] | None:
        """The arguments of :func:`rllib_exit.learner.lora.add_adapters`, or None."""
        if self.lora_r is None:
            return None
        return {"r": self.lora_r, "alpha": self.lora_alpha, "target_modules": self.lora_target_modules}

    def build_learner_group(self, *, rl_module_spec: Any = None, placement_group: Any = None, **kwargs: Any) -> Any:
        """Builds the learners."""
        from rllib_exit.learner.learner_group import GRPOLearnerGroup

        spec = rl_module_spec or self.get_multi_rl_module_spec(**kwargs)
        return GRPOLearnerGroup(config=self.copy(), module_spec=spec, placement_group=placement_group)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}


def vllm_generator(model: str, **kwargs: Any) -> Any:
    """Makes a :class:`VLLMGenerator`; imports vLLM only then."""
    from rllib_exit.env_runners.vllm_generator import VLLMGenerator

    return VLLMGenerator(model, **kwargs)
