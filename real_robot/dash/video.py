"""Camera pictures for the operator's page, on a port of their own, encoded in threads of their own.

What is special: browsers open at most six connections to a host and port, and a film holds one for ever. Films on the
e-stop's port would make a press wait in the browser's own queue, where no server could help it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from real_robot.cameras.frames import Camera

QUALITY = 80
MAX_VIEWERS = 16
_BOUNDARY = "frame"


class Film:
    """One camera's newest picture as JPEG, encoded once for all viewers."""

    def __init__(self, camera: Camera) -> None:
        self._camera, self._lock = camera, threading.Lock()
        self._seq, self._jpeg = -1, b""

    @property
    def rate_hz(self) -> float:
        return self._camera.spec.rate_hz

    def newest(self) -> tuple[int, bytes]:
        """Frame number and JPEG; -1 before the first frame."""
        with self._lock:
            frame = self._camera.latest()
            if frame is not None and frame.seq != self._seq:
                _, data = cv2.imencode(".jpg", frame.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
                self._seq, self._jpeg = frame.seq, data.tobytes()
            return self._seq, self._jpeg


def video_app(cameras: Mapping[str, Camera], admits: Callable[[Request], bool]) -> Starlette:
    """GET /video/<camera>: MJPEG without end, for whom `admits` lets in."""
    films = {name: Film(camera) for name, camera in cameras.items()}
    threads = ThreadPoolExecutor(2, "video")
    viewers: set[object] = set()

    async def video(request: Request) -> Response:
        film = films.get(request.path_params["camera"])
        if not admits(request):
            return PlainTextResponse("log in first\n", 401)
        if film is None:
            return PlainTextResponse("no such camera\n", 404)
        if len(viewers) >= MAX_VIEWERS:
            return PlainTextResponse(f"{MAX_VIEWERS} viewers already\n", 503)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(
            frames(film), media_type=f"multipart/x-mixed-replace; boundary={_BOUNDARY}", headers=headers
        )

    async def frames(film: Film) -> AsyncIterator[bytes]:
        viewer, seen = object(), -1
        viewers.add(viewer)
        try:
            while True:
                seq, jpeg = await asyncio.get_running_loop().run_in_executor(threads, film.newest)
                if seq != seen:
                    seen = seq
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    yield head.encode() + jpeg + b"\r\n"
                await asyncio.sleep(0.5 / film.rate_hz)
        finally:
            viewers.discard(viewer)

    return Starlette(routes=[Route("/video/{camera}", video)])
