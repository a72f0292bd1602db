"""The errors of each call, as the comments of the contract state them, and what each reason means.

The comment of every rpc ends with a paragraph `Errors: STATUS (REASON, …), …` or `Errors: none of
its own.`; a service may have `Errors of every call of this service: …`, and types.proto has those
of every call. That is the one place where they are stated. Here they are read and held against the
error tree: each reason exists and belongs to its status, and each reason of the tree that is not
internal is stated somewhere. Raises ReferenceProblem, naming the place and the mend.
"""

import re
from collections.abc import Iterable, Mapping

from google.rpc import code_pb2

from chroma_router.wire.errors import CLASS_BY_REASON, Reason

EVERY_CALL = "Errors of every call:"
EVERY_CALL_OF_SERVICE = "Errors of every call of this service:"
OF_ONE_CALL = "Errors:"
NONE = "none of its own."

Errors = Mapping[str, tuple[Reason, ...]]
"""gRPC status, by name, to the reasons that come with it."""

_GROUP = re.compile(r"([A-Z_]+) \(([A-Z_]+(?:, [A-Z_]+)*)\)")

INTERNAL_REASONS: Mapping[Reason, str] = {
    Reason.STALE_EPOCH: "between router and node: the router brings both up to date and repeats",
    Reason.STALE_BOOT: "between router and node: the node began anew; the router says Hello again",
    Reason.SLOTS_FENCED: "between router and node: a move is about to switch; the router waits for "
    "it and repeats",
    Reason.STALE_TOKEN: "between router and node: another router has taken a move over",
    Reason.MOVE_OUT_OF_STEP: "between router and node: a move goes on from where the nodes are",
}
"""Reasons that no call of an application ends with, and where they are met."""

MEANINGS: Mapping[Reason, str] = {
    Reason.INVALID_ARGUMENT: "A part of the request can never be accepted; the message names the "
    "field, what is wrong with it, and the mend.",
    Reason.DIMENSION_MISMATCH: "An embedding has another dimension than the collection. Metadata: "
    "`expected`, `got`.",
    Reason.DUPLICATE_IDS: "An id is named twice in one request.",
    Reason.BATCH_TOO_LARGE: "More records or bytes than one write may have; write smaller batches.",
    Reason.TENANT_NOT_FOUND: "There is no such tenant.",
    Reason.DATABASE_NOT_FOUND: "There is no such database in the tenant, or no such tenant.",
    Reason.COLLECTION_NOT_FOUND: "There is no such collection, or it is being deleted.",
    Reason.RECORD_NOT_FOUND: "The filter of a query names an id that does not exist, and has no "
    "condition.",
    Reason.SHARD_NOT_FOUND: "There is no such shard.",
    Reason.NO_REBALANCE: "There has been no rebalance.",
    Reason.SHARD_EXISTS: "A shard of this name or address exists.",
    Reason.NO_SUPERVISOR: "Only `chroma-router up` starts nodes; give the address of one that "
    "runs.",
    Reason.LAST_SHARD: "A cluster keeps at least one shard that takes data.",
    Reason.SHARD_IN_USE: "The shard owns slots, or answers although it was called lost; drain it "
    "first.",
    Reason.NO_ROOM: "What would have to move does not fit into the memory of the other shards.",
    Reason.REBALANCE_RUNNING: "Another rebalance is under way; wait for it, or cancel it.",
    Reason.REBALANCE_ENDED: "The newest rebalance has ended.",
    Reason.MOVE_SWITCHED: "All moves have been switched; only what is left behind is being "
    "deleted.",
    Reason.TENANT_EXISTS: "A tenant of this name exists.",
    Reason.DATABASE_EXISTS: "A database of this name exists in the tenant.",
    Reason.COLLECTION_EXISTS: "A collection of this name exists in the database.",
    Reason.RESET_DISABLED: "The router runs without `CHROMA_ROUTER_ALLOW_RESET=true`.",
    Reason.WRONG_CLUSTER: "For the operator: the data directory of a shard belongs to another "
    "cluster.",
    Reason.WRONG_SHARD: "For the operator: the node at a shard's address serves another shard.",
    Reason.PROTOCOL_MISMATCH: "For the operator: router and node are of different releases.",
    Reason.CATALOG_BEHIND: "For the operator: a node knows a newer slot map than the catalog, so "
    "an old copy of it was restored; run `chroma-router catalog rebuild`.",
    Reason.CATALOG_UNUSABLE: "For the operator: the catalog's file is damaged, gone, or not one.",
    Reason.NO_SHARDS: "The cluster has no shard to place the collection on.",
    Reason.CONFLICT: "Others kept changing what the request is about. (A DeleteDatabase has "
    "deleted the collections that it found.)",
    Reason.QUEUE_FULL: "A bounded queue is full: the write queue of a shard, the reads that wait "
    "for a shard (metadata: `shard`), or the bytes of all requests at work. Nothing was done, "
    "unless a WriteOutcome says otherwise; slow down.",
    Reason.ANSWER_TOO_LARGE: "The answer, or a message between router and shard, is too large. Ask "
    "for less: fewer records or hits, less of each; write smaller batches.",
    Reason.SHARD_UNAVAILABLE: "A shard that is needed does not answer. A write that ran out of "
    "time says this too; its WriteOutcome tells what became of it.",
    Reason.ENGINE_STARTING: "A shard's engine is being started.",
    Reason.ENGINE_FAILED: "A shard's engine has ended or does not answer; it is started again.",
    Reason.CATALOG_BUSY: "The catalog is locked by other routers.",
    Reason.DRAINING: "The router, or a shard's node, is shutting down. Nothing was done, unless a "
    "WriteOutcome says otherwise.",
    Reason.DEADLINE_EXPIRED: "The call was not done within its deadline.",
    Reason.UNKNOWN_OUTCOME: "The request id is older than the retry window and its outcome is not "
    "remembered: the write may have happened or not. It is not applied again.",
    Reason.UNSUPPORTED: "Not implemented; the message says what.",
    Reason.INTERNAL: "A defect of the router, a node or the engine; their logs say more.",
}
"""What each reason that an application can meet means to it."""


