"""HTTP/2 frames of one direction (RFC 9113 section 4), from bytes that may be cut, late or missing.

Receives the bytes of one direction of a connection, either all of them or *condensed* as ``bpf/protocols/http2.h``
does it: without the payloads that nobody reads.  Hands frames to a `FrameSink`.  Drops what it cannot place: out of
step, it waits for bytes that are frames beyond doubt.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Protocol

from onlooker.protocols.grpc import MessageCounter

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# The same in bpf/protocols/http2.h; tests/native compares.
KEPT_DATA: Final = 5
KEPT_BLOCK: Final = 65_536
_KEPT: Final = {
    HEADERS: KEPT_BLOCK, RST_STREAM: 4, SETTINGS: 240, PUSH_PROMISE: KEPT_BLOCK, GOAWAY: 8, CONTINUATION: KEPT_BLOCK,
}  # fmt: skip
_BLOCKS: Final = frozenset((HEADERS, PUSH_PROMISE, CONTINUATION))
_FLAGS: Final = (0x09, 0x2D, 0x00, 0x00, 0x01, 0x0C, 0x01, 0x00, 0x00, 0x04)
"""Flags that RFC 9113 defines, by frame type."""
_PLAIN_BLOCK: Final = END_HEADERS | PADDED | HAS_PRIORITY
_PLAIN: Final = frozenset((DATA, PRIORITY, PING, WINDOW_UPDATE))
"""Frames that say nothing, or nothing about others."""
_LONGEST_FIRST_FRAME = 16_384
_LONGEST_FIRST_DATA = 1 << 20
_FRAMES_TO_BELIEVE = 16

_HEADER = struct.Struct(">HBBBI")


def kept_bytes(frame_type: int, flags: int, length: int) -> int:
    """How many bytes of a frame's payload survive condensing, from its first."""
    if frame_type == DATA:
        return min(length, KEPT_DATA + (1 if flags & PADDED else 0))
    return min(length, _KEPT.get(frame_type, 0))


def fits(length: int, frame_type: int, flags: int, stream_id: int) -> bool:
    """Whether a frame header breaks no rule whose breach ends the connection (RFC 9113 section 6)."""
    if frame_type in (DATA, HEADERS, PUSH_PROMISE, CONTINUATION):
        return stream_id != 0 and not (flags & PADDED and frame_type != CONTINUATION and length == 0)
    if frame_type == PRIORITY:
        return stream_id != 0 and length == 5
    if frame_type == RST_STREAM:
        return stream_id != 0 and length == 4
    if frame_type == SETTINGS:
        return stream_id == 0 and length % 6 == 0 and not (flags & ACK and length)
    if frame_type == PING:
        return stream_id == 0 and length == 8
    if frame_type == GOAWAY:
        return stream_id == 0 and length >= 8
    if frame_type == WINDOW_UPDATE:
        return length == 4
    return True  # section 4.1: unknown types are to be ignored


def believable(length: int, frame_type: int, flags: int, stream_id: int) -> bool:
    """Whether nine bytes of unknown origin are a frame header: as `fits`, and nothing unusual about them."""
    if frame_type > CONTINUATION or stream_id >> 31 or flags & ~_FLAGS[frame_type]:
        return False
    if length > (_LONGEST_FIRST_DATA if frame_type == DATA else _LONGEST_FIRST_FRAME):
        return False
    if frame_type == HEADERS and length == 0:
        return False
    return fits(length, frame_type, flags, stream_id)


def walk(data: bytes, position: int, end: int, found: list[int]) -> int:
    """Find the frames in condensed bytes whose kept part is all there.

    Args:
        data: Of one direction or of several, one behind the other.
        position: Where a frame begins.
        end: Of the direction.
        found: Takes their places in ``data``.

    Returns:
        The place behind the last of them.
    """
    add, header_at = found.append, _HEADER.unpack_from
    last = end - HEADER_BYTES
    while position <= last:
        high, low, frame_type, flags, _ = header_at(data, position)
        length = high << 8 | low
        if frame_type == DATA:
            shown = KEPT_DATA if not flags & PADDED else KEPT_DATA + 1
            behind = position + HEADER_BYTES + (length if length < shown else shown)
        elif frame_type == HEADERS:
            behind = position + HEADER_BYTES + (length if length < KEPT_BLOCK else KEPT_BLOCK)
        else:
            behind = position + HEADER_BYTES + kept_bytes(frame_type, flags, length)
        if behind > end:
            break
        add(position)
        position = behind
    return position


