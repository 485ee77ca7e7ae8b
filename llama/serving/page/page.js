// The page of `llama serve`: a chat with any model of the server, and questions to its documents.

import { askDocuments } from "./documents.js";
import { byId, element } from "./elements.js";
import { events, request, ServerError, useKey } from "./server.js";

const log = byId("log");
const scroller = byId("scroller");
const question = byId("question");
let dialog = []; // of roles and contents
let running = null; // what aborts the answer that is being written

const isDocuments = () => byId("model").value.startsWith("rag:");
const temperature = () => byId("temperature").value === "" ? undefined : +byId("temperature").value;

async function loadModels() {
  const models = byId("model");
  try {
    const { data } = await (await request("v1/models")).json();
    models.replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
    models.hidden = !data.length;
    begin();
    if (!data.length) say("error", "This server has no models. Get one with llama pull.");
  } catch (error) {
    begin();
    fail(error);
    if (error.status === 503) setTimeout(loadModels, 2000); // it loads its model
  }
}

function begin() {
  running?.abort();
  dialog = [];
  log.replaceChildren();
  describe();
}

/** Says what the chosen model does, and shows its settings. */
function describe() {
  const kind = isDocuments() ? "documents" : "chat";
  for (const each of document.querySelectorAll("[data-for]")) each.hidden = each.dataset.for !== kind;
  byId("temperature").placeholder = isDocuments() ? "0" : "0.6";
  question.placeholder = isDocuments() ? "Ask the documents" : "Message";
  if (dialog.length || !byId("model").value) return;
  const hint = isDocuments()
    ? "Answers come from the documents, each sentence with its source. Every question stands alone."
    : "Enter sends a message, Shift and Enter begin a new line.";
  log.replaceChildren(element("p", { className: "hint" }, hint));
}

function say(role, text = "") {
  log.querySelector(".hint")?.remove();
  const message = element("article", { className: `message ${role}`, ariaLabel: role }, text);
  log.append(message);
  scroller.scrollTop = scroller.scrollHeight;
  return message;
}

function fail(error) {
  if (error.status === 401) {
    byId("key").hidden = false;
    byId("key-reason").textContent = error.message;
    byId("key-text").focus();
  } else {
    say("error", error.message);
  }
}

async function ask(text) {
  const [before, fromDocuments] = [dialog.length, isDocuments()];
  const asked = say("user", text);
  const answer = say("assistant");
  const mine = (running = new AbortController());
  answer.ariaBusy = "true";
  setRunning(true);
  dialog.push({ role: "user", content: text });
  try {
    const reply = fromDocuments
      ? await askDocuments(answer, documentsBody(text), mine.signal)
      : await chat(answer, mine.signal);
    dialog.push({ role: "assistant", content: reply });
    if (fromDocuments) answer.scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (mine !== running) return; // a new chat has begun
    if (answer.textContent && !fromDocuments) { // what there is of the answer stays
      dialog.push({ role: "assistant", content: answer.textContent });
    } else {
      dialog.length = before;
      asked.remove();
      answer.remove();
      question.value ||= text;
      grow();
    }
    if (error.name !== "AbortError") fail(error);
    else if (answer.isConnected) answer.after(element("p", { className: "note" }, "Stopped."));
  } finally {
    answer.ariaBusy = "false";
    if (mine === running) setRunning(false);
  }
}

function documentsBody(text) {
  return {
    index: byId("model").value.slice("rag:".length),
    question: text,
    k: +byId("k").value || undefined,
    rerank: byId("rerank").value || null,
    temperature: temperature(),
  };
}

async function chat(answer, signal) {
  const system = byId("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...dialog] : dialog;
  const body = { model: byId("model").value, messages, temperature: temperature(), stream: true };
  const response = await request("v1/chat/completions", body, signal);
  for await (const { choices } of events(response)) {
    for (const { delta, finish_reason } of choices) {
      const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
      answer.append(delta.content ?? "");
      if (finish_reason === "length") say("note", "The answer reached its limit of tokens.");
      if (atEnd) scroller.scrollTop = scroller.scrollHeight;
    }
  }
  return answer.textContent;
}

function setRunning(isRunning) {
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  if (!isRunning) running = null;
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || running || !byId("model").value) return;
  question.value = "";
  grow();
  question.focus();
  ask(text);
};
question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("composer").requestSubmit();
};
question.oninput = grow;
byId("stop").onclick = () => running?.abort();
byId("new").onclick = () => {
  begin();
  setRunning(false);
  question.focus();
};
byId("model").onchange = describe;
byId("open-settings").onclick = ({ currentTarget }) => {
  const settings = byId("settings");
  settings.hidden = !settings.hidden;
  currentTarget.ariaExpanded = `${!settings.hidden}`;
};
byId("key").onsubmit = (event) => {
  event.preventDefault();
  useKey(byId("key-text").value);
  byId("key").hidden = true;
  byId("key-text").value = "";
  if (byId("model").value) question.focus();
  else loadModels();
};
loadModels();
