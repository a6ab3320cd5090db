"""The explorer in a browser: what people do with it, and what it looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from lsap_archive import Archive, open_archive
from lsap_archive.explorer.app import explorer_app
from tests.chromium import NAMES, Tab, browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here: none of {', '.join(NAMES)} was found")
DOCS = Path(__file__).parents[3] / "docs"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 400, "height": 800}
SETTLED = (
    "document.querySelectorAll('.cell:not([hidden])').length > 3 && !document.querySelector('#grid[aria-busy]') && "
    "![...document.querySelectorAll('.cell:not([hidden]) .picture')].some(each => each.dataset.state == 'waiting')"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def show(tab: Tab, address: str, **size: Any) -> None:
    tab.open(address, **{**WIDE, **size})
    tab.wait_for(SETTLED)


def names(tab: Tab) -> list[str]:
    """Ids in the page, in the order in which they are shown."""
    cells = "[...document.querySelectorAll('.cell:not([hidden])')]"
    found = f"{cells}.sort((a, b) => a.dataset.index - b.dataset.index).map(each => each.title)"
    listed: list[str] = tab.value_of(found)
    return listed


def state(tab: Tab) -> dict[str, list[str]]:
    return parse_qs(urlsplit(tab.value_of("location.href")).query)


def choose(tab: Tab, control: str, value: str) -> None:
    """Of a select."""
    tab.value_of(
        f"(each => {{ each.value = {json.dumps(value)}; each.dispatchEvent(new Event('change', {{bubbles: true}})) }})"
        f"(document.querySelector({json.dumps(control)}))"
    )


def worst(archive: Archive, method: str, number: int) -> list[str]:
    query = (
        f"select image_id from latest where method = '{method}' order by mse desc nulls last, image_id limit {number}"
    )
    found: list[str] = archive.sql(query).column("image_id").to_pylist()
    return found


def test_worst_first_by_another_method_and_back(tab: Tab, address: str, shown_archive: Archive) -> None:
    show(tab, address)
    assert "600 images" in tab.value_of("document.querySelector('#status').textContent")
    choose(tab, "#sort", "mse")
    tab.wait_for(f"document.querySelector('[data-index=\"0\"]')?.title == '{worst(shown_archive, 'lsap_e', 1)[0]}'")
    assert names(tab)[:20] == worst(shown_archive, "lsap_e", 20)
    assert state(tab) == {"sort": ["mse"], "column": ["mse"]}
    choose(tab, "#method", "lsap_o_w_plus")
    tab.wait_for("location.search.includes('method=lsap_o_w_plus')")
    tab.wait_for(SETTLED)
    assert set(names(tab)) & set(worst(shown_archive, "lsap_o_w_plus", 600))
    tab.value_of("history.back()")
    tab.wait_for(f"document.querySelector('[data-index=\"0\"]')?.title == '{worst(shown_archive, 'lsap_e', 1)[0]}'")
    assert tab.value_of("document.querySelector('#method').value") == "lsap_e"


def test_a_method_is_switched_in_place(tab: Tab, address: str) -> None:
    show(tab, address)
    tab.wheel("#grid", 2000)
    tab.wait_for("document.querySelector('#grid').scrollTop > 1500 && location.search.includes('at=')")
    tab.wait_for(SETTLED)
    first = state(tab)["at"][0]
    choose(tab, "#method", "lsap_e/slant")
    tab.wait_for("[...document.querySelectorAll('.cell img')].some(each => each.src.includes('slant'))")
    at = f"[...document.querySelectorAll('.cell')].find(each => each.title == '{first}').getBoundingClientRect().top"
    assert abs(tab.value_of(at) - tab.box_of("#grid")["top"]) < tab.box_of(".cell:not([hidden])")["height"]


def test_a_range_is_drawn_and_moved_by_keys_and_put_away(tab: Tab, address: str, shown_archive: Archive) -> None:
    show(tab, f"{address}?column=mse")
    box = tab.box_of(".plot")
    middle = box["top"] + 30
    tab.drag((box["left"] + 0.5 * box["width"], middle), (box["left"] + box["width"] + 9, middle))
    tab.wait_for("location.search.includes('range=')")
    tab.wait_for(SETTLED)
    name, low, high = state(tab)["range"][0].split("~")
    assert (name, high) == ("mse", "") and float(low) > 0

    def shown() -> int:
        return int(tab.value_of("document.querySelector('#status').textContent").split()[0])

    def counted(low: str) -> int:
        found = shown_archive.sql(f"select count(*) from latest where method = 'lsap_e' and mse >= {low}")
        return int(found.column(0)[0].as_py())

    assert shown() == counted(low)
    tab.value_of("document.querySelector('.handle').focus()")
    tab.press("ArrowRight")
    tab.wait_for(f"!location.search.includes('{low}')")
    tab.wait_for(SETTLED)
    moved = state(tab)["range"][0].split("~")[1]
    assert float(moved) > float(low) and shown() == counted(moved) < counted(low)
    tab.click("#ranges button")
    tab.wait_for("document.querySelector('#status').textContent.startsWith('600')")


def test_an_image_is_opened_by_keys_and_closed(tab: Tab, address: str, shown_archive: Archive) -> None:
    show(tab, f"{address}?sort=mse")
    wanted = worst(shown_archive, "lsap_e", 3)
    tab.value_of("document.querySelector('#grid').focus()")
    tab.press("ArrowRight")
    tab.press("Enter")
    tab.wait_for("document.querySelectorAll('dialog[open] .figures.small figure').length > 5")
    assert tab.value_of("document.querySelector('#detail-id').textContent") == wanted[1]
    assert state(tab)["image"] == [wanted[1]]
    told = tab.value_of(
        "[...document.querySelectorAll('.figures:not(.small) figcaption')].map(each => each.textContent)"
    )
    assert [one.split("mse")[0] for one in told] == ["original", "lsap_e", "lsap_e/hfgi", "lsap_o_w_plus", told[-1]]
    assert told[-1].startswith("lsap_e/slant") and "identity [faces] *" in told[-1]
    tab.press("ArrowRight")
    tab.wait_for(f"document.querySelector('#detail-id').textContent == '{wanted[2]}'")
    tab.press("Escape")
    tab.wait_for("!document.querySelector('dialog').open && !location.search.includes('image=')")
    assert tab.value_of("document.activeElement.id") == "grid"
    show(tab, f"{address}?image={wanted[0]}")
    assert tab.value_of("document.querySelector('#detail-id').textContent") == wanted[0]


def neighbours(tab: Tab) -> list[str]:
    tab.wait_for("document.querySelectorAll('dialog[open] .neighbours figure').length == 12")
    found: list[str] = tab.value_of("[...document.querySelectorAll('.neighbours .name')].map(each => each.textContent)")
    return found


def nearest(archive: Archive, image_id: str, **asked: Any) -> list[str]:
    found = archive.nearest_to_images([image_id], 13, "lsap_e", **asked).column("image_id").to_pylist()
    return [name for name in found if name != image_id][:12]


def test_neighbours_are_found_in_another_space(
    tab: Tab, address: str, shown_archive: Archive, archive_without_layers: Archive, serve_app: Any
) -> None:
    name = "test/0020-0"
    show(tab, address)
    tab.value_of("document.querySelector('#grid').focus()")
    tab.press("Enter")
    opened = tab.value_of("document.querySelector('#detail-id').textContent")
    assert neighbours(tab) == nearest(shown_archive, opened)
    choose(tab, ".neighbours select", "s_n")
    tab.wait_for("location.search.includes('space=s_n')")
    first = nearest(shown_archive, opened, space="s_n")[0]
    tab.wait_for(f"document.querySelector('.neighbours .name')?.textContent == '{first}'")
    tab.press("Escape")
    tab.wait_for("!document.querySelector('dialog').open && !location.search.includes('image=')")
    assert state(tab)["space"] == ["s_n"]  # and the next image is opened so
    show(tab, f"{address}?image={name}&space=s_n&metric=cosine")
    assert neighbours(tab) == nearest(shown_archive, name, space="s_n", metric="cosine") != nearest(shown_archive, name)
    assert tab.value_of("[...document.querySelectorAll('.neighbours select')].map(each => each.value)") == [
        "s_n",
        "cosine",
    ]
    show(tab, f"{serve_app(explorer_app(archive_without_layers))}?image={name}&space=s_n")
    tab.wait_for("document.querySelector('.neighbours .error')?.textContent.includes('lsap run invert')")
    choose(tab, ".neighbours select", "w")
    assert neighbours(tab) == nearest(shown_archive, name, space="w")


def test_a_place_without_a_picture_says_why(tab: Tab, address: str) -> None:
    show(tab, address)
    told = "document.querySelector('[data-index=\"{}\"] .picture[data-state=none]')?.dataset.none"
    tab.wait_for(f"{told.format(11)} == 'no preview kept'")
    assert tab.value_of(told.format(5)) == "failed: non_finite_loss"
    assert tab.value_of("document.querySelector('[data-index=\"7\"] .picture').dataset.state") == "there"  # a copy


def test_sliders_edit_live(tab: Tab, address: str) -> None:
    show(tab, f"{address}?image=test/0020-0")
    tab.wait_for("document.querySelector('.live .picture')?.dataset.state == 'there'")
    tab.value_of(
        "(each => { each.value = 2; each.dispatchEvent(new Event('input')) })(document.querySelector('.sliders input'))"
    )
    tab.wait_for("document.querySelector('.live img').src.includes('strength=slant%7E2')")
    tab.wait_for("document.querySelector('.live .picture').dataset.state == 'there'")
    show(tab, f"{address}?image=test/0011-1")  # of which no preview was kept: this renderer says so
    tab.wait_for("document.querySelector('.live .picture')?.dataset.none.includes('has no preview')")


def test_what_is_wrong_with_a_query_stands_beside_it(tab: Tab, address: str) -> None:
    show(tab, address)
    tab.click("#sql")
    tab.type("mse < and")
    tab.click("#sql-apply")
    tab.wait_for("!document.querySelector('#sql-error').hidden")
    assert "syntax error" in tab.value_of("document.querySelector('#sql-error').textContent")
    assert len(names(tab)) > 20  # what was shown stays
    tab.click("#sql-clear")
    tab.wait_for("document.querySelector('#sql-error').hidden")
    assert state(tab) == {"column": ["mse"]}


def test_methods_stand_side_by_side_by_their_difference(tab: Tab, address: str, shown_archive: Archive) -> None:
    asked = "view=compare&with=lsap_o_w_plus&with=lsap_e/slant&sort=mse&column=mse&minus=lsap_o_w_plus"
    show(tab, f"{address}?{asked}")
    query = (
        "select a.image_id from latest a join latest b using (image_id) where a.method = 'lsap_e' and "
        "b.method = 'lsap_o_w_plus' order by a.mse - b.mse desc nulls last, image_id limit 4"
    )
    assert names(tab)[:4] == shown_archive.sql(query).column("image_id").to_pylist()
    (a,), (b,) = (
        shown_archive.sql(f"select mse from latest where method = '{name}' and image_id = $id", id=names(tab)[0])
        .column(0)
        .to_pylist()
        for name in ("lsap_e", "lsap_o_w_plus")
    )
    told = tab.value_of("document.querySelector('[data-index=\"0\"] .name').textContent")
    assert told.startswith(f"{names(tab)[0]} · mse, difference ")
    assert float(told.rpartition(" ")[2]) == pytest.approx(a - b, rel=1e-3)
    heads = tab.value_of("[...document.querySelectorAll('#heads span')].map(each => each.textContent)")
    assert heads == ["original", "lsap_e", "lsap_o_w_plus", "lsap_e/slant"]
    assert tab.value_of("document.querySelectorAll('[data-index=\"0\"] img').length") == 4
    box = "[...document.querySelectorAll('#heads span')].map(each => each.getBoundingClientRect())"
    columns = "[...document.querySelectorAll('[data-index=\"0\"] .picture')].map(each => each.getBoundingClientRect())"
    middles = "(boxes => boxes.map(each => each.left + each.width / 2))({})"
    for head, column in zip(tab.value_of(middles.format(box)), tab.value_of(middles.format(columns)), strict=True):
        assert abs(head - column) < 12


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("view", ["", "?view=compare&with=lsap_o_w_plus&with=lsap_e/hfgi", "?image=test/0020-0"])
def test_nothing_sticks_out(tab: Tab, address: str, view: str, size: dict[str, int]) -> None:
    show(tab, address + view, **size)
    assert tab.value_of("document.documentElement.scrollWidth <= innerWidth")
    within = (
        "[...document.querySelectorAll('header button, .cell:not([hidden]), dialog[open] figure, dialog[open] button')]"
        ".map(each => each.getBoundingClientRect()).every(box => box.left >= -1 && box.right <= innerWidth + 1)"
    )
    assert tab.value_of(within)


def test_the_panel_of_a_phone_opens_and_closes(tab: Tab, address: str) -> None:
    show(tab, address, **PHONE)
    assert tab.box_of("#panel")["width"] == 0
    tab.click("#panel-toggle")
    assert tab.box_of("#panel")["width"] == 400
    assert tab.value_of("document.querySelector('#panel-toggle').getAttribute('aria-expanded')") == "true"
    assert tab.value_of("document.querySelector('#panel').scrollWidth <= 400")
    tab.click("#panel-toggle")
    assert tab.box_of("#panel")["width"] == 0


def test_every_control_has_a_name(tab: Tab, address: str) -> None:
    show(tab, f"{address}?view=compare&with=lsap_o_w_plus&sort=mse&range=mse~0.01~&image=test/0020-0")
    unnamed = (
        "[...document.querySelectorAll('button, select, input, textarea, [role=slider], [role=listbox]')]"
        ".filter(each => each.offsetParent && !each.ariaLabel && !each.labels?.length && !each.textContent.trim())"
        ".map(each => each.outerHTML)"
    )
    assert tab.value_of(unnamed) == []


PICTURES = {
    "explorer": ("?method=lsap_e&sort=mse&show=both&size=96", WIDE, False),
    "explorer_phone": ("?method=lsap_e&image=test/0020-0", PHONE, False),
    "explorer_dark": (
        "?method=lsap_e&view=compare&with=lsap_o_w_plus&with=lsap_e/hfgi&with=lsap_e/slant"
        "&sort=mse&minus=lsap_o_w_plus&size=96",
        WIDE,
        True,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_it(tab: Tab, address: str, serve_app: Any, name: str, request: pytest.FixtureRequest) -> None:
    """What docs/explorer.md shows: all of it is there, light and dark; `--pictures URL` takes the pictures."""
    view, size, is_dark = PICTURES[name]
    shown = request.config.getoption("--pictures", default=None)
    show(tab, (serve_app(explorer_app(open_archive(shown))) if shown else address) + view, **size, is_dark=is_dark)
    if name == "explorer":
        box = tab.box_of(".plot")
        height = box["top"] + box["height"] / 2
        tab.drag((box["left"] + 0.4 * box["width"], height), (box["left"] + 0.8 * box["width"], height))
        tab.wait_for("document.querySelectorAll('#ranges li').length == 1")
        tab.wait_for(SETTLED)
    if "image=" in view:
        tab.wait_for("document.querySelectorAll('dialog[open] .figures.small img').length > 9")
    waiting = "each.dataset.state == 'waiting' && each.offsetParent"
    tab.wait_for(f"![...document.querySelectorAll('.picture')].some(each => {waiting})")
    background = tab.value_of("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 28)") == is_dark
    if shown:
        tab.value_of("document.querySelector('.url').textContent = 's3://bucket/archives/digits'")
        (DOCS / f"{name}.png").write_bytes(tab.picture())
