"""Reports: rows and statistics over seeds, the table and its files, and what is refused."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlab import report

# config, methods, dense bytes, stored bytes, mean quality, spread over seeds
DIGITS = [
    ("digits_vit", [], 412_968, 415_020, 0.9790, 0.0021),
    ("digits_vit_low_rank", ["low_rank"], 412_968, 151_300, 0.9752, 0.0034),
    ("digits_vit_low_rank_nm", ["low_rank", "nm"], 412_968, 96_112, 0.9701, 0.0040),
    ("digits_vit_fixed_point", ["fixed_point"], 412_968, 108_960, 0.9769, 0.0018),
    ("digits_vit_binary", ["binary"], 412_968, 21_764, 0.9405, 0.0090),
]
SOURCE = [
    ("source_decoder", [], 3_407_872, 3_421_440, 1.912, 0.011),
    ("source_decoder_lora", ["lora"], 3_407_872, 3_702_784, 1.895, 0.009),
    ("source_decoder_nm", ["nm"], 3_407_872, 2_019_328, 1.941, 0.013),
]
STUDIES = [
    ("classify", "digits", "accuracy", "max", DIGITS),
    ("language_model", "python_source", "bits_per_byte", "min", SOURCE),
]


def write_run(folder, **changes):
    """Writes what a report reads of a summary, with some entries replaced; returns the path."""
    summary = {
        "format": 1,
        "config": "digits_vit",
        "config_hash": "ab12cd34",
        "seed": 0,
        "task": "classify",
        "data": {"name": "digits", "train": 1437, "eval": 360},
        "model": "vit",
        "methods": ["nm"],
        "quality": {"name": "accuracy", "mode": "max", "trained": 0.98, "finalized": 0.979},
        "bytes": {"dense": 120_000, "trained": 130_000, "finalized": 59_000, "file": 60_000},
        "steps_per_second": 31.2,
        "finished": True,
    }
    for name, value in changes.items():
        summary[name] = summary[name] | value if isinstance(value, dict) else value
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return str(folder)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a report without --out would go
    return lambda name, **changes: write_run(tmp_path / "runs" / name, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two tasks, eight configurations, three seeds each (of the binary one, only one)."""
    root, rng, paths = tmp_path_factory.mktemp("study"), np.random.default_rng(0), []
    for task, data, quality, mode, configs in STUDIES:
        for config, methods, dense, stored, mean, spread in configs:
            for seed in range(1 if methods == ["binary"] else 3):
                trained = mean + spread * rng.standard_normal()
                finalized = trained + 0.001 * rng.standard_normal()
                changes = {"config": config, "config_hash": f"{dense + stored:08x}", "seed": seed}
                changes |= {"task": task, "methods": methods, "data": {"name": data}}
                values = {"trained": trained, "finalized": finalized}
                changes |= {"quality": {"name": quality, "mode": mode} | values}
                changes |= {"bytes": {"dense": dense, "file": stored + seed}}
                changes |= {"steps_per_second": 30 + rng.random()}
                paths.append(write_run(root / f"{config}-{seed}", **changes))
    return paths


def row_of(text, label):
    """A row's cells in the Markdown table, by column."""
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if "|" in x]
    line = next(i for i, cells in enumerate(lines) if cells[0] == label)
    header = next(lines[i] for i in range(line, -1, -1) if lines[i][0] == "config")
    return dict(zip(header, lines[line], strict=True))


def test_rows_gather_seeds_with_numpy_statistics(study):
    runs = report.load_runs(study)
    groups = report.group_runs(reversed(runs))
    assert [(g.task, g.data, g.quality, g.mode) for g in groups] == [s[:4] for s in STUDIES]
    for group, (*_, configs) in zip(groups, STUDIES, strict=True):
        by_size = sorted(configs, key=lambda entry: entry[3])
        assert [row.label for row in group.rows] == [config for config, *_ in by_size]
        for row in group.rows:
            members = [run for run in runs if run.config == row.label]
            assert [run.seed for run in row.runs] == list(range(len(members)))
            for field in ("trained", "finalized"):
                values = [getattr(run, field) for run in members]
                mean, sd = getattr(row, field)
                np.testing.assert_allclose(mean, np.mean(values), rtol=1e-12)
                assert (sd is None) == (len(values) == 1)
                if sd is not None:
                    np.testing.assert_allclose(sd, np.std(values, ddof=1), rtol=1e-9)
            for field in ("dense_bytes", "stored_bytes", "steps_per_second"):
                expected = np.mean([getattr(run, field) for run in members])
                np.testing.assert_allclose(getattr(row, field), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [{"task": "embed"}, {"data": {"name": "fashion_mnist"}}, {"quality": {"name": "loss"}}],
)
def test_numbers_that_cannot_be_compared_stand_apart(write, change):
    runs = report.load_runs([write("a"), write("b", config="other", **change)])
    assert [len(group.rows) for group in report.group_runs(runs)] == [1, 1]


def test_one_name_with_several_hashes_gets_the_shortest_prefixes_that_differ(write):
    hashes = ["ab12ffff", "ab34ffff", "cd12ffff"]
    paths = [write(h, config_hash=h, bytes={"file": 100 + i}) for i, h in enumerate(hashes)]
    other = write("other", config="other", bytes={"file": 200})
    (group,) = report.group_runs(report.load_runs([*paths, other]))
    labels = ["digits_vit@ab1", "digits_vit@ab3", "digits_vit@cd1", "other"]
    assert [row.label for row in group.rows] == labels


