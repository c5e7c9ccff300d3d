"""The page without a browser: what is in it, and that nothing breaks out of it."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import NAMES, make, recipe
from PIL import Image
from safetensors.torch import save_file

from ensemble.config.parsing import to_plain
from ensemble.engine.optimizers import Adam
from ensemble.machine.files import read_json, read_json_lines, write_json, write_json_lines
from ensemble.objectives.competition import Competition
from ensemble.recipe import TeacherEntry
from ensemble.report.page import page, percent
from ensemble.report.reading import _own_names, read_run
from ensemble.report.tables import _facts, command
from ensemble.report.thumbnails import data_uris, maps, shown_width, side_of
from ensemble.runs.folder import ResultsFolder

VOID = {"meta", "img", "input", "br", "link"}
EVIL = (
    "<script>alert(1)</script>",
    "a & b 'c' \"d\" onload=alert(1)",
    "fox 🦊 {{ 7 * 7 }} </script><!--",
    "x" * 300,
)


class Parsed(HTMLParser):
    """Tags with their attributes, texts, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]

    @property
    def data(self) -> dict[str, Any]:
        (text,) = [text for tag, text in self.texts if tag == "script" and text.startswith("{")]
        found: dict[str, Any] = json.loads(text)
        return found


def parsed(*folders: Path) -> Parsed:
    return Parsed(page([read_run(str(folder)) for folder in folders]))


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def rows(found: Parsed, text: str) -> dict[str, tuple[bool, list[str]]]:
    """The rows of the settings and facts: whether marked, and the cells."""
    table = re.findall(
        r'<tr( class="differs")?><th scope="row"><code>([^<]*)</code>.*?</th>((?:<td>[^<]*</td>)+)</tr>', text
    )
    return {name: (bool(mark), re.findall(r"<td>([^<]*)</td>", cells)) for mark, name, cells in table}


def test_all_images_are_there_exactly_with_words(tmp_path: Path) -> None:
    made = read_run(str(make(tmp_path / "a", 130)))
    found = Parsed(page([made]))
    images = [a for a in found.all("img") if a["alt"]]
    assert len(images) == len(found.all("figure")) == 130 and not found.open
    places = [int(a["data-p"] or "") for a in found.all("figure")]
    assert sorted(places) == list(range(130))
    for place, image in zip(places, images, strict=True):
        expected = np.asarray(
            Image.open(next((tmp_path / "a/images").glob(f"{place % 4:04d}_*")) / f"{place // 4}.png")
        )
        assert (pixels(image["src"] or "") == expected).all()
        assert f"Image {place} of" in (image["alt"] or "") and f"made as {NAMES[place % 4]}" in (image["alt"] or "")
        assert all(f"{name} reads" in (image["alt"] or "") for name in ("net_a", "net_b", "judge"))


def test_a_card_tells_readings_and_probabilities(tmp_path: Path) -> None:
    made = read_run(str(make(tmp_path / "a")))
    wrong = made.pictures[1]
    assert [(r.network, r.name, r.right) for r in wrong.readings] == [
        ("net_a", "bee", True), ("net_b", "ant", False), ("judge", "ant", False),
    ]  # fmt: skip
    said = made.pictures[1].readings[1]
    row = read_json_lines(tmp_path / "a/per_image.jsonl")[1]
    assert said.of_target == row["net_b/probability"] and said.of_reading is not None and said.of_reading > 0.9
    text = page([made])
    card = text[text.index('<figure class="card" data-p="1"') :]
    card = card[: card.index("</figure>")]
    assert (
        card.count("✓ bee") == 1 and card.count("✗ ant") == 2 and percent(said.of_reading).replace(">", "&gt;") in card
    )


