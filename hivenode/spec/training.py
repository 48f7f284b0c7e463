"""How a job trains: the `[training]` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hivenode.spec.section import Section
from hivenode.spec.values import Precision

Whole = Annotated[int, Field(strict=True, ge=1)]
CodecName = Literal["fp32", "fp16", "bf16", "int8", "int4", "topk"]
TORCH_CODECS = ("fp32", "fp16", "bf16")
"""Those that torch.distributed has too."""


class TrainingSpec(Section):
    """`batch_size` is the global batch, in samples; each node computes its share of it.

    `sync` says what nodes tell each other and when:

    - `every_step`: the gradient of every batch, before the next one; the result is that of one node.
    - `accumulate`: the same, but each node computes its share in micro-batches of `micro_batch_size`, and shares follow
      the speed that the nodes turn out to have.
    - `local`: `sync_every` steps by each node for itself, then how far it has come; the mean of that is a step of an
      outer optimizer (DiLoCo, arXiv 2311.08105). The faster node makes more steps, of `batch_size` over the number of
      nodes each, so that all arrive together. With `fragments`, a part of the model at a time is exchanged, each part
      once in `sync_every` steps; with `overlap`, steps go on meanwhile (Streaming DiLoCo, arXiv 2501.18512).

    `codec` is what the numbers are written in on the wire; lossy ones carry over what they could not say. `auto`
    measures link and codecs in the first exchanges, and then chooses.

    `precision` is what the model computes in while it trains; weights, gradients and losses stay float32. In fp16 the
    loss is multiplied, as torch.amp.GradScaler does, and steps whose gradient does not fit are skipped. `auto` takes
    bf16 where steps are large enough to gain by it and the processor of every node has instructions for it.

    `engine` is what nodes that train data-parallel average by: `exchange`, our own, encrypted; or `torch`, that is
    torch.distributed, whose traffic is not: for nodes on subnets that their owners trust. `auto`: the planner chooses.
    """

    epochs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=100)] = 0.05
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What becomes of the learning rate after the warm-up: it stays, or falls to `final_learning_rate` by the end."""
    warmup_steps: Annotated[int, Field(strict=True, ge=0)] = 0
    """Steps in which it rises, from near 0, to `learning_rate`."""
    final_learning_rate: Annotated[float, Field(strict=True, ge=0, le=100)] = 0.0
    clip_norm: Annotated[float, Field(strict=True, gt=0)] | None = None
    """Longest gradient, by its Euclidean norm; a longer one is shortened to it."""
    norm_limit: Annotated[float, Field(strict=True, gt=1, le=1e9)] | None = None
    """How many times the members' median the norm of what one contributes may be; beyond that it is put out, by name.
    Takes effect among three and more that contribute."""
    patience: Whole | None = None
    """Epochs in which the loss on the held-out part may fail to improve by `min_improvement`; then training ends."""
    min_improvement: Annotated[float, Field(strict=True, ge=0)] = 0.0
    sync: Literal["every_step", "accumulate", "local"] = "every_step"
    micro_batch_size: Whole | None = None
    sync_every: Whole = 100
    outer_learning_rate: Annotated[float, Field(strict=True, gt=0, le=10)] = 0.7
    outer_momentum: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.9
    fragments: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """Parts of a model, each of some of its layers."""
    overlap: Annotated[int, Field(strict=True, ge=0)] = 0
    """Steps that a node goes on for while a part is on its way."""
    mixing: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.5
    """How much of what it had sent a node keeps in place of what all came to; on top comes its way since."""
    codec: Literal["auto"] | CodecName = "fp32"
    batch_norm: Literal["auto", "together", "alone"] = "auto"
    """Whether nodes that share every batch normalise it as one, as one node would, or each its own part. `auto`: as
    one, except of private data: means of few samples say much about them."""
    precision: Literal["auto"] | Precision = "fp32"
    engine: Literal["auto", "exchange", "torch"] = "auto"
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
    max_steps: Whole | None = None
    checkpoint_every_steps: Whole = 50

    @model_validator(mode="after")
    def _fitting(self) -> TrainingSpec:
        if self.micro_batch_size is not None and self.sync != "accumulate":
            raise ValueError('micro_batch_size belongs to sync = "accumulate"')
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) is above batch_size ({self.batch_size})")
        for name in ("sync_every", "outer_learning_rate", "outer_momentum", "fragments", "overlap", "mixing"):
            if self.sync != "local" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} belongs to sync = "local"')
        if self.fragments > self.sync_every:
            raise ValueError(f"fragments ({self.fragments}) is above sync_every ({self.sync_every})")
        if self.overlap > self.sync_every // self.fragments:
            raise ValueError(
                f"overlap ({self.overlap}) is above sync_every / fragments ({self.sync_every // self.fragments}): "
                "a part has to be back before the next is sent"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate ({self.final_learning_rate}) is above learning_rate ({self.learning_rate})"
            )
        if self.engine == "torch" and (why := self.not_by_torch):
            raise ValueError(f'engine = "torch" cannot do this: {why}')
        return self

    def normalises_together(self, *, private: bool) -> bool:
        """Whether nodes that share a batch take it for one where it is normalised. Not by torch.distributed, not where
        each computes its part in more or fewer pieces than others, and not among those whose contributions are to be
        judged: what they say of a batch could not be."""
        alone = (
            self.batch_norm == "alone"
            or (private and self.batch_norm == "auto")
            or self.engine == "torch"
            or self.norm_limit is not None
        )
        return not alone and self.sync != "local" and self.micro_batch_size is None

    @property
    def not_by_torch(self) -> str:
        """Why torch.distributed cannot average as this asks; "" if it can."""
        if self.sync != "every_step":
            return f'it averages after every step, and sync is "{self.sync}"'
        if self.codec not in TORCH_CODECS:
            return f'its numbers travel as {", ".join(TORCH_CODECS)}, and codec is "{self.codec}"'
        if self.norm_limit is not None:
            return "it takes every update as it comes, and norm_limit is set"
        return ""
