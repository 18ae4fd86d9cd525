"""Decoding with a preallocated KV cache of rows of different lengths, on GPUs through CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..models.attention import UnsupportedModel, require_plain_attention, require_plain_layers

NAME = "rlhf_ray_decode"
CAPACITY_STEP = 64  # tokens: capacities are multiples of it


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over a KV cache: two batched matrix products for one query token, torch's function for more.

    ``query`` (rows, heads, n, d), ``key`` (rows, kv_heads, width, d) and ``value`` (rows, kv_heads, width, d'); returns
    (rows, n, heads, d'). ``attention_mask`` (rows, 1, 1, width) is added to the scores. Keys and values may have
    another dtype than the query (:func:`cache_dtype`). torch's function with one token was 1.3 times slower on CPUs in
    float32, and 3 to 7 times slower in bfloat16. Raises UnsupportedModel for a mask with heads or an option that is not
    softmax.
    """
    require_plain_attention(module, kwargs, "decoding with a KV cache")
    if query.shape[2] != 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if attention_mask.shape[1] != 1:
        raise UnsupportedModel(
            f"{type(module).__name__} has a mask for each head, which decoding with a KV cache does not have"
        )
    rows, heads, _, size = query.shape
    kv_heads, width = key.shape[1], key.shape[2]
    grouped = query.reshape(rows * kv_heads, heads // kv_heads, size).to(key.dtype)
    bias = attention_mask.expand(rows, kv_heads, 1, width).reshape(rows * kv_heads, 1, width)
    scale = scaling if scaling is not None else size**-0.5
    weights = torch.baddbmm(bias, grouped, key.flatten(0, 1).transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, -1).to(query.dtype), None


def cache_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of cached keys and values: float32 on a CPU, whose products of one bfloat16 row are twice as slow."""
    return torch.float32 if device.type == "cpu" else dtype


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Layer(CacheLayerMixin):
    """One layer's keys and values (max_rows, kv_heads, capacity, d); each row writes at its own length."""

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        self.cache = cache
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.cache.max_rows, key_states.shape[1], self.cache.capacity)
        dtype = cache_dtype(key_states.dtype, key_states.device)
        self.keys = key_states.new_zeros(*shape, key_states.shape[3], dtype=dtype)
        self.values = value_states.new_zeros(*shape, value_states.shape[3], dtype=dtype)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token of each row (rows, kv_heads, 1, d); returns the cached ones (rows, kv_heads, width, d)."""
        rows, kv_heads, new_tokens, _ = key_states.shape
        if new_tokens != 1:
            raise UnsupportedModel(f"the model adds {new_tokens} tokens to the KV cache for one input token")
        slots, width = self.cache.slot_indices[kv_heads], self.cache.width
        for cached, new in ((self.keys, key_states), (self.values, value_states)):
            cached.view(-1, cached.shape[-1]).index_copy_(0, slots, new.reshape(-1, new.shape[-1]).to(cached.dtype))
        return self.keys[:rows, :, :width], self.values[:rows, :, :width]

    def write_prefix(self, keys: Tensor, values: Tensor, source: Tensor, first: int) -> None:
        """Copies rows ``source`` of prefilled ``keys`` and ``values`` into this layer's rows from ``first`` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[first : first + len(source), :, : keys.shape[2]] = keys[source]
        self.values[first : first + len(source), :, : values.shape[2]] = values[source]

    def grow(self) -> None:
        """Grows to the cache's new capacity. Keys and values move in memory."""
        added = self.cache.capacity - self.keys.shape[2]
        self.keys, self.values = (nn.functional.pad(x, (0, 0, 0, added)) for x in (self.keys, self.values))

    def get_seq_length(self) -> int:
        return self.cache.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_max_length(self) -> int:
        return -1


