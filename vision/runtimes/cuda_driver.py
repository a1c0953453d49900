"""As much of CUDA as running an engine needs: memory, copies, a stream, graphs. Through the driver, by ctypes.

libcuda comes with every driver, on a Jetson as on a server, and its interface does not change; libcudart, cuda-python
and pycuda may be missing or of another version. Tensors of PyTorch live in the same (primary) context.
"""

import ctypes
import ctypes.util
import sys
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from vision.errors import UserError

NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")

NOTHING_HERE = (
    "there is no NVIDIA GPU here, or no driver for it ({why}). An engine runs nowhere else; run the .onnx file with "
    "onnxruntime or OpenCV instead"
)

# CUdevice_attribute
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
_OUT_OF_MEMORY = 2
_OF_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating


class Cuda:
    """One GPU. Raises UserError when there is none.

    Args:
        number: which one.
    """

    def __init__(self, number: int = 0) -> None:
        self.lib = _library()
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= number < count.value:
            raise UserError(f"there is no GPU number {number} here; there are {count.value}, counted from 0")
        self.number = number
        self.device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self.device), number)
        self.context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.enter()

    def enter(self) -> None:
        """Make this GPU the one that the calling thread works with."""
        self._call("cuCtxSetCurrent", self.context)

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self.lib, name)
        except AttributeError:
            raise RuntimeError(f"the driver is too old for {name}") from None
        code = function(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        if getattr(self.lib, "cuGetErrorString", None) is not None:
            self.lib.cuGetErrorString(code, ctypes.byref(text))
        said = (text.value or b"").decode("utf-8", "replace") or f"code {code}"
        if name in ("cuInit", "cuDeviceGetCount"):
            raise UserError(NOTHING_HERE.format(why=said))
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"out of GPU memory ({name})")
        raise RuntimeError(f"{name}: {said}")

    # --- what it is ---

    @property
    def name(self) -> str:
        """As NVIDIA calls it ("Orin")."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, 256, self.device)
        return text.value.decode("utf-8", "replace")

    @property
    def capability(self) -> Tuple[int, int]:
        """Compute capability, (8, 7) for an Orin."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self.device)
        return value.value

    # --- memory ---

    def allocate(self, size: int) -> Tuple[int, Any]:
        """(address, owner) of so many bytes on the GPU; they live as long as the owner. Raises MemoryError.

        From PyTorch's pool where a program uses PyTorch on the GPU anyway, so that both share what is free.
        """
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            tensor = torch.empty(max(size, 1), dtype=torch.uint8, device=f"cuda:{self.number}")
            return tensor.data_ptr(), tensor
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value, _Owned(self, "cuMemFree_v2", pointer)

    def pinned(self, shape: Tuple[int, ...], dtype: Any) -> Tuple[np.ndarray, Any]:
        """(array, owner) in memory of the CPU that the GPU copies from and to by itself."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        owner = _Owned(self, "cuMemFreeHost", pointer)
        content = (ctypes.c_char * size).from_address(pointer.value or 0)
        return np.frombuffer(content, dtype).reshape(shape), owner

    # --- work ---

    def stream(self) -> int:
        """A queue of work of its own."""
        pointer = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(pointer), 1)  # does not wait for the default stream
        return pointer.value or 0

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        """Queue a copy to the GPU; the array must live until `wait`."""
        size = ctypes.c_size_t(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream))

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        """Queue a copy from the GPU."""
        size = ctypes.c_size_t(array.nbytes)
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Until everything queued is done. Raises RuntimeError for what went wrong meanwhile."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def record(self, stream: int, work: Callable[[], Any]) -> "Graph":
        """What `work` queues, to be launched as often as wanted with one call; nothing of it is done now.

        The addresses it uses are part of it. Raises RuntimeError where the driver or the work does not allow it; the
        stream can be used as before.
        """
        graph = ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _OF_THIS_THREAD)
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        ready = ctypes.c_void_p()
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self.lib.cuGraphDestroy(graph)
        return Graph(self, ready)


class Graph:
    """Recorded work; see `Cuda.record`."""

    def __init__(self, cuda: Cuda, ready: Any) -> None:
        self.cuda = cuda
        self.owner = _Owned(cuda, "cuGraphExecDestroy", ready)

    def launch(self, stream: int) -> None:
        """Queue it all."""
        self.cuda._call("cuGraphLaunch", self.owner.handle, ctypes.c_void_p(stream))


class _Owned:
    """Something of the driver's, given back when nobody holds it any more."""

    def __init__(self, cuda: Cuda, free: str, handle: Any) -> None:
        self.cuda, self.free, self.handle = cuda, free, handle

    def __del__(self) -> None:
        function = getattr(self.cuda.lib, self.free, None)
        if function is not None:
            function(self.handle)


def _library() -> Any:
    tried: List[str] = []
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
    raise UserError(NOTHING_HERE.format(why=tried[0] if tried else "no libcuda"))


def find_gpu(number: int = 0) -> Optional[Cuda]:
    """A GPU, or None."""
    try:
        return Cuda(number)
    except UserError:
        return None