def test_preferred_images_are_named_by_their_units(tmp_path: Path) -> None:
    """What networks read of them counts where the units are classes'."""
    for name, of_class in (("inner", False), ("classes", True)):
        folder = ResultsFolder(make(tmp_path / name, n=4))
        units = ["layer:3", "layer:1", "layer:3", "layer:1"]
        folder.write_units(
            [
                {
                    "image": i,
                    "unit": unit,
                    "of_class": of_class,
                    "activation": 2.5 + i,
                    "of_largest": None if i else 1.25,
                }
                for i, unit in enumerate(units)
            ],
            {},
        )
        run = read_run(str(folder.path))
        assert [picture.name for picture in run.pictures] == units
        assert [bool(picture.readings) for picture in run.pictures] == [of_class] * 4
        assert run.pictures[0].excited == (("activation", 2.5), ("/ largest real", 1.25))
        text = page([run])
        assert (
            "4 of 2 units" in text
            and "made as layer:3" in text
            and "; activation 5.5" in text
            and "<small>1.25</small>" in text
        )
        assert (text.count(">✓ ") > 0) == of_class
    (tmp_path / "inner" / "units.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"its units\.jsonl is damaged"):
        read_run(str(tmp_path / "inner"))


def test_the_student_is_no_teacher(tmp_path: Path) -> None:
    """So that what it reads is no disagreement of teachers."""
    run = read_run(str(make(tmp_path / "a", made_by=recipe(("net_a", "student")))))
    assert [(network.name, network.role) for network in run.networks] == [
        ("net_a", "teacher"), ("student", "student"), ("judge", "verifier"),
    ]  # fmt: skip
    assert Parsed(page([run])).data["teachers"] == [[0]]


def test_agreement_is_a_number_on_the_card_and_a_map(tmp_path: Path) -> None:
    """Orange above, where the teachers conflict, and blue below; a run that did not compare them has neither."""
    compared, without = make(tmp_path / "a", n=3, compared=True), make(tmp_path / "b", n=3)
    found = parsed(compared, without)
    assert [row[4] for row in found.data["pictures"]] == [-1, 0, 1, None, None, None]
    (first, *_), none = found.data["maps"]
    above, below = (half.reshape(-1, 3).mean(0) for half in np.split(pixels(first).astype(float), 2))
    assert none == [] and above[0] > above[2] + 50 and below[2] > below[0] + 50
    text = page([read_run(str(compared))])
    assert text.count("<small>-1.00</small>") == 1 and "between the teachers&#39; gradients -1.00" in text
    assert 'value="conflict"' in text and 'value="conflict"' not in page([read_run(str(without))])


def test_maps_are_small_and_keep_their_shape() -> None:
    assert pixels(next(maps(torch.zeros(1, 224, 112)))).shape == (32, 16, 3)
    assert pixels(next(maps(torch.zeros(1, 8, 8)))).shape == (8, 8, 3)


def test_names_stay_names(tmp_path: Path) -> None:
    folder = tmp_path / ("<b> & \"q\" 'r' 🦊 " + "y" * 200)
    teacher = "<i>net</i>&\"'"
    kept = recipe([teacher, "net_b"])
    warned = ["<img src=x onerror=alert(1)>"]
    make(folder, names=EVIL, made_by=kept, verifiers=["</title>judge"], warnings=warned, command="rm <x> && y")
    text = page([read_run(str(folder))])
    found = Parsed(text)
    assert not found.open and len(found.all("script")) == 2
    assert not found.all("i", src="x") and not [a for a in found.all("img") if "onerror" in a]
    shown = {t for _, t in found.texts}
    assert {*EVIL, teacher, "</title>judge", "rm <x> && y"} <= shown and any(warned[0] in t for t in shown)
    assert found.data["runs"] == [str(folder)] and set(EVIL) <= set(found.data["names"])
    assert "49" not in {t for t in shown if "fox" in t} and "<script>alert" not in text
    assert text.count("</script>") == 2


def test_names_that_are_no_unicode_do_not_stop_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"class_names": ["ant", "bee", "cat", "x"]})
    text = (folder / "summary.json").read_text(encoding="utf-8").replace('"x"', r'"\ud800"')
    (folder / "summary.json").write_text(text, encoding="utf-8")
    assert "bee" in page([read_run(str(folder))]).encode("utf-8", "replace").decode()


