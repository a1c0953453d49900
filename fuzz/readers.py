"""Coverage-guided fuzzing of the parsers: `python fuzz/readers.py voc -max_total_time=60`.

Needs atheris (`pip install atheris`; Linux, CPython up to 3.13). The same promises as in tests/data/test_fuzz.py
hold: whatever a file holds, a data set opens or is refused with a UserError. What libFuzzer's flags say follows
the name of the format; a crash is written to a file that reproduces it: `python fuzz/readers.py voc crash-...`.
"""

import contextlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def whole_set(kind, root):
    """A sound data set of a format, as the tests make them; gives its annotation file."""
    spec = importlib.util.spec_from_file_location("sets", ROOT / "tests" / "data" / "conftest.py")
    sets = importlib.util.module_from_spec(spec)
    sys.modules["sets"] = sets
    spec.loader.exec_module(sets)
    return sets.WholeSet(kind, root).write(sets.sound()).annotation()


def main(arguments):
    if not arguments or arguments[0] not in ("voc", "coco", "yolo", "csv", "open_images", "data.yaml"):
        sys.exit(__doc__)
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["vision.data", "yaml", "json", "csv"]):
        from vision.data import open_dataset
        from vision.errors import UserError

    kind = "yolo" if arguments[0] == "data.yaml" else arguments[0]
    place = Path(tempfile.mkdtemp())
    file = whole_set(kind, place)
    if arguments[0] == "data.yaml":
        file = place / "data.yaml"
    seeds = place.with_name(place.name + "-seeds")
    seeds.mkdir()
    shutil.copyfile(file, seeds / "whole")

    def one(data):
        file.write_bytes(data)
        with contextlib.suppress(UserError):
            open_dataset(place, "train", kind)

    # libFuzzer takes either files to run again or folders to begin from.
    again = any(Path(word).is_file() for word in arguments[1:])
    atheris.Setup([sys.argv[0], *arguments[1:], *([] if again else [str(seeds)])], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
