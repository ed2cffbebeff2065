"""The page of traces: its data, its command, and what headless Chromium draws of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace

import models
import numpy as np
import pytest
from test_cli import folder, prompt  # noqa: F401 - a fixture

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.trace.report import page, summary
from reasonalloc.trace.report import page as build

TOKENS, PROMPT = 100, 40


def record(method="reasonalloc", seed=0, budget=24, **settings):
    """A trace with text, of a tiny model."""
    model, ids = models.tiny(), models.prompt(TOKENS, seed=seed)
    cache = ra.ReasonAllocCache(
        model, ra.Config(method=method, budget=budget, interval=8, window=4, **settings), record=True
    )
    for begin, end in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, TOKENS))]:
        models.step(model, cache, ids[:, begin:end])
    ra.uninstall(model)
    trace = cache.trace(ids, model_id="tiny")
    words = [f" w{i}" if i % 10 else "\n" if i else "<s>" for i in range(TOKENS)]
    words[33] = ' </script><b>"&'  # whatever a model may write
    words[50] = ""
    return replace(trace, text="".join(words), ends=np.cumsum([len(x) for x in words]))


@pytest.fixture(scope="module")
def two():
    return record(), record("snapkv")


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def decode(coded):
    return np.frombuffer(base64.b64decode(coded[1]), coded[0])


# ---- The file --------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_traces(two):
    html = page(two, ["one", "two"])
    data = data_of(html)
    for trace, name, held in zip(two, ("one", "two"), data["traces"], strict=True):
        assert held["name"] == name and held["model"] == "tiny" and held["pieces"] == trace.pieces
        assert held["tokens"] == TOKENS and held["prompt"] == PROMPT
        for key in ("gone", "budgets", "lost", "quantiles", "cuts", "ids"):
            assert np.array_equal(
                decode(held[key]),
                getattr(trace, key).reshape(-1).astype(held[key][0]),
                equal_nan=key in ("lost", "quantiles"),
            )
    assert "/*" + "DATA*/" not in html and "/*" + "SCRIPT*/" not in html


def test_the_page_is_on_its_own(two):
    html = page(two[:1], ["one"])
    assert not re.search(
        r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)",
        re.sub(r'id="data">.*?</script>', "", html),
    )
    assert "default-src 'none'" in html
    assert html.count("</script>") == 2  # the one in the text is escaped


def test_very_many_cuts_are_thinned(two):
    cuts = np.arange(1, 4001)
    n, shape = 4000, (4000, 1, 1)
    long = replace(
        two[0], ids=np.zeros(n, int), prompt=1, cuts=cuts, gone=np.zeros((30, 3, n), np.uint8), layers=tuple(range(30)),
        budgets=np.broadcast_to(cuts.reshape(shape), (4000, 30, 3)), lost=np.zeros((4000, 30, 3), np.float32),
        quantiles=np.zeros((4000, 30, 3, 7), np.float32), text=None, ends=np.zeros(0, int),
    )  # fmt: skip
    html = page([long, long], ["a", "b"])
    held = data_of(html)["traces"][0]
    shown = decode(held["shown"])
    assert len(html) < 5e6 and len(decode(held["cuts"])) == 4000
    assert 200 < len(shown) < 400 and shown[0] == 0 and shown[-1] == 3999
    assert np.array_equal(decode(held["budgets"]).reshape(-1, 90)[:, 0], cuts[shown])


def test_summary(two):
    figures = summary(two[0], "x")
    assert figures["slots"] == two[0].held().sum() and figures["evicted"] == (two[0].gone > 0).sum()
    assert figures["ratio"] == pytest.approx(figures["slots"] / (figures["slots"] + figures["evicted"]))
    assert figures["size"] == "budget 24" and figures["cuts"] == 8
    assert 0 < figures["lost_mass"] < 1


def test_no_trace_and_too_many(two):
    for count in (0, 9):
        with pytest.raises(ValueError, match="1 to 8 traces"):
            build([two[0]] * count, ["x"] * count)


def test_command(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for trace, path in zip(two, ("a.trace", "deep/a.trace"), strict=True):
        trace.save(path)
    assert main(["report", "a.trace", "deep/a.trace", "-o", "r.html", "--json", "out.json"]) == 0
    assert "saved to r.html" in capsys.readouterr().out
    assert [x["name"] for x in data_of((tmp_path / "r.html").read_text(encoding="utf-8"))["traces"]] == [
        "a.trace",
        "deep/a.trace",
    ]
    assert [x["method"] for x in json.loads((tmp_path / "out.json").read_text())["traces"]] == ["reasonalloc", "snapkv"]
    (tmp_path / "no.trace").write_text("{}")
    for command, complaint in [
        (["report"], "TRACE"),
        (["report", "no.trace"], "not a trace"),
        (["report", "none.trace"], "none.trace"),
        (["report", "a.trace", "-o", "nowhere/r.html"], "nowhere"),
        (["report", *["a.trace"] * 9], "1 to 8"),
    ]:
        assert main(command) == 2
        assert complaint in capsys.readouterr().err


def test_generate_records(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--model", folder, "--prompt", prompt(60), "--budget", "24", "--interval", "8"]
    assert main([*command, "--max-new-tokens", "20", "--trace", "a.trace", "--json", "out.json"]) == 0
    trace, result = ra.Trace.load("a.trace"), json.loads((tmp_path / "out.json").read_text())
    assert trace.prompt == 60 and len(trace.ids) == 60 + result["new_tokens"] - 1
    assert (trace.gone > 0).sum() == result["stats"]["evicted"] > 0
    assert trace.source["model"] == folder and "w59" in trace.text
    capsys.readouterr()
    for path in ("nowhere/a.trace", str(tmp_path)):
        assert main([*command, "--trace", path]) == 2
        assert "not a file in a folder that exists" in capsys.readouterr().err


# ---- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root may not have one
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens traces in a page; at the end nothing may have been asked of a network or gone wrong."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    asked, errors = [], []

    def open_page(*traces):
        path = tmp_path / "report.html"
        path.write_text(page(traces, [f"trace {i}" for i in range(len(traces))]), encoding="utf-8")
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    assert errors == []
    assert {url.split("#")[0] for url in asked} == {(tmp_path / "report.html").as_uri()}
    context.close()


def spans(tab):
    """[(text, classes, colour)] of the tokens."""
    return tab.evaluate(
        """() => [...document.querySelectorAll('#text span')].map(
            x => [x.textContent, x.className, getComputedStyle(x).backgroundColor])"""
    )


def move(tab, tokens):
    tab.locator("#time").fill(str(tokens))


def channels(color):
    return [float(x) for x in re.findall(r"[\d.]+", color)][:3]


def ramp(stops, x):
    place = min(max(x, 0), 1) * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    return [a + (b - a) * (place - i) for a, b in zip(stops[i], stops[i + 1], strict=True)]


TOKEN = [(232, 242, 251), (190, 218, 242), (140, 192, 232), (94, 166, 222)]
AMOUNT = [(247, 251, 255), (198, 219, 239), (107, 174, 214), (49, 120, 180), (8, 48, 107)]


def assert_text(tab, trace, tokens):
    """Each token as the trace has it once `tokens` have been seen."""
    counts = trace.held(tokens).sum((0, 1))
    heads = trace.gone.shape[0] * trace.heads
    for i, (text, classes, color) in enumerate(spans(tab)):
        kinds = set(classes.split())
        assert text == trace.pieces[i]
        assert ("later" in kinds) == (i >= tokens)
        assert ("gone" in kinds) == (i < tokens and counts[i] == 0)
        assert ("prompt" in kinds) == (i < trace.prompt)
        assert ("newest" in kinds) == (i == tokens - 1)
        if i < tokens and counts[i]:
            np.testing.assert_allclose(channels(color), ramp(TOKEN, counts[i] / heads), atol=1.6)


def test_the_slider_moves_time(show, two):
    trace = two[0]
    tab = show(trace)
    assert tab.locator("#time").input_value() == str(TOKENS)  # it opens at the end
    assert_text(tab, trace, TOKENS)
    for tokens in (39, 40, 47, 48, 77, 0):
        move(tab, tokens)
        assert_text(tab, trace, tokens)
        assert (
            tab.locator("#now")
            .inner_text()
            .startswith(f"{tokens} of 100 tokens · cut {np.sum(trace.cuts <= tokens)} of 8")
        )
    share = trace.held(77).sum() / (77 * 6)
    move(tab, 77)
    assert f"{share:.1%} of the slots held" in tab.locator("#now").inner_text()


def test_keys_and_buttons(show, two):
    tab = show(two[0])
    slider = tab.locator("#time")
    slider.focus()
    for key, expected in [
        ("Home", 0), ("ArrowRight", 1), ("End", 100), ("ArrowLeft", 99), ("PageDown", 96), ("PageDown", 88),
        ("PageUp", 96),
    ]:  # fmt: skip
        slider.press(key)
        assert slider.input_value() == str(expected), key
    assert "96 of 100" in slider.get_attribute("aria-valuetext")
    assert_text(tab, two[0], 96)
    tab.get_by_label("Previous cut").click()
    assert slider.input_value() == "88"
    tab.get_by_label("Next cut").click()
    assert slider.input_value() == "96"
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert abs(int(slider.input_value()) - 50) <= 1
    tab.get_by_label("Play", exact=True).click()
    for _ in range(100):  # the page forbids eval, and with it wait_for_function
        tab.wait_for_timeout(100)
        if int(slider.input_value()) > 52:
            break
    tab.get_by_label("Pause").click()
    stopped = slider.input_value()
    tab.wait_for_timeout(300)
    assert slider.input_value() == stopped and 52 < int(stopped) < 100
    assert_text(tab, two[0], int(stopped))


def pixel(tab, chart, tokens, height):
    """Colour of a chart's canvas at a time and a share of the height of its inner part, from the top."""
    return tab.evaluate(
        """([chart, tokens, height]) => {
            const plot = {budgets: budgetMap, retention, scores}[chart].plot;
            const ratio = plot.canvas.width / plot.width;
            const y = plot.margin.top + height * plot.innerHeight;
            return [...plot.ink.getImageData(plot.x(tokens) * ratio, y * ratio, 1, 1).data];
        }""",
        [chart, int(tokens), height],
    )


