from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from rllib_exit import stages as module
from rllib_exit.stages import stage, stages


class Store(dict):
    """Ray's key-value store, in this process."""

    def _internal_kv_put(self, key: str, value: str, namespace: str) -> None:
        self[key.encode()] = value.encode()

    def _internal_kv_list(self, prefix: str, namespace: str) -> list[bytes]:
        return [key for key in self if key.startswith(prefix.encode())]

    def _internal_kv_get(self, key: bytes, namespace: str) -> bytes:
        return self[key]


@pytest.fixture
def me(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The job and the actor that this process is in."""
    import ray

    me, store = SimpleNamespace(job="1", actor="a"), Store()
    context = SimpleNamespace(get_job_id=lambda: me.job, get_actor_id=lambda: me.actor)
    monkeypatch.setattr(module, "_store", lambda: store)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    return me


def test_a_stage_is_under_way_until_every_process_has_ended_it(me: SimpleNamespace) -> None:
    with stage("load"):
        assert stages() == {"load": None}
        me.actor = "b"
        with stage("load"):
            assert stages() == {"load": None}
        assert stages() == {"load": None}
        me.actor = "a"
        time.sleep(0.01)
    took = stages()["load"]
    assert took is not None and 0.01 <= took < 10  # the longest
    me.job = "2"
    assert stages() == {}


def test_a_stage_that_raises_has_not_ended_and_can_be_entered_again(me: SimpleNamespace) -> None:
    with pytest.raises(ValueError), stage("load"):
        raise ValueError
    assert stages() == {"load": None}
    with stage("load"):
        pass
    assert stages()["load"] is not None


def test_without_ray_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with stage("load"):
        assert stages() == {}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_driver_sees_the_stages_of_actors_and_of_their_threads() -> None:
    import ray

    @ray.remote
    class Loader:
        def begin(self) -> None:
            self.go_on, begun = threading.Event(), threading.Event()

            def load() -> None:
                with stage("load something"):
                    begun.set()
                    self.go_on.wait()

            self.thread = threading.Thread(target=load)
            self.thread.start()
            begun.wait()

        def end(self) -> None:
            self.go_on.set()
            self.thread.join()

    loader = Loader.remote()
    ray.get(loader.begin.remote())
    assert stages()["load something"] is None
    ray.get(loader.end.remote())
    assert stages()["load something"] is not None
