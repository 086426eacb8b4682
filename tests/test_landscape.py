"""The landscape of a quadratic valley whose every number is known, and of a real family."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import landscape as recipe
import pytest
import torch
from held_out import refuse_unknown
from safetensors.torch import save_file
from test_recipe import TINY, pretrain_here
from test_report import finish_branch, save
from trainer_runs import ROOT, command, command_line, record_command
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_wsd.errors import CheckpointError, DataError, FitError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.landscape import paths, read_places, step_between
from hf_wsd.landscape_page import landscape_section
from hf_wsd.lineage import Command
from hf_wsd.reporting import write_report
from hf_wsd.surveying import MEASURED, Grid, survey
from hf_wsd.terrain import Files, Terrain
from hf_wsd.valley import LANDSCAPE, load_landscape, read_landscape
from hf_wsd.verdict import judge

SLOPE, BEND, STEEP = 0.25, 2**-7, 2.0
GRID = Grid(points=3, along=3, across=3)


class Quadratic(torch.nn.Module):
    """A river along x, which falls and has the curvature BEND; hills of curvature `steep` along y; z does nothing."""

    def __init__(self, steep=STEEP):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(3))
        self.steep = steep

    def forward(self, lift):
        x, y, _ = self.place
        return SimpleNamespace(loss=lift.mean() + 20 - SLOPE * x + BEND * x**2 / 2 + self.steep * y**2 / 2)


BATCHES = [{"lift": torch.full((2,), value)} for value in (0.0, 1.0)]
STABLE = {30: (1.0, 1.0, 0.0), 60: (4.0, 1.0, 0.0), 70: (5.0, -1.0, 0.0), 80: (6.0, 1.0, 0.0)}
DECAYED = {(30, 40): {40: (2.0, 0.0, 0.0)}, (60, 100): {80: (5.0, 0.5, 0.0), 100: (6.0, 0.0, 0.0)}}


def put(checkpoint, weights):
    save_file({"place": torch.tensor(weights)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    step = int(checkpoint.name.split("-")[-1])
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def make_family(run, stable=STABLE, decayed=DECAYED):
    """A family of checkpoints with three weights each."""
    for step, weights in stable.items():
        save(run, step)
        put(run / f"checkpoint-{step}", weights)
    for (fork, end), places in decayed.items():
        finish_branch(run, fork, end, {"eval_loss": 1.0}, shape="linear")
        branch = next(run.glob(f"_branches/{fork}-*"))
        for step, weights in places.items():
            if step != end:
                schedule = read_run(branch).latest.schedule
                save(branch, step, kind="regular", schedule=schedule)
            put(branch / f"checkpoint-{step}", weights)
    return run


@pytest.fixture
def run(tmp_path):
    return make_family(tmp_path / "run")


def look(run, model=None, **more):
    return survey(read_run(run), model or Quadratic(), BATCHES, grid=GRID, **more)


def not_so(found):
    return [one.claim for one in judge(found).statements if one.holds is False]


def test_places_in_the_quadratic_valley_are_exact(run):
    spots = {spot.name: (spot.along, spot.across, spot.loss) for spot in look(run).spots}
    end = 20.5 - SLOPE * 6 + BEND * 18
    assert [spots[name][:2] for name in ("30", "80", "60-linear-40@80")] == [
        pytest.approx(place) for place in ((-1, 1), (4, 1), (3, 0.5))
    ]
    assert spots["60-linear-40@100"] == pytest.approx((4, 0, end), abs=1e-6)


def test_hill_loss_and_distances_of_a_decay_in_the_quadratic_valley_are_exact(run):
    fork, inside = look(run).decays[1].beside
    assert (fork.distance, fork.behind, fork.hill_loss) == pytest.approx((1, 2, STEEP / 2), rel=1e-6)
    assert (inside.distance, inside.behind, inside.hill_loss) == pytest.approx((0.5, 1, STEEP / 8), rel=1e-6)
    assert inside.multiplier == pytest.approx(0.525)  # update 79 of a linear decay from 60 to 100


def test_curvature_along_and_across_is_that_of_the_quadratic_valley(run):
    curvatures = [(decay.curvature_along, decay.curvature_across) for decay in look(run).decays]
    assert curvatures == [pytest.approx((BEND, STEEP), rel=1e-6)] * 2


def test_valley_is_called_one_and_every_statement_holds(run):
    verdict = judge(look(run))
    assert ([one.holds for one in verdict.statements], verdict.behaves) == ([True] * 8, True)


def test_run_without_a_hill_is_not_called_a_valley_and_it_says_why(run):
    found = look(run, Quadratic(steep=0.0))
    assert judge(found).sentence.startswith("This run does not behave like a river valley: 3 of 8 statements")
    assert [claim.split(":")[0] for claim in not_so(found)] == [
        "the stable phase runs above the river",
        "the hill loss falls with the lr",
        "the river is flat and the hills are steep",
    ]


def test_way_straight_down_without_noise_is_not_called_a_valley(tmp_path):
    straight = {30: (1.0, 1.0, 0.0), 60: (4.0, 0.9, 0.0), 70: (5.0, 0.85, 0.0), 80: (6.0, 0.8, 0.0)}
    claims = not_so(look(make_family(tmp_path / "run", straight)))
    assert claims == ["the trunk swings across the river: its next way rather undoes the last"]


def test_ridge_is_no_flat_river(run):
    found = look(run)
    ridge = replace(found, decays=tuple(replace(one, curvature_along=-2 * STEEP) for one in found.decays))
    assert [claim.split(":")[0] for claim in not_so(ridge)] == ["the river is flat and the hills are steep"]


def test_newest_checkpoint_of_the_trunk_has_its_hill_loss_too(run):
    found = look(run)
    assert (found.newest.name, found.newest.hill_loss) == ("80", pytest.approx(STEEP / 2, rel=1e-6))
    assert "The trunk has gone on to checkpoint 80" in found.still_on_the_hill


def test_one_batch_is_refused_for_it_has_no_error_bars(run):
    with pytest.raises(DataError, match="at least two batches of evaluation data, and there is 1"):
        survey(read_run(run), Quadratic(), BATCHES[:1], grid=GRID)


def test_trunk_that_turns_back_makes_no_progress(tmp_path):
    back = {30: (1.0, 1.0, 0.0), 60: (4.0, 1.0, 0.0), 80: (2.0, 1.0, 0.0)}
    assert "progress along the river grows with the sum of the lr" in not_so(look(make_family(tmp_path / "run", back)))


def test_what_no_checkpoint_shows_is_said_to_be_unseen(tmp_path):
    ends = {decay: {decay[1]: places[decay[1]]} for decay, places in DECAYED.items()}
    verdict = judge(look(make_family(tmp_path / "run", decayed=ends)))
    unseen = "; not to be seen here: the distance across falls with the lr; not to be seen here: the hill loss falls"
    assert unseen in verdict.sentence


def test_repeated_survey_measures_only_what_a_kill_has_cost(run):
    first = look(run)
    file = run / MEASURED
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:-3]) + rows[-3][:20])
    made = []
    assert (look(run, tell=made.append), made) == (first, [1, 2, 3])


def test_landscape_is_read_back_as_it_was_written(run):
    found = look(run)
    (run / LANDSCAPE).write_text(json.dumps(found.to_dict()))
    assert json.dumps(read_landscape(run).to_dict()) == json.dumps(found.to_dict())


def test_report_states_the_hill_loss_still_to_be_removed(run):
    (run / LANDSCAPE).write_text(json.dumps(look(run).to_dict()))
    section, told = landscape_section(read_run(run))
    assert "1.000 of it (+-0.000) is hill loss, which a decay still has to remove" in section.texts[0]
    assert told["river_valley"] is True


def test_report_links_the_pictures_that_lie_beside_the_landscape(run):
    (run / LANDSCAPE).write_text(json.dumps(look(run).to_dict()))
    assert landscape_section(read_run(run))[0].files == (LANDSCAPE,)  # drawn elsewhere
    (run / "landscape-side.png").touch()
    section, _ = landscape_section(read_run(run))
    assert "[landscape-side.png](landscape-side.png)" in "\n".join(section.markdown())


# --- slow: real models, processes, refusals ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        ({"stable": {30: (1.0, 1.0, float("nan"))}}, CheckpointError, "checkpoint-30 has weights that are no numbers"),
        ({"decayed": {(30, 40): DECAYED[30, 40]}}, FitError, "has 1 fork points with a finished decay"),
    ],
    ids=["diverged", "one decay"],
)
def test_family_that_shows_no_river_is_refused(tmp_path, damage, error, says):
    family = {"stable": STABLE, "decayed": DECAYED} | damage
    family["stable"] = STABLE | family["stable"]
    with pytest.raises(error, match=says):
        look(make_family(tmp_path / "run", **family))


@pytest.mark.slow
def test_damaged_landscape_does_not_stop_a_report(run):
    (run / LANDSCAPE).write_text("{}")
    section, told = landscape_section(read_run(run))
    assert section.texts[0].startswith("The landscape is left out: no landscape: 'schema'")
    assert json.loads(write_report(run)["json"].read_text())["landscape"] == told


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A family of a few thousand parameters, with checkpoints inside its decays."""
    run = tmp_path_factory.mktemp("real") / "run"
    flags = ("--budgets", "20", "40", "--save_steps", "3", "--save_total_limit", "9")
    pretrain_here(run, *flags)
    argv = (str(ROOT / "recipes" / "pretrain.py"), *TINY, *flags)
    record_command(run, Command(argv=argv, cwd=str(run.parent)))
    return run