def test_it_needs_no_network(tmp_path: Path) -> None:
    text = page([read_run(str(make(tmp_path / "a")))])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image[^\"]*", "", text).replace("// ", ""))
    found = Parsed(text)
    (policy,) = found.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in (policy["content"] or "")
    assert not found.all("link") and not [a for a in found.all("script") if "src" in a]
    assert all((a.get("src") or "data:").startswith("data:") for a in found.all("img"))


def test_differences_of_settings_are_marked(tmp_path: Path) -> None:
    a = make(tmp_path / "a", made_by=recipe(), seed=0)
    other = replace(recipe(["net_a", "net_b", "net_c"]), seed=7, optimizer=Adam(lr=0.5))
    b = make(tmp_path / "b", made_by=other, seed=1, wall_seconds=99.0)
    runs = [read_run(str(folder)) for folder in (a, b)]
    text = page(runs)
    found = rows(Parsed(text), text)
    marked = {name for name, (mark, _) in found.items() if mark}
    fields = {f"teachers[2].{name}" for name in ("model", "weight", "ranks", "classes", "layers")}
    assert marked >= {"seed", "optimizer.lr", "time", *fields}
    assert not marked & {"teachers[0].model", "optimizer.kind", "images_per_class", "peak memory"}
    assert found["seed"][1] == ["0", "7"] and found["optimizer.lr"][1][1] == "0.5"
    alone = page(runs[:1])
    assert not any(mark for mark, _ in rows(Parsed(alone), alone).values())


def test_another_kind_marks_its_fields(tmp_path: Path) -> None:
    from ensemble.image.pixels import Pixels
    from ensemble.recipe import ImageRule

    a = make(tmp_path / "a")
    b = make(tmp_path / "b", made_by=replace(recipe(), image=ImageRule(Pixels())))
    text = page([read_run(str(a)), read_run(str(b))])
    marked = {name for name, (mark, _) in rows(Parsed(text), text).items() if mark and "." in name}
    at = "image.parameterization."
    assert {f"{at}kind", f"{at}decay", f"{at}space"} <= marked and all(name.startswith(at) for name in marked)


def test_runs_stand_side_by_side_by_class(tmp_path: Path) -> None:
    a = make(tmp_path / "a", names=("ant", "bee"), n=4)
    b = make(tmp_path / "b", names=("cat", "bee"), n=2, seed=1)
    text = page([read_run(str(a)), read_run(str(b))])
    groups = [group.split('class="cell"')[1:] for group in text.split('<div class="group"')[1:]]
    assert [[cell.count("<figure") for cell in cells] for cells in groups] == [[2, 0], [2, 1], [0, 1]]
    assert [name for tag, name in Parsed(text).texts if tag == "h3" and name in NAMES] == ["ant", "bee", "cat"]
    assert text.count('<span class="name">net_a</span>') == 2


def test_curves_layers_and_events_are_the_folders(tmp_path: Path) -> None:
    found = parsed(make(tmp_path / "a"))
    (trial,) = found.data["curves"][0]
    recorded = read_json_lines(tmp_path / "a/metrics.jsonl")
    for key in ("loss", "prior", "lr", "net_b/cross_entropy"):
        steps, values = trial["series"][key]
        assert steps == [row["step"] for row in recorded]
        assert values == pytest.approx([row[key] for row in recorded], rel=1e-4)
    assert trial["events"] == [[10, "stage 2 of 2: 10 steps"]] and found.data["stages"] == [[0, 10]]
    expected = ["layer2.bn", 0.2, pytest.approx(1 / 3, rel=1e-4), 0.05, 0.2]
    assert found.data["layers"][0]["net_a"][2] == expected
    worst = [text for tag, text in found.texts if tag == "code" and text.startswith("layer")][:3]
    assert worst == ["layer0.bn", "layer1.bn", "layer4.bn"]  # 1, 1/2, and a mean of 0.4 over a variance of 1/3


