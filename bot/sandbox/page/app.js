"use strict";
/* The question this file answers: how does a person use the sandbox workspace in a browser?

   Its rules:
   - Text from a message, a view or a name becomes a text node, never markup: there is no innerHTML in this file, and a
     link is made only for http, https and mailto (`safeUrl`). A message cannot run code in the page of who reads it.
   - The server is the truth. The page keeps only what Slack's client keeps: drafts, what is typed into an open modal,
     ephemerals until a reload, and where the reader stands.
   - Whatever is redrawn is redrawn by key (`reconcile`): a block that did not change keeps its node, so neither the
     focus, nor a half-typed word, nor the scroll position is lost because somebody else clicked.
   - Whatever the mouse can do, the keyboard can do.
   Sections: dom, state, api, mrkdwn, rich text, lists, blocks, acting, messages, composer, modals, sidebar, live, start. */

/* ------------------------------------------------------------------------------------------------------------- dom */

const $ = (id) => document.getElementById(id);
let idCount = 0;
const freshId = (word) => `${word}-${++idCount}`;

/** An element. `props`: `class`, `text`, `data` (dataset), `on` (listeners), the rest are attributes; null and false are left out. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const ICONS = {
  back: "M15 5l-7 7 7 7", close: "M6 6l12 12M18 6L6 18", down: "M6 9l6 6 6-6", more: "M5 12h.01M12 12h.01M19 12h.01",
  send: "M4 12l16-8-6 16-3-7z", reply: "M4 5h16v11H10l-5 4v-4H4z", lock: "M6 11h12v9H6zM8 11V8a4 4 0 018 0v3",
  hash: "M9 4L7 20M17 4l-2 16M4 9h16M3.5 15h16", home: "M4 11l8-7 8 7v9h-5v-6H9v6H4z", warn: "M12 4l9 16H3zM12 10v4M12 17h.01",
  file: "M6 3h8l4 4v14H6zM14 3v4h4", check: "M5 13l4 4L19 7", eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 100 6 3 3 0 000-6z",
  unlock: "M6 11h12v9H6zM8 11V8a4 4 0 017.5-2", key: "M8 11a4 4 0 100 8 4 4 0 000-8zM11 12l9-9M16 7l3 3", clock: "M12 3a9 9 0 100 18 9 9 0 000-18zM12 7v5l3 2",
  hourglass: "M6 3h12M6 21h12M7 3c0 5 4 6 5 9 1-3 5-4 5-9M7 21c0-5 4-6 5-9 1 3 5 4 5 9", bell: "M6 17V11a6 6 0 0112 0v6l1 1H5zM10 21h4", siren: "M6 19v-6a6 6 0 0112 0v6M4 19h16M12 3v2M3 8l2 1M21 8l-2 1",
  shield: "M12 3l7 3v6c0 5-4 8-7 9-3-1-7-4-7-9V6z", person: "M12 4a4 4 0 100 8 4 4 0 000-8zM4 21c1-5 4-7 8-7s7 2 8 7", search: "M10 4a6 6 0 100 12 6 6 0 000-12zM15 15l5 5",
  info: "M12 3a9 9 0 100 18 9 9 0 000-18zM12 11v5M12 8h.01", stop: "M12 3a9 9 0 100 18 9 9 0 000-18zM7 12h10", chain: "M10 14a4 4 0 005 0l4-4a4 4 0 00-6-6l-1 1M14 10a4 4 0 00-5 0l-4 4a4 4 0 006 6l1-1",
  pin: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7", copy: "M8 8h12v12H8zM16 8V4H4v12h4",
};
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const iconButton = (picture, label, click, more = {}) => el("button", { type: "button", class: "icon-button", "aria-label": label, on: { click }, ...more }, icon(picture));

/** The address if a click on it is harmless, else null: `javascript:` and `data:` would run in the reader's page. */
function safeUrl(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch { return null; }
}

/** Makes the children of `parent` be `items` ({key, sig, make, update?}) in order; a child whose sig is the same is not touched. */
function reconcile(parent, items) {
  const old = new Map([...parent.children].map((node) => [node.itemKey, node]));
  let at = parent.firstElementChild;
  for (const { key, sig, make, update } of items) {
    let node = old.get(key);
    old.delete(key);
    if (node && node.itemSig !== sig && !update) {
      const fresh = make();
      if (at === node) at = fresh;
      node.replaceWith(fresh);
      node = fresh;
    }
    if (!node) node = make();
    if (update && node.itemSig !== sig) update(node);
    node.itemKey = key;
    node.itemSig = sig;
    // A node that is moved loses the focus, so one that already stands in its place is left alone.
    if (at === node) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  for (const node of old.values()) node.remove();
}

const FOCUSABLE = "a[href],button:not([disabled]),input:not([disabled]),textarea:not([disabled]),select,[tabindex]";

/** Where the focus stands, in words that survive a redraw: message, block, action, and which control in it. */
function placeOf(node) {
  const scope = node.closest("[data-action-id]") || node;
  return {
    root: node.closest("[data-ts]")?.dataset.ts, block: node.closest("[data-block-id]")?.dataset.blockId,
    action: scope.dataset.actionId, pane: node.closest("[data-pane-kind]")?.dataset.paneKind,
    index: scope === node ? -1 : [...scope.querySelectorAll(FOCUSABLE)].indexOf(node),
    range: "selectionStart" in node ? [node.selectionStart, node.selectionEnd] : null,
  };
}
function atPlace({ root, block, action, pane, index }, within = document) {
  let scope = within;
  const narrow = (name, value) => value && (scope = scope?.querySelector(`[data-${name}="${CSS.escape(value)}"]`));
  narrow("pane-kind", pane); narrow("ts", root); narrow("block-id", block); narrow("action-id", action);
  if (!scope || scope === within) return null;
  return index >= 0 ? scope.querySelectorAll(FOCUSABLE)[index] ?? scope : scope;
}
/** Runs `draw` and puts the focus (and the caret) back on the same control if the redraw replaced it. */
function keepFocus(root, draw) {
  const active = document.activeElement;
  const place = active && root.contains(active) ? placeOf(active) : null;
  draw();
  if (!place || (active.isConnected && document.activeElement === active)) return;
  const target = atPlace(place) || (place.root && atPlace({ root: place.root, pane: place.pane, index: -1 }));
  if (!target) return;
  target.focus({ preventScroll: true });
  // Number and date inputs have no caret to set and throw when asked.
  if (place.range && place.range[0] !== null && target.setSelectionRange) try { target.setSelectionRange(...place.range); } catch { /* no caret */ }
}
function focusAgain(node, place) {
  const target = node?.isConnected ? node : place && atPlace(place);
  target?.focus();
  return Boolean(target);
}

/* ----------------------------------------------------------------------------------------------------------- state */

const state = {
  me: null, workspace: null, people: new Map(), groups: new Map(), epoch: 0, conversations: [], channel: null, thread: null,
  ephemerals: [], home: null, stack: [], forms: new Map(), values: new Map(), waiting: new Map(), drafts: new Map(), turn: 0,
};
const narrowScreen = matchMedia("(max-width: 760px)");
const canHover = matchMedia("(hover: hover)");

const nameOf = (id) => { const p = state.people.get(id); return p ? p.real_name || p.name : id || "unknown"; };
const conversation = (id) => state.conversations.find((c) => c.id === id);
const appName = () => state.workspace?.app?.name || "app";
const initials = (name) => (name.match(/[\p{L}\p{N}]+/gu) || ["?"]).slice(0, 2).map((w) => w[0].toUpperCase()).join("");
/** A person's colour comes from the id, so it is the same on every screen and after every restart. */
function hue(id) { let h = 7; for (const c of id || "") h = Math.imul(h ^ c.charCodeAt(0), 0x9e3779b1) >>> 0; return (h >>> 8) % 360; }
function avatar(id, name = nameOf(id), cls = "") {
  const bot = id === state.workspace?.app?.bot_user_id;
  const node = el("span", { class: `avatar ${bot ? "bot" : ""} ${cls}`, "aria-hidden": "true" }, bot ? icon("lock") : initials(name));
  node.style.setProperty("--hue", hue(id));
  return node;
}
const byTs = (a, b) => Number(a.ts.split(".")[0]) - Number(b.ts.split(".")[0]) || (a.ts < b.ts ? -1 : a.ts > b.ts ? 1 : 0);
const dateOf = (ts) => new Date(Number(ts) * 1000);
const clock = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
function dayLabel(date) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 864e5);
  return days === 0 ? "Today" : days === 1 ? "Yesterday" : date.toLocaleDateString([], { weekday: "long", month: "long", day: "numeric" });
}

/* ------------------------------------------------------------------------------------------------------------- api */

