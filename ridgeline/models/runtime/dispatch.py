"""How tokens reach their experts and come back, in steps that begin a journey and finish it later.

Megatron-core's dispatchers, whose collectives are begun in one step (``token_dispatch``, ``token_combine``) and
finished in the next (``dispatch_postprocess``, ``combine_postprocess``); a layer may compute in between.

n = tokens of this rank, e = experts, h = hidden, t = ranks of expert tensor parallelism.
"""

# Upstream's dispatchers name the same parameters differently among themselves, and are called by position.
# pyright: reportIncompatibleMethodOverride=false

import copy
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    all_gather_last_dim_from_tensor_parallel_region,
    all_to_all_hp2sp,
    all_to_all_sp2hp,
    gather_from_sequence_parallel_region,
    reduce_scatter_last_dim_to_tensor_parallel_region,
)
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
    MoETokenDispatcher,
)

from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.journeys import begin, exchange, finish, gather, gathering, scattering


def dispatcher_of(
    config: LayerConfig, groups: ProcessGroupCollection, local_experts: Sequence[int]
) -> MoETokenDispatcher:
    """The dispatcher that a job asks for, of the experts of this rank."""
    kind = AlltoAll
    if config.moe_dispatcher == "allgather":
        kind = AllGather
    elif config.moe_dispatcher == "alltoall_seq" and groups.expt_tp.size() > 1:
        kind = AlltoAllOfColumns
    return kind(len(local_experts), list(local_experts), config=config, pg_collection=groups)


class AlltoAll(MoEAlltoAllTokenDispatcher):
    """Each token is sent to the ranks of its experts."""

    def token_dispatch(self, rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin to send tokens and their weights."""
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize("before_ep_alltoall", self.tokens_per_expert)
        there = {"received": self.output_splits, "sent": self.input_splits}
        self.arriving = exchange(self.ep_group, **there), exchange(self.ep_group, **there)
        return begin(rows, self.arriving[0]), begin(weights, self.arriving[1])

    def dispatch_postprocess(
        self, rows: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Finish, gather over expert tensor parallelism, and sort by expert."""
        rows, weights = finish(rows, self.arriving[0]), finish(weights, self.arriving[1])
        return super().dispatch_postprocess(rows, weights)  # pyright: ignore[reportReturnType]  weights come as they go

    def token_combine(self, rows: torch.Tensor, *unused: Any) -> torch.Tensor:
        """Begin to send back what experts made."""
        self.leaving = exchange(self.ep_group, received=self.input_splits, sent=self.output_splits)
        return begin(rows, self.leaving)

    def combine_postprocess(self, rows: torch.Tensor) -> torch.Tensor:
        """Finish, and add up each token's choices."""
        return super().combine_postprocess(finish(rows, self.leaving))


class AlltoAllOfColumns(AlltoAll):
    """Each tp rank sends all tokens of the sequence, but only its columns of them.

    Tokens of a tp rank and columns of all tokens change places over tp first; experts gather the columns, and what they
    make is scattered to columns again. The experts' ranks are those of tp.

    Source:
        Ascend/MindSpeed 2.1.0, core/transformer/moe/legacy_a2a_token_dispatcher.py, ``alltoall_seq``; megatron-core
        0.8, transformer/moe/token_dispatcher.py. There each tp rank routes all tokens; here its own, and weights are
        gathered, so that capacities and losses are those of the other dispatchers.
    """

    def __init__(self, *args: Any, config: LayerConfig, pg_collection: ProcessGroupCollection) -> None:
        alone = copy.copy(pg_collection)
        # Upstream's steps see one rank that holds every token.
        alone.expt_tp = None  # pyright: ignore[reportAttributeAccessIssue]  how upstream spells a group of one
        alone.tp_ep = pg_collection.ep
        super().__init__(*args, config=config, pg_collection=alone)
        self.columns = pg_collection.expt_tp
        self.drop_and_pad = False  # counts of padded experts are told as any others

    def dispatch_preprocess(
        self, hidden_states: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From (s/tp, b, h) to the columns of all tokens, sorted by expert."""
        self.own_shape = hidden_states.shape
        columns = all_to_all_sp2hp(hidden_states, group=self.columns)
        taken = gather_from_sequence_parallel_region(routing_map, group=self.columns)
        weights = gather_from_sequence_parallel_region(probs, group=self.columns)
        rows, weights = super().dispatch_preprocess(columns, taken, weights)
        assert weights is not None
        return rows, weights

    def dispatch_postprocess(
        self, rows: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sorted by expert, with all columns."""
        rows, counts, weights = super().dispatch_postprocess(rows, weights)
        return all_gather_last_dim_from_tensor_parallel_region(rows, group=self.columns), counts, weights

    def combine_preprocess(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of an expert, this rank's columns of it."""
        return super().combine_preprocess(reduce_scatter_last_dim_to_tensor_parallel_region(rows, group=self.columns))

    def combine_postprocess(self, rows: torch.Tensor) -> torch.Tensor:
        """All columns of this rank's own tokens, (s/tp, b, h)."""
        return all_to_all_hp2sp(super().combine_postprocess(rows), group=self.columns).view(self.own_shape)


class AllGather(MoEAllGatherTokenDispatcher):
    """Each rank gets all tokens, and takes those that chose its experts."""

    config: LayerConfig

    def token_dispatch(self, rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin to gather who chose what, with what weight, and the tokens."""
        group = self.tp_ep_group
        self.arriving = gathering(group), gathering(group)
        self.gathered = None
        if group.size() > 1:
            assert self.routing_map is not None
            self.routing_map, self.gathered = gather(self.routing_map, group=group)
        return begin(rows, self.arriving[0]), begin(weights, self.arriving[1])

    def dispatch_postprocess(
        self, rows: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Finish, and take the tokens of each local expert; where tokens may arrive late, their places come first."""
        late = "permutation" in self.config.moe_overlap
        if not late:
            rows = finish(rows, self.arriving[0])
        if self.gathered is not None:
            self.gathered.wait()
        assert self.routing_map is not None
        local = slice(self.local_expert_indices[0], self.local_expert_indices[-1] + 1)
        self.local_map = self.routing_map[:, local].contiguous()
        chosen_en = self.local_map.T.contiguous()
        tokens = torch.arange(len(self.local_map), device=rows.device)
        places = tokens.expand(chosen_en.shape).masked_select(chosen_en)
        counts = self.local_map.sum(0).long().cpu()
        weights = finish(weights, self.arriving[1])
        self.local_probs = weights[:, local].T.contiguous().masked_select(chosen_en)
        if late:
            rows = finish(rows, self.arriving[0])
        self.hidden_shape_before_permute, self.routing_map = rows.shape, None
        self.reversed_local_input_permutation_mapping = places
        return rows.index_select(0, places), counts, self.local_probs

    def token_combine(self, rows: torch.Tensor) -> torch.Tensor:
        """Begin to sum over ranks what experts made of this rank's tokens, in the dtype of weights."""
        self.leaving, self.dtype = scattering(self.tp_ep_group), rows.dtype
        return begin(rows if self.leaving is None else rows.to(self.local_probs.dtype), self.leaving)

    def combine_postprocess(self, rows: torch.Tensor) -> torch.Tensor:
        """The sums, (s/tp, b, h)."""
        return super().combine_postprocess(finish(rows, self.leaving).to(self.dtype))
