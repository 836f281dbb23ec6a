"""Memory, mapped and stream: the same images by the same rows, whatever reads them, in an order that can be resumed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from data_kit import BAD, SIZE, encoded, expected, parquet, save
from training_kit import AUTOENCODER, autoencoder_config, fingerprint, train

from t2i.config import AutoencoderModel, Data, Source
from t2i.data import tables
from t2i.data.arrow_store import ArrowStore
from t2i.data.lazy_table import LazyTable
from t2i.data.memory_table import ImageTable, load_memory
from t2i.data.parquet import Parquet
from t2i.data.shard_store import ShardStore
from t2i.data.tables import Table, choose_storage, load_table, share_of
from t2i.errors import DataError
from t2i.training.families.autoencoder import build_autoencoder
from t2i.training.latents import cached_latents, encode

STORAGES = ("memory", "mapped", "stream")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def config(*sources: Source | Path | str, storage: Any = "mapped", bad: Any = "stop", buffer: int = 7) -> Data:
    given = tuple(s if isinstance(s, Source) else Source(path=str(s)) for s in sources)
    return Data(sources=given, size=SIZE, storage=storage, bad_images=bad, shuffle_buffer=buffer)


def load(*sources: Source | Path | str, **how: Any) -> Table:
    return load_table(config(*sources, **how), progress=False)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three files with other columns and row groups; rows 0..40."""
    for name, rows, group in (("a", range(20), 6), ("b", range(20, 23), 100), ("c", range(23, 41), 5)):
        cells, texts = [encoded(k) for k in rows], [f"text {k}" for k in rows]
        columns = {"title": texts} if name == "b" else {"text": texts, "label": [k % 2 for k in rows]}
        parquet(tmp_path / f"{name}.parquet", cells, group=group, **columns)
    return str(tmp_path / "*.parquet")


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_images_columns_and_labels_are_the_same_everywhere(shards: str, storage: str) -> None:
    table = load(shards, storage=storage)
    rows = torch.tensor([40, 0, 22, 7, 7, 19, 23])
    assert torch.equal(table.images(rows), torch.stack([expected(int(k)) for k in rows]))
    assert (table.count, len(table), table.size, table.skipped) == (41, 41, SIZE, [])
    assert table.classes == {"label": ("cat", "dog")}
    assert table.row(7) == {"text": "text 7", "label": "dog", "title": ""}
    assert table.row(22) == {"text": "", "label": "", "title": "text 22"}
    assert table.labels(rows, "label").tolist() == [0, 0, -1, 1, 1, 1, 1]
    assert {name: list(column) for name, column in table.columns.items()} == load_memory(config(shards)).columns
    assert [table.columns["text"][k] for k in (0, -1)] == ["text 0", "text 40"]
    assert list(table.columns["title"][19:22]) == ["", "text 20", "text 21"]
    with pytest.raises(DataError, match=r"column 'text' has no classes; there are 'label'"):
        table.labels(rows, "text")


def test_a_mapped_set_is_visited_as_one_in_memory(shards: str, tmp_path: Path) -> None:
    """Repeats by arithmetic: the same visits, so the same run."""
    sources = (Source(path=shards, repeat=2), Source(path=str(tmp_path / "b.parquet"), repeat=5))
    mapped, memory = load(*sources), load(*sources, storage="memory")
    assert len(mapped) == len(memory) == 2 * 41 + 5 * 3
    for first, count in ((0, 97), (50, 97), (96, 200), (97 * 9 + 5, 30)):
        rows = mapped.order(3, first, count)
        assert torch.equal(rows, memory.order(3, first, count))
    assert torch.equal(mapped.images(rows), memory.images(rows))


@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_a_folder_is_mapped_where_it_stands(tmp_path: Path, storage: str) -> None:
    for k, folder in enumerate(("cat", "dog", "dog", "")):
        save(tmp_path / "data" / folder / f"{k}.png", k)
    (tmp_path / "data" / "cat" / "0.txt").write_text("zero")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "3.png", "label": "bird", "year": 1889}\n')
    table = load(tmp_path / "data", storage=storage)
    order = [3, 0, 1, 2]
    assert torch.equal(table.images(torch.arange(4)), torch.stack([expected(k) for k in order]))
    assert table.classes == {"label": ("bird", "cat", "dog")}
    assert table.labels(torch.arange(4), "label").tolist() == [0, 1, 2, 2]
    assert {name: list(values) for name, values in table.columns.items()} == {
        "label": ["bird", "cat", "dog", "dog"],
        "year": ["1889", "", "", ""],
        "text": ["", "zero", "", ""],
    }
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "../secret.png"}\n')
    with pytest.raises(DataError, match="leads out of the folder"):
        load(tmp_path / "data", storage=storage, bad="skip")