def inked(tab, selector):
    """Share of a canvas that is not empty."""
    return tab.evaluate(
        """selector => {
            const canvas = document.querySelector(selector + ' canvas');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return data.filter((x, i) => i % 4 === 3 && x > 0).length / (data.length / 4);
        }""",
        selector,
    )


def test_budgets_are_drawn(show, two):
    trace = two[0]
    tab = show(trace)
    low, high = trace.budgets.min(), trace.budgets.max()
    for cut in range(8):
        for head in range(6):
            drawn = pixel(tab, "budgets", trace.cuts[cut] + 2, (head + 0.5) / 6)
            expected = ramp(AMOUNT, (trace.budgets[cut].reshape(-1)[head] - low) / (high - low))
            np.testing.assert_allclose(drawn[:3], expected, atol=1.6)
    assert pixel(tab, "budgets", 20, 0.25)[:3] == [0xEE, 0xF0, 0xF2]  # nothing cut yet
    move(tab, 50)
    left = tab.evaluate("parseFloat(budgetMap.plot.cursor.style.left)")
    assert left == pytest.approx(tab.evaluate("budgetMap.plot.x(50)"))


def test_charts_are_drawn(show, two):
    tab = show(*two)
    for chart in ("#budgets", "#retention", "#scores", "#lost", "#overlap"):
        assert inked(tab, chart) > 0.01, chart
    assert len(tab.locator("canvas[aria-label]").all()) == 5
    saw = tab.evaluate("retention.state.a.slots(0, 48)")
    assert saw == two[0].slots()[1].reshape(-1)[0]


