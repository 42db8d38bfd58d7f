"""Draws the rooms of heft and what they import: ``python docs/rooms.py`` writes docs/rooms.svg (Graphviz is needed).

The graph is grimp's, which import-linter uses too; imports for types alone are left out. A circle ends the script with
an error that names it. The transitive reduction is drawn: where a room is reached by way of another, its own arrow is
left out.
"""

from __future__ import annotations

import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import grimp

Arrows: TypeAlias = dict[str, set[str]]
"""For each room, named as ``stream/join``, those below it."""

COLOURS = {"stream": "#e6effa", "models": "#fbf0dc"}
STYLE = """
  graph [nodesep=0.3, ranksep=0.5, style=rounded, color="#bbbbbb"]
  node [fontname="Helvetica,Arial,sans-serif", fontsize=13, shape=box, style="rounded,filled", color="#44597a"]
  edge [color="#44597a", arrowsize=0.7]
"""


def imports_between_rooms() -> Arrows:
    """Return for each room, or file that lies beside the rooms, what its modules import of the others."""
    graph = grimp.build_graph("heft", exclude_type_checking_imports=True, cache_dir=None)
    rooms = {}
    for module in graph.modules:
        name = ".".join(module.split(".")[:3])
        if name.count(".") == 2:
            rooms[module] = name.removeprefix("heft.").replace(".", "/") + ("" if graph.find_children(name) else ".py")
    found: Arrows = {room: set() for room in rooms.values()}
    for module, room in rooms.items():
        imported = graph.find_modules_directly_imported_by(module)
        found[room] |= {rooms[other] for other in imported if other in rooms} - {room}
    return found


def reduced(imports: Arrows) -> Arrows:
    """Return the transitive reduction."""
    reached: Arrows = {}
    for room in TopologicalSorter(imports).static_order():  # what is imported comes first; a circle is an error
        reached[room] = imports[room].union(*(reached[other] for other in imports[room]))
    return {room: below - set().union(*(reached[other] for other in below)) for room, below in imports.items()}


def as_dot(arrows: Arrows) -> str:
    """Return the picture in Graphviz's language, all of stream above all of models."""
    halves = {half: sorted(room for room in arrows if room.startswith(half)) for half in COLOURS}
    lines = ["digraph rooms {", STYLE]
    for half, rooms in halves.items():
        lines += [f"  subgraph cluster_{half} {{", f'    node [fillcolor="{COLOURS[half]}"]']
        lines += [f'    "{room}"' for room in rooms] + ["  }"]
    lines += [f'  "{room}" -> "{below}"' for room in sorted(arrows) for below in sorted(arrows[room])]
    lowest = [room for room in halves["stream"] if not arrows[room].intersection(halves["stream"])]
    highest = set(halves["models"]).difference(*(arrows[room] for room in halves["models"]))
    lines += [f'  "{low}" -> "{high}" [style=invis]' for low in lowest for high in sorted(highest)]
    return "\n".join([*lines, "}"])


if __name__ == "__main__":
    drawn = reduced(imports_between_rooms())
    target = Path(__file__).with_name("rooms.svg")
    subprocess.run(["dot", "-Tsvg", "-o", str(target)], input=as_dot(drawn), text=True, check=True)
    print(f"{target}: {len(drawn)} rooms, {sum(map(len, drawn.values()))} arrows")
