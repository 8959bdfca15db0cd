import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffgradcam.visualize.report import Heat, Thumbnail, html_report

HOSTILE = '"><script>alert(1)</script>&<img src=x onerror=alert(2)>.jpg'
RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def plain(colour, size=16):
    return np.full((size, size, 3), colour, np.uint8)


def report(names=("first.jpg", HOSTILE)):
    heats = [
        Heat("GradCAM", "most likely class", plain(RED), "cat, 90%"),
        Heat("GradCAM", "second class", plain(GREEN), "dog, 5%"),
        Heat("DiffGradCAM", "most likely class", plain(BLUE), "<cat>, 90%"),
    ]
    thumbnails = [Thumbnail(name, plain((255, 255, 255), 64), heats, ["turned upright"]) for name in names]
    return html_report("A <title>", thumbnails, facts={"model": "<m>"}, failed={"<bad>.jpg": "no image"})


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, _tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text.append(data)

    def of(self, tag, **wanted):
        return [attrs for name, attrs in self.tags if name == tag and wanted.items() <= attrs.items()]


def test_what_is_given_is_there_and_escaped():
    page = Page(report())
    assert [attrs["alt"] for attrs in page.of("img", **{"class": "photo"})] == ["first.jpg", HOSTILE]
    for text in ("first.jpg", HOSTILE, "A <title>", "<m>", "<bad>.jpg", "no image", "turned upright", "<cat>, 90%"):
        assert text in page.text
    assert len(page.of("script")) == 1  # its own
    assert not any("onerror" in attrs for _, attrs in page.tags)


def test_the_switches_offer_what_occurs_and_the_first_map_is_shown():
    text = report(["one.jpg"])
    options = re.findall(r"<option>(.*?)</option>", text)
    assert options == ["GradCAM", "DiffGradCAM", "most likely class", "second class"]
    page = Page(text)
    heats = page.of("img", **{"class": "heat"})
    assert [(each["data-method"], each["data-choice"], "hidden" in each) for each in heats] == [
        ("GradCAM", "most likely class", False),
        ("GradCAM", "second class", True),
        ("DiffGradCAM", "most likely class", True),
    ]
    (slider,) = page.of("input", type="range")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "100", "50")


def test_the_pictures_are_inside_and_nothing_else_is_loaded():
    page = Page(report(["one.jpg"]))
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 4
    colours = []
    for source in sources:
        kind, _, data = source.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        colours.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((3, 3)))
    assert colours == [(255, 255, 255), RED, GREEN, BLUE]
    assert not any("href" in attrs or "srcset" in attrs for _, attrs in page.tags)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", report(["one.jpg"]))
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_a_name_that_utf8_cannot_write_is_replaced():
    page = report(["caf\udce9.jpg"])
    assert "caf?.jpg" in page
    assert page.encode("utf-8")


def test_a_report_without_images_says_what_failed():
    page = Page(html_report("Empty", [], failed={"a.jpg": "truncated"}))
    assert "a.jpg" in page.text
    assert "truncated" in page.text
    assert not page.of("figure")


def test_a_picture_of_floats_is_refused():
    with pytest.raises(TypeError, match=r"a picture is float64 of shape \(4, 4, 3\); expected uint8, \(H, W, 3\)"):
        html_report("x", [Thumbnail("a", np.zeros((4, 4, 3)), [])])


def test_the_page_works_in_a_browser_without_a_network(chromium, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(report(), encoding="utf-8")
    context = chromium.new_context(offline=True, viewport={"width": 600, "height": 700})
    page = context.new_page()
    problems, requests = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("dialog", lambda dialog: (problems.append("dialog " + dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())

    def colour():
        picture = Image.open(io.BytesIO(page.locator(".stack").first.screenshot()))
        return picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))

    def near(wanted):
        return all(abs(a - b) <= 3 for a, b in zip(colour(), wanted, strict=True))

    assert near((255, 128, 128))  # red, half of it, on white
    page.select_option("#choice", label="second class")
    assert near((128, 255, 128))
    assert page.locator("figcaption").first.inner_text().split("\n")[1] == "dog, 5%"
    page.select_option("#method", label="DiffGradCAM")
    assert near((255, 255, 255))  # this method has no second class
    page.select_option("#choice", label="most likely class")
    page.locator("#opacity").fill("100")
    assert near((0, 0, 255))
    assert page.locator("#share").inner_text() == "100%"
    page.locator("#opacity").fill("0")
    assert near((255, 255, 255))
    assert page.locator(".name").nth(1).inner_text() == HOSTILE
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    context.close()