/** A JSON call to the people API. Throws an Error whose message is the server's sentence. */
async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, body ? { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : { method });
  } catch { throw new Error("The sandbox does not answer. Is it still running?"); }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The sandbox answered ${response.status}.`);
  return answer;
}
const get = (path, args = {}) => call("GET", `${path}?${new URLSearchParams({ as: state.me, ...args })}`);
const post = (path, body = {}) => call("POST", path, { as: state.me, ...body });

function toast(text, kind = "") {
  const note = el("div", { class: `toast ${kind}`, "data-testid": "toast" }, kind === "bad" ? icon("warn") : null, el("span", { text }),
    iconButton("close", "Dismiss", () => note.remove()));
  // A modal makes the rest of the page inert, so a toast must stand inside it to be seen and read out.
  ([...document.querySelectorAll("dialog[open]")].pop() || document.body).append($("toasts"));
  $("toasts").append(note);
  setTimeout(() => note.remove(), 8000);
}
/** Says something to who listens to the page. Of a flood only the first few: nobody can listen to fifty messages. */
function announce(text) {
  if ($("announcer").childElementCount > 4) return;
  const line = el("p", { text });
  $("announcer").append(line);
  setTimeout(() => line.remove(), 5000);
}

/* ---------------------------------------------------------------------------------------------------------- mrkdwn */

const EMOJI = {
  white_check_mark: "✅", heavy_check_mark: "✔️", x: "❌", no_entry: "⛔", warning: "⚠️", rotating_light: "🚨", lock: "🔒", unlock: "🔓",
  closed_lock_with_key: "🔐", key: "🔑", hourglass: "⌛", hourglass_flowing_sand: "⏳", stopwatch: "⏱️", alarm_clock: "⏰", clock1: "🕐", bell: "🔔", eyes: "👀",
  memo: "📝", pencil: "📝", page_facing_up: "📄", clipboard: "📋", mag: "🔍", link: "🔗", shield: "🛡️", fire: "🔥", fire_extinguisher: "🧯", siren: "🚨",
  bust_in_silhouette: "👤", busts_in_silhouette: "👥", wave: "👋", tada: "🎉", "+1": "👍", thumbsup: "👍", "-1": "👎", raised_hands: "🙌", pray: "🙏",
  information_source: "ℹ️", question: "❓", exclamation: "❗", zap: "⚡", arrow_right: "➡️", repeat: "🔁", robot_face: "🤖", calendar: "📅", wrench: "🔧", package: "📦",
};
// Circles are drawn, since they carry a state's colour and many machines have no colour emoji font.
const CIRCLES = {
  red_circle: "red", large_red_circle: "red", large_green_circle: "green", green_circle: "green", large_yellow_circle: "yellow", large_orange_circle: "orange",
  large_blue_circle: "blue", blue_circle: "blue", white_circle: "white", black_circle: "black", large_purple_circle: "purple",
};
// On a machine without a colour emoji font these would be empty boxes; they are drawn there, since they carry meaning in a card.
const DRAWN = {
  white_check_mark: "check good", heavy_check_mark: "check good", x: "close bad", no_entry: "stop bad", warning: "warn amber", rotating_light: "siren bad", siren: "siren bad", lock: "lock amber", unlock: "unlock amber",
  closed_lock_with_key: "lock amber", key: "key amber", hourglass: "hourglass amber", hourglass_flowing_sand: "hourglass amber", stopwatch: "clock", alarm_clock: "clock", clock1: "clock", bell: "bell amber", eyes: "eye",
  memo: "file", page_facing_up: "file", clipboard: "file", mag: "search", link: "chain", shield: "shield", bust_in_silhouette: "person", busts_in_silhouette: "person", information_source: "info", repeat: "reply",
};
const hasColourEmoji = (() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.font = "16px sans-serif";
  canvas.fillText("\u{1F511}", 0, 20);
  return canvas.getImageData(0, 0, 24, 24).data.some((v, i) => i % 4 !== 3 && v > 40);
})();
const ROUND = { red_circle: "🔴", large_green_circle: "🟢", large_yellow_circle: "🟡", large_orange_circle: "🟠", large_blue_circle: "🔵", white_circle: "⚪" };
const NAME_OF_EMOJI = new Map(Object.entries({ ...EMOJI, ...ROUND })
  .filter(([name]) => DRAWN[name] || CIRCLES[name]).map(([name, char]) => [char.replace("\uFE0F", ""), name]).reverse());
const EMOJI_CHARS = new RegExp(`(${[...NAME_OF_EMOJI.keys()].join("|")})\\uFE0F?`, "u");

function emoji(name) {
  const props = { role: "img", "aria-label": name.replaceAll("_", " "), title: `:${name}:` };
  if (Object.hasOwn(CIRCLES, name)) return el("span", { class: `circle ${CIRCLES[name]}`, ...props });
  if (!Object.hasOwn(EMOJI, name)) return document.createTextNode(`:${name}:`);
  if (hasColourEmoji || !DRAWN[name]) return el("span", { class: "emoji", text: EMOJI[name], ...props });
  const [picture, colour = ""] = DRAWN[name].split(" ");
  return el("span", { class: `emoji drawn ${colour}`, ...props }, icon(picture));
}
/** Text as nodes; emoji characters are drawn where no font has them. */
function words(text) {
  if (hasColourEmoji || !EMOJI_CHARS.test(text)) return [text];
  return text.split(EMOJI_CHARS).map((part, i) => (i % 2 ? emoji(NAME_OF_EMOJI.get(part)) : part));
}

const unescape = (text) => text.replace(/&(amp|lt|gt);/g, (_, n) => ({ amp: "&", lt: "<", gt: ">" })[n]);
/** A link opens elsewhere; a permalink to a message of this workspace leads there in this page, as the same person. */
function link(href, label) {
  const to = new URL(href), place = to.origin === location.origin && /^\/archives\/(\w+)\/p(\d+)(\d{6})$/.exec(to.pathname);
  const open = place && { click: (event) => { event.preventDefault(); goToMessage(place[1], `${place[2]}.${place[3]}`); } };
  return el("a", { href, target: "_blank", rel: "noopener noreferrer", text: label, on: open || {} });
}
const mention = (text, mine) => el("span", { class: `mention${mine ? " mine" : ""}`, text });
const userMention = (id) => mention(`@${nameOf(id)}`, id === state.me);
function groupMention(id, label) {
  const group = state.groups.get(id);
  return mention(group ? `@${group.handle}` : label || `@${id}`, Boolean(group?.members.includes(state.me)));
}
function channelMention(id, label) {
  const found = conversation(id);
  if (!found) return mention(`#${label || id}`);
  return el("button", { type: "button", class: "mention link", text: `#${found.name}`, on: { click: () => go({ channel: id }) } });
}
const DATE_PARTS = {
  date_num: (d) => d.toLocaleDateString("sv"), date: (d) => d.toLocaleDateString([], { dateStyle: "long" }),
  date_short: (d) => d.toLocaleDateString([], { dateStyle: "medium" }), date_long: (d) => d.toLocaleDateString([], { dateStyle: "full" }),
  time: clock, time_secs: (d) => d.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }),
  ago: (d) => {
    const seconds = (d - Date.now()) / 1000;
    const [unit, size] = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, most]) => Math.abs(seconds) >= most) || ["second", 1];
    return new Intl.RelativeTimeFormat([], { numeric: "auto" }).format(Math.round(seconds / size), unit);
  },
};
for (const kind of ["date", "date_short", "date_long"]) {
  DATE_PARTS[`${kind}_pretty`] = (d) => (["Today", "Yesterday"].includes(dayLabel(d)) ? dayLabel(d).toLowerCase() : DATE_PARTS[kind](d));
}
function dateNode(seconds, format, href, fallback) {
  const date = new Date(Number(seconds) * 1000);
  if (!Number.isFinite(date.getTime())) return document.createTextNode(fallback || "");
  const text = format.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(DATE_PARTS, name) ? DATE_PARTS[name](date) : whole));
  const time = el("time", { datetime: date.toISOString(), title: date.toLocaleString(), text });
  const to = href && safeUrl(href);
  if (!to) return time;
  const anchor = link(to, "");
  anchor.append(time);
  return anchor;
}

/** What stands between < and > in mrkdwn; null when it is no reference, so that the reader sees what was really sent. */
function reference(inner) {
  const bar = inner.indexOf("|");
  const head = bar < 0 ? inner : inner.slice(0, bar), label = bar < 0 ? "" : unescape(inner.slice(bar + 1));
  let m;
  if ((m = /^@([UW]\w+)$/.exec(head))) return userMention(m[1]);
  if ((m = /^#(C\w+)$/.exec(head))) return channelMention(m[1], label);
  if ((m = /^!subteam\^(S\w+)$/.exec(head))) return groupMention(m[1], label);
  if ((m = /^!(channel|here|everyone)$/.exec(head))) return mention(`@${m[1]}`, true);
  if ((m = /^!date\^(\d+)\^([^^]*)(?:\^(.*))?$/.exec(head))) return dateNode(m[1], unescape(m[2]), m[3] && unescape(m[3]), label);
  const href = /^(https?:\/\/|mailto:)/i.test(head) && safeUrl(unescape(head));
  return href ? link(href, label || unescape(head).replace(/^mailto:/i, "")) : null;
}

const TOKEN = /`([^`\n]+)`|<([^<>\n]+)>|:([a-z0-9_+-]+):|https?:\/\/[^\s<>|*`"]+[^\s<>|*`".,;:!?)\]]|[*_~]|\n/g;
const MARKS = { "*": "strong", _: "em", "~": "s" };
/** Index of the mark that closes the one at `open`, or -1. Marks inside code and references do not count. */
function closing(text, open) {
  const mark = text[open];
  if (/\w/.test(text[open - 1] || "") || !text[open + 1] || /\s/.test(text[open + 1]) || text[open + 1] === mark) return -1;
  const scan = /`[^`\n]+`|<[^<>\n]+>|[*_~\n]/g;
  scan.lastIndex = open + 1;
  for (let m; (m = scan.exec(text)); ) {
    if (m[0] === "\n") return -1;
    if (m[0] === mark && !/\s/.test(text[m.index - 1]) && !/\w/.test(text[m.index + 1] || "")) return m.index;
  }
  return -1;
}
function inline(text, out) {
  let from = 0;
  const scan = new RegExp(TOKEN.source, "g");
  for (let m; (m = scan.exec(text)); ) {
    let node = null, end = scan.lastIndex;
    if (m[0] === "\n") node = el("br");
    else if (m[1] !== undefined) node = el("code", { text: unescape(m[1]) });
    else if (m[2] !== undefined) node = reference(m[2]);
    else if (m[3] !== undefined) node = emoji(m[3]);
    else if (MARKS[m[0]]) {
      const close = closing(text, m.index);
      if (close > 0) { node = inline(text.slice(m.index + 1, close), el(MARKS[m[0]])); end = close + 1; }
    } else node = safeUrl(unescape(m[0])) ? link(safeUrl(unescape(m[0])), unescape(m[0])) : null;
    if (!node) { if (m[3] === undefined) continue; node = document.createTextNode(m[0]); }
    // ":12:30:" must not eat the colon that opens the next name.
    if (m[3] !== undefined && node.nodeType === Node.TEXT_NODE) { scan.lastIndex = m.index + 1; continue; }
    out.append(...words(unescape(text.slice(from, m.index))), node);
    from = scan.lastIndex = end;
  }
  out.append(...words(unescape(text.slice(from))));
  return out;
}
/** Slack's mrkdwn as nodes: ``` blocks, then > quotes, then what stands in a line. */
function mrkdwn(text) {
  const out = el("span", { class: "mrkdwn" });
  String(text ?? "").split(/```/).forEach((part, index, all) => {
    // An opening fence without a closing one is text, as in Slack.
    if (index % 2 && index < all.length - 1) return void out.append(preformatted(unescape(part.replace(/^\n|\n$/g, ""))));
    let run = index % 2 ? "```" + part : part;
    if (index && !(index % 2)) run = run.replace(/^\n/, "");
    for (const [piece] of run.matchAll(/(?:^(?:>|&gt;).*(?:\n|$))+|(?:^(?!>|&gt;).*(?:\n|$))+/gm)) {
      if (!piece) continue;
      if (/^(>|&gt;)/.test(piece)) out.append(inline(piece.replace(/^(?:>|&gt;) ?/gm, "").replace(/\n$/, ""), el("blockquote")));
      else inline(piece, out);
    }
  });
  return out;
}
function plain(text) {
  const out = el("span", { class: "plain" });
  let from = 0;
  for (const m of text.matchAll(/:([a-z0-9_+-]+):/g)) {
    const node = emoji(m[1]);
    if (node.nodeType === Node.TEXT_NODE) continue;
    out.append(...words(text.slice(from, m.index)), node);
    from = m.index + m[0].length;
  }
  out.append(...words(text.slice(from)));
  return out;
}
const textObject = (object) => (!object ? "" : object.type === "mrkdwn" ? mrkdwn(object.text) : plain(object.text));

/** Preformatted text with a Copy button: a psql line is there to be pasted, also from a phone. */
function preformatted(text) {
  const code = el("code", { text });
  const button = el("button", { type: "button", class: "copy", "data-testid": "copy" }, icon("copy"), el("span", { text: "Copy" }));
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      // Without permission to the clipboard the text is at least selected, ready for Ctrl+C.
      getSelection().selectAllChildren(code);
      return announce("Selected. Press Control C to copy.");
    }
    button.classList.add("done");
    button.lastChild.textContent = "Copied";
    announce("Copied");
    setTimeout(() => { button.classList.remove("done"); button.lastChild.textContent = "Copy"; }, 2000);
  });
  return el("div", { class: text.length <= 26 && !text.includes("\n") ? "pre short" : "pre" }, el("pre", {}, code), button);
}

/* ------------------------------------------------------------------------------------------------------- rich text */

