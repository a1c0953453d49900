"""The frame of an ONNX file - opset, inputs, outputs, metadata - without the onnx package and without its weights.

A walk over the protobuf wire format (protobuf.dev, "Encoding"): fields are a number, a kind and a body; weights are
jumped over, so a file of any size takes a few milliseconds. Field numbers are those of onnx.proto.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple, Union

from vision.errors import UserError

PathLike = Union[str, Path]

# Kinds of the wire format.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# TensorProto.DataType, those that inputs and outputs of a detector have.
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}

LARGEST_TEXT = 1 << 24


class _Broken(Exception):
    """Why the bytes are no ONNX file."""


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: as in the graph.
        dtype: numpy's name, or "" for what is not in DTYPES.
        shape: None where a side is dynamic; the whole is () when the file does not say it.
    """

    name: str
    dtype: str = ""
    shape: Tuple[Optional[int], ...] = ()


@dataclass
class OnnxHeader:
    """What stands round the nodes and weights.

    Attributes:
        ir_version, producer: of the file.
        opsets: version of each domain ("" is ONNX's own).
        inputs: without initializers (which files of old exporters list as well).
        outputs: in order.
        metadata: the metadata_props.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: Dict[str, int] = field(default_factory=dict)
    inputs: List[Tensor] = field(default_factory=list)
    outputs: List[Tensor] = field(default_factory=list)
    metadata: Dict[str, str] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Of ONNX's own domain; 0 when there is none."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))


def read_header(path: PathLike) -> OnnxHeader:
    """Read the frame of an ONNX file. Raises UserError for a missing, truncated or foreign file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(256)
            _check_head(path, head, length)
            file.seek(0)
            header = _model(file, length)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (_Broken, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: no ONNX file, or damaged or cut short ({error}; {length} bytes). Copy or export it again."
        ) from error
    if not header.outputs or not header.inputs:
        raise UserError(f"{path}: no ONNX file, or damaged: it holds no graph with inputs and outputs")
    return header


def _check_head(path: Path, head: bytes, length: int) -> None:
    """The usual impostors, by name."""
    if not length:
        raise UserError(f"{path}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the model; fetch it with `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path}: a web page or XML, not an ONNX file; the download went wrong")
    if head.startswith(b"PK\x03\x04") or head.startswith(b"\x80\x02"):
        raise UserError(
            f"{path}: weights of PyTorch, not an ONNX file; name it .pth, or export it with onnx_export.py"
        )


# --- wire format --------------------------------------------------------------------------------------------


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 64:
        byte = file.read(1)
        if not byte:
            raise _Broken("it ends inside a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    raise _Broken("a number of more than 64 bits")


def _fields(file: BinaryIO, end: int) -> Iterator[Tuple[int, int, int]]:
    """(field number, kind, varint's value or body's length) up to `end`; bodies are jumped over unless read.

    The caller may read a body; afterwards the walk goes on behind it wherever the caller left the file.
    """
    while file.tell() < end:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if not number:
            raise _Broken("field number 0")
        if kind == VARINT:
            yield number, kind, _varint(file)
            continue
        if kind == BYTES:
            length = _varint(file)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise _Broken(f"a field of kind {kind}")
        behind = file.tell() + length
        if behind > end:
            raise _Broken(f"field {number} is {length} bytes long but {end - file.tell()} are left")
        yield number, kind, length
        file.seek(behind)


def _text(file: BinaryIO, length: int) -> str:
    if length > LARGEST_TEXT:
        raise _Broken(f"a text of {length} bytes")
    return file.read(length).decode("utf-8")


# --- messages -----------------------------------------------------------------------------------------------


def _model(file: BinaryIO, end: int) -> OnnxHeader:
    """ModelProto: 1 ir_version, 2 producer_name, 7 graph, 8 opset_import, 14 metadata_props."""
    header = OnnxHeader()
    for number, kind, value in _fields(file, end):
        if number == 1 and kind == VARINT:
            header.ir_version = value
        elif number == 2 and kind == BYTES:
            header.producer = _text(file, value)
        elif number == 7 and kind == BYTES:
            _graph(file, file.tell() + value, header)
        elif number == 8 and kind == BYTES:
            domain, version = "", 0
            for inner, inner_kind, content in _fields(file, file.tell() + value):
                if inner == 1 and inner_kind == BYTES:
                    domain = _text(file, content)
                elif inner == 2 and inner_kind == VARINT:
                    version = content
            header.opsets[domain] = version
        elif number == 14 and kind == BYTES:
            pair = {1: "", 2: ""}
            for inner, inner_kind, content in _fields(file, file.tell() + value):
                if inner in pair and inner_kind == BYTES:
                    pair[inner] = _text(file, content)
            header.metadata[pair[1]] = pair[2]
    return header


def _graph(file: BinaryIO, end: int, header: OnnxHeader) -> None:
    """GraphProto: 5 initializer, 11 input, 12 output."""
    weights = set()
    for number, kind, length in _fields(file, end):
        if kind != BYTES:
            continue
        if number == 5:
            weights.add(_initializer_name(file, file.tell() + length))
        elif number == 11:
            header.inputs.append(_value_info(file, file.tell() + length))
        elif number == 12:
            header.outputs.append(_value_info(file, file.tell() + length))
    header.inputs = [tensor for tensor in header.inputs if tensor.name not in weights]


def _initializer_name(file: BinaryIO, end: int) -> str:
    """TensorProto: 8 name."""
    for number, kind, length in _fields(file, end):
        if number == 8 and kind == BYTES:
            return _text(file, length)
    return ""


def _value_info(file: BinaryIO, end: int) -> Tensor:
    """ValueInfoProto: 1 name, 2 type (TypeProto: 1 tensor_type)."""
    name, dtype = "", ""
    shape: Tuple[Optional[int], ...] = ()
    for number, kind, length in _fields(file, end):
        if number == 1 and kind == BYTES:
            name = _text(file, length)
        elif number == 2 and kind == BYTES:
            for inner, inner_kind, inner_length in _fields(file, file.tell() + length):
                if inner == 1 and inner_kind == BYTES:
                    dtype, shape = _tensor_type(file, file.tell() + inner_length)
    return Tensor(name, dtype, shape)


def _tensor_type(file: BinaryIO, end: int) -> Tuple[str, Tuple[Optional[int], ...]]:
    """TypeProto.Tensor: 1 elem_type, 2 shape (TensorShapeProto: 1 dim: 1 dim_value, 2 dim_param)."""
    dtype = ""
    shape: List[Optional[int]] = []
    for number, kind, value in _fields(file, end):
        if number == 1 and kind == VARINT:
            dtype = DTYPES.get(value, "")
        elif number == 2 and kind == BYTES:
            for dim, dim_kind, dim_length in _fields(file, file.tell() + value):
                if dim == 1 and dim_kind == BYTES:
                    side: Optional[int] = None
                    for inner, inner_kind, content in _fields(file, file.tell() + dim_length):
                        if inner == 1 and inner_kind == VARINT and 0 < content < 1 << 31:
                            side = content
                    shape.append(side)
    return dtype, tuple(shape)
