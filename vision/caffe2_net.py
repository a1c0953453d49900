"""Caffe2's two files - `<name>_init_net.pb` with the weights, `<name>_predict_net.pb` with the graph - without Caffe2.

The messages are those of caffe2.proto (pytorch 1.10, caffe2/proto), as far as nets use them, made at run time; what
they do not know survives reading and writing. Needs the protobuf package when it is used, the old one beside a Caffe2
(3.20) or a new one.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Set, Tuple, Union

from vision.errors import UserError

PathLike = Union[str, Path]

INIT, PREDICT = "init_net", "predict_net"
"""What the names of the two files of a pair end with, before `.pb`."""

PAIR = "pair"
"""Argument of both nets of a pair that was written here: the same text in both, another in every other pair."""

# Message -> its fields, as "number label type name". Packed is how we write; both ways are read, here and in Caffe2.
SCHEMA: Dict[str, Tuple[str, ...]] = {
    "NetDef": (
        "1 optional string name",
        "2 repeated OperatorDef op",
        "3 optional string type",
        "6 repeated Argument arg",
        "7 repeated string external_input",
        "8 repeated string external_output",
    ),
    "OperatorDef": (
        "1 repeated string input",
        "2 repeated string output",
        "3 optional string name",
        "4 optional string type",
        "5 repeated Argument arg",
        "7 optional string engine",
    ),
    "Argument": (
        "1 optional string name",
        "2 optional float f",
        "3 optional int64 i",
        "4 optional bytes s",
        "5 packed float floats",
        "6 packed int64 ints",
        "7 repeated bytes strings",
    ),
}


@lru_cache(maxsize=None)
def messages() -> Dict[str, Any]:
    """The message classes by name. Raises UserError without the protobuf package."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise UserError(
            f"files of Caffe2 need the protobuf package ({error}); try: pip install protobuf"
        ) from error
    file = descriptor_pb2.FileDescriptorProto(name="vision/caffe2.proto", package="caffe2", syntax="proto2")
    for message, lines in SCHEMA.items():
        described = file.message_type.add(name=message)
        for line in lines:
            number, label, kind, name = line.split()
            added = described.field.add(name=name, number=int(number))
            added.label = added.LABEL_OPTIONAL if label == "optional" else added.LABEL_REPEATED
            if label == "packed":
                added.options.packed = True
            if kind in SCHEMA:
                added.type, added.type_name = added.TYPE_MESSAGE, f".caffe2.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind.upper()}")
    # A pool of our own: beside a Caffe2 that is loaded the default one knows these names already.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = {}
    for message in SCHEMA:
        descriptor = pool.FindMessageTypeByName(f"caffe2.{message}")
        if hasattr(message_factory, "GetMessageClass"):
            found[message] = message_factory.GetMessageClass(descriptor)
        else:  # protobuf before 4.22
            found[message] = message_factory.MessageFactory(pool).GetPrototype(descriptor)
    return found


# --- files --------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """The two files of a net."""

    init: Path
    predict: Path


def pair_named(prefix: PathLike) -> Pair:
    """The two files of a name, there or not."""
    prefix = Path(prefix)
    return Pair(*(prefix.with_name(f"{prefix.name}_{kind}.pb") for kind in (INIT, PREDICT)))


def is_pair(path: PathLike) -> bool:
    """Whether `path` is what both names of a pair begin with ("models/mb1-ssd")."""
    return not Path(path).exists() and pair_named(path).predict.is_file()


def find_pair(path: PathLike) -> Pair:
    """The pair that one of its files belongs to, or that begins with this name.

    Raises UserError when the partner is not there, or the name does not tell which of the two the file is.
    """
    path = Path(path)
    if is_pair(path):
        path = pair_named(path).predict
    for own, other in ((INIT, PREDICT), (PREDICT, INIT)):
        before, found, behind = path.name.rpartition(own)
        if not found:
            continue
        partner = path.with_name(before + other + behind)
        if not partner.is_file():
            raise UserError(
                f"{path}: a net of Caffe2 is two files, and the other one, {partner.name}, is not beside it"
            )
        return Pair(path, partner) if own == INIT else Pair(partner, path)
    raise UserError(
        f"{path}: a net of Caffe2 is two files, NAME_{INIT}.pb and NAME_{PREDICT}.pb; from this name the other one "
        "cannot be told. Rename both."
    )


