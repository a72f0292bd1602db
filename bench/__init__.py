"""Measurements; each prints ratios from one run, since machines differ and are shared."""
