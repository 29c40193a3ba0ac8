// The way to the server. Answers go one after the other, so that the file keeps the order in which they were given.

/** The address's one-time token becomes a cookie; then it is gone from the address. */
export async function enter() {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  await fetch("/api/session", post({ token }));
}

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function get(path) {
  return read(await fetch(path, { cache: "no-store" }));
}

let last = Promise.resolve();
let onTheWay = 0;

/** Sends one answer, and what it replaces, which must still stand; a lost reply is asked for again under the same id, which the server takes only once. */
export function answer(row, label, before) {
  onTheWay += 1;
  const sent = last.then(() => insist({ row, label, before, answer_id: newId() })).finally(() => (onTheWay -= 1));
  last = sent.catch(() => {});
  return sent;
}

/** When every answer so far has reached the server, or been refused. */
export const settled = () => last;

/** How many answers have not reached the server yet: they are lost with the page. */
export const pending = () => onTheWay;

async function insist(body) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await read(await fetch("/api/answers", post(body)));
    } catch (error) {
      if (error instanceof Refused || attempt === 3) throw error;
      await new Promise((again) => setTimeout(again, 400 * 2 ** attempt));
    }
  }
}

async function read(response) {
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, typeof found.detail === "string" ? found.detail : "refused");
  return found;
}

function post(body) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