def test_a_hub_data_set_is_mapped_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": encoded(5), "path": "5.png"}, {"bytes": b"broken", "path": "6.png"}], "label": [1, 0]}
    data = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    table = load("hub:someone/pictures")
    assert torch.equal(table.images(torch.tensor([0])), expected(5)[None])
    assert table.labels(torch.tensor([1, 0]), "label").tolist() == [0, 1]
    with pytest.raises(DataError, match=r"hub:someone/pictures\[train\] row 1 \(6\.png\)"):
        table.images(torch.tensor([1]))


# Order, resume, workers


@pytest.mark.parametrize("storage", ["mapped", "stream"])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_seen_depends_on_neither_threads_nor_looking_ahead_nor_where_one_begins(
    shards: str, storage: str, threads: int
) -> None:
    """FAULTS 10: resumed in mid-epoch, in later epochs, by 0 and more workers, by two processes."""
    data = config(Source(path=shards, repeat=2), storage=storage)
    store = ArrowStore(data, False) if storage == "mapped" else ShardStore(data)
    straight = LazyTable(store, SIZE, False, 0)
    seen = [straight.order(5, first, 8) for first in range(0, 240, 8)]
    pixels = [straight.images(rows) for rows in seen]
    for begin in (0, 40, 160):
        table = LazyTable(store, SIZE, False, threads)
        for step in range(begin // 8, 30):
            for share in (slice(0, 8), slice(4, 8)):
                rows, found = share_of(table, 5, 8 * step, 8, share)
                assert torch.equal(rows, seen[step][share])
                assert torch.equal(found, pixels[step][share])


@pytest.mark.parametrize("buffer", [1, 7, 10_000])
def test_a_stream_sees_every_visit_once_an_epoch_and_shuffles_within_its_buffer(shards: str, buffer: int) -> None:
    table = load(Source(path=shards, repeat=2), storage="stream", buffer=buffer)
    epochs = table.order(0, 0, 3 * 82).split(82)
    for epoch in epochs:
        assert Counter(epoch.tolist()) == dict.fromkeys(range(41), 2)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], table.order(1, 0, 82))
    # What one buffer holds are whole shards, but for the first and the last of them.
    edges = [0, 6, 12, 18, 20, 23, 28, 33, 38, 41]
    shard_of = [sum(row >= edge for edge in edges) - 1 for row in range(41)]
    for some in epochs[0].split(buffer):
        counts = Counter(shard_of[row] for row in some.tolist())
        partial = [k for k, n in counts.items() if n % (edges[k + 1] - edges[k])]
        assert len(partial) <= 2


