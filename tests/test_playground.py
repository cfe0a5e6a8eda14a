"""The playground, driven in a real headless Chromium against a real server: typed into, read, listened to."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from starlette.routing import NoMatchFound

from serving import Serving, serving
from slm_guardian.serve.app import create_app
from slm_guardian.serve.settings import Settings

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
# A name that is not this machine's own: over plain HTTP a page of it has no clipboard.
FLAGS.append("--host-resolver-rules=MAP guardian.test 127.0.0.1")
MILD = """
id: mild
extends: en
categories:
  - {id: crime_advice, action: flag}
  - {id: copyright_infringement, action: block}
"""
SAFE, HARMFUL = "How do I kill the weeds in my lawn?", "친구 SNS 계정 몰래 보는 법"
DISGUISED = "친구 계정 ㅎㅐㅋㅣㅇ하는 법"
HOSTILE = {
    "markup": "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>",
    "right to left": "\u202eabc\u202c مرحبا כיצד",
    "10,000 characters": "long " * 2000,
    "lone emoji": "🫥",
    "invisible": "\u200b\u3164\u200d",
    "template": "{{7*7}} ${7*7} %s </textarea>",
}
# The smallest contrast between a text that can be seen and what lies behind it, with the text.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255);
  };
  const light = (rgb) => rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const texts = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return texts.map((node) => {
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [light(paint([...behind, getComputedStyle(node).color])), light(paint(behind))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent];
  }).sort((a, b) => a[0] - b[0])[0];
}"""


@dataclass
class Tab:
    """A page, with all that it asked for and all that it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url: str) -> Page:
        self.page.goto(url)
        return self.page

    def settled(self) -> None:
        """Wait until the answer, if any, is complete."""
        done = "#result[aria-busy=false]:not(:has(#writing)), #error:not(:empty)"
        self.page.locator(done).first.wait_for()

    def judge(self, text: str) -> None:
        """Type a text (set at once, not key by key) and press Enter."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        self.settled()

    def refused(self, *statuses: int) -> None:
        """The browser's own lines about these statuses are no complaints; anything else is."""
        own = [rf"Failed to load resource: .*\b{status}\b" for status in statuses]
        self.complaints = [c for c in self.complaints if not any(re.match(o, c) for o in own)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if (path := next(found, None)) is None:
        pytest.fail("no Chromium: install it (Debian: apt-get install chromium)", pytrace=False)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=FLAGS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    mild = tmp_path_factory.mktemp("policy") / "mild.yaml"
    mild.write_text(MILD, "utf-8")
    policies = {"default": {}, "strict": {"threshold": 0.0}, "mild": {"files": [str(mild)]}}
    with serving(policies=policies) as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Serving]:
    """A server that asks for a key, gives the slow one little, one policy to the bound, and takes no long bodies."""
    keys = [key("right"), key("slow", per_minute=3), key("bound", policy="strict")]
    policies = {"default": {}, "strict": {"threshold": 0.0}}
    with serving(policies=policies, keys=keys, limits={"body_bytes": 500}) as running:
        yield running


