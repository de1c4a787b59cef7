"""The console: one page of the package, under a Content-Security-Policy that allows nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

console = APIRouter(include_in_schema=False)


@lru_cache(maxsize=1)
def page() -> tuple[str, str]:
    """Return the page and its policy, which names its script and style by their hashes."""
    text = resources.files("vqdistill.server").joinpath("console.html").read_text(encoding="utf-8")
    allowed = {
        tag: " ".join(f"'sha256-{_hash(part)}'" for part in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL))
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@console.get("/")
async def show_console() -> HTMLResponse:
    """Return the page."""
    text, policy = page()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return HTMLResponse(text, headers=headers)
