"""How a decode step is run: with a preallocated ragged KV cache, or by recomputing the prefix where no cache fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rlhf_ray_decode"
GROW = 64


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention that is two batched matrix products where there is one query token, and torch's own elsewhere.

    One-token scaled_dot_product_attention is 1.3 times slower on CPUs in float32, and 3 to 7 times in bfloat16. Keys and
    values may be of another dtype than the query (:func:`cache_dtype`). ``attention_mask`` (rows, 1, 1, width) is added.
    """
    unknown = [k for k in ("softcap", "s_aux", "position_bias") if kwargs.get(k) is not None]
    if unknown:
        raise ValueError(f"{type(module).__name__} uses {', '.join(unknown)}, which the cached decode does not have")
    if query.shape[2] != 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, size = query.shape
    kv_heads, width = key.shape[1], key.shape[2]
    grouped = query.reshape(rows * kv_heads, heads // kv_heads, size).to(key.dtype)
    bias = attention_mask.expand(rows, kv_heads, 1, width).reshape(rows * kv_heads, 1, width)
    scale = scaling if scaling is not None else size**-0.5
    weights = torch.baddbmm(bias, grouped, key.flatten(0, 1).transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, size).to(query.dtype), None


def cache_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values: float32 on a CPU, where batched products of one bfloat16 row are twice as slow."""
    return torch.float32 if device.type == "cpu" else dtype


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Decoder(Protocol):
    """Rows 0 to n - 1 are alive. Logits are (rows, V) for the next token of each."""

    def admit(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, room: int) -> Tensor:
        """Prefills distinct prompts into rows from ``first`` on, ``copies`` of each, which ``room`` tokens will be enough for,
        prompts included; logits of these rows."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Appends a token to each live row. The logits last until the next step."""
        ...

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies rows over finished ones."""
        ...


class _Layer(CacheLayerMixin):
    """One layer's keys and values (max_rows, kv_heads, capacity, head size); each row writes at its own length."""

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
        rows, heads = key_states.shape[:2]
        at = self.cache.places[heads]
        for whole, new in ((self.keys, key_states), (self.values, value_states)):
            whole.view(-1, whole.shape[-1]).index_copy_(0, at, new.reshape(-1, new.shape[-1]).to(whole.dtype))
        return self.keys[:rows, :, : self.cache.width], self.values[:rows, :, : self.cache.width]

    def place(self, keys: Tensor, values: Tensor, source: Tensor, first: int) -> None:
        """Copies prefilled rows ``source`` into slots from ``first`` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[first : first + len(source), :, : keys.shape[2]] = keys[source]
        self.values[first : first + len(source), :, : values.shape[2]] = values[source]

    def grow(self) -> None:
        """Takes the cache's capacity."""
        more = self.cache.capacity - self.keys.shape[2]
        self.keys, self.values = (nn.functional.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))

    def get_seq_length(self) -> int:
        return self.cache.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_max_length(self) -> int:
        return -1


class RaggedCache(Cache):
    """Preallocated layers that share the position each live row writes next, and ``width``, the longest of them plus one."""

    def __init__(self, num_layers: int, max_rows: int, capacity: int = GROW) -> None:
        self.max_rows, self.capacity, self.width = max_rows, capacity, 0
        super().__init__(layers=[_Layer(self) for _ in range(num_layers)])
        self.layers: Any

    def aim(self, at: Tensor) -> None:
        """Sets the positions (rows,) that the next token's keys and values are written to: as flat indices (rows * heads,)
        of a layer, for each number of heads that there is."""
        row = torch.arange(len(at), device=at.device)[:, None]
        self.places: dict[int, Tensor] = {}
        for heads in {layer.keys.shape[1] for layer in self.layers if layer.is_initialized}:
            head = torch.arange(heads, device=at.device)[None]
            self.places[heads] = ((row * heads + head) * self.capacity + at[:, None]).flatten()


