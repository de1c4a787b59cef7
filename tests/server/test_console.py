"""The console needs nothing from elsewhere, and works under its own policy in a real browser."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.support import Local, process

ROOT = Path(__file__).parent.parent.parent
MODULES = Path(os.environ.get("NODE_MODULES", ROOT / "build" / "page" / "node_modules"))
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def test_the_policy_allows_this_page_and_nothing_else(local: Local) -> None:
    answer = local.ask("GET", "/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'" and policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_holds_all_that_it_needs(local: Local) -> None:
    text = local.ask("GET", "/").text
    assert not re.search(r"(https?:)?//\w", text)
    assert not re.search(r"\s(style|on\w+)=", text)
    assert 'lang="en"' in text and "innerHTML" not in text
    assert set(re.findall(r'<label for="(\w+)"', text)) == set(
        re.findall(r'<(?:input|select|textarea) id="(\w+)"', text)
    )


@pytest.mark.skipif(
    not (shutil.which("node") and os.path.exists(CHROMIUM) and (MODULES / "playwright-core").is_dir()),
    reason="needs node, chromium and playwright-core: make console-check",
)
def test_the_console_in_a_browser(shelf: dict[str, Path]) -> None:
    with process(*shelf.values()) as server:
        done = subprocess.run(
            ["node", str(ROOT / "bench" / "check_console.mjs"), server.url, "rows", "17"],
            env=os.environ | {"NODE_MODULES": str(MODULES)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
