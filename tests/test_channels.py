"""A channel of every kind of file, with a known answer for each; what has no such channel."""

from __future__ import annotations

import re
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from known_predictor import INFO, known, scene
from spatialembed.data.open import open_data
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.channels import Preferred
from spatialembed.images.checks import ImageWarning
from spatialembed.images.read import Page, read_image, read_pixels
from spatialembed.images.windows import open_large
from spatialembed.images.write import write_png
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.options import DataOptions

H, W = 37, 53
NAMES = ["DAPI", "GFP", "Cy5"]
FILES = {
    "pages": {},
    "axes": {"metadata": {"axes": "CYX"}},
    "axes and names": {"metadata": {"axes": "CYX", "Channel": {"Name": NAMES}}},
    "ImageJ": {"imagej": True, "metadata": {"axes": "CYX", "Labels": NAMES}},
    "OME": {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": NAMES}}},
    "OME tiles": {
        "ome": True, "tile": (16, 16), "compression": "zlib",
        "metadata": {"axes": "CYX", "Channel": {"Name": NAMES}},
    },
    "samples": {"planarconfig": "contig"},
    "planes": {"planarconfig": "separate"},
    "strips of samples": {"planarconfig": "contig", "rowsperstrip": 5, "compression": "zlib"},
}  # fmt: skip


def planes(count: int = 3, dtype: Any = np.uint16) -> np.ndarray:
    """(count, H, W), each with its own values."""
    return np.random.default_rng(3).integers(0, 250, (count, H, W)).astype(dtype)


def write(path: Path, pixels: np.ndarray, kind: str) -> Path:
    if FILES[kind].get("planarconfig") == "contig":
        pixels = np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(path, pixels, photometric="minisblack", **FILES[kind])
    return path


def windows(path: Path, scratch: Path, channel: Any) -> np.ndarray:
    """The image put together from windows."""
    scratch.mkdir(exist_ok=True)
    with closing(open_large(path, scratch, channel)) as image:
        assert image.channels == 1
        top, bottom = image.read(0, 9, 0, W), image.read(9, H, 0, W)
        assert top.dtype == image.dtype
        return np.concatenate((top, bottom))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_channel_of_a_tiff(kind: str, dtype: Any, tmp_path: Path) -> None:
    pixels = planes(3, dtype)
    path = write(tmp_path / "a.tif", pixels, kind)
    answers: dict[int | str, np.ndarray] = {i + 1: plane for i, plane in enumerate(pixels)}
    answers |= {"max": pixels.max(0), "sum": pixels.sum(0, dtype=np.float32), "2": pixels[1]}
    if kind in ("axes and names", "ImageJ", "OME", "OME tiles"):
        answers |= {"dapi": pixels[0], "GFP": pixels[1], " Cy5": pixels[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channel, answer in answers.items():
            found = read_image(path, channel=channel)
            assert found.dtype == answer.dtype
            np.testing.assert_array_equal(found, answer, err_msg=str(channel))
            np.testing.assert_array_equal(windows(path, tmp_path / "w", channel), answer)


@pytest.mark.parametrize("axes", ["TZCYX", "CZTYX", "ZCTYX"])
@pytest.mark.parametrize("how", ["axes", "ome", "imagej"])
def test_of_a_stack_the_first_plane_of_the_channel(axes: str, how: str, tmp_path: Path) -> None:
    if how == "imagej" and axes != "TZCYX":
        pytest.skip("the only order of ImageJ")
    size = {"T": 2, "Z": 4, "C": 3, "Y": H, "X": W}
    pixels = planes(24).reshape([size[a] for a in axes])
    how_so: dict[str, Any] = {} if how == "axes" else {how: True}
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="minisblack", metadata={"axes": axes}, **how_so
    )
    for channel in (1, 2, 3):
        at = tuple(channel - 1 if a == "C" else 0 for a in axes[:3])
        with pytest.warns(ImageWarning, match="first of 8 planes"):
            found = read_image(tmp_path / "a.tif", channel=channel)
        np.testing.assert_array_equal(found, pixels[at])
    with pytest.warns(ImageWarning, match=r"first of 24 pages.*--channel"):
        read_image(tmp_path / "a.tif")  # as before


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_colours_stay_colours_until_one_is_asked_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.moveaxis(planes(3, np.uint8), 0, -1)).save(path)
    whole = read_image(path)
    assert whole.shape == (H, W, 3)
    np.testing.assert_array_equal(read_image(path, channel="all"), whole)
    for channel, name, i in ((1, "red", 0), (2, "green", 1), (3, "Blue", 2)):
        for one in (channel, name):
            np.testing.assert_array_equal(read_image(path, channel=one), whole[..., i])
            np.testing.assert_array_equal(windows(path, tmp_path / str(one), one), whole[..., i])
    np.testing.assert_array_equal(read_image(path, channel="max"), whole.max(2))
    np.testing.assert_array_equal(read_image(path, channel="sum"), whole.sum(2))


def test_alpha_is_no_channel_and_palettes_have_colours(tmp_path: Path) -> None:
    rgba = np.moveaxis(planes(4, np.uint8), 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(rgba[..., 0]).convert("P").save(tmp_path / "p.tif")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif", channel="max"), rgba[..., :3].max(2)
    )
    with pytest.raises(SpatialEmbedError, match="it has 3 channels: 1 red, 2 green, 3 blue"):
        read_image(tmp_path / "a.tif", channel=4)
    whole = read_image(tmp_path / "p.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif", channel=2), whole[..., 1])


