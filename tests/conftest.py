"""Where the independent truth lies: reference numbers and real photographs, beside the repository; other
versions of Python and of libraries, in environments of their own."""

import functools
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SHARED = Path(os.environ.get("VISION_SHARED", Path(__file__).parents[2] / "shared"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} is not there; put it beside the repository or set VISION_SHARED")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers of the original implementation (shared/reference)."""
    return _folder("reference")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Real photographs in VOC layout (shared/data)."""
    return _folder("data")


class Environments:
    """Environments with other libraries than this one has, kept in .envs for the next time.

    Whoever asks first waits for pip, so tests that use them have a longer timeout.
    """

    folder = ROOT / ".envs"

    def make(self, name, hangs_on, fill):
        """The folder that `fill` has filled; anew where `hangs_on` (texts) has changed. `fill` may skip."""
        fcntl = pytest.importorskip("fcntl")
        key = hashlib.sha256("\n".join(hangs_on).encode()).hexdigest()[:12]
        folder = self.folder / f"{name}-{key}"
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
            if not (folder / "ready").exists():
                for old in self.folder.glob(f"{name}-*"):
                    shutil.rmtree(old)
                fill(folder)
                (folder / "ready").touch()
        return folder

    def venv(self, name, base, pins, *options, then=None, hangs_on=()):
        """Python of a virtual environment of the interpreter `base` with these packages; `then` may add to it."""

        def fill(folder):
            subprocess.run([base, "-m", "venv", str(folder)], check=True, timeout=200)
            python = folder / "bin" / "python"
            self.fetch(python, "install", *options, *pins)
            if then is not None:
                then(python)

        return self.make(name, [base, *pins, *hangs_on], fill) / "bin" / "python"

    def fetch(self, python, command, *words):
        """`pip`; skips the test where it cannot."""
        done = self.pip(python, command, *words)
        if done.returncode:
            pytest.skip(f"pip cannot: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")

    @staticmethod
    def pip(python, command, *words):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        line = [str(python), "-m", "pip", command, *quiet, *map(str, words)]
        try:
            return subprocess.run(line, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip {command} did not end within 10 minutes")

    @staticmethod
    def interpreter(version):
        """A Python of this version that really starts, or None. (pyenv's shims stand for some that it will not run.)"""
        candidates = [shutil.which(f"python{version}")]
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        candidates += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))
        for path in filter(None, candidates):
            try:
                code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
                done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.stdout.strip() == version:
                return path
        return None

    @staticmethod
    def runner(python, **more):
        """Runs a command line there, with the package as it is now: (words, exit code) -> what it printed.

        After a wanted failure that is what it said on stderr.
        """
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}

        def run(*words, code=0, stdin=None):
            done = subprocess.run(
                [str(python), *map(str, words)],
                capture_output=True,
                text=True,
                timeout=600,
                input=stdin,
                env=environment,
            )
            assert done.returncode == code, done.stdout + done.stderr
            return done.stderr if code else done.stdout

        return run


@pytest.fixture(scope="session")
def environments():
    return Environments()


# --- TensorRT's own bindings, which import without TensorRT -------------------------------------------------

BINDINGS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "11": "tensorrt-cu13-bindings==11.4.0.106",
}


@pytest.fixture(scope="session")
def bindings(environments):
    """(version of BINDINGS, Python code) -> what it printed, run where `tensorrt` is NVIDIA's real Python package.

    The library below it (gigabytes, and nothing works in it without a GPU) is a stub whose functions all return null:
    classes, methods and enums are real, and whatever asks the library for something gets nothing.
    """

    def run(version, code):
        if not (sys.platform.startswith("linux") and shutil.which("cc") and shutil.which("nm")):
            pytest.skip("needs Linux, a C compiler and nm")
        requirement = BINDINGS[version]
        key = [requirement, sys.version[:4]]
        folder = environments.make(
            f"bindings{version}", key, lambda place: _unpack(environments, requirement, place)
        )
        return environments.runner(
            sys.executable, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}", LD_LIBRARY_PATH=str(folder)
        )("-c", code)

    return run


REFLECTION = """
import json, re
import tensorrt

def calls(name, method):
    # pybind11 writes the signatures into the docstring, one line for each overload
    lines = re.findall(r"^(?:[0-9]+\\. )?%s\\(self: (.*)\\) -> " % name, method.__doc__ or "", re.MULTILINE)
    counts = [len(re.findall(r", \\w+: ", line)) for line in lines]
    return [[count - line.count(" = "), count] for count, line in zip(counts, lines)]

found = {"classes": {}, "enums": {}}
for name, kind in vars(tensorrt).items():
    if hasattr(kind, "__members__"):
        found["enums"][name] = {member: int(value) for member, value in kind.__members__.items()}
    elif isinstance(kind, type):
        found["classes"][name] = {each: calls(each, getattr(kind, each)) for each in dir(kind) if each[0] != "_"}
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def interface(bindings):
    """Version of BINDINGS -> its classes ({name: {member: [[fewest, most arguments] of each overload]}}) and enums."""
    return functools.lru_cache(None)(lambda version: json.loads(bindings(version, REFLECTION)))


@pytest.fixture(scope="session")
def check_stand_in(interface):
    """Fails where a class made by hand can what the real one, of a name and version, cannot."""

    def check(stand_in, name, version):
        real = interface(version)["classes"][name]
        for member, method in vars(stand_in).items():
            if member.startswith("_"):
                continue
            assert member in real, f"{name}.{member} is not in {version}"
            if callable(method):
                count = len(inspect.signature(method).parameters) - 1
                fits = [fewest <= count <= most for fewest, most in real[member]]
                assert any(fits), f"{name}.{member} of {version} takes {real[member]} arguments, not {count}"

    return check


def _unpack(environments, requirement, folder):
    with tempfile.TemporaryDirectory() as wheels:
        wanted = ("--no-deps", "--only-binary=:all:", "-d", wheels, requirement)
        environments.fetch(sys.executable, "download", *wanted)
        (wheel,) = Path(wheels).iterdir()
        shutil.unpack_archive(wheel, folder, "zip")
    (library,) = folder.glob("tensorrt*/tensorrt.so")
    library.parent.rename(folder / "tensorrt")
    library = folder / "tensorrt" / library.name

    def words(*command):
        lines = subprocess.run([*command, str(library)], capture_output=True, text=True, check=True).stdout
        return [line.split() for line in lines.splitlines()]

    undefined = [line[-1] for line in words("nm", "-D", "--undefined-only") if line[:1] == ["U"]]
    missing = [name for name in undefined if "@" not in name and not name.startswith(("Py", "_Py"))]
    source = folder / "stub.c"
    functions = [
        f'void *f{i}(void) __asm__("{name}"); void *f{i}(void) {{ return 0; }}'
        for i, name in enumerate(missing)
    ]
    source.write_text("\n".join(functions) + "\n")
    for line in words("objdump", "-p"):
        if line[:1] == ["NEEDED"] and line[1].startswith("libnv"):
            stub = [
                "cc",
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{line[1]}",
                "-o",
                str(folder / line[1]),
                str(source),
            ]
            subprocess.run(stub, check=True)
