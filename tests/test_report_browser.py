"""report.html in a headless browser: no error, no request, no page that scrolls sideways."""

import chromium
import pytest
from report_runs import class_names, finished, label_sets_of, predictions_of, started, write_photos
from test_report import ODD

import bitfast

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="no Chromium here (apt install chromium)")


@pytest.fixture(scope="module")
def browser():
    browser = chromium.Chromium()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    photos = write_photos(root / "photos", [f"{i}.png" for i in range(30)])
    odd_photos = write_photos(root / "odd photos", ["<img src=x onerror=alert(1)>.png", "x" * 200 + ".png"])
    unvalidated = started(root / "unvalidated")
    bitfast.Run(unvalidated.path).report()
    return {
        "40 classes": finished(root / "forty", predictions_of(40, 300), class_names(40), photos),
        "3000 classes": finished(root / "many", predictions_of(3000, 400), class_names(3000), photos),
        "odd names": finished(root / "odd #1 %41 run", predictions_of(6, 60), ODD, odd_photos),
        "multi-label": finished(root / "labels", label_sets_of(6, 80), class_names(6), photos),
        "no validation": unvalidated,
    }


@pytest.mark.parametrize("page", ["40 classes", "3000 classes", "odd names", "multi-label", "no validation"])
@pytest.mark.parametrize("width, dark", [(1280, False), (375, True)])
def test_shown_without_errors_or_requests(browser, pages, page, width, dark):
    url = pages[page].report_html.as_uri()
    browser.open(url, width, dark=dark)
    assert browser.requests == [url] and browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    small = "[...document.querySelectorAll('text')].filter(t => t.getBoundingClientRect().height < 9).length"
    assert browser.evaluate(small) == 0, "text in a chart is too small to read"


def test_the_browser_sees_faults(browser, tmp_path):
    """The test of the test: a request, a script error and a blocked picture are seen."""
    bad = tmp_path / "bad.html"
    bad.write_text("<p>x</p><script>missing()</script><img src='http://127.0.0.1:9/x.png'><img src='gone.png'>")
    browser.open(bad.as_uri())
    assert len(browser.requests) == 3 and "missing is not defined" in "".join(browser.complaints)


def contrast(browser):
    """The lowest contrast of text with what is behind it, by WCAG's formula, over all elements that hold text."""
    return browser.evaluate(
        """(() => {
          const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
          const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                                   return [...canvas.getImageData(0, 0, 1, 1).data]; };
          const light = c => { const [r, g, b] = c.map(v => v / 255)
                                 .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                               return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
                                  if (c[3] == 255) return c; } return [255, 255, 255, 255]; };
          let lowest = 21;
          for (const e of document.querySelectorAll("body *")) {
            if (![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())) continue;
            const svg = e instanceof SVGElement, style = getComputedStyle(e);
            const [a, b] = [rgba(svg ? style.fill : style.color), behind(e)].map(c => light(c.slice(0, 3)));
            lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
          }
          return lowest; })()"""
    )


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(browser, pages, dark):
    """At least the 4.5 that WCAG's level AA asks of small text, everywhere."""
    browser.open(pages["40 classes"].report_html.as_uri(), dark=dark)
    assert contrast(browser) >= 4.5
