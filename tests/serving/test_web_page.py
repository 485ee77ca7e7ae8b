"""The web page: what is served, and what a reader sees of it in Chromium."""

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.conftest import TINY, running

import llama.serving
from llama.retrieval import Index
from llama.retrieval.grounding import Answer, AnswerSentence, Hit, Support
from llama.serving.answers import ChatDelta, ChatMessage, ChatRequest, Usage
from llama.serving.app import create_app
from llama.serving.lifecycle import Lifecycle
from llama.serving.registry import ModelRegistry
from llama.tool_calls import TextDelta

PAGE = Path(llama.serving.__file__).parent / "page"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FACTS = {
    "museum": "The museum opens at 10:15. The ticket costs 14 dollars.",
    "people": "Mia lives in Oslo. Tom lives in Fairhaven.",
    "/home/ann/a/very/long/path/to/the/notes/of/the/swimming/pool.md": "The pool opens at 8:00.",
}


def test_browsers_get_the_page_and_ollamas_clients_their_words(url: str) -> None:
    page = httpx.get(url, headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == (PAGE / "index.html").read_text()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
    assert "unsafe" not in policy
    other = httpx.get(url)
    assert (other.text, other.headers["vary"]) == ("Ollama is running", page.headers["vary"])
    assert "Accept" in page.headers["vary"]


def test_all_it_needs_comes_from_this_server(url: str) -> None:
    types = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
    names = sorted(file.name for file in PAGE.iterdir())
    assert len(names) >= 3
    for name in names:
        text = (PAGE / name).read_text()
        assert re.findall(r"https?:|[\"'(]//|innerHTML|outerHTML|insertAdjacent", text) == []
        for used in re.findall(r'(?:src|href|from) ?=?"(?:\./|page/)?([\w.-]+)"', text):
            assert used in names
        if name != "index.html":
            got = httpx.get(f"{url}/page/{name}")
            assert (got.text, got.headers["content-type"]) == (text, types[Path(name).suffix])
    for missing in ("index.html", "..%2f__init__.py", "x.js"):
        assert httpx.get(f"{url}/page/{missing}").status_code == 404


def test_it_is_there_without_a_key_and_before_the_model_is(models: ModelRegistry) -> None:
    app = create_app(models, Lifecycle("loading"), api_keys=["secret"])
    with running(app) as url:
        assert httpx.get(url, headers=HTML).status_code == 200
        assert httpx.get(f"{url}/page/page.js").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        key = {"x-api-key": "secret"}
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 503


# In a browser.


class Endless:
    """Says a word, and the others never."""

    tokenizer = None
    usage = Usage(1, 1, 0)
    times: Mapping[str, float] = {}
    ended = 0

    def __init__(self, request: ChatRequest) -> None:
        pass

    async def deltas(self) -> AsyncGenerator[ChatDelta, None]:
        try:
            yield ChatDelta(0, [TextDelta("<b>Well</b>")], [], None)
            await asyncio.Event().wait()
        finally:
            Endless.ended += 1

    async def messages(self) -> list[ChatMessage]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def site(models: ModelRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models.chats["endless"] = Endless
    with Index.open(tmp_path_factory.mktemp("rag") / "notes.db", TINY) as index:
        index.add(FACTS)
        with running(create_app(models, indexes={"notes": index})) as url:
            yield url
    models.chats.clear()


class Page:
    """The page in a browser, as a reader uses it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.browser.find_elements("css selector", selector)]

    def wait(self, is_so: Callable[[], object]) -> Any:
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.browser, 120, 0.05, [WebDriverException])
        return waiting.until(lambda _: is_so())

    def choose(self, model: str) -> None:
        self.wait(lambda: self.find(f'#model option[value="{model}"]')).click()

    def send(self, text: str) -> None:
        """Types a message and Enter."""
        self.find("#question").send_keys(text, "\ue007")

    def ask(self, text: str) -> None:
        """Sends a message and waits for the end of the answer."""
        self.send(text)
        self.wait(lambda: self.find("#send").is_displayed())

    def is_narrow_enough(self) -> bool:
        script = """return [document.documentElement, document.querySelector("#scroller")].every(
            (each) => each.scrollWidth <= each.clientWidth)"""
        return self.browser.execute_script(script)

    @property
    def problems(self) -> list[str]:
        """What the browser's console says, but for the statuses of responses."""
        lines = [line["message"] for line in self.browser.get_log("browser")]
        return [line for line in lines if "Failed to load resource" not in line]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Page]:
    page = Page(browser, site)
    yield page
    assert page.problems == []


@pytest.mark.slow
def test_a_chat_goes_on_and_begins_anew(page: Page) -> None:
    page.choose("tiny")
    page.find("#open-settings").click()
    page.find("#temperature").send_keys("0")
    page.find("#system").send_keys("Here are some facts:\nTom lives in Oslo.")
    page.find("#question").send_keys("Hello!", "\ue008\ue007\ue008", "How are you?")
    assert page.find("#question").get_property("value") == "Hello!\nHow are you?"
    page.ask("")
    page.ask("Where does Tom live?")
    assert page.texts(".user") == ["Hello!\nHow are you?", "Where does Tom live?"]
    first, second = page.texts(".assistant")
    assert first
    assert "Oslo" in second
    assert page.browser.switch_to.active_element == page.find("#question")
    page.find("#new").click()
    assert page.texts(".message") == []


@pytest.mark.slow
def test_an_answer_is_shown_while_it_is_written_and_can_be_stopped(page: Page) -> None:
    page.choose("endless")
    page.send("Go on")
    page.wait(lambda: page.texts(".assistant") == ["<b>Well</b>"])
    assert page.find(".assistant").get_attribute("aria-busy") == "true"
    ended = Endless.ended
    page.find("#stop").click()
    page.wait(lambda: page.find("#send").is_displayed())
    assert page.texts(".note") == ["Stopped."]
    page.wait(lambda: Endless.ended == ended + 1)


@pytest.mark.slow
def test_what_the_server_refuses_is_said_in_its_words(page: Page) -> None:
    page.choose("tiny")
    page.browser.execute_script("arguments[0].value = 'So. '.repeat(2000)", page.find("#question"))
    page.ask("")
    (error,) = page.texts(".error")
    assert re.search(r"the prompt has \d+ tokens.* 1024", error)
    assert page.texts(".user") == []
    assert page.find("#question").get_property("value").startswith("So. So.")


@pytest.mark.slow
def test_a_sentence_leads_to_its_source(page: Page) -> None:
    page.choose("rag:notes")
    page.ask("When does the museum open?")
    answer = page.find(".assistant > p").text
    assert answer.split() == "The museum opens at 10:15. 1".split()
    assert page.texts(".sources summary") == ["1museum"]
    assert not page.find(".sources blockquote").is_displayed()
    page.find(".cite").click()
    assert page.find(".sources blockquote").text == FACTS["museum"]
    assert "Characters 0 to 55." in page.find(".sources .note").text
    page.find(".explain summary").click()
    page.wait(lambda: page.find(".explain pre").is_displayed())
    assert '"museum"' in page.find(".explain pre").text
    assert page.texts(".explain tr.read td:nth-child(3)")[0] == "museum"
    assert "<|begin_of_text|>" in page.texts(".explain pre")[1]
    page.ask("Where does Nora live?")
    assert page.texts(".not-found") == ["Not in the documents."]


@pytest.mark.slow
def test_what_nothing_supports_is_marked(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = Hit("The pool opens at 8:00.", "town.pdf", 3, "Sport > Pool", 10, 33, 1.0)
    sentences = (
        AnswerSentence("The pool opens at 8:00. ", (Support(hit, 9.5, 12.25),)),
        AnswerSentence("It is blue.", ()),
    )
    answer = Answer("?", "The pool opens at 8:00. It is blue.", True, sentences, (hit,))
    monkeypatch.setattr(Index, "answer", lambda *_, **__: answer)
    page.choose("rag:notes")
    page.ask("When?")
    assert page.texts("mark") == ["It is blue."]
    assert page.texts(".no-source") == ["no source"]
    assert page.texts(".sources summary") == ["1town.pdf, page 3, Sport > Pool"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    size = {"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.choose("endless")
    page.send("word" * 100)
    page.wait(lambda: page.texts(".assistant"))
    page.find("#stop").click()
    page.choose("rag:notes")
    page.find("#open-settings").click()
    page.ask("When does the pool open?")
    page.find(".cite").click()
    page.find(".explain summary").click()
    page.wait(lambda: page.find(".explain table").is_displayed())
    assert page.is_narrow_enough()
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_server_with_keys_is_asked_with_one(browser: Any, models: ModelRegistry) -> None:
    with running(create_app(models, api_keys=["secret"])) as url:
        page = Page(browser, url)
        page.wait(lambda: page.find("#key").is_displayed())
        assert "an API key is needed" in page.find("#key-reason").text
        for key in ("wrong", "secret"):
            page.find("#key-text").send_keys(key, "\ue007")
            reason = "wrong API key" if key == "wrong" else ""
            page.wait(lambda reason=reason: reason in page.find("#key-reason").text)
            page.wait(lambda key=key: page.find("#key").is_displayed() == (key == "wrong"))
        page.choose("tiny")
        page.ask("What is 12 + 30?")
        assert "42" in page.find(".assistant").text
        page.browser.refresh()
        page.choose("tiny")  # the key lasts as long as the tab
        page.browser.execute_script("sessionStorage.clear()")
