"""vLLM as a Generator. The only file that imports vllm."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import numpy as np

from envs.workers import usable_cpus
from rllib_exit.env_runners.engine_guard import end_with_this_process
from rllib_exit.env_runners.engine_stats import EngineStats
from rllib_exit.env_runners.generator import EngineError, Generation, SamplingParams
from rllib_exit.weight_sync.engine_loader import WeightLoader, shared_adapters, shared_file


class VLLMGenerator:
    """A vLLM engine in a process of its own, with continuous batching and prefix caching.

    The engine starts with ``start``, or the first call. But for ``start`` it must be used from one event loop.

    Args:
        model: A local model directory.
        dtype: The engine's weights and activations, ``"float32"`` or ``"bfloat16"``.
        max_model_len: The most tokens of prompt and response together.
        engine_args: More arguments of ``vllm.AsyncEngineArgs``; they win over the defaults here.
    """

    def __init__(
        self, model: str, *, dtype: str, max_model_len: int, engine_args: dict[str, Any] | None = None
    ) -> None:
        self._engine_args: dict[str, Any] = {
            "model": model,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "enable_prefix_caching": True,
            # Log-probabilities of the distribution that is sampled from, temperature included.
            "logprobs_mode": "processed_logprobs",
            # Sampling is what SamplingParams says, not the model's generation_config.
            "generation_config": "vllm",
            # Instead of its log there is EngineStats.
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "worker_extension_cls": f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
            **(engine_args or {}),
        }
        self._max_model_len = max_model_len
        self._engine: Any = None
        self._start_error: Exception | None = None
        self._starting = threading.Lock()
        self._asleep = False
        self._stats = EngineStats()
        # The last full copy, and behind each file its patches. On a node they are there once: in the object store.
        self._files: list[list[Sequence[np.ndarray]]] = []
        self._adapters: Any = None
        self._request_ids = itertools.count()

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def start(self) -> None:
        """Starts the engine, if it has not started; returns when it has. Any thread may call it."""
        with self._starting:
            # Starting takes long: what failed once is not tried again for every request.
            if self._start_error is not None:
                raise self._start_error
            if self._engine is None:
                try:
                    self._engine = self._make_engine()
                except Exception as error:
                    self._start_error = error
                    raise

    def _make_engine(self) -> Any:
        import psutil
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            # Eager mode with an explicit KV cache starts in seconds. The learner shares the cores:
            # the engine's threads must not spin while they wait.
            self._engine_args.setdefault("enforce_eager", True)
            # A seeded request whose prompt is prefilled in chunks kills the CPU engine ("CPU Generator
            # does not use offset").
            self._engine_args.setdefault("enable_chunked_prefill", False)
            self._engine_args.setdefault("max_num_batched_tokens", max(4096, self._max_model_len))
            self._engine_args.setdefault("kv_cache_memory_bytes", 1 << 30)
            # Whole blocks are cached, and vLLM's 128 tokens are more than a short prompt has. The CPU's kernels want
            # multiples of 32.
            self._engine_args.setdefault("block_size", 32)
            if self._engine_args.get("tensor_parallel_size", 1) == 1:
                # In the engine's process itself: it would spin on a core while it waits for a worker of its own.
                executor = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
                self._engine_args.setdefault("distributed_executor_backend", executor)
            # Ray gives an actor as many threads as the CPUs it reserved, and vLLM leaves one core to its
            # scheduler: of two cores one would compute. Engine, scheduler and learner take turns.
            os.environ["OMP_NUM_THREADS"] = str(usable_cpus())
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            os.environ.setdefault("KMP_BLOCKTIME", "0")
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.gc_utils import freeze_gc_heap
        from vllm.v1.engine.async_llm import AsyncLLM

        before = psutil.Process().children(recursive=True)
        # Of vLLM's batch sizes, those that it has for throughput on this GPU.
        arguments = AsyncEngineArgs(**self._engine_args)
        stats: Any = self._stats  # it has what vLLM calls, without its base class
        engine: Any = AsyncLLM.from_engine_args(
            arguments, usage_context=UsageContext.LLM_CLASS, stat_loggers=[lambda config, index: stats]
        )
        if arguments.disable_log_stats:
            # Behind ours vLLM puts its own for Prometheus, which takes time at every token and is served nowhere.
            del engine.logger_manager.stat_loggers[1:]
        started = [p for p in psutil.Process().children(recursive=True) if p not in before]
        # The tracker ends by itself, after it has freed shared memory.
        end_with_this_process([p.pid for p in started if "resource_tracker" not in " ".join(p.cmdline())])
        stats.read()  # it counts from here on
        # As vLLM's server does. What start-up made stays, and to go through it takes 0.3 s at every full collection.
        freeze_gc_heap()
        return engine

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int) -> Generation:
        """Samples one response.

        Raises:
            vllm.exceptions.VLLMValidationError: If the engine refuses the request.
            EngineError: If the engine's process died.
        """
        self.start()
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = VLLMSamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            # vLLM makes text, of every log-probability's token too, where it has to find a stop string.
            detokenize=bool(sampling.stop),
            seed=seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": list(prompt_ids)}
        with _engine_errors(), self._stats.request():
            request = f"{next(self._request_ids)}"
            async for output in self._engine.generate(prompt, params, request, lora_request=self._adapters):
                completion = output.outputs[0]
                ids = tuple(completion.token_ids)
                logprobs = [entry[token].logprob for token, entry in zip(ids, completion.logprobs, strict=True)]
                return Generation(ids, np.array(logprobs, np.float32), completion.finish_reason == "length")
        raise RuntimeError("vLLM ended a request without an output")

    async def update_weights(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        """Loads new weights in place.

        Responses under way are frozen meanwhile. Pausing also drops what was cached under the old weights, so
        that they go on from keys and values that the new weights compute.

        Raises:
            EngineError: If the engine's process died.
        """
        self._files = [[file] for file in files]
        return await self._reload()

    async def update_adapters(self, files: Sequence[Sequence[np.ndarray]]) -> float:
        """As :meth:`update_weights`, with LoRA adapters in place of the last ones; the weights stay.

        Needs ``enable_lora``.

        Raises:
            EngineError: If the engine's process died.
        """
        self.start()
        from vllm.lora.request import LoRARequest

        with shared_adapters(*files) as path:
            start = time.perf_counter()
            async with self._paused():
                await self._engine.add_lora(LoRARequest("policy", 1, path, load_inplace=True))
        # Responses name the adapters by their number. The engine has them, and does not read the files again.
        self._adapters = LoRARequest("policy", 1, path)
        return time.perf_counter() - start

    async def patch_weights(self, patches: Sequence[Sequence[Sequence[np.ndarray]]]) -> float:
        """As :meth:`update_weights`, with what changed since.

        An engine that repacks weights, as those on CPUs do, or sleeps, gets all of them again, with the patches.
        """
        for patch in patches:
            self._files = [[*parts, file] for parts, file in zip(self._files, patch, strict=True)]
        if not patches and not self._asleep:
            return 0.0
        if self._asleep or not all(await self._rpc("can_patch")):
            return await self._reload()
        copying = 0.0
        start = time.perf_counter()
        async with self._paused():
            for file in itertools.chain(*patches):
                begun = time.perf_counter()
                with shared_file(file) as path:
                    copying += time.perf_counter() - begun
                    await self._rpc("patch", path)
        return time.perf_counter() - start - copying

    async def _reload(self) -> float:
        """Loads the files, each with its patches."""
        self.start()
        copying = 0.0
        start = time.perf_counter()
        async with self._paused():
            await self._rpc("start_loading")
            for file_and_patches in self._files:
                begun = time.perf_counter()
                with ExitStack() as stack:
                    paths = [stack.enter_context(shared_file(file)) for file in file_and_patches]
                    copying += time.perf_counter() - begun
                    await self._rpc("load_file", *paths)
            await self._rpc("finish_loading")
        return time.perf_counter() - start - copying

    def read_stats(self) -> dict[str, float]:
        return self._stats.read() if self._engine is not None else {}

    async def checksums(self) -> dict[str, Any]:
        """Of the model's parameters, as the engine's workers hold them."""
        workers = await self._rpc("checksums")
        return {name: [checksums[name] for checksums in workers] for name in workers[0]}

    async def _rpc(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of the engine's workers, see :class:`WeightLoader`."""
        with _engine_errors():
            # No local name for the engine: a frame that outlives it would end it as late as at exit.
            return await self._engine.collective_rpc(method, args=args)

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Has the engine's workers join a group of processes that weights are broadcast in.

        Needs a ``weight_transfer_config``. What they were in before they leave.

        Args:
            init_info: As vLLM's engine for that kind of transfer takes it.

        Raises:
            EngineError: If the engine's process died.
        """
        self.start()
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with _engine_errors():
            await self._engine.shutdown_weight_transfer_engine()
            await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """As :meth:`update_weights`, from a broadcast.

        Args:
            update_info: What is broadcast, as vLLM's engine for that kind of transfer takes it.

        Raises:
            EngineError: If the engine's process died.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._paused():
            await self._engine.start_weight_update()
            await self._engine.update_weights(WeightTransferUpdateRequest(update_info))
            await self._engine.finish_weight_update()

    async def sleep(self) -> None:
        """Frees the memory of weights and cache, if the engine has started; new weights wake it.

        Raises:
            EngineError: If the engine's process died.
        """
        if self._engine is not None:
            with _engine_errors():
                # Weights that nobody sends again stay, in host memory.
                await self._engine.sleep(level=1 if self._engine_args.get("enable_lora") else 2)
            self._asleep = True

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """The engine with room for weights, and what runs frozen."""
        with _engine_errors():
            if self._asleep:
                await self._engine.wake_up(tags=["weights"])
            else:
                await self._engine.pause_generation(mode="keep", clear_cache=True)
            yield
            if self._asleep:
                # Awake altogether, it also goes on.
                await self._engine.wake_up(tags=["kv_cache"])
                self._asleep = False
            else:
                await self._engine.resume_generation()

    async def close(self) -> None:
        with self._starting:  # an engine that is not yet there cannot be ended
            if self._engine is not None:
                # It has freed what it holds within the time; its interpreter then takes seconds to end by itself.
                self._engine.shutdown(timeout=2.0)
                # Its destructor shuts it down again, which prints a traceback where the interpreter is ending.
                self._engine.shutdown = lambda timeout=None: None
                self._engine = None


@contextmanager
def _engine_errors() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineError("vLLM's engine process died; its log says why") from error
