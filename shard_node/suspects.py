"""Vector indexes that a kill may have torn: found and dropped before the engine opens them.

At every `sync_threshold` queue rows the engine overwrites a collection's vector segment in place
and without fsync, and only then moves the segment's `max_seq_id` up. So after a kill inside a
persist, and only then, the queue has `sync_threshold` rows or more above it (docs/adr/0002: never
wrong in 540 kills). Such a segment is deleted; the engine rebuilds it from the queue, which keeps
every vector. Power loss is another matter: nothing fsyncs these files.
"""

import shutil
import sqlite3
from pathlib import Path

from shard_node.state import connect, topic_of

_ENGINE_DEFAULT_SYNC_THRESHOLD = 1000

_SEGMENTS = """
SELECT s.id, s.collection,
  coalesce((SELECT seq_id FROM max_seq_id WHERE segment_id = s.id), 0),
  coalesce(
    json_extract(c.schema_str,
      '$.keys."#embedding".float_list.vector_index.config.hnsw.sync_threshold'),
    json_extract(c.config_json_str, '$.hnsw.sync_threshold'),
    ?)
FROM segments s JOIN collections c ON c.id = s.collection WHERE s.scope = 'VECTOR'
"""


def drop_suspects(database: Path) -> list[str]:
    """Deletes the suspect segments; returns their physical collections. No engine may run."""
    link = connect(database)
    try:
        link.execute("PRAGMA synchronous=FULL")
        return [
            collection
            for segment, collection, persisted, threshold in link.execute(
                _SEGMENTS, (_ENGINE_DEFAULT_SYNC_THRESHOLD,)
            ).fetchall()
            if _drop_if_suspect(link, database.parent / segment, collection, persisted, threshold)
        ]
    finally:
        link.close()


def _drop_if_suspect(
    link: sqlite3.Connection, segment: Path, collection: str, persisted: int, threshold: int
) -> bool:
    (above,) = link.execute(
        "SELECT count(*) FROM embeddings_queue WHERE topic = ? AND seq_id > ?",
        (topic_of(collection), persisted),
    ).fetchone()
    if above < threshold or not segment.exists():
        return False
    # The row first: a kill between the two must leave the segment suspect.
    link.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (segment.name,))
    shutil.rmtree(segment)
    return True
