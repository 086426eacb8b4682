"""`hf-wsd plan` as typed: what it prints, draws and refuses, and whether its commands give what it promised."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_wsd import cli
from hf_wsd.builders import wsd
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.family import read_run
from hf_wsd.legs import METHODS
from hf_wsd.lineage import Lineage
from hf_wsd.preview import Preview
from hf_wsd.schedule import Schedule
from hf_wsd.show import preview_text, schedule_text, side_by_side

ROOT = Path(__file__).parents[1]
CONSOLE_SCRIPT = Path(sys.executable).with_name("hf-wsd")
FAMILY = ("--budgets", "10%", "30%", "50%", "70%", "100%", "--of", "10B", "--tokens-per-step", "0.5M")
SIZES = ("--model-size", "124M", "--throughput", "100K")


@pytest.fixture
def plan(monkeypatch, capsys):
    """Run `hf-wsd plan WORDS` in this process: its exit code, and what it printed."""

    def call(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["hf-wsd", "plan", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return call


# --- a plan ---


def test_plan_prints_the_preview_of_what_was_typed(plan):
    lengths = {"of": "10B", "tokens_per_step": 500_000}
    asked = {"parameters": 124_000_000, "tokens_per_second": 100_000, "num_warmup_steps": 20, "decay_fraction": 0.2}
    preview = Preview.make("wsd", ["10%", "100%"], lengths=lengths, decay_type="power", decay_params={"p": 3}, **asked)
    words = ("--budgets", "10%", "100%", "--of", "10B", "--tokens-per-step", "0.5M", "--warmup", "10M", *SIZES)
    shape = ("--decay-fraction", 0.2, "--decay-type", "power", "--decay-params", "p=3")
    assert plan(*words, *shape) == (0, preview_text(preview) + "\n", "")


def test_json_of_a_plan_is_all_that_stdout_has(plan):
    _, out, _ = plan(*FAMILY, *SIZES, "--json")
    data = json.loads(out)
    assert data["part_of_longest"] == 1.16
    assert data["total"] == {
        "steps": 23_200,
        "tokens": 11_600_000_000,
        "flops": 6 * 124_000_000 * 11_600_000_000,
        "gpu_hours": pytest.approx(11_600_000_000 / 100_000 / 3600),
    }


@pytest.mark.parametrize("method", METHODS)
def test_json_holds_the_schedule_of_each_run(plan, method):
    _, out, _ = plan("--budgets", 100, 300, "--method", method, "--json")
    schedules = [Schedule.from_dict(run["schedule"]) for run in json.loads(out)["runs"]]
    assert schedules == [leg.schedule for leg in Preview.make(method, ["100", "300"]).legs]


def test_samples_are_lengths_too(plan):
    _, out, _ = plan("--budgets", "6400samples", "--samples-per-step", 64, "--json")
    assert [model["end"] for model in json.loads(out)["models"]] == [100]


def test_decay_of_a_part_is_a_part_of_the_whole(plan):
    _, out, _ = plan("--budgets", "20%", "100%", "--of", 1000, "--decay-steps", "10%", "--json")
    assert [model["decay_from"] for model in json.loads(out)["models"]] == [100, 900]


def test_warmup_of_a_part_is_a_part_of_the_whole(plan):
    _, out, _ = plan("--budgets", "20%", "100%", "--of", 1000, "--warmup", "5%", "--json")
    assert json.loads(out)["runs"][0]["schedule"]["segments"][0]["steps"] == 50


@pytest.mark.parametrize("output", [(), ("--json",), ("--commands",)], ids=["text", "json", "commands"])
def test_picture_changes_nothing_on_stdout(plan, tmp_path, output):
    file = tmp_path / "plan.png"
    without = plan(*FAMILY, *output)[1]
    assert plan(*FAMILY, *output, "--plot", file) == (0, without, f"written: {file}\n")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_picture_is_written_as_its_name_says(plan, tmp_path, suffix, start):
    plan(*FAMILY, "--plot", tmp_path / f"plan.{suffix}")
    assert (tmp_path / f"plan.{suffix}").read_bytes().startswith(start)


# --- schedules ---


def test_schedule_is_shown_as_text(plan):
    assert plan("wsd(100, num_decay_steps=20)", "--every", 30) == (
        0,
        schedule_text(wsd(100, num_decay_steps=20), every=30) + "\n",
        "",
    )


def test_schedule_of_a_checkpoint_is_shown_to_the_end_of_its_run(plan, tmp_path):
    trunk = wsd(num_decay_steps=0)
    Lineage(step=30, kind="fork", schedule=trunk, last_step=600).write(tmp_path)
    assert plan(tmp_path, "--every", 200)[1] == schedule_text(trunk, stop=600, every=200) + "\n"


def test_trunk_beside_another_schedule_is_shown_to_the_end_of_its_run(plan, tmp_path):
    Lineage(step=30, kind="fork", schedule=wsd(num_decay_steps=0), last_step=600).write(tmp_path)
    rows = [line.split()[:1] for line in plan(tmp_path, "wsd(100)", "--every", 200)[1].splitlines()]
    assert ["400"] in rows


def test_picture_of_a_trunk_goes_to_the_end_of_its_run(plan, tmp_path):
    Lineage(step=30, kind="fork", schedule=wsd(num_decay_steps=0), last_step=600).write(tmp_path)
    plan(tmp_path, "--plot", tmp_path / "a.svg")
    assert "<!-- 600 -->" in (tmp_path / "a.svg").read_text()  # matplotlib's comment above the outlines of a label


def test_two_schedules_are_shown_side_by_side(plan):
    sources = ("wsd(100)", "wsd(100, decay_fraction=0.2)")
    schedules = (wsd(100), wsd(100, decay_fraction=0.2))
    assert plan(*sources)[1] == side_by_side(*schedules, names=sources) + "\n"


def test_two_schedules_end_with_the_first_differing_step(plan):
    assert plan("wsd(100)", "wsd(90)")[1].splitlines()[-1] == "first differing step: 82, lr / peak 1 | 0.666667"


def test_one_schedule_twice_has_two_names(plan):
    head = plan("wsd(100)", "wsd(100)")[1].splitlines()[0]
    assert [name.strip() for name in head.split("|")] == ["wsd(100) (1)", "wsd(100) (2)"]


def test_json_of_a_schedule_reads_back_as_the_schedule(plan):
    _, out, _ = plan("wsd(100)", "--json")
    (shown,) = json.loads(out)["schedules"]
    assert Schedule.from_dict(shown["schedule"]) == wsd(100)


def test_json_of_a_schedule_has_the_lr_of_every_so_many_updates(plan):
    _, out, _ = plan("wsd(100, num_decay_steps=50)", "--every", 40, "--json")
    schedule = wsd(100, num_decay_steps=50)
    lrs = json.loads(out)["schedules"][0]["multipliers"]
    assert {step: lrs[step] for step in ("0", "40", "80")} == {str(step): schedule(step) for step in (0, 40, 80)}


def test_json_of_two_schedules_names_the_first_differing_step(plan):
    _, out, _ = plan("wsd(100)", "wsd(100, decay_fraction=0.2)", "--json")
    assert json.loads(out)["first_differing_step"] == 81


def test_json_of_two_equal_schedules_names_no_step(plan):
    _, out, _ = plan("wsd(100)", "wsd(100, decay_fraction=0.1)", "--json")
    assert json.loads(out)["first_differing_step"] is None


@pytest.mark.parametrize("sources", [("wsd(100)",), ("wsd(100)", "cosine(100)")], ids=["one", "two"])
def test_picture_of_schedules_is_a_png(plan, tmp_path, sources):
    plan(*sources, "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- refusals ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no budgets: give the lengths"),
        (("--budgets", "100", "--method", "cosin"), "unknown method 'cosin': did you mean 'cosine'"),
        (("--budgets", "100", "--method", "cosine", "--decay-fraction", "0.2"), "decay_fraction say nothing about"),
        (("--budgets", "100", "--method", "cyclic_cosine", "--decay-steps", "2"), "num_decay_steps say nothing about"),
        (("wsd(100)", "--budgets", "100"), "one of the two"),
        (("wsd(100)", "wsd(200)", "wsd(300)"), "one schedule, or two to compare, not 3"),
        (("nonsense",), "is no run, checkpoint or file"),
        (("--budgets", "10%", "100%"), "`hf-wsd plan --of`"),
        (("--budgets", "100", "--commands", "--json"), "leave out --json"),
        (("wsd(100)", "--method", "cosine"), "one of the two"),
        (("--budgets", "1M"), "--tokens-per-step"),
        (("--budgets", "100", "--warmup", "1M"), "--tokens-per-step"),
        (("--budgets", "640samples"), "--samples-per-step"),
        (("--budgets", "1X"), "1X"),
        (("--budgets", "100", "--warmup", "soon"), "'soon' is no length"),
        (("--budgets", "100", "--warmup", "95"), "warmup phase"),
        (("--budgets", "100", "--decay-fraction", "2"), "strictly between 0 and 1"),
        (("--budgets", "100", "--decay-fraction", "0.1", "--decay-steps", "3"), "not both"),
        (("--budgets", "100", "--decay-steps", "0.2"), "decay_fraction=0.2"),
        (("--budgets", "100", "--decay-type", "sqrt"), "did you mean '1-sqrt'"),
        (("--budgets", "100", "--decay-params", "p"), "decay_params=['p'] cannot be read"),
        (("--budgets", "100", "--tokens-per-step", "many"), "tokens-per-step is a number such as 512, 400K or 124M"),
        (("--budgets", "100", "--samples-per-step", "10%"), "samples-per-step is a number such as 512"),
        (("--budgets", "100", "--model-size", "big"), "model-size is a number such as 512"),
        (("--budgets", "100", "--throughput", "fast"), "throughput is a number such as 512"),
        (("--budgets", "100", "--plot", "{tmp}/a.gif"), "a picture is a .png, .svg or .pdf, not a.gif"),
        (("--budgets", "100", "--plot", "{tmp}/picture"), "a picture is a .png, .svg or .pdf, not picture"),
        (("--budgets", "100", "--plot", "{tmp}/none/a.png"), "there is no folder {tmp}/none"),
        (("wsd(100)", "--plot", "{tmp}/a.gif"), "a picture is a .png, .svg or .pdf, not a.gif"),
    ],
)
def test_bad_input_is_one_message_that_names_the_repair(plan, tmp_path, words, message):
    code, out, _ = plan(*(word.format(tmp=tmp_path) for word in words))
    assert str(code).startswith("hf-wsd: ")
    assert message.format(tmp=tmp_path) in str(code)
    assert not out


# --- start-up ---


@pytest.mark.parametrize(
    "words",
    [[*FAMILY, *SIZES], [*FAMILY, "--commands"], ["wsd(100)", "wsd(200)"], ["{tmp}"]],
    ids=["plan", "commands", "schedules", "checkpoint"],
)
def test_plan_does_not_import_torch(tmp_path, words):
    Lineage(step=30, kind="fork", schedule=wsd(num_decay_steps=0)).write(tmp_path)
    code = (
        "import sys; from hf_wsd.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit_:\n    assert exit_.code == 0, exit_.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code, "plan", *(word.format(tmp=tmp_path) for word in words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def seconds(*words):
    """Of processor time, which other tests on the same cores do not lengthen: start, imports and answer."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([CONSOLE_SCRIPT, "plan", *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_plan_answers_in_half_a_second():
    assert any(seconds(*FAMILY, *SIZES) < 0.5 for _ in range(5))


