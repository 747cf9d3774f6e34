from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from envs.sandbox import guard


@given(chunks=st.lists(st.binary(max_size=20)), limit=st.integers(1, 30))
def test_the_end_of_the_output_is_kept(chunks: list[bytes], limit: int):
    source, sink = os.pipe()
    os.set_blocking(source, False)
    kept = bytearray()
    for chunk in chunks:
        os.write(sink, chunk)
        assert guard._read(source, kept, limit) == bool(chunk)
    os.close(sink)
    assert not guard._read(source, kept, limit)
    os.close(source)
    assert bytes(kept) == b"".join(chunks)[-limit:]
