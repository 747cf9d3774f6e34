import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rllib_exit.objective.diversity import diversity_coefficients, edit_diversity_coefficients


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_equation_6():
    # The centroid is the origin; the distances to it are 1, 1, 3, 3.
    embeddings = [[1, 0], [-1, 0], [0, 3], [0, -3]]
    np.testing.assert_allclose(diversity_coefficients(embeddings), [0, 0, 1, 1])
    np.testing.assert_allclose(diversity_coefficients([[0.0], [0.0], [3.0]]), [0, 0, 1])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_embeddings_does_not_count(scale: float):
    embeddings = scale * np.array([[1, 0], [-1, 0], [0, 3], [0, -3]])
    np.testing.assert_allclose(diversity_coefficients(embeddings.tolist()), [0, 0, 1, 1])


@given(arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=32)))
def test_coefficients_span_the_unit_interval_or_are_one(embeddings_GE):
    coefficients_G = diversity_coefficients(embeddings_GE)
    if (coefficients_G == 1).all():
        return
    assert coefficients_G.min() == 0 and coefficients_G.max() == 1


@pytest.mark.parametrize("num", [1, 2, 7])
def test_equal_distances_give_one(num):
    embedding = np.random.default_rng(0).normal(size=8).astype(np.float32)
    assert (diversity_coefficients(np.tile(embedding, (num, 1))) == 1).all()
    # The same text embedded in other batches differs in the last bits.
    noisy = embedding * (1 + 1e-7 * np.arange(num, dtype=np.float32)[:, None])
    assert (diversity_coefficients(noisy) == 1).all()
    assert (edit_diversity_coefficients(["same"] * num) == 1).all()


def test_two_rollouts_are_equally_far_from_their_centroid():
    assert (diversity_coefficients(np.random.default_rng(1).normal(size=(2, 5))) == 1).all()


@given(st.lists(st.text("abc", max_size=6), min_size=2, max_size=5))
def test_edit_distances_agree_with_the_textbook(texts):
    num = len(texts)
    d = [
        sum(edit_distance(a, b) / max(len(a), len(b), 1) for j, b in enumerate(texts) if i != j) / (num - 1)
        for i, a in enumerate(texts)
    ]
    low, high = min(d), max(d)
    expected = [(x - low) / (high - low) for x in d] if high - low > 1e-9 else [1] * num
    np.testing.assert_allclose(edit_diversity_coefficients(texts), expected, atol=1e-6)


@pytest.mark.parametrize("embeddings", [[], [1.0, 2.0], [[np.nan], [1.0]]])
def test_rejects_what_are_no_embeddings(embeddings):
    with pytest.raises(ValueError, match="embeddings"):
        diversity_coefficients(embeddings)


def test_rejects_no_texts():
    with pytest.raises(ValueError, match="texts is empty"):
        edit_diversity_coefficients([])
