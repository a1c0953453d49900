"""The two files of a net in Caffe2, which is part of old releases of PyTorch and still runs on old boards."""

import logging
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import numpy as np

from vision.caffe2_net import Pair, find_pair, image_blob, read_net
from vision.card import read_card
from vision.detector import Detector
from vision.errors import UserError
from vision.onnx_header import Tensor
from vision.runtimes import RUNTIMES
from vision.runtimes.exported import Exported, Infer, describe, finish, first_line
from vision.spec import REFERENCE_SIDE

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

_threads: List[Optional[int]] = []
"""What Caffe2, which is one for the whole process, was started with."""


def load(
    path: PathLike,
    labels: Optional[PathLike] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    batch_size: int = 8,
    provider: Optional[str] = None,
    threads: Optional[int] = None,
    init_net: Optional[PathLike] = None,
    **told: Any,
) -> Detector:
    """A pair of files -> Detector.

    Args:
        path: either file of the pair, or what both names begin with; with `init_net` the predict net.
        labels, net, size, told: see `vision.runtimes.exported.describe`. A file that says no size is taken for one
            of 300 x 300: the original knew no other.
        device, provider: "cpu".
        batch_size: images at once; a file with a static batch is called several times.
        threads: of the CPU; what the first net of a process asks for stays.
        init_net: the file with the weights, where its name does not tell that it belongs to `path`.

    Raises UserError, also where two files do not belong together.
    """
    check_device(provider or device)
    pair = Pair(Path(init_net), Path(path)) if init_net is not None else find_pair(path)
    init, predict = read_net(pair.init), read_net(pair.predict)
    name, filled = image_blob(pair, init, predict)
    card = read_card(pair.predict)
    workspace = start(threads, pair.predict)
    try:
        # Bytes, for a Caffe2 and this program may have different classes for the same message.
        predictor = workspace.Predictor(pair.init.read_bytes(), pair.predict.read_bytes())
    except Exception as error:  # RuntimeError of whatever is wrong inside
        raise UserError(f"{pair.predict}: Caffe2 cannot load it ({_reason(error)})") from error
    outputs = [str(each) for each in predict.external_output]
    shape: Tuple[Optional[int], ...]
    if card is not None:
        shape = (None if card.dynamic_batch else card.batch_size, 3, *card.input.size)
    else:
        shape = (filled or (1, 3))[:2] + tuple(size or filled[2:] or (REFERENCE_SIDE, REFERENCE_SIDE))
    image = Tensor(name, "float32", shape)
    shown = _try(predictor, pair, image, outputs)
    model = describe(pair.predict, labels, net, size, graph=([image], shown), **told)
    return finish(
        model, _infer(predictor, model, outputs), "Caffe2", "CPU", batch_size, hint="Convert the net again."
    )


def devices() -> List[str]:
    """Names that `provider` takes."""
    return ["cpu"]


def pick_device(name: str) -> str:
    """The device, when Caffe2 works here. Raises UserError with what is missing."""
    check_device(name)
    start(None, None)
    return name


def check_device(name: Optional[str]) -> None:
    """Raises UserError for anything but the CPU: Caffe2's part for GPUs came in other packages."""
    if name not in (None, "cpu"):
        raise UserError(f"Caffe2 runs nets on the CPU here, not on {name!r}")


def start(threads: Optional[int], path: Optional[Path]) -> Any:
    """Caffe2's `workspace` module, ready. Raises UserError where it is not installed."""
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads are too few")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it regrets, to the root logger, that there is no GPU
    try:
        from caffe2.python import workspace
    except (ImportError, AttributeError, TypeError) as error:
        # The latter two come from a numpy or protobuf that is too new, with a page of reasons; one line will do.
        where, how = f"{path}: " if path else "", RUNTIMES["caffe2"].install
        raise UserError(f"{where}cannot import caffe2 ({first_line(error)}); try: {how}") from error
    finally:
        logging.disable(before)
    if not _threads:
        # Its messages say that the CPU could do more than old binaries know; what fails is raised as well.
        flags = ["caffe2", "--caffe2_log_level=3"]
        if threads is not None:
            flags += [f"--caffe2_omp_num_threads={threads}", f"--caffe2_mkl_num_threads={threads}"]
        workspace.GlobalInit(flags)
        _threads.append(threads)
    elif threads is not None and _threads[0] != threads:
        log.warning(
            "Caffe2 runs with %s threads in this process already, not %d", _threads[0] or "its own", threads
        )
    return workspace


def _try(predictor: Any, pair: Pair, image: Tensor, outputs: List[str]) -> List[Tensor]:
    """The outputs with their shapes, which stand nowhere in the files, from a run on a grey image."""
    blob = np.zeros([side or 1 for side in image.shape], np.float32)
    try:
        found = predictor.run({image.name: blob})
    except Exception as error:
        raise UserError(
            f"{pair.predict}: Caffe2 failed on an image of {image.shape[2]} x {image.shape[3]} pixels (height x "
            f"width): {_reason(error)}. Are both files of the same net, and is that its size?"
        ) from error
    batch = image.shape[0]
    return [
        Tensor(name, "float32", (batch, *array.shape[1:]))
        for name, array in zip(outputs, map(np.asarray, found))
    ]


def _infer(predictor: Any, model: Exported, names: List[str]) -> Infer:
    places = [names.index(name) for name in model.outputs]

    def infer(blob: np.ndarray) -> List[np.ndarray]:
        found = predictor.run({model.input_name: np.ascontiguousarray(blob)})
        return [np.asarray(found[place]) for place in places]

    return infer


def _reason(error: BaseException) -> str:
    """The sentence in `[enforce fail at conv_op_impl.h:28] X.dim() == filter.dim(). 4 vs 1 (Error from ...`."""
    text = first_line(error)
    return (
        text.partition("] ")[2].partition(" (Error from")[0] or text if text.startswith("[enforce") else text
    )