def walk_transfers(
    data: bytes, place: Sequence[int], offset: Sequence[int], length: Sequence[int], at: int, left: int, keep: int,
    found: list[int], shown: dict[int, int], *, may_lack: bool,
) -> bool:  # fmt: skip
    """As `walk`, transfer by transfer: finds the frames of which less was kept, as no buffer held it (`sendfile`).

    Args:
        data: Of one direction or of several, one behind the other.
        place: Where the transfers begin in it, and behind them where the last ends.
        offset: Of the transfers, in the direction.
        length: Of the transfers.
        at: Offset of the next byte of the direction.
        left: Bytes of a frame that began before.
        keep: Of those, how many are kept.
        found: Takes the places of frames.
        shown: Takes, by place, how much was kept of the payload of DATA that lacks some; -1 stands for the frame that
            began before.
        may_lack: That frame may lack some.

    Returns:
        Whether there is nothing that cannot be explained.
    """
    header, lacking = -1, -1 if may_lack else None
    start = end = 0
    kept_so_far = 0
    for i, size in enumerate(length):
        position, stop = place[i], place[i + 1]
        if offset[i] != at:
            gap = offset[i] - at
            if header >= 0 or not keep <= gap <= left or gap <= 0 or (keep and lacking is None):
                return False
            if keep and lacking is not None:
                shown[lacking] = kept_so_far
                keep = 0
            left -= gap
        at = offset[i] + size
        while size > 0:
            if left > 0:
                step = min(left, size)
                take = min(step, keep, stop - position)
                if take < min(step, keep):
                    if step < size or lacking is None:  # missing where it could have been read
                        return False
                    shown[lacking] = kept_so_far + take
                    keep = take
                position += take
                kept_so_far += take
                keep -= take
                left -= step
                size -= step
                continue
            if header < 0:
                header, start = position, 0
            step = min(HEADER_BYTES - start, size, stop - position)
            if step <= 0:
                return False
            position += step
            start += step
            size -= step
            if start < HEADER_BYTES:
                continue
            high, low, frame_type, flags, _ = _HEADER.unpack_from(data, header)
            left = high << 8 | low
            keep = kept_bytes(frame_type, flags, left)
            end = header + HEADER_BYTES + keep
            found.append(header)
            lacking = header if frame_type == DATA else None
            kept_so_far, header = 0, -1
        if position != stop:
            return False
    if found and (left or keep) and found[-1] not in shown and end > place[-1]:
        found.pop()  # its end is still to come
    return True


class FrameSink(Protocol):
    """Who takes the frames of a `FrameReader`."""

    def on_preface(self, reader: FrameReader) -> None:
        """The connection preface was read: this is the client's direction, and its beginning."""

    def on_frame(
        self, reader: FrameReader, frame_type: int, flags: int, stream_id: int, payload: bytes, cut: bool
    ) -> None:
        """A frame of a kept type ended; ``cut``: a part of its payload is missing from ``payload``."""

    def on_block(self, reader: FrameReader, flags: int, stream_id: int, block: bytes) -> None:
        """A HEADERS frame that is a whole header block and nothing else."""

    def on_data(self, reader: FrameReader, stream_id: int, length: int) -> MessageCounter | None:
        """A DATA frame began; what is returned takes its bytes."""

    def on_data_end(self, reader: FrameReader, flags: int, stream_id: int, padding: int) -> None:
        """A DATA frame ended, ``padding`` bytes of which were no data."""

    def on_loss(self, reader: FrameReader) -> None:
        """Bytes are missing, and frames may have been in them."""


