# SPDX-License-Identifier: Apache-2.0
"""Whole slides: tiles where tissue is, at the asked scale, in the memory of a tile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_unimedvl import recipe
from monai_unimedvl.transforms.slide import ReadTiles, tissue_outline

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
pytest.importorskip("openslide", reason="OpenSlide is not installed")

BUILD = '''
import sys
import numpy as np, tifffile

def block(row, column, side, scale):
    """Glass, and two patches of stained tissue whose red tells the row and blue the column."""
    rows, columns = np.meshgrid(row + np.arange(side), column + np.arange(side), indexing="ij")
    rows, columns = rows * scale, columns * scale
    glass = np.full((side, side, 3), 243, np.uint8)
    for top, left in ((SIDE // 10, SIDE // 10), (SIDE // 2, SIDE // 2)):
        inside = (rows >= top) & (rows < top + SIDE // 4) & (columns >= left) & (columns < left + SIDE // 3)
        red, blue = 150 + rows * 100 // SIDE, 100 + columns * 100 // SIDE
        glass[inside] = np.stack([red, 60 + 0 * rows, blue], -1)[inside]
    return glass

def build(path, side, tile=256):
    global SIDE
    SIDE = side
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, scale in enumerate((1, 4, 16)):
            size = -(-side // scale)
            blocks = (
                block(r, c, tile, scale) for r in range(0, size, tile) for c in range(0, size, tile)
            )
            file.write(
                blocks, shape=(size, size, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb",
                compression="zlib", subfiletype=1 if level else 0, resolution=(40000 / scale, 40000 / scale),
                resolutionunit="CENTIMETER",
            )
'''
scope: dict = {}
exec(BUILD, scope)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 x 5,000 pixels of 0.25 micrometres in three levels."""
    path = tmp_path_factory.mktemp("slides") / "case.tif"
    scope["build"](path, 5000)
    return path


def test_tiles_come_from_tissue_at_the_asked_scale(slide: Path) -> None:
    tiles = recipe("histopathology", tile=128, microns=0.5, tiles=5)(slide)
    assert len(tiles) == 5
    for index, one in enumerate(tiles):
        source = one.meta["source"]
        assert one.shape == (3, 128, 128) and source["kind"] == "slide"
        assert source["tile"]["side"] == 256 and source["tile"]["microns"] == pytest.approx(0.5)
        assert source["spacing"][:2] == pytest.approx([0.0005, 0.0005]), "mm"
        # the colours say where the tile was cut: red its row, blue its column, never swapped
        middle = [source["tile"][k] + 128 for k in ("row", "column")]
        expected = [(150 + middle[0] * 100 / 5000) / 255, 60 / 255, (100 + middle[1] * 100 / 5000) / 255]
        inside = one.as_tensor()[:, 62:66, 62:66].mean((1, 2))
        assert torch.allclose(inside, torch.tensor(expected), atol=0.02) or float(inside.mean()) > 0.9, index
        assert source["position"][0] == pytest.approx((middle[0] - 0.5) * 0.25 / 1000, abs=1e-6)
    assert [one.meta["source"]["index"] for one in tiles] == [0, 1, 2, 3, 4]


def test_every_tile_of_tissue_is_found(slide: Path) -> None:
    tiles = ReadTiles(tile=64, microns=4.0, policy="all", tissue=0.5)(slide)
    corners = {(t.meta["source"]["tile"]["row"], t.meta["source"]["tile"]["column"]) for t in tiles}
    inside = set()
    for row in range(0, 5000 - 1024 + 1, 1024):
        for column in range(0, 5000 - 1024 + 1, 1024):
            for top, left in ((500, 500), (2500, 2500)):
                down = max(0, min(row + 1024, top + 1250) - max(row, top))
                across = max(0, min(column + 1024, left + 1666) - max(column, left))
                if down * across >= 0.55 * 1024**2:
                    inside.add((row, column))
    assert inside <= corners and len(corners) <= len(inside) + 2


def test_the_outline_is_where_the_tissue_is(slide: Path) -> None:
    from monai.data.wsi_reader import WSIReader

    reader = WSIReader(backend="openslide")
    found = tissue_outline(reader, reader.read(str(slide)))
    expected = 2 * (1 / 4) * (1 / 3)
    assert float(found.float().mean()) == pytest.approx(expected, abs=0.02)


def test_glass_and_bad_slides_are_refused_with_their_name(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"case\.tif shows no tile of 2000 pixels that is 100% tissue"):
        ReadTiles(tile=500, microns=1.0, tissue=1.0)(slide)
    (tmp_path / "cut.tif").write_bytes(slide.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cut\.tif"):
        recipe("histopathology")(tmp_path / "cut.tif")
    (tmp_path / "bad.svs").write_bytes(b"no slide at all")
    with pytest.raises(ValueError, match=r"bad\.svs is no slide that OpenSlide opens"):
        recipe("histopathology")(tmp_path / "bad.svs")
    with pytest.raises(ValueError, match=r"ReadTiles got tile=4"):
        ReadTiles(tile=4)


def test_a_small_tiff_is_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "small.tif", pixels, photometric="rgb")
    (picture,) = recipe("histopathology")(tmp_path / "small.tif")
    assert np.array_equal((picture.numpy() * 255).round().astype(np.uint8), pixels.transpose(2, 0, 1))


@pytest.mark.slow
def test_a_slide_of_20_000_pixels_goes_through_within_2_gib(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    scope["build"](path, 20_000)
    code = (
        "from monai_unimedvl import recipe\n"
        f"tiles = recipe('histopathology')({str(path)!r})\n"
        "assert len(tiles) == 8 and tiles[0].shape == (3, 512, 512)\n"
        "lines = open('/proc/self/status').read().splitlines()\n"  # ru_maxrss would count our own peak too
        "print(int(next(x for x in lines if x.startswith('VmHWM')).split()[1]) / 2**20)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(said.stdout.split()[-1]) < 2.0, "GiB"