def test_readme_has_the_numbers_of_the_stored_landscape():
    found = load_landscape(ROOT / "recipes" / "results" / LANDSCAPE)
    readme = " ".join((ROOT / "recipes" / "README.md").read_text(encoding="utf-8").split())
    *_, last = found.decays
    drop = next(spot.loss for spot in found.spots if spot.name == last.fork.name) - last.loss
    hills = [f"{decay.fork.hill_loss:.3f}" for decay in found.decays]
    first, *_, end = [one.curvature_across / one.curvature_along for one in found.decays]
    swings = [f"{turn.cosine_across:.2f}" for turn in found.turns]
    quoted = (
        judge(found).sentence,
        f"of the {drop:.3f} that it takes off the loss, {hills[-1]} is hill loss (+- {last.fork.error:.3f})",
        f"{', '.join(hills[:-1])} and {hills[-1]} at the four fork points",
        f"ways across is {', '.join(swings[:-1])} and {swings[-1]}",
        f"{first:.0f} times at the first",
        f"{end:.1f} times at the last",
    )
    assert [words for words in quoted if words not in readme] == []


def test_stored_landscape_is_told_and_drawn_again(run, tmp_path, capsys):
    (tmp_path / LANDSCAPE).write_text(json.dumps(look(run).to_dict()))
    with command_line("landscape.py", tmp_path / LANDSCAPE, "--into", tmp_path):
        recipe.main()
    assert "8 of 8 statements hold" in capsys.readouterr().out
    assert len(list(tmp_path.glob("landscape*.png"))) == 3