class ReferenceProblem(Exception):
    """The contract states its errors wrongly, or not at all."""


def split_comment(comment: str, marker: str) -> tuple[str, str | None]:
    """A comment without the paragraph that begins with `marker`, and that paragraph's text."""
    kept, found = [], None
    for paragraph in comment.split("\n\n"):
        words = " ".join(paragraph.split())
        if words.startswith(f"{marker} "):
            found = words.removeprefix(marker).strip()
        else:
            kept.append(paragraph)
    return "\n\n".join(kept), found


def stated_errors(text: str | None, place: str) -> Errors:
    """The errors that a paragraph states."""
    if text is None:
        raise ReferenceProblem(
            f"{place}: its comment does not state its errors; end it with a paragraph such as "
            f"`{OF_ONE_CALL} NOT_FOUND (COLLECTION_NOT_FOUND).` or `{OF_ONE_CALL} {NONE}`"
        )
    if text == NONE:
        return {}
    groups = [match.groups() for match in _GROUP.finditer(text)]
    if text != ", ".join(f"{status} ({reasons})" for status, reasons in groups) + ".":
        raise ReferenceProblem(
            f"{place}: `{text}` is not of the form `STATUS (REASON, REASON), STATUS (REASON).`"
        )
    errors: dict[str, tuple[Reason, ...]] = {}
    for status, reasons in groups:
        if status in errors:
            raise ReferenceProblem(f"{place}: states {status} twice; join its reasons")
        errors[status] = tuple(_checked(status, reason, place) for reason in reasons.split(", "))
    return errors


def joined(*parts: Errors) -> Errors:
    """Several statements as one, in the order of the status codes."""
    codes = sorted({status for part in parts for status in part}, key=code_pb2.Code.Value)
    return {
        code: tuple(dict.fromkeys(reason for part in parts for reason in part.get(code, ())))
        for code in codes
    }


def check_complete(statements: Iterable[Errors]) -> None:
    """Every reason is stated or internal, not both, and each that is stated has a meaning."""
    stated = {reason for errors in statements for reasons in errors.values() for reason in reasons}
    for reason in Reason:
        if (reason in stated) == (reason in INTERNAL_REASONS):
            raise ReferenceProblem(
                f"{reason}: must be stated by a comment in proto/, or else be in INTERNAL_REASONS "
                "of tools/reference_errors.py, and not both"
            )
        if (reason in stated) != (reason in MEANINGS):
            raise ReferenceProblem(
                f"{reason}: a reason that is stated has its meaning in MEANINGS of "
                "tools/reference_errors.py, and no other has one"
            )


def status_of(reason: Reason) -> str:
    """The name of the gRPC status that a reason comes with."""
    return code_pb2.Code.Name(CLASS_BY_REASON[reason].code)


def _checked(status: str, name: str, place: str) -> Reason:
    try:
        reason = Reason(name)
    except ValueError:
        raise ReferenceProblem(
            f"{place}: {name} is no reason of chroma_router.wire.errors"
        ) from None
    if status_of(reason) != status:
        raise ReferenceProblem(f"{place}: {name} comes with {status_of(reason)}, not {status}")
    return reason
