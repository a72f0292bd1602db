"""The shard node: one Chroma data directory with exactly one writer, served over gRPC."""
