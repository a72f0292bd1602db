"""Tools of the repository, each run as `python tools/NAME.py` or `python -m tools.NAME`."""
