// The page's state, what the keys do to it, and when it is drawn anew.

import { Refused, answer, enter, get, pending, settled } from "./api.js";
import * as view from "./view.js";

const POLL = 2500; // milliseconds between two looks whether the questions have changed
const state = {
  review: null, // what the server said last
  rows: [], // its rows, those with the same given label side by side
  at: 0,
  view: "one",
  seenAs: "verified",
  history: [], // [{row, before, label}, …] per step, for undo
  looking: false, // through rows that are all answered
  lost: [], // rows whose answers did not reach the program
  trouble: null,
};
const part = (name) => document.getElementById(name);

// Drawing ---------------------------------------------------------------------------------------------------------------

function draw() {
  const held = document.activeElement?.closest("[data-do]");
  redraw();
  if (held && !held.isConnected) (sameControl(held) ?? document.querySelector(".question"))?.focus();
}

/** What a key pressed next should mean is what it would have meant before: the same button, of the row that came. */
function sameControl(held) {
  const { do: action, label, at } = held.dataset;
  const same = [...document.querySelectorAll(`[data-do="${action}"]`)].filter((button) => button.checkVisibility());
  return same.find((button) => button.dataset.label === label && button.dataset.at === at) ?? null;
}

function redraw() {
  const notice = noticed();
  const shown = notice ? "notice" : state.view;
  for (const name of ["one", "grid", "notice"]) part(name).hidden = name !== shown;
  part("bar").hidden = shown !== "grid";
  document.querySelector("nav").hidden = !state.rows.length;
  if (state.review?.progress) view.head(state);
  if (notice) part("notice").replaceChildren(...notice.filter(Boolean));
  else if (shown === "one") part("one").replaceChildren(...view.one(state).filter(Boolean));
  else drawGrid();
  part("spoken").textContent = shown === "one" ? view.spoken(current()) : "";
  remember();
}

/** The pictures are laid out anew only when the rows, what they are seen as or the width have changed. */
function drawGrid() {
  const layout = JSON.stringify([state.review.version, state.seenAs, window.innerWidth]);
  if (part("grid").dataset.layout !== layout) part("grid").replaceChildren(...view.grid(state));
  part("grid").dataset.layout = layout;
  view.touchGrid(state);
  part("bar").replaceChildren(...view.bar(state));
  part(`card-${state.at}`)?.scrollIntoView({ block: "nearest" });
}

/** What stands in the rows' place, or null. */
function noticed() {
  const { review, trouble } = state;
  if (trouble) return view.refused(trouble.title, trouble.text ?? onFile());
  if (!review) return view.refused("Loading …", "");
  if (review.state === "working") return view.working(review.for_run);
  if (state.looking && state.rows.length) return null;
  if (review.state === "done") return view.done(state);
  return state.rows.every((row) => row.mine !== null) ? view.mineDone(state) : null;
}