def test_a_stream_reads_each_shard_once_an_epoch_and_resumes_without_what_was_before(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    group = Parquet.group
    monkeypatch.setattr(Parquet, "group", lambda file, k: (read.append((file.path, k)), group(file, k))[1])
    data = config(shards, storage="stream", buffer=10)
    table = LazyTable(ShardStore(data), SIZE, False, 0)
    for first in range(0, 41, 5):
        table.images(table.order(0, first, min(5, 41 - first)))
    assert len(read) == len(set(read)) == 9  # 4 + 1 + 4 row groups
    read.clear()
    resumed = LazyTable(ShardStore(data), SIZE, False, 0)
    resumed.images(resumed.order(0, 41 * 7 + 32, 5))
    assert 0 < len(read) <= 5
    read.clear()
    ahead = ShardStore(data)
    ahead.read_ahead(0, 0, 10)
    prepared = set(read)
    ahead.fetch(ahead.order(0, 10, 10).tolist())
    assert set(read) == prepared  # the second buffer was there before it was asked for


def test_a_stream_holds_few_shards(shards: str) -> None:
    store = ShardStore(config(shards, storage="stream", buffer=3))
    store.fetch(list(range(41)))
    assert sum(int(store._sizes[k]) for k in store._cached) <= store.room == 2 * 3 + 2 * 6


def test_a_hub_data_set_is_streamed_from_its_parquet_files(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(path) for path in sorted(Path(shards).parent.glob("*.parquet"))]
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": files, "test": ["x/images.zip"]}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder)
    table = load("hub:someone/pictures", storage="stream")
    assert torch.equal(table.order(0, 0, 99), load(shards, storage="stream").order(0, 0, 99))
    assert torch.equal(table.images(torch.tensor([30])), expected(30)[None])
    for split in ("test", "validation"):
        with pytest.raises(DataError, match="cannot be streamed") as caught:
            load(Source(path="hub:someone/pictures", split=split), storage="stream")
        assert "data.storage=mapped" in str(caught.value.hint)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: 1 / 0)
    with pytest.raises(DataError, match="'someone/pictures', split 'train', is not available"):
        load("hub:someone/pictures", storage="stream")


