"""Which stored tensors are not learnt: running statistics, positions, masks."""

from __future__ import annotations

import re

_BUFFER = re.compile(
    r"(^|[._/])("
    r"running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|relative_position_index|"
    r"rotary_emb\.inv_freq|inv_freq|masked_bias|causal_mask|attn_mask|freqs_cis|total_ops|total_params|"
    r"(h\.\d+|layers\.\d+|blocks?\.\d+)\.(attn|attention)\.bias"
    r")$"
)
_MASK = re.compile(r"\.(attn|attention)\.bias$")


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a state dict is a buffer, by the names frameworks give them.

    GPT-2's causal mask is called `h.0.attn.bias` and is four-dimensional; a bias that is learnt has one axis.
    """
    if _MASK.search(name):
        return len(shape) == 4 and shape[:2] == (1, 1)
    return _BUFFER.search(name) is not None
