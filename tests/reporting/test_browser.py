"""Pages in a real browser: laid out at three widths, printed, without a complaint and fast."""

from pathlib import Path

import pytest

from chromium import PROGRAM, browser
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import Rounding
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.reporting.audit_page import audit_page
from lmcleaner.reporting.log_page import log_page
from tiny_runs import record_tiny, unlearn_tiny

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")]
WIDTHS = (360, 800, 1280)


@pytest.fixture(scope="module")
def pages(base_model: Path, long_log: TrainingLog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = record_tiny(base_model, folder, num_forget=6)
    unlearn_tiny(run, folder / "out", "GGN", K=2, oracle=True)
    options = AuditOptions(evaluate="log", deploy=(Rounding.INT8,), stress=True)
    report = audit_model(folder / "out", run.log, options)
    content = {
        "audit": audit_page(report, folder / "out", str(run.log), show_text=True),
        "log": log_page(long_log),
    }
    for name, page in content.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in content}


@pytest.mark.parametrize("name", ["audit", "log"])
def test_a_browser_shows_it_without_a_complaint(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    with browser() as opened:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                seconds = opened.show(pages[name], width, scheme=scheme)
                assert 0 < seconds < 2
                assert opened.value("document.documentElement.scrollWidth") <= width
                assert opened.value("document.querySelectorAll('svg[role=img]').length") > 1
                assert opened.screenshot(tmp_path / f"{name}-{width}-{scheme}.png").stat().st_size > 10_000
        ground = "getComputedStyle(document.body).backgroundColor"
        assert opened.value(ground) == "rgb(20, 23, 26)"
        assert opened.print(tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert opened.complaints == []


def test_it_would_complain(pages: dict[str, Path], tmp_path: Path) -> None:
    """What the test above looks for is seen where it is there, and the page's policy stops what slips in."""
    slipped = '<script>document.body.remove()</script><img src="http://127.0.0.1:9/x.png">'
    bad = tmp_path / "bad.html"
    bad.write_text(pages["audit"].read_text(encoding="utf-8").replace("</main>", f"{slipped}</main>"), encoding="utf-8")
    with browser() as opened:
        opened.show(bad, 800)
        assert opened.value("document.body !== null")
        assert any("Content Security Policy" in complaint for complaint in opened.complaints)
