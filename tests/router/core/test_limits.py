"""The limits' defaults and their check."""

from dataclasses import fields

import pytest

from router.core.limits import Limits


@pytest.mark.parametrize("name", [limit.name for limit in fields(Limits)])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})
    assert getattr(Limits(**{name: 1}), name) == 1
