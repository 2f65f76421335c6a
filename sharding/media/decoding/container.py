"""Opens a source video's container with FFmpeg, safely, and chooses its video stream."""

from __future__ import annotations

from typing import Any

import av
import av.error
import av.stream
from av.container import InputContainer
from av.video.stream import VideoStream

from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import SourceFile, raise_read_error
from sharding.media.input.validity import unopenable_error

DEMUXERS = (
    "aac,asf,avi,dv,flac,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,ogg,png_pipe,rm,swf,vc1,wav,webp_pipe"
)
# A playlist (concat, hls, dash, …) would have FFmpeg read other files, or addresses.
ONE_FILE_ONLY = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
BUFFER = 2**16
LARGEST = 2**26  # pixels of a picture: twice those of 8K. A few bytes may announce a gigabyte


def open_container(file: SourceFile, head: bytes) -> InputContainer:
    """The container in `file`, at its beginning; `head`: the file's first bytes.

    Raises BadVideo if no demuxer takes it; an error in reading the file comes out as itself.
    """
    file.seek(0)
    try:
        container = av.open(
            file,
            "r",
            metadata_errors="replace",
            options={"max_pixels": str(LARGEST)},
            container_options=ONE_FILE_ONLY,
            buffer_size=BUFFER,
        )
    except av.error.FFmpegError as error:
        raise_read_error(file)
        raise unopenable_error(file, head, error.strerror or str(error)) from error
    raise_read_error(file)
    return container


def video_stream(container: Any, threads: int) -> VideoStream:
    """The container's best video stream, to be decoded by so many threads; its other streams are discarded.

    Raises BadVideo if there is none (a cover picture is none), no decoder for it, or its pictures are too large.
    """
    pictures = [s for s in container.streams.video if s.disposition & av.stream.Disposition.attached_pic]
    videos = [s for s in container.streams.video if s not in pictures]
    if not videos:
        if pictures:
            raise BadVideo("no_video", "no video stream (audio with a cover picture)")
        if container.streams.audio:
            raise BadVideo("no_video", "no video stream (audio only)")
        raise BadVideo("no_video", "no video stream", f"container {container.format.name}")
    best = container.streams.best("video")
    stream: VideoStream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise BadVideo("unsupported", "no decoder for its video codec", f"container {container.format.name}")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > LARGEST:
        raise BadVideo("unsupported", f"its pictures are too large: {width} x {height} pixels")
    stream.codec_context.options = {"max_pixels": str(LARGEST)}
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    return stream