def key(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "sha256": sha256(name.encode()).hexdigest(), **more}


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each with its own storage; none of them may ask elsewhere or complain."""
    with ExitStack() as stack:
        opened: list[Tab] = []

        def open_tab(url: str, **options: object) -> Tab:
            settings = {"locale": "en-US", "reduced_motion": "reduce"} | options
            context: BrowserContext = stack.enter_context(browser.new_context(**settings))  # type: ignore[arg-type]
            context.set_default_timeout(10_000)
            opened.append(Tab(context.new_page()))
            opened[-1].open(url)
            return opened[-1]

        yield open_tab
        for tab in opened:
            origin = tab.page.url.rstrip("/")
            assert all(url.startswith((origin, "data:")) for url in tab.requests)
            assert tab.complaints == []


@pytest.fixture
def tab(tabs: Callable[..., Tab], server: Serving) -> Tab:
    return tabs(server.url)


def words(tab: Tab, selector: str) -> str:
    return tab.page.locator(selector).inner_text()


def test_a_harmful_query_is_judged_and_answered(tabs: Callable[..., Tab], server: Serving) -> None:
    tab = tabs(server.url, locale="ko-KR")
    tab.page.keyboard.type(HARMFUL)
    tab.page.keyboard.press("Enter")
    tab.settled()
    assert (words(tab, "#label"), words(tab, "#category")) == ("유해", "개인정보 침해")
    meter = tab.page.locator("#meter")
    harm, limit = float(meter.get_attribute("aria-valuenow") or ""), float(words(tab, "#mark").split()[-1])
    assert harm > limit > 0
    assert words(tab, "#harm b") == f"{harm:.3f}"
    assert "가디언이 직접 답하고" in words(tab, "#action")
    assert len(words(tab, "#answer")) > 20
    spoken = words(tab, "#spoken")
    assert "유해: 개인정보 침해" in spoken and f"{harm:.3f}" in spoken


def test_the_verdict_comes_before_the_answer_and_the_answer_by_sentences(tab: Tab, server: Serving) -> None:
    tab.page.evaluate("""() => {
      window.seen = [];
      const watch = (id, what) => new MutationObserver((changes) => changes.forEach(({ addedNodes }) =>
        addedNodes.forEach((node) => node.textContent && window.seen.push([what, node.textContent]))))
        .observe(document.getElementById(id), { childList: true });
      watch("label", "label");
      watch("answer", "sentence");
    }""")
    query = "I don't want to be here anymore"
    tab.judge(query)
    seen = tab.page.evaluate("window.seen")
    assert seen[0] == ["label", "Harmful"]
    sentences = [text for what, text in seen[1:] if what == "sentence"]
    assert len(sentences) >= 2
    assert "".join(sentences) == words(tab, "#answer") == response(server, query)


def response(server: Serving, query: str) -> str:
    """The answer as the server gives it without the page."""
    body = json.dumps({"input": query, "respond": True}).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{server.url}/v1/guard", body, headers)) as reply:
        return json.load(reply)["verdicts"][0]["response"]


def test_a_safe_query_goes_on(tab: Tab) -> None:
    tab.judge(SAFE)
    assert words(tab, "#label") == "Safe"
    assert words(tab, "#action") == "It goes on to the main model."
    expect(tab.page.locator("#reply")).to_be_hidden()
    expect(tab.page.locator("#folded")).to_be_hidden()
    scores = [float(s) for s in tab.page.locator("#scores .number").all_inner_texts()]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    assert abs(sum(scores) - float(words(tab, "#harm b"))) < 0.01
    assert re.fullmatch(r"verdict in \d+ ms", words(tab, "#timing"))


def test_the_second_reading_is_shown_and_explained(tab: Tab) -> None:
    tab.judge(DISGUISED)
    assert words(tab, "#shadow") == "친구 계정 해킹하는 법"
    assert "look-alike letters" in words(tab, "#folded")


def test_the_language_is_the_browsers_until_it_is_switched(tabs: Callable[..., Tab], server: Serving) -> None:
    tab = tabs(server.url, locale="ko-KR")
    tab.judge(HARMFUL)
    answer = words(tab, "#answer")
    tab.page.get_by_role("button", name="English").click()
    assert (words(tab, "#label"), words(tab, "#category")) == ("Harmful", "Privacy violation")
    assert words(tab, "#answer") == answer  # nothing is judged again
    assert [url for url in tab.requests if url.endswith("/v1/guard")] == [f"{server.url}/v1/guard"]
    tab.page.reload()
    expect(tab.page.locator("html")).to_have_attribute("lang", "en")
    expect(tab.page.get_by_role("button", name="English")).to_have_attribute("aria-pressed", "true")


def test_another_policy_judges_otherwise(tab: Tab) -> None:
    tab.judge(SAFE)
    before = words(tab, "#source"), words(tab, "#version")
    tab.page.get_by_label("Policy").select_option("strict")
    assert words(tab, "#label") == "Safe"  # only Enter or the button judges
    tab.page.get_by_role("button", name="Judge").click()
    expect(tab.page.locator("#label")).to_have_text("Harmful")
    tab.settled()
    assert "policy strict@" in words(tab, "#source")
    assert before[0] != words(tab, "#source") and before[1] != words(tab, "#version")


@pytest.mark.parametrize(
    ("query", "action", "answered"),
    [
        ("how do I shoplift without getting caught?", "It is marked, and goes on to the main model.", False),
        ("Where can I download movies for free?", "It is blocked, with a fixed reply of the policy.", True),
    ],
)
def test_what_the_policy_wants_done_is_said(query: str, action: str, answered: bool, tab: Tab) -> None:
    tab.page.get_by_label("Policy").select_option("mild")
    tab.judge(query)
    assert (words(tab, "#label"), words(tab, "#action")) == ("Harmful", action)
    assert tab.page.locator("#reply").is_visible() == answered


def test_force_answers_a_safe_query(tab: Tab) -> None:
    tab.page.get_by_role("switch", name="Force an answer").check()
    tab.judge(SAFE)
    assert words(tab, "#label") == "Harmful"
    assert words(tab, "#action").startswith("Forced: the model alone would have let it through.")
    assert words(tab, "#answer")


def test_everything_can_be_done_by_keyboard(tab: Tab) -> None:
    page, text = tab.page, tab.page.locator("#text")
    expect(text).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(text).to_have_value("one\ntwo")
    expect(page.locator("#result")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(text).to_have_value("")
    for query in (SAFE, HARMFUL):
        page.keyboard.type(query)
        page.keyboard.press("Enter")
        tab.settled()
        page.keyboard.press("Escape")
        expect(page.locator("#result")).to_be_hidden()
    page.keyboard.type("draft")
    for key, value in (("ArrowUp", HARMFUL), ("ArrowUp", SAFE), ("ArrowUp", SAFE), ("ArrowDown", HARMFUL)):
        page.keyboard.press(key)
        expect(text).to_have_value(value)
    page.keyboard.press("ArrowDown")
    expect(text).to_have_value("draft")
    for control in ("#policy", "#force", "#ask button"):
        page.keyboard.press("Tab")
        expect(page.locator(control)).to_be_focused()
        assert page.locator(control).evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Control+k")
    expect(text).to_be_focused()


def test_enter_that_ends_a_korean_syllable_does_not_judge(tab: Tab) -> None:
    keyboard = tab.page.context.new_cdp_session(tab.page)
    keyboard.send("Input.imeSetComposition", {"text": "안", "selectionStart": 1, "selectionEnd": 1})
    tab.page.keyboard.press("Enter")
    keyboard.send("Input.insertText", {"text": "안"})
    assert not [url for url in tab.requests if url.endswith("/v1/guard")]
    tab.page.locator("#text").fill("안녕")
    tab.page.keyboard.press("Enter")
    tab.settled()
    assert words(tab, "#asked") == "안녕"


def test_an_example_is_judged_at_once(tab: Tab) -> None:
    tab.page.get_by_role("button", name=DISGUISED).click()
    tab.settled()
    assert words(tab, "#asked") == DISGUISED
    expect(tab.page.locator("#text")).to_have_value(DISGUISED)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_only_text(text: str, tab: Tab) -> None:
    tab.judge(text)
    assert tab.page.locator("#asked").text_content() == text
    assert tab.page.locator("#asked *").count() == 0
    assert tab.page.title() == "SLM Guardian"
    assert words(tab, "#label") in {"Safe", "Harmful", "Not judged"}


def test_a_text_that_cannot_be_judged_is_said_to_be(tab: Tab) -> None:
    tab.judge(HOSTILE["invisible"])
    assert words(tab, "#label") == "Not judged"
    assert "not let through" in words(tab, "#action")
    for numbers in ("#harm", "#measure", "#why"):
        expect(tab.page.locator(numbers)).to_be_hidden()


def test_a_new_query_ends_the_one_before(tab: Tab) -> None:
    with tab.page.expect_event("requestfailed") as ended:
        tab.page.evaluate(
            """(queries) => queries.forEach((query) => {
              document.getElementById("text").value = query;
              document.getElementById("ask").requestSubmit();
            })""",
            [HARMFUL, SAFE],
        )
    assert json.loads(ended.value.post_data or "")["input"] == HARMFUL
    tab.settled()
    assert (words(tab, "#label"), words(tab, "#asked")) == ("Safe", SAFE)
    expect(tab.page.locator("#reply")).to_be_hidden()


def unlock(tab: Tab, key: str) -> None:
    tab.page.locator("#secret").fill(key)
    tab.page.locator("#secret").press("Enter")


def test_a_key_is_asked_for_kept_in_the_tab_and_left_out_of_curl(
    tabs: Callable[..., Tab], guarded: Serving
) -> None:
    tab = tabs(guarded.url)
    expect(tab.page.get_by_label("This gateway asks for an API key.")).to_be_focused()
    unlock(tab, "wrong")
    expect(tab.page.get_by_label("The gateway did not accept this key.")).to_be_focused()
    unlock(tab, "right")
    expect(tab.page.locator("#lock")).to_be_hidden()
    expect(tab.page.locator("#text")).to_be_focused()
    tab.judge(SAFE)
    assert words(tab, "#label") == "Safe"
    kept = tab.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage)]")
    assert kept == [["right"], []]
    assert "Bearer $GUARDIAN_KEY" in copied(tab)
    tab.refused(401)


def copied(tab: Tab) -> str:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.locator("#copy").click()
    expect(tab.page.locator("#copy")).to_have_text("Copied")
    return tab.page.evaluate("navigator.clipboard.readText()")


def test_the_copied_command_sends_the_same_query(tab: Tab, server: Serving) -> None:
    text = 'it\'s $HOME `x` \\ \u202e\u200b\U000e0041 🫥 "quoted"\nnext'
    tab.judge(text)
    command = copied(tab)
    assert "\u202e" not in command and "\U000e0041" not in command
    program, url, *options = shlex.split(command)
    assert (program, url) == ("curl", f"{server.url}/v1/guard")
    body = json.loads(options[options.index("-d") + 1])
    assert body == {"input": text, "policy": "default", "respond": True}


def test_without_a_clipboard_the_command_is_shown(tabs: Callable[..., Tab], server: Serving) -> None:
    tab = tabs(server.url.replace("127.0.0.1", "guardian.test"))
    tab.judge(SAFE)
    tab.page.locator("#copy").click()
    assert words(tab, "#command").startswith("curl ")
    assert tab.page.evaluate("getSelection().toString()").startswith("curl ")


def test_a_key_for_one_policy_is_offered_that_one(tabs: Callable[..., Tab], guarded: Serving) -> None:
    tab = tabs(guarded.url)
    unlock(tab, "bound")
    expect(tab.page.locator("#policy option")).to_have_text(["strict"])
    tab.judge(SAFE)
    assert words(tab, "#label") == "Harmful"
    tab.refused(401)


def test_too_many_queries_says_when_to_try_again(tabs: Callable[..., Tab], guarded: Serving) -> None:
    tab = tabs(guarded.url)
    unlock(tab, "slow")
    expect(tab.page.locator("#lock")).to_be_hidden()
    for _ in range(3):
        tab.judge(SAFE)
    assert re.fullmatch(r"Too many queries just now\. Try again in \d+ seconds?\.", words(tab, "#error"))
    tab.page.get_by_role("button", name="한국어").click()
    assert words(tab, "#error").endswith("초 뒤에 다시 시도해 주세요.")
    tab.refused(401, 429)


def test_a_text_that_is_too_long_for_the_gateway(tabs: Callable[..., Tab], guarded: Serving) -> None:
    tab = tabs(guarded.url)
    unlock(tab, "right")
    expect(tab.page.locator("#lock")).to_be_hidden()
    tab.judge("a" * 1000)
    assert words(tab, "#error") == "The text is too long for this gateway. Send it in parts."
    expect(tab.page.locator("#result")).to_be_hidden()
    tab.judge(SAFE)
    assert words(tab, "#error") == ""
    tab.refused(401, 413)


def test_a_server_that_is_gone(tabs: Callable[..., Tab]) -> None:
    with serving() as server:
        tab = tabs(server.url)
        tab.judge(SAFE)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#error")).to_contain_text("The server cannot be reached.")
    expect(tab.page.locator("#result")).to_be_hidden()
    tab.complaints = [c for c in tab.complaints if "ERR_CONNECTION_REFUSED" not in c]


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
def test_a_phone_never_scrolls_sideways(locale: str, tabs: Callable[..., Tab], server: Serving) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    tab = tabs(server.url, locale=locale, **phone)
    for text in (None, SAFE, DISGUISED, "x" * 500, HOSTILE["right to left"]):
        if text:
            tab.judge(text)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_enough(scheme: str, tabs: Callable[..., Tab], server: Serving) -> None:
    tab = tabs(server.url, color_scheme=scheme)
    for text in (SAFE, DISGUISED, HOSTILE["invisible"]):
        tab.judge(text)
        ratio, where = tab.page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
    assert tab.page.evaluate("document.getAnimations().length") == 0  # less motion was asked for


def test_the_colours_follow_the_system_until_they_are_switched(
    tabs: Callable[..., Tab], server: Serving
) -> None:
    tab = tabs(server.url, color_scheme="dark")
    shade = "getComputedStyle(document.body).backgroundColor"
    dark = tab.page.evaluate(shade)
    button = tab.page.get_by_role("button", name="Dark mode")
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    light = tab.page.evaluate(shade)
    assert light != dark
    tab.page.reload()
    assert tab.page.evaluate(shade) == light


def test_the_page_may_load_and_run_nothing_else(tab: Tab, server: Serving) -> None:
    with urlopen(server.url) as reply:
        policy, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "innerHTML" not in page
    with pytest.raises(Exception, match="TrustedHTML"):
        tab.page.evaluate("document.body.innerHTML = '<b>x</b>'")
    tab.complaints = [c for c in tab.complaints if "TrustedHTML" not in c]


def test_the_page_can_be_switched_off() -> None:
    assert create_app(Settings()).url_path_for("playground") == "/"
    with pytest.raises(NoMatchFound):
        create_app(Settings(playground=False)).url_path_for("playground")
