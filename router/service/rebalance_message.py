"""Rebalances, moves and plans as the contract's messages, with how fast they are and what is left.

Pure. What the catalog holds is turned into what an operator sees.
"""

from collections.abc import Iterable, Mapping, Sequence

from chroma_router.v1 import cluster_pb2
from router.catalog import MoveRow
from router.core.move import Move, Stage
from router.core.planner import SECONDS_PER_MOVE, CollectionLoad, PlannedMove, ShardLoad, Share
from router.core.rebalance import MoveProgress, Rebalance, RebalanceKind, RebalanceState

UNMEASURED_RATE = 1500.0
"""Records a second, where no move has been measured yet: half of what the engine takes in bulk."""

NOT_KNOWN = -1.0
"""seconds_left, where it is not known."""

_KINDS: Mapping[RebalanceKind, cluster_pb2.RebalanceKind] = {
    RebalanceKind.BALANCE: cluster_pb2.REBALANCE_KIND_BALANCE,
    RebalanceKind.DRAIN: cluster_pb2.REBALANCE_KIND_DRAIN,
    RebalanceKind.PLACE: cluster_pb2.REBALANCE_KIND_PLACE,
}
_STATES: Mapping[RebalanceState, cluster_pb2.RebalanceState] = {
    RebalanceState.RUNNING: cluster_pb2.REBALANCE_STATE_RUNNING,
    RebalanceState.PAUSED: cluster_pb2.REBALANCE_STATE_PAUSED,
    RebalanceState.CANCELLING: cluster_pb2.REBALANCE_STATE_CANCELLING,
    RebalanceState.DONE: cluster_pb2.REBALANCE_STATE_DONE,
    RebalanceState.CANCELLED: cluster_pb2.REBALANCE_STATE_CANCELLED,
    RebalanceState.FAILED: cluster_pb2.REBALANCE_STATE_FAILED,
}
_STAGES: Mapping[Stage, cluster_pb2.MoveStage] = {
    Stage.PLANNED: cluster_pb2.MOVE_STAGE_PLANNED,
    Stage.COPYING: cluster_pb2.MOVE_STAGE_COPYING,
    Stage.CATCHING_UP: cluster_pb2.MOVE_STAGE_CATCHING_UP,
    Stage.VERIFIED: cluster_pb2.MOVE_STAGE_VERIFIED,
    Stage.FENCED: cluster_pb2.MOVE_STAGE_FENCED,
    Stage.SWITCHED: cluster_pb2.MOVE_STAGE_SWITCHED,
    Stage.TRIMMED: cluster_pb2.MOVE_STAGE_TRIMMED,
    Stage.CANCELLING: cluster_pb2.MOVE_STAGE_CANCELLING,
    Stage.CANCELLED: cluster_pb2.MOVE_STAGE_CANCELLED,
}
_COPIED = frozenset({Stage.SWITCHED, Stage.TRIMMED, Stage.CANCELLING, Stage.CANCELLED})
"""Stages in which nothing is left to copy."""


def rebalance_message(
    rebalance: Rebalance, rows: Sequence[MoveRow], names: Mapping[str, str], mover: str
) -> cluster_pb2.Rebalance:
    """A rebalance as it is. `names` are the collections' by UUID; `mover` carries it out, or ""."""
    rate = recent_rate(rows)
    if rebalance.records_per_second and rate:
        rate = min(rate, float(rebalance.records_per_second))
    return cluster_pb2.Rebalance(
        id=rebalance.id,
        kind=_KINDS[rebalance.kind],
        subject=rebalance.subject,
        state=_STATES[rebalance.state],
        options=cluster_pb2.RebalanceOptions(
            records_per_second=rebalance.records_per_second,
            query_agreement=rebalance.query_agreement,
        ),
        moves=[_move(move, progress, names) for move, progress in rows],
        problem=rebalance.problem,
        started_at=rebalance.started_at,
        ended_at=rebalance.ended_at,
        records_per_second=0.0 if rebalance.ended else rate,
        seconds_left=_seconds_left(rebalance, rows, rate),
        mover="" if rebalance.ended else mover,
    )


def planned_message(
    moves: Iterable[PlannedMove], names: Mapping[str, str]
) -> cluster_pb2.Rebalance:
    """A plan: moves without ids, in a rebalance without one."""
    return cluster_pb2.Rebalance(
        kind=cluster_pb2.REBALANCE_KIND_BALANCE,
        moves=[
            cluster_pb2.Move(
                collection_id=move.collection_id,
                collection=names.get(move.collection_id, ""),
                source=move.source,
                target=move.target,
                slots=len(move.slots),
                records=move.records,
                bytes=move.bytes,
                stage=cluster_pb2.MOVE_STAGE_PLANNED,
            )
            for move in moves
        ],
    )


def shares(
    loads: Sequence[CollectionLoad], shards: Sequence[ShardLoad], moves: Iterable[PlannedMove]
) -> list[Share]:
    """What each shard has before and after, over all collections, also those that stay."""
    records = dict.fromkeys(sorted(shard.name for shard in shards), 0)
    slots = dict.fromkeys(records, 0)
    for load in loads:
        for slot, owner in enumerate(load.slot_map.owners):
            records[owner] += load.records[slot]
            slots[owner] += 1
    records_after, slots_after = dict(records), dict(slots)
    for move in moves:
        for name, sign in ((move.source, -1), (move.target, 1)):
            records_after[name] += sign * move.records
            slots_after[name] += sign * len(move.slots)
    return [
        Share(name, records[name], records_after[name], slots[name], slots_after[name])
        for name in records
    ]


def recent_rate(rows: Sequence[MoveRow]) -> float:
    """Records copied a second: by the move under way, else by all; 0 if none was."""
    for move, progress in rows:
        if not move.ended and progress.copied_records and progress.copy_microseconds:
            return _rate([progress])
    return _rate([progress for _, progress in rows])


def _rate(measured: Sequence[MoveProgress]) -> float:
    microseconds = sum(progress.copy_microseconds for progress in measured)
    copied = sum(progress.copied_records for progress in measured)
    return copied * 1_000_000 / microseconds if microseconds else 0.0


def _seconds_left(rebalance: Rebalance, rows: Sequence[MoveRow], rate: float) -> float:
    if rebalance.ended:
        return 0.0
    if rebalance.state is not RebalanceState.RUNNING or not rate:
        return NOT_KNOWN
    left = [(move, progress) for move, progress in rows if move.stage not in _COPIED]
    records = sum(max(0, move.records - progress.copied_records) for move, progress in left)
    return records / rate + len(left) * SECONDS_PER_MOVE


def _move(move: Move, progress: MoveProgress, names: Mapping[str, str]) -> cluster_pb2.Move:
    return cluster_pb2.Move(
        id=move.id,
        collection_id=move.collection_id,
        collection=names.get(move.collection_id, ""),
        source=move.source,
        target=move.target,
        slots=len(move.slots),
        records=move.records,
        bytes=move.bytes,
        stage=_STAGES[move.stage],
        copied_records=progress.copied_records,
        compared_records=progress.compared_records,
        trimmed_records=progress.trimmed_records,
        write_pause_microseconds=progress.write_pause_microseconds,
        read_pause_microseconds=progress.read_pause_microseconds,
        copy_microseconds=progress.copy_microseconds,
        problem=move.problem,
    )
