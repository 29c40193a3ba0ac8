// What the page shows of its state. Texts are set as text, never as HTML: a class may be called anything.

const CHIPS = 24; // classes shown as buttons; with more of them one is typed
const STRIP = 5; // neighbours shown on either side of a row

/** h("p.note", {title: "…"}, "text", node, …) */
export function h(what, attributes = {}, ...children) {
  const [tag, ...names] = what.split(".");
  const node = document.createElement(tag);
  if (names.length) node.className = names.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The key that answers a class: its own digit where classes are digits, else its place. */
export function keyOf(position, classes) {
  if (classes.length > 10) return null;
  return classes.every((name) => /^\d$/.test(name)) ? classes[position] : String((position + 1) % 10);
}

/** `12 %`; never 0 or 100 for what is merely near it. */
function percent(share) {
  if (share > 0 && share < 0.005) return "under 1 %";
  if (share < 1 && share >= 0.995) return "over 99 %";
  return `${Math.round(100 * share)} %`;
}

/** The class that the label check finds likelier than the row's label, or null. */
const takenFor = (row) => (row.trust !== null && row.trust < 0.5 && row.suggested !== row.given ? row.suggested : null);

const width = (share) => `${(100 * share).toFixed(1)}%`;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** A picture drawn as large as `side` pixels allow: small ones in whole multiples, so that every pixel is a square. */
export function picture(row, state, side, alt, lazy = false) {
  const image = h("img", { alt, loading: lazy ? "lazy" : null, draggable: "false" });
  image.addEventListener("load", () => {
    const longer = Math.max(image.naturalWidth, image.naturalHeight);
    const times = Math.floor(side() / longer);
    image.classList.add(times >= 2 ? "pixels" : "photo");
    image.style.width = times >= 2 ? `${times * image.naturalWidth}px` : "";
  });
  image.src = `/api/rows/${row}/${state.seenAs}.png?${state.review.version}`; // a browser may keep it that long
  return image;
}

export function mark(row) {
  if (row.disputed) return h("span.mark.dispute", {}, "disputed");
  if (row.mine === null) return null;
  return h(`span.mark.${kindOf(row)}`, {}, row.mine === row.given ? `✓ ${row.mine}` : row.mine);
}

function kindOf(row) {
  if (row.mine === row.given) return "kept";
  return row.mine === row.unclear ? "unclear" : "changed";
}

// The head --------------------------------------------------------------------------------------------------------------

export function head(state) {
  const { progress, expert, budget } = state.review;
  document.getElementById("expert").textContent = expert ? `, ${expert}` : "";
  const share = progress.round_asked ? progress.round_answered / progress.round_asked : 0;
  const track = document.getElementById("track");
  track.setAttribute("aria-valuemax", progress.round_asked);
  track.setAttribute("aria-valuenow", progress.round_answered);
  document.getElementById("fill").style.width = width(share);
  const parts = [`${progress.round_answered} of ${progress.round_asked}`];
  const rest = [progress.round ? `in round ${progress.round}` : "first rows"];
  if (progress.asked !== progress.round_asked) rest.push(`${progress.answered} of ${progress.asked} in all`);
  if (budget !== null) rest.push(`at most ${budget} will be asked`);
  if (progress.disputed) rest.push(`${progress.disputed} disputed`);
  if (expert) rest.push(`${progress.mine} by you`);
  document.getElementById("count").replaceChildren(h("b", {}, parts[0]), ` ${rest.join(" · ")}`);
  for (const name of ["one", "grid"]) press(name, state.view === name);
  document.getElementById("seen-as").hidden = !state.review.purified; // else both are the same
  for (const name of ["verified", "received"]) press(name, state.seenAs === name);
}

function press(name, on) {
  document.querySelector(`[data-do="${name}"]`).setAttribute("aria-pressed", String(on));
}

// One row ---------------------------------------------------------------------------------------------------------------

export function one(state) {
  const row = state.rows[state.at];
  const stage = h("div.stage", {}, mark(row));
  stage.append(picture(row.id, state, () => Math.min(stage.clientWidth, stage.clientHeight), `row ${row.id}`));
  const place = `${state.at + 1} of ${state.rows.length}`;
  const figure = h("figure", {}, stage, h("figcaption", {}, h("span", {}, `row ${row.id}`), " ", h("span", {}, place)));
  const side = h("div", {}, question(row), trust(row), banners(row), answers(row), classes(row, state), likes(row, state));
  return [h("div.row", {}, figure, side), strip(state)];
}

function question(row) {
  return [
    h("p.claim", {}, row.why ? row.why[0].toUpperCase() + row.why.slice(1) : "\u00a0"),
    h("h2.question", { tabindex: "-1" }, "Is this really ", h("b.blue", {}, row.given), "?"),
  ];
}

/** What a screen reader says of a row that has come up. */
export function spoken(row) {
  return `row ${row.id}: is this really ${row.given}?${row.mine === null ? "" : ` You said ${row.mine}.`}`;
}

function trust(row) {
  if (row.trust === null) return h("p.hint", {}, "Decant has no suggestion yet. It learns the classes from the rows that you answer now.");
  const fill = h("i");
  fill.style.width = width(row.trust);
  const second = row.suggested && row.suggested !== row.given ? ["; the second likeliest is ", h("b", {}, row.suggested)] : [];
  const words = takenFor(row) ? ["Decant would label it ", h("b.orange", {}, takenFor(row)), "."] : ["Decant trusts this label", ...second, "."];
  return [
    h("p.hint", {}, ...words),
    h("div.meter", {}, h(row.trust < 0.5 ? "div.track.low" : "div.track", {}, fill), `${percent(row.trust)} trust that the label is right`),
  ];
}

function banners(row) {
  const others = Object.entries(row.others);
  if (!others.length) return null;
  const said = others.map(([expert, label]) => `${expert} says ${label}`).join(", ");
  if (row.disputed) {
    return h("p.banner", {}, `Disputed: ${said}${row.mine ? `, you say ${row.mine}` : ""}. The row counts as answered when more than half of you agree.`);
  }
  return h("p.banner.calm", {}, `${said[0].toUpperCase()}${said.slice(1)}.`);
}

export function answers(row) {
  const chosen = (label) => ({ "aria-pressed": String(row.mine === label) });
  const other = row.suggested && row.suggested !== row.given ? row.suggested : null;
  const button = (kind, action, label, text, key) =>
    h(`button${kind}${row.mine === label ? ".chosen" : ""}`, { type: "button", "data-do": action, ...chosen(label) }, text, h("kbd", {}, key));
  return h(
    "div.answers", {},
    button(".main", "keep", row.given, `Yes, ${row.given}`, "Enter"),
    other && button(takenFor(row) ? ".change" : "", "take", other, `No, ${other}`, "S"),
    button("", "unclear", row.unclear, "Unclear", "U"),
  );
}

export function classes(row, state) {
  const { classes: names } = state.review;
  const chip = (name, position) => {
    const key = keyOf(position, names);
    const kind = `button${name === row.given ? ".same" : ""}${name === row.mine ? ".chosen" : ""}`;
    const pressed = { "aria-pressed": String(name === row.mine), "data-do": "class", "data-label": name, type: "button" };
    return h(kind, pressed, name, key !== null && key !== name && h("kbd", {}, key));
  };
  const typed = h("button", { type: "button", "data-do": "type" }, "type a class", h("kbd", {}, "/"));
  const digits = names.every((name, position) => keyOf(position, names) === name);
  return h(
    "div.classes", {},
    h("span", {}, digits ? "or press its digit" : "or another class"),
    names.length <= CHIPS && names.map(chip),
    names.length > 10 && typed,
  );
}

function likes(row, state) {
  const group = (ids, ...title) =>
    ids.length > 0 &&
    h("div", {}, h("h3", {}, ...title), h("ol", {}, ids.map((id) => h("li", {}, picture(id, state, () => 68, `row ${id}`)))));
  const given = group(row.like_given, "most similar confirmed ", h("b", {}, row.given));
  const other = row.suggested !== row.given && group(row.like_suggested, "most similar confirmed ", h("b", {}, row.suggested));
  return given || other ? h("div.likes", {}, given, other) : null;
}

function strip(state) {
  const first = Math.max(0, Math.min(state.at - STRIP, state.rows.length - 2 * STRIP - 1));
  const near = state.rows.slice(first, first + 2 * STRIP + 1);
  if (near.length < 2) return null;
  const thumb = (row, offset) =>
    h(
      row.mine === null ? "li" : "li.done", { "aria-current": first + offset === state.at ? "true" : null },
      h("button", { type: "button", "data-do": "go", "data-at": first + offset, "aria-label": `row ${row.id}` }, picture(row.id, state, () => 56, "")),
      row.mine !== null && h(`i.dot.${kindOf(row)}`),
    );
  return h("ol.strip", { "aria-label": "neighbours" }, near.map(thumb));
}

// The grid --------------------------------------------------------------------------------------------------------------

export function grid(state) {
  const groups = new Map();
  state.rows.forEach((row, at) => {
    if (!groups.has(row.given)) groups.set(row.given, []);
    groups.get(row.given).push({ row, at });
  });
  return [...groups].map(([given, members]) => group(given, members, state));
}

function group(given, members, state) {
  const title = h("h2", {}, "labelled ", h("b", {}, given), h("span"));
  const all = h("button", { type: "button", "data-do": "rest", "data-label": given });
  return h("div.group", {}, h("div", {}, title, all), h("ol.cards", {}, members.map(({ row, at }) => card(row, at, state))));
}

function card(row, at, state) {
  const stage = h("div.stage");
  stage.append(picture(row.id, state, () => stage.clientWidth, "", true));
  const doubt = takenFor(row);
  const under = h("div.under", {}, h("span", {}, row.id), doubt && h("b.orange", {}, `${doubt}?`));
  return h("li.card", { id: `card-${at}` }, h("button", { type: "button", "data-do": "select", "data-at": at }, stage, under));
}

/** What changes about the grid with an answer or a step: marks and counts. The pictures stay. */
export function touchGrid(state) {
  state.rows.forEach((row, at) => {
    const found = document.getElementById(`card-${at}`);
    found.classList.toggle("done", row.mine !== null);
    if (at === state.at) found.setAttribute("aria-current", "true");
    else found.removeAttribute("aria-current");
    const answered = row.mine === null ? "" : `, answered ${row.mine}`;
    found.firstChild.setAttribute("aria-label", `row ${row.id}, labelled ${row.given}${answered}`);
    const stage = found.querySelector(".stage");
    stage.querySelector(".mark")?.remove();
    stage.append(...[mark(row)].filter(Boolean));
  });
  for (const found of document.querySelectorAll(".group")) touchGroup(found, state);
}

function touchGroup(found, state) {
  const all = found.querySelector("[data-do=rest]");
  const given = all.dataset.label;
  const members = state.rows.filter((row) => row.given === given);
  const open = members.filter((row) => row.mine === null).length;
  found.querySelector("h2 span").textContent = `${members.length - open} of ${plural(members.length, "row")} answered`;
  all.hidden = open === 0;
  const every = open === 2 ? "Both are" : `All ${open} are`;
  const which = open === members.length ? every : `The other ${open} are`;
  all.textContent = open === 1 ? `The last one is ${given}` : `${which} ${given}`;
}

export function bar(state) {
  const row = state.rows[state.at];
  return [answers(row), classes(row, state)];
}

// Nothing to answer -----------------------------------------------------------------------------------------------------

export function working(forRun) {
  return [
    h("div.sign.busy"),
    h("h2", {}, "Decant is learning from your answers"),
    h("p", {}, forRun ? "Keep this page open: the next questions appear here, if there are any." : "The label check is running. New questions appear here when it has any."),
  ];
}

export function done(state) {
  const { progress, for_run: forRun } = state.review;
  if (!state.rows.length) return [h("div.sign", {}, "✓"), h("h2", {}, "No row waits for an answer"), h("p", {}, forRun ? "The run goes on by itself." : "All answers have been used.")];
  const unseen = state.rows.some((row) => row.mine === null);
  const look = h("button", { type: "button", "data-do": "look" }, unseen ? "Answer them, too" : "Look through them");
  const undo = state.history.length > 0 && h("button", { type: "button", "data-do": "undo" }, "Undo the last one", h("kbd", {}, "Z"));
  const next = forRun
    ? "The run goes on by itself. Keep this page open: the next questions appear here, if there are any."
    : ["Next: ", h("code", {}, "decant run"), ". It learns from them, and may ask about a few more rows."];
  return [h("div.sign", {}, "✓"), h("h2", {}, `All ${plural(progress.round_asked, "row")} answered`), h("p", {}, ...[next].flat()), h("div.answers", {}, look, undo)];
}

export function mineDone(state) {
  const { progress } = state.review;
  const said = progress.disputed
    ? `${plural(progress.disputed, "row")} ${progress.disputed === 1 ? "is" : "are"} disputed: talk about it; then one of you changes an answer.`
    : `${plural(progress.open, "row")} still ${progress.open === 1 ? "needs" : "need"} an answer from another expert.`;
  return [
    h("div.sign", {}, "✓"), h("h2", {}, "You have answered every row"), h("p", {}, said),
    h("div.answers", {}, progress.disputed > 0 && h("button.main", { type: "button", "data-do": "disputed" }, "Show the disputed"), h("button", { type: "button", "data-do": "look" }, "Look through them")),
  ];
}

export function refused(title, text) {
  return [h("h2", {}, title), h("p", {}, text)];
}