def test_long_runs_are_thinned_and_keep_their_end(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    long = [{"loss": 1.0 / (1 + i), "lr": 0.1, "trial": t, "step": i, "stage": 1} for t in (0, 1) for i in range(5001)]
    long[7]["loss"] = None  # was not finite
    write_json_lines(folder / "metrics.jsonl", [*long, {"trial": 0, "step": 6000, "stage": 1, "lr": 0.1, "event": "e"}])
    for trial in parsed(folder).data["curves"][0]:
        for steps, values in trial["series"].values():
            assert steps[0] == 0 and steps[-1] == 5000 and len(steps) <= 402 and len(values) == len(steps)


def test_teachers_that_take_turns_have_curves_at_their_own_steps(tmp_path: Path) -> None:
    """A loss that was not finite is a gap; steps of others are none. Thinning leaves no teacher out."""
    folder = make(tmp_path / "a")
    names = ("net_a", "net_b")
    rows = [{"loss": 1.0, f"{names[i % 2]}/x": 1.0 * i, "trial": 0, "step": i, "stage": 1} for i in range(2001)]
    rows[4]["net_a/x"] = None  # was not finite
    write_json_lines(folder / "metrics.jsonl", rows[:9])
    series = parsed(folder).data["curves"][0][0]["series"]
    assert series["net_a/x"] == [[0, 2, 4, 6, 8], [0.0, 2.0, None, 6.0, 8.0]]
    assert series["net_b/x"] == [[1, 3, 5, 7], [1.0, 3.0, 5.0, 7.0]]
    write_json_lines(folder / "metrics.jsonl", rows)
    series = parsed(folder).data["curves"][0][0]["series"]
    for name, first, last in (("net_a", 0, 2000), ("net_b", 1, 1999)):
        steps = series[f"{name}/x"][0]
        assert steps[0] == first and steps[-1] == last and 100 < len(steps) <= 402


def test_teachers_of_other_classes_are_read_by_the_runs_names(tmp_path: Path) -> None:
    mapped = TeacherEntry("net_b", classes={"ant": 3, "bee": 0, "cat": 1, "dog": 2})
    folder = make(tmp_path / "a", made_by=replace(recipe(), teachers=(TeacherEntry("net_a"), mapped)))
    rows = read_json_lines(folder / "per_image.jsonl")
    rows[0]["net_b/reads"] = 3
    write_json_lines(folder / "per_image.jsonl", rows)
    assert read_run(str(folder)).pictures[0].readings[1].name == "ant"


def test_a_student_and_several_classes_in_one_are_read_by_the_runs_names(tmp_path: Path) -> None:
    """The student is called so in a run, whatever its model; of one index all names are told."""
    student = TeacherEntry("net_a", student=True, classes={"ant": 1, "bee": 0, "cat": 0, "dog": 2})
    made_by = replace(recipe(), teachers=(TeacherEntry("net_a"), student), objectives=(Competition(),))
    plain = to_plain(made_by)
    assert _own_names(plain, ()) == {"student": {1: "ant", 0: "bee or cat", 2: "dog"}}


def test_steps_that_were_taken_are_told(tmp_path: Path) -> None:
    folders = [make(tmp_path / str(steps), steps=steps) for steps in ([20], [7], [7, 9])]
    told = [_facts(read_run(str(folder))) for folder in folders]
    assert [facts["steps"] for facts in told] == ["20", "7 of 20", "7 to 9 of 20"]
    early = "before its last step, where the recipe ends it"
    assert [facts["ended"] for facts in told] == ["at its last step", early, early]


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", names=("crane", "crane", "cat"))
    assert [p.name for p in read_run(str(folder)).pictures[:3]] == ["crane (0)", "crane (1)", "cat"]


def test_without_names_logits_or_layers(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", class_names=[])
    for name in ("logits.safetensors", "per_layer.jsonl", "metrics.jsonl"):
        (folder / name).unlink()
    text = page([read_run(str(folder))])
    assert "class 1" in text and "No layer was compared" in text


def test_the_command_of_a_folder_with_a_space_is_one_a_shell_takes(tmp_path: Path) -> None:
    run = read_run(str(make(tmp_path / "my run")))
    assert shlex.split(command(run))[-3:] == [f"{tmp_path / 'my run'}/recipe.yaml", "--output", "NEW_FOLDER"]


def test_the_command_that_is_kept_is_shown(tmp_path: Path) -> None:
    kept = page([read_run(str(make(tmp_path / "a", command=["invert.py", "--recipe", "quickstart"])))])
    assert '<pre tabindex="0">invert.py --recipe quickstart</pre>' in kept
    assert "recipe.yaml makes the images again" in page([read_run(str(make(tmp_path / "b")))])


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    assert "stopped before its last step" in page([read_run(str(make(tmp_path / "a", stopped=True)))])
    assert "stopped before" not in page([read_run(str(make(tmp_path / "b")))])


def test_large_pictures_are_reduced_and_small_ones_enlarged_whole() -> None:
    large = torch.rand(2, 3, 300, 200)
    assert [pixels(uri).shape for uri in data_uris(large)] == [(256, 171, 3)] * 2
    assert (
        side_of(large) == 256 and side_of(torch.zeros(201, 3, 300, 200)) == 160 and side_of(large[..., :96, :96]) == 96
    )
    assert [shown_width(torch.zeros(1, 3, n, n)) for n in (1, 8, 32, 64, 224)] == [128, 128, 128, 128, 168]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "100 %"), (0.9999, ">99.9 %"), (0.5, "50.0 %"), (0.0004, "<0.1 %"), (0.0, "0 %")],
)
def test_percentages_do_not_claim_too_much(value: float | None, text: str) -> None:
    assert percent(value) == text