class RaggedCache(Cache):
    """Preallocated layers, and the positions at which the next token of each row is written to them.

    Example: two rows hold 3 tokens and 1 token; there is one head, and the capacity is 4::

        row 0   k0 k1 k2 __   writes at position 3, slot 0 * 4 + 3 = 3
        row 1   k0 __ .. ..   writes at position 1, slot 1 * 4 + 1 = 5      width 4: the longest row with its new token

    The mask of a decode step hides the slots after a row's new token (``..``).
    """

    def __init__(self, num_layers: int, max_rows: int, capacity: int) -> None:
        self.max_rows, self.capacity, self.width = max_rows, capacity, 0
        self.slot_indices: dict[int, Tensor] = {}
        super().__init__(layers=[_Layer(self) for _ in range(num_layers)])
        self.layers: Any

    def set_write_positions(self, positions: Tensor, width: int) -> None:
        """Sets the ``positions`` (rows,) of the new tokens, and the ``width`` to attend to; call it before each pass.

        ``slot_indices`` maps each number of heads that a layer has to the flat slots (rows * heads,) in such a layer.
        """
        self.width = width
        row = torch.arange(len(positions), device=positions.device)[:, None]
        for heads in {layer.keys.shape[1] for layer in self.layers if layer.is_initialized}:
            head = torch.arange(heads, device=positions.device)[None]
            self.slot_indices[heads] = ((row * heads + head) * self.capacity + positions[:, None]).flatten()


