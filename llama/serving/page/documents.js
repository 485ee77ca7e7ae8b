// Answers from documents: each sentence with its sources, and how they were found.

import { element } from "./elements.js";
import { request } from "./server.js";

const same = (a, b) => a.source === b.source && a.start === b.start && a.end === b.end;

const place = (hit) =>
  [hit.source, hit.page && `page ${hit.page}`, hit.heading].filter(Boolean).join(", ");

const number = (value) => value.toPrecision(3);

/** Fills `answer` with that to a question; returns its text. */
export async function askDocuments(answer, question, signal) {
  const { temperature, ...search } = question;
  const body = temperature === undefined ? search : question;
  const found = await (await request("v1/rag/ask", body, signal)).json();
  if (!found.is_found) {
    answer.append(element("p", { className: "not-found" }, found.text));
  } else {
    const sources = found.sources.map((hit, i) => source(hit, i + 1, found.sentences));
    answer.append(
      element("p", {}, ...found.sentences.flatMap((each) => sentence(each, found.sources, sources))),
      element("ol", { className: "sources", ariaLabel: "Sources" }, ...sources),
    );
  }
  if (found.finish_reason === "length") {
    answer.append(element("p", { className: "note" }, "The answer reached its limit of tokens."));
  }
  answer.append(explanation(search));
  return found.text;
}

function sentence({ text, supports }, hits, sources) {
  if (!supports.length) {
    return [
      element("mark", { title: "No passage supports this" }, text.trimEnd()),
      element("span", { className: "no-source" }, "no source"),
      " ",
    ];
  }
  const numbers = supports.map(({ hit }) => hits.findIndex((each) => same(each, hit)));
  const cites = numbers.sort((a, b) => a - b).map((i) => {
    const label = `Source ${i + 1}: ${place(hits[i])}`;
    const cite = element("button", { type: "button", className: "cite", title: label }, `${i + 1}`);
    cite.ariaLabel = label;
    cite.onclick = () => {
      const details = sources[i].firstElementChild;
      details.open = true;
      details.firstElementChild.focus();
      details.scrollIntoView({ block: "nearest" });
    };
    return cite;
  });
  return [text.trimEnd(), "\u00a0", ...cites, " "];
}

function source(hit, i, sentences) {
  const drops = sentences.flatMap(({ supports }) => supports.filter((each) => same(each.hit, hit)));
  const most = Math.max(...drops.map(({ drop, alone }) => Math.max(drop, alone)));
  const facts = `Characters ${hit.start} to ${hit.end}. A sentence of the answer is likelier with it,
    by ${number(most)} nats.`.replace(/\s+/g, " ");
  const breakable = place(hit).replaceAll("/", "/\u200b");
  return element("li", {}, element("details", {},
    element("summary", {}, element("span", { className: "number" }, `${i}`), breakable),
    element("blockquote", {}, hit.text.trim()),
    element("p", { className: "note" }, facts)));
}

function explanation(search) {
  const details = element("details", { className: "explain" },
    element("summary", {}, "Search and prompt"));
  details.ontoggle = async () => {
    details.ontoggle = null;
    const content = element("div", { ariaBusy: "true" }, "…");
    details.append(content);
    try {
      const found = await (await request("v1/rag/explain", search)).json();
      content.replaceChildren(...explained(found));
    } catch (error) {
      content.replaceChildren(element("p", { className: "error" }, error.message));
    }
    content.ariaBusy = "false";
  };
  return details;
}

function explained({ query, stages, prompt, prompt_tokens, hits, left_out }) {
  const read = (hit) => hits.some((each) => same(each, hit));
  const row = (hit, i) => element("tr", { className: read(hit) ? "read" : "" },
    ...[i + 1, number(hit.score), place(hit), read(hit) ? "yes" : ""].map((cell) =>
      element("td", {}, `${cell}`)));
  const table = (stage) => element("table", {},
    element("caption", {}, `${stage.name}: ${stage.hits.length} candidates`),
    element("tr", {}, ...["", "Score", "Passage", "In prompt"].map((name) =>
      element("th", { scope: "col" }, name))),
    ...stage.hits.slice(0, 20).map(row));
  const without = left_out.length ? `, ${left_out.length} did not fit` : "";
  return [
    element("h3", {}, "Words that are looked for"), element("pre", {}, query || "None"),
    element("h3", {}, "Candidates, the best first"), ...stages.map(table),
    ...(prompt ? [
      element("h3", {}, `Prompt of ${prompt_tokens} tokens with ${hits.length} passages${without}`),
      element("pre", {}, prompt),
    ] : []),
  ];
}
