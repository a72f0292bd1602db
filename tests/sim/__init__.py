"""Seeded simulation of moves: the real `pursue` against simulated nodes, catalog and routers.

No event loop, no clock, no files: everything happens in the order that one seed gives.
"""