def read_net(path: PathLike) -> Any:
    """A NetDef. Raises UserError for a file that is missing, cut short or something else."""
    path = Path(path)
    net = messages()["NetDef"]()
    try:
        content = path.read_bytes()
        net.ParseFromString(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # DecodeError, and RuntimeError of some versions
        raise UserError(
            f"{path}: no net of Caffe2, or damaged or cut short ({len(content)} bytes). Copy it or convert it again."
        ) from error
    if not content:
        raise UserError(f"{path}: the file is empty")
    if not net.op or any(not op.type for op in net.op):
        raise UserError(f"{path}: no net of Caffe2, or damaged: it holds no operators")
    return net


def arguments(holder: Any) -> Dict[str, Any]:
    """The arguments of an operator or a net as plain values (bytes for texts, () for an empty list)."""
    values = {}
    for each in holder.arg:
        given = [field.name for field, _ in each.ListFields() if field.name != "name"]
        value = getattr(each, given[0]) if given else ()
        values[each.name] = value if isinstance(value, (int, float, bytes)) else tuple(value)
    return values


# --- what fits together -------------------------------------------------------------------------------------


def image_blob(pair: Pair, init: Any, predict: Any) -> Tuple[str, Tuple[int, ...]]:
    """Name and shape of the blob that takes the image; the shape is () where the files leave it open.

    It is the one input of the predict net that the init net does not make, or fills with one value for a start.

    Raises UserError where the two nets do not belong together.
    """
    _check_roles(pair, init, predict)
    _check_pair(pair, init, predict)
    makers = {name: op for op in init.op for name in op.output}
    images: List[Tuple[str, Tuple[int, ...]]] = [(n, ()) for n in predict.external_input if n not in makers]
    if not images:
        fills = [(name, _filled(makers[name])) for name in predict.external_input]
        images = [(name, shape) for name, shape in fills if len(shape) == 4 and shape[1] == 3]
    if len(images) != 1:
        lacking = ", ".join(name for name, _ in images[:3])
        found = f"nothing makes {lacking}, ..." if images else "no blob is left for the image"
        raise UserError(
            f"{pair.init.name} and {pair.predict.name} do not belong together, or one is cut short: {found} (the first "
            "must make all that the second takes, but for the image)"
        )
    _check_wiring(pair, predict, set(makers))
    return images[0]


def _filled(op: Any) -> Tuple[int, ...]:
    """The shape that a ConstantFill makes, else ()."""
    return tuple(arguments(op).get("shape", ())) if op.type == "ConstantFill" else ()


def _check_roles(pair: Pair, init: Any, predict: Any) -> None:
    makes = [all(not op.input for op in net.op) for net in (init, predict)]
    if makes == [False, True]:
        raise UserError(
            f"{pair.init} is the graph and {pair.predict} holds the weights: exchange the two ({INIT} comes first)"
        )
    if not makes[0] or makes[1]:
        kind = "weights" if makes[1] else "a graph"
        raise UserError(f"{pair.init} and {pair.predict} both hold {kind}; a net is one file of each kind")


def _check_pair(pair: Pair, init: Any, predict: Any) -> None:
    said: List[Any] = [arguments(net).get(PAIR) for net in (init, predict)]
    if None not in said and said[0] != said[1]:
        raise UserError(
            f"{pair.init.name} and {pair.predict.name} are of two conversions; take both files of one, or convert again"
        )


def _check_wiring(pair: Pair, predict: Any, made: Set[str]) -> None:
    made = made.union(predict.external_input)
    for op in predict.op:
        unknown = [name for name in op.input if name not in made]
        if unknown:
            raise UserError(
                f"{pair.predict}: damaged, nothing makes the blob {unknown[0]} that {op.type} takes"
            )
        made.update(op.output)
    outputs = list(predict.external_output)
    lacking = [name for name in outputs if name not in made]
    if lacking or len(outputs) < 2:
        what = f"nothing makes its output {lacking[0]}" if lacking else f"{len(outputs)} outputs are too few"
        raise UserError(f"{pair.predict}: damaged or cut short, {what}; a detector gives scores and boxes")
