from __future__ import annotations

import numpy as np
import pytest

from tests.learner.helpers import batch, make_groups


@pytest.mark.parametrize(("sizes", "rows"), [([2, 5, 3], [7, 3]), ([4, 2, 4], [4, 6]), ([3, 3, 3, 3], [6, 6])])
def test_a_group_goes_to_the_minibatch_in_which_its_middle_lies(sizes: list[int], rows: list[int]) -> None:
    rng = np.random.default_rng(0)
    groups = [make_groups(rng, num_groups=1, group_size=size)[0] for size in sizes]
    [whole] = batch(groups, minibatch_size=sum(sizes) // 2)
    assert [len(minibatch) for minibatch in whole.minibatches] == rows