const RICH = {
  text: (e) => el("span", {}, words(e.text ?? "")),
  link: (e) => (safeUrl(e.url) ? link(safeUrl(e.url), e.text || e.url) : document.createTextNode(e.text ? `${e.text} (${e.url})` : e.url)),
  user: (e) => userMention(e.user_id), usergroup: (e) => groupMention(e.usergroup_id), channel: (e) => channelMention(e.channel_id),
  broadcast: (e) => mention(`@${e.range}`, true), emoji: (e) => emoji(e.name), color: (e) => document.createTextNode(e.value),
  date: (e) => dateNode(e.timestamp, e.format, e.url, e.fallback),
};
function richInline(elements, out) {
  for (const e of elements || []) {
    let node = RICH[e.type] ? RICH[e.type](e) : document.createTextNode(`[${e.type}]`);
    for (const [style, tag] of [["code", "code"], ["strike", "s"], ["italic", "em"], ["bold", "strong"]]) if (e.style?.[style]) node = el(tag, {}, node);
    out.append(node);
  }
  return out;
}
function richPart(part) {
  switch (part.type) {
    case "rich_text_section": return richInline(part.elements, el("div", { class: "rich-line" }));
    case "rich_text_quote": return richInline(part.elements, el("blockquote"));
    case "rich_text_preformatted": return preformatted((part.elements || []).map((e) => e.text ?? e.url ?? "").join(""));
    case "rich_text_list": {
      const props = { class: `indent-${Math.min(part.indent || 0, 8)}`, start: part.offset ? part.offset + 1 : null };
      return el(part.style === "ordered" ? "ol" : "ul", props, part.elements.map((item) => richInline(item.elements, el("li"))));
    }
    default: return el("p", { class: "unsupported", text: `Unsupported: ${part.type}` });
  }
}

/* ----------------------------------------------------------------------------------------------------------- lists */

/** A pop-up list: listbox (choose) or menu (overflow), with filter when long. items: {key, label, detail?, group?, user?, url?}.
    The focus goes in and comes back to `anchor`; arrows, Home, End, letters, Enter, Space, Escape. */