def test_a_channel_is_turned_upright_and_white_is_white(tmp_path: Path) -> None:
    pixels = planes(2, np.uint8)
    tag = [(0x0112, "H", 1, 6, False)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite", extratags=tag)
    with pytest.warns(ImageWarning, match="upright"):
        found = read_image(tmp_path / "a.tif", channel=2)
    np.testing.assert_array_equal(found, np.rot90(255 - pixels[1], -1))


def test_a_named_page_has_its_own_samples(tmp_path: Path) -> None:
    pixels = planes(6, np.uint8).reshape(2, 3, H, W).transpose(0, 2, 3, 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    found = read_image(Page(tmp_path / "a.tif", 1), channel="green")
    np.testing.assert_array_equal(found, pixels[1, ..., 1])


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx"])
def test_zarr(names: list[str] | None, axes: str, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    pixels = planes(4 if names is None else 3)
    array = {
        "cyx": pixels, "yxc": np.moveaxis(pixels, 0, -1), "tczyx": pixels[None, :, None],
    }[axes]  # fmt: skip
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("0", data=array, chunks=tuple(min(n, 16) for n in array.shape))
    scales = [{"axes": [{"name": a} for a in axes], "datasets": [{"path": "0"}]}]
    omero = {"channels": [{"label": name} for name in names or []]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": scales, "omero": omero}
    for channel in range(1, len(pixels) + 1):
        found = windows(tmp_path / "a.zarr", tmp_path, channel)
        np.testing.assert_array_equal(found, pixels[channel - 1])
    np.testing.assert_array_equal(windows(tmp_path / "a.zarr", tmp_path, "max"), pixels.max(0))
    total = windows(tmp_path / "a.zarr", tmp_path, "sum")
    np.testing.assert_array_equal(total, pixels.sum(0, dtype=np.float32))
    if names:
        found = windows(tmp_path / "a.zarr", tmp_path, "gfp")
        np.testing.assert_array_equal(found, pixels[1])
        with pytest.raises(SpatialEmbedError, match="1 DAPI, 2 GFP, 3 Cy5"):
            open_large(tmp_path / "a.zarr", tmp_path, "mCherry")
    else:
        with pytest.raises(SpatialEmbedError, match=r"bad_channels.*4 channels: 1, 2, 3, 4"):
            open_large(tmp_path / "a.zarr", tmp_path)


@pytest.mark.parametrize("kind", ["OME", "ImageJ", "axes and names"])
def test_unknown_names_are_refused_with_those_that_there_are(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", planes(), kind)
    for channel in ("mCherry", 4, 99999999999999):
        for read in (
            lambda c: read_image(path, channel=c),
            lambda c: open_large(path, tmp_path, c),
        ):
            with pytest.raises(SpatialEmbedError) as caught:
                read(channel)
            assert caught.value.code == "no_channel"
            assert "1 DAPI, 2 GFP, 3 Cy5; or max or sum" in caught.value.remedy


@pytest.mark.parametrize("channel", [0, -1, "", " ", "0", "--1", "-" + "9" * 5000])
def test_channels_that_no_image_has(channel: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", planes(), "pages")
    with pytest.raises(SpatialEmbedError, match="bad_setting: channel is"):
        read_image(path, channel=channel)


def test_the_remedy_for_five_samples_names_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", planes(5), "samples")
    with pytest.raises(SpatialEmbedError, match=r"5 channels \(choose one with --channel: 1 to 5"):
        read_image(path)


def test_the_channel_of_a_model_is_taken_where_there_is_one(tmp_path: Path) -> None:
    pixels = planes()
    path = write(tmp_path / "a.tif", pixels, "OME")
    np.testing.assert_array_equal(read_image(path, channel=Preferred("GFP")), pixels[1])
    write_png(tmp_path / "grey.png", pixels[0])
    for channel in ("GFP", "2"):
        found = read_image(tmp_path / "grey.png", channel=Preferred(channel))
        np.testing.assert_array_equal(found, pixels[0])
    with pytest.raises(SpatialEmbedError, match="it has one channel"):
        read_image(tmp_path / "grey.png", channel=2)


def test_arrays_and_pictures(tmp_path: Path) -> None:
    pixels = np.moveaxis(planes(5), 0, -1)
    np.testing.assert_array_equal(read_pixels(pixels, channel=5), pixels[..., 4])
    np.testing.assert_array_equal(read_pixels(pixels, channel="max"), pixels.max(2))
    np.testing.assert_array_equal(read_pixels(pixels[..., 0], channel=3), pixels[..., 0])
    with pytest.raises(SpatialEmbedError, match="bad_channels"):
        read_pixels(pixels)
    picture = Image.fromarray(pixels[..., :3].astype(np.uint8))
    np.testing.assert_array_equal(read_pixels(picture, channel="red"), pixels[..., 0])


def test_data_sets_read_the_channel(tmp_path: Path) -> None:
    pixels = planes()
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "images" / "a.tif", pixels, "OME")
    mask = np.zeros((H, W), np.uint16)
    mask[3:9, 3:9] = 1
    write_png(tmp_path / "masks" / "a.png", mask)
    dataset = open_data(tmp_path, reading=DataOptions(channel="Cy5"))
    np.testing.assert_array_equal(dataset[0].image, pixels[2])


@pytest.mark.parametrize(
    "xml",
    [
        '<Pixels SizeC="999999999" SizeZ="1" SizeT="1"></Pixels>',
        '<Pixels SizeC="-3" SizeZ="1" SizeT="1"></Pixels>',
        '<Pixels SizeC="0" SizeZ="0" SizeT="0"></Pixels>',
        '<Pixels DimensionOrder="XYCCC" SizeC="3" SizeZ="1" SizeT="1"></Pixels>',
        "<Pixels></Pixels>" + "<Channel" * 999,
    ],
)
def test_foolish_descriptions_count_for_nothing(xml: str, tmp_path: Path) -> None:
    pixels, path = planes(), tmp_path / "a.tif"
    ome = f'<?xml version="1.0"?><OME xmlns="x">{xml}</OME>'
    with tifffile.TiffWriter(path) as writer:
        for i, plane in enumerate(pixels):
            writer.write(plane, description=ome if i == 0 else None, metadata=None)
    np.testing.assert_array_equal(read_image(path, channel=2), pixels[1])


def ome_by_blocks(path: Path, blocks: str, pixels: np.ndarray) -> Path:
    """Two channels of three planes, said to be in the order of CZT; where they lie by TiffData."""
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        f'SizeX="{W}" SizeY="{H}" SizeC="2" SizeZ="3" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1" Name="a"/>'
        f'<Channel ID="Channel:0:1" SamplesPerPixel="1" Name="b"/>{blocks}</Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(path) as writer:
        for i, plane in enumerate(pixels):
            writer.write(plane, description=ome if i == 0 else None, metadata=None)
    return path


@pytest.mark.parametrize("kind", ["each", "several", "all"])
def test_ome_planes_where_tiffdata_says(kind: str, tmp_path: Path) -> None:
    """As tifffile's own series has them; the pages go by Z first, unlike DimensionOrder."""
    blocks = {
        "each": "".join(
            f'<TiffData FirstC="{c}" FirstZ="{z}" FirstT="0" IFD="{3 * c + z}" PlaneCount="1"/>'
            for c in range(2) for z in range(3)
        ),
        "several": '<TiffData FirstZ="1" IFD="0" PlaneCount="4"/>'
                   '<TiffData IFD="4" PlaneCount="2"/>',
        "all": "<TiffData/>",
    }[kind]  # fmt: skip
    path = ome_by_blocks(tmp_path / "a.tif", blocks, planes(6))
    with tifffile.TiffFile(path) as tiff:
        truth = tiff.series[0].asarray()  # ZCYX
        assert tiff.series[0].axes == "ZCYX"
    for c, name in enumerate("ab"):
        np.testing.assert_array_equal(read_image(path, channel=name), truth[0, c])


def test_ome_planes_of_another_file_are_refused(tmp_path: Path) -> None:
    """Its page of that number holds another image."""
    blocks = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="{z}" PlaneCount="1">'
        f'<UUID FileName="{c}.tif">urn:uuid:{c + 1}</UUID></TiffData>'
        for c in range(2) for z in range(3)
    )  # fmt: skip
    path = ome_by_blocks(tmp_path / "a.tif", blocks, planes(3))
    with pytest.raises(SpatialEmbedError, match="6 images stored as 3 pages"):
        read_image(path, channel="b")


@pytest.mark.parametrize("text", ["<Pixels>", "<Pixels ", "<Pixels a", "a", '<Pixels a="', "<<a:"])
def test_endless_descriptions_take_no_time(text: str, tmp_path: Path) -> None:
    """Each took minutes when an expression looked at the rest of the text from every place."""
    start = '<?xml version="1.0"?><OME xmlns="x"><Pixels SizeC="3" SizeZ="1" SizeT="1" '
    for body in (text * 100_000, start + text * 100_000 + "></Pixels>"):
        pixels = planes(3)
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for i, plane in enumerate(pixels):
                ome = f'<?xml version="1.0"?><OME>{body}</OME>' if i == 0 else None
                writer.write(plane, description=ome, metadata=None)
        found = read_image(tmp_path / "a.tif", channel=2)
        np.testing.assert_array_equal(found, pixels[1])


def test_fewer_pages_than_said(tmp_path: Path) -> None:
    pixels, path = planes(2), tmp_path / "a.tif"
    ome = '<OME xmlns="x"><Pixels SizeC="4" SizeZ="1" SizeT="1"></Pixels></OME>'
    with tifffile.TiffWriter(path) as writer:
        for i, plane in enumerate(pixels):
            writer.write(plane, description=ome if i == 0 else None, metadata=None)
    with pytest.raises(SpatialEmbedError, match=re.escape("4 images stored as 2 pages")):
        read_image(path, channel=1)


def squares(channel: int) -> np.ndarray:
    """(3, 32, 40) uint8: the scene of the known predictor in one channel, noise in the others."""
    pixels = np.random.default_rng(0).integers(0, 9, (3, 32, 40)).astype(np.uint8)
    pixels[channel] = scene(0)
    return pixels


def test_prediction_reads_the_channel_whole_and_by_tiles(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.tif", squares(1), "axes")
    group = zarr.create_group(tmp_path / "in" / "b.zarr")
    group.create_array("0", data=squares(1), chunks=(1, 16, 16))
    group.attrs["multiscales"] = [{"axes": list("cyx"), "datasets": [{"path": "0"}]}]
    predictor = known()
    predictor.channel = 2
    result = predict_folder(predictor, [tmp_path / "in/a.tif"], tmp_path / "out", progress=False)
    assert (result.images, result.objects, result.failed) == (1, 3, [])
    predictor.channel = 4
    predictor.engine.name, predictor.engine.precision = "known", "float32"  # type: ignore[misc]
    result = predict_folder(predictor, [tmp_path / "in"], tmp_path / "out2", progress=False)
    assert [error.code for _, error in result.failed] == ["no_channel"] * 2


def test_a_model_knows_its_channel(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", squares(2), "axes")
    info = replace(INFO, training={"channel": 3})
    assert len(known(info)(tmp_path / "a.tif")) == 3
    assert len(known(info)(scene(0))) == 3  # one channel: that is it
    other = known(info)
    other.channel = "all"
    with pytest.warns(ImageWarning, match="the first of 3 pages"):
        assert len(other(tmp_path / "a.tif")) != 3


@pytest.mark.slow
def test_training_writes_the_channel_into_the_model(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from spatialembed.command.main import main
    from spatialembed.inference.model_file import load

    (tmp_path / "d" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        pixels = np.zeros((3, 32, 40), np.uint8) + squares(1)
        tifffile.imwrite(
            tmp_path / "d" / "images" / f"{name}.tif",
            pixels,
            photometric="minisblack",
            metadata={"axes": "CYX", "Channel": {"Name": [name, "cell", "x"]}},
        )
        mask = np.unique(scene(0), return_inverse=True)[1].reshape(32, 40).astype(np.uint16)
        write_png(tmp_path / "d" / "masks" / f"{name}.png", mask)
    words = "--stage1.epochs 1 --stage1.crops 2 --stage1.crop 32 --stage1.batch 2 --workers 0"
    words += " --network lite --device cpu --channel cell --val-fraction 0.5"
    out, data = str(tmp_path / "runs"), str(tmp_path / "d")
    assert main(["train", "--data", data, "--out", out, "--name", "r", *words.split()]) == 0
    model = tmp_path / "runs" / "r" / "model"
    assert load(model)[1].channel == "cell"
    words = f"evaluate --model {model} --data {data} --split all --out {tmp_path / 'e'}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)  # no first page is taken
        main(words.split())
