"""`chroma-router up`: one machine's cluster as child processes of one supervisor."""