DAMAGES = {
    "rows of other images": ("per_image.jsonl", '{"target": 0}\n'),
    "rows without probability": ("per_image.jsonl", None),
    "metrics": ("metrics.jsonl", '{"loss": 1}\n'),
    "layers": ("per_layer.jsonl", '{"layer": "x"}\n'),
    "summary that is a list": ("summary.json", "[1]"),
    "summary that is no JSON": ("summary.json", "{"),
    "verifier without interval": ("summary.json", '{"teachers": {}, "verifiers": {"v": {"accuracy": 1}}}'),
    "time that is a text": ("summary.json", '{"teachers": {}, "wall_seconds": "long"}'),
    "warnings that are a text": ("summary.json", '{"teachers": {}, "warnings": "none"}'),
    "recipe without stages": ("recipe.yaml", "teachers: [{model: net_a}]"),
    "recipe that is no YAML": ("recipe.yaml", "a: [b"),
    "logits": ("logits.safetensors", "x"),
    "images": ("images.safetensors", "x"),
    "agreement": ("agreement.safetensors", "x"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_told_in_one_line(what: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    file, content = DAMAGES[what]
    if content is None:
        content = "".join(json.dumps({"target": i % 4, "net_a/reads": 0}) + "\n" for i in range(12))
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=file.partition(".")[0]) as caught:
        read_run(str(folder))
    assert "\n" not in str(caught.value).strip() and str(folder) in str(caught.value)


def test_images_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    save_file(
        {"images": torch.full((12, 3, 8, 8), float("nan")), "targets": torch.zeros(12, dtype=torch.int64)},
        folder / "images.safetensors",
    )
    with pytest.raises(ValueError, match="images are damaged"):
        read_run(str(folder))


def test_maps_of_other_images_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", compared=True)
    save_file({"maps": torch.zeros(12, 4, 8), "a~b": torch.zeros(12)}, folder / "agreement.safetensors")
    with pytest.raises(ValueError, match=r"its agreement.safetensors is damaged"):
        read_run(str(folder))


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"no finished run.*--resume"):
        read_run(str(folder))
