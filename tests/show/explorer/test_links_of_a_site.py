"""Every page of a small site, by its own links: none is dead, none fails."""

import posixpath
import re
from collections import deque
from html import unescape
from urllib.parse import urlsplit

import explorer_results
import explorer_sites
import pytest

from devinterp_func.show import explorer

testclient = pytest.importorskip("starlette.testclient")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LINK = re.compile(r'<(?:a|link|script)\b[^>]*\s(?:href|src)="([^"#]+)"')
EACH = 12  # pages of a kind that are followed


@pytest.mark.parametrize("made", [explorer_results.site, explorer_sites.site_of_numbers], ids=["text", "numbers"])
def test_no_link_is_dead(made, tmp_path_factory):
    site = made(tmp_path_factory.getbasetemp())
    client = testclient.TestClient(explorer.app(site), base_url="http://127.0.0.1:8000")
    queue, seen = deque(["run.html"]), {"run.html"}
    of_kind: dict[str, int] = {}
    while queue:
        address = queue.popleft()
        answer = client.get(f"/{address}")
        assert answer.status_code == 200, address
        for href in map(unescape, LINK.findall(answer.text) if "html" in answer.headers["content-type"] else ()):
            parts = urlsplit(href)
            if parts.scheme:
                assert parts.scheme in ("https", "data")
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(address.partition("?")[0]), parts.path))
            target += f"?{parts.query}" if parts.query else ""
            kind = target.partition("?")[0].partition("/")[0] + ("?" if parts.query else "")
            if target not in seen and of_kind.setdefault(kind, 0) < EACH:
                of_kind[kind] += 1
                seen.add(target)
                queue.append(target)
    assert len(seen) > 60