function openList({ anchor, items, role, label, chosen = new Set(), multiple = false, onPick, onClose }) {
  openList.close?.(false);
  const listId = freshId("list"), place = placeOf(anchor), option = role === "menu" ? "menuitem" : "option";
  const filtered = items.length > 9;
  const list = el("ul", { id: listId, role, "aria-label": label, "aria-multiselectable": multiple || null, tabindex: filtered ? null : "-1" });
  const search = filtered && el("input", {
    type: "text", class: "list-filter", role: "combobox", "aria-expanded": "true", "aria-controls": listId, "aria-label": `Search: ${label}`,
    placeholder: "Search…", autocomplete: "off", spellcheck: "false",
  });
  const box = el("div", { class: "popup" }, search, list);
  const keys = search || list; // who has the focus
  let shown = [], current = -1, typed = "", typedAt = 0;

  function mark(index) {
    current = shown.length ? (index + shown.length) % shown.length : -1;
    shown.forEach(({ node }, i) => node.classList.toggle("current", i === current));
    if (current >= 0) { keys.setAttribute("aria-activedescendant", shown[current].node.id); shown[current].node.scrollIntoView({ block: "nearest" }); }
    else keys.removeAttribute("aria-activedescendant");
  }
  function fill() {
    const word = (search ? search.value : "").trim().toLowerCase();
    let group = null;
    shown = [];
    list.replaceChildren();
    for (const item of items) {
      if (word && !`${item.label} ${item.detail || ""}`.toLowerCase().includes(word)) continue;
      if (item.group && item.group !== group) list.append(el("li", { role: "presentation", class: "group", text: (group = item.group) }));
      const node = el("li", { id: freshId("option"), role: option, "aria-selected": role === "menu" ? null : String(chosen.has(item.key)), data: { value: item.key } },
        item.user ? avatar(item.user, item.label, "small") : null,
        el("span", { class: "option-text" }, el("span", { class: "option-label" }, plain(item.label)), item.detail ? el("small", {}, plain(item.detail)) : null),
        role === "menu" ? null : icon("check"));
      const index = shown.length;
      node.addEventListener("pointermove", () => current !== index && mark(index));
      node.addEventListener("click", () => pick(item));
      shown.push({ item, node });
      list.append(node);
    }
    if (!shown.length) list.append(el("li", { role: "presentation", class: "group", text: "Nothing matches" }));
  }
  function pick(item) {
    if (multiple) {
      if (!chosen.delete(item.key)) chosen.add(item.key);
      const at = current;
      fill(); mark(at);
      onPick(item, chosen);
    } else { close(true); onPick(item, chosen); }
  }
  function close(back) {
    if (openList.close !== close) return;
    openList.close = null;
    document.removeEventListener("pointerdown", outside, true);
    removeEventListener("resize", settle);
    anchor.setAttribute("aria-expanded", "false");
    box.remove();
    if (back) focusAgain(anchor, place);
    onClose?.();
  }
  const outside = (event) => { if (!box.contains(event.target) && !anchor.contains(event.target)) close(false); };
  function settle() {
    const a = anchor.getBoundingClientRect(), gap = 4, edge = 8;
    box.style.minWidth = `${Math.min(Math.max(a.width, 180), innerWidth - 2 * edge)}px`;
    box.style.maxHeight = `${Math.max(160, Math.min(360, Math.max(innerHeight - a.bottom, a.top) - 2 * edge))}px`;
    const b = box.getBoundingClientRect();
    const top = a.bottom + gap + b.height <= innerHeight - edge || a.top < innerHeight - a.bottom ? a.bottom + gap : a.top - gap - b.height;
    box.style.top = `${Math.max(edge, Math.min(top, innerHeight - b.height - edge))}px`;
    box.style.left = `${Math.max(edge, Math.min(a.left, innerWidth - b.width - edge))}px`;
  }
  box.addEventListener("keydown", (event) => {
    const { key } = event;
    if (key === "Escape") close(true);
    else if (key === "Tab") return close(true);
    else if (key === "ArrowDown") mark(current + 1);
    else if (key === "ArrowUp") mark(current - 1);
    else if (key === "Home" && !search) mark(0);
    else if (key === "End" && !search) mark(shown.length - 1);
    else if (key === "Enter" || (key === " " && !search)) { if (current >= 0) pick(shown[current].item); }
    else if (!search && key.length === 1 && !event.ctrlKey && !event.metaKey) {
      typed = event.timeStamp - typedAt < 800 ? typed + key.toLowerCase() : key.toLowerCase();
      typedAt = event.timeStamp;
      const hit = shown.findIndex(({ item }) => item.label.toLowerCase().startsWith(typed));
      if (hit >= 0) mark(hit);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  if (search) search.addEventListener("input", () => { fill(); mark(0); });
  openList.close = close;
  anchor.setAttribute("aria-expanded", "true");
  (anchor.closest("dialog") || document.body).append(box);
  fill();
  settle();
  keys.focus({ preventScroll: true });
  mark(Math.max(0, shown.findIndex(({ item }) => chosen.has(item.key))));
  document.addEventListener("pointerdown", outside, true);
  addEventListener("resize", settle);
}

/* ---------------------------------------------------------------------------------------------------------- blocks */

/* ctx says where blocks stand: {id, kind: "message"|"modal"|"home", channel?, message?, view?}. Values are kept per ctx.id. */
const valuesOf = (ctx) => { if (!state.values.has(ctx.id)) state.values.set(ctx.id, new Map()); return state.values.get(ctx.id); };
const fieldKey = (block, element) => `${block.block_id}\n${element.action_id}`;
const waitKey = (ctx, block, element) => `${ctx.id}\n${fieldKey(block, element)}`;
const allOptions = (element) => element.options || (element.option_groups || []).flatMap((group) => group.options);
const VALUE_FIELD = {
  plain_text_input: "value", number_input: "value", email_text_input: "value", url_text_input: "value", static_select: "selected_option", radio_buttons: "selected_option",
  multi_static_select: "selected_options", checkboxes: "selected_options", users_select: "selected_user", multi_users_select: "selected_users",
  datepicker: "selected_date", timepicker: "selected_time",
};
const INITIAL = {
  value: "initial_value", selected_option: "initial_option", selected_options: "initial_options", selected_user: "initial_user", selected_users: "initial_users",
  selected_date: "initial_date", selected_time: "initial_time",
};
/** The VALUE that stands now, as in Slack's `view.state.values`. What a person chose wins over what the app proposed, as long as it can still be chosen. */
function valueOf(ctx, block, element) {
  const field = VALUE_FIELD[element.type], values = valuesOf(ctx), key = fieldKey(block, element), kept = values.get(key);
  if (kept?.type === element.type) {
    if (!field.startsWith("selected_option")) return kept;
    const find = (chosen) => allOptions(element).find((option) => option.value === chosen?.value);
    const now = Array.isArray(kept[field]) ? kept[field].map(find).filter(Boolean) : kept[field] && find(kept[field]);
    if (kept[field] === null || Array.isArray(now) || now) { kept[field] = now ?? null; return kept; }
  }
  // After a reload the server still knows what was last sent to it.
  const many = field.endsWith("s"), sent = ctx.view?.state?.values?.[block.block_id]?.[element.action_id];
  const value = { type: element.type, [field]: (sent?.type === element.type ? sent[field] : element[INITIAL[field]]) ?? (many ? [] : null) };
  if (Array.isArray(value[field])) value[field] = [...value[field]];
  values.set(key, value);
  return value;
}
function stateOf(ctx) {
  const values = {};
  for (const [key, value] of valuesOf(ctx)) { const [block, action] = key.split("\n"); (values[block] ??= {})[action] = value; }
  return values;
}
/** Called by every input when its value changes: remembers, clears the field's error, and tells the app when the element dispatches. */
async function changed(ctx, block, element, next, { dispatch = true, redraw = null } = {}) {
  const field = VALUE_FIELD[element.type], value = valueOf(ctx, block, element), before = value[field];
  value[field] = next;
  if (ctx.kind === "modal") clearFieldError(ctx, block.block_id);
  if (!dispatch || (block.type === "input" && !block.dispatch_action)) return;
  if (!(await act(ctx, block, element, { [field]: next })) && element.confirm) { value[field] = before; redraw?.(); }
}

const optionItem = (option, group) => ({ key: option.value ?? option.text.text, label: option.text.text, detail: option.description?.text, group, option });
const optionItems = (element) => (element.option_groups || [{ options: element.options || [] }]).flatMap((g) => g.options.map((o) => optionItem(o, g.label?.text)));
const humans = () => [...state.people.values()].filter((p) => !p.deleted && !p.is_bot);
const peopleItems = () => humans().map((p) => ({ key: p.id, label: nameOf(p.id), detail: p.title || `@${p.name}`, user: p.id }));

/** All select elements: a button that opens a list. A native select would dispatch at every arrow key while it is closed. */
function picker(element, block, ctx, label) {
  const field = VALUE_FIELD[element.type], many = field.endsWith("s"), ofPeople = element.type.includes("users");
  const items = () => (ofPeople ? peopleItems() : optionItems(element));
  const keyOf = (thing) => (ofPeople ? thing : thing.value);
  const shown = el("span", { class: "picked", id: freshId("picked") });
  const button = el("button", { type: "button", class: "picker", "aria-haspopup": "listbox", "aria-expanded": "false", "aria-describedby": label.describedBy,
    data: { actionId: element.action_id } }, shown, icon("down"));
  if (label.id) button.setAttribute("aria-labelledby", `${label.id} ${shown.id}`);
  const chosen = () => [valueOf(ctx, block, element)[field]].flat().filter(Boolean).map((thing) => ({ key: keyOf(thing), label: ofPeople ? nameOf(thing) : thing.text.text }));
  function picture({ key, label: words }) {
    if (many) return el("span", { class: "chip" }, plain(words));
    return ofPeople ? el("span", { class: "person" }, avatar(key, words, "small"), words) : plain(words);
  }
  function draw() {
    const now = chosen();
    shown.classList.toggle("empty", !now.length);
    if (now.length) shown.replaceChildren(...now.map(picture));
    else shown.replaceChildren(plain(element.placeholder?.text || (ofPeople ? "Choose a person" : "Choose an option")));
  }
  button.addEventListener("click", () => {
    const taken = new Set(chosen().map((c) => c.key)), at = new Set(taken), clear = !many && block.type === "input" && block.optional && taken.size;
    const list = clear ? [{ key: "", label: "— None —" }, ...items()] : items();
    const value = (item) => (ofPeople ? item.key || null : item.option || null);
    const same = () => taken.size === at.size && [...taken].every((key) => at.has(key));
    openList({
      anchor: button, items: list, role: "listbox", label: label.text || element.placeholder?.text || "Options", chosen: taken, multiple: many,
      onPick: (item) => {
        // A list of several is dispatched once, when it closes; a choice of one at once.
        const next = many ? list.filter((i) => taken.has(i.key)).map(value) : value(item);
        changed(ctx, block, element, next, { dispatch: !many, redraw: draw });
        draw();
      },
      onClose: () => many && !same() && changed(ctx, block, element, valueOf(ctx, block, element)[field], { redraw: draw }),
    });
  });
  draw();
  return button;
}

const numeric = ({ is_decimal_allowed: decimal, min_value: min, max_value: max }) => ({ min, max, step: decimal ? "any" : "1", inputmode: decimal ? "decimal" : "numeric" });

function textInput(element, block, ctx, label) {
  const kind = { number_input: "number", email_text_input: "email", url_text_input: "url" }[element.type] || "text";
  const value = valueOf(ctx, block, element), on = element.dispatch_action_config?.trigger_actions_on || ["on_enter_pressed"];
  const id = freshId("field"), most = element.max_length, multi = element.multiline && kind === "text";
  const counter = most ? el("span", { class: "counter", "aria-hidden": "true" }) : null;
  const input = el(multi ? "textarea" : "input", {
    id, placeholder: element.placeholder?.text, autocomplete: "off", "aria-describedby": label.describedBy, data: { actionId: element.action_id },
    ...(multi ? { rows: 4 } : { type: kind }), ...(kind === "number" ? numeric(element) : {}),
  });
  input.value = value.value ?? "";
  const count = () => counter && (counter.textContent = input.value.length > most * 0.8 ? `${input.value.length} / ${most}` : "");
  const dispatching = block.type !== "input" || block.dispatch_action;
  let timer;
  input.addEventListener("input", () => {
    count();
    const next = input.value === "" ? null : input.value;
    changed(ctx, block, element, next, { dispatch: false });
    clearTimeout(timer);
    if (dispatching && on.includes("on_character_entered")) timer = setTimeout(() => act(ctx, block, element, { value: next }), 350);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    const send = !multi || event.ctrlKey || event.metaKey;
    if (!send) return;
    event.preventDefault();
    if (dispatching && on.includes("on_enter_pressed") && !event.ctrlKey && !event.metaKey) act(ctx, block, element, { value: input.value || null });
    else input.form?.requestSubmit();
  });
  count();
  label.for?.(id);
  return counter ? el("div", { class: "counted" }, input, counter) : input;
}

function dateInput(element, block, ctx, label) {
  const field = VALUE_FIELD[element.type], id = freshId("field");
  const input = el("input", { id, type: element.type === "datepicker" ? "date" : "time", "aria-describedby": label.describedBy, data: { actionId: element.action_id } });
  input.value = valueOf(ctx, block, element)[field] ?? "";
  input.addEventListener("change", () => changed(ctx, block, element, input.value || null, { redraw: () => (input.value = valueOf(ctx, block, element)[field] ?? "") }));
  label.for?.(id);
  if (!label.id) input.setAttribute("aria-label", element.placeholder?.text || "Date");
  return input;
}

function choices(element, block, ctx, label) {
  const many = element.type === "checkboxes", field = VALUE_FIELD[element.type], name = freshId("choice");
  const group = el("div", { class: "choices", role: many ? "group" : "radiogroup", "aria-labelledby": label.id, "aria-label": label.id ? null : label.text || "Choices",
    "aria-describedby": label.describedBy, data: { actionId: element.action_id } });
  const inputs = element.options.map((option) => {
    const detail = option.description ? freshId("about") : null;
    const input = el("input", { type: many ? "checkbox" : "radio", name, value: option.value, "aria-describedby": detail });
    input.addEventListener("change", () => {
      const on = element.options.filter((_, i) => inputs[i].checked);
      changed(ctx, block, element, many ? on : on[0] ?? null, { redraw: draw });
    });
    const words = el("span", {}, el("span", { class: "choice-label" }, textObject(option.text)), detail && el("small", { id: detail }, textObject(option.description)));
    group.append(el("label", { class: "choice" }, input, words));
    return input;
  });
  function draw() {
    const value = valueOf(ctx, block, element)[field], on = new Set((many ? value : value ? [value] : []).map((o) => o.value));
    inputs.forEach((input) => (input.checked = on.has(input.value)));
  }
  draw();
  return group;
}

const ELEMENTS = {
  button(element, block, ctx) {
    const key = waitKey(ctx, block, element);
    const button = el("button", {
      type: "button", class: `button ${element.style || ""}`, "aria-label": element.accessibility_label, data: { actionId: element.action_id, wait: key },
    }, textObject(element.text));
    button.addEventListener("click", () => {
      if (state.waiting.get(key) === "waiting") return;
      const to = element.url && safeUrl(element.url);
      if (to) open(to, "_blank", "noopener,noreferrer");
      act(ctx, block, element, element.value === undefined ? {} : { value: element.value });
    });
    showWaiting(button, state.waiting.get(key));
    return button;
  },
  overflow(element, block, ctx) {
    const button = el("button", {
      type: "button", class: "button overflow", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": "More actions",
      data: { actionId: element.action_id, wait: waitKey(ctx, block, element) },
    }, icon("more"));
    button.addEventListener("click", () => openList({
      anchor: button, items: optionItems(element), role: "menu", label: "More actions",
      onPick: ({ option }) => {
        const to = option.url && safeUrl(option.url);
        if (to) open(to, "_blank", "noopener,noreferrer");
        act(ctx, block, element, { selected_option: option });
      },
    }));
    return button;
  },
  static_select: picker, multi_static_select: picker, users_select: picker, multi_users_select: picker, radio_buttons: choices, checkboxes: choices,
  plain_text_input: textInput, number_input: textInput, email_text_input: textInput, url_text_input: textInput, datepicker: dateInput, timepicker: dateInput,
};
const unsupported = (type) => el("span", { class: "unsupported", text: `This sandbox does not draw “${type}”.` });
function drawElement(element, block, ctx, label = {}) {
  return Object.hasOwn(ELEMENTS, element.type) ? ELEMENTS[element.type](element, block, ctx, label) : unsupported(element.type);
}

const BLOCKS = {
  header: (block) => el("h3", {}, textObject(block.text)),
  divider: () => el("hr"),
  section(block, ctx) {
    const id = freshId("section");
    return [el("div", { class: "section-text", id }, block.text ? el("div", {}, textObject(block.text)) : null,
      block.fields ? el("div", { class: "fields" }, block.fields.map((field) => el("div", {}, textObject(field)))) : null),
    block.accessory ? el("div", { class: "accessory" }, drawElement(block.accessory, block, ctx, { id })) : null];
  },
  context: (block) => block.elements.map((element) => (element.type === "image" ? unsupported("image") : el("span", {}, textObject(element)))),
  actions: (block, ctx) => block.elements.map((element) => drawElement(element, block, ctx, { text: element.placeholder?.text })),
  rich_text: (block) => block.elements.map(richPart),
  input(block, ctx) {
    const labelId = freshId("label"), hintId = freshId("hint"), errorId = freshId("error");
    const label = el("label", { class: "label", id: labelId }, textObject(block.label), block.optional ? el("span", { class: "optional", text: " (optional)" }) : null);
    const control = drawElement(block.element, block, ctx, {
      id: labelId, text: block.label.text, describedBy: `${errorId} ${hintId}`, for: (id) => label.setAttribute("for", id),
    });
    const hint = block.hint && el("p", { class: "hint", id: hintId }, textObject(block.hint));
    return [label, control, el("p", { class: "field-error", id: errorId, role: "alert" }), hint];
  },
};
function drawBlocks(container, blocks, ctx) {
  reconcile(container, (blocks || []).map((raw, index) => {
    const block = raw.block_id ? raw : { ...raw, block_id: `block-${index}` };
    return {
      key: block.block_id, sig: JSON.stringify(block) + state.epoch,
      make() {
        const inside = Object.hasOwn(BLOCKS, block.type) ? BLOCKS[block.type](block, ctx) : unsupported(block.type);
        return el("div", { class: `block block-${block.type}`, data: { blockId: block.block_id } }, inside);
      },
    };
  }));
}

/* ---------------------------------------------------------------------------------------------------------- acting */

function showWaiting(node, how) {
  node.classList.toggle("waiting", how === "waiting");
  node.classList.toggle("failed", how === "failed");
  if (how === "waiting") node.setAttribute("aria-busy", "true"); else node.removeAttribute("aria-busy");
  node.querySelector(".failed-sign")?.remove();
  const words = `${appName()} did not respond in time`;
  if (how !== "failed") return;
  node.append(el("span", { class: "failed-sign", title: words, "data-testid": "failed" }, icon("warn"), el("span", { class: "visually-hidden", text: words })));
}
function setWaiting(key, how) {
  if (how) state.waiting.set(key, how); else state.waiting.delete(key);
  document.querySelectorAll(`[data-wait="${CSS.escape(key)}"]`).forEach((node) => showWaiting(node, how));
}
/** Tells the app that somebody used an element. True when it was sent; false when the person said no in its `confirm` dialog. */
async function act(ctx, block, element, fields) {
  const turn = state.turn;
  if (element.confirm && !(await askFirst(element.confirm))) return false;
  if (turn !== state.turn) return false;
  const key = waitKey(ctx, block, element), values = stateOf(ctx);
  const where = ctx.kind === "message" ? { channel: ctx.channel, message_ts: ctx.message.ts } : { view_id: ctx.view.id };
  setWaiting(key, "waiting");
  try {
    const confirmed = element.confirm ? { confirmed: true } : {};
    const answer = await post("/sandbox/actions", { ...where, block_id: block.block_id, action_id: element.action_id, ...fields, ...confirmed, state: { values } });
    setWaiting(key, answer.acknowledged === false ? "failed" : null);
  } catch (error) { setWaiting(key, null); toast(error.message, "bad"); }
  return true;
}
/** The `confirm` dialog of an element: resolves true or false. Escape is no. */
function askFirst(confirm) {
  const dialog = $("confirm"), back = document.activeElement, place = back && placeOf(back);
  return new Promise((resolve) => {
    const done = (yes) => { dialog.onkeydown = null; dialog.oncancel = null; dialog.close(); focusAgain(back, place); resolve(yes); };
    const choice = (word, style, answer, text) => el("button", { type: "button", class: `button ${style}`, "data-testid": `confirm-${word}`, on: { click: () => done(answer) } }, textObject(text));
    const yes = choice("yes", confirm.style || "primary", true, confirm.confirm || { text: "Yes" });
    const no = choice("no", "", false, confirm.deny || { text: "Cancel" });
    dialog.replaceChildren(el("h2", { id: "confirm-title" }, textObject(confirm.title || { text: "Are you sure?" })),
      el("div", { id: "confirm-text" }, textObject(confirm.text)), el("footer", {}, no, yes));
    dialog.onkeydown = (event) => (event.key === "Escape" ? (event.preventDefault(), event.stopPropagation(), done(false)) : trapTab(event, dialog));
    dialog.oncancel = (event) => { event.preventDefault(); done(false); };
    dialog.showModal();
    yes.focus();
  });
}
function trapTab(event, dialog) {
  if (event.key !== "Tab") return;
  // Of a radio group with a choice, only the chosen one is a tab stop.
  const passed = (n) => n.type === "radio" && !n.checked && dialog.querySelector(`input[name="${n.name}"]:checked`);
  const stops = [...dialog.querySelectorAll(FOCUSABLE)].filter((n) => n.tabIndex >= 0 && n.offsetParent !== null && !passed(n));
  const edge = event.shiftKey ? stops[0] : stops.at(-1);
  // The last stop may be a radio group, whose every button is in `stops`.
  const same = document.activeElement === edge || (edge?.type === "radio" && document.activeElement.name === edge.name);
  if (same || !dialog.contains(document.activeElement)) { event.preventDefault(); (event.shiftKey ? stops.at(-1) : stops[0])?.focus(); }
}

/* -------------------------------------------------------------------------------------------------------- messages */

const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} kB` : `${(bytes / 1048576).toFixed(1)} MB`);
function fileCard(file) {
  // The server hands out a file only to somebody who can see its channel, so the link says who asks.
  const url = new URL(file.url, location.href), name = file.title || file.name;
  const ours = url.origin === location.origin;
  if (ours) url.searchParams.set("as", state.me);
  // A PNG is shown, as Slack does; anything else could be a page, which is only ever downloaded.
  const picture = ours && /\.png$/i.test(file.name) && el("img", { class: "picture", src: safeUrl(url.href), alt: file.alt || name });
  return el("a", { class: picture ? "file pictured" : "file", href: safeUrl(url.href), target: "_blank", rel: "noopener noreferrer", download: ours && file.name, data: { fileId: file.id } },
    picture || icon("file"), el("span", {}, el("strong", { text: name }), el("small", { text: `${file.name} · ${size(file.size)}` })));
}
const isReply = (message) => message.thread_ts && message.thread_ts !== message.ts;
const authorOf = (message) => message.username || nameOf(message.user);

/** A message as text, to see whether it must be drawn again; made once, since a card is long and messages are many. */
const signatures = new WeakMap();
function signature(message) {
  if (!signatures.has(message)) signatures.set(message, JSON.stringify(message));
  return signatures.get(message);
}

/** A list of messages and the box to write in: one for the channel, one for the thread at its side. */
class Pane {
  static PAGE = 150;
  constructor(root, kind) {
    Object.assign(this, { root, kind, channel: null, thread: null, messages: new Map(), limit: Pane.PAGE, newFrom: null, lately: new Map(), loading: 0 });
    root.dataset.paneKind = kind;
    this.earlier = el("button", { type: "button", class: "earlier", hidden: true, text: "Show earlier messages" });
    this.earlier.addEventListener("click", () => { this.limit += Pane.PAGE; this.draw(); });
    this.list = el("div", { class: "list", role: "log", "aria-live": "off", "aria-label": kind === "main" ? "Messages" : "Thread" });
    this.scroller = el("div", { class: "scroller" }, this.earlier, this.list);
    this.jump = el("button", { type: "button", class: "jump", hidden: true, on: { click: () => this.toEnd() } }, icon("down"), "New messages");
    this.composer = new Composer(this);
    root.append(this.scroller, this.jump, this.composer.root);
    this.scroller.addEventListener("scroll", () => { if (this.atEnd()) { this.jump.hidden = true; this.read(); } });
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.list.addEventListener("focusin", (event) => this.rove(event.target.closest("article")));
  }
  atEnd() { return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 30; }
  toEnd() { this.scroller.scrollTop = this.scroller.scrollHeight; this.jump.hidden = true; this.read(); }

  /** Reads the messages from the server. What the live socket tells meanwhile is newer than the answer and wins. */
  async load({ unread = 0, keep = false } = {}) {
    const { channel, thread } = this, turn = ++this.loading;
    this.lately.clear();
    if (!keep) { this.messages = new Map(); this.limit = Pane.PAGE; this.newFrom = null; this.list.replaceChildren(el("p", { class: "quiet", text: "Loading…" })); }
    const { messages } = await get("/sandbox/messages", thread ? { channel, thread_ts: thread } : { channel });
    if (turn !== this.loading) return;
    this.messages = new Map(messages.map((m) => [m.ts, m]));
    for (const [ts, message] of this.lately) if (message) this.messages.set(ts, message); else this.messages.delete(ts);
    if (unread && !keep) {
      const others = messages.filter((m) => m.user !== state.me && !m.ephemeral);
      this.newFrom = others[Math.max(0, others.length - unread)]?.ts ?? null;
    }
    this.draw();
    if (!keep) this.toEnd();
  }
  shut() { Object.assign(this, { channel: null, thread: null, messages: new Map(), loading: this.loading + 1 }); this.list.replaceChildren(); }
  has(message) {
    if (message.channel !== this.channel) return false;
    if (this.thread) return message.ts === this.thread || message.thread_ts === this.thread;
    return !isReply(message) || Boolean(message.broadcast);
  }
  put(message) {
    if (!this.has(message)) return;
    const known = this.messages.has(message.ts), mine = message.user === state.me;
    this.messages.set(message.ts, message);
    this.lately.set(message.ts, message);
    this.drawSoon(mine);
    if (known || message.ephemeral) return;
    if (!mine && !this.newFrom && (document.hidden || !this.atEnd())) this.newFrom = message.ts;
    if (!mine) announce(`${authorOf(message)}: ${message.text || "message"}`);
  }
  drop(ts) { this.messages.delete(ts); this.lately.set(ts, null); this.drawSoon(); }
  /** Draws once for all that came since the last frame: under load a hundred messages come in a second. */
  drawSoon(follow = false) {
    this.follow ||= follow;
    if (this.due) return;
    this.due = true;
    const now = () => { this.due = false; if (this.channel && this.messages) this.draw({ follow: this.follow }); this.follow = false; };
    if (document.hidden) setTimeout(now, 200); else requestAnimationFrame(now);
  }
  /** Brings one message before the reader. */
  point(ts) {
    const all = [...this.messages.keys()].sort(), at = all.indexOf(ts);
    if (at < 0) return;
    this.limit = Math.max(this.limit, all.length - at + 20);
    this.draw();
    const article = this.list.querySelector(`article[data-ts="${CSS.escape(ts)}"]`);
    article.scrollIntoView({ block: "center" });
    article.focus({ preventScroll: true });
    article.classList.add("pointed");
    setTimeout(() => article.classList.remove("pointed"), 2500);
  }
  read() { if (this.kind === "main") markRead(); }

  draw({ follow = false } = {}) {
    const here = state.ephemerals.filter((m) => (this.thread ? m.channel === this.channel && m.thread_ts === this.thread : m.channel === this.channel && !isReply(m)));
    const all = [...this.messages.values(), ...here].sort(byTs), shown = all.slice(-this.limit);
    this.earlier.hidden = shown.length === all.length;
    const items = [];
    let day = null, before = null;
    const line = (key, sig, make) => { items.push({ key, sig, make }); before = null; };
    for (const message of shown) {
      const label = dayLabel(dateOf(message.ts)), parent = message.ts === this.thread;
      if (label !== day && !this.thread) line(`day-${label}`, "", () => el("h3", { class: "day" }, el("span", { text: label })));
      day = label;
      if (message.ts === this.newFrom) line("new", message.ts, () => el("div", { class: "new-line", role: "separator", "aria-label": "New messages" }, el("span", { text: "New" })));
      const grouped = Boolean(before) && ["user", "username", "ephemeral"].every((name) => before[name] === message[name]) && Number(message.ts) - Number(before.ts) < 300;
      items.push({
        key: message.ts, sig: `${signature(message)}${grouped}${state.epoch}`,
        make: () => el("article", { class: "message", tabindex: "-1", data: { ts: message.ts, channel: message.channel } }),
        update: (node) => this.fill(node, message, grouped),
      });
      before = message;
      const replies = all.length === 1 ? "No replies yet" : `${all.length - 1} ${all.length === 2 ? "reply" : "replies"}`;
      if (parent) line("replies", replies, () => el("div", { class: "replies-line", text: replies }));
    }
    if (!items.length) items.push({ key: "empty", sig: this.channel, make: () => el("p", { class: "quiet", text: "Nothing has been said here yet." }) });
    this.keepScroll(() => keepFocus(this.list, () => reconcile(this.list, items)), follow);
    this.rove(this.list.querySelector("article[tabindex='0']") || [...this.list.querySelectorAll("article")].pop());
  }
  /** Who reads at the end follows new messages; who reads further up is not moved by a pixel. */
  keepScroll(draw, follow) {
    const atEnd = this.atEnd(), top = this.scroller.getBoundingClientRect().top, height = this.scroller.scrollHeight;
    const anchor = [...this.list.children].find((node) => node.getBoundingClientRect().bottom > top), was = anchor?.getBoundingClientRect().top;
    draw();
    if (atEnd || follow) return this.toEnd();
    if (anchor?.isConnected) this.scroller.scrollTop += anchor.getBoundingClientRect().top - was;
    if (this.scroller.scrollHeight > height) this.jump.hidden = this.newFrom === null;
  }
  fill(node, message, grouped) {
    const name = authorOf(message), date = dateOf(message.ts), ctx = { id: `${message.channel}/${message.ts}`, kind: "message", channel: message.channel, message };
    node.className = `message${grouped ? " grouped" : ""}${message.ephemeral ? " ephemeral" : ""}`;
    node.setAttribute("aria-label", `${name}, ${clock(date)}${message.ephemeral ? ", only visible to you" : ""}`);
    const part = (key, sig, make) => ({ key, sig: JSON.stringify([sig, state.epoch]), make });
    const items = [];
    const add = (key, sig, make) => items.push(part(key, sig, make));
    if (grouped) add("time", message.ts, () => el("span", { class: "gutter", text: clock(date), "aria-hidden": "true" }));
    else add("avatar", [message.user, name], () => avatar(message.user, name));
    if (message.ephemeral) add("only-you", 0, () => el("p", { class: "only-you" }, icon("eye"), "Only visible to you"));
    if (message.pinned) add("pinned", 0, () => el("p", { class: "only-you" }, icon("pin"), "Pinned"));
    if (!grouped) {
      add("head", [name, message.is_bot, message.ts], () => el("div", { class: "head" }, el("strong", { class: "author", text: name }), message.is_bot && el("span", { class: "app-tag", text: "APP" }),
        el("time", { datetime: date.toISOString(), title: date.toLocaleString(), text: clock(date) })));
    }
    if (message.blocks?.length) {
      const box = node.querySelector(":scope > .blocks") || el("div", { class: "blocks" });
      drawBlocks(box, message.blocks, ctx);
      items.push({ key: "blocks", sig: "", make: () => box });
    } else add("text", message.text, () => el("div", { class: "text" }, mrkdwn(message.text)));
    if (message.edited) add("edited", 0, () => el("span", { class: "edited", text: "(edited)" }));
    const reactions = Object.entries(message.reactions || {});
    if (reactions.length) add("reactions", reactions, () => el("div", { class: "reactions" }, reactions.map(([word, count]) => el("span", { class: "reaction" }, emoji(word), ` ${count}`))));
    if (message.files?.length) add("files", message.files, () => el("div", { class: "files" }, message.files.map(fileCard)));
    if (this.kind === "main" && !message.ephemeral) {
      const toThread = () => go({ thread: message.thread_ts || message.ts });
      if (message.reply_count || isReply(message)) add("replies", [message.reply_count, message.latest_reply, message.reply_users], () => repliesButton(message, toThread));
      add("tools", message.thread_ts, () => iconButton("reply", "Reply in thread", toThread, { class: "icon-button tool", tabindex: "-1", title: "Reply in thread" }));
    }
    const shortcuts = (state.workspace.shortcuts || []).filter((s) => s.type === "message");
    if (shortcuts.length && !message.ephemeral) add("shortcuts", 0, () => shortcutMenu(message, shortcuts));
    keepFocus(node, () => reconcile(node, items));
  }
  /** One message and its tools are in the tab order; the arrow keys go to its neighbours, Enter opens its thread. */
  rove(article) {
    if (!article) return;
    this.list.querySelectorAll("article[tabindex='0'], [tabindex='0'].tool").forEach((node) => (node.tabIndex = -1));
    for (const node of [article, ...article.querySelectorAll(":scope > .tool")]) node.tabIndex = 0;
  }
  walk(event) {
    const article = event.target;
    if (article.tagName !== "ARTICLE") return;
    const all = [...this.list.querySelectorAll("article")], at = all.indexOf(article);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter") article.querySelector(":scope > .replies, :scope > .tool")?.click();
    else if (to === undefined) return;
    else all[to]?.focus();
    event.preventDefault();
  }
}

function repliesButton(message, toThread) {
  const button = el("button", { type: "button", class: "replies", "data-testid": "replies", data: { actionId: "replies" }, on: { click: toThread } });
  if (!message.reply_count) button.append("View thread");
  else {
    button.append(...(message.reply_users || []).slice(0, 4).map((id) => avatar(id, nameOf(id), "small")), el("strong", { text: `${message.reply_count} ${message.reply_count === 1 ? "reply" : "replies"}` }));
    if (message.latest_reply) button.append(el("span", { class: "last-reply", text: `Last reply ${clock(dateOf(message.latest_reply))}` }));
  }
  return button;
}
function shortcutMenu(message, shortcuts) {
  const button = iconButton("more", "Shortcuts", null, {
    class: "icon-button tool shortcuts", tabindex: "-1", title: "Shortcuts", "aria-haspopup": "menu", "aria-expanded": "false", data: { actionId: "shortcuts" }, on: {},
  });
  const use = (item) => post("/sandbox/shortcuts", { callback_id: item.key, channel: message.channel, message_ts: message.ts });
  button.addEventListener("click", () => openList({
    anchor: button, role: "menu", label: "Shortcuts", items: shortcuts.map((s) => ({ key: s.callback_id, label: s.name, detail: s.description })),
    onPick: (item) => use(item).catch((error) => toast(error.message, "bad")),
  }));
  return button;
}

/** Words from the sandbox to this person alone, where Slack's own Slackbot would speak. */
function slackbot(text, channel, thread) {
  const ts = `${Math.floor(Date.now() / 1000)}.${String(++idCount).padStart(6, "0")}`;
  addEphemeral({ ts, thread_ts: thread || undefined, channel, user: "USLACKBOT", username: "Slackbot", is_bot: true, text, ephemeral: true });
}
function addEphemeral(message) {
  // The app may replace one that it sent before (`replace_original`): same ts, new words.
  state.ephemerals = [...state.ephemerals.filter((m) => m.ts !== message.ts || m.channel !== message.channel), { ...message, ephemeral: true }];
  for (const pane of [mainPane, threadPane]) if (pane.channel === message.channel) pane.drawSoon(true);
  announce(`Only visible to you. ${message.username || ""} ${message.text || ""}`);
}

let readTimer;
function markRead() {
  clearTimeout(readTimer);
  readTimer = setTimeout(() => {
    const here = conversation(state.channel);
    // Somebody who has the page open behind another window has not read anything.
    if (!here || here.kind === "app_home" || document.hidden || !mainPane.atEnd() || !(here.unread || here.mentions)) return;
    here.unread = here.mentions = 0;
    drawSidebar();
    post("/sandbox/read", { channel: here.id }).catch(() => {});
  }, 150);
}

/* -------------------------------------------------------------------------------------------------------- composer */

class Composer {
  constructor(pane) {
    const id = `composer-${pane.kind}`;
    Object.assign(this, { pane, matches: [], current: 0 });
    this.text = el("textarea", {
      id: `${id}-text`, rows: "1", role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": `${id}-list`, autocomplete: "off", "data-testid": id,
    });
    this.list = el("ul", { id: `${id}-list`, class: "completion", role: "listbox", "aria-label": "Commands", hidden: true });
    this.hint = el("p", { class: "usage", hidden: true, "data-testid": "usage-hint" });
    this.send = el("button", { type: "submit", class: "send", "aria-label": "Send", title: "Send (Enter)", disabled: true }, icon("send"));
    this.bar = el("p", { class: "bar" });
    this.root = el("form", { id, class: "composer", autocomplete: "off" }, this.bar, this.list, this.hint, el("div", { class: "composer-box" }, this.text, this.send),
      el("p", { class: "keys" }, el("kbd", { text: "Enter" }), " sends, ", el("kbd", { text: "Shift + Enter" }), " starts a new line",
        pane.kind === "main" && [", ", el("kbd", { text: "/" }), " for commands"]));
    this.root.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.text.addEventListener("input", () => this.changed());
    this.text.addEventListener("keydown", (event) => this.key(event));
    this.text.addEventListener("blur", () => this.offer([]));
  }
  /** Why nobody can write here, or "" when one can; it stands where the box would, as in Slack. */
  barred() {
    const here = conversation(this.pane.channel), app = state.workspace.app;
    if (!here) return "";
    if (here.is_archived) return `#${here.name} is archived.`;
    if (here.is_member === false) return `You are not a member of #${here.name}: you can read along, but not write.`;
    if (here.kind === "dm" && here.user === app.bot_user_id && app.messages_read_only) return "Sending messages to this app has been turned off.";
    return "";
  }
  get draftKey() { return `${state.me} ${this.pane.channel} ${this.pane.thread || ""}`; }
  open(placeholder) {
    const why = this.barred();
    this.root.classList.toggle("barred", Boolean(why));
    this.bar.textContent = why;
    this.text.disabled = Boolean(why);
    this.text.placeholder = placeholder;
    this.text.setAttribute("aria-label", placeholder);
    this.text.value = state.drafts.get(this.draftKey) || "";
    this.changed();
  }
  changed() {
    const { value } = this.text;
    state.drafts.set(this.draftKey, value);
    this.send.disabled = !value.trim();
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, 200)}px`;
    const commands = state.workspace?.commands || [];
    this.offer(/^\/\S*$/.test(value) ? commands.filter((c) => c.command.startsWith(value.toLowerCase())) : []);
    const typed = /^(\/\S+)\s/.exec(value), command = typed && commands.find((c) => c.command === typed[1]);
    this.hint.hidden = !command;
    if (command) this.hint.replaceChildren(el("strong", { text: command.command }), ` ${command.usage_hint || ""}`);
  }
  offer(matches) {
    this.matches = matches;
    this.current = 0;
    this.list.hidden = !matches.length;
    this.text.setAttribute("aria-expanded", String(Boolean(matches.length)));
    this.list.replaceChildren(...matches.map((c, i) => {
      // Not at click: by then the box would have lost the focus and closed the list.
      const pointerdown = (event) => { event.preventDefault(); this.take(i); };
      return el("li", { id: `${this.list.id}-${i}`, role: "option", on: { pointerdown } },
        el("span", {}, el("strong", { text: c.command }), c.usage_hint && el("code", { text: c.usage_hint })), el("small", { text: `${c.description || ""} — ${appName()}` }));
    }));
    this.point();
  }
  point() {
    [...this.list.children].forEach((node, i) => {
      node.classList.toggle("current", i === this.current);
      node.setAttribute("aria-selected", String(i === this.current));
    });
    if (!this.matches.length) return this.text.removeAttribute("aria-activedescendant");
    this.text.setAttribute("aria-activedescendant", `${this.list.id}-${this.current}`);
    this.list.children[this.current].scrollIntoView({ block: "nearest" });
  }
  take(index) { this.text.value = `${this.matches[index].command} `; this.changed(); this.text.focus(); }
  key(event) {
    const { key, shiftKey } = event, n = this.matches.length;
    if (event.isComposing) return;
    if (n && (key === "ArrowDown" || key === "ArrowUp")) { this.current = (this.current + (key === "ArrowDown" ? 1 : n - 1)) % n; this.point(); }
    else if (n && key === "Escape") this.offer([]);
    // A command that is typed to its end is sent by Enter; a piece of one is completed first.
    else if (n && (key === "Tab" || (key === "Enter" && !shiftKey && this.matches[this.current].command !== this.text.value))) this.take(this.current);
    else if (key === "Enter" && !shiftKey) this.submit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
  async submit() {
    const text = this.text.value.trim(), { channel, thread } = this.pane, draft = this.draftKey;
    if (!text) return;
    const command = text.startsWith("/");
    this.text.value = "";
    this.changed();
    this.root.classList.toggle("busy", command);
    // Slack's client escapes what people type, so nobody writes a mention or a link by its code; a command's text goes as typed.
    const sent = command ? text : text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
    try {
      const answer = await post("/sandbox/messages", { channel, text: sent, ...(thread ? { thread_ts: thread } : {}) });
      if (answer.acknowledged === false) announce(`${appName()} did not respond in time`);
    } catch (error) {
      slackbot(error.message, channel, thread);
      if (!state.drafts.get(draft)) { state.drafts.set(draft, text); if (this.draftKey === draft) { this.text.value = text; this.changed(); this.offer([]); } }
    } finally { this.root.classList.remove("busy"); }
  }
}

/* ---------------------------------------------------------------------------------------------------------- modals */

const modal = $("modal");
let modalBack = null;

const viewCtx = (view) => ({ id: `view/${view.id}`, kind: "modal", view });
function formOf(view) {
  let form = state.forms.get(view.id);
  if (form) return form;
  const pushed = state.stack.findIndex((v) => v.id === view.id) > 0;
  form = el("form", { class: "view", novalidate: true, data: { viewId: view.id, callbackId: view.callback_id || "" } });
  form.append(
    el("header", {}, pushed && iconButton("back", "Back", () => closeView()), el("h2", { class: "view-title", tabindex: "-1" }),
      iconButton("close", "Close", () => closeAll(), { "data-testid": "modal-x" })),
    el("p", { class: "view-trouble", role: "alert", hidden: true }), el("div", { class: "view-body blocks" }), el("footer", {}));
  form.addEventListener("submit", (event) => { event.preventDefault(); submitView(form.view); });
  state.forms.set(view.id, form);
  return form;
}
/** Draws a view into its form. What was typed stays wherever block_id and action_id still stand. */
function fillView(view) {
  const form = formOf(view), body = form.querySelector(".view-body");
  form.view = view;
  const stands = new Set();
  for (const block of view.blocks || []) {
    for (const element of [block.element, block.accessory, ...(block.elements || [])]) {
      if (!element?.action_id || !VALUE_FIELD[element.type]) continue;
      stands.add(fieldKey(block, element));
      valueOf(viewCtx(view), block, element);
    }
  }
  for (const key of valuesOf(viewCtx(view)).keys()) if (!stands.has(key)) valuesOf(viewCtx(view)).delete(key);
  const top = body.scrollTop;
  keepFocus(form, () => {
    form.querySelector(".view-title").replaceChildren(textObject(view.title));
    drawBlocks(body, view.blocks, viewCtx(view));
    const footer = form.querySelector("footer"), busy = form.classList.contains("busy");
    const closeText = view.close ? textObject(view.close) : view.submit ? "Cancel" : "Close";
    const foot = (word, sig, props, text) => ({ key: word, sig: JSON.stringify(sig ?? null), make: () => el("button", { "data-testid": `modal-${word}`, data: { actionId: `modal-${word}` }, ...props }, text) });
    reconcile(footer, [
      foot("close", [view.close, Boolean(view.submit)], { type: "button", class: "button", on: { click: () => closeView() } }, closeText),
      ...(view.submit ? [foot("submit", view.submit, { type: "submit", class: `button primary${busy ? " waiting" : ""}` }, textObject(view.submit))] : []),
    ]);
  });
  body.scrollTop = top;
  form.classList.remove("troubled");
  form.querySelector(".view-trouble").hidden = true;
  return form;
}
const firstField = (form) => form.querySelector(".view-body :is(input,textarea,button.picker)");
/** Puts the top of the stack on the screen; with an empty stack, closes the dialog and gives the focus back. */
function showTop() {
  const view = state.stack.at(-1);
  for (const id of state.forms.keys()) if (!state.stack.some((v) => v.id === id)) { state.forms.delete(id); state.values.delete(`view/${id}`); }
  if (!view) {
    openList.close?.(false);
    if (modal.open) { modal.close(); if (!focusAgain(modalBack?.node, modalBack?.place)) mainPane.composer.text.focus(); modalBack = null; }
    return void modal.replaceChildren();
  }
  const filled = Boolean(firstField(formOf(view))), form = fillView(view);
  if (modal.firstElementChild === form) {
    // "One moment…" became the form: who has not moved meanwhile goes on where a form begins, as if it had opened so.
    const resting = form.querySelector("footer")?.contains(document.activeElement) || !form.contains(document.activeElement);
    const next = !filled && firstField(form);
    if (next && resting) next.focus();
    // The button that was pressed is gone with its form.
    else if (!form.contains(document.activeElement) && !openList.close) form.querySelector("footer .button")?.focus();
  } else {
    openList.close?.(false);
    document.querySelectorAll("#modal #modal-title").forEach((node) => node.removeAttribute("id"));
    modal.replaceChildren(form);
    form.querySelector(".view-title").id = "modal-title";
    if (!modal.open) { const node = document.activeElement; modalBack = { node, place: placeOf(node) }; modal.showModal(); }
    const first = firstField(form) || form.querySelector("footer .primary") || form.querySelector("footer .button");
    first?.focus();
  }
}
function setStack(views) { state.stack = views; showTop(); }
function updateView(view) {
  const at = state.stack.findIndex((v) => v.id === view.id);
  if (at < 0) return;
  state.stack[at] = view;
  if (at === state.stack.length - 1) showTop(); else fillView(view);
}
/** An opened view begins a stack of its own; a pushed one lies on top. Both the socket and an answer may tell it, in any order. */
function addView(view, pushed) {
  if (state.stack.some((v) => v.id === view.id)) return updateView(view);
  setStack(pushed ? [...state.stack, view] : [view]);
}
const removeView = (id) => setStack(state.stack.filter((v) => v.id !== id));

async function closeView(view = state.stack.at(-1)) {
  if (!view) return;
  removeView(view.id);
  try { await post(`/sandbox/views/${view.id}/close`); } catch (error) { toast(error.message, "bad"); }
}
async function closeAll() { for (const view of [...state.stack].reverse()) await closeView(view); }

function clearFieldError(ctx, blockId) {
  const block = state.forms.get(ctx.view.id)?.querySelector(`[data-block-id="${CSS.escape(blockId)}"]`);
  if (!block?.classList.contains("wrong")) return;
  block.classList.remove("wrong");
  block.querySelector(".field-error").textContent = "";
  block.querySelector("[data-action-id]")?.removeAttribute("aria-invalid");
}
function showErrors(viewId, errors) {
  const form = state.forms.get(viewId);
  if (!form) return;
  const rest = [];
  let first = null;
  form.querySelectorAll(".block.wrong").forEach((block) => clearFieldError({ view: { id: viewId } }, block.dataset.blockId));
  for (const block of form.querySelectorAll(".block")) {
    const text = errors[block.dataset.blockId], place = block.querySelector(".field-error");
    if (!text || !place) continue;
    block.classList.add("wrong");
    place.textContent = text;
    const control = block.querySelector("[data-action-id]");
    control.setAttribute("aria-invalid", "true");
    first ??= control.matches(FOCUSABLE) ? control : control.querySelector(FOCUSABLE);
  }
  for (const [id, text] of Object.entries(errors)) if (!form.querySelector(`[data-block-id="${CSS.escape(id)}"] .field-error`)) rest.push(text);
  if (rest.length) trouble(form, rest.join(" "));
  first?.focus();
  first?.closest(".block").scrollIntoView({ block: "nearest" });
}
function trouble(form, text) { const p = form.querySelector(".view-trouble"); p.textContent = text; p.hidden = false; }

async function submitView(view) {
  const form = state.forms.get(view.id), button = form.querySelector("footer .primary");
  if (!button || form.classList.contains("busy")) return;
  form.classList.add("busy");
  form.querySelector(".view-trouble").hidden = true;
  showWaiting(button, "waiting");
  try {
    const answer = await post(`/sandbox/views/${view.id}/submit`, { values: stateOf(viewCtx(view)) });
    if (answer.result === "errors") showErrors(view.id, answer.errors || {});
    else if (answer.result === "timeout") trouble(form, "We had some trouble connecting. Try again?");
    else if (answer.result === "updated") updateView(answer.view);
    else if (answer.result === "pushed") addView(answer.view, true);
    else if (answer.result === "cleared") setStack([]);
    else removeView(view.id);
  } catch (error) { trouble(form, error.message); } finally {
    form.classList.remove("busy");
    form.querySelectorAll("footer .primary").forEach((node) => showWaiting(node, null));
  }
}
modal.addEventListener("keydown", (event) => {
  if (event.defaultPrevented) return;
  const form = modal.firstElementChild;
  // preventDefault, since the browser would close the dialog itself and leave the server's stack behind.
  if (event.key === "Escape") { event.preventDefault(); closeView(); }
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form?.requestSubmit(); }
  else trapTab(event, modal);
});
modal.addEventListener("cancel", (event) => { event.preventDefault(); closeView(); });
modal.addEventListener("click", (event) => {
  // A click beside the form does not throw away what was typed; it shows that the form is waiting.
  const b = modal.getBoundingClientRect(), { clientX: x, clientY: y } = event;
  if (event.target !== modal || !event.detail || (x >= b.left && x <= b.right && y >= b.top && y <= b.bottom)) return;
  modal.classList.add("nudge");
  setTimeout(() => modal.classList.remove("nudge"), 250);
});

/* --------------------------------------------------------------------------------------------------------- sidebar */

function drawSidebar() {
  const of = (kind) => state.conversations.filter((c) => c.kind === kind);
  const row = (c) => {
    const unread = c.unread > 0, badge = c.kind === "dm" ? c.unread : c.mentions, here = c.id === state.channel;
    const mark = () => (c.kind === "channel" ? icon(c.is_private ? "lock" : "hash") : c.kind === "app_home" ? icon("home") : avatar(c.user, c.name, "small"));
    const words = [unread ? `${c.unread} unread` : "", c.mentions ? `${c.mentions} ${c.mentions === 1 ? "mention" : "mentions"}` : ""].filter(Boolean).join(", ");
    const make = () => el("li", {}, el("button", {
      type: "button", class: `conversation${unread ? " unread" : ""}${c.is_member === false ? " stranger" : ""}`, "aria-current": here && "page",
      data: { channel: c.id, kind: c.kind, actionId: `go-${c.id}` }, on: { click: () => go({ channel: c.id, thread: null, focus: true }) },
    }, mark(), el("span", { class: "conversation-name", text: c.kind === "app_home" ? `${appName()} — Home` : c.name }),
    badge > 0 && el("span", { class: "badge", "aria-hidden": "true", text: badge > 99 ? "99+" : badge }), words && el("span", { class: "visually-hidden", text: `, ${words}` })));
    return { key: c.id, sig: JSON.stringify([c.name, unread, badge, here, c.is_member, words, state.epoch]), make };
  };
  const group = (kind, label) => ({
    // A row's own signature decides what is redrawn, so each group is always asked.
    key: kind, sig: ++idCount, make: () => el("section", {}, el("h2", { text: label }), el("ul")), update: (node) => reconcile(node.lastElementChild, of(kind).map(row)),
  });
  const groups = [group("channel", "Channels"), group("dm", "Direct messages"), group("app_home", "Apps")];
  keepFocus($("conversations"), () => reconcile($("conversations"), groups));
  const mentions = state.conversations.reduce((n, c) => n + (c.kind === "dm" ? c.unread : c.mentions || 0), 0), here = conversation(state.channel);
  const place = here ? `${here.kind === "channel" ? "#" : ""}${here.name} — ` : "";
  document.title = `${mentions ? `(${mentions}) ` : ""}${place}${state.workspace.team.name} (local sandbox)`;
  $("to-sidebar").classList.toggle("has-news", state.conversations.some((c) => c.id !== state.channel && c.unread));
}
function drawWorkspace() {
  const { team } = state.workspace, me = state.people.get(state.me);
  $("workspace-name").textContent = team.name;
  $("workspace-mark").textContent = initials(team.name);
  $("act-as-name").textContent = nameOf(state.me);
  $("act-as-title").textContent = me?.title || "";
  $("act-as").setAttribute("aria-label", `Act as: ${nameOf(state.me)}${me?.title ? `, ${me.title}` : ""}. Switch person`);
  $("act-as-avatar").replaceChildren(avatar(state.me, nameOf(state.me)));
}
function takeWorkspace(workspace) {
  state.workspace = workspace;
  state.people = new Map(workspace.people.map((p) => [p.id, p]));
  state.groups = new Map((workspace.groups || []).map((g) => [g.id, g]));
  state.epoch += 1;
}
const defaultChannel = () => state.conversations.find((c) => c.kind === "channel" && c.is_member !== false) || state.conversations[0];

/** Goes to a channel, a thread (or null: none), or both, and writes it into the address, so that reload and Back work. */
async function go({ channel = state.channel, thread = channel === state.channel ? state.thread : null, push = true, focus = false, keep = false }) {
  const here = conversation(channel) || defaultChannel();
  if (!here) return;
  if (here.id !== channel || here.kind === "app_home") thread = null;
  const moved = here.id !== state.channel, threaded = thread !== state.thread || moved, hadThread = state.thread;
  state.channel = here.id;
  state.thread = thread;
  const place = new URLSearchParams({ as: state.me, channel: here.id, ...(thread ? { thread } : {}) });
  if (push && (moved || threaded)) history.pushState(null, "", `?${place}`); else history.replaceState(null, "", `?${place}`);
  if (moved || focus) document.body.dataset.pane = "main";
  if (thread && threaded) document.body.dataset.pane = "thread";
  if (!thread && document.body.dataset.pane === "thread") document.body.dataset.pane = "main";
  $("thread").hidden = !thread;
  if (!thread) threadPane.shut();
  document.body.classList.toggle("with-thread", Boolean(thread));
  const app = here.kind !== "channel", home = here.kind === "app_home";
  $("main-title").textContent = here.kind === "channel" ? `# ${here.name}` : here.kind === "app_home" ? appName() : here.name;
  $("main-topic").textContent = here.topic || "";
  $("pane-main").hidden = home;
  $("home").hidden = !home;
  drawTabs(app ? here : null);
  drawSidebar();
  try {
    const jobs = [];
    if (home && (moved || keep)) jobs.push(openHome());
    if (!home && (moved || keep)) {
      const { unread } = here;
      Object.assign(mainPane, { channel: here.id, thread: null });
      if (moved) mainPane.composer.open(here.kind === "channel" ? `Message #${here.name}` : `Message ${here.name}`);
      jobs.push(mainPane.load({ unread, keep: keep && !moved }));
    }
    if (thread && (threaded || keep)) {
      Object.assign(threadPane, { channel: here.id, thread });
      $("thread-channel").textContent = here.kind === "channel" ? `# ${here.name}` : here.name;
      if (threaded) threadPane.composer.open("Reply…");
      jobs.push(threadPane.load({ keep: keep && !threaded }));
    }
    await Promise.all(jobs);
  } catch (error) { toast(error.message, "bad"); }
  // On a phone the focus would raise the keyboard over what one came to read.
  if (modal.open || !canHover.matches) return;
  if (thread && threaded && push) threadPane.composer.text.focus();
  else if (hadThread && !thread && push) {
    const parent = { pane: "main", root: hadThread, index: -1 };
    focusAgain(null, { ...parent, action: "replies" }) || focusAgain(null, parent);
  }
  else if (focus && !home) mainPane.composer.text.focus();
  else if (focus) $("home").focus();
}
/** Follows a permalink: to the message in its channel, or to the reply in its thread. */
async function goToMessage(channel, ts) {
  try {
    await go({ channel, thread: null });
    if (mainPane.messages.has(ts)) return mainPane.point(ts);
    const { messages } = await get("/sandbox/messages", { channel, thread_ts: ts });
    await go({ channel, thread: messages[0].ts });
    threadPane.point(ts);
  } catch (error) { toast(error.message, "bad"); }
}
function drawTabs(here) {
  $("tabs").hidden = !here;
  if (!here) return;
  const home = state.conversations.find((c) => c.kind === "app_home");
  const dm = state.conversations.find((c) => c.kind === "dm" && c.user === state.workspace.app.bot_user_id);
  const tab = (c, label) => c && {
    key: label, sig: `${c.id}${here.id}`,
    make: () => el("button", {
      type: "button", role: "tab", "aria-selected": String(c.id === here.id), data: { actionId: `tab-${label}` }, on: { click: () => go({ channel: c.id, thread: null, focus: true }) },
    }, label),
  };
  reconcile($("tabs"), [tab(home, "Home"), tab(dm, "Messages")].filter(Boolean));
}
async function openHome() {
  const { view } = await post("/sandbox/home");
  if (view) state.home = view;
  drawHome();
}
function drawHome() {
  const box = $("home"), view = state.home;
  if (!view) return box.replaceChildren(el("p", { class: "quiet", text: `${appName()} has nothing on its Home tab yet.` }));
  if (!box.querySelector(":scope > .blocks")) box.replaceChildren(el("div", { class: "blocks" }));
  keepFocus(box, () => drawBlocks(box.firstElementChild, view.blocks, { id: `home/${view.id}`, kind: "home", view }));
}