def test_table_shows_bytes_ratio_and_spread(write):
    three = [
        write(f"s{seed}", seed=seed, quality={"trained": value, "finalized": value - 0.1})
        for seed, value in enumerate([0.90, 0.92, 0.94])
    ]
    one = write("one", config="big", methods=[], bytes={"dense": 2_500_000, "file": 2_000_000})
    text = report.table(report.group_runs(report.load_runs([*three, one])))
    row = row_of(text, "digits_vit")
    assert (row["seeds"], row["steps/s"]) == ("3", "31.2")
    assert row["accuracy, trained"] == "0.9200 ± 0.0200"
    assert row["accuracy, finalized"] == "0.8200 ± 0.0200"
    assert (row["dense"], row["stored"], row["ratio"]) == ("120.00 kB", "60.00 kB", "2.00x")
    big = row_of(text, "big")
    assert (big["methods"], big["accuracy, finalized"]) == ("dense", "0.9790")
    assert (big["stored"], big["ratio"]) == ("2.00 MB", "1.25x")
    assert "## classify on digits: accuracy (higher is better)" in text


def test_a_run_that_diverged_keeps_its_row(write):
    gone = write("gone", config="gone", quality={"finalized": None})
    groups = report.group_runs(report.load_runs([gone, write("well")]))
    shown = row_of(report.table(groups), "gone")
    assert shown["accuracy, finalized"] == "nan"
    assert sorted(row.label for row in groups[0].rows) == ["digits_vit", "gone"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(None, "-"), (0.0, "-"), (0.012, "0.012"), (31.24, "31.2")],  # 0.0: as it once was stored
)
def test_a_speed_that_was_not_measured_is_no_number(write, stored, shown):
    groups = report.group_runs(report.load_runs([write("a", steps_per_second=stored)]))
    assert row_of(report.table(groups), "digits_vit")["steps/s"] == shown


def test_files_and_csv_round_trip(study, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    assert report.main([*study, f"--out={out}"]) == 0
    text = (out / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    groups = report.group_runs(report.load_runs(study))
    expected = [(group, row) for group in groups for row in group.rows]
    for record, (group, row) in zip(records, expected, strict=True):
        for field in ("task", "data", "quality", "mode"):
            assert record[field] == getattr(group, field)
        assert record["label"] == row.label
        assert record["methods"].split() == list(row.runs[0].methods)
        assert int(record["seeds"]) == len(row.runs)
        for field in ("trained", "finalized"):
            mean, sd = getattr(row, field)
            shown = "" if sd is None else repr(sd)
            assert (float(record[f"{field}_mean"]), record[f"{field}_sd"]) == (mean, shown)
        for field in ("dense_bytes", "stored_bytes", "ratio", "steps_per_second"):
            assert float(record[field]) == getattr(row, field)


def refused(capsys, *argv):
    """The one line that the command prints as it exits with code 2."""
    assert report.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_paths_that_name_no_run(capsys, tmp_path):
    assert "no runs given" in refused(capsys)
    assert "typo does not exist" in refused(capsys, str(tmp_path / "typo"))


@pytest.mark.parametrize("state", ["no summary", "not finished"])
def test_unfinished_runs_are_refused_or_left_out_with_a_note(
    write, tmp_path, capsys, monkeypatch, state
):
    monkeypatch.setattr("jaxlab.report.tables.plot", lambda groups, path: None)
    early, done = write("early", finished=False), write("done")
    if state == "no summary":
        Path(early, "summary.json").unlink()
    out = f"--out={tmp_path / 'out'}"
    assert re.search(
        rf"{re.escape(early)}.*finished", refused(capsys, done, early, out, "--strict")
    )
    assert not (tmp_path / "out").exists()
    assert report.main([done, early, out]) == 0
    text, note = capsys.readouterr()
    assert (early in note, row_of(text, "digits_vit")["seeds"]) == (True, "1")
    assert report.main([early, out]) == 2


def test_malformed_json(write, capsys):
    path = write("a")
    Path(path, "summary.json").write_text('{"format": 1,\n "config"')
    assert "summary.json is not valid JSON" in refused(capsys, path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": 2}, "format=2; this version reads format=1"),
        ({"bytes": {"file": 0}}, "bytes.file=0"),
        ({"bytes": {"dense": "many"}}, "bytes.dense='many'"),
        ({"quality": {"mode": "best"}}, "quality.mode='best'; valid: max, min"),
        ({"quality": 0.9}, "no entry 'quality.mode'"),
    ],
)
def test_summaries_that_cannot_be_read(write, capsys, changes, expected):
    assert expected in refused(capsys, write("a", **changes))


def test_one_result_is_not_counted_as_two_seeds(write, capsys):
    first, again = write("first"), write("again")
    assert len(report.load_runs([first, f"{first}/", first])) == 1
    assert f"{first} and {again} are the same" in refused(capsys, first, again)


def test_import_needs_neither_jax_nor_matplotlib_and_plots_need_no_pyplot(write):
    # An empty package stands for jaxlab's own, which imports JAX for the names that it offers.
    code = (
        "import sys, types\n"
        "package = types.ModuleType('jaxlab')\n"
        f"package.__path__ = [{str(Path(report.__file__).parent)!r}]\n"
        "sys.modules['jaxlab'] = package\n"
        "import jaxlab.report\n"
        "print({'jax', 'flax', 'matplotlib'} & set(sys.modules))\n"
        "jaxlab.report.plot(jaxlab.report.group_runs(jaxlab.report.load_runs(sys.argv[1:])))\n"
        "print({'jax', 'matplotlib', 'matplotlib.pyplot'} & set(sys.modules))\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code, write("a")], text=True)
    assert printed.splitlines() == ["set()", "{'matplotlib'}"]
