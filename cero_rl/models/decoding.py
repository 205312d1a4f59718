"""One token more for many sequences: the sampler's attention, and a cache that grows in place.

transformers' own way copies the whole cache three times a token: to append to it, to repeat each
key for the query heads that share it, and to leave out sequences that ended. Here a token is
written into room that was taken at the start, the query heads of a key are its queries, and a
sequence that ends is overwritten by one of the last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

DECODING = "cero_decoding"


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(DECODING, decoding_attention)
    AttentionMaskInterface.register(DECODING, sdpa_mask)
    return DECODING


def decoding_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """query [B, H, Q, D], key [B, Hkv, L, D], value [B, Hkv, L, Dv], attention_mask bool[B, 1, Q,
    L] or None -> ([B, Q, H, Dv], None). More than one query a head, and a bias on positions, are
    left to transformers."""
    batch, heads, queries, size = query.shape
    if queries > 1 or given.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **given
        )
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], size)
    if query.dtype == torch.float32 and query.device.type == "cpu":
        scores = grouped * (size**-0.5 if scaling is None else scaling) @ key.transpose(2, 3)
        if attention_mask is not None:
            scores.masked_fill_(~attention_mask, float("-inf"))
        out = torch.softmax(scores, -1) @ value
    else:  # torch's own kernel keeps the scores in float32
        out = F.scaled_dot_product_attention(
            grouped, key, value, attn_mask=attention_mask, scale=scaling
        )
    return out.reshape(batch, 1, heads, value.shape[-1]), None


class RoomyLayer(DynamicLayer):
    """A layer of the cache with room for the tokens to come."""

    def __init__(self, filled: DynamicLayer, rows: Tensor, room: int) -> None:
        """Takes `rows` i64[B] of a filled layer, with `room` for as many tokens more."""
        super().__init__()
        assert filled.keys is not None
        assert filled.values is not None
        self.dtype, self.device, self.is_initialized = filled.dtype, filled.device, True
        self._rows = len(rows)
        self._tokens = filled.keys.shape[2]
        self._stores = [_with_room(part, rows, room) for part in (filled.keys, filled.values)]
        self._look()

    def _look(self) -> None:
        self.keys, self.values = (store[: self._rows, :, : self._tokens] for store in self._stores)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, Hkv, Q, D]; returns all keys and values."""
        first, self._tokens = self._tokens, self._tokens + key_states.shape[2]
        for store, states in zip(self._stores, (key_states, value_states)):
            store[: self._rows, :, first : self._tokens] = states
        self._look()
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes row indices[i]; only rows that move are copied, and none of these is
        overwritten by another before."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for store in self._stores:
            store[moved, :, : self._tokens] = store[indices[moved], :, : self._tokens]
        self._rows = len(indices)
        self._look()


def _with_room(part: Tensor, rows: Tensor, room: int) -> Tensor:
    heads, tokens, size = part.shape[1:]
    store = part.new_empty(len(rows), heads, tokens + room, size)
    store[:, :, :tokens] = part[rows]
    return store


def spread(cache: Any, rows: Tensor, room: int) -> None:
    """Row i of the cache becomes its row rows[i], i64[B]; layers that keep every token get room
    for as many more, others (windows, states) grow as they did."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = RoomyLayer(layer, rows, room)
        else:
            layer.batch_select_indices(rows)


def closed_up(live: Tensor) -> Tensor:
    """bool[B] -> i64[n], the n live rows: those of the first n stay, the rest take the place of
    rows that ended."""
    count = int(live.sum())
    order = torch.arange(count, device=live.device)
    order[~live[:count]] = live[count:].nonzero().squeeze(1) + count
    return order
