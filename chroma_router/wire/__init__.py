"""What router, shard nodes and clients must agree on besides the generated messages."""
