"""The first part of the reference: reference_head.md, filled in with the numbers of the code."""

from pathlib import Path
from string import Template

from chroma_router.wire.errors import CLASS_BY_REASON, Reason
from chroma_router.wire.status import DOMAIN, MAX_TEXT_BYTES
from router.core.limits import MIB, Limits
from router.core.retry import retryable
from router.scatter import UNAVAILABLE_WINDOW
from router.settings import RouterSettings
from router.shard_client import MAX_MESSAGE_BYTES
from router.write_course import MAX_REPORTED_BYTES
from shard_node.settings import NodeSettings
from tools.reference_errors import INTERNAL_REASONS, MEANINGS, Errors, status_of

_TEMPLATE = Path(__file__).with_suffix(".md")


def head(every_call: Errors) -> str:
    """The first part. Raises KeyError or ValueError for a placeholder that is not filled in."""
    limits, router, node = Limits(), RouterSettings.model_fields, NodeSettings.model_fields
    return Template(_TEMPLATE.read_text("utf-8")).substitute(
        message_mib=MAX_MESSAGE_BYTES // MIB,
        batch_records=f"{limits.max_batch_records:,}",
        query_embeddings=f"{limits.max_query_embeddings:,}",
        results=f"{limits.max_results:,}",
        query_hits=f"{limits.max_query_hits:,}",
        filter_ids=f"{limits.max_filter_ids:,}",
        where_mib=limits.max_where_bytes // MIB,
        where_nesting=limits.max_where_nesting,
        page_records=f"{limits.max_page_records:,}",
        page_mib=limits.max_page_bytes // MIB,
        timeout_seconds=f"{router['request_timeout_seconds'].default:g}",
        at_work_mib=router["request_bytes"].default // MIB,
        patience_seconds=f"{UNAVAILABLE_WINDOW:g}",
        window_minutes=node["retry_window_seconds"].default // 60,
        domain=DOMAIN,
        text_bytes=f"{MAX_TEXT_BYTES:,}",
        reported_bytes=f"{MAX_REPORTED_BYTES:,}",
        reasons="\n".join(_reasons(every_call)),
        internal="; ".join(f"{reason} ({where})" for reason, where in INTERNAL_REASONS.items()),
    )


def _reasons(every_call: Errors) -> list[str]:
    """The table of the reasons, by status."""
    common = {reason for reasons in every_call.values() for reason in reasons}
    rows = sorted(MEANINGS, key=lambda reason: (CLASS_BY_REASON[reason].code, reason not in common))
    return [
        "| status | reason | repeat | means |",
        "| --- | --- | --- | --- |",
        *(
            f"| {status_of(reason)} | {reason}{' •' if reason in common else ''} "
            f"| {_repeat(reason)} | {MEANINGS[reason]} |"
            for reason in rows
        ),
    ]


def _repeat(reason: Reason) -> str:
    """Whether a router would repeat it by itself: so may a client."""
    return "yes" if retryable(CLASS_BY_REASON[reason]("", reason)) else "no"
