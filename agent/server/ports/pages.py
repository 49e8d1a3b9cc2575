"""What a browser gets instead of a workspace's answer."""

from __future__ import annotations

from html import escape
from typing import Final

from aiohttp import hdrs, web

RETRY: Final = 2
"""Seconds after which a page that waits for something looks again."""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": "workspace-agent",
}
_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}"
)


def page(
    request: web.Request, status: int, title: str, text: str, *, link: str = "", retry: bool = False
) -> web.Response:
    """For people a page, for programs the same as plain text. `retry`: it looks again by itself, and programs may."""
    headers: dict[str, str] = dict(_HEADERS)
    if retry:
        headers[hdrs.RETRY_AFTER] = str(RETRY)
    if "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
        plain = "\n".join(filter(None, (f"{title}. {text}", link)))
        return web.Response(status=status, text=f"{plain}\n", headers=headers)
    again = f'<meta http-equiv="refresh" content="{RETRY}">' if retry and request.method == "GET" else ""
    way = f'<p><a href="{escape(link)}">Go to the agent</a></p>' if link else ""
    content = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{escape(text)}</p>{way}</body></html>\n"
    )
    return web.Response(status=status, text=content, content_type="text/html", headers=headers)
