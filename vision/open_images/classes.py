"""Class names as users type them, to the class ids (MIDs) of Open Images."""

import csv
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from vision.errors import UserError

MOST_HINTS = 3


@dataclass(frozen=True)
class ClassSpec:
    """What a user asked of one class: `Name[:filter[:fraction]]`.

    Attributes:
        name: as typed; a name in any case or a MID.
        group: which images with this class to take: False (`~group`) those without a group box of it, True
            (`group`) those with nothing but group boxes of it, None all.
        fraction: the share of them to take, 0 to 1.
    """

    name: str
    group: Optional[bool] = None
    fraction: float = 1.0


def parse_class_specs(text: str) -> List[ClassSpec]:
    """ "Handgun,Shotgun:~group:0.5" -> its specs; a name with a comma stands in double quotes.

    Raises UserError for a filter or fraction that is none, and when nothing is asked for.
    """
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), [])]
    specs = [_parse_class_spec(word) for word in words if word]
    if not specs:
        raise UserError('no class is named; say for example --class_names "Handgun,Shotgun"')
    return specs


def _parse_class_spec(text: str) -> ClassSpec:
    name, *rest = (part.strip() for part in text.split(":"))
    if not name or len(rest) > 2:
        raise UserError(f"class {text!r}: write Name, Name:filter or Name:filter:fraction")
    group: Optional[bool] = None
    fraction = 1.0
    if rest and rest[0]:
        try:
            group = {"group": True, "~group": False}[rest[0].lower()]
        except KeyError:
            raise UserError(f"class {text!r}: filter {rest[0]!r} is neither group nor ~group") from None
    if len(rest) == 2:
        try:
            fraction = float(rest[1])
        except ValueError:
            fraction = -1.0
        if not 0 < fraction <= 1:
            raise UserError(f"class {text!r}: fraction {rest[1]!r} is no number above 0 and up to 1")
    return ClassSpec(name, group, fraction)


def resolve(specs: List[ClassSpec], names: Dict[str, str]) -> Dict[str, ClassSpec]:
    """MID -> spec, with the official spelling as its name.

    Args:
        specs: what was asked; a class that is named twice counts once, when both say the same.
        names: MID -> official name.

    Raises UserError that lists *all* unknown names, each with the nearest known ones.
    """
    by_name = {name.lower(): mid for mid, name in names.items()}
    resolved: Dict[str, ClassSpec] = {}
    unknown = []
    for spec in specs:
        mid = spec.name if spec.name in names else by_name.get(" ".join(spec.name.lower().split()))
        if mid is None:
            unknown.append(spec.name + _hint(spec.name, by_name, names))
            continue
        official = ClassSpec(names[mid], spec.group, spec.fraction)
        if resolved.setdefault(mid, official) != official:
            raise UserError(f"class {names[mid]!r} is asked for twice, with different filters")
    if unknown:
        raise UserError(
            f"Open Images has no boxes of: {'; '.join(unknown)}. The {len(names)} classes are in {_CLASSES_HINT}"
        )
    return resolved


_CLASSES_HINT = "class-descriptions-boxable.csv (case does not matter)"


def _hint(name: str, by_name: Dict[str, str], names: Dict[str, str]) -> str:
    word = name.lower()
    near = difflib.get_close_matches(word, by_name, n=MOST_HINTS, cutoff=0.6)
    near += [known for known in by_name if known not in near and (word in known or known in word)]
    if not near:
        return ""
    return f" (did you mean {', '.join(names[by_name[known]] for known in near[:MOST_HINTS])}?)"


# --- hierarchy ----------------------------------------------------------------------------------------------


def read_hierarchy(path: Path) -> Dict[str, List[str]]:
    """MID -> MIDs of its direct subclasses, from bbox_labels_600_hierarchy.json.

    "Part" branches (a wheel is part of a car) are no subclasses and left out.
    """
    try:
        root = json.loads(path.read_bytes())
        children: Dict[str, List[str]] = {}
        pending: List[Any] = [root]
        while pending:
            node = pending.pop()
            below = node.get("Subcategory", [])
            known = children.setdefault(node["LabelName"], [])
            known.extend(child["LabelName"] for child in below if child["LabelName"] not in known)
            pending.extend(below)
            pending.extend(node.get("Part", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: is no class hierarchy ({error!r}); delete it and download it again"
        ) from error
    return children


def expand(wanted: Dict[str, ClassSpec], children: Dict[str, List[str]]) -> Dict[str, str]:
    """MID -> the asked class it counts as: every asked class and all below it.

    A class below two asked ones goes to the nearer (an Apple box is "Fruit", not "Food", when both are asked for).
    """
    nearest: Dict[str, Tuple[int, str]] = {}
    for mid, spec in wanted.items():
        level, distance, seen = [mid], 0, {mid}
        while level:
            for each in level:
                nearest[each] = min(nearest.get(each, (distance, spec.name)), (distance, spec.name))
            level = [child for each in level for child in children.get(each, []) if child not in seen]
            level = list(dict.fromkeys(level))
            seen.update(level)
            distance += 1
    return {mid: name for mid, (_, name) in nearest.items()}