function say(text) {
  const toast = part("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (toast.hidden = true), 3500);
}

// What the server says -----------------------------------------------------------------------------------------------------

async function load() {
  let review;
  do {
    await settled(); // answers that are on their way belong to the rows that are about to be replaced
    review = await get("/api/review");
  } while (pending());
  const isNew = review.version !== state.review?.version;
  const stay = isNew ? sessionStorage.getItem("row") : String(current()?.id);
  state.review = review;
  if (review.state === "working") return;
  const place = new Map(review.classes.map((name, position) => [name, position]));
  const doubt = (row) => row.trust ?? 2; // the most doubtful of each class first
  state.rows = review.rows.map((row) => ({ ...row, unclear: review.unclear }));
  state.rows.sort((a, b) => (place.get(a.given) ?? 0) - (place.get(b.given) ?? 0) || doubt(a) - doubt(b));
  const last = state.rows.findIndex((row) => String(row.id) === stay);
  state.at = Math.max(0, last);
  if (!isNew) return;
  state.history = review.steps.map(([row, before, label]) => [{ row, before, label }]);
  state.looking = false;
  if (last < 0 || state.rows[last].mine !== null) state.at = nextOpen(state.at - 1) ?? state.at;
}

function remember() {
  if (state.rows[state.at]) sessionStorage.setItem("row", state.rows[state.at].id);
  sessionStorage.setItem("view", state.view);
}

async function poll() {
  try {
    const now = await get("/api/state");
    const was = state.review;
    const known = was && ["state", "version", "answers"].every((name) => now[name] === was[name]);
    if (state.trouble) Object.assign(state, { trouble: null, lost: [] });
    else if (known) return;
    await load(); // somebody has answered, here or on another page
    draw();
  } catch (error) {
    lost(error);
  }
}

function lost(error) {
  const isDone = state.review?.state === "done" || state.review?.state === "working";
  if (error instanceof Refused && error.status === 401) {
    state.trouble = { title: "This page needs its address", text: "Open the address that decant review printed last, or the link of the flow run. Each address works in one browser only." };
  } else if (error instanceof Refused) {
    state.trouble = { title: "The file of answers has a mistake", text: error.message };
  } else if (isDone) {
    return; // it has ended, as it should; what is shown stays true
  } else {
    state.trouble = { title: "The program behind this page has ended" };
  }
  draw();
}

/** Which of the answers the program has written down; those that are on their way may still be lost. */
function onFile() {
  const count = state.lost.length + pending();
  const which = state.lost.length ? ` (row${state.lost.length === 1 ? "" : "s"} ${state.lost.join(", ")})` : "";
  const said = count ? `Your last ${count === 1 ? "answer is" : `${count} answers are`} not saved${which}, all others are.` : "Every answer that you gave is saved.";
  return `${said} Start decant review again, and open the address that it prints.`;
}

// Answering -------------------------------------------------------------------------------------------------------------

function current() {
  return state.rows[state.at];
}

/** Gives one row or several a label, shows it at once, and takes it back if the server doesn't take it. */
function give(rows, label, { undoing = false } = {}) {
  const step = rows.filter((row) => row.mine !== label).map((row) => ({ row: row.id, before: row.mine, label }));
  if (!undoing && step.length) state.history.push(step);
  for (const row of rows) {
    const before = row.mine;
    if (before === label) continue;
    row.mine = label;
    answer(row.id, label, before).then(
      (reply) => confirmed(row.id, label, reply),
      (error) => {
        row.mine = before;
        say(`Not saved: ${error.message}`);
        if (!(error instanceof Refused)) state.lost.push(row.id);
        if (!(error instanceof Refused) || error.status === 401) lost(error);
        else if (error.status === 409) reload();
        draw();
      },
    );
  }
}

function confirmed(id, label, reply) {
  if (reply.version !== state.review.version) return reload(); // other rows are asked about by now
  if (reply.state === "done" && state.review.state === "open") state.looking = false;
  Object.assign(state.review, { progress: reply.progress, state: reply.state }); // what others said since, `poll` sees
  const row = state.rows.find((shown) => shown.id === id);
  if (row.mine === label) Object.assign(row, reply.row ?? {});
  const quiet = state.view === "one" && current() !== row && reply.state === "open" && !row.disputed;
  if (quiet) view.head(state);
  else draw();
}

/** Loads and draws what is on file, where the page shows something else. */
function reload() {
  load().then(draw, lost);
}

function choose(label) {
  if (noticed()) return;
  const wasLast = current().mine === null && nextOpen(state.at) === state.at;
  give([current()], label);
  if (wasLast) state.looking = false; // what comes now is said in the rows' place
  else state.at = nextOpen(state.at) ?? Math.min(state.at + 1, state.rows.length - 1);
  draw();
}

function rest(given) {
  const open = state.rows.filter((row) => row.given === given && row.mine === null);
  give(open, given);
  state.at = nextOpen(state.at) ?? state.at;
  draw();
  if (open.length) tellWhenSaved(open, given);
}

/** Says how many of the answers were saved, once the server has taken or refused them all. */
async function tellWhenSaved(rows, label) {
  say(`Saving ${rows.length} answers …`);
  await settled();
  const taken = rows.filter((row) => row.mine === label).length;
  if (taken) say(`${taken} labels confirmed. Z takes them back.`);
}

function undo() {
  const last = state.history.pop();
  if (!last) return say("Nothing to undo");
  const stands = ({ row: id, label }) => state.rows.find((row) => row.id === id)?.mine === label;
  const step = last.filter(stands);
  if (!step.length) return undo(); // it was refused, or another page has changed it since
  for (const { row: id, before } of step) {
    state.at = state.rows.findIndex((row) => row.id === id);
    give([current()], before, { undoing: true });
  }
  if (state.review.state === "done") state.review.state = "open";
  draw();
}

/** The next row after `from` without this expert's answer, or with a dispute if they look for those. */
function nextOpen(from) {
  const count = state.rows.length;
  for (let step = 1; step <= count; step += 1) {
    const at = (from + step) % count;
    if (state.rows[at].mine === null || (state.looking && state.rows[at].disputed)) return at;
  }
  return null;
}

// What buttons and keys do ----------------------------------------------------------------------------------------------

const ACTIONS = {
  keep: () => choose(current().given),
  take: () => (current().suggested ? choose(current().suggested) : say("No suggestion for this row")),
  unclear: () => choose(state.review.unclear),
  class: (button) => choose(button.dataset.label),
  rest: (button) => rest(button.dataset.label),
  undo,
  one: () => show({ view: "one" }),
  grid: () => show({ view: "grid" }),
  verified: () => show({ seenAs: "verified" }),
  received: () => show({ seenAs: "received" }),
  go: (button) => show({ at: Number(button.dataset.at) }),
  select: (button) => (Number(button.dataset.at) === state.at ? show({ view: "one" }) : show({ at: Number(button.dataset.at) })),
  look: () => show({ looking: true }),
  disputed: () => show({ looking: true, view: "one", at: Math.max(0, state.rows.findIndex((row) => row.disputed)) }),
  help: () => part("help").showModal(),
  type: () => openPicker(),
};

function show(change) {
  if (!state.rows.length) return;
  Object.assign(state, change);
  if ("at" in change || "view" in change) state.looking ||= state.review?.state === "done";
  draw();
}

const step = (by) => () => show({ at: Math.max(0, Math.min(state.rows.length - 1, state.at + by)) });
const columns = () => (state.view === "grid" ? getComputedStyle(document.querySelector(".cards")).gridTemplateColumns.split(" ").length : 1);
const KEYS = {
  Enter: (event) => (event.shiftKey && state.view === "grid" ? rest(current().given) : ACTIONS.keep()),
  s: ACTIONS.take,
  u: ACTIONS.unclear,
  z: undo,
  Backspace: undo,
  ArrowLeft: step(-1),
  ArrowRight: step(1),
  k: step(-1),
  j: step(1),
  ArrowUp: () => step(-columns())(),
  ArrowDown: () => step(columns())(),
  n: () => show({ at: nextOpen(state.at) ?? state.at }),
  g: () => show({ view: state.view === "grid" ? "one" : "grid" }),
  r: () => show({ seenAs: state.seenAs === "verified" ? "received" : "verified" }),
  "/": () => openPicker(),
  "?": ACTIONS.help,
};

document.addEventListener("keydown", (event) => {
  const elsewhere = document.querySelector("dialog[open]") || event.altKey || event.metaKey;
  if (elsewhere || (event.ctrlKey && event.key !== "z")) return;
  if (!state.rows.length || state.trouble || state.review.state === "working") return;
  const onButton = event.target.closest?.("button") && event.target.matches(":focus-visible");
  if (event.key === "Enter" && !event.shiftKey && onButton) {
    if (event.repeat) event.preventDefault();
    return; // a button chosen by Tab is pressed, once
  }
  const name = state.review.classes.find((_, position) => view.keyOf(position, state.review.classes) === event.key);
  const action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()] ?? (name === undefined ? null : () => choose(name));
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key held down is one answer
  if (noticed() && ["Enter", "s", "u"].includes(event.key)) return;
  action(event);
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  if (event.detail) button.blur(); // clicked, not chosen by Tab: Enter goes on meaning "the label is right"
  ACTIONS[button.dataset.do](button);
});

