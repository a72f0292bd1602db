"""The live proof: a cluster grows, shrinks and is killed under clients that check every answer."""
