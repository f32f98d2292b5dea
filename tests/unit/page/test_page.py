"""The page holds what the tables hold, lets no text become markup, and is the same for the same records."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zlib
from html.parser import HTMLParser

import pytest

from dual_lora.page import content
from dual_lora.page.html import STATIC, same, unpacked
from dual_lora.page.values import Pool
from dual_lora.report import formats
from dual_lora.report.figures import thinned
from dual_lora.report.workspace import Workspace
from tests import ROOT
from tests.unit.page.page_builder import HOSTILE, document, of_method, study, values, workspace
from tests.unit.report.report_builder import EXPERIMENT, record, seeds_of, write


class Elements(HTMLParser):
    """Counts the elements of a page, and gathers the attributes that could run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "src"]


def test_no_text_of_a_record_becomes_markup(tmp_path):
    plain = Elements(document(workspace(tmp_path / "a", record("lora"))))
    hostile = Elements(document(workspace(tmp_path / "b", *study())))
    assert hostile.found == plain.found
    assert hostile.handlers == []
    assert hostile.found.count("script") == 4  # the values, two libraries, ours


def test_texts_are_whole_and_turn_nothing(tmp_path):
    held = values(document(workspace(tmp_path, *study())))
    runs = held["runs"].values()
    assert [run["notes"] for run in runs if run["notes"]] == [[HOSTILE]]
    assert {run["model"] for run in runs} == {"Small [U+202E]<b>model</b>"}


def test_only_the_scripts_in_the_page_may_run(tmp_path):
    text = document(workspace(tmp_path, *study()))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = re.findall(r"'sha256-([^']+)'", policy[1])
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert "unsafe-inline" not in policy[1].split("script-src")[1]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text.split("<script")[0])


def test_the_same_records_give_the_same_page_in_any_order(tmp_path):
    one = unpacked(document(workspace(tmp_path / "a", *study())))
    again = study()
    for values_, first in zip(again, study(), strict=True):
        values_["origin"] = first["origin"]
    two = unpacked(document(workspace(tmp_path / "b", *reversed(again))))
    times = re.compile(r'"times":\[[^]]*\]')
    assert times.sub("", one) == times.sub("", two)


def test_cells_are_those_of_the_csv(tmp_path):
    space = workspace(tmp_path, *study())
    view = space.views(space.all_records())["table_x"]
    rows = list(csv.DictReader(io.StringIO(formats.tidy_csv(view))))
    found = {}
    for block in values(document(space))["tables"][0]["blocks"]:
        for row in block["rows"]:
            origin = "published" if "source" in row else "here"
            for column, cell in zip(block["columns"], row["cells"], strict=True):
                if cell["v"] is not None:
                    found[row["method"], origin, column["label"]] = cell
    assert len(rows) == len(found) > 8
    for row in rows:
        cell = found[row["method"], row["origin"], row["column"]]
        shown = {
            "value": cell["v"],
            "sd": cell.get("sd"),
            "low": cell.get("low"),
            "difference": (cell.get("diff") or [None])[0],
        }
        for name, value in shown.items():
            assert value == (pytest.approx(float(row[name]), rel=2e-5) if row[name] else None), (row, name)
        assert bool(cell.get("bold")) == (row["bold"] == "yes")


@pytest.mark.parametrize(
    ("lora", "dual_lora", "chance", "answer"),
    [
        ([60, 61, 62, 60, 61, 62], [64, 65, 67, 64, 65, 66], False, "supported"),
        ([64, 65, 67, 64, 65, 66], [60, 61, 62, 60, 61, 62], False, "not supported"),
        ([60, 61, 62, 60, 61, 62], [60.1, 61, 62, 60, 60.9, 62.1], False, "equal within the margin"),
        ([60, 61, 62, 60, 61, 62], [58, 63, 61, 64, 59, 62], False, "not decidable"),
        ([60, 61, 62, 60, 61, 62], [64, 65, 67, 64, 65, 66], True, "not decidable"),
        ([60, 61], [64, 65], False, "not decidable"),
        ([60, 61], [], False, "not run"),
    ],
)
def test_an_endpoint_has_one_of_five_answers(tmp_path, lora, dual_lora, chance, answer):
    records = [
        *seeds_of("lora", [value / 100 for value in lora], at_chance=chance),
        *seeds_of("dual_lora", [value / 100 for value in dual_lora], at_chance=chance),
    ]
    found = [v for v in values(document(workspace(tmp_path, *records)))["verdicts"] if v["name"] == "dual_lora"]
    assert [verdict["answer"] for verdict in found] == [answer]


