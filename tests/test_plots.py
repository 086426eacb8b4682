"""Pictures of small families: what is drawn is what the schedule and the history say."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import BRANCHES, Lineage, Parent
from hf_wsd.plots import DECAY, LABELS, TRUNK, families_figure, family_figure, plot_losses, plot_lr

TOKENS = 64  # of one step
PEAK = 0.01
TRUNK_SCHEDULE = wsd(num_warmup_steps=5, num_decay_steps=0)


def save(run, step, schedule, *, kind="fork", tokens_per_step=TOKENS, peak_lrs=(PEAK, PEAK)):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    Lineage(step=step, kind=kind, schedule=schedule, tokens_per_step=tokens_per_step, peak_lrs=peak_lrs).write(folder)


def log(run, key, losses):
    for step, loss in losses.items():
        append_history(run, {"step": step, key: loss})


def add_branch(run, fork, end, losses, *, saved=True, tokens_per_step=TOKENS, requested=None):
    folder = run / BRANCHES / f"{fork}-linear-{end - fork}"
    folder.mkdir(parents=True)
    schedule = TRUNK_SCHEDULE.fork(fork, decay_steps=end - fork, shape="linear")
    parent = Parent(checkpoint=f"../../checkpoint-{fork}", step=fork)
    record = Lineage(step=fork, kind="planned", schedule=schedule, parent=parent, requested=requested)
    replace(record, tokens_per_step=tokens_per_step).write(folder)
    log(folder, "eval_loss", losses)
    if saved:
        save(folder, end, schedule, kind="post-decay", tokens_per_step=tokens_per_step)
    return schedule


@pytest.fixture
def family(tmp_path):
    """A trunk of 60 steps, a finished branch 30 -> 40 and one 60 -> 80 that stands at 70."""
    save(tmp_path, 30, TRUNK_SCHEDULE)
    save(tmp_path, 60, TRUNK_SCHEDULE)
    log(tmp_path, "loss", {10: 4.5, 50: 2.4})
    log(tmp_path, "eval_loss", {10: 4.0, 30: 3.0, 40: 2.5, 60: 2.25})
    add_branch(tmp_path, 30, 40, {35: 2.75, 40: 2.0})
    add_branch(tmp_path, 60, 80, {70: 2.0}, saved=False)
    return tmp_path


@pytest.fixture
def line(tmp_path):
    schedule = wsd_s(cycle_ends=[40, 100], num_warmup_steps=5, num_decay_steps=10)
    for step in (30, 40, 90, 100):
        save(tmp_path, step, schedule)
    log(tmp_path, "eval_loss", {30: 3.0, 40: 2.5, 60: 2.75, 90: 2.25, 100: 1.75})
    return tmp_path


def axes():
    return Figure().subplots()


def drawn(ax, gid):
    """The points of each line of that name."""
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in ax.lines if line.get_gid() == gid]


def styles(ax, gid):
    return [(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_gid() == gid]


def test_every_lr_is_the_schedules_own(family):
    ax = plot_lr(axes(), read_run(family))
    (warmup,), (stable,), (short, long) = (drawn(ax, name) for name in ("warmup", "stable", "decay"))
    assert warmup == [(u * TOKENS, TRUNK_SCHEDULE(u) * PEAK) for u in range(5)]
    assert stable == [(u * TOKENS, TRUNK_SCHEDULE(u) * PEAK) for u in range(4, 61)]
    model = TRUNK_SCHEDULE.fork(30, decay_steps=10, shape="linear")
    assert short == [(u * TOKENS, model(u) * PEAK) for u in range(30, 41)]
    assert (long[0], long[-1]) == ((60 * TOKENS, PEAK), (80 * TOKENS, 0.0))


def test_a_wsd_s_line_rewinds_to_the_peak(line):
    ax = plot_lr(axes(), read_run(line))
    schedule = wsd_s(cycle_ends=[40, 100], num_warmup_steps=5, num_decay_steps=10)
    spans = [range(29, 40), range(89, 101)]
    assert drawn(ax, "decay") == [[(u * TOKENS, schedule(u) * PEAK) for u in span] for span in spans]
    second = drawn(ax, "stable")[1]
    assert second[:2] == [(39 * TOKENS, schedule(39) * PEAK), (40 * TOKENS, PEAK)]


def test_a_long_curve_is_thinned_out_and_keeps_its_ends(tmp_path):
    save(tmp_path, 100_000, TRUNK_SCHEDULE)
    (stable,) = drawn(plot_lr(axes(), read_run(tmp_path)), "stable")
    assert len(stable) < 210
    assert (stable[0][0], stable[-1][0]) == (4 * TOKENS, 100_000 * TOKENS)


def test_trunk_is_grey_and_an_unfinished_decay_dashed(family):
    losses, lr = family_figure(read_run(family)).axes
    assert styles(lr, "stable") == styles(losses, "trunk") == [(TRUNK, "-")]
    assert styles(lr, "decay") == styles(losses, "decay") == [(DECAY, "-"), (DECAY, "--")]


def test_fork_points_are_marked_in_both_panels(family):
    run = read_run(family)
    assert drawn(plot_lr(axes(), run), "fork") == [[(30 * TOKENS, PEAK)], [(60 * TOKENS, PEAK)]]
    assert drawn(plot_losses(axes(), run), "fork") == [[(30 * TOKENS, 3.0)], [(60 * TOKENS, 2.25)]]


def test_losses_are_the_logged_ones_from_fork_to_end(family):
    ax = plot_losses(axes(), read_run(family))
    assert drawn(ax, "trunk") == [[(640, 4.0), (1920, 3.0), (2560, 2.5), (3840, 2.25)]]
    assert drawn(ax, "training") == [[(640, 4.5), (3200, 2.4)]]
    assert drawn(ax, "decay") == [[(1920, 3.0), (2240, 2.75), (2560, 2.0)], [(3840, 2.25), (4480, 2.0)]]


def test_only_a_finished_model_has_a_label(family):
    ax = plot_losses(axes(), read_run(family))
    assert drawn(ax, "end") == [[(2560, 2.0)]]
    assert [text.get_text() for text in ax.texts] == ["2.56K\n2.000"]


@pytest.mark.parametrize(("requested", "label"), [("2.5K", "2.5K"), ("40", "2.56K"), (None, "2.56K")])
def test_a_label_is_the_budget_in_tokens(tmp_path, requested, label):
    save(tmp_path, 30, TRUNK_SCHEDULE)
    log(tmp_path, "eval_loss", {30: 3.0})
    add_branch(tmp_path, 30, 40, {40: 2.0}, requested=requested)
    assert plot_losses(axes(), read_run(tmp_path)).texts[0].get_text() == f"{label}\n2.000"


def test_each_decay_of_a_wsd_s_line_is_coloured_and_labelled(line):
    ax = plot_losses(axes(), read_run(line))
    assert drawn(ax, "decay") == [[(1920, 3.0), (2560, 2.5)], [(5760, 2.25), (6400, 1.75)]]
    assert [text.get_text() for text in ax.texts] == ["2.56K\n2.500", "6.4K\n1.750"]


def test_without_known_tokens_the_axis_is_steps(tmp_path):
    save(tmp_path, 30, TRUNK_SCHEDULE, tokens_per_step=None, peak_lrs=(0.01, 0.1))
    log(tmp_path, "eval_loss", {30: 3.0})
    add_branch(tmp_path, 30, 40, {40: 2.0}, tokens_per_step=None)
    losses, lr = family_figure(read_run(tmp_path)).axes
    assert lr.get_xlabel() == "steps"
    assert lr.get_ylabel() == "learning rate / peak"  # two groups, two peaks
    assert drawn(losses, "end") == [[(40, 2.0)]]
    assert losses.texts[0].get_text() == "40 steps\n2.000"


def test_a_logarithmic_axis_says_so(tmp_path):
    save(tmp_path, 600, TRUNK_SCHEDULE)
    log(tmp_path, "eval_loss", {0: 9.0, 30: 3.0, 600: 2.0})
    add_branch(tmp_path, 30, 40, {40: 2.5})
    add_branch(tmp_path, 600, 800, {800: 1.5})
    figure = family_figure(read_run(tmp_path))
    FigureCanvasAgg(figure).draw()
    lr = figure.axes[1]
    assert (lr.get_xscale(), lr.get_xlabel()) == ("log", "tokens seen (log scale)")


def test_a_linear_axis_does_not(family):
    assert family_figure(read_run(family)).axes[1].get_xlabel() == "tokens seen"


def test_without_evaluation_the_picture_says_how_to_get_one(tmp_path):
    save(tmp_path, 30, TRUNK_SCHEDULE)
    log(tmp_path, "loss", {10: 4.0, 30: 3.0})
    ax = plot_losses(axes(), read_run(tmp_path))
    assert "--eval_strategy steps" in ax.texts[0].get_text()
    assert ax.get_ylabel() == "training loss"


def test_labels_of_close_models_do_not_overlap(tmp_path):
    save(tmp_path, 600, TRUNK_SCHEDULE)
    log(tmp_path, "eval_loss", {300: 3.0, 600: 2.5})
    for fork, end, loss in ((300, 330, 2.7), (300, 345, 2.68), (600, 660, 2.2), (600, 670, 2.19), (600, 680, 2.18)):
        add_branch(tmp_path, fork, end, {end: loss})
    figure = family_figure(read_run(tmp_path))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert [text.get_text().count("K: ") for text in figure.axes[0].texts] == [2, 3]  # close ends share a text
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


def test_a_diverged_loss_is_left_out(tmp_path):
    save(tmp_path, 30, TRUNK_SCHEDULE)
    log(tmp_path, "eval_loss", {10: 4.0, 30: 3.0})
    add_branch(tmp_path, 30, 40, {40: float("nan")})
    figure = family_figure(read_run(tmp_path))
    FigureCanvasAgg(figure).draw()
    assert drawn(figure.axes[0], "end") == []


def test_of_very_many_models_the_first_and_the_last_have_a_label(tmp_path):
    save(tmp_path, 10, TRUNK_SCHEDULE)
    ends = range(20, 20 + 10 * (LABELS + 1), 10)
    for end in ends:
        add_branch(tmp_path, 10, end, {end: 2 + 10 / end})
    labels = [text.get_text() for text in plot_losses(axes(), read_run(tmp_path)).texts]
    assert [label.partition("\n")[2] for label in labels if "\n" in label] == ["2.500", f"{2 + 10 / ends[-1]:.3f}"]


def test_each_family_is_a_line_of_its_models_with_a_label_that_meets_no_other(family):
    figure = families_figure({"a": read_run(family), "b": read_run(family), "c": read_run(family)})
    FigureCanvasAgg(figure).draw()
    (ax,) = figure.axes
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[40 * TOKENS, 2.0]]] * 3
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


@pytest.mark.slow
def test_a_long_claim_stays_in_the_picture(family):
    claim = "12 decayed models of 3 families with 3 model sizes: the lowest loss is 2.554, with 16M parameters"
    figure = families_figure({"a": read_run(family)}, title=claim)
    FigureCanvasAgg(figure).draw()
    assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1


def test_the_picture_has_1600_by_1000_pixels(family, tmp_path):
    canvas = FigureCanvasAgg(family_figure(read_run(family), title="a claim"))
    assert canvas.get_width_height() == (1600, 1000)


def test_figures_are_made_in_threads_alike(family):
    def pixels(_):
        canvas = FigureCanvasAgg(family_figure(read_run(family)))
        canvas.draw()
        return bytes(canvas.buffer_rgba())

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(pixels, range(4)))) == 1


def test_figures_leave_pyplot_alone(family):
    draw = (
        "import sys; from hf_wsd.family import read_run; from hf_wsd.plots import family_figure;"
        "early = 'matplotlib' in sys.modules; family_figure(read_run(sys.argv[1])).savefig(sys.argv[2]);"
        "sys.exit(early or 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", draw, str(family), str(family / "picture.png")]
    assert subprocess.run(command, check=False).returncode == 0