class CachedDecoder:
    """The model's own forward with a RaggedCache.

    ``graphed``: a decode step is a CUDA graph, one for each of a few numbers of rows and widths, both powers of two; it costs the
    host one launch instead of some hundred.
    """

    def __init__(self, model: Any, max_rows: int, device: torch.device, graphed: bool = False) -> None:
        self.model, self.max_rows, self.device = model, max_rows, device
        self.graphs = Graphs(self._decode) if graphed else None
        model.set_attn_implementation(NAME)
        config = model.config.get_text_config()
        self.kinds = set(getattr(config, "layer_types", None) or ())
        uses = getattr(config, "use_sliding_window", True)
        self.window = getattr(config, "sliding_window", None) if uses else None
        self.num_layers = config.num_hidden_layers
        self.capacity = GROW
        self.drop()

    def drop(self) -> None:
        """Forgets the cache's memory; it comes back at the next admission, as large as it was."""
        self.cache = RaggedCache(self.num_layers, self.max_rows, self.capacity)
        self.lengths = torch.zeros(self.max_rows, dtype=torch.long, device=self.device)
        self.sizes = np.zeros(
            self.max_rows, np.int64
        )  # the same on the host, which need not wait for the device to read it
        if self.graphs:
            self.graphs.drop()

    def admit(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, room: int) -> Tensor:
        size = [len(p) for p in prompts]
        ids = np.zeros((len(prompts), max(size)), np.int64)
        mask = np.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, : size[i]], mask[i, : size[i]] = prompt, 1
        prefix: Any = DynamicCache()
        hidden = self.model.base_model(
            input_ids=torch.as_tensor(ids, device=self.device), attention_mask=torch.as_tensor(mask, device=self.device),
            past_key_values=prefix, use_cache=True,
        ).last_hidden_state  # fmt: skip
        lengths = torch.tensor(size, device=self.device)
        logits = self.model.get_output_embeddings()(hidden[torch.arange(len(size), device=self.device), lengths - 1])
        repeated = np.repeat(np.arange(len(size)), copies)
        source = torch.as_tensor(repeated, device=self.device)
        self._grow(room)
        for layer, filled in zip(self.cache.layers, prefix.layers, strict=True):
            layer.place(filled.keys, filled.values, source, first)
        self.lengths[first : first + len(source)] = lengths[source]
        self.sizes[first : first + len(source)] = np.array(size)[repeated]
        return logits[source]

    def step(self, tokens: Tensor) -> Tensor:
        n = len(tokens)
        widest = int(self.sizes[:n].max()) + 1
        rows, width = n, widest
        if self.graphs:  # few shapes
            rows = min(self.max_rows, _power_of_two(n))
            width = min(self.cache.capacity, _power_of_two(max(widest, GROW)))
        self.lengths[n:rows] = 0
        given = nn.functional.pad(tokens, (0, rows - n)), self.lengths[:rows].clone()
        logits: Tensor = self.graphs(width, *given) if self.graphs else self._decode(width, *given)
        self.lengths[:n] += 1
        self.sizes[:n] += 1
        return logits[:n]

    def _grow(self, width: int) -> None:
        """Makes room for ``width`` tokens of a row. The layers' memory moves, so graphs that write to it are gone."""
        cache = self.cache
        if width <= cache.capacity:
            return
        self.capacity = cache.capacity = -(-width // GROW) * GROW
        for layer in cache.layers:
            if layer.is_initialized:
                layer.grow()
        if self.graphs:
            self.graphs.drop()

    def _decode(self, width: int, tokens: Tensor, at: Tensor) -> Tensor:
        """Logits (rows, V) after ``tokens`` (rows,) at positions ``at`` (rows,), which see the cache's first ``width``."""
        cache = self.cache
        cache.width = width
        cache.aim(at)
        column = torch.arange(width, device=self.device)
        full = column[None, :] <= at[:, None]
        near = full if self.window is None else full & (column[None, :] > at[:, None] - self.window)
        if len(self.kinds) > 1:
            mask: Any = {"full_attention": self._bias(full), "sliding_attention": self._bias(near)}
        else:
            mask = self._bias(full if self.kinds == {"full_attention"} else near)
        out = self.model(
            input_ids=tokens[:, None],
            position_ids=at[:, None],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _bias(self, seen: Tensor) -> Tensor:
        """Additive mask (rows, 1, 1, width) of a boolean one (rows, width)."""
        dtype = cache_dtype(self.model.dtype, self.device)
        bias = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, float("-inf"))
        return bias[:, None, None]

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        for layer in self.cache.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]
        self.lengths[target] = self.lengths[source]
        self.sizes[target] = self.sizes[source]


class Graphs:
    """CUDA graphs of ``function(size, *tensors) -> tensor``, captured where a size or shape is seen first.

    What comes back is overwritten by the next call. ``drop`` forgets them all: whoever moves memory that the function reads
    or writes must call it.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.drop()

    def drop(self) -> None:
        self.captured: dict[tuple[int, ...], tuple[Any, tuple[Tensor, ...], Tensor]] = {}
        self.pool: Any = None

    def __call__(self, size: int, *given: Tensor) -> Tensor:
        key = (size, *(x.shape[0] for x in given))
        if key not in self.captured:
            self.captured[key] = self._capture(size, tuple(x.clone() for x in given))
        graph, inputs, out = self.captured[key]
        for mine, new in zip(inputs, given, strict=True):
            mine.copy_(new)
        graph.replay()
        return out

    def _capture(self, size: int, inputs: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.function(size, *inputs)  # once outside: libraries allocate their workspaces in a first call
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool):
            out = self.function(size, *inputs)
        return graph, inputs, out


def _power_of_two(n: int) -> int:
    """The smallest that is not below ``n``."""
    return 1 << (n - 1).bit_length()


class RecomputingDecoder:
    """No cache: the whole prefix again for every token. Right for any causal model, and slow."""

    def __init__(self, model: Any, max_rows: int, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows: list[list[int]] = [[] for _ in range(max_rows)]

    def drop(self) -> None:
        """There is nothing to give back."""

    def admit(self, prompts: Sequence[np.ndarray], copies: Sequence[int], first: int, room: int) -> Tensor:
        count = 0
        for prompt, times in zip(prompts, copies, strict=True):
            for _ in range(times):
                self.rows[first + count] = prompt.tolist()
                count += 1
        return self._logits(range(first, first + count))

    def step(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=False):
            row.append(token)
        return self._logits(range(len(tokens)))

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        for s, t in zip(source, target, strict=True):
            self.rows[t] = list(self.rows[s])

    def _logits(self, chosen: Sequence[int]) -> Tensor:
        size = [len(self.rows[i]) for i in chosen]
        ids = torch.zeros(len(size), max(size), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for r, i in enumerate(chosen):
            ids[r, : size[r]] = torch.tensor(self.rows[i], device=self.device)
            mask[r, : size[r]] = 1
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[torch.arange(len(size), device=self.device), torch.tensor(size, device=self.device) - 1]