def printed(capsys, *argv):
    capsys.readouterr()
    with command_line("landscape.py", *argv):
        recipe.main()
    return capsys.readouterr().out


QUICK = ("--points", "3", "--grid", "3", "3")


@pytest.mark.slow
def test_losses_of_the_recipe_are_those_that_a_real_run_has_recorded(real, capsys):
    found = json.loads(printed(capsys, real, *QUICK, "--json"))
    losses = {spot["name"]: spot["loss"] for spot in found["spots"]}
    branch = read_run(real).branches[-1]
    assert losses[f"{branch.path.name}@40"] == pytest.approx(branch.losses_at(40)["loss"], abs=1e-6)
    assert {"landscape.png", "landscape-side.png", "landscape-way.png"} <= {file.name for file in real.iterdir()}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(real, tmp_path, capsys):
    alone = json.loads(printed(capsys, real, *QUICK, "--json"))
    shutil.copytree(real, tmp_path / "run", ignore=shutil.ignore_patterns("*landscape*"))
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    command([*launch, ROOT / "recipes" / "landscape.py", tmp_path / "run", *QUICK])
    shared = [spot.loss for spot in read_landscape(tmp_path / "run").spots]
    assert shared == pytest.approx([spot["loss"] for spot in alone["spots"]], abs=1e-6)


def test_flag_that_the_recipe_does_not_have_is_refused():
    with pytest.raises(SettingsError, match=r"pretrain\.py has no --train_files pages\.jsonl"):
        refuse_unknown(["--block_size", "64", "--train_files", "pages.jsonl"])


def terrain_of(family, folder, model, stack):
    files = stack.enter_context(Files(paths(family, folder)))
    ids = torch.arange(4).reshape(2, 2)
    return Terrain(model, [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}], files)


@pytest.mark.slow
def test_curvature_of_a_real_model_is_that_of_the_whole_hessian_vector_product(real):
    family, model = read_places(read_run(real)), AutoModelForCausalLM.from_pretrained(real / "checkpoint-30")
    eager = AutoModelForCausalLM.from_pretrained(real / "checkpoint-30", attn_implementation="eager")
    way = step_between(family.descents[0].end, family.descents[1].end)
    with ExitStack() as stack:
        (curvature,) = terrain_of(family, real, model, stack).curvature({"30": 1.0}, way)
        oracle = terrain_of(family, real, eager, stack)
        vector = [oracle.files.fill(torch.empty_like(value), key, way) for key, value in oracle.state.items()]
    oracle.model.requires_grad_(True)
    weights = list(oracle.state.values())
    slopes = torch.autograd.grad(oracle.model(**oracle.batches[0]).loss, weights, create_graph=True)
    along = sum((slope * part).sum() for slope, part in zip(slopes, vector, strict=True))
    product = torch.autograd.grad(along, weights)
    exact = sum(float((one * part).sum()) for one, part in zip(product, vector, strict=True))
    assert curvature == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "copies"), [("losses", 1), ("curvature", 3)])
@pytest.mark.parametrize(("layers", "vocabulary"), [(10, 64), (3, 30_000)], ids=["layers", "one large tensor"])
def test_memory_is_at_most_three_copies_of_the_weights(run, tmp_path, measure, copies, layers, vocabulary):
    """As torch's profiler counts, of a model that is large beside its four tokens; or most of it is one tensor."""
    shape = {"n_layer": layers, "n_embd": 256, "n_head": 2, "n_positions": 16, "vocab_size": vocabulary}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    model.save_pretrained(tmp_path / "model")
    for file in run.glob("**/checkpoint-*/model.safetensors"):
        file.unlink()
        file.hardlink_to(tmp_path / "model" / "model.safetensors")
    family = read_places(read_run(run))
    first, last = (descent.end for descent in family.descents)
    with ExitStack() as stack:
        terrain = terrain_of(family, run, model, stack)
        way = [step_between(first, last)] if measure == "curvature" else []
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            getattr(terrain, measure)({last: 0.5, first: 0.5}, *way)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    peak = max(accumulate((event["args"]["Bytes"] for event in events), initial=0))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert 1 + peak / weights < copies + 0.3  # what four tokens activate
