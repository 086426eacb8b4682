"""The page of a report: that it is whole in one file, that names stay names, and what stands in it."""

import json
import re
from html.parser import HTMLParser

import pytest
from test_report import PARAMETERS, cells_of, evaluate, finish_branch, plan_branch, save

from hf_wsd.errors import SettingsError
from hf_wsd.family import read_run
from hf_wsd.lineage import Command
from hf_wsd.page import Grid, Page, Section
from hf_wsd.reporting import write_ladder, write_report

pytestmark = pytest.mark.slow  # drawing takes a second a page

HOSTILE = "<script>alert(1)<script> & |a| `b` [c] $d$"
TOKEN = "hf_" + "aB1" * 11


class Reader(HTMLParser):
    """The elements of a page and its texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def make_family(folder, *, size=PARAMETERS, above=0.0, ends=(100, 200, 400, 800)):
    """Models on the law 2 + 10/sqrt(steps), with a secret in their command."""
    command = Command(argv=("train.py", "--hub_token", TOKEN, "--note", TOKEN), cwd="/srv/job")
    for end in ends:
        save(folder, end * 4 // 5, parameters=size, peak_lrs=(0.003,), command=command)
        evaluate(folder, **{f"_{end * 4 // 5}": 3 + above + 10 / end**0.5})
    for end in ends:
        finish_branch(folder, end * 4 // 5, end, {"eval_loss": 2 + above + 10 / end**0.5}, parameters=size)
    return folder


def make_hostile(run):
    """Names that would like to be markup; a changed decay, an unfinished and a diverged one; a preview."""
    make_family(run)
    evaluate(run, _200=3.5)
    data = {"/data/<b>code.jsonl": {"part": 0.7, "data": "35-1f"}, "trunk": {"part": 0.3, "data": "9-2e"}}
    sameness = {"level": "changed", "changes": {"world_size": "2 -> 1", "seed": "1 -> 2"}, "allowed": ["seed"]}
    finish_branch(run, 80, 100, {"eval_loss": 2.5}, name="<img src=x>", decay_data=data, sameness=sameness)
    finish_branch(run, 80, 100, {"eval_loss": float("nan")}, name="diverged", shape="linear")
    plan_branch(run, 160, 180)
    preview = run / "_merged" / "linear"
    preview.mkdir(parents=True)
    told = {"preview": True, "fork": 640, "end": 800, "decay_type": "linear", "checkpoints": [700, 750, 800]}
    losses = {"losses": {"loss": 2.375}, "trunk_losses": {"loss": 2.5}, "branch": None, "branch_losses": {}}
    (preview / "merge.json").write_text(json.dumps(told | losses))
    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_report(make_hostile(tmp_path_factory.mktemp("runs") / HOSTILE))


@pytest.fixture(scope="module")
def page(files):
    return files["html"].read_text()


def test_the_page_asks_for_no_other_file_and_runs_no_script(page):
    elements = Reader(page).elements
    loading = [tag for tag, attrs in elements if {"src", "srcset", "data", "action"} & attrs.keys()]
    links = [attrs["href"] for _, attrs in elements if not attrs.get("href", "#").startswith("#")]
    assert (loading, links, re.findall(r"https?:|url\([^#]|@import", page)) == ([], [], [])
    assert {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "img", "base"} == set()


def test_names_stay_names_in_the_page(page):
    texts = " ".join(Reader(page).texts)
    assert all(name in texts for name in ("<img src=x>", "<b>code.jsonl", HOSTILE))


def test_names_stay_names_in_markdown(files):
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark").enable("table").render(files["md"].read_text())
    assert {tag for tag, _ in Reader(html).elements} & {"script", "b"} == set()
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in html


def test_every_id_of_the_page_is_one_elements_and_every_link_has_its_end(page):
    elements = Reader(page).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    ends = {value[1:] for _, attrs in elements for value in attrs.values() if re.fullmatch(r"#[\w-]+", value or "")}
    ends |= set(re.findall(r"url\(#([\w-]+)\)", page))
    assert (len(ids), ends - set(ids)) == (len(set(ids)), set())


def test_tables_have_heads_for_columns_and_rows(page):
    elements = Reader(page).elements
    tables = sum(tag == "table" for tag, _ in elements)
    scopes = [attrs.get("scope") for tag, attrs in elements if tag == "th"]
    assert (sum(tag == "caption" for tag, _ in elements), None in scopes) == (tables, False)
    assert scopes.count("row") == sum(tag == "tr" for tag, _ in elements) - tables


def test_pictures_say_what_they_show(page):
    pictures = [(attrs["role"], attrs["aria-label"]) for tag, attrs in Reader(page).elements if tag == "svg"]
    assert pictures[0][0] == "img"
    assert pictures[0][1].startswith("Two charts over tokens seen. Above, the evaluation loss")


def test_no_secret_of_a_command_is_in_any_file(files):
    texts = [file.read_text() for suffix, file in files.items() if suffix != "png"]
    assert [TOKEN in text for text in texts] == [False] * 4
    assert "python train.py --note &#39;hf_***&#39;" in texts[0]


def test_a_decay_is_shown_with_its_drop_and_what_it_gave_at_equal_tokens(files):
    rows = {row[7]: row for row in cells_of(files["md"].read_text()) if len(row) == 9}
    assert rows["160-1-sqrt-40"][:7] == ["12.8K", "160 to 200", "1-sqrt", "3.707", "2.707", "1.000", "0.793"]


def test_diverged_and_unfinished_decays_say_so(files):
    rows = {row[7]: row[4:7] for row in cells_of(files["md"].read_text()) if len(row) == 9}
    assert (rows["diverged"], rows["160-1-sqrt-20"]) == (["diverged", "-", "-"], ["unfinished", "-", "-"])


def test_a_branch_has_its_level_of_sameness_by_name(files):
    rows = [row for row in cells_of(files["md"].read_text()) if row[0] == "\\<img src=x\\>"]
    changes = "world_size: 2 -\\> 1; seed: 1 -\\> 2; \\<b\\>code.jsonl 70 %, trunk 30 %"
    assert ["\\<img src=x\\>", "changed", changes, "seed"] in rows


@pytest.mark.slow
def test_a_damaged_merge_preview_is_named(tmp_path):
    preview = make_family(tmp_path) / "_merged" / "linear"
    preview.mkdir(parents=True)
    (preview / "merge.json").write_text('{"preview": tr')
    assert "`_merged/linear/merge.json` cannot be read" in write_report(tmp_path)["md"].read_text()


def test_a_merge_preview_is_called_one(files):
    told = json.loads(files["json"].read_text())
    assert (told["previews"][0]["name"], told["previews"][0]["losses"]) == ("linear", {"loss": 2.375})
    assert "A preview is no decayed model" in files["md"].read_text()


def test_the_law_of_the_family_is_there_with_forecasts(tmp_path):
    files = write_report(make_family(tmp_path / "law"))
    fit = json.loads(files["json"].read_text())["fit"]
    assert fit["forecasts"][0]["tokens"] == 2 * 800 * 64
    assert fit["forecasts"][0]["loss"] == pytest.approx(2 + 10 / 1600**0.5, abs=0.005)
    assert (files["html"].parent / "report-law.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_models_for_a_law_are_refused_in_words(tmp_path):
    save(tmp_path, 80)
    finish_branch(tmp_path, 80, 100, {"eval_loss": 2.0})
    files = write_report(tmp_path)
    assert json.loads(files["json"].read_text())["fit"]["refused"] in files["md"].read_text()


def test_equal_families_give_equal_files(tmp_path):
    run = make_family(tmp_path / "one")
    before = {suffix: file.read_bytes() for suffix, file in write_report(run).items()}
    assert {suffix: file.read_bytes() for suffix, file in write_report(run).items()} == before


def test_several_families_have_one_page_and_one_law(tmp_path):
    runs = [read_run(make_family(tmp_path / name, size=size, above=gap)) for name, size, gap in SIZES]
    files = write_ladder(runs, tmp_path / "ladder")
    told = json.loads(files["json"].read_text())
    assert [family["name"] for family in told["families"]] == ["small", "middle", "large"]
    assert told["claim"].startswith(
        "12 decayed models of 3 families with 3 model sizes: the lowest loss is 2.404, with 1.6M"
    )
    assert told["fit"]["size"] == "parameters"
    assert told["family_tokens"] == 3 * (640 + 20 + 40 + 80 + 160) * 64


SIZES = (("large", 1_600_000, 0.05), ("small", 100_000, 0.2), ("middle", 400_000, 0.1))


def test_two_runs_of_one_name_are_told_apart_and_one_run_twice_is_refused(tmp_path):
    runs = [read_run(make_family(tmp_path / place / "run")) for place in "ab"]
    files = write_ladder(runs, tmp_path / "both")
    assert [family["name"] for family in json.loads(files["json"].read_text())["families"]] == ["a/run", "b/run"]
    with pytest.raises(SettingsError, match="given 2 times"):
        write_ladder([runs[0], runs[0]], tmp_path / "twice")


def test_the_page_of_several_does_not_replace_that_of_one(tmp_path):
    runs = [read_run(make_family(tmp_path / name)) for name in "ab"]
    with pytest.raises(SettingsError, match="give --output another folder"):
        write_ladder(runs, tmp_path / "a")


def test_a_folded_section_is_a_disclosure_with_its_heading():
    section = Section(title="Long one", table=Grid(heads=("a",), rows=(("1",),)), folded=True)
    html = Page(title="t", kind="k", claim="c", facts=(), sections=(section,)).html()
    assert '<summary><h2 id="long-one">Long one</h2></summary>' in html