@pytest.mark.parametrize("method", METHODS)
def test_plan_of_a_frontier_run_answers_in_half_a_second_too(method):
    """15T tokens, 3.75 million updates."""
    words = ("--budgets", "3T", "6T", "9T", "12T", "15T", "--tokens-per-step", "4M", "--method", method)
    assert any(seconds(*words) < 0.5 for _ in range(5))


# --- commands ---


def test_commands_of_a_trunk(plan):
    assert plan("--budgets", "1M", "3000", "--tokens-per-step", 1000, "--warmup", 50, "--commands")[1].splitlines() == [
        "accelerate launch -m hf_wsd --trunk --budgets 1M 3000 --tokens-per-step 1000 recipes/pretrain.py "
        "--lr_scheduler_type wsd --warmup_steps 50 --max_steps 2700 --output_dir RUN",
        "hf-wsd decay RUN",
    ]


def test_commands_of_separate_cosines(plan):
    words = ("--script", "train.py --bf16", "--launcher", "python", "--output-dir", "my run")
    assert plan("--budgets", 100, 300, "--method", "cosine", *words, "--commands")[1].splitlines() == [
        f"python train.py --bf16 --lr_scheduler_type cosine --warmup_steps 0 --max_steps {n} --output_dir 'my run-{n}'"
        for n in (100, 300)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_command_is_one_line_that_a_shell_can_split(plan, method):
    words = ("--method", method, "--output-dir", "a 'quoted' run", "--min-lr-ratio", 0.1)
    _, out, _ = plan("--budgets", 100, 300, *words, "--commands")
    assert all(any(word.startswith("a 'quoted' run") for word in shlex.split(line)) for line in out.splitlines())


TINY = (
    "recipes/pretrain.py --config_overrides n_layer=1,n_embd=16,n_head=1 --block_size 32 --max_eval_blocks 8 "
    "--per_device_train_batch_size 4 --use_cpu --report_to none --disable_tqdm True"
)
ASKED = {"wsd": {"decay_fraction": 0.25}, "wsd_s": {"decay_fraction": 0.25, "min_lr_ratio": 0.1}}


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory):
    """A preview, and the folder in which its printed commands were run as a user would paste them."""
    method, run = request.param, tmp_path_factory.mktemp("commands") / "run"
    asked = ASKED.get(method, {"min_lr_ratio": 0.1})
    flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    where = ["--script", TINY, "--launcher", sys.executable, "--output-dir", str(run), "--commands"]
    words = ["--budgets", "20", "40", "--method", method, "--warmup", "4", *flags, *where]
    for line in run_here(CONSOLE_SCRIPT, "plan", *words).splitlines():
        first, *rest = shlex.split(line)
        run_here(CONSOLE_SCRIPT if first == "hf-wsd" else first, *rest)
    return Preview.make(method, ["20", "40"], num_warmup_steps=4, **asked), run


def run_here(*command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{shlex.join(map(str, command))} {result.stdout[-2000:]} {result.stderr[-3000:]}"
    return result.stdout


@pytest.mark.slow
def test_printed_commands_leave_the_checkpoints_that_were_named(trained):
    preview, run = trained
    paths = [Path(kept.path(str(run))) for kept in preview.kept()]
    assert [path for path in paths if int(path.name.split("-")[1]) not in saved_checkpoints(path.parent)] == []


@pytest.mark.slow
@pytest.mark.parametrize("trained", [m for m in METHODS if m != "cosine"], indirect=True)  # which leaves no record
def test_printed_commands_train_the_schedules_that_were_shown(trained):
    preview, run = trained
    members = {member.path.name: member.identity.schedule for member in read_run(run).walk()}
    main, *branches = preview.legs
    assert members == {"run": main.schedule} | {leg.name: leg.schedule for leg in branches}