/** Becomes another person: nothing of the person before stays on the screen. */
async function become(id, { channel = state.channel } = {}) {
  if (id === state.me) return;
  state.turn += 1;
  live.stop();
  Object.assign(state, { me: id, channel: null, thread: null, ephemerals: [], home: null, stack: [], conversations: [] });
  for (const kept of [state.values, state.waiting]) kept.clear();
  $("home").replaceChildren();
  document.querySelectorAll("#toasts .toast").forEach((node) => node.remove());
  showTop();
  try { await enter({ channel }); } catch (error) { return toast(error.message, "bad"); }
  toast(`You are now ${nameOf(id)}.`);
}
function actAsItem(p) {
  const about = [p.title, p.is_guest && "guest", p.team_id !== state.workspace.team.id && "other workspace"].filter(Boolean);
  return { key: p.id, user: p.id, label: nameOf(p.id), detail: about.join(" · ") || `@${p.name}` };
}
$("act-as").addEventListener("click", () => openList({
  anchor: $("act-as"), role: "listbox", label: "Act as", chosen: new Set([state.me]), onPick: (item) => become(item.key), items: humans().map(actAsItem),
}));
$("to-sidebar").addEventListener("click", () => { document.body.dataset.pane = "sidebar"; $("conversations").querySelector("[aria-current]")?.focus(); });
for (const id of ["thread-close", "thread-back"]) $(id).addEventListener("click", () => go({ thread: null }));
$("thread").addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.defaultPrevented) { event.preventDefault(); go({ thread: null }); } });

