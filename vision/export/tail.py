"""Which part of an exported net is its body, and which the tail that must not be rounded.

The body is everything up to the last convolutions and the copying behind them. The tail is softmax, the decoding of
boxes and whatever selects among them: a few thousand numbers, so full precision costs nothing there, while a box
coordinate in half precision is off by half a pixel in an image of 1024. Floor 2: standard library only, for the rule
holds for an ONNX graph and for a network inside TensorRT alike.
"""

from typing import Dict, List, NamedTuple, Sequence, Set

LAYOUT = frozenset(("Concat", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that only move numbers."""


class Step(NamedTuple):
    """One operator: its name, kind (ONNX's word), and the names of values that it takes and makes."""

    name: str
    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def tail(steps: Sequence[Step]) -> Set[str]:
    """Names of the steps of the tail; `steps` in an order in which they can run.

    A step belongs to it when no convolution comes after it and it computes, or when it takes what the tail makes.
    Empty where there is no convolution.
    """
    before_conv = upstream(steps)
    if not before_conv:
        return set()
    names: Set[str] = set()
    made: Set[str] = set()
    for step in steps:
        if step.name in before_conv:
            continue
        if step.op not in LAYOUT or made & set(step.inputs):
            names.add(step.name)
            made |= set(step.outputs)
    return names


def upstream(steps: Sequence[Step], op: str = "Conv") -> Set[str]:
    """Names of the steps of this kind, and of all whose result reaches one."""
    makers: Dict[str, Step] = {value: step for step in steps for value in step.outputs}
    found: Set[str] = set()
    queue: List[Step] = [step for step in steps if step.op == op]
    while queue:
        step = queue.pop()
        if step.name in found:
            continue
        found.add(step.name)
        queue += [makers[value] for value in step.inputs if value in makers]
    return found


def entrance(steps: Sequence[Step], op: str = "Conv") -> Set[str]:
    """Names of the steps that no step of this kind comes before: normalisation, mostly."""
    reached: Set[str] = set()
    names: Set[str] = set()
    for step in steps:
        if step.op == op or reached & set(step.inputs):
            reached |= set(step.outputs)
        else:
            names.add(step.name)
    return names