// A class by its name ---------------------------------------------------------------------------------------------------

function openPicker() {
  if (noticed()) return;
  part("picker-text").value = "";
  list();
  part("picker").showModal();
}

function list() {
  const wanted = part("picker-text").value.trim().toLowerCase();
  const rank = (name, position) => (name.toLowerCase() === wanted || String(position) === wanted ? 0 : name.toLowerCase().startsWith(wanted) ? 1 : 2);
  const found = state.review.classes
    .map((name, position) => ({ name, position, rank: rank(name, position) }))
    .filter(({ name, rank: how }) => how < 2 || name.toLowerCase().includes(wanted))
    .sort((a, b) => a.rank - b.rank || a.position - b.position)
    .slice(0, 6);
  const button = ({ name, position }) => view.h("li", {}, view.h("button", { type: "button", "data-pick": name }, name, view.h("small", {}, position)));
  part("picker-found").replaceChildren(...found.map(button));
}

part("picker-text").addEventListener("input", list);
part("picker").addEventListener("click", (event) => pick(event.target.closest("[data-pick]")));
part("picker-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation(); // the dialog closes now, and this Enter must not answer the next row
  if (event.target.value.trim()) pick(part("picker-found").querySelector("[data-pick]"));
});

function pick(button) {
  if (!button) return;
  part("picker").close();
  choose(button.dataset.pick);
}

// Start -----------------------------------------------------------------------------------------------------------------

window.addEventListener("beforeunload", (event) => pending() && event.preventDefault()); // the browser asks
window.addEventListener("hashchange", () => location.reload()); // another address of this program was pasted
window.addEventListener("resize", () => state.rows.length && !noticed() && draw());
state.view = sessionStorage.getItem("view") ?? "one";
try {
  await enter();
  await load();
  draw();
} catch (error) {
  lost(error);
}
setInterval(poll, POLL);
