"""Decoding refuses what is unsafe and converts the rest as documented; saving is atomic, and never clobbers."""

import contextlib
import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i import atomic
from t2i.errors import ImageError, NonFinite, T2IError, UsageError
from t2i.imaging import images

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def noise(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PNG = encode(noise())
TEXT_66_MB = b"".join(chunk(b"tEXt", b"k%d\0" % k + b"x" * 1_000_000) for k in range(66))
HEADER_30K = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
REFUSED = {
    "empty": (b"", "0 bytes"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs"),
    "text": (b"<html>this is no picture</html>", "text"),
    "random": (bytes(range(256)), "not an image"),
    "truncated-jpeg": (encode(noise(64, 64), "JPEG")[:900], "truncated"),
    "truncated-png": (encode(noise(64, 64))[:900], "truncated"),
    "truncated-webp": (encode(noise(64, 64), "WEBP")[:200], "truncated"),
    "header-alone": (PNG[:20], "header"),
    "bomb": (SIGNATURE + HEADER_30K + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "before decoding"),
    "text-before-pixels": (PNG[:33] + TEXT_66_MB + PNG[33:], "text"),
    "text-after-pixels": (PNG[:-12] + TEXT_66_MB + PNG[-12:], "text"),
    "text-bomb": (PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8))) + PNG[33:], "unsafe"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
    "psd": (b"8BPS\0\1" + bytes(40), "PSD"),
    "fits": (b"SIMPLE  =                    T" + b" " * 50, "FITS"),
    "float": (encode(Image.new("F", (2, 2)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_decode_names_the_file_and_what_is_wrong_with_it(name: str, tmp_path: Path) -> None:
    data, words = REFUSED[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        images.decode(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    with pytest.raises(ImageError, match=r"row 7 of x\.parquet"):
        images.decode(data, "row 7 of x.parquet")


def test_a_bomb_is_refused_without_reading_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError):
        images.decode(REFUSED["bomb"][0])
    # Below Pillow's own bound, above ours.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8_900, 10_001, 8, 2, 0, 0, 0))
    with pytest.raises(ImageError, match="8900 x 10001"):
        images.decode(SIGNATURE + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_decode_of_what_is_no_file(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "folder"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(ImageError, match=words):
            images.decode(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="regular"):
            images.decode(tmp_path / "pipe.png")


def test_a_failed_decode_prints_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    for data, _ in REFUSED.values():
        with pytest.raises(ImageError):
            images.decode(data)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(images.FORMATS))
    raw = bytearray(encode(noise(), kind))
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert images.decode(bytes(raw)).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        ours = np.asarray(images.decode(encode(Image.fromarray(values), kind)))
        assert np.array_equal(ours[..., 0], np.round(values / 65535 * 255))
        assert np.array_equal(ours[..., 0], ours[..., 2])


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    for kind in ("PNG", "TIFF"):
        assert list(images.decode(encode(half, kind)).get_flattened_data()) == [(255, 127, 127), (255, 255, 255)]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    decoded = images.decode(encode(palette, transparency=0))
    assert list(decoded.get_flattened_data()) == [(255, 255, 255), (40, 50, 60)]
    grey = Image.fromarray(np.array([[0, 40_000]], dtype=np.uint16))
    assert list(images.decode(encode(grey, transparency=0)).get_flattened_data()) == [(255,) * 3, (156,) * 3]


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("LA", (77, 255), "PNG", (77, 77, 77)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("RGB", (1, 2, 3), "BMP", (1, 2, 3)),
        ("RGB", (255, 0, 0), "GIF", (255, 0, 0)),
    ],
)
def test_modes_become_rgb(mode: str, color: object, kind: str, expected: tuple[int, ...]) -> None:
    for size in ((1, 1), (3, 2)):
        decoded = images.decode(encode(Image.new(mode, size, color), kind))
        assert (decoded.mode, decoded.size) == ("RGB", size)
        assert max(abs(a - b) for a, b in zip(decoded.getpixel((0, 0)), expected, strict=True)) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """A file is made whose upright picture we know: the inverse turn is stored with the tag."""
    upright = noise(5, 3)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(upright if turn is None else upright.transpose(turn), exif=exif)
    assert images.decode(stored).tobytes() == upright.tobytes()


def test_broken_exif_does_not_spoil_the_picture() -> None:
    picture = encode(noise(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 50)
    assert images.decode(picture).tobytes() == noise().tobytes()


def test_an_animation_gives_its_first_frame() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(red, kind, save_all=True, append_images=[blue])
        r, _, b = images.decode(data).getpixel((1, 1))
        assert r > 200
        assert b < 50


def test_decoding_in_threads_leaves_the_warnings_of_others_alone() -> None:
    import warnings

    cases = [data for data, _ in REFUSED.values() if len(data) < 10**6] * 8

    def attempt(data: bytes) -> None:
        with pytest.raises(ImageError):
            images.decode(data)

    with ThreadPoolExecutor(8) as pool:
        drawn = [pool.submit(attempt, data) for data in cases]
        for _ in range(100):  # of this thread they are errors, as the tests have it, whatever the others do
            with pytest.raises(UserWarning, match="loud"):
                warnings.warn("loud", stacklevel=1)
        for one in drawn:
            one.result()


def test_fit_takes_the_centre() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    for size in (1, 10, 20):
        assert images.fit(wide, size).getcolors() == [(size * size, (0, 0, 255))]
    assert images.fit(noise(1, 1), 8).size == (8, 8)


def test_uint8_round_trip_is_exact_and_clamped() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = images.from_uint8(every)
    assert (x.min().item(), x.max().item(), x.dtype) == (-1, 1, torch.float32)
    assert torch.equal(images.to_uint8(x), every)
    assert torch.equal(images.to_uint8(x.bfloat16().float() * 3)[0, 0, 0, :3], torch.zeros(3, dtype=torch.uint8))
    assert images.to_uint8(torch.tensor([-9.0, 9.0, 0.0])).tolist() == [0, 255, 128]


def test_pictures_and_tensors_convert_both_ways() -> None:
    pair = [noise(5, 3, 1), noise(5, 3, 2)]
    x = images.to_tensor(pair)
    assert x.shape == (2, 3, 3, 5)
    assert [picture.tobytes() for picture in images.from_tensor(x)] == [picture.tobytes() for picture in pair]
    grey = images.from_tensor(torch.ones(1, 1, 2, 2))[0]
    assert (grey.mode, grey.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_image_is_an_error_and_never_black(bad: float) -> None:
    x = torch.zeros(3, 3, 4, 4)
    x[1, 2, 3, 3] = bad
    with pytest.raises(NonFinite) as caught:
        images.from_tensor(x)
    assert "[1] of 3" in caught.value.message
    assert "`dtype=float32`" in str(caught.value.hint)


def test_a_grid_puts_every_picture_in_its_place() -> None:
    colors = ["red", "lime", "blue", "black", "yellow"]
    sheet = images.grid([Image.new("RGB", (8, 6), color) for color in colors], columns=3)
    assert sheet.size == (3 * 8 + 2 * 2, 2 * 6 + 2)
    got = [sheet.getpixel((k % 3 * 10 + 4, k // 3 * 8 + 3)) for k in range(6)]
    assert got == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 0), (255, 255, 255)]
    assert sheet.getpixel((8, 3)) == (255, 255, 255)
    assert images.grid([noise()] * 9).size == (3 * 16 + 4,) * 2
    with pytest.raises(UsageError):
        images.grid([])


def test_labels_stand_outside_the_pictures() -> None:
    pictures = [Image.new("RGB", (64, 64), "red") for _ in range(4)]
    plain = images.grid(pictures, 2)
    labelled = images.grid(pictures, row_labels=["photo", "van gogh"], column_labels=["horse", "giraffe"])
    left, top = labelled.width - plain.width, labelled.height - plain.height
    assert left > 20
    assert top > 8
    assert labelled.crop((left, top, *labelled.size)).tobytes() == plain.tobytes()
    for label in ("0.123", "gÅ", "two lines"):  # whole: white all around
        edge = images.grid(pictures, 2, column_labels=[label, label]).crop((0, 0, plain.width, 1))
        assert edge.getextrema() == ((255, 255),) * 3
    margin = labelled.convert("L").crop((0, top, left, labelled.height))
    assert margin.getextrema()[0] < 100  # something is written there


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_saved_bytes_depend_on_the_picture_alone(suffix: str, tmp_path: Path) -> None:
    first = images.save(noise(), tmp_path / "new" / "folder" / f"a{suffix}")
    second = images.save(noise(), tmp_path / f"b{suffix}")
    assert first.read_bytes() == second.read_bytes()
    assert (images.decode(first).tobytes() == noise().tobytes()) == (suffix.lower() == ".png")
    assert sorted(p.name for p in first.parent.iterdir()) == [first.name]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = images.save(noise(), tmp_path / "a.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_save_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        images.save(noise(), path)
    dangling = tmp_path / "link.png"
    dangling.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UsageError, match="exists"):
        images.save(noise(), dangling)
    assert path.read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere.png").exists()
    images.save(noise(), path, overwrite=True)
    assert images.decode(path).tobytes() == noise().tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "link.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_the_last_moment_is_kept(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync, link = tmp_path / "a.png", os.fsync, os.link

    def other_process_is_faster(descriptor: int) -> None:
        sync(descriptor)
        path.write_bytes(b"theirs")

    def no_links(source: object, target: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "fsync", other_process_is_faster)
    monkeypatch.setattr(os, "link", link if links else no_links)
    with pytest.raises(UsageError, match="exists"):
        images.save(noise(), path)
    assert path.read_bytes() == b"theirs"
    monkeypatch.setattr(os, "fsync", sync)
    images.save(noise(), tmp_path / "b.png")
    assert images.decode(tmp_path / "b.png").tobytes() == noise().tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_of_many_processes_exactly_one_wins(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from t2i import atomic
        from t2i.errors import UsageError
        folder, who = Path(sys.argv[1]), sys.argv[2]
        (folder / f"ready{who}").touch()
        while not (folder / "go").exists():
            time.sleep(0.001)
        for k in range(50):
            try:
                atomic.write(who.encode() * 1000, folder / f"{k}.png")
                print(k)
            except UsageError:
                pass
    """
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), who], stdout=subprocess.PIPE, text=True)
        for who in "ab"
    ]
    while not all((tmp_path / f"ready{who}").exists() for who in "ab"):
        assert all(job.poll() is None for job in jobs)
    (tmp_path / "go").touch()
    won = [set(job.communicate(timeout=60)[0].split()) for job in jobs]
    assert not won[0] & won[1]
    assert won[0] | won[1] == {str(k) for k in range(50)}
    for who, names in zip("ab", won, strict=True):
        assert all((tmp_path / f"{k}.png").read_text() == who * 1000 for k in names)
    assert not list(tmp_path.glob(".t2i-*"))


@pytest.mark.parametrize(("number", "kind"), [(28, T2IError), (13, UsageError)], ids=["disk full", "read-only"])
def test_a_failed_write_leaves_nothing_behind(
    number: int, kind: type[T2IError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind) as caught:
        atomic.write(b"new", tmp_path / "a.png", overwrite=True)
    assert type(caught.value) is kind
    assert os.strerror(number) in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot write"):
        images.save(noise(), tmp_path / "a.png")


def test_places_that_cannot_hold_a_picture(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="not a folder"):
        images.save(noise(), tmp_path / "file" / "a.png")
    with pytest.raises(UsageError):
        images.save(noise(), tmp_path / "folder.png", overwrite=True)
    with pytest.raises(UsageError):
        images.save(noise(), tmp_path / ("x" * 300 + ".png"))
    for name in ("a.bmp", "a", "a.png.exe"):
        with pytest.raises(UsageError, match="suffix"):
            images.save(noise(), tmp_path / name)
    assert images.save(noise(), tmp_path / ("x" * 251 + ".png")).exists()  # 255 bytes: the longest name there is
