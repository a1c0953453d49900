"""A real RTSP server: a stream that comes, dies and returns."""

import shutil
import socket
import subprocess
import time

import pytest

from vision.live.sources import CaptureOptions, open_source

# Its Python bindings belong to the system's Python, not to an environment.
PYTHON = shutil.which("python3", path="/usr/bin") or ""

SERVER = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1"
    " ! x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/ball", factory)
if not server.attach(None) or Gst.ElementFactory.find("x264enc") is None:
    sys.exit("no server")
print("ready", flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def start():
    """Starts the server on a port; all that were started end with the test."""
    running = []

    def begin(port):
        if not PYTHON:
            pytest.skip("needs the system's Python with GStreamer's RTSP server")
        server = subprocess.Popen(
            [PYTHON, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        running.append(server)
        if server.stdout.readline().strip() != "ready":
            pytest.skip("needs GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0) and x264enc")
        return server

    yield begin
    for server in running:
        server.kill()
        server.wait()
        server.stdout.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bright(image):
    """The ball is white on black."""
    return (image.mean(axis=2) > 200).any()


def test_a_stream_dies_and_returns(start):
    port = free_port()
    server = start(port)
    source = open_source(f"rtsp://127.0.0.1:{port}/ball", CaptureOptions(give_up=60))
    source.open()
    try:
        grabs = [source.read() for _ in range(10)]
        assert source.live and all(grab.image.shape == (240, 320, 3) and bright(grab.image) for grab in grabs)
        server.kill()
        server.wait()
        lost = time.monotonic()
        start(port)
        # Frames that were under way may still come; what matters is that new ones do.
        while time.monotonic() - lost < 45:
            grab = source.read()
            assert grab is not None
            if grab.time > grabs[-1].time + 1 and bright(grab.image):
                break
        else:
            pytest.fail("the stream did not return")
        after = [source.read() for _ in range(5)]
        assert all(bright(grab.image) for grab in after)
    finally:
        source.close()
