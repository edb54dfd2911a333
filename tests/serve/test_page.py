# SPDX-License-Identifier: Apache-2.0
"""The panel in a real browser: by keyboard and mouse, at two widths, without an error on its console."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from serve_support import png, running

from monai_unimedvl import provenance
from monai_unimedvl.bundle import load
from monai_unimedvl.serve import Service, application
from monai_unimedvl.serve.studies import Studies

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "correct-horse-battery"
SLOW = 120_000  # ms: a browser that draws WebGL on a busy CPU takes its time


def head() -> nibabel.Nifti1Image:
    """A head of ellipsoids: skin, skull, brain and two ventricles, 2.5 mm a voxel, in tones of T1."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 76, 60)), indexing="ij"))

    def inside(*radii: float, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
        parts = [(axis - m) / r for axis, m, r in zip(place, at, radii, strict=True)]
        return sum(part**2 for part in parts) < 1

    values = np.zeros(place.shape[1:], np.int16)
    for tone, shape in (
        (300, inside(0.95, 0.95, 0.95)), (60, inside(0.88, 0.88, 0.88)), (420, inside(0.8, 0.8, 0.8)),
        (620, inside(0.6, 0.6, 0.6)), (120, inside(0.12, 0.3, 0.2, at=(0.16, 0.0, 0.0))),
        (120, inside(0.12, 0.3, 0.2, at=(-0.16, 0.0, 0.0))),
    ):  # fmt: skip
        values[shape] = tone
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = -2.5 * np.array(values.shape) / 2
    return nibabel.Nifti1Image(values, affine)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as tools:
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=options, timeout=SLOW)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The nano model behind two servers, the second with a key."""
    path = tmp_path_factory.mktemp("samples") / "head.nii.gz"
    nibabel.save(head(), path)
    network, tokenizer = load("unimedvl_nano")
    open_, locked = (Service(network, tokenizer, name="nano", digest="0" * 64) for _ in range(2))
    samples = {"A head": (path, "mri")}
    with running(application(open_, samples=samples)) as one:
        with running(application(locked, samples=samples, key=KEY, hosts=None)) as two:
            yield one, two


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page of 1280 x 900 that remembers its errors and every address it asked for."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.errors, page.asked = [], []
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


def pixels(page: Any) -> np.ndarray:
    """What the viewer shows: (H, W, 3) of integers."""
    shot = page.locator("#canvas").screenshot(timeout=SLOW)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def coloured(shown: np.ndarray) -> int:
    """How many pixels are no grey."""
    return int((shown.max(-1) - shown.min(-1) > 40).sum())


def opened(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_label("Samples").select_option(label="A head")
    page.locator("#planes").wait_for()


def fits(page: Any) -> bool:
    """Whether nothing sticks out to the right."""
    return page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")


def test_a_user_opens_a_volume_scrolls_asks_segments_and_takes_the_mask_along(page, nano, tmp_path):
    url, _ = nano
    opened(page, url)
    before = pixels(page)
    assert (before.max(-1) > 60).mean() > 0.1, "the volume does not show"
    assert coloured(before) == 0
    assert page.locator("#where").inner_text().startswith("31 of 60")

    page.get_by_label("Slice", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text().startswith("34 of 60")
    page.get_by_role("radio", name="Axial").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Coronal").get_attribute("aria-checked") == "true"
    assert "39 of 76" in page.locator("#where").inner_text()
    page.get_by_role("radio", name="Axial").click()
    assert "34 of 60" in page.locator("#where").inner_text()

    page.get_by_label("Question about this slice").fill("Which plane is this?")
    page.keyboard.press("Enter")
    answer = page.locator(".result").first
    answer.wait_for()
    assert answer.locator(".answer").inner_text() in ("axial", "coronal", "sagittal")
    assert "axial slice 34 of 60" in answer.inner_text()

    page.get_by_role("tab", name="Ask").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Segment this slice").click()
    page.locator("#overlay").wait_for()
    shown = pixels(page)
    assert coloured(shown) > 500, "the overlay does not show"
    assert page.locator("#legend li").count() >= 3
    page.get_by_role("button", name="Hide").click()
    page.get_by_role("button", name="Show", exact=True).wait_for()
    assert coloured(pixels(page)) == 0

    with page.expect_download() as started:
        page.locator(".result").first.get_by_role("button", name="Download").click()
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    assert path.name == "unimedvl-mask.nii.gz"
    assert provenance.read_mark(path)["task"] == "seg-tissue"
    labels = np.asarray(nibabel.load(path).dataobj)
    assert labels.shape == (64, 76, 60) and labels[..., 33].any() and not labels[..., :33].any()

    for width in (1280, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert fits(page), f"something sticks out at {width} pixels"
    assert page.errors == []
    assert all(one.startswith((url, "blob:", "data:")) for one in page.asked)


def test_a_file_of_ones_own_is_edited_and_its_name_stays_here(page, nano, tmp_path, monkeypatch):
    url, _ = nano
    named: list[str] = []
    take = Studies.take

    def spy(self: Studies, files: Any, modality: str | None) -> Any:
        named.extend(name for name, _ in files)
        return take(self, files, modality)

    monkeypatch.setattr(Studies, "take", spy)
    page.goto(url)
    mine = tmp_path / "Doe^Jane.png"
    mine.write_bytes(png(size=(96, 64)))
    page.locator("#file").set_input_files(mine)
    page.get_by_text("Your picture (96 × 64)").wait_for()
    assert named == ["image0.png"]
    assert coloured(pixels(page)) > 500
    assert page.locator("#planes").is_hidden() and page.locator("#slices").is_hidden()
    page.get_by_role("tab", name="Edit").click()
    page.get_by_role("button", name="Edit").click()
    picture = page.locator(".result img")
    picture.wait_for()
    assert picture.get_attribute("alt").startswith("Synthetic image")
    assert page.errors == []


def test_a_file_that_is_no_image_is_told_and_what_was_open_stays(page, nano, tmp_path):
    opened(page, nano[0])
    (tmp_path / "notes.png").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "notes.png")
    page.get_by_role("alert").wait_for()
    assert "no image that can be read" in page.get_by_role("alert").inner_text()
    assert page.get_by_role("button", name="Ask").is_enabled()
    assert (pixels(page).max(-1) > 60).mean() > 0.1
    assert [one for one in page.errors if "400" not in one] == []  # the browser itself notes the refusal


def test_a_server_with_a_key_asks_for_it_once(page, nano):
    _, url = nano
    page.goto(url)
    page.get_by_label("Key", exact=True).fill("wrong-key-first")
    page.keyboard.press("Enter")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_label("Samples").select_option(label="A head")
    page.locator("#planes").wait_for()
    assert (pixels(page).max(-1) > 60).mean() > 0.1
    assert [one for one in page.errors if "401" not in one] == []


def test_every_control_has_a_name(page, nano):
    page.goto(nano[0])
    nameless = page.evaluate("""
        [...document.querySelectorAll('button, input, select, textarea, canvas, progress')].filter((one) =>
            !one.hidden && !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim())
            .map((one) => one.outerHTML)
    """)
    assert nameless == []
