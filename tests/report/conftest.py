from __future__ import annotations

from collections.abc import Iterator

import pytest

from rllib_exit.report import page


@pytest.fixture(autouse=True, scope="module")
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """Figures are made but not drawn, which takes most of a report's time; a test that looks at one undoes this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "rendered", lambda figure, kind: b"")
        yield patch