def test_a_folder_cannot_be_streamed(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    with pytest.raises(DataError, match="only parquet files can"):
        load(tmp_path, storage="stream")


# Bad images


@pytest.mark.parametrize("storage", ["mapped", "stream"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_stops_when_it_is_visited_or_the_next_good_one_stands_in(
    tmp_path: Path, storage: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 13 and 14. Pixels, columns and labels are of the same row, whoever asks first, and every time."""
    cells = [encoded(0), BAD[kind], BAD["text"], encoded(3), BAD[kind]]
    path = parquet(tmp_path / "a.parquet", cells, group=2, text=list("abcde"), label=[0, 1, 1, 1, 0])
    table = load(path, storage=storage)
    assert torch.equal(table.images(torch.tensor([3, 0])), torch.stack([expected(3), expected(0)]))
    with pytest.raises(DataError, match=r"a\.parquet row 1") as caught:
        table.images(torch.tensor([0, 1]))
    assert "bad_images=skip" in str(caught.value.hint)
    for asked_first in (True, False):
        table = load(path, storage=storage, bad="skip")
        stand_ins = [0, 3, 3, 3, 0]
        if asked_first:
            assert [table.row(k)["text"] for k in range(5)] == list("addda")
        for rows in (torch.tensor([4, 1]), torch.arange(5)):
            assert torch.equal(table.images(rows), torch.stack([expected(stand_ins[k]) for k in rows.tolist()]))
        assert table.labels(torch.arange(5), "label").tolist() == [0, 1, 1, 1, 0]
        assert [table.row(k)["text"] for k in range(5)] == list("addda")
        assert [f"a.parquet row {k}" in line for k, line in zip((1, 2, 4), table.skipped, strict=True)] == [True] * 3
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("bad image 3") == 2


@pytest.mark.parametrize("storage", ["mapped", "stream"])
def test_skipping_ends_where_nothing_is_good(tmp_path: Path, storage: str) -> None:
    table = load(parquet(tmp_path / "a.parquet", [b"x", b"y"]), storage=storage, bad="skip")
    with pytest.raises(DataError, match=r"2 images in a row cannot be read; the first: .*row [01]"):
        table.images(torch.arange(2))


def test_a_file_of_a_folder_that_goes_bad_is_named_when_it_is_visited(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "data" / f"{k}.png", k)
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "9.png"}\n')
    table = load(tmp_path / "data", bad="skip")
    (tmp_path / "data" / "1.png").write_text("text as PNG")
    found = table.images(torch.arange(4))
    assert torch.equal(found, torch.stack([expected(k) for k in (0, 2, 2, 0)]))
    assert ["1.png" in table.skipped[0], "9.png" in table.skipped[1]] == [True, True]
    strict = load(tmp_path / "data")
    (tmp_path / "data" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: no such file"):
        strict.images(torch.tensor([0]))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "cut.parquet", [encoded(k) for k in range(50)])
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(len(whole) // 2) + whole[200 + len(whole) // 2 :])  # the footer is whole
    with pytest.raises(DataError, match=r"cut\.parquet"):
        load(path)
    with pytest.raises(DataError, match=r"cut\.parquet, row group 0"):
        load(path, storage="stream").images(torch.arange(3))


# Identity and choice


@pytest.mark.parametrize("storage", ["mapped", "stream"])
def test_the_hash_is_of_the_files_and_what_is_made_of_them(tmp_path: Path, storage: str) -> None:
    def digest(cells: list[bytes], name: str = "a", repeat: int = 1, **how: Any) -> str:
        path = parquet(tmp_path / f"{name}.parquet", cells, text=["x"] * len(cells))
        return load(Source(path=str(path), repeat=repeat), storage=storage, **how).hash

    two = [encoded(0), encoded(1)]
    first = digest(two)
    assert len(first) == 64
    assert digest(two, "renamed") == first
    others = [digest([encoded(0), encoded(2) + b"."]), digest([*two, encoded(2)]), digest(two, repeat=2)]
    if storage == "stream":
        others.append(digest(two, buffer=8))
    assert len({first, *others}) == 1 + len(others)


def test_the_hash_of_a_folder_moves_with_it(tmp_path: Path) -> None:
    save(tmp_path / "one" / "a.png", 1)
    first = load(tmp_path / "one").hash
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert load(tmp_path / "two").hash == first
    (tmp_path / "two" / "a.txt").write_text("a caption")
    assert load(tmp_path / "two").hash != first


def test_auto_is_memory_up_to_a_budget(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(shards, storage="auto")
    assert choose_storage(data) == "memory"
    assert isinstance(load_table(data, False), ImageTable)
    monkeypatch.setattr(tables, "MEMORY_BYTES", 41 * 3 * SIZE**2 - 1)
    assert choose_storage(data) == "mapped"
    assert isinstance(load_table(data, False), LazyTable)


@pytest.mark.parametrize("storage", STORAGES)
def test_images_come_on_the_device_that_was_asked_for(shards: str, storage: str) -> None:
    table = load(shards, storage=storage).to(torch.device("meta"))
    assert table.images(torch.arange(3)).device.type == "meta"
    assert load(shards, storage=storage).spread(5).tolist() == load(shards, storage=storage).spread(5).tolist()
    assert len(table.spread(5)) == 5


def test_mapping_says_nothing_where_no_bars_are_wanted(shards: str, capfd: pytest.CaptureFixture[str]) -> None:
    load(shards)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("storage", ["mapped", "stream"])
def test_a_run_on_a_mapped_set_is_the_run_in_memory_and_a_stopped_one_goes_on(tmp_path: Path, storage: str) -> None:
    """The loop sees one interface: with the same order the same weights, bit for bit; resumed or not."""
    data = parquet(tmp_path / "a.parquet", [encoded(k) for k in range(11)], group=3)
    how = {"data__size": 16, "data__shuffle_buffer": 6}
    whole = autoencoder_config(data, data__storage=storage, **how)
    train(whole, tmp_path / "whole")
    train(autoencoder_config(data, data__storage=storage, **how, images=16), tmp_path / "halves")
    train(whole, tmp_path / "halves")
    expected = fingerprint(tmp_path / "whole")
    assert fingerprint(tmp_path / "halves") == expected
    if storage == "mapped":
        train(autoencoder_config(data, data__storage="memory", **how), tmp_path / "memory")
        in_memory = fingerprint(tmp_path / "memory")
        assert in_memory["state"].pop("data_hash") != expected["state"].pop("data_hash")
        assert in_memory == expected


def test_latents_of_a_mapped_set_are_those_of_the_same_set_in_memory(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", [encoded(k) for k in range(5)])
    vae = build_autoencoder(AutoencoderModel(**AUTOENCODER["model"]), SIZE, 0).eval()
    made = [encode(vae, load(data, storage=storage), "no", False) for storage in STORAGES]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    mapped = load(data)
    assert torch.equal(cached_latents(vae, mapped, tmp_path / "latents", "no", False), made[0])
    assert torch.equal(cached_latents(vae, load(data), tmp_path / "latents", "no", False), made[0])
    other = load(parquet(tmp_path / "b.parquet", [encoded(k) for k in range(6)]))
    with pytest.raises(DataError, match="data is "):
        cached_latents(vae, other, tmp_path / "latents", "no", False)
