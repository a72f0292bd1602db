"""What holds for all tests."""

import asyncio
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings


@pytest.fixture(autouse=True, scope="session")
def _no_loop_of_nobody() -> None:
    """pytest-asyncio asks for the thread's event loop, to put it back after a test. Until one was
    set, Python before 3.14 makes one for that, which nobody closes.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command run inside a test configures the logs, to streams that end with the test."""
    yield
    structlog.reset_defaults()


# How long one example takes is the machine's, which may be busy; each test has its own time-out.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
