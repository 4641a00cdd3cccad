"""Curves are drawn only where a test looks at them."""

import pytest
from training_tasks import draw_nothing

from mnv2_keras.training import state


@pytest.fixture(autouse=True, scope="module")
def no_curves():
    """`curves.png` is written without matplotlib's work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "draw_training", draw_nothing)
        yield
