"""The configuration of GRPO and ExIt; the defaults are the paper's (appendix A, Table 4)."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_exit import settings
from rllib_exit.curriculum.exit import STRATEGIES, CurriculumConfig
from rllib_exit.env_runners.llm_env_runner import LLMEnvRunner
from rllib_exit.grpo import placement
from rllib_exit.grpo.fluent import NotProvided, fluent
from rllib_exit.grpo.meaningless import check_meaningless
from rllib_exit.models import resolve_model
from rllib_exit.settings_group import allowed_values, check, unknown_name
from rllib_exit.stages import stage


class AllSettings(
    settings.LanguageModelSettings,
    settings.GenerationSettings,
    settings.TrainingSettings,
    settings.WarmStartSettings,
    CurriculumConfig,
    settings.DiversitySettings,
    settings.SelfImprovementSettings,
    settings.ShardingSettings,
    settings.LoRASettings,
    settings.ExecutionSettings,
    settings.FaultToleranceSettings,
    settings.ReportingSettings,
    settings.RLlibSettings,
):
    """The fields of all groups."""


GROUPS: tuple[Any, ...] = AllSettings.__bases__


if TYPE_CHECKING:  # a config has the fields as attributes

    class _Fields(AlgorithmConfig, AllSettings): ...
else:
    _Fields = AlgorithmConfig


class GRPOConfig(_Fields):
    """Configures :class:`rllib_exit.grpo.algorithm.GRPO`.

    The fields of all :data:`GROUPS` are attributes. They are checked by :meth:`validate` alone, so that one of Tune's
    search spaces may stand in any of them. ``GenerationSettings.of(config)`` is a group of a config as typed, frozen
    settings.

    Examples:
        >>> config = (
        ...     GRPOConfig()
        ...     .environment(CompetitionMathEnv, env_config={"tasks": "train"})
        ...     .language_model("meta-llama/Llama-3.2-3B-Instruct")
        ...     .curriculum("exit")
        ...     .training(lr=1e-6, prompts_per_batch=128, rollouts_per_prompt=8)
        ... )
    """

    # The algorithm, which :mod:`rllib_exit.grpo` sets: it imports its config, not the other way round.
    default_algo_class: ClassVar[type]

    def __init__(self, algo_class: type | None = None) -> None:
        AlgorithmConfig.__init__(self, algo_class=algo_class or self.default_algo_class)
        for name, field in AllSettings.model_fields.items():
            setattr(self, name, field.get_default())
        self.generator_class = vllm_generator

        # What RLlib's defaults assume of small, fast policies does not hold for language models.
        self.env_runner_cls = LLMEnvRunner
        self.create_local_env_runner = False
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._dont_auto_sync_env_runner_states = True
        self.episodes_to_numpy = False
        self.sample_timeout_s = None
        self.evaluation_sample_timeout_s = 1e9
        self.delay_between_env_runner_restarts_s = 0
        self.restart_failed_env_runners = True

    def dataset(self, data: Any, *, test_fraction: float = 0.1, **options: Any) -> Self:
        """Trains on your own table of prompts and answers; :meth:`reward` says what a response is worth.

        A part of the rows is held out. It is what evaluation, and ``rllib evaluate --split test``, are on.

        Args:
            data: A JSONL, Parquet or CSV file, a folder, a Hub data set, a ``datasets.Dataset``, or a list of rows.
            test_fraction: The share of the rows that is held out.
            **options: Others of :class:`envs.dataset.env.DatasetOptions`, such as ``prompt`` and ``answer``.
        """
        from envs.dataset.env import DatasetEnv

        rows = data.to_list() if hasattr(data, "to_list") else data
        options = {"data": rows, "test_fraction": test_fraction, **options}
        self.environment(DatasetEnv, env_config={**options, "split": "train" if test_fraction else "all"})
        if test_fraction:
            self.evaluation(evaluation_config=self.overrides(env_config={"split": "test"}))
            self.splits = {**self.splits, "test": {"split": "test"}}
        return self

    def reward(self, *rewards: Any) -> Self:
        """Sets what a response to a row of :meth:`dataset` is worth.

        Args:
            *rewards: Functions ``reward(response, answer, **row) -> float``, such as those of
                :mod:`envs.dataset.rewards`, their names as ``"module:function"``, or pairs of one and its weight. The
                quality is their weighted mean.
        """
        from envs.dataset.rewards import Reward

        return self.environment(env_config={"rewards": [Reward.of(reward) for reward in rewards]})

    @fluent(settings.LanguageModelSettings, model="model_name")
    def language_model(self, model: str = NotProvided) -> None:
        """Sets the language model that is trained."""

    @fluent(settings.GenerationSettings)
    def generation(self) -> None:
        """Sets how responses are sampled."""

    @fluent(settings.TrainingSettings, extends=AlgorithmConfig.training)
    def training(self) -> None:
        """Sets batches, objective and optimizer."""

    @fluent(
        settings.WarmStartSettings,
        epochs="warm_start_epochs",
        lr="warm_start_lr",
        batch_size="warm_start_batch_size",
        env_config="warm_start_env_config",
    )
    def warm_start(self) -> None:
        """Has a supervised phase on the environment's demonstrations come before the first iteration.

        It is for a model that never solves a task, so that there is nothing to learn from. The result is kept in
        the cache, and used again where model, demonstrations and settings are the same.
        """

    def ddp(self) -> Self:
        """Has every learner hold the whole model, its gradients and AdamW's moments. This is the default.

        ``.learners(num_learners=…, num_gpus_per_learner=…)`` says how many learners there are. See
        :mod:`rllib_exit.learner.sharding.sharded_model` for the back ends, which change memory and speed but
        not the training.
        """
        self.sharding = "ddp"
        return self

    def fsdp2(self) -> Self:
        """Has every learner hold its share of each parameter, gradient and moment, by torch's ``fully_shard``."""
        self.sharding = "fsdp2"
        return self

    @fluent(settings.DeepSpeedSettings)
    def deepspeed(self) -> None:
        """Shards by DeepSpeed's ZeRO."""
        self.sharding = "deepspeed"

    @fluent(
        settings.LoRASettings, r="lora_r", alpha="lora_alpha", target_modules="lora_target_modules", sync="lora_sync"
    )
    def lora(self) -> None:
        """Trains low-rank adapters (LoRA) in place of the weights.

        Engines get the adapters alone, or with ``sync="merged"`` all weights. The reference policy is the model
        without them, so it cannot follow the policy: set ``ref_update_rate=0`` or ``kl_coeff=0``. A checkpoint holds
        the adapters alone.
        """

    def asynchronous(self, *, max_policy_lag: int = 1) -> Self:
        """Has generation go on while the learner updates.

        The prompts of up to ``max_policy_lag`` iterations are selected, and their rollouts begun, ahead of the
        iteration that trains on them. What is trained on is what was selected, in that order, however long it took.

        Args:
            max_policy_lag: The most updates between the weights that a rollout began with and those that are
                trained on it. 0 is synchronous training, the default.
        """
        self.max_policy_lag = max_policy_lag
        return self

    def colocate(self) -> Self:
        """Has every learner share a GPU with an env runner, whose engine sleeps while the learners work.

        Set as many learners as env runners, each with a part of a GPU, such as ``num_gpus_per_learner=0.5`` and
        ``num_gpus_per_env_runner=0.5``. The parts only say who shares; how much memory the engine takes is its
        ``gpu_memory_utilization``. They share a node and a GPU where Tune runs the algorithm, as ``rllib train`` does.
        """
        self.colocated = True
        return self

    @fluent(settings.FaultToleranceSettings, extends=AlgorithmConfig.fault_tolerance)
    def fault_tolerance(self) -> None:
        """Sets what is done about what hangs or dies.

        RLlib's ``env_runner_restore_timeout_s`` is how long a run without any env runner waits for one to come back.
        """

    @fluent(CurriculumConfig, settings.DiversitySettings)
    def curriculum(self, strategy: str = NotProvided) -> None:
        """Sets the task curriculum (paper section 4).

        A strategy sets ``self_iteration_prob``, ``divergence_prob``, ``self_iteration`` and ``diversity_bonus`` to its
        values: give it first, or together with what is to differ.
        """
        if strategy is not NotProvided:
            if not isinstance(strategy, str) or strategy not in STRATEGIES:
                raise ValueError(f"strategy is {strategy!r}: use {allowed_values(CurriculumConfig, 'strategy')}")
            for name in ("self_iteration_prob", "divergence_prob", "self_iteration", "diversity_bonus"):
                setattr(self, name, getattr(STRATEGIES[strategy], name))

    @fluent(settings.SelfImprovementSettings, steps="self_improvement_steps", interval="self_improvement_interval")
    def self_improvement(self) -> None:
        """Sets K-step self-improvement (paper section 5.3), which evaluation reports.

        It runs on the training env runners, or, if ``evaluation_num_env_runners`` is above 0, on those.
        ``evaluation_config`` overrides environment and sampling.
        """

    @fluent(settings.ReportingSettings, extends=AlgorithmConfig.reporting)
    def reporting(self) -> None:
        """Sets what is reported."""

    @property
    def engine_size(self) -> int:
        """How many workers an engine has, each with a GPU if there are any."""
        return math.prod(self.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))

    @property
    def all_engine_args(self) -> dict[str, Any]:
        """``engine_args`` and what other settings ask of the engine."""
        args: dict[str, Any] = {"max_num_seqs": self.num_envs_per_env_runner}  # all episodes' requests at once
        if self.engine_size > 1:
            # Processes below the env runner; inside of Ray vLLM would make actors, outside of what Ray gave it.
            args["distributed_executor_backend"] = "mp"
        if self.weight_transfer == "nccl":
            args["weight_transfer_config"] = {"backend": "nccl"}
        if self.colocated:
            args["enable_sleep_mode"] = True
        adapters = settings.LoRASettings.of(self)
        if adapters.sends_adapters:
            rank = min(rank for rank in settings.ENGINE_LORA_RANKS if rank >= (adapters.lora_r or 0))
            args |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        return {**args, **self.engine_args}

    @property
    def model_path(self) -> str:
        """The local directory of the model, whose name :meth:`validate` checks."""
        return resolve_model(self.model_name or "")

    def validate(self) -> None:
        """Checks everything that needs no model or data.

        Raises:
            ValueError: Names the field, its value and the mend.
        """
        check_meaningless(self)
        check(
            self, "evaluation_config", isinstance(self.evaluation_config, dict | AlgorithmConfig | None), "use a dict"
        )
        for group in GROUPS:
            group.of(self)
        check(self, "num_env_runners", self.num_env_runners > 0 or self.in_evaluation, "use an integer of 1 or more")
        super().validate()
        self._validate_generation()
        self._validate_learners()
        placement.validate(self)
        if not self.in_evaluation:
            self._validate_evaluation()

    def _validate_generation(self) -> None:
        check(
            self,
            "max_response_tokens",
            self.max_response_tokens < self.max_model_len,
            f"it must leave room for a prompt in max_model_len ({self.max_model_len})",
        )
        if not self.in_evaluation:
            check(self, "temperature", self.temperature > 0, "training samples: use a temperature above 0")
            mend = "training samples from the whole distribution; set it in evaluation_config only"
            for name, whole in settings.WHOLE_DISTRIBUTION.items():
                check(self, name, getattr(self, name) == whole, f"use {whole:g}: {mend}")
        if self.diversity_bonus and self.diversity_metric == "embedding":
            mend = "the diversity bonus embeds solutions: name a model, or use diversity_metric='edit_distance'"
            check(self, "embedding_model", self.embedding_model is not None, mend)
        if self.greedy_search:
            from envs.mle_bench.env import MLEBenchEnv

            mle_bench = isinstance(self.env, type) and issubclass(self.env, MLEBenchEnv)
            check(self, "greedy_search", mle_bench, f"env is {self.env!r}: only MLE-bench has it, use False")

    def _validate_learners(self) -> None:
        check(
            self,
            "warm_start_epochs",
            self.warm_start_epochs == 0 or self.lora_r is None,
            "with LoRA the model's weights stay as they are: use 0, and make a warm model with `rllib sft`",
        )
        flex_on_cpu = self.attn_implementation == "flex_attention" and not self.num_gpus_per_learner
        mend = "it has no backward pass on CPU: use 'sdpa', or num_gpus_per_learner=1"
        check(self, "attn_implementation", not flex_on_cpu, mend)
        check(
            self,
            "mismatch_clip",
            self.mismatch_clip is not None or self.max_policy_lag == 0,
            "asynchronous training needs importance weights: use a number above 0, such as 2.0",
        )
        check(
            self,
            "ref_update_rate",
            self.lora_r is None or self.kl_coeff == 0 or self.ref_update_rate == 0,
            "with LoRA the reference policy is the model without adapters, which cannot follow: use 0",
        )
        adapters = settings.LoRASettings.of(self)
        if adapters.sends_adapters:
            highest = settings.ENGINE_LORA_RANKS[-1]
            mend = f"vLLM applies adapters of rank {highest} or less: use that, or .lora(sync='merged')"
            check(self, "lora_r", (adapters.lora_r or 0) <= highest, mend)
            mend = "adapters go through the object store: use 'object_store', or .lora(sync='merged')"
            check(self, "weight_transfer", self.weight_transfer == "object_store", mend)
        if self.streamed_update:
            single = self.num_epochs == 1 and self.minibatch_size is None
            check(self, "streamed_update", single, "it is for num_epochs=1 and minibatch_size=None: use False")
            mend = "DeepSpeed cannot divide what it has added up: use .fsdp2() or .ddp(), or False"
            check(self, "streamed_update", self.sharding != "deepspeed", mend)
            mend = "the learners wait until the engines on their GPUs are done: use False"
            check(self, "streamed_update", not self.colocated, mend)
        if self.sharding == "deepspeed":
            check(
                self,
                "zero_stage",
                self.zero_stage > 0 or self.dtype != "bfloat16",
                "DeepSpeed's bfloat16 needs float32 masters, which it has from stage 1: use 1, 2, 3 or .ddp()",
            )
            if importlib.util.find_spec("deepspeed") is None:
                raise ValueError("sharding is 'deepspeed', which is not installed: run `pip install deepspeed==0.19.8`")

    def _validate_evaluation(self) -> None:
        for name in self.evaluation_config if isinstance(self.evaluation_config, dict) else ():
            if not hasattr(self, name):
                raise ValueError(unknown_name("evaluation_config", "field", name, self.field_names()))
        evaluation: Any = self.get_evaluation_config_object()
        try:
            evaluation.validate()
        except ValueError as error:
            raise ValueError(f"evaluation_config: {error}") from error

    def field_names(self) -> list[str]:
        """The names of all fields, RLlib's and ours."""
        return [name for name in vars(self) if not name.startswith("_")]

    def get_default_learner_class(self) -> type:
        from rllib_exit.learner.torch_learner import GRPOTorchLearner

        return GRPOTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_exit.learner.module import CausalLMRLModule

        lora = {"r": self.lora_r, "alpha": self.lora_alpha, "target_modules": self.lora_target_modules}
        return RLModuleSpec(
            module_class=CausalLMRLModule,
            model_config={
                "model": self.model_name,
                "dtype": self.dtype,
                "temperature": self.temperature,
                "attn_implementation": self.attn_implementation,
                "gradient_checkpointing": self.gradient_checkpointing,
                "reference": self.kl_coeff > 0,
                "lora": None if self.lora_r is None else lora,
            },
        )

    def build_learner_group(self, *, rl_module_spec: Any = None, placement_group: Any = None, **kwargs: Any) -> Any:
        """Builds the learners."""
        with stage("load learner"):
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
