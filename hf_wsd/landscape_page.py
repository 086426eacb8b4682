"""The part of a family's page on its landscape: the hill loss still to be removed, the verdict, a picture."""

from __future__ import annotations

from typing import Any

from hf_wsd.errors import DataError
from hf_wsd.family import Run
from hf_wsd.landscape_plots import FIGURES, above_figure
from hf_wsd.page import Grid, Picture, Section
from hf_wsd.valley import LANDSCAPE, Landscape, read_landscape
from hf_wsd.verdict import Verdict, judge

TITLE = "River valley"
HOLDS = {True: "yes", False: "no", None: "not to be seen"}


def landscape_section(run: Run) -> tuple[Section | None, dict[str, Any] | None]:
    """What `RUN/landscape.json` says, as a section and JSON-ready; None where nobody has looked at the landscape.

    Args:
        run: the trunk.
    """
    try:
        found = read_landscape(run.path)
    except DataError as error:
        return Section(title=TITLE, texts=(f"The landscape is left out: {error}.",)), {"refused": str(error)}
    if found is None:
        return None, None
    verdict = judge(found)
    return _section(run, found, verdict), verdict.to_dict() | {"hill_loss": found.still_on_the_hill}


def _section(run: Run, found: Landscape, verdict: Verdict) -> Section:
    rows = tuple((one.claim, HOLDS[one.holds], one.found) for one in verdict.statements)
    heads = ("statement", "holds", "found")
    fork, end = found.decays[-1].fork, found.decays[-1]
    others = [f"{name}.png" for name in FIGURES if FIGURES[name] is not above_figure]
    picture = Picture(
        figure=above_figure(found),
        name="report-landscape",
        alt=f"Map of the loss in the plane of the last decay: {fork.name} lies on the hill, {end.end} in the valley.",
        caption="White, dashed: from the decayed model before to the last one, the river's direction. Orange: the last "
        "decay, from the trunk's fork point (open circle) down to the river. Between them the loss was measured on "
        f"{found.evaluation['blocks']} held-out blocks.",
    )
    return Section(
        title=TITLE,
        texts=(f"Hill loss still to be removed. {found.still_on_the_hill}", f"{verdict.sentence}."),
        picture=picture,
        table=Grid(heads=heads, rows=rows, words=heads),
        notes=tuple(_notes(run, found)),
        files=(LANDSCAPE, *(name for name in others if (run.path / name).exists())),
    )


def _notes(run: Run, found: Landscape) -> list[str]:
    notes = [
        found.swings,
        "The picture of the loss as a river valley, in which the stable phase runs along the river above its bed and a "
        "decay goes down to it, is that of arXiv 2410.05192.",
        *found.thinned_out,
    ]
    last = max(spot.step for spot in found.spots)
    if (newest := max((member.steps_done for member in run.walk(rewound=False)), default=0)) > last:
        notes.append(f"It was made at step {last}, and the family has come to {newest}: repeat recipes/landscape.py.")
    return notes
