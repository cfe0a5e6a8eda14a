"""GET /: the playground, one self-contained page that may load nothing and talk to nobody but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter()


@router.get("/", include_in_schema=False)
def playground() -> Response:
    """The page. Its own calls need a key where the gateway has keys; the page itself needs none."""
    page, headers = _page()
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


@cache
def _page() -> tuple[str, dict[str, str]]:
    page = files("slm_guardian.serve").joinpath("playground.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(page, 'script')}; style-src {_hash(page, 'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(page: str, tag: str) -> str:
    """The CSP source of the page's one inline element of this kind."""
    (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
