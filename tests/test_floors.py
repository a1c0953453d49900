"""The house: imports go down the floors only, and the floors without torch really are."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Longest prefix wins. cli knows only the standard library and the error type, so it stands on the ground.
FLOORS = {
    "vision": 0,
    "vision.errors": 0,
    "vision.cli": 0,
    "vision.boxes": 0,
    "vision.spec": 0,
    "vision.onnx_header": 0,
    "vision.caffe2_net": 0,
    "vision.card": 1,
    "vision.drawing": 1,
    "vision.detector": 1,
    "vision.data": 1,
    "vision.evaluation": 1,
    "vision.open_images": 2,
    "vision.runtimes": 2,
    "vision.live": 2,
    "vision.doctor": 2,
    "vision.parity": 2,
    "vision.nets": 3,
    "vision.ssd": 4,
    "vision.matching": 4,
    "vision.loss": 4,
    "vision.schedule": 4,
    "vision.precision": 4,
    "vision.checkpoint": 4,
    "vision.weights": 4,
    "vision.loader": 4,
    "vision.record": 4,
    "vision.config": 5,
    "vision.engine": 5,
    "vision.export": 5,
    # Engines are built where they run, and no board of that kind needs torch. Those that change graphs want onnx.
    "vision.export.tensorrt": 2,
    "vision.export.files": 2,
    "vision.export.tail": 2,
    "vision.export.retarget": 2,
    "vision.export.fp16": 2,
    "vision.export.quantize": 2,
    "vision.export.accuracy": 2,
    # Opens checkpoints beside the torch-free runtimes; imported only when somebody asks for it.
    "vision.runtimes.pytorch": 5,
}
TORCH_FLOOR = 3


def floor_of(module):
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


def modules():
    for path in sorted((ROOT / "vision").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name[: -len(".__init__")] if name.endswith(".__init__") else name, path


def imports(path, top_level_only=True):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "vision")


def test_every_module_has_a_floor():
    top = {".".join(name.split(".")[:2]) for name, _ in modules()}
    assert top <= set(FLOORS), f"give these a floor: {sorted(top - set(FLOORS))}"


def test_imports_go_down():
    climbing = [
        f"{name} (floor {floor_of(name)}) imports {target} (floor {floor_of(target)})"
        for name, path in modules()
        for target in imports(path)
        if target.split(".")[0] == "vision" and floor_of(target) > floor_of(name)
    ]
    assert not climbing, "\n".join(climbing)


def test_torch_is_not_mentioned_below_its_floor():
    guilty = [
        f"{name} imports {target}"
        for name, path in modules()
        if floor_of(name) < TORCH_FLOOR
        for target in imports(path, top_level_only=False)
        if target.split(".")[0] in ("torch", "torchvision")
    ]
    assert not guilty, "\n".join(guilty)


def test_the_lower_floors_work_where_torch_does_not():
    # The package that a runtime is named after need not be installed.
    absent = {
        f"vision.runtimes.{package}"
        for package in ("onnxruntime", "openvino")
        if importlib.util.find_spec(package) is None
    }
    if importlib.util.find_spec("onnx") is None:
        absent |= {f"vision.export.{name}" for name in ("retarget", "fp16", "quantize", "accuracy")}
    absent |= {"vision.runtimes.detectnet"} if "vision.runtimes.onnxruntime" in absent else set()
    names = [
        name
        for name, _ in modules()
        if floor_of(name) < TORCH_FLOOR and not name.endswith("__main__") and name not in absent
    ]
    assert len(names) > 8
    code = "import sys\nsys.modules['torch'] = None\nimport importlib\n"
    code += "\n".join(f"importlib.import_module({name!r})" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_syntax_is_that_of_python_3_8():
    for path in [*(ROOT / "vision").rglob("*.py"), *ROOT.glob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 8))


def test_importing_a_script_runs_nothing():
    for path in ROOT.glob("*.py"):
        if path.name == "setup.py":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [node for node in body if isinstance(node, ast.With) and "needs" in ast.dump(node.items[0])]
        assert all(isinstance(inner, ast.ImportFrom) for node in imports for inner in node.body)
        for node in body:
            allowed = (
                ast.Import,
                ast.ImportFrom,
                ast.FunctionDef,
                ast.ClassDef,
                ast.Assign,
                ast.AnnAssign,
                ast.If,
            )
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert isinstance(node, allowed) or docstring or node in imports, f"{path.name}:{node.lineno}"