def test_an_empty_cell_has_the_command_that_fills_it_and_no_other(tmp_path):
    held = values(document(workspace(tmp_path, *seeds_of("lora", [0.6, 0.61]))))
    empty = of_method(held, "dual_lora")
    assert empty["cells"][0]["todo"] == ["python run.py -m experiment=table_x method=dual_lora"]
    half = of_method(held, "lora")
    assert "todo" not in half["cells"][0]
    assert half["todo"] == ["python run.py -m experiment=table_x method=lora seed=2,3,4,5"]
    assert half["again"] == ["python run.py -m experiment=table_x method=lora seed=0,1"]


def test_a_failed_cell_is_retried(tmp_path):
    failed = [record("dual_lora", seed, status="out_of_memory") for seed in range(6)]
    cell = of_method(values(document(workspace(tmp_path, *failed))), "dual_lora")["cells"][0]
    assert cell["word"] == "out_of_memory (×6)"
    assert cell["todo"] == ["python run.py -m experiment=table_x method=dual_lora retry=true"]


def test_a_published_row_knows_which_of_ours_it_is_of(tmp_path):
    rows = values(document(workspace(tmp_path, record("lora"))))["tables"][0]["blocks"][0]["rows"]
    assert {row["method"]: row["of"] for row in rows if "source" in row} == {
        "LoRA (r=32)": ["smollm2", "lora"],
        "Prefix": ["smollm2", None],
    }


def test_a_block_says_how_long_its_runs_kept_a_card_busy(tmp_path):
    held = values(document(workspace(tmp_path, *seeds_of("lora", [0.6, 0.61]))))
    assert held["tables"][0]["blocks"][0]["gpu_minutes"] == 6  # two runs of three minutes, one after the other


def test_what_is_unknown_of_runs_is_counted(tmp_path):
    made = [record("lora", 0), record("lora", 1, guessed=("epochs",)), record("lora", 2, status="diverged")]
    made += [record("lora", 3, guessed=("alpha",))]
    made[0]["origin"]["recipe_sources"] = {"epochs": "a paper that guesses"}
    made[3]["origin"]["dirty"] = True
    assert values(document(workspace(tmp_path, *made)))["unknown"] == {"guessed": 2, "dirty": 1, "failed": 1}


def test_zero_is_a_number(tmp_path):
    cell = of_method(values(document(workspace(tmp_path, *seeds_of("lora", [0.0, 0.0, 0.0])))), "lora")["cells"][0]
    assert (cell["v"], cell["sd"], cell["low"]) == (0, 0, 0)
    assert values(document(workspace(tmp_path / "b", record("lora", 0))))["runs"].popitem()[1]["seed"] == 0


def test_a_changed_record_is_refused_by_name_and_the_rest_is_shown(tmp_path):
    space = workspace(tmp_path, record("lora"), record("lora", 1))
    changed, kept = sorted(space.records.glob("*.json"))
    changed.write_text(changed.read_text().replace("0.6", "0.9"))
    held = values(document(space))
    assert list(held["runs"]) == [kept.stem]
    assert changed.name in held["made"]["refused"][0]


def test_runs_say_where_they_are_off_their_recipe(tmp_path):
    off = record("lora", recipe="smollm2/e2e/lora", learning_rate=0.123)
    run = values(document(workspace(tmp_path, off)))["runs"].popitem()[1]
    assert run["off"]["learning_rate"][1] == 0.123


def test_swept_settings_of_all_blocks_are_one_figure(tmp_path):
    text = EXPERIMENT.replace("seed: 0,1,2,3,4,5", "seed: 0\n      recipe.learning_rate: 1e-4,2e-4")
    text = text.replace(
        "  published_models", "  figure: {x: recipe.learning_rate, column: BoolQ, log_x: true}\n  published_models"
    )
    records = [
        record(method, scores={"boolq": value, "piqa": 0.5}, learning_rate=rate)
        for method, rate, value in (("lora", 1e-4, 0.5), ("lora", 2e-4, 0.6), ("dual_lora", 2e-4, 0.7))
    ]
    (figure,) = values(document(workspace(tmp_path, *records, text=text)))["swept"]
    points = {(p["method"], p["x"]): p["y"] for p in figure["points"] if p["column"] == "BoolQ"}
    assert points == {("LORA", 1e-4): 50, ("LORA", 2e-4): 60, ("DUAL_LORA", 2e-4): 70}