def test_one_head_can_be_chosen(show, two):
    trace = two[0]
    tab = show(trace)
    move(tab, 80)
    box = tab.locator("#budgets canvas").bounding_box()
    inner = tab.evaluate("[budgetMap.plot.margin.left, budgetMap.plot.margin.top, budgetMap.plot.innerHeight]")
    tab.mouse.click(box["x"] + inner[0] + 30, box["y"] + inner[1] + inner[2] * 3.5 / 6)
    assert tab.locator("#layer").input_value() == "1" and tab.locator("#head").input_value() == "1"
    held = trace.held(80)[1, 1]
    for i, (_, classes, color) in enumerate(spans(tab)[:80]):
        assert ("gone" in classes.split()) == (not held[i])
        if held[i]:
            assert channels(color) == list(TOKEN[-1])
    tab.locator("#head").select_option("")
    counts = trace.held(80)[1].sum(0)
    assert [("gone" in x[1].split()) for x in spans(tab)[:80]] == (counts == 0)[:80].tolist()


def test_tooltips(show, two):
    trace = two[0]
    tab = show(trace)
    move(tab, 80)
    tab.locator("#text span").nth(45).hover()
    tip = tab.locator("#tip")
    assert f"held by {trace.held(80)[..., 45].sum()} of 6 heads" in tip.inner_text()
    assert '" w45"' in tip.inner_text() and f"id {trace.ids[45]}" in tip.inner_text()
    tab.locator("#budgets canvas").hover(position={"x": 300, "y": 20})
    assert "budget" in tip.inner_text() and "layer 0, head 0" in tip.inner_text()
    tab.locator("#scores canvas").hover(position={"x": 500, "y": 60})
    assert "attention lost" in tip.inner_text()
    tab.locator("#text").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert "token 78" in tip.inner_text()


