// Requests to the server that the page is from.

const KEY = "llama-api-key"; // in sessionStorage: it ends with the tab

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** The response of a route: to a POST if there is a body. Throws a ServerError in its words. */
export async function request(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: key ? { Authorization: `Bearer ${key}` } : {},
    body: body && JSON.stringify(body),
    signal,
  });
  if (response.ok) return response;
  const text = await response.text();
  let reason = text || response.statusText;
  try {
    reason = JSON.parse(text).error.message;
  } catch {} // a proxy's words
  throw new ServerError(reason, response.status);
}

/** The objects of a stream of server-sent events up to [DONE]; comments keep it open. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError("The connection closed before the end of the answer.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.startsWith("data: ") ? block.slice(6) : "";
      if (data === "[DONE]") return;
      const event = data && JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      if (event) yield event;
    }
  }
}