def test_a_long_curve_keeps_its_ends():
    points = [[step, 1.0] for step in range(1000)]
    shown = thinned(points, 60)
    assert (len(shown), shown[0], shown[-1]) == (60, points[0], points[-1])
    assert thinned(points[:60], 60) == points[:60]


def test_bundled_libraries_are_those_of_their_packages():
    readme = (STATIC / "vendor" / "README.md").read_text()
    stated = dict(re.findall(r"\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|", readme))
    held = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").glob("*.js")}
    assert stated == held
    assert len(held) == 2


def test_parts_that_are_one_object_are_shown_once_and_under_their_own_names():
    pool, shared = Pool(), {"name": "a"}
    places = [
        pool.place_of(part, shared, lambda part, held: {part: held["name"]}) for part in ("model", "task", "model")
    ]
    assert (places, pool.held) == ([0, 1, 0], [{"model": "a"}, {"task": "a"}])


@pytest.mark.parametrize("text", ["", "[]", '{"growth": {"rows": [{"axis": "rank", "lora": {}}]}}'])
def test_a_damaged_benchmark_is_named(tmp_path, text):
    space = workspace(tmp_path, record("lora"))
    file = tmp_path / "results" / "benchmarks" / "kernels.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=r"kernels\.json is damaged .*restore it"):
        document(space)


def test_an_accuracy_has_the_standard_error_of_its_items(tmp_path):
    run = values(document(workspace(tmp_path, record("lora", scores={"boolq": 0.36}, items=10_001))))["runs"].popitem()[
        1
    ]
    (_, items, _, _, metrics, errors) = run["scores"][0]
    assert (items, metrics, errors) == (10_001, {"accuracy": 0.36}, {"accuracy": 0.0048})  # sqrt(.36 * .64 / 10,000)


def test_counts_are_exact_and_a_score_says_what_it_is_in(tmp_path):
    made = record("lora")
    made["cost"] |= {"trainable_parameters": 22_713_987, "train_seconds": 1.23456789}
    held = values(document(workspace(tmp_path, made)))
    cost = dict(zip(held["costs"], held["runs"].popitem()[1]["cost"], strict=True))
    assert (cost["trainable_parameters"], cost["train_seconds"]) == (22_713_987, 1.23457)
    assert [column["unit"] for column in held["tables"][0]["blocks"][0]["columns"]] == ["points"] * 3


def test_many_runs_have_fewer_points_of_each_curve(tmp_path, monkeypatch):
    records = [record("lora", seed) for seed in range(3)]
    for one in records:
        one["curves"] = {"train_loss": [[step, 1.0] for step in range(1, 101)]}
    space = workspace(tmp_path, *records)
    for budget, points in ((180, 60), (179, 40), (60, 20), (1, 10)):
        monkeypatch.setattr(content, "ALL_POINTS", budget)
        held = values(document(space))
        assert held["made"]["points"] == points
        assert [len(run["curves"]["train_loss"][1]) for run in held["runs"].values()] == [points] * 3


def test_a_page_that_another_zlib_packed_is_the_same_and_one_with_another_number_is_not(tmp_path):
    text = document(workspace(tmp_path, *study()))
    (packed,) = set(re.findall(r'^"table_x":"([^"]*)"', text, re.MULTILINE))
    plain = zlib.decompress(base64.b64decode(packed))

    def holding(runs: bytes, level: int) -> str:
        return text.replace(packed, base64.b64encode(zlib.compress(runs, level)).decode())

    assert '"status":"finished"' not in text
    assert '"status":"finished"' in unpacked(text)
    assert holding(plain, 1) != text
    assert same(holding(plain, 1), text)
    assert not same(holding(plain.replace(b"finished", b"diverged", 1), 9), text)
    assert not same(text.replace(packed, packed[:-8]), text)
    assert not same(text.replace("MARK", "mark").replace("Tables", "tables"), text)


def test_a_new_sweep_leaves_the_packed_runs_of_others_as_they_are(tmp_path):
    packed = re.compile(r'^"(\w*)":"(e[^" ]*)"', re.MULTILINE)
    space = workspace(tmp_path, *seeds_of("lora", [0.6, 0.61]), record("dora", 7))
    before = dict(packed.findall(document(space)))
    write(space.records, record("dora", 8))
    after = dict(packed.findall(document(Workspace(tmp_path))))
    assert list(before) == list(after) == ["", "table_x"]  # of no experiment, and of one
    assert [name for name in before if before[name] != after[name]] == [""]


def test_the_committed_page_is_small():
    assert (ROOT / "results" / "report.html").stat().st_size < 5e6
