"""As much of an ONNX file as tells whether it refers to other files."""

from __future__ import annotations

from collections.abc import Iterator

# Messages that lead to tensors: the number of each field that holds one, and what it holds.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_LOCATION = 14  # of a tensor: where its data is; 0, or nothing, is in this file
_FIXED = {1: 8, 5: 4}  # bytes of a value, by the type on the wire


def refuse_other_files(data: bytes) -> None:
    """Refuse an ONNX file that names other files for the data of a tensor.

    Args:
        data: The file.

    Raises:
        ValueError: If it names one, or is damaged.
    """
    waiting = [("model", memoryview(data))]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            inner = _MESSAGES[kind].get(number)
            if inner is not None and isinstance(value, memoryview):
                waiting.append((inner, value))
            elif kind == "tensor" and number == _LOCATION and value:
                raise ValueError(
                    "it keeps weights in other files, which no checksum covers; expected one file, as write_onnx() "
                    "writes it"
                )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        wire = tag & 7
        if wire == 0:
            value: int | memoryview
            value, at = _number(message, at)
            yield tag >> 3, value
            continue
        length, at = _number(message, at) if wire == 2 else (_FIXED.get(wire, len(message) + 1), at)
        if at + length > len(message):
            raise ValueError("a field goes on beyond its message")
        yield tag >> 3, message[at : at + length]
        at += length


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, at most ten; and where it ends."""
    found = 0
    for place, byte in enumerate(message[at : at + 10]):
        found |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return found, at + place + 1
    raise ValueError("a number does not end")
