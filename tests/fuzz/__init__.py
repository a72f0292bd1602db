"""Hostile messages to every call of a running cluster."""