/* ------------------------------------------------------------------------------------------------------------ live */

const live = {
  socket: null, tries: 0, timer: null,
  start() {
    clearTimeout(this.timer);
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/sandbox/live?as=${encodeURIComponent(state.me)}`);
    this.socket = socket;
    return new Promise((resolve) => {
      socket.onopen = () => { const again = this.tries > 0; this.tries = 0; $("offline").hidden = true; resolve(); if (again) resync(); };
      socket.onmessage = ({ data }) => { if (socket === this.socket) { const event = JSON.parse(data); LIVE[event.type]?.(event); } };
      socket.onclose = () => { resolve(); if (socket === this.socket) this.later(); };
    });
  },
  /** Waits a little longer after each failure, up to 8 s, and not in step with other pages, so that a restarted server is not stormed. */
  later() {
    const wait = Math.min(8000, 400 * 2 ** this.tries++) * (0.75 + Math.random() / 2);
    $("offline").hidden = false;
    this.timer = setTimeout(() => this.start(), wait);
  },
  stop() { clearTimeout(this.timer); const { socket } = this; this.socket = null; socket?.close(); this.tries = 0; $("offline").hidden = true; },
};
$("offline-now").addEventListener("click", () => live.start());

const LIVE = {
  message({ message, channel }) { const m = { channel, ...message }; mainPane.put(m); threadPane.put(m); },
  message_changed({ message, channel }) { const m = { channel, ...message }; clearFailed(m); mainPane.put(m); threadPane.put(m); },
  message_deleted({ channel, ts }) {
    state.ephemerals = state.ephemerals.filter((m) => m.ts !== ts);
    for (const pane of [mainPane, threadPane]) if (pane.channel === channel) pane.drop(ts);
  },
  ephemeral({ message, channel }) { addEphemeral({ channel, ...message }); },
  view_opened({ view }) { addView(view, Boolean(view.previous_view_id)); },
  view_pushed({ view }) { addView(view, true); },
  view_updated({ view }) { updateView(view); },
  view_closed({ view_id: id }) { removeView(id); },
  view_errors({ view_id: id, errors }) { showErrors(id, errors); },
  home({ view }) { state.home = view; if (conversation(state.channel)?.kind === "app_home") drawHome(); },
  unread({ channel, unread, mentions }) {
    const found = conversation(channel);
    if (!found) return void LIVE.conversations();
    Object.assign(found, { unread, mentions });
    drawSidebar();
    if (channel === state.channel) markRead();
  },
  async conversations() { try { state.conversations = (await get("/sandbox/conversations")).conversations; drawSidebar(); } catch { /* the next event asks again */ } },
  async workspace() {
    try { takeWorkspace(await call("GET", "/sandbox/workspace")); } catch { return; /* the same */ }
    drawWorkspace();
    drawSidebar();
    for (const pane of [mainPane, threadPane]) pane.drawSoon();
    if (state.home) drawHome();
  },
  toast({ text }) { toast(text, "bad"); },
};
/** A card that was redrawn has been answered after all: its warning signs go. */
function clearFailed(message) {
  const id = `${message.channel}/${message.ts}\n`;
  for (const [key, how] of state.waiting) if (how === "failed" && key.startsWith(id)) setWaiting(key, null);
}
/** After the socket was gone: events were missed, so everything on the screen is read again. Drafts and typed values stay. */
async function resync() {
  try {
    takeWorkspace(await call("GET", "/sandbox/workspace"));
    const [{ conversations }, { stack }] = await Promise.all([get("/sandbox/conversations"), get("/sandbox/views")]);
    state.conversations = conversations;
    drawWorkspace();
    setStack(stack);
    await go({ keep: true, push: false });
  } catch (error) { toast(error.message, "bad"); }
}

/* ----------------------------------------------------------------------------------------------------------- start */

const mainPane = new Pane($("pane-main"), "main");
const threadPane = new Pane($("pane-thread"), "thread");

/** Reads everything for the current person and goes to where the address says. The socket comes first, so nothing is missed. */
async function enter({ channel, thread = null }) {
  const turn = state.turn;
  await live.start();
  const [{ conversations }, { stack }] = await Promise.all([get("/sandbox/conversations"), get("/sandbox/views")]);
  if (turn !== state.turn) return;
  state.conversations = conversations;
  drawWorkspace();
  try { localStorage.setItem("act-as", state.me); } catch { /* the same */ }
  await go({ channel, thread, push: false });
  setStack(stack);
}
async function start() {
  const asked = new URLSearchParams(location.search);
  takeWorkspace(await call("GET", "/sandbox/workspace"));
  const known = (id) => { const p = state.people.get(id); return Boolean(p) && !p.is_bot && !p.deleted; };
  // A link from elsewhere does not say who one is; one stays who one was in this browser.
  let before = null;
  try { before = localStorage.getItem("act-as"); } catch { /* a browser that keeps nothing */ }
  const wanted = asked.get("as") || (known(before) ? before : null);
  state.me = known(wanted) ? wanted : [...state.people.keys()].find(known);
  if (wanted && wanted !== state.me) toast(`There is no person ${wanted} in this workspace.`, "bad");
  if (!state.me) throw new Error("This workspace has no people yet.");
  await enter({ channel: asked.get("channel"), thread: asked.get("thread") });
  if (asked.get("ts")) await goToMessage(asked.get("channel"), asked.get("ts"));
  if (narrowScreen.matches && !asked.get("channel") && !asked.get("as")) document.body.dataset.pane = "sidebar";
  document.body.dataset.ready = "true";
}
addEventListener("popstate", () => {
  const to = new URLSearchParams(location.search);
  if (to.get("as") !== state.me && state.people.has(to.get("as"))) return void become(to.get("as"), { channel: to.get("channel") });
  go({ channel: to.get("channel"), thread: to.get("thread"), push: false });
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) markRead(); });
for (const [id, name] of [["to-sidebar", "back"], ["thread-back", "back"], ["thread-close", "close"]]) $(id).append(icon(name));
$("act-as").querySelector(".caret").append(icon("down"));
start().catch((error) => {
  $("main-title").textContent = "The sandbox cannot be shown";
  $("main-topic").textContent = error.message;
});
