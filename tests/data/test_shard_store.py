"""A million rows cost what a thousand cost: memory, and rows touched. Each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_kit import SIZE, encoded

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 20, 64

# Anonymous memory: what a process holds. Pages of mapped files are the system's, which takes them back when it likes.
CODE = """
import json, sys, time
import datasets
from t2i.config import Data, Source
from t2i.data import tables

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

def used(path):
    before, start = held(), time.perf_counter()
    data = Data(sources=(Source(path=path),), size=8, storage=sys.argv[1], shuffle_buffer=500)
    table = tables.load_table(data, progress=False)
    started = time.perf_counter() - start
    touched, fetch = [0], table.store.fetch
    def count(rows):
        touched[0] += len(rows)
        return fetch(rows)
    table.store.fetch = count
    for step in range(int(sys.argv[4])):
        tables.share_of(table, 0, step * int(sys.argv[5]), int(sys.argv[5]), slice(None))
    table._pool.shutdown()
    return {"seconds": started, "held": held() - before, "rows": table.count, "touched": touched[0]}

used(sys.argv[2])  # libraries and thread pools, once
print(json.dumps([used(sys.argv[2]), used(sys.argv[3])]))
"""


def build(path: Path, rows: int) -> str:
    """A parquet file of 16 small pictures over and over."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": encoded(k), "path": None} for k in range(16)]
    n = min(rows, 10_000)
    columns = {"image": [cells[k % 16] for k in range(n)], "label": [k % 2 for k in range(n)]}
    group = pa.table(columns, schema=features.arrow_schema)
    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        for _ in range(rows // n):
            writer.write_table(group, row_group_size=1000)
    return str(path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("storage", ["mapped", "stream"])
def test_start_and_memory_do_not_grow_with_the_set(tmp_path: Path, storage: str) -> None:
    """The first start of a mapped set writes Arrow files, a pass over the data; it too holds only a part of them."""
    assert SIZE == 8
    small, large = build(tmp_path / "small.parquet", 1000), build(tmp_path / "large.parquet", 1_000_000)
    command = [sys.executable, "-c", CODE, storage, small, large, str(STEPS), str(BATCH)]
    env = {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    starts: list[list[dict[str, Any]]] = []
    for _ in range(2 if storage == "mapped" else 1):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        starts.append(json.loads(done.stdout))
    for thousand, million in starts:
        assert (thousand["rows"], million["rows"]) == (1000, 1_000_000)
        assert million["touched"] <= (STEPS + 1) * BATCH  # the steps, and the one looked ahead to
    first, *_, last = [million["held"] - thousand["held"] for thousand, million in starts * 2]
    assert last < 20  # MB; the pixels would be 192, a list of the indices 36
    assert first < 120