class FrameReader:
    """Finds the frames of one direction.

    Attributes:
        is_request: The direction goes from client to server.
        frame_mono_ns: When the first byte of the current frame came.
        now_mono_ns: When the bytes came that are being read.
        is_sparse: Less may be kept than condensing keeps: see `walk_transfers`.
    """

    __slots__ = (
        "_condensed", "_counter", "_cut", "_flags", "_keep", "_left", "_offset", "_padding", "_partial", "_payload",
        "_preface_left", "_seeking", "_shown", "_sink", "_stream_id", "_type", "frame_mono_ns", "is_request",
        "is_sparse", "now_mono_ns",
    )  # fmt: skip

    def __init__(self, sink: FrameSink, *, is_request: bool, condensed: bool, in_step: bool) -> None:
        self.is_request = is_request
        self.frame_mono_ns = 0
        self.now_mono_ns = 0
        self.is_sparse = False
        self._sink = sink
        self._condensed = condensed
        self._seeking = not in_step
        self._preface_left = len(PREFACE) if in_step and is_request else 0
        self._offset = -1
        self._partial = b""  # a frame header that was cut
        self._left = -1  # payload bytes still to come; -1: between frames
        self._shown = 0  # of those, how many the input still has
        self._keep = 0  # of those, how many are wanted
        self._payload = b""
        self._cut = False
        self._type = self._flags = self._stream_id = 0
        self._counter: MessageCounter | None = None
        self._padding = 0

    @property
    def untouched(self) -> bool:
        """Whether no byte has come yet."""
        return self._offset < 0

    @property
    def is_level(self) -> bool:
        """Whether the reader is in step, and what it is in the middle of is nothing unusual."""
        if self._seeking or self._preface_left or not self._condensed:
            return False
        if self._left < 0:
            return True
        return self._type in _PLAIN or (self._type == HEADERS and bool(self._flags & END_HEADERS))

    @property
    def offset(self) -> int:
        """Of the next byte; negative while none has come."""
        return self._offset

    @property
    def is_in_data(self) -> bool:
        """Whether the next bytes are payload of DATA."""
        return self._left >= 0 and self._type == DATA

    def begun(self, data: bytes, position: int, end: int) -> tuple[int, int] | None:
        """How much of the next bytes belongs to a frame that has begun: in the direction, and in what is kept of it.

        Args:
            data: Has the next bytes.
            position: From here on.
            end: Up to here.

        Returns:
            None, if they do not tell, or if it is a frame of an unusual kind.
        """
        if self._left >= 0:
            return self._left, min(self._shown, self._left)
        have = len(self._partial)
        if not have:
            return 0, 0
        missing = HEADER_BYTES - have
        if end - position < missing:
            return None
        high, low, frame_type, flags, _ = _HEADER.unpack(self._partial + data[position : position + missing])
        if frame_type not in _PLAIN and (frame_type != HEADERS or not flags & END_HEADERS):
            return None
        length = high << 8 | low
        return missing + length, missing + kept_bytes(frame_type, flags, length)

    def passed(self, offset: int) -> None:
        """Whole frames went by, up to ``offset``."""
        self._offset = offset

    def expect_frames(self) -> None:
        """The next byte is the first of a frame."""
        self._seeking = False
        self._preface_left = 0

    def expect_preface(self) -> None:
        """The next byte is the first of the client's connection preface."""
        self._seeking = False
        self._preface_left = len(PREFACE)

    def read(self, head: bytes, tail: bytes, offset: int, length: int, mono_ns: int, *, readable: bool) -> None:
        """Take ``length`` bytes of the direction, from ``offset`` on; see `onlooker.protocols.Segment`."""
        self.now_mono_ns = mono_ns
        if offset != self._offset and self._offset >= 0:
            if offset > self._offset:
                self._skip(offset - self._offset)
            else:
                self._lose()
        beginning = self._offset < 0
        self._offset = offset + length
        if not readable:
            self._skip(length)
        elif self._condensed:
            self._walk(head, length, beginning=beginning)
        else:
            self._walk(head[:length], min(len(head), length), beginning=beginning)
            if len(head) < length:
                tail = tail[-(length - len(head)) :] if tail else b""
                self._skip(length - len(head) - len(tail))
                self._walk(tail, len(tail))

    def _walk(self, data: bytes, left: int, *, beginning: bool = False) -> None:
        """Go through ``left`` bytes of the direction; ``data`` has those of them that were kept, in order."""
        position = 0
        if beginning and data[:3] == PREFACE[:3]:
            self._forget()
            self._seeking = False
            self._preface_left = len(PREFACE)
        if self._preface_left and left > 0:
            position = step = min(self._preface_left, left)
            start = len(PREFACE) - self._preface_left
            if data[:step] == PREFACE[start : start + step]:
                self._preface_left -= step
                left -= step
                if self._preface_left == 0:
                    self._sink.on_preface(self)
            else:
                self._lose()
                position = 0
        if self._seeking:
            if not self._in_step(data, left):
                return
            self._seeking = False
        end = len(data)
        while left > 0:
            if self._left < 0:
                have = len(self._partial)
                if not have and left >= HEADER_BYTES <= end - position:
                    used, shown = self._whole_frame(data, position, left)
                    if used:
                        position += shown
                        left -= used
                        continue
                step = min(HEADER_BYTES - have, left)
                piece = data[position : position + step]
                position += step
                left -= step
                if not have:
                    self.frame_mono_ns = self.now_mono_ns
                if len(piece) < step:
                    return self._lose()
                if step < HEADER_BYTES:
                    piece = self._partial = self._partial + piece
                    if len(piece) < HEADER_BYTES:
                        return None
                    self._partial = b""
                if not self._begin(piece):
                    return None
            else:
                step = min(self._left, left)
                shown = min(step, self._shown)
                piece = data[position : position + shown]
                position += shown
                left -= step
                if len(piece) < shown:  # less was kept than the rule says: where, is not known
                    self._cut = True
                    self._take(piece, step)
                    return self._lose() if left else None
                self._take(piece, step)
        if position < end:
            self._lose()  # more was kept than the rule says: whoever condensed was out of step
        return None

    def _whole_frame(self, data: bytes, position: int, left: int) -> tuple[int, int]:
        """The short way for the two frames that most calls consist of, if all of one is there.

        Returns:
            The bytes of the direction and of ``data`` that it took; (0, 0) if the long way must be gone.
        """
        high, low, frame_type, flags, stream_id = _HEADER.unpack_from(data, position)
        length = high << 8 | low
        used = HEADER_BYTES + length
        if used > left or stream_id == 0 or stream_id >> 31:
            return 0, 0
        start = position + HEADER_BYTES
        if frame_type == HEADERS:
            if used > KEPT_BLOCK or not length or start + length > len(data):
                return 0, 0
            self.frame_mono_ns = self.now_mono_ns
            block = data[start : start + length]
            if flags & _PLAIN_BLOCK == END_HEADERS:
                self._sink.on_block(self, flags, stream_id, block)
            else:
                self._sink.on_frame(self, HEADERS, flags, stream_id, block, False)
            return used, used
        if frame_type == DATA and not flags & PADDED:
            shown = KEPT_DATA if self._condensed and length > KEPT_DATA else length
            if start + shown > len(data):
                return 0, 0
            self.frame_mono_ns = self.now_mono_ns
            counter = self._sink.on_data(self, stream_id, length)
            if counter is not None and length and not counter.take_whole(data, start, shown, length):
                counter.take(data[start : start + shown], length)
            if flags & END_STREAM or self.is_request:
                self._sink.on_data_end(self, flags, stream_id, 0)
            return used, HEADER_BYTES + shown
        return 0, 0

    def _begin(self, header: bytes) -> bool:
        high, low, frame_type, flags, stream_id = _HEADER.unpack(header)
        length = high << 8 | low
        stream_id &= 0x7FFFFFFF  # the reserved bit is to be ignored
        if not fits(length, frame_type, flags, stream_id):
            self._lose()
            return False
        self._type = frame_type
        self._flags = flags
        self._stream_id = stream_id
        self._left = length
        kept = kept_bytes(frame_type, flags, length)
        self._shown = kept if self._condensed else length
        self._payload = b""
        if frame_type == DATA:
            self._padding = -1 if flags & PADDED else 0
            self._counter = self._sink.on_data(self, stream_id, length)
            self._keep = 0
            self._cut = False
        else:
            self._keep = kept
            self._cut = frame_type in _BLOCKS and kept < length
        if length == 0:
            self._finish()
        return True

    def _take(self, piece: bytes, step: int) -> None:
        """Take ``step`` bytes of the payload, of which ``piece``, the first, are known."""
        self._left -= step
        self._shown = max(0, self._shown - step)
        if self._type == DATA:
            if self._padding < 0 and step:
                # RFC 9113 section 6.1: the first byte says how many the last ones are.
                self._padding = piece[0] + 1 if piece else 1
                piece = piece[1:]
                step -= 1
            if self._counter is not None:
                data = step - max(0, max(0, self._padding - 1) - self._left)
                if data > 0:
                    self._counter.take(piece[:data], data)
        elif self._keep:
            wanted = min(step, self._keep)
            self._payload = self._payload + piece[:wanted] if self._payload else piece[:wanted]
            self._keep -= wanted
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        self._left = -1
        if self._type == DATA:
            self._counter = None
            self._sink.on_data_end(self, self._flags, self._stream_id, max(0, self._padding))
        elif self._type in _KEPT:
            payload, self._payload = self._payload, b""
            self._sink.on_frame(self, self._type, self._flags, self._stream_id, payload, self._cut)

    def _skip(self, count: int) -> None:
        """``count`` bytes went by unseen."""
        if count <= 0:
            return
        if self._seeking or self._preface_left or self._left < count:
            self._lose()
            return
        if self._keep:
            self._cut = True
        self._take(b"", count)

    def _lose(self) -> None:
        self._forget()
        if not self._seeking:
            self._seeking = True
            self._sink.on_loss(self)

    def _forget(self) -> None:
        self._preface_left = 0
        self._partial = self._payload = b""
        self._left = -1
        self._keep = self._shown = 0
        self._counter = None

    def _in_step(self, data: bytes, left: int) -> bool:
        """Whether a call's bytes can be nothing but frames, from its first byte to its last."""
        position = 0
        for number in range(_FRAMES_TO_BELIEVE):
            header = data[position : position + HEADER_BYTES]
            if len(header) < HEADER_BYTES or left < HEADER_BYTES:
                return number > 0 and len(header) == left
            high, low, frame_type, flags, stream_id = _HEADER.unpack(header)
            length = high << 8 | low
            if not believable(length, frame_type, flags, stream_id):
                return False
            position += HEADER_BYTES
            left -= HEADER_BYTES
            if number == 0 and length > left:
                return False
            shown = kept_bytes(frame_type, flags, length) if self._condensed else length
            position += min(shown, left)
            left -= min(length, left)
            if position > len(data):
                return False
            if left == 0:
                return position == len(data)
        return True
