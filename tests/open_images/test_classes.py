"""Class names as typed, to ids; the hierarchy."""

import json
from pathlib import Path
from typing import Dict

import pytest

from vision.errors import UserError
from vision.open_images.classes import ClassSpec, expand, parse_class_specs, read_hierarchy, resolve

NAMES = {"/m/1": "Handgun", "/m/2": "Shotgun", "/m/3": "Person", "/m/4": "Man", "/m/5": "Nail, iron"}


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("Handgun", [ClassSpec("Handgun")]),
        (" Handgun , Shotgun,", [ClassSpec("Handgun"), ClassSpec("Shotgun")]),
        ("Handgun:group", [ClassSpec("Handgun", True)]),
        ("Handgun:~group:0.5,Car", [ClassSpec("Handgun", False, 0.5), ClassSpec("Car")]),
        ("Handgun : ~Group : 1", [ClassSpec("Handgun", False, 1.0)]),
        ("Handgun::.25", [ClassSpec("Handgun", None, 0.25)]),
        ("/m/0k4j", [ClassSpec("/m/0k4j")]),
        ('"Nail, iron",Car', [ClassSpec("Nail, iron"), ClassSpec("Car")]),
    ],
)
def test_specs(text: str, specs: list) -> None:
    assert parse_class_specs(text) == specs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no class is named"),
        (" , ,", "no class is named"),
        ("Car:groups", "'groups' is neither group nor ~group"),
        ("Car:group:2", "fraction '2'"),
        ("Car:group:0", "fraction '0'"),
        ("Car:group:half", "fraction 'half'"),
        ("Car:group:nan", "fraction 'nan'"),
        ("Car:group:1:1", "write Name"),
        (":group", "write Name"),
    ],
)
def test_specs_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_class_specs(text)


@pytest.mark.parametrize("name", ["Handgun", "HANDGUN", " handgun ", "/m/1"])
def test_a_name_in_any_case_or_an_id(name: str) -> None:
    assert resolve(parse_class_specs(name), NAMES) == {"/m/1": ClassSpec("Handgun")}


def test_a_class_that_is_named_twice_counts_once() -> None:
    assert len(resolve(parse_class_specs("Handgun,handgun,/m/1"), NAMES)) == 1
    with pytest.raises(UserError, match="'Handgun' is asked for twice"):
        resolve(parse_class_specs("Handgun,handgun:group"), NAMES)


def test_all_unknown_names_are_listed_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        resolve(parse_class_specs("Handguns,Man,Gun,Zzz"), NAMES)
    text = str(error.value)
    assert "Handguns (did you mean Handgun?); Gun (did you mean Shotgun, Handgun?); Zzz." in text


def tree(mid: str, *below: dict, part: str = "") -> dict:
    node: Dict[str, object] = {"LabelName": mid}
    if below:
        node["Subcategory"] = list(below)
    if part:
        node["Part"] = [tree(part)]
    return node


def test_expansion_goes_to_the_nearest_asked_class(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    food = tree(
        "food", tree("fruit", tree("apple"), tree("pear", tree("nashi"))), tree("bread", part="crust")
    )
    path.write_text(json.dumps(tree("all", food, tree("fruit", tree("fig")))))
    children = read_hierarchy(path)

    def expanded(*asked: str) -> Dict[str, str]:
        return expand({mid: ClassSpec(mid.title()) for mid in asked}, children)

    assert expanded("bread") == {"bread": "Bread"}
    assert expanded("fruit") == dict.fromkeys(["fruit", "apple", "pear", "nashi", "fig"], "Fruit")
    both = expanded("food", "pear")
    assert (both["pear"], both["nashi"], both["apple"], both["food"]) == ("Pear", "Pear", "Food", "Food")
    assert "crust" not in both


def test_a_loop_in_the_hierarchy_ends() -> None:
    assert expand({"a": ClassSpec("A")}, {"a": ["b"], "b": ["a"]}) == {"a": "A", "b": "A"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"LabelName": "a", "Subcategory": [1]}', "<html>", "null"])
def test_what_is_no_hierarchy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tree\.json: is no class hierarchy"):
        read_hierarchy(path)
