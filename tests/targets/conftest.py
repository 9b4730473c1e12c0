"""Fixtures of the target tests; the Programs themselves are made in _programs.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import _programs
import pytest

from edgekd.artifact import Artifact


@pytest.fixture(scope="session")
def make_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """``make_program(scheme, family="bert", exact=False)`` -> a tiny finished Program, made once a session."""

    @cache
    def make(scheme: str, family: str = "bert", exact: bool = False) -> Artifact:
        folder = tmp_path_factory.mktemp("programs") / f"{family}-{scheme}"
        return _programs.make(folder, scheme, family, exact)

    return make
