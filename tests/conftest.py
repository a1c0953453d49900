"""Where the independent truth lies: reference numbers and real photographs, beside the repository."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("VISION_SHARED", Path(__file__).parents[2] / "shared"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} is not there; put it beside the repository or set VISION_SHARED")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers of the original implementation (shared/reference)."""
    return _folder("reference")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Real photographs in VOC layout (shared/data)."""
    return _folder("data")
