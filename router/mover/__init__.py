"""Carries rebalances out: one router of a cluster at a time, by a lease in the catalog."""
