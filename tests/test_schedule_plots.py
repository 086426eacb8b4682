"""Pictures before anything is trained: hf_wsd/schedule_plots.py draws what the schedules say."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_wsd.baselines import constant
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.legs import METHODS
from hf_wsd.plots import DECAY, TRUNK
from hf_wsd.preview import Preview
from hf_wsd.schedule_plots import plan_figure, plot_plan, plot_schedules, schedules_figure

TOKENS = 64  # of one step


def axes():
    return Figure().subplots()


def drawn(ax, gid):
    """The points of each line of that name."""
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in ax.lines if line.get_gid() == gid]


def preview(method="wsd", budgets=("100", "300"), **asked):
    return Preview.make(method, budgets, num_warmup_steps=10, **asked)


# --- a plan ---


def test_each_run_is_drawn_where_it_trains_itself():
    ax = plot_plan(axes(), preview())
    trunk, short, long = preview().legs
    assert drawn(ax, "warmup") == [[(step, trunk.schedule(step)) for step in range(10)]]
    assert drawn(ax, "stable") == [[(step, 1.0) for step in range(10, 270)]]
    assert drawn(ax, "decay") == [
        [(step, leg.schedule(step)) for step in range(leg.start, leg.end)] for leg in (short, long)
    ]


def test_a_line_is_drawn_phase_by_phase():
    ax = plot_plan(axes(), preview("wsd_s"))
    line = wsd_s(cycle_ends=[100, 300], num_warmup_steps=10)
    assert [[int(x) for x, _ in line] for line in drawn(ax, "stable")] == [[*range(10, 90)], [*range(100, 280)]]
    assert drawn(ax, "decay") == [[(s, line(s)) for s in range(90, 100)], [(s, line(s)) for s in range(280, 300)]]


@pytest.mark.parametrize("method", METHODS)
def test_trunk_is_grey_and_every_decay_of_one_colour(method):
    ax = plot_plan(axes(), preview(method))
    colours = {line.get_gid(): line.get_color() for line in ax.lines}
    expected = {"warmup": TRUNK, "stable": TRUNK, "decay": DECAY, "fork": DECAY, "end": DECAY}
    assert colours.items() <= expected.items()


@pytest.mark.parametrize("method", METHODS)
def test_every_fall_is_marked_at_its_start(method):
    asked = preview(method)
    assert drawn(plot_plan(axes(), asked), "fork") == [[(model.decay_from, 1.0)] for model in asked.models]


@pytest.mark.parametrize("method", METHODS)
def test_every_model_is_marked_at_its_end_with_its_budget(method):
    ax = plot_plan(axes(), preview(method))
    assert [line[0][0] for line in drawn(ax, "end")] == [100, 300]
    assert [text.get_text() for text in ax.texts] == ["100", "300"]


def test_a_model_ends_at_the_lr_of_its_last_update():
    ax = plot_plan(axes(), preview(decay_type="linear"))
    ends = [y for line in drawn(ax, "end") for _, y in line]
    assert ends == pytest.approx([0.1, 1 / 30])


def test_axis_is_tokens_where_they_are_known():
    ax = plot_plan(axes(), preview(lengths={"tokens_per_step": TOKENS}))
    assert drawn(ax, "fork") == [[(90 * TOKENS, 1.0)], [(270 * TOKENS, 1.0)]]
    assert ax.get_xlabel() == "tokens seen"


def test_axis_is_steps_where_tokens_are_not_known():
    assert plot_plan(axes(), preview()).get_xlabel() == "steps"


def test_a_long_run_is_thinned_out_and_keeps_its_ends():
    asked = Preview.make("wsd", ["1000000"])
    (stable,) = drawn(plot_plan(axes(), asked), "stable")
    assert len(stable) < 410
    assert (stable[0][0], stable[-1][0]) == (0, 899_999)


@pytest.mark.parametrize(
    ("method", "title"),
    [
        ("wsd", "wsd: 5 models for 116 % of the longest model, 55 % below separate runs"),
        ("wsd_s", "wsd_s: 5 models for 100 % of the longest model, 62 % below separate runs"),
        ("cosine", "cosine: 5 models for 260 % of the longest model, 0 % below separate runs"),
    ],
)
def test_title_has_the_cost(method, title):
    asked = Preview.make(method, ["10%", "30%", "50%", "70%", "100%"], lengths={"of": "10000"})
    assert plan_figure(asked).get_suptitle() == title


# --- schedules ---


def test_schedules_are_drawn_by_name_as_they_are():
    one, other = wsd(100, num_warmup_steps=10), wsd(100, decay_fraction=0.2)
    lines = plot_schedules(axes(), {"one": one, "other": other}).lines
    shown = {line.get_label(): line.get_ydata() for line in lines if line.get_gid() is None}
    assert {name: list(lrs) for name, lrs in shown.items()} == {"one": one.multipliers(), "other": other.multipliers()}


def test_schedules_have_colours_of_their_own():
    lines = plot_schedules(axes(), {"one": wsd(100), "other": wsd(200)}).lines
    assert len({line.get_color() for line in lines if line.get_gid() is None}) == 2


def test_first_differing_step_of_two_is_marked_and_named():
    one, other = wsd(100), wsd(100, decay_fraction=0.2)
    ax = plot_schedules(axes(), {"one": one, "other": other})
    assert {x for x, _ in drawn(ax, "difference")[0]} == {one.first_difference(other)}
    assert ax.texts[0].get_text().strip() == "first differing step: 81"


@pytest.mark.parametrize("schedules", [{"a": wsd(100)}, {"a": wsd(100), "b": wsd(100)}], ids=["one", "equal"])
def test_without_a_difference_none_is_marked(schedules):
    assert drawn(plot_schedules(axes(), schedules), "difference") == []


@pytest.mark.parametrize("other", [wsd(100, decay_fraction=0.9), wsd(100, num_decay_steps=1)], ids=["early", "late"])
def test_words_of_the_difference_stay_inside_the_panel(other):
    figure = schedules_figure({"one": wsd(100, num_decay_steps=2), "other": other})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ax = figure.axes[0]
    box, panel = ax.texts[0].get_window_extent(canvas.get_renderer()), ax.get_window_extent(canvas.get_renderer())
    assert panel.x0 <= box.x0
    assert box.x1 <= panel.x1


def test_every_edge_of_a_long_schedule_is_drawn():
    schedule = wsd_s(cycle_ends=[33_333, 100_000], num_warmup_steps=777)
    (line,) = (line for line in plot_schedules(axes(), {"a": schedule}).lines if line.get_gid() is None)
    edges = {start for start, _, _ in schedule.spans()} | {776, 29_999, 33_332, 93_332, 99_999}
    assert edges <= {int(step) for step in line.get_xdata()}


def test_open_schedule_is_drawn_as_far_as_the_other_goes():
    lines = plot_schedules(axes(), {"trunk": constant(), "model": wsd(100)}).lines
    assert [int(line.get_xdata()[-1]) for line in lines if line.get_gid() is None] == [99, 99]


# --- files ---


@pytest.mark.parametrize(
    "draw", [lambda: plan_figure(preview()), lambda: schedules_figure({"a": wsd(100)})], ids=["plan", "schedules"]
)
def test_picture_has_1600_by_720_pixels(draw):
    assert FigureCanvasAgg(draw()).get_width_height() == (1600, 720)
