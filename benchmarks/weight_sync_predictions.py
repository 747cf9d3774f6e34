"""How long would the weights of a 7B model take to the engines? Worked out, not measured.

    python benchmarks/weight_sync_predictions.py

Prints the table of ``docs/cluster.md``: a sync between two nodes of 8 GPUs, by what passes and over which link. Each
part's time is its bytes by a rate; the parts come one after the other. Not counted: Ray's calls and Python's work for
each tensor, a tenth of a second or so.
"""

from __future__ import annotations

WEIGHTS = 7.62e9
LEARNERS = 8
# Of bfloat16 weights, after a step of AdamW with a learning rate of 1e-6; as benchmarks/weight_sync.py measures it.
CHANGED = 0.0045
PATCH_BYTES_PER_CHANGE = 4  # 2 for the place, 2 for the value

# Seconds, to write one value to its place in host memory: measured on one core.
WRITE = 15e-9
# Bytes a second.
GPU_MEMORY = 3.3e12  # H100
PINNED, PAGEABLE = 50e9, 10e9  # between GPU and host memory, over PCIe 5
HOST_COPY = 5e9  # by one process
HOST_COPIES = 100e9  # by all processes of a node together
NVLINK = 400e9
LINKS = {"NVLink": NVLINK, "100 Gbit/s": 10e9, "10 Gbit/s": 1e9}  # 80 % of what they are named after


def broadcast(link: float) -> float:
    """All weights from GPU to GPU."""
    size = 2 * WEIGHTS
    gathered = size * (LEARNERS - 1) / LEARNERS / NVLINK
    loaded = 2 * size / GPU_MEMORY  # read and written
    return gathered + size / link + loaded


def full_copy(link: float) -> float:
    """All weights through the object store."""
    size = 2 * WEIGHTS
    gathered = size * (LEARNERS - 1) / LEARNERS / NVLINK
    put = size / PAGEABLE + size / HOST_COPY
    to_shared_memory = max(size / HOST_COPY, 2 * LEARNERS * size / HOST_COPIES)  # by an env runner for each engine
    loaded = size / PAGEABLE
    return gathered + put + size / link + to_shared_memory + loaded


def patch(link: float) -> float:
    """What changed, through the object store."""
    size, patch_size = 2 * WEIGHTS, PATCH_BYTES_PER_CHANGE * CHANGED * WEIGHTS
    gathered = size * (LEARNERS - 1) / LEARNERS / NVLINK
    compared = size / PINNED + 4 * size / GPU_MEMORY  # the last version from host memory; its places counted
    put = patch_size / PAGEABLE + patch_size / HOST_COPY + CHANGED * WEIGHTS * WRITE
    to_shared_memory = patch_size / HOST_COPY
    # A tensor of NaNs is filled, changed and written where it is none.
    loaded = patch_size / PAGEABLE + 5 * size / GPU_MEMORY
    return gathered + compared + put + patch_size / link + to_shared_memory + loaded


def table() -> str:
    """In Markdown."""
    rows = {
        "broadcast, 15.2 GB (`nccl`)": broadcast,
        "full copy, 15.2 GB (`object_store`)": full_copy,
        f"patch, {PATCH_BYTES_PER_CHANGE * CHANGED * WEIGHTS / 1e9:.2f} GB (`object_store`)": patch,
    }
    lines = [f"| seconds, predicted | {' | '.join(LINKS)} |", "|---|" + "---|" * len(LINKS)]
    lines += [
        f"| {name} | {' | '.join(f'{seconds(link):.1f}' for link in LINKS.values())} |"
        for name, seconds in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