class CachedDecoder:
    """Implements Decoder with the model's own forward pass and a RaggedCache.

    ``graphed``: a decode step is a CUDA graph, which costs the host one launch instead of some hundred. There is one
    graph for each number of rows and each width; both are powers of two, so there are few. Raises UnsupportedModel,
    here or when a method first runs the model.
    """

    def __init__(self, model: Any, max_rows: int, device: torch.device, graphed: bool = False) -> None:
        require_key_value_layers(model)
        self.model, self.max_rows, self.device = model, max_rows, device
        self.graphs = Graphs(self._decode) if graphed else None
        model.set_attn_implementation(NAME)
        config = model.config.get_text_config()
        self.layer_kinds = set(getattr(config, "layer_types", None) or ())
        uses_window = getattr(config, "use_sliding_window", True)
        self.window = getattr(config, "sliding_window", None) if uses_window else None
        self.num_layers = config.num_hidden_layers
        self.capacity = CAPACITY_STEP
        self.free()

    def free(self) -> None:
        """Releases the cache's memory. The next prefill allocates it again at the same size."""
        self.cache = RaggedCache(self.num_layers, self.max_rows, self.capacity)
        self.lengths = torch.zeros(self.max_rows, dtype=torch.long, device=self.device)
        self.host_lengths = np.zeros(self.max_rows, np.int64)  # a copy that is read without waiting for the device
        if self.graphs:
            self.graphs.clear()

    def prefill(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, max_length: int) -> Tensor:
        prompt_lengths = [len(p) for p in prompts]
        ids = np.zeros((len(prompts), max(prompt_lengths)), np.int64)
        mask = np.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, 1
        prefix: Any = DynamicCache()
        hidden = self.model.base_model(
            input_ids=torch.as_tensor(ids, device=self.device),
            attention_mask=torch.as_tensor(mask, device=self.device),
            past_key_values=prefix,
            use_cache=True,
        ).last_hidden_state
        if len(prefix.layers) != self.num_layers:
            raise UnsupportedModel(
                f"{type(self.model).__name__} caches keys and values of {len(prefix.layers)} of "
                f"{self.num_layers} layers"
            )
        lengths = torch.tensor(prompt_lengths, device=self.device)
        logits = self.model.get_output_embeddings()(hidden[torch.arange(len(prompts), device=self.device), lengths - 1])
        prompt_of_row = np.repeat(np.arange(len(prompts)), copies)
        source = torch.as_tensor(prompt_of_row, device=self.device)
        self._reserve(max_length)
        for layer, filled in zip(self.cache.layers, prefix.layers, strict=True):
            layer.write_prefix(filled.keys, filled.values, source, first)
        self.lengths[first : first + len(source)] = lengths[source]
        self.host_lengths[first : first + len(source)] = np.array(prompt_lengths)[prompt_of_row]
        return logits[source]

    def step(self, tokens: Tensor) -> Tensor:
        n = len(tokens)
        width = int(self.host_lengths[:n].max()) + 1
        if self.graphs:  # few shapes; rows that pad the batch write at position 0, and are never read
            rows = min(self.max_rows, _power_of_two(n))
            width = min(self.cache.capacity, _power_of_two(max(width, CAPACITY_STEP)))
            self.lengths[n:rows] = 0
            logits: Tensor = self.graphs(width, nn.functional.pad(tokens, (0, rows - n)), self.lengths[:rows])[:n]
        else:
            logits = self._decode(width, tokens, self.lengths[:n])
        self.lengths[:n] += 1
        self.host_lengths[:n] += 1
        return logits

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        for layer in self.cache.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]
        self.lengths[target] = self.lengths[source]
        self.host_lengths[target] = self.host_lengths[source]

    def _reserve(self, length: int) -> None:
        """Grows the cache to rows of ``length`` tokens if needed. Memory moves then, so graphs are captured again."""
        cache = self.cache
        if length <= cache.capacity:
            return
        self.capacity = cache.capacity = -(-length // CAPACITY_STEP) * CAPACITY_STEP
        for layer in cache.layers:
            if layer.is_initialized:
                layer.grow()
        if self.graphs:
            self.graphs.clear()

    def _decode(self, width: int, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (rows, V) after ``tokens`` (rows,) at ``positions`` (rows,), over the first ``width`` slots."""
        self.cache.set_write_positions(positions, width)
        out = self.model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=self._masks(width, positions),
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _masks(self, width: int, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive masks for tokens at ``positions`` (rows,): one for all layers, or one for each kind of layer."""
        column = torch.arange(width, device=self.device)
        past = column[None, :] <= positions[:, None]
        near = past if self.window is None else past & (column[None, :] > positions[:, None] - self.window)
        if len(self.layer_kinds) > 1:
            return {"full_attention": self._bias(past), "sliding_attention": self._bias(near)}
        return self._bias(past if self.layer_kinds == {"full_attention"} else near)

    def _bias(self, visible: Tensor) -> Tensor:
        """Additive mask (rows, 1, 1, width) of a boolean one (rows, width)."""
        dtype = cache_dtype(self.model.dtype, self.device)
        bias = torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, float("-inf"))
        return bias[:, None, None]


class Graphs:
    """CUDA graphs of ``function(size, *tensors) -> tensor``, each captured when its size and shapes first occur.

    The next call overwrites the returned tensor. Call ``clear`` after memory that the function uses has moved.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.clear()

    def clear(self) -> None:
        """Drops all graphs and their memory."""
        self.captured: dict[tuple[int, ...], tuple[Any, tuple[Tensor, ...], Tensor]] = {}
        self.pool: Any = None

    def __call__(self, size: int, *tensors: Tensor) -> Tensor:
        key = (size, *(x.shape[0] for x in tensors))
        if key not in self.captured:
            self.captured[key] = self._capture(size, tuple(x.clone() for x in tensors))
        graph, inputs, out = self.captured[key]
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return out

    def _capture(self, size: int, inputs: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Tensor]:
        """Raises UnsupportedModel if ``function`` does what a graph cannot, such as waiting for the device."""
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            self.function(size, *inputs)  # once without capture: libraries allocate workspaces in their first call
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                out = self.function(size, *inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it ran without capture just now, so the capture is the cause
            raise UnsupportedModel(f"a decode step cannot be captured ({str(error).splitlines()[0]})") from error
        return graph, inputs, out


def require_key_value_layers(model: Any) -> None:
    """Raises UnsupportedModel if the model keeps a state other than keys and values, or if its attention uses ALiBi."""
    require_plain_layers(model, "decoding with a KV cache")
    name, config = type(model).__name__, model.config.get_text_config()
    if model._is_stateful:
        raise UnsupportedModel(f"{name} keeps a recurrent state, not only keys and values")
    if getattr(config, "alibi", False) or hasattr(model.base_model, "build_alibi_tensor"):
        raise UnsupportedModel(f"{name} uses ALiBi, whose bias needs the tokens of all rows in the same columns")


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()