def test_two_traces_against_each_other(show, two):
    a, b = two
    tab = show(a, b)
    move(tab, 72)
    one, other = a.held(72), b.held(72)
    parts = {x: int(tab.locator(f".stack .{x}").get_attribute("data-slots")) for x in ("a", "b", "both")}
    assert parts == {"both": (one & other).sum(), "a": (one & ~other).sum(), "b": (~one & other).sum()}
    difference = one.sum((0, 1)).astype(int) - other.sum((0, 1))
    either = (one | other).any((0, 1))
    for i, (_, classes, color) in enumerate(spans(tab)[:72]):  # A - B is what it opens with
        red, _, blue = channels(color)
        assert ("gone" in classes.split()) == (not either[i])
        if either[i]:
            assert np.sign(blue - red - 6 * (difference[i] == 0)) == np.sign(difference[i]) or abs(blue - red) < 8
            assert (blue > red + 8) == (difference[i] > 0) and (red > blue + 8) == (difference[i] < 0)
    tab.locator("#views [data-value=b]").click()
    assert [("gone" in x[1].split()) for x in spans(tab)[:72]] == (other.sum((0, 1)) == 0)[:72].tolist()
    tab.locator("#views [data-value=a]").click()
    assert_text(tab, a, 72)
    tab.locator("#maps [data-value=diff]").click()
    gap = a.budgets - b.budgets
    for cut in (2, 5):
        for head in range(6):
            red, _, blue = pixel(tab, "budgets", a.cuts[cut] + 2, (head + 0.5) / 6)[:3]
            assert np.sign(blue - red) == np.sign(gap[cut].reshape(-1)[head])


def diverging(two, shared):
    """Another trace whose text is that of the first for so many tokens."""
    ids = two[1].ids.copy()
    ids[shared:] = (ids[shared:] + 1) % 97
    return replace(two[1], ids=ids)


def test_tokens_beyond_the_text_that_both_share_are_not_compared(show, two):
    """They were struck through as "let go by all heads of both", the newest token too, which all heads hold."""
    tab = show(two[0], diverging(two, 70))
    either = (two[0].held() | two[1].held()).any((0, 1))
    for i, (_, classes, _) in enumerate(spans(tab)):  # A - B: most of the text is shared
        kinds = classes.split()
        assert ("apart" in kinds) == (i >= 70) and ("gone" in kinds) == (i < 70 and not either[i])
    assert "not compared" in tab.locator("#key").inner_text()
    tab.locator("#views [data-value=a]").click()
    assert "not compared" not in tab.locator("#key").inner_text()
    assert_text(tab, two[0], TOKENS)


def test_texts_that_soon_part_open_on_the_first(show, two):
    tab = show(two[0], diverging(two, 45))
    assert tab.locator("#views [data-value=a]").get_attribute("aria-checked") == "true"
    assert tab.locator("#views [data-value=diff]").count() == 1
    assert_text(tab, two[0], TOKENS)


def test_a_narrow_window_has_a_slider(show, two):
    tab = show(*two)
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.locator("#time").bounding_box()["width"] > 300
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def luminance(color):
    red, green, blue = channels(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_dark_scheme_is_followed_and_tokens_stay_readable(show, two):
    tab = show(two[0])
    for scheme in ("light", "dark", "light"):
        tab.emulate_media(color_scheme=scheme)
        back, ink = tab.evaluate("(x => [x.backgroundColor, x.color])(getComputedStyle(document.body))")
        assert (luminance(back) < 60 < 180 < luminance(ink)) == (scheme == "dark")
        shaded = tab.evaluate(
            """() => [...document.querySelectorAll('#text span')].filter(x => x.style.backgroundColor).map(
                x => [getComputedStyle(x).backgroundColor, getComputedStyle(x).color])"""
        )
        assert shaded and all(luminance(back) - luminance(ink) > 90 for back, ink in shaded)


def test_charts_take_the_colours_of_the_scheme(show, two):
    tab = show(*two)
    for scheme, expected in (("light", "#1f5fa8"), ("dark", "#3f83d1")):
        tab.emulate_media(color_scheme=scheme)
        color = "rgb({}, {}, {})".format(*bytes.fromhex(expected[1:]))
        for part in (".letter", "#retention-key .swatch"):
            get = f"() => getComputedStyle(document.querySelector({part!r})).backgroundColor"
            for _ in range(100):  # the page draws anew when it hears of the scheme
                if tab.evaluate(get) == color:
                    break
                tab.wait_for_timeout(50)
            assert tab.evaluate(get) == color


def test_traces_of_other_texts(show, two):
    tab = show(two[0], record(seed=5))
    assert "cannot be compared" in tab.locator("#shares").inner_text()
    assert tab.locator("#views [data-value=diff]").count() == 0
    tab.get_by_label("Trace B").select_option("0")  # of the page's traces any may be B
    assert tab.locator("#overlap").is_visible()
    tab.get_by_label("Trace B").select_option("")
    assert not tab.locator("#comparing").is_visible()
    assert_text(tab, two[0], TOKENS)


def test_a_trace_without_cuts_or_text(show):
    trace = record(budget=4096)
    tab = show(replace(trace, text=None, ends=np.zeros(0, int)))
    assert len(trace.cuts) == 0
    assert_text(tab, replace(trace, text=None, ends=np.zeros(0, int)), TOKENS)
    move(tab, 50)
    assert "100.0% of the slots held" in tab.locator("#now").inner_text()
