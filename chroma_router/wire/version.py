"""The versions that the parts tell each other."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("chroma-router")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+source"

CHROMA_VERSION = "1.5.9"
"""The version of Chroma whose interface and engine this project is built on."""

PROTOCOL_VERSION = 1
"""The version of ShardService; router and node must agree on it."""
