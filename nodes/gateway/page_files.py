"""The page at `/`: plain files of the package, which take nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_INDEX: Final = "index.html"
# Only what came from this gateway runs in the page, and it is asked for nothing but this gateway.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page:
    """Its files by the path they are asked for at; anybody who may come in may have them."""

    def __init__(self) -> None:
        folder = files(__package__).joinpath("page")
        self._files: Mapping[str, bytes] = {
            "/" if one.name == _INDEX else f"/{one.name}": one.read_bytes()
            for one in folder.iterdir()
        }
        self.paths = frozenset(self._files)

    def routes(self) -> list[Route]:
        """One a file."""
        return [Route(path, self._answer) for path in sorted(self._files)]

    async def _answer(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        kind = _TYPES[(_INDEX if path == "/" else path).rpartition(".")[2]]
        return Response(self._files[path], media_type=kind, headers=_HEADERS)
